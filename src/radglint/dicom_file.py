"""One DICOM file: open it, read a tag, decode a frame; every failure becomes a one-line error that names the file.

Used by `dicom` (radiographs) and `dicom_series` (CT). Nothing here quotes a tag that identifies the patient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGExtended12Bit, RLELossless

from radglint.dicom_stream import BoundedReader, check_deflated
from radglint.errors import ImageError
from radglint.jpeg_header import check_jpeg, decode_12_bits

MAX_FRAME_PX = 2**26  # 8192 x 8192: larger than any detector; guards against nonsense in the header
INSTALL_HINT = (
    "`pip install python-gdcm pylibjpeg-openjpeg pylibjpeg-rle`, or export the file uncompressed (JPEG: `dcmdjpeg` of "
    "the program dcmtk does it)"
)
SECONDARY_CAPTURE_UID = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame children .1 to .4
PLUGINS = ("pylibjpeg", "pydicom", "pillow", "gdcm")  # order of trial; gdcm last, it can abort on damaged data
DICOM_MARKER_AT, DICOM_MARKER = 128, b"DICM"  # PS3.10 section 7.1


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings, which may quote values of the file; radglint makes its own checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICM marker at byte 128 (PS3.10 section 7.1).

    Raises:
        ImageError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            file.seek(DICOM_MARKER_AT)
            return file.read(4) == DICOM_MARKER
    except OSError as exc:
        raise ImageError(f"{path}: cannot be opened ({exc.strerror}); check the path and its permissions") from exc


def open_dicom(path: Path, *, stop_before_pixels: bool = False, tags: list[str] | None = None) -> Dataset:
    """Read a DICOM file.

    Args:
        path: the file.
        stop_before_pixels: leave the pixel data out.
        tags: read these keywords only (fast), or all.

    Raises:
        ImageError: not a DICOM file, cut off, or not readable.
    """
    if not is_dicom(path):
        raise ImageError(f"{path}: not a DICOM file (no DICM marker at byte 128); it may be empty or cut off")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_deflated(path)
            with BoundedReader(path) as file:
                ds = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, specific_tags=tags)
    except InvalidDicomError as exc:
        raise ImageError(f"{path}: not a DICOM file; {exc}") from exc
    except Exception as exc:
        raise ImageError(f"{path}: the DICOM file is damaged or cut off ({_one_line(exc)}); copy it again") from exc
    if any("End of file reached" in str(warning.message) for warning in caught):
        raise ImageError(f"{path}: the DICOM file is cut off in its pixel data; copy it again")
    return ds


def tag_name(keyword: str) -> str:
    """A tag for messages, e.g. "PixelSpacing (0028,0030)"."""
    tag = tag_for_keyword(keyword)
    return keyword if tag is None else f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def numbers(ds: Dataset, keyword: str, path: Path | str, count: int | None = None) -> np.ndarray | None:
    """The numbers of a tag as float64, or None if the tag is absent or empty.

    Raises:
        ImageError: not numbers, not finite, or not `count` of them.
    """
    try:
        with quiet_pydicom():
            value = ds.get(keyword)
            if value is None or (isinstance(value, str | bytes) and not value.strip()):
                return None
            array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except Exception as exc:
        raise ImageError(f"{path}: tag {tag_name(keyword)} does not hold numbers; re-export the file") from exc
    if array.size == 0:
        return None
    if not np.isfinite(array).all() or (count is not None and array.size != count):
        wanted = "finite numbers" if count is None else f"{count} finite numbers"
        raise ImageError(f"{path}: tag {tag_name(keyword)} must hold {wanted}, got {array.tolist()}")
    return array


def number(ds: Dataset, keyword: str, path: Path | str) -> float | None:
    """The first number of a tag, or None if it is absent or empty (see `numbers`)."""
    values = numbers(ds, keyword, path)
    return None if values is None else float(values[0])


def text(ds: Dataset, keyword: str) -> str:
    """A tag as one line of text, parts joined by a backslash; "" if it is absent or unreadable."""
    try:
        with quiet_pydicom():
            value = ds.get(keyword)
            if value is None:
                return ""
            is_list = isinstance(value, list | tuple) and not isinstance(value, str)
            parts = list(value) if is_list else _as_list(value)
            return " ".join("\\".join(str(part) for part in parts).split())
    except Exception:  # whatever pydicom makes of a value that does not fit its VR
        return ""


def items(ds: Dataset, keyword: str, path: Path | str = "DICOM data set") -> list[Dataset]:
    """The items of a sequence tag, an empty list if it is absent.

    Raises:
        ImageError: it is no sequence, or damaged, or nested too deeply.
    """
    try:
        with quiet_pydicom():
            value = ds.get(keyword)
    except Exception as exc:
        raise ImageError(f"{path}: tag {tag_name(keyword)} is damaged ({_one_line(exc)}); re-export the file") from exc
    return list(value) if isinstance(value, pydicom.Sequence) else []


def transfer_syntax(ds: Dataset, path: Path | str) -> UID:
    """How the pixel data is encoded.

    Raises:
        ImageError: TransferSyntaxUID is missing, damaged, or names something else.
    """
    value = text(getattr(ds, "file_meta", None) or Dataset(), "TransferSyntaxUID")
    if not value:
        raise ImageError(f"{path}: tag {tag_name('TransferSyntaxUID')} is missing; re-export the file")
    with quiet_pydicom():
        syntax = UID(value)
    if not syntax.is_private and not syntax.is_transfer_syntax:
        raise ImageError(
            f"{path}: {value[:64]!r} in {tag_name('TransferSyntaxUID')} is no transfer syntax; re-export the file"
        )
    return syntax


def frame_shape(ds: Dataset, path: Path | str) -> tuple[int, int]:
    """Rows and columns.

    Raises:
        ImageError: missing, zero, or larger than `MAX_FRAME_PX` pixels together.
    """
    rows, columns = number(ds, "Rows", path), number(ds, "Columns", path)
    if rows is None or columns is None:
        missing = "Rows" if rows is None else "Columns"
        raise ImageError(f"{path}: tag {tag_name(missing)} is missing; the file holds no image or is cut off")
    if rows < 1 or columns < 1 or rows * columns > MAX_FRAME_PX:
        raise ImageError(
            f"{path}: {rows:.0f} x {columns:.0f} pixels in {tag_name('Rows')} and {tag_name('Columns')} is not a "
            f"usable size (1 to {MAX_FRAME_PX} pixels); re-export the file"
        )
    return int(rows), int(columns)


def decode_frame(ds: Dataset, path: Path | str, index: int | None = None) -> np.ndarray:
    """Decode the pixel data of one frame; YBR colour comes as RGB.

    Args:
        ds: the dataset with its pixel data.
        path: its file, for messages.
        index: the frame, zero-based; None decodes everything (single frame).

    Returns:
        `rows columns` or `rows columns 3`, integers as the codec returned them (see `stored_values`).

    Raises:
        ImageError: no pixel data, no decoder for the transfer syntax, or truncated or damaged pixel data.
    """
    if "PixelData" not in ds:
        other = next((k for k in ("FloatPixelData", "DoubleFloatPixelData") if k in ds), None)
        found = f"only {tag_name(other)}, which is no radiograph or CT" if other else "the file is cut off or no image"
        raise ImageError(f"{path}: tag {tag_name('PixelData')} is missing: {found}")
    first: BaseException | None = None
    for plugin in _decoder_plugins(ds, path):
        try:
            if plugin == "gdcm" and (frame := _checked_frame(ds, path, index)) is not None:
                return frame
            with quiet_pydicom():  # stored_values takes care of unused bits
                return pixel_array(ds, index=index, decoding_plugin=plugin, correct_unused_bits=False)
        except BaseException as exc:
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise  # a panic in a decoder written in Rust is no Exception
            first = first or exc
    raise ImageError(
        f"{path}: the pixel data cannot be decoded ({_one_line(first)}); it is truncated or damaged, copy it again"
    ) from first


def stored_values(frame: np.ndarray, ds: Dataset, path: Path | str) -> tuple[np.ndarray, bool]:
    """Stored pixel values: the bits HighBit-BitsStored+1 to HighBit, with their sign (PS3.5 section 8.1.1).

    Args:
        frame: as decoded.
        ds: holds BitsAllocated, BitsStored, HighBit and PixelRepresentation.
        path: for messages.

    Returns:
        The values, and whether other bits were set and dropped (an old overlay plane, or a wrong BitsStored).

    Raises:
        ImageError: the four tags contradict each other.
    """
    allocated, stored, shift, signed = _bits(ds, path)
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    if shift == 0 and frame.size and frame.min() >= low and frame.max() <= high:
        return frame, False
    bits = (frame.astype(np.int64) & ((1 << allocated) - 1)) >> shift & ((1 << stored) - 1)
    sign = 1 << stored - 1
    values = ((bits ^ sign) - sign) if signed else bits
    return values, bool(np.any((values << shift) != frame))


def padding_mask(stored: np.ndarray, frame: np.ndarray, ds: Dataset, path: Path | str) -> np.ndarray | None:
    """Where pixels are padding: PixelPaddingValue, or the closed range up to PixelPaddingRangeLimit (C.7.5.1.1.2).

    Args:
        stored: stored values.
        frame: the same as decoded, compared too, since padding may lie outside BitsStored.
        ds: the dataset.
        path: for messages.

    Returns:
        bool, the shape of `stored`; None if the file names no padding.
    """
    value, limit = number(ds, "PixelPaddingValue", path), number(ds, "PixelPaddingRangeLimit", path)
    if value is None:
        return None
    ends = sorted(_with_sign(v, ds, path) for v in (value, value if limit is None else limit))
    if ends[0] == ends[1]:
        mask = stored == ends[0]
        return mask if stored is frame else mask | (frame == ends[0])
    return (stored >= ends[0]) & (stored <= ends[1])


def _with_sign(value: float, ds: Dataset, path: Path | str) -> float:
    """Padding written as US in a file of signed pixels, e.g. 63536 for -2000."""
    allocated = int(number(ds, "BitsAllocated", path) or 16)
    if number(ds, "PixelRepresentation", path) == 1 and value >= 1 << allocated - 1:
        return value - (1 << allocated)
    return value


def _bits(ds: Dataset, path: Path | str) -> tuple[int, int, int, bool]:
    """BitsAllocated, BitsStored, the right shift, and whether signed."""
    allocated = number(ds, "BitsAllocated", path)
    if allocated is None:
        raise ImageError(f"{path}: tag {tag_name('BitsAllocated')} is missing; re-export the file")
    stored = number(ds, "BitsStored", path)
    stored = allocated if stored is None else stored
    high = number(ds, "HighBit", path)
    high = stored - 1 if high is None else high
    if not (1 <= stored <= allocated and stored - 1 <= high < allocated):
        raise ImageError(
            f"{path}: BitsAllocated {allocated:.0f}, BitsStored {stored:.0f} and HighBit {high:.0f} contradict each "
            "other (expected BitsStored - 1 <= HighBit < BitsAllocated); re-export the file"
        )
    # A codec other than RLE puts the value in the low bits, whatever HighBit says.
    syntax = transfer_syntax(ds, path)
    in_place = not syntax.is_encapsulated or syntax == RLELossless
    shift = int(high) + 1 - int(stored) if in_place else 0
    return int(allocated), int(stored), shift, number(ds, "PixelRepresentation", path) == 1


def _decoder_plugins(ds: Dataset, path: Path | str) -> list[str]:
    """The decoder plugins to try, in order; [""] where none is needed. Refuse a transfer syntax that nothing decodes.

    gdcm is not asked for JPEG 2000: on damaged data it ends the whole process, and two others decode it.
    """
    syntax = transfer_syntax(ds, path)
    if syntax.is_private:
        raise ImageError(f"{path}: no decoder for the private transfer syntax {syntax}; export the file uncompressed")
    if not syntax.is_encapsulated:
        return [""]
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        available = ()
    left_out = {"gdcm"} if syntax in (JPEG2000Lossless, JPEG2000) else set()
    if syntax == JPEGExtended12Bit and number(ds, "BitsStored", path) != 8:
        left_out.add("pillow")  # it decodes 8 bits only
    plugins = [p for p in PLUGINS if p in available and p not in left_out]
    if not plugins:
        raise ImageError(f"{path}: no decoder for transfer syntax {syntax.name} ({syntax}); try {INSTALL_HINT}")
    return plugins


def _checked_frame(ds: Dataset, path: Path | str, index: int | None) -> np.ndarray | None:
    """Check a frame before gdcm sees it; decode it here if it is one that pydicom keeps from gdcm."""
    frames, samples = (int(number(ds, name, path) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    frame, shape = get_frame(ds.PixelData, index or 0, number_of_frames=frames), frame_shape(ds, path)
    bits = check_jpeg(frame, shape, samples)
    if transfer_syntax(ds, path) != JPEGExtended12Bit or number(ds, "BitsStored", path) == 8:
        return None
    if (bits, samples) != (12, 1):
        raise ValueError(f"JPEG of {samples} x {bits} bits, but {tag_name('BitsStored')} says otherwise")
    return decode_12_bits(frame, shape)


def _one_line(exc: BaseException | None) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:200]


def _as_list(value: Any) -> list[Any]:
    """A pydicom MultiValue as a list, anything else as one part."""
    return list(value) if isinstance(value, MultiValue) else [value]
