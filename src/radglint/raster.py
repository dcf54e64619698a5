"""PNG, JPEG and TIFF to a radiograph: every choice is written into `steps`, nothing is guessed in silence.

Brightness becomes [0, 1] by dividing by the top of the smallest usual bit range (8, 10, 12, 14, 16) that holds the
largest value, so a 12-bit picture in a 16-bit file does not come out nearly black.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from radglint.errors import ImageError
from radglint.image import MedicalImage

FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PIXELS = 100_000_000
"""Refused from the header on, before anything is allocated; the largest detectors have about 20 megapixels."""
MAX_PX_PER_BYTE = 10_000
"""An empty picture packs to about 1,000 pixels a byte, one of few colours to 8,000; a header that claims more lies."""
MIN_SIDE_PX = 32
MAX_GREY_SPREAD = 8
"""Channels that differ by at most this much (of 255) are grey: JPEG rounds colour by a few levels."""

_BITS = (8, 10, 12, 14, 16)
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_ORIENTATION_TAG = 0x0112
_PHOTOMETRIC_TAG = 262
_EXIF_TURNS = {
    2: "mirrored left-right",
    3: "turned by 180 degrees",
    4: "mirrored top-bottom",
    5: "transposed",
    6: "turned by 90 degrees clockwise",
    7: "transposed along the other diagonal",
    8: "turned by 90 degrees counter-clockwise",
}


def read_raster(path: str | Path) -> MedicalImage:
    """Read a PNG, JPEG or TIFF file as a radiograph.

    Args:
        path: the file; its content decides, not its suffix.

    Returns:
        A CXR, `height width` in [0, 1], upright as its EXIF tag says. `spacing_mm` is None: the dpi in such files
        is a printing size, not the detector's.

    Raises:
        ImageError: not such a file, truncated, several pages or moving, too large or too small, signed, not finite,
            bilevel, or constant.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the name and the permission") from error
    with _quiet(), _decoding(path), Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        _check_header(picture, path, len(data))
        steps = [f"decoded {picture.format} of {picture.width} x {picture.height} pixels, mode {picture.mode}"]
        notes: list[str] = []
        orientation = _orientation(picture)
        picture.load()
        values = _to_grey(picture, data, path, steps, notes)
        if picture.format != "TIFF":
            values = _turn(values, orientation)
        if orientation in _EXIF_TURNS:
            steps.append(f"orientation tag {orientation}: {_EXIF_TURNS[orientation]}")
        source_format = "tiff" if picture.format == "TIFF" else "png" if picture.format == "PNG" else "jpeg"
    array = _scale(values, path, steps, notes)
    return MedicalImage(
        array=np.ascontiguousarray(array),
        modality="CXR",
        value_unit="display",
        path=str(path),
        steps=tuple(steps),
        warnings=tuple(notes),
        source_format=source_format,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings (size, odd tags) are replaced by our own checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn whatever the decoder raises on a broken file into one clear ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        what = "the content is none that is decoded (or its header is damaged)"
        raise ImageError(f"{path}: expected PNG, JPEG or TIFF, but {what}; save it as PNG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: the header announces far too many pixels; at most {MAX_PIXELS} are read") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise ImageError(f"{path}: truncated or damaged ({_one_line(error)}); copy or export it again") from error
    except (struct.error, zlib.error, OverflowError, MemoryError) as error:
        raise ImageError(f"{path}: damaged ({_one_line(error)}); copy or export it again") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _check_header(picture: Image.Image, path: Path, size_bytes: int) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS} are read; reduce the image")
    if width * height > MAX_PX_PER_BYTE * size_bytes:
        raise ImageError(
            f"{path}: truncated, {width} x {height} pixels cannot lie in {size_bytes} bytes; copy or export it again"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{path}: {width} x {height} pixels, a radiograph needs {MIN_SIDE_PX} on each side")
    pages = getattr(picture, "n_frames", 1)
    if pages != 1:
        raise ImageError(f"{path}: {pages} pages or frames, expected one; save the one that you mean on its own")
    if picture.mode == "1":
        raise ImageError(f"{path}: black and white only (1 bit), a mask and no radiograph; give the grey image")


def _orientation(picture: Image.Image) -> int:
    value = picture.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Bring an array of `height width` upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _to_grey(picture: Image.Image, data: bytes, path: Path, steps: list[str], notes: list[str]) -> np.ndarray:
    """Collapse any mode to one channel, in the file's own values."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        if picture.format == "TIFF" and _tiff_tag(picture, _PHOTOMETRIC_TAG) == 0:
            steps.append("photometric interpretation white-is-zero: inverted")
            top = float(values.max()) if picture.mode == "F" else float(2 ** _bits_for(float(values.max())) - 1)
            values = top - values.astype(np.float64)
        return values
    _note_reduced_depth(data, notes)
    if picture.mode == "L" and "transparency" not in picture.info:
        return np.asarray(picture)
    if picture.mode == "P":
        steps.append("palette expanded")
    has_alpha = "transparency" in picture.info or picture.mode in ("LA", "PA", "La", "RGBA", "RGBa")
    channels = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    grey = _collapse_colour(channels[..., :3], path, steps, notes)
    return _composite(grey, channels[..., 3], steps, notes) if has_alpha else grey


def _tiff_tag(picture: Image.Image, tag: int) -> int | None:
    tags = getattr(picture, "tag_v2", None)
    return None if tags is None else tags.get(tag)


def _note_reduced_depth(data: bytes, notes: list[str]) -> None:
    """Pillow reads a 16-bit colour or alpha PNG with 8 bits; say so."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6):
        notes.append("a 16-bit PNG with colour or alpha was read with 8 bits; save it as 16-bit grey to keep them all")


def _collapse_colour(channels: np.ndarray, path: Path, steps: list[str], notes: list[str]) -> np.ndarray:
    """`height width 3` uint8 to `height width`: one channel if grey, luminance and a warning if coloured."""
    spread = channels.max(axis=2) - channels.min(axis=2)
    largest = int(spread.max())
    if largest == 0:
        steps.append("three equal channels: the first was taken")
        return channels[..., 0]
    if largest <= MAX_GREY_SPREAD:
        steps.append(f"three nearly equal channels (they differ by at most {largest} of 255): green was taken")
        return channels[..., 1]
    count = int(np.count_nonzero(spread > MAX_GREY_SPREAD))
    steps.append("colour collapsed to luminance (0.299 red, 0.587 green, 0.114 blue)")
    notes.append(
        f"{count} pixels ({100 * count / spread.size:.1f} %) are coloured: annotations, a photo or false colour"
    )
    return channels.astype(np.float32) @ _LUMINANCE


def _composite(grey: np.ndarray, alpha: np.ndarray, steps: list[str], notes: list[str]) -> np.ndarray:
    if alpha.min() == 255:
        steps.append("alpha channel ignored, it is opaque everywhere")
        return grey
    share = 100 * float(np.mean(alpha < 255))
    steps.append("transparent pixels composited on black")
    notes.append(f"{share:.1f} % of the pixels are transparent and were laid on black")
    return grey.astype(np.float32) * (alpha.astype(np.float32) / 255)


def _bits_for(largest: float) -> int:
    return next((bits for bits in _BITS if largest <= 2**bits - 1), 32)


def _scale(values: np.ndarray, path: Path, steps: list[str], notes: list[str]) -> np.ndarray:
    """Check the range and bring it to [0, 1] float32."""
    if not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ImageError(f"{path}: {count} pixels are NaN or infinite; repair or export the image again")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ImageError(f"{path}: every pixel is {low:g}, there is nothing to see; export the image again")
    if low < 0:
        raise ImageError(
            f"{path}: values from {low:g}, a radiograph has none below 0; is it a CT slice? Give the series"
        )
    if values.dtype.kind == "f" and high <= 1:
        steps.append("values are already in [0, 1]")
        return values.astype(np.float32)
    top = _top(values, high, steps, notes)
    return (values.astype(np.float32) / np.float32(top)).clip(0, 1)


def _top(values: np.ndarray, high: float, steps: list[str], notes: list[str]) -> float:
    if values.dtype == np.uint8:
        steps.append("8-bit values divided by 255")
        return 255.0
    bits = _bits_for(high)
    if bits == 32:
        notes.append(f"values up to {high:g} fit no usual bit range; they were divided by the largest")
        steps.append(f"values divided by their maximum {high:g}")
        return high
    top = float(2**bits - 1)
    steps.append(f"largest value {high:g} fits {bits} bits: divided by {top:g}")
    if high < 0.4 * top:
        notes.append(f"the largest value {high:g} uses {100 * high / top:.0f} % of its {bits}-bit range: a dark image")
    return top
