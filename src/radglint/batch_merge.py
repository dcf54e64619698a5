"""`radglint batch --merge`: the parts of a run, worked on apart with `--shard`, become the folder of one run.

What comes out is what one run over all cases would have written, so it can be gone on from, for example with
`--retry-failed`. Nothing is merged unless every part is there, finished, and asked the same of the same.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radglint import writing
from radglint.batch_files import (
    FAILURES,
    MASKS,
    PARQUET,
    PLACES,
    RESULTS,
    RUN,
    SKIPPED,
    BatchSummary,
    Line,
    locked,
    mask_folder,
    require_pyarrow,
    whole_lines,
    write_parquet,
    write_skipped,
)
from radglint.errors import InputError

MAX_NAMED = 5
_OWN = ("shard", "num_cases", "cases")  # what differs from part to part
_Lines = dict[int, tuple[Path, int, int]]  # place among all cases to file, start and bytes


@dataclass(frozen=True)
class _Part:
    """One finished part.

    Attributes:
        folder: where it is.
        about: its run.json.
        places: id of each case to its place among all.
    """

    folder: Path
    about: Line
    places: dict[str, int]

    @property
    def number(self) -> tuple[int, int]:
        """Which part of how many."""
        part, _, parts = str(self.about["shard"]).partition("/")
        return int(part), int(parts)


def merge_runs(folders: Sequence[Path], out: Path, *, parquet: bool = False) -> BatchSummary:
    """Put the parts of a run together.

    Args:
        folders: of all parts, in any order; they are not changed.
        out: a folder that is not there yet, or empty. Masks are linked where the disk can, else copied.
        parquet: also write results.parquet.

    Raises:
        InputError: a part is missing, unfinished, at work, there twice, or differs in what was asked of what.
        OutputError: it cannot be written; nothing is left.
    """
    if parquet:
        require_pyarrow()
    _check_free(out)
    with ExitStack() as locks:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            _require_run(folder)
            locks.enter_context(locked(folder))
        parts = [_read_part(folder) for folder in folders]
        about = _check_parts(parts)
        answered, failed = (_places_of(parts, name) for name in (RESULTS, FAILURES))
        _check_lines(answered, failed, about["num_cases"])
        with _new_folder(out) as new:
            _write(new, parts, about, answered, failed, parquet)
    return BatchSummary(out, len(answered), len(failed))


def _write(new: Path, parts: Sequence[_Part], about: Line, answered: _Lines, failed: _Lines, parquet: bool) -> None:
    _write_lines(new / RESULTS, answered)
    _write_lines(new / FAILURES, failed)
    skipped = [(line["path"], line) for part in parts for line in _plain_lines(part.folder / SKIPPED)]
    write_skipped(new / SKIPPED, list(dict(skipped).values()))
    if about["masks"]:
        for part in parts:
            for _, _, line in whole_lines(part.folder / RESULTS):
                name = mask_folder(line["id"])
                shutil.copytree(part.folder / MASKS / name, new / MASKS / name, copy_function=_link)
    if parquet:
        write_parquet(new / RESULTS, new / PARQUET)
    writing.write_json(new / RUN, about)


def _check_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; choose another --out for what is merged")


def _require_run(folder: Path) -> None:
    if not (folder / RUN).is_file():
        raise InputError(f"{folder}: no {RUN} in it; give the --out folders of the parts of a run")


def _read_part(folder: Path) -> _Part:
    about = _json(folder / RUN)
    if not isinstance(about.get("whole"), dict):
        raise InputError(f"{folder}: holds a whole run, not a part of one; only runs with --shard are merged")
    part = _Part(folder, about, _json(folder / PLACES))
    done = sum(1 for name in (RESULTS, FAILURES) for _ in whole_lines(folder / name))
    if done != about["num_cases"]:
        raise InputError(
            f"{folder}: {done} of {about['num_cases']} cases are done; run part {about['shard']} to its end, then merge"
        )
    return part


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run this part again in another folder") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object; run this part again in another folder")
    return content


def _check_parts(parts: Sequence[_Part]) -> Line:
    """All parts of one run; its run.json."""
    if not parts:
        raise InputError("--merge: no part given; give the --out folders of the parts of a run")
    first = parts[0]
    for part in parts[1:]:
        names = sorted(n for n in {*first.about, *part.about} - {*_OWN} if first.about.get(n) != part.about.get(n))
        if names:
            raise InputError(
                f"{part.folder}: differs from {first.folder} in {', '.join(names)}; parts of one run ask the same"
            )
    count = first.number[1]
    seen: dict[int, Path] = {}
    for part in parts:
        number, of = part.number
        if of != count or number in seen:
            other = seen.get(number, first.folder)
            raise InputError(
                f"{part.folder}: is part {number}/{of}, and {other} does not go with it; give each part once"
            )
        seen[number] = part.folder
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in seen]
    if missing:
        raise InputError(
            f"--merge: part {', '.join(missing[:MAX_NAMED])} is missing; give the folders of all {count} parts"
        )
    shared = {name: value for name, value in first.about.items() if name not in (*_OWN, "whole")}
    return shared | {"shard": "all"} | first.about["whole"]


def _places_of(parts: Sequence[_Part], name: str) -> _Lines:
    """Where the line of each case is, by the place of the case among all."""
    lines: _Lines = {}
    for part in parts:
        path = part.folder / name
        for start, size, line in whole_lines(path):
            place = part.places.get(line["id"])
            if place is None or place in lines:
                why = "is of no case of this part" if place is None else "is there twice"
                raise InputError(f"{path}: the line of {line['id']!r} {why}; run this part again in another folder")
            lines[place] = (path, start, size)
    return lines


def _check_lines(answered: _Lines, failed: _Lines, num_cases: int) -> None:
    both, places = answered.keys() & failed.keys(), answered.keys() | failed.keys()
    if both or places != set(range(num_cases)):
        raise InputError(
            f"--merge: of {num_cases} cases {num_cases - len(places)} have no line and {len(both)} have two; "
            "run the parts again in other folders"
        )


def _write_lines(path: Path, lines: _Lines) -> None:
    with ExitStack() as stack, writing.whole_file(path) as target:
        sources = {source: stack.enter_context(open(source, "rb")) for source, _, _ in lines.values()}
        for place in sorted(lines):
            source, start, size = lines[place]
            sources[source].seek(start)
            target.write(sources[source].read(size))


def _plain_lines(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
        yield from (json.loads(line) for line in file)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)
    return target


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside the final one, which takes its place when the block ends well."""
    staging = out.absolute().parent / f".radglint-{secrets.token_hex(6)}"
    with writing.output_errors(out):
        staging.mkdir(parents=True)
        try:
            yield staging
            if out.is_dir():
                out.rmdir()
            os.rename(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
