"""The folder of a batch run: what is done is on disk at once, so that a run killed at any moment can go on.

    run.json          what was asked of what; a run that differs is refused
    results.jsonl     a line for each case that was answered
    failures.jsonl    a line for each case that failed: id, path, kind, message
    skipped.jsonl     a line for each DICOM object without an image to ask that was found: path, reason
    masks/NAME/       masks of a case, moved into place before its line is written
    results.parquet   the results, a row for each case and query

While the run goes on, lines come in the order of work; at the end both files are put into the order of the cases.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from radglint import writing
from radglint.batch_cases import Case, Skipped
from radglint.errors import InputError, OutputError

RUN, RESULTS, FAILURES, PARQUET, MASKS = "run.json", "results.jsonl", "failures.jsonl", "results.parquet", "masks"
SKIPPED, PLACES, LOCK = "skipped.jsonl", ".places.json", ".lock"
DIGITS = 6
ROWS_AT_ONCE = 10_000
Line = dict[str, Any]


@dataclass(frozen=True)
class BatchSummary:
    """What a run has come to.

    Attributes:
        folder: where the results are.
        answered: cases with an answer, those of earlier runs included.
        failed: cases that failed.
    """

    folder: Path
    answered: int
    failed: int


class RunFolder:
    """The folder of one run, open for writing. Use `open_run`.

    Attributes:
        folder: where.
        answered: ids that have a whole line in results.jsonl.
        failed: ids that have a whole line in failures.jsonl.
    """

    def __init__(self, folder: Path, *, retry_failed: bool) -> None:
        self.folder = folder
        self.answered = _repair(folder / RESULTS)
        self.failed = _repair(folder / FAILURES) - self.answered
        if retry_failed:
            writing.write_bytes(folder / FAILURES, b"")
            self.failed = set()
        self._guard = threading.Lock()
        self._files: dict[str, IO[bytes]] = {
            name: open(folder / name, "ab")  # noqa: SIM115 (closed by `close`)
            for name in (RESULTS, FAILURES)
        }

    @property
    def done(self) -> set[str]:
        """Ids that need no more work."""
        return self.answered | self.failed

    def add_result(self, line: Line) -> None:
        """Keep an answer, on disk at once."""
        self._add(RESULTS, line, self.answered)

    def add_failure(self, case: Case, kind: str, message: str) -> None:
        """Keep why a case failed, on disk at once."""
        self._add(FAILURES, {"id": case.id, "path": case.path, "kind": kind, "message": message}, self.failed)

    def _add(self, name: str, line: Line, known: set[str]) -> None:
        with self._guard, writing.output_errors(self.folder / name):
            self._files[name].write(encode_line(line))
            self._files[name].flush()
            known.add(line["id"])

    @contextmanager
    def masks_of(self, case: Case) -> Iterator[Path]:
        """A folder to write the masks of a case into; it comes to its place, `masks/NAME`, when the block ends well."""
        target, staging = self.folder / MASKS / mask_folder(case.id), self.folder / MASKS / _temporary()
        with writing.output_errors(target):
            staging.mkdir(parents=True)
            try:
                yield staging
                shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before it wrote the line
                os.rename(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def note(self, cases: Sequence[Case], skipped: Sequence[Skipped], whole: Sequence[Case] | None) -> None:
        """Keep what is no case and, of a part, the place of each of its cases among all."""
        write_skipped(self.folder / SKIPPED, [{"path": item.path, "reason": item.reason} for item in skipped])
        if whole is not None:
            own = {case.id for case in cases}
            places = {case.id: place for place, case in enumerate(whole) if case.id in own}
            writing.write_text(self.folder / PLACES, json.dumps(places))

    def summary(self) -> BatchSummary:
        """What there is by now."""
        return BatchSummary(self.folder, len(self.answered), len(self.failed))

    def finish(self, cases: Sequence[Case], *, parquet: bool = False) -> None:
        """Put the lines into the order of the cases, and write the parquet file if it is wanted."""
        self.close()
        for name in (RESULTS, FAILURES):
            _sort(self.folder / name, [case.id for case in cases])
        if parquet:
            write_parquet(self.folder / RESULTS, self.folder / PARQUET)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


@contextmanager
def open_run(folder: Path, about: Line, *, retry_failed: bool = False) -> Iterator[RunFolder]:
    """Start a run in a folder, or go on with the one that is there.

    Args:
        folder: made if missing.
        about: everything that decides on the answers; as `describe_run` makes it.
        retry_failed: forget the failures, so that these cases are tried again.

    Raises:
        InputError: the folder holds a run that differs, and in what; or a run is going on in it just now.
        OutputError: it cannot be written.
    """
    with writing.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _check_same(folder, about)
        with writing.output_errors(folder):
            run = RunFolder(folder, retry_failed=retry_failed)
            _remove_orphans(folder / MASKS, {mask_folder(name) for name in run.answered})
        try:
            yield run
        finally:
            run.close()


def describe_run(
    cases: Sequence[Case], queries: Sequence[str], *, model: str, fingerprint: str, threshold: float | None,
    shard: str, masks: bool, whole: Sequence[Case] | None = None,
) -> Line:  # fmt: skip
    """Everything that decides on the answers, as it stands in run.json; the cases as their number and a hash.

    A part of a run says of the `whole` too how many cases it has, and their hash.
    """
    about = {
        "model": model, "fingerprint": fingerprint, "queries": list(queries), "threshold": threshold, "masks": masks,
        "shard": shard, "num_cases": len(cases), "cases": _hash_of(cases),
    }  # fmt: skip
    return about if whole is None else about | {"whole": {"num_cases": len(whole), "cases": _hash_of(whole)}}


def _hash_of(cases: Sequence[Case]) -> str:
    digest = hashlib.sha256()
    for case in cases:
        digest.update(json.dumps([case.id, os.path.abspath(case.path), len(case.files)]).encode())
    return digest.hexdigest()[:16]


def mask_folder(case_id: str) -> str:
    """The name of a case as a folder that every system accepts, different for different cases."""
    return f"{writing.slug(case_id)}_{hashlib.sha256(case_id.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def write_skipped(path: Path, lines: Sequence[Line]) -> None:
    """Write skipped.jsonl, whole."""
    writing.write_bytes(path, b"".join(encode_line(line) for line in lines))


def read_lines(path: Path) -> Iterator[Line]:
    """The whole lines of a file of results or failures; a line that a kill cut off is left out."""
    for _, _, line in whole_lines(path):
        yield line


def _check_same(folder: Path, about: Line) -> None:
    path = folder / RUN
    if not path.exists():
        if (folder / RESULTS).exists() or (folder / FAILURES).exists():
            raise InputError(f"{folder}: holds results, but no {RUN}; choose another --out")
        writing.write_json(path, about)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); choose another --out") from error
    same = before == json.loads(json.dumps(about))
    if not same:
        names = [name for name in about if not isinstance(before, dict) or before.get(name) != about[name]]
        raise InputError(
            f"{folder}: holds a run that differs in {', '.join(names)}; choose another --out, or move the old one away"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out; the system lets go of the lock when the process ends, however it does."""
    with writing.output_errors(folder):
        file = open(folder / LOCK, "ab")  # noqa: SIM115 (errors of what goes on below are not those of this file)
    with file:
        _lock(file, folder)
        yield


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: a run is going on in it; wait for its end, or choose another --out") from None
    except OSError:  # a file system without locks
        return


def _temporary() -> str:
    return f".radglint-{secrets.token_hex(6)}"


def _remove_orphans(masks: Path, wanted: set[str]) -> None:
    """Remove what a killed run left: half-filled folders, and masks of cases without a line."""
    for path in sorted(masks.iterdir()) if masks.is_dir() else []:
        if path.name not in wanted:
            shutil.rmtree(path)


def _repair(path: Path) -> set[str]:
    """Drop lines that were cut off, and any but the first of a case; the ids that are left."""
    kept: dict[str, tuple[int, int]] = {}
    for start, size, line in whole_lines(path):
        kept.setdefault(line["id"], (start, size))
    total = sum(size for _, size in kept.values())
    if path.exists() and total != path.stat().st_size:
        _copy(path, list(kept.values()))
    return set(kept)


def _sort(path: Path, order: Sequence[str]) -> None:
    """Put the lines into this order, unless they are in it; lines stay on disk."""
    places = {line["id"]: (start, size) for start, size, line in whole_lines(path)}
    wanted = [places[name] for name in order if name in places]
    if wanted != list(places.values()):
        _copy(path, wanted)


def _copy(path: Path, places: Sequence[tuple[int, int]]) -> None:
    """Rewrite a file as these pieces of it, whole or not at all."""
    with open(path, "rb") as source, writing.whole_file(path) as file:
        for start, size in places:
            source.seek(start)
            file.write(source.read(size))


def whole_lines(path: Path) -> Iterator[tuple[int, int, Line]]:
    """Start, bytes and content of each line that is whole."""
    if not path.is_file():
        return
    start = 0
    with open(path, "rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and "id" in line and text.endswith(b"\n"):
                yield start, len(text), line
            start += len(text)


def encode_line(line: Line) -> bytes:
    """A line as it stands in the files."""
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def require_pyarrow() -> None:
    """Raises InputError where results.parquet could not be written at the end."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError('--parquet needs pyarrow; `pip install "radglint[parquet]"`, or leave it out') from error


def write_parquet(results: Path, target: Path) -> None:
    """A row for each case and query, in pieces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ints, floats, words = pa.list_(pa.int64()), pa.float64(), pa.string()
    kinds = dict.fromkeys(("id", "path", "modality", "model", "fingerprint", "query", "assertion", "decision",
                           "mask", "note"), words)  # fmt: skip
    kinds |= dict.fromkeys(("score", "probability", "threshold", "volume_ml"), floats) | {"area_px": pa.int64()}
    kinds |= {"peak_index": ints, "peak_ras_mm": pa.list_(floats), "boxes": pa.list_(ints)}
    schema = pa.schema(list(kinds.items()))
    with writing.whole_file(target) as file, pq.ParquetWriter(file, schema) as writer:
        rows: list[Line] = []
        for line in read_lines(results):
            rows += [{name: row.get(name) for name in kinds} for row in _flat(line)]
            if len(rows) >= ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


def _flat(line: Line) -> Iterator[Line]:
    for finding in line["findings"]:
        peak = finding["peak"] or {}
        yield finding | {
            "id": _plain(line["id"]), "path": _plain(line["path"]), "modality": line["modality"],
            "model": line["model"]["name"], "fingerprint": line["model"]["fingerprint"],
            "peak_index": peak.get("index"), "peak_ras_mm": peak.get("ras_mm"),
        }  # fmt: skip


def _plain(name: str) -> str:
    """A file name as UTF-8 can hold it."""
    return name.encode("utf-8", "replace").decode("utf-8")


def check_folder(path: str) -> Path:
    """The folder of results, if it can be one.

    Raises:
        OutputError: empty, or a file is in the way.
    """
    if not path.strip():
        raise OutputError("--out: it is empty; give a folder")
    if Path(path).exists() and not Path(path).is_dir():
        raise OutputError(f"{path}: --out needs a folder, but this is a file; choose another name")
    return Path(path)
