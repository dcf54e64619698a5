"""What grouping needs of a file's header, kept on disk so that a run that goes on does not read it again.

    .headers.jsonl    a line for each file: path, bytes, time of change, and what `read_header` said

A line counts while size and time of change are those of the file. Lines are added as files are looked at, whole ones
only, so that also a search that is killed goes on where it stopped; what no file asks for any more is dropped at the
end. A file whose header is damaged has no line: it is looked at again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydicom.dataset import Dataset

from radglint import writing
from radglint.dicom_file import SECONDARY_CAPTURE_UID, is_dicom, number, open_dicom, text
from radglint.errors import ImageError
from radglint.slice_headers import DICOM_SUFFIXES, LOCALIZER_WORDS

HEADERS = ".headers.jsonl"
TAGS = ["SOPClassUID", "Modality", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "ImageType"]
TAGS += ["ImagePositionPatient"]
LINES_AT_ONCE = 500
SLICE, OTHER = "slice", "other"
LOCALIZER, SCREENSHOT = "CT localizer (scout)", "screenshot or dose page of a CT"

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGES = {  # UID below `_STORAGE`, and everything below that: what it is
    "9": "waveform",
    "11": "presentation state",
    "66": "raw data, registration or segmentation",
    "67": "real world value mapping",
    "88": "structured report or key object selection",
    "90": "assessment",
    "104": "encapsulated document",
    "200": "acquisition protocol",
    "481.2": "radiotherapy dose",
    "481.3": "radiotherapy structure set",
    "481.4": "radiotherapy treatment record",
    "481.5": "radiotherapy plan",
}
_NO_IMAGE_MODALITIES = {"SR", "KO", "PR", "SEG", "REG", "FID", "RWV", "DOC", "PLAN", "ECG", "AU"}
_NO_IMAGE_MODALITIES |= {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD"}
_PRIVATE_NO_IMAGE = "1.3.12.2.1107.5.9.1"  # Siemens "CSA non-image", modality CT among others


@dataclass(frozen=True, slots=True)
class Header:
    """What grouping needs of one file.

    Attributes:
        kind: "slice" of a CT series, "other" (an image, or for reading to refuse), else in words what DICOM object it
            is that holds no image, or what CT image it is that is no slice of a volume.
        series: SeriesInstanceUID of a CT image, or empty.
        voxels: pixels that a CT image's header promises.
    """

    kind: str
    series: str = ""
    voxels: int = 0

    @property
    def no_image(self) -> str:
        """What object without an image it is, in words; empty for any other file."""
        return "" if self.is_ct or self.kind == OTHER else self.kind

    @property
    def is_ct(self) -> bool:
        """Whether it belongs to a CT series, as a slice or beside the slices."""
        return self.kind in (SLICE, LOCALIZER, SCREENSHOT)


def read_header(file: Path) -> Header:
    """Look at a file.

    Raises:
        ImageError: it should be DICOM, and its header cannot be read.
    """
    if not file.is_file():  # a pipe, a link to nowhere: reading it says so
        return Header(OTHER)
    if not is_dicom(file):
        if file.suffix.lower() in DICOM_SUFFIXES:
            raise ImageError(f"{file}: not a DICOM file")
        return Header(OTHER)
    header = open_dicom(file, stop_before_pixels=True, tags=TAGS)
    modality = text(header, "Modality").upper()
    nothing = _not_an_image(text(header, "SOPClassUID"), modality)
    if nothing or modality != "CT":
        return Header(nothing or OTHER)
    sides = [number(header, name, file) or 1 for name in ("Rows", "Columns", "NumberOfFrames")]
    return Header(_ct_kind(header), text(header, "SeriesInstanceUID"), int(sides[0] * sides[1] * sides[2]))


def _ct_kind(header: Dataset) -> str:
    """A slice of a volume, or what reading the volume will leave out (see `slice_headers`)."""
    if any(word in text(header, "ImageType").upper() for word in LOCALIZER_WORDS):
        return LOCALIZER
    is_capture = text(header, "SOPClassUID").startswith(SECONDARY_CAPTURE_UID)
    return SCREENSHOT if is_capture and "ImagePositionPatient" not in header else SLICE


def _not_an_image(sop_class: str, modality: str) -> str:
    """What object without an image this is; empty if it may hold one."""
    below = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    for branch, words in _NO_IMAGES.items():
        if f"{below}.".startswith(f"{branch}."):
            return f"DICOM {words} ({modality or 'no modality'})"
    if modality in _NO_IMAGE_MODALITIES or sop_class == _PRIVATE_NO_IMAGE:
        return f"DICOM object of modality {modality or 'unknown'} without an image"
    return ""


class HeaderStore:
    """Headers that were read before, and those read now. Use `open_headers`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[int, int, Header]] = {}
        self._lines = 0
        self._asked: set[str] = set()
        self._new: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._load()

    def of(self, file: Path) -> Header:
        """The header of a file, read only if the file is new or has changed.

        Raises:
            ImageError: see `read_header`.
            OutputError: it cannot be kept.
        """
        try:
            facts = file.stat()
        except OSError:  # a link to nowhere: reading says so
            return read_header(file)
        name, size, changed = str(file.absolute()), facts.st_size, facts.st_mtime_ns
        before = self._known.get(name)
        if before is None or before[:2] != (size, changed):
            before = (size, changed, read_header(file))
            self._known[name] = before
            self._add(name, *before)
        self._asked.add(name)
        return before[2]

    def close(self) -> None:
        """Put what is new on disk; without the lines that nobody asked for, if they are many."""
        self._flush()
        if self._file is not None:
            self._file.close()
        if self._lines > 2 * len(self._asked):
            with writing.whole_file(self.path) as file:
                for name in self._asked:
                    file.write(_encode(name, *self._known[name]))

    def _load(self) -> None:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            for line in file:
                self._lines += 1
                try:
                    name, size, changed, kind, series, voxels = json.loads(line)
                    self._known[name] = (size, changed, Header(sys.intern(kind), sys.intern(series), voxels))
                except (ValueError, TypeError):  # cut off by a kill
                    continue

    def _add(self, name: str, size: int, changed: int, header: Header) -> None:
        self._new.append(_encode(name, size, changed, header))
        if len(self._new) >= LINES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        """Whole lines in one piece, so that a kill cuts the last one at most."""
        if not self._new:
            return
        with writing.output_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
                self._file.write(b"\n")  # after a line that a kill has cut off
            self._file.write(b"".join(self._new))
        self._lines += len(self._new)
        self._new.clear()


def _encode(name: str, size: int, changed: int, header: Header) -> bytes:
    return json.dumps([name, size, changed, header.kind, header.series, header.voxels]).encode("ascii") + b"\n"


@contextmanager
def open_headers(folder: Path) -> Iterator[HeaderStore]:
    """The headers that the folder of a run keeps; on disk also if the search for cases fails.

    Args:
        folder: of results; made when the first header is kept.

    Raises:
        OutputError: it cannot be written.
    """
    store = HeaderStore(folder / HEADERS)
    try:
        yield store
    finally:
        store.close()
