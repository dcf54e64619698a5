"""What the files of a manifest hold, looked at once: a side file keeps it, so that a stopped check goes on.

The side file is JSONL beside the manifest (`NAME.checked`), one line a file, keyed by path, size and time of change: a
file that was changed is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from radglint.errors import GeometryError, ImageError, InputError
from radglint.inspection import judge_image
from radglint.mask_files import read_mask_file
from radglint.reading import list_files, read_image

SIDE_SUFFIX = ".checked"
FORMAT = 1
AIR_HU = -950.0
MIN_AIR_SHARE = 1e-3
"""Windpipe and air around the patient: a chest CT with less of its voxels below `AIR_HU` is shifted or cropped."""

Kind = Literal["image", "mask"]
Record = dict[str, Any]


class SeenFiles:
    """Records of files that were looked at.

    Args:
        side: the side file; None keeps nothing. One that cannot be written keeps nothing either.
    """

    def __init__(self, side: Path | None) -> None:
        self.side = side
        self._records: dict[str, Record] = {}
        if side is not None and side.is_file():
            for line in side.read_text(encoding="utf-8", errors="replace").split("\n"):
                with suppress(ValueError, KeyError, TypeError):  # the line that a kill cut off
                    entry = json.loads(line)
                    self._records[entry["key"]] = entry["record"]

    def get(self, key: str) -> Record | None:
        """The record of a file, if it was looked at and has not changed since."""
        return self._records.get(key)

    def add(self, key: str, record: Record) -> None:
        """Keep a record, on disk at once."""
        self._records[key] = record
        if self.side is None:
            return
        try:
            with open(self.side, "a+b") as file:
                is_cut = file.tell() > 0 and _last_byte(file) != b"\n"
                line = json.dumps({"key": key, "record": record}).encode() + b"\n"
                file.write((b"\n" if is_cut else b"") + line)
        except OSError:  # a read-only folder: the check goes on, only it cannot be continued later
            self.side = None


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def file_key(kind: Kind, path: Path) -> str | None:
    """What identifies a file or folder as it is now; None if it is not there.

    Args:
        kind: what it is looked at as.
        path: absolute.
    """
    try:
        files = list_files(path) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
    except (OSError, ImageError):
        return None
    if not stats:
        return f"{FORMAT}|{kind}|{path}|empty"
    size, changed = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    return f"{FORMAT}|{kind}|{path}|{len(stats)}|{size}|{changed}"


def look_at_all(
    wanted: Sequence[tuple[Kind, Path]], seen: SeenFiles, *, workers: int = 1, show_progress: bool = False
) -> dict[tuple[Kind, Path], Record]:
    """The record of every file that is there.

    Args:
        wanted: kind and absolute path, each once.
        seen: what is known already; grows.
        workers: processes that decode.
        show_progress: draw a bar on stderr.

    Raises:
        InputError: a process died while decoding.
    """
    from tqdm import tqdm

    keys = {task: file_key(*task) for task in wanted}
    todo = [(task, key) for task, key in keys.items() if key is not None and seen.get(key) is None]
    num_known = len(wanted) - len(todo)
    bar = tqdm(total=len(wanted), initial=num_known, desc="checking", unit="file", disable=not show_progress)
    with bar:
        for (_, key), record in zip(todo, _look([task for task, _ in todo], workers), strict=True):
            seen.add(key, record)
            bar.update()
    return {task: record for task, key in keys.items() if key is not None and (record := seen.get(key)) is not None}


def _look(tasks: Sequence[tuple[Kind, Path]], workers: int) -> Iterator[Record]:
    if workers <= 1 or len(tasks) < 2:
        yield from map(look_at, tasks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(look_at, tasks)
        except BrokenProcessPool as error:
            advice = "what was checked is kept; run again with --workers 1 to see which file it is"
            raise InputError(f"a process died while decoding (or ran out of memory); {advice}") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def look_at(task: tuple[Kind, Path]) -> Record:
    """Decode one file.

    Args:
        task: kind and absolute path.

    Returns:
        Of an image: modality, shape, digest (of the decoded pixels and their shape), affine, verdict and reasons
        (see `inspection`). Of a mask file: shape, sizes_px (of each mask), affine. Or error and its kind.
    """
    kind, path = task
    try:
        return _image_record(path) if kind == "image" else _mask_record(path)
    except InputError as error:
        return {"error": str(error), "kind": _error_kind(kind, error)}
    except MemoryError:
        return {"error": f"{path}: not enough memory to decode it; crop it", "kind": f"unreadable {kind}"}


def _error_kind(kind: Kind, error: InputError) -> str:
    if kind == "image" and "expected HU" in str(error):
        return "values are no HU"
    return "bad geometry" if isinstance(error, GeometryError) else f"unreadable {kind}"


def _image_record(path: Path) -> Record:
    image = read_image(path)
    inspection = judge_image(image)
    reasons = list(inspection.reasons) if inspection.verdict != "ok" else []
    if image.modality == "CT":
        share = float(np.mean(image.array < AIR_HU))
        if share < MIN_AIR_SHARE:
            reasons.append(f"no air near -1000 HU ({100 * share:.2f} % below {AIR_HU:.0f} HU): are the values HU?")
    return {
        "modality": image.modality, "shape": list(image.shape), "digest": pixel_digest(image.array),
        "affine": None if image.affine is None else image.affine.tolist(),
        "verdict": inspection.verdict, "reasons": reasons,
    }  # fmt: skip


def pixel_digest(array: np.ndarray) -> str:
    """32 hexadecimal digits of decoded pixels and their shape: equal for equal pixels, whatever file holds them."""
    content = np.ascontiguousarray(array, dtype="<f4")
    digest = hashlib.blake2b(repr(content.shape).encode(), digest_size=16)
    digest.update(content.data)
    return digest.hexdigest()


def _mask_record(path: Path) -> Record:
    stored = read_mask_file(path)
    return {
        "shape": list(stored.masks.shape[1:]),
        "sizes_px": [int(mask.sum()) for mask in stored.masks],
        "affine": None if stored.affine is None else stored.affine.tolist(),
    }
