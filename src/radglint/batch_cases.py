"""What `radglint batch` was given, as cases: one question sheet is put to each of them.

An input is a file, a glob, a manifest, or a folder, which is searched with its subfolders. Only headers are read. Every
CT series is a case, wherever its slices lie, every other file is a case of its own. Nothing is dropped in silence: what
is no image stays a case, and fails with its reason when its turn comes. DICOM objects that never hold one (reports,
segmentations, presentation states and so on) lie beside the images in every archive, and so do CT series of localizers
or screenshots alone; where a search finds them, they are no cases but `skipped`. What is named by itself, or by a
manifest, was meant, and stays a case.

The name of a case, its id, is the series UID of a CT series, the id of a manifest's row, else the path below the input.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from radglint.batch_headers import SLICE, Header, HeaderStore, read_header
from radglint.dicom_series import read_dicom_ct
from radglint.errors import ConfigError, ImageError, InputError
from radglint.image import MedicalImage
from radglint.manifest import read_manifest
from radglint.manifest_files import SUFFIXES
from radglint.reading import read_image

MAX_NAMED = 5
_NO_UID = ": CT without series UID"


@dataclass(frozen=True)
class Case:
    """One image to be asked.

    Attributes:
        id: unique in its run and the same whenever the run is started again.
        path: the file or folder, for messages and results; of a CT series, the folder that all its slices share.
        series: SeriesInstanceUID of a CT series; None if `path` is read as it is.
        files: the slices of a CT series; empty if `path` is read as it is.
        voxels: pixels that the headers promise; None if they have not been asked.
        modality: what a manifest says it is, or empty.
    """

    id: str
    path: str
    series: str | None = None
    files: tuple[Path, ...] = ()
    voxels: int | None = None
    modality: str = ""

    def read(self) -> MedicalImage:
        """Decode it.

        Raises:
            ImageError: see `read_image`; or it is not of the modality that the manifest names.
        """
        if self.series is None:
            image = read_image(self.path)
        else:
            image = read_dicom_ct(list(self.files), name=self.path, series=self.series or None)
        if self.modality and image.modality != self.modality:
            raise ImageError(f"{self.path}: the manifest says {self.modality}, this is {image.modality}; correct it")
        return dataclasses.replace(image, path=self.path)


@dataclass(frozen=True)
class Skipped:
    """A DICOM object without an image to ask that a search has found.

    Attributes:
        path: the file.
        reason: what it is, in words.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        cases: what can be asked, or will fail with its reason, in a fixed order.
        skipped: what is no case.
    """

    cases: list[Case]
    skipped: list[Skipped]


@dataclass
class _Series:
    """A CT series while it is gathered.

    Attributes:
        files: all of it.
        voxels: of all files.
        beside: files that are no slice of a volume, and what they are instead.
        is_meant: whether one of its files was named by itself.
    """

    files: list[Path] = dataclasses.field(default_factory=list)
    voxels: int = 0
    beside: dict[Path, str] = dataclasses.field(default_factory=dict)
    is_meant: bool = False

    @property
    def is_aside(self) -> bool:
        """Whether there is no slice in it."""
        return not self.is_meant and len(self.beside) == len(self.files)


@dataclass
class _Groups:
    """Files while they are put into cases."""

    series: dict[str, _Series] = dataclasses.field(default_factory=dict)
    order: list[tuple[Path, str | None]] = dataclasses.field(default_factory=list)
    damaged: list[Path] = dataclasses.field(default_factory=list)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)


def find_cases(inputs: Sequence[str], *, leave_out: Path | None = None) -> list[Case]:
    """The cases of all inputs; see `look_for_cases`."""
    return look_for_cases(inputs, leave_out=leave_out).cases


def look_for_cases(
    inputs: Sequence[str], *, leave_out: Path | None = None, headers: HeaderStore | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Found:  # fmt: skip
    """The cases of all inputs, in a fixed order: that of the inputs, then of the paths; and what is no case.

    Args:
        inputs: files, globs, manifests and folders.
        leave_out: a folder that is not searched: the one that results go to.
        headers: what is known of files already; None reads every header.
        tick: called once for each file that is looked at.

    Raises:
        InputError: an input that is not there, a glob without a match, no case at all, or two cases with one name.
        ConfigError: a manifest with problems.
    """
    named: list[Case] = []
    loose: dict[Path, Path] = {}  # file to the folder that its name is relative to; a file given twice counts once
    meant: set[Path] = set()
    for given in inputs:
        path = Path(given)
        if path.is_file() and path.name.lower().endswith(SUFFIXES):
            named += _rows(path)
            continue
        if path.is_file():
            meant.add(path)
        for file, base in _files_of(given, leave_out):
            loose.setdefault(file, base)
    groups = _group(loose, meant, read_header if headers is None else headers.of, tick)
    cases = _unique([*named, *_cases_of(groups, loose)])
    if not cases:
        only = f" but {len(groups.skipped)} DICOM objects without an image to ask" if groups.skipped else ""
        raise InputError(f"{', '.join(inputs)}: no file there{only}; give images, a folder, a glob or a manifest")
    return Found(cases, groups.skipped)


def shard_of(cases: Sequence[Case], part: int, parts: int) -> list[Case]:
    """The cases of one part of a run, by a hash of their ids: the parts are disjoint and together all.

    Args:
        cases: all of them.
        part: which, from 1 on.
        parts: how many there are.
    """
    return [case for case in cases if _hash(case.id) % parts == part - 1]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def _rows(path: Path) -> Iterator[Case]:
    for row in read_manifest(path):
        yield Case(row.id, str(path.parent / row.image), modality=row.modality)


def _files_of(given: str, leave_out: Path | None) -> Iterator[tuple[Path, Path]]:
    """The files of one input, each with the folder that its name is relative to."""
    path = Path(given)
    if path.is_dir():
        yield from ((file, path) for file in _walk(path, leave_out))
        return
    if os.path.lexists(path):
        yield path, path.parent
        return
    found = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    if not found:
        raise InputError(f"{given}: no such file or folder, and no file that matches; check the path")
    base = Path(*(part for part in _plain_parts(path)))
    for match in map(Path, found):
        yield from ((file, base) for file in (_walk(match, leave_out) if match.is_dir() else [match]))


def _plain_parts(path: Path) -> Iterator[str]:
    """The parts of a glob before its first wild one."""
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Files of a folder and its subfolders in order, without hidden ones, DICOMDIR and macOS side files."""
    skip = None if leave_out is None else leave_out.resolve()
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name != "__MACOSX" and (skip is None or Path(where, name).resolve() != skip)
        )
        kept = sorted(name for name in names if not name.startswith(".") and name.upper() != "DICOMDIR")
        yield from (Path(where, name) for name in kept)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror}); check the permission") from error


def _group(
    loose: dict[Path, Path], meant: set[Path], header_of: Callable[[Path], Header], tick: Callable[[], object]
) -> _Groups:
    """Slices to series; objects without an image aside."""
    groups = _Groups()
    for file, base in loose.items():
        tick()
        try:
            header = header_of(file)
        except ImageError:
            groups.damaged.append(file)
            groups.order.append((file, None))
            continue
        if header.no_image and file not in meant:
            groups.skipped.append(Skipped(str(file), header.no_image))
        elif header.is_ct:
            _add_slice(groups, file, _key(file, base, header), header, is_meant=file in meant)
        else:
            groups.order.append((file, None))
    _set_aside(groups)
    return groups


def _set_aside(groups: _Groups) -> None:
    """Series without a slice are no cases."""
    for key, entry in list(groups.series.items()):
        if entry.is_aside:
            groups.skipped += [Skipped(str(file), reason) for file, reason in entry.beside.items()]
            del groups.series[key]
    groups.order = [(file, key) for file, key in groups.order if key is None or key in groups.series]


def _key(file: Path, base: Path, header: Header) -> str:
    """The name of the series that a CT image belongs to."""
    return header.series or f"{_below(file.parent, base)}{_NO_UID}"


def _add_slice(groups: _Groups, file: Path, key: str, header: Header, *, is_meant: bool) -> None:
    """Put a CT image with its series, which comes where its first file lies."""
    if key not in groups.series:
        groups.series[key] = _Series()
        groups.order.append((file, key))
    entry = groups.series[key]
    entry.files.append(file)
    entry.voxels += header.voxels
    entry.is_meant |= is_meant
    if header.kind != SLICE:
        entry.beside[file] = header.kind


def _cases_of(groups: _Groups, loose: dict[Path, Path]) -> Iterator[Case]:
    """A case for each series, and for each other file that is not a lost slice of one."""
    lost = _share_out(groups.series, groups.damaged)
    for file, key in groups.order:
        if key is not None:
            yield _series_case(key, groups.series[key])
        elif file not in lost:
            yield Case(_below(file, loose[file]), str(file))


def _share_out(series: dict[str, _Series], damaged: Sequence[Path]) -> set[Path]:
    """Damaged files go to the CT series of their folder, which then fail and name them: one may be a lost slice.

    Returns:
        Those that were given to a series.
    """
    folders: dict[Path, list[_Series]] = {}
    for entry in series.values():
        for folder in {file.parent for file in entry.files}:
            folders.setdefault(folder, []).append(entry)
    for file in damaged:
        for entry in folders.get(file.parent, []):
            entry.files.append(file)
    return {file for file in damaged if file.parent in folders}


def _series_case(key: str, entry: _Series) -> Case:
    shared = os.path.commonpath([file.parent for file in entry.files])
    uid = "" if key.endswith(_NO_UID) else key
    return Case(key, shared or ".", uid, tuple(sorted(entry.files)), entry.voxels)


def _below(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.as_posix()


def _unique(cases: Sequence[Case]) -> list[Case]:
    """Cases whose names differ; where files of two inputs have one name, all of them get their whole path."""
    again = _doubled(cases)
    spread = [
        dataclasses.replace(case, id=Path(case.path).as_posix()) if case.id in again and case.series is None else case
        for case in cases
    ]
    clashes = sorted(_doubled(spread))
    if clashes:
        more = f" and {len(clashes) - MAX_NAMED} more" if len(clashes) > MAX_NAMED else ""
        raise ConfigError(f"two cases have one name: {', '.join(clashes[:MAX_NAMED])}{more}; give each once")
    return spread


def _doubled(cases: Sequence[Case]) -> set[str]:
    seen: set[str] = set()
    return {case.id for case in cases if case.id in seen or seen.add(case.id)}
