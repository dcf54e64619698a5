"""What all adapters share: tables read with a column check, images looked up, boxes in pixels, masks written.

A listed image that is not on the disk is an error, raised when all rows have been given, with the count and the first
names. To convert a part of a data set on purpose, set the environment variable `RADGLINT_ALLOW_MISSING=1`: missing
images are then left out and the count is given as a warning.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from radglint.errors import InputError
from radglint.manifest import Box, LabelState
from radglint.writing import write_png

if TYPE_CHECKING:
    import numpy as np

ALLOW_MISSING = "RADGLINT_ALLOW_MISSING"
"""Environment variable: set to 1, missing images are left out with a warning."""

_GIVE_UP = 2000  # images in a row, none of which is there: the folder is wrong
_SHOWN = 3
_ENTRIES = 12


def listing(folder: Path) -> str:
    """The first names in a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    rest = f" and {len(names) - _ENTRIES} more" if len(names) > _ENTRIES else ""
    return (", ".join(names[:_ENTRIES]) + rest) if names else "nothing"


def optional_file(folder: Path, *patterns: str) -> Path | None:
    """The first file that matches one of the glob patterns, tried in order; `.gz` may follow any name."""
    for pattern in patterns:
        for name in (pattern, f"{pattern}.gz"):
            found = sorted(path for path in folder.glob(name) if path.is_file())
            if found:
                return found[-1]  # of several versions the last
    return None


def required_file(folder: Path, expects: str, *patterns: str) -> Path:
    """Like `optional_file`.

    Args:
        folder: where to look.
        expects: the layout of the data set, for the message.
        patterns: names, best first.

    Raises:
        InputError: none is there; names the file, the layout and what was found instead.
    """
    path = optional_file(folder, *patterns)
    if path is None:
        raise missing_file(folder, expects, *patterns)
    return path


def missing_file(folder: Path, expects: str, *patterns: str) -> InputError:
    """The error for a file that is not there."""
    wanted = " or ".join(patterns)
    return InputError(f"{folder}: {wanted} is missing; expected {expects}; found {listing(folder)}")


def required_folder(folder: Path, expects: str, *names: str) -> Path:
    """The first of these sub-folders that exists ("" is the folder itself).

    Raises:
        InputError: none is there.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise missing_file(folder, expects, *(f"{name}/" for name in names))


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield file


def read_rows(
    path: Path, columns: Iterable[str], names: Sequence[str] | None = None, comment: str = ""
) -> Iterator[tuple[str, dict[str, str]]]:
    """Stream a CSV file, plain or gzip.

    Args:
        path: the file; its first line is the header. Blanks around column names and values are removed.
        columns: those that must be there.
        names: names to use by position instead of the header's, for a header that is broken.
        comment: lines before the header that start so are skipped.

    Yields:
        Where the row stands (for messages) and its values by column.

    Raises:
        InputError: not readable, no header, a column is missing, a row is too short.
    """
    csv.field_size_limit(2**30)
    try:
        with _open_text(path) as file:
            lines = (line for line in file if not comment or not line.startswith(comment))
            reader = csv.reader(lines)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns if names is None else names, names)
            for values in reader:
                if values:
                    where = f"{path}, line {reader.line_num}"
                    yield where, _row(where, list(names or header), values)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV file ({error}); copy or download it again") from error


def _check_header(path: Path, header: list[str], columns: Iterable[str], names: Sequence[str] | None) -> None:
    if names is not None and len(header) < len(names):
        raise InputError(f"{path}: expected {len(names)} columns ({', '.join(names)}), got {len(header)}")
    missing = [] if names is not None else [name for name in columns if name not in header]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, missing))}; the header has {', '.join(header) or 'nothing'}; "
            "is it the file as published?"
        )


def _row(where: str, header: list[str], values: list[str]) -> dict[str, str]:
    if len(values) < len(header):
        raise InputError(f"{where}: {len(values)} values for {len(header)} columns; the file is cut or damaged")
    return {name: value.strip() for name, value in zip(header, values, strict=False)}


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON document.

    Raises:
        InputError: not readable, not JSON, or not a `kind` (list or dict).
    """
    try:
        with _open_text(path) as file:
            document = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(document, kind):
        raise InputError(f"{path}: expected a JSON {kind.__name__}, got a {type(document).__name__}")
    return document


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream a file of one JSON object per line, with where it stands.

    Raises:
        InputError: a line is no JSON object.
    """
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(entry, dict):
                raise InputError(f"{path}, line {number}: expected a JSON object, got {type(entry).__name__}")
            yield f"{path}, line {number}", entry


def number(where: str, row: dict[str, str], column: str) -> float:
    """A finite number of a table.

    Raises:
        InputError: names the row, the column and what stands there.
    """
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}, column {column!r}: expected a number, got {text!r}")
    return value


def listed_states(labels: dict[str, str], present: Iterable[str]) -> dict[str, LabelState]:
    """States of a data set that lists what is there: every other label of its set is absent.

    Args:
        labels: own name to manifest name.
        present: manifest names.
    """
    there: dict[str, LabelState] = dict.fromkeys(present, "present")
    return {label: there.get(label, "absent") for label in labels.values()}


class Images:
    """Looks images up and remembers what is missing.

    Args:
        source: the data set's folder, for messages.
        expects: its layout, for messages.
    """

    def __init__(self, source: Path, expects: str):
        self.source = source
        self.expects = expects
        self.found = 0
        self.missing: list[str] = []
        self._all = Counter[str]()
        self._lost = Counter[str]()

    def find(self, listed: str, *candidates: Path | None) -> Path | None:
        """The first candidate that is a file, absolute; None where none is (remembered).

        Args:
            listed: the image as the data set names it.
            candidates: where it may be; None is passed over.

        Raises:
            InputError: not one of the first 2,000 images is there.
        """
        part = _part(listed)
        self._all[part] += 1
        for path in candidates:
            if path is not None and path.is_file():
                self.found += 1
                return Path(os.path.abspath(path))
        self.missing.append(listed)
        self._lost[part] += 1
        if not self.found and len(self.missing) >= _GIVE_UP:
            raise InputError(f"{self._message()}; expected {self.expects}; found {listing(self.source)}")
        return None

    def finish(self) -> None:
        """Say what is missing, after the last row.

        Raises:
            InputError: some images are missing and `RADGLINT_ALLOW_MISSING` is not 1, or there is no image at all.
        """
        if not self.missing and self.found:
            return
        if not self.found:
            raise InputError(f"{self._message()}; expected {self.expects}; found {listing(self.source)}")
        if os.environ.get(ALLOW_MISSING, "") != "1":
            raise InputError(
                f"{self._message()}; download the rest, or set {ALLOW_MISSING}=1 to go on with the {self.found} "
                "that are there"
            )
        warnings.warn(f"{self._message()}; they are left out", stacklevel=2)

    def _message(self) -> str:
        total = self.found + len(self.missing)
        if not total:
            return f"{self.source}: no image is listed"
        names = ", ".join(self.missing[:_SHOWN]) + (", ..." if len(self.missing) > _SHOWN else "")
        lost = ", ".join(f"{part}: {n} of {self._all[part]}" for part, n in self._lost.most_common(_SHOWN) if part)
        parts = f" ({lost})" if lost else ""
        return f"{self.source}: {len(self.missing)} of {total} listed images are missing{parts}, first: {names}"


def _part(listed: str) -> str:
    """The part of a data set that an image is in: its first folder (two for `files/p10/...`), or nothing."""
    folders = PurePosixPath(listed).parent.parts
    return "/".join(folders[: 2 if folders[:1] == ("files",) else 1])


def raster_size_px(path: Path) -> tuple[int, int]:
    """Height and width of a PNG or JPEG from its header; the pixels are not decoded.

    Raises:
        InputError: not such an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: its size cannot be read ({error}); copy or download it again") from error


def dicom_header(path: Path) -> dict[str, Any]:
    """What an adapter needs of a DICOM file's header: `size_px`, `view` (PA, AP, LATERAL or empty), `patient`.

    Raises:
        InputError: not DICOM, or without Rows and Columns.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    tags = ["Rows", "Columns", "ViewPosition", "PatientID"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            size = int(header.Rows), int(header.Columns)
            return {"size_px": size, "view": view(str(header.get("ViewPosition", ""))),
                    "patient": str(header.get("PatientID", ""))}  # fmt: skip
    except (InvalidDicomError, OSError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its DICOM header cannot be read ({error}); copy or download it again") from error


_VIEWS = {
    "PA": "PA", "AP": "AP", "AP SUPINE": "AP", "AP ERECT": "AP", "AP_HORIZONTAL": "AP", "LATERAL": "LATERAL",
    "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL", "LLAT": "LATERAL", "POSTEROANTERIOR": "PA",
    "ANTEROPOSTERIOR": "AP",
}  # fmt: skip


def view(text: str) -> Any:
    """PA, AP or LATERAL for the words that data sets use; empty for any other (oblique, decubitus, frontal)."""
    return _VIEWS.get(text.strip().upper(), "")


def box_px(
    where: str, corners: Sequence[float], size_px: tuple[int, ...], drawn_on_px: tuple[float, float] | None = None
) -> Box:
    """A half-open box in native pixels that covers what was drawn.

    Args:
        where: for messages.
        corners: x0, y0, x1, y1 as drawn, in pixels.
        size_px: height and width of the image file.
        drawn_on_px: height and width of the image that was drawn on, if the file may have been resized.

    Returns:
        (y0, x0, y1, x1): rounded outwards, cut at the image's edge, at least one pixel.

    Raises:
        InputError: the corners are swapped, or the box lies outside the image.
    """
    x0, y0, x1, y1 = corners
    height, width = size_px
    if drawn_on_px is not None and tuple(drawn_on_px) != (height, width):
        scale_y, scale_x = height / drawn_on_px[0], width / drawn_on_px[1]
        if abs(scale_y / scale_x - 1) > 0.01:
            raise InputError(
                f"{where}: the boxes were drawn on {drawn_on_px[0]:g} x {drawn_on_px[1]:g} pixels, the image has "
                f"{height} x {width}: cropped or stretched; use the published images"
            )
        x0, x1, y0, y1 = x0 * scale_x, x1 * scale_x, y0 * scale_y, y1 * scale_y
    outside = x0 >= width or y0 >= height or x1 < 0 or y1 < 0
    if x1 < x0 or y1 < y0 or outside:
        what = "lies outside the image" if outside else "has its corners swapped"
        raise InputError(f"{where}: the box x {x0:g} to {x1:g}, y {y0:g} to {y1:g} {what} of {height} x {width} pixels")
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(width, max(math.ceil(x1), left + 1)), min(height, max(math.ceil(y1), top + 1))
    return top, left, bottom, right


def write_mask(out: Path, name: str, mask: np.ndarray) -> str:
    """Write a mask as an 8-bit PNG, 0 and 255.

    Args:
        out: the output folder, where the manifest lies.
        name: path below it, with forward slashes.
        mask: bool `height width`.

    Returns:
        `name`, for the manifest.

    Raises:
        OutputError: it cannot be written.
    """
    from PIL import Image

    from radglint.writing import output_errors

    target = out / name
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_png(target, Image.fromarray(mask.astype("uint8") * 255))
    return name
