"""Unlabelled scans: found, read and preprocessed once as at inference, kept as 16-bit pixels on disk."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from radglint.errors import ConfigError, ImageError, InputError, TrainingError
from radglint.preprocess import preprocess
from radglint.pretraining.config import DataConfig
from radglint.reading import read_image
from radglint.signatures import HEAD_BYTES, FileKind, file_kind
from radglint.writing import output_errors, write_bytes, write_json

INDEX = "index.json"
WHITE = 65535
"""Pixel value 1.0; 16 bits keep a pixel to within 8e-6."""

_KINDS: dict[str, tuple[FileKind, ...]] = {"CXR": ("raster", "dicom", "zip"), "CT": ("nifti", "gzip", "zip")}


@dataclass(frozen=True)
class Scan:
    """One scan that can be sampled.

    Attributes:
        path: where it came from.
        pixels: file name inside the folder of pixels.
        shape: `depth height width` of its model pixels.
    """

    path: str
    pixels: str
    shape: tuple[int, int, int]


def find_scans(sources: Iterable[Path], modality: str) -> list[Path]:
    """Every scan below the given places.

    Args:
        sources: files are taken as they are; a `.txt` file lists one path a line, relative to its own folder; a folder
            is searched with its subfolders.
        modality: "CXR": each picture, DICOM file or zip of a folder is a scan. "CT": each NIfTI file or zip, and each
            folder that holds DICOM files directly.

    Returns:
        Paths for `read_image`, sorted, each once.

    Raises:
        ImageError: a place does not exist, or there is no scan at all.
    """
    sources = list(sources)
    found = {scan for source in sources for scan in _below(source, modality)}
    if not found:
        places = ", ".join(map(str, sources))
        raise ImageError(f"data.scans: no {modality} file in {places}; give the folder that holds the scans")
    return sorted(found)


def _below(source: Path, modality: str, is_list_line: bool = False) -> set[Path]:
    if not source.exists():
        raise ImageError(f"data.scans: {source}: no such file or folder; check the path")
    if source.is_dir():
        return {scan for where, _, names in os.walk(source) for scan in _of_folder(Path(where), names, modality)}
    if source.suffix.lower() != ".txt" or is_list_line:
        return {source}
    lines = [line.strip() for line in source.read_text(encoding="utf-8", errors="replace").splitlines()]
    return {scan for line in lines if line for scan in _below(source.parent / line, modality, is_list_line=True)}


def _of_folder(folder: Path, names: Sequence[str], modality: str) -> set[Path]:
    """The scans that lie directly in a folder."""
    kinds = {folder / name: _kind(folder / name) for name in names if not name.startswith(".") and name != "DICOMDIR"}
    scans = {path for path, kind in kinds.items() if kind in _KINDS[modality]}
    return scans | ({folder} if modality == "CT" and "dicom" in kinds.values() else set())


def _kind(path: Path) -> FileKind | None:
    try:
        with path.open("rb") as file:
            return file_kind(file.read(HEAD_BYTES))
    except OSError:
        return None


def prepare_scans(
    config: DataConfig, folder: Path, *, keep_index: bool = False, told: Callable[[int, int], None] = lambda *_: None
) -> list[Scan]:
    """Read and preprocess every scan, once.

    Args:
        config: which scans, and how they are preprocessed.
        folder: holds the pixels and `index.json`, which also names the scans left out and why. A scan whose file did
            not change is not read again.
        keep_index: take the scans of an existing index as they are, so that a resumed run draws the same samples.
        told: called with the number of scans done and of all scans.

    Returns:
        The scans that can be sampled, in a fixed order.

    Raises:
        ImageError: no scan is found.
        TrainingError: more scans cannot be read than `max_unreadable_share` allows, or none can.
        OutputError: the folder cannot be written.
    """
    if keep_index and (folder / INDEX).exists():
        return _read_index(folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = find_scans(config.scans, config.preprocess.kind)
    scans: list[Scan] = []
    skipped: list[dict[str, str]] = []
    for number, path in enumerate(paths):
        told(number, len(paths))
        try:
            scans.append(_prepared(path, config, folder))
        except InputError as error:
            skipped.append({"path": str(path), "reason": str(error)})
    write_json(folder / INDEX, {"scans": [asdict(scan) for scan in scans], "skipped": skipped})
    _check_share(skipped, len(paths), config, folder)
    return scans


def _check_share(skipped: list[dict[str, str]], total: int, config: DataConfig, folder: Path) -> None:
    if len(skipped) > config.max_unreadable_share * total or len(skipped) == total:
        raise TrainingError(
            f"data.scans: {len(skipped)} of {total} scans cannot be used, more than max_unreadable_share "
            f"{config.max_unreadable_share:g}; {folder / INDEX} names them; the first: {skipped[0]['reason']}"
        )


def _prepared(path: Path, config: DataConfig, folder: Path) -> Scan:
    """One scan's pixels, from the disk if its file is the one that was read before."""
    name = f"{_key(path, config)}.npy"
    if not (folder / name).exists():
        pixels = preprocess(read_image(path), config.preprocess).pixels
        buffer = io.BytesIO()
        np.save(buffer, np.round(pixels * np.float32(WHITE)).astype(np.uint16), allow_pickle=False)
        write_bytes(folder / name, buffer.getvalue())
    depth, height, width = open_pixels(folder / name).shape
    if depth < config.slices:
        raise ImageError(f"{path}: has {depth} model slices, data.slices {config.slices} need more; lower data.slices")
    return Scan(str(path), name, (depth, height, width))


def _key(path: Path, config: DataConfig) -> str:
    """Changes with the file's place, size, time and preprocessing."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([str(path), facts, config.preprocess.model_dump(mode="json")])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def open_pixels(path: Path) -> np.ndarray:
    """The stored pixels as a read-only map of the file, uint16 `depth height width`.

    Raises:
        TrainingError: missing, cut or altered.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(f"{path}: the stored pixels cannot be read ({error}); delete it and start again") from error
    if array.dtype != np.uint16 or array.ndim != 3:
        got = f"{array.dtype} {array.shape}"
        raise TrainingError(f"{path}: expected uint16 pixels with three axes, got {got}; delete it and start again")
    return array


def _read_index(folder: Path) -> list[Scan]:
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))["scans"]
        return [Scan(entry["path"], entry["pixels"], tuple(entry["shape"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / INDEX}: not the index of a run ({error}); delete it and start again") from error
