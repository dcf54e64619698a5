"""Check a JPEG or JPEG-LS stream before gdcm sees it: on some damaged ones gdcm ends the process, or never returns.

All segments are looked at (ITU-T T.81 annex B, T.87 annex C), and that one follows the other up to the end marker.

Extended JPEG of 12 bits is decoded here too: gdcm can, but pydicom does not let it, and says so of Pillow as well.
"""

from __future__ import annotations

import re

import numpy as np

SOI, EOI, SOS, DHT, APP0, APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xE0, 0xEE
FRAME_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # baseline, extended, progressive, lossless; JPEG-LS
STAND_ALONE = (0x01, *range(0xD0, 0xD8))
MAX_PRECISION = 16
_NEXT_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # the rest is data, a restart, or a byte that fills


def check_jpeg(data: bytes, shape: tuple[int, int], samples: int) -> int:
    """Refuse a stream whose header is damaged or does not fit the image.

    Args:
        data: one frame.
        shape: rows and columns that the DICOM header promises.
        samples: samples per pixel.

    Returns:
        Bits of a sample.

    Raises:
        ValueError: what is wrong.
    """
    if data[:2] != bytes((0xFF, SOI)):
        raise ValueError("the frame does not start as JPEG")
    components: bytes | None = None
    bits, at, is_scanned = 0, 2, False
    while not (is_scanned and data[at : at + 2] == bytes((0xFF, EOI))):
        marker, body, at = _segment(data, at)
        if marker in FRAME_MARKERS:
            if components is not None:
                raise ValueError("the frame has two frame headers")
            components, bits = _check_frame(body, shape, samples), body[0]
        elif marker == DHT:
            _check_huffman(body)
        elif marker in (APP0, APP14):
            _check_application(body, samples)
        elif marker == SOS:
            _check_scan(body, components)
            at, is_scanned = _end_of_scan(data, at), True
    return bits


def decode_12_bits(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Decode a frame of 12 bits and one sample.

    Args:
        data: a frame that `check_jpeg` has let through.
        shape: its rows and columns.

    Returns:
        uint16 `rows columns`, 0 to 4095.

    Raises:
        ImportError: gdcm is not installed.
        ValueError: the frame is damaged.
    """
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(data)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((shape[1], shape[0], 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    # 12 bits allocated, not 16: by these gdcm takes its decoder; it would try the one of 16 first and complain aloud.
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, 0))
    values = np.frombuffer((image.GetBuffer() or "").encode("utf-8", "surrogateescape"), "<u2")
    if values.size != shape[0] * shape[1]:
        raise ValueError("the frame of 12-bit JPEG is damaged")
    return values.reshape(shape)


def _segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Marker, body and end of the segment at a place."""
    while data[at : at + 2] == b"\xff\xff":
        at += 1
    if at + 4 > len(data) or data[at] != 0xFF:
        raise ValueError(f"no JPEG marker at byte {at}")
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
    if marker < 0xC0 or marker in STAND_ALONE or marker in (SOI, EOI):
        raise ValueError(f"marker {marker:02X} is out of place in the JPEG header")
    if length < 2 or at + 2 + length > len(data):
        raise ValueError(f"the JPEG segment {marker:02X} is longer than the frame")
    return marker, data[at + 4 : at + 2 + length], at + 2 + length


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the marker after the coded pixels stands."""
    found = _NEXT_MARKER.search(data, at)
    if found is None:
        raise ValueError("the frame ends before its end marker")
    return found.start()


def _check_frame(body: bytes, shape: tuple[int, int], samples: int) -> bytes:
    """Component identifiers of a start of frame that fits the image."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise ValueError("the JPEG frame header has a wrong length")
    found = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not 2 <= body[0] <= MAX_PRECISION or found != shape or body[5] != samples:
        raise ValueError(
            f"the JPEG header says {found[0]} x {found[1]} pixels of {body[5]} samples and {body[0]} bits, "
            f"the DICOM header {shape[0]} x {shape[1]} of {samples}"
        )
    factors = [(b >> 4, b & 15) for b in body[7::3]]
    if any(not (1 <= h <= 4 and 1 <= v <= 4) for h, v in factors):
        raise ValueError("the JPEG header has impossible sampling factors")
    return body[6::3]


def _check_application(body: bytes, samples: int) -> None:
    """The two things that libjpeg only warns of, which is too much for gdcm (T.871; Adobe's technical note 5116)."""
    if len(body) >= 14 and body[:5] == b"JFIF\0" and body[5] != 1:
        raise ValueError(f"the JPEG header names version {body[5]} of JFIF, there is only 1")
    if samples > 1 and len(body) >= 12 and body[:5] == b"Adobe" and body[11] > 1:
        raise ValueError(f"the JPEG header names colour transform {body[11]}, expected 0 or 1")


def _check_huffman(body: bytes) -> None:
    at = 0
    while at < len(body):
        total = sum(body[at + 1 : at + 17])
        if body[at] >> 4 > 1 or body[at] & 15 > 3 or total > 256 or at + 17 + total > len(body):
            raise ValueError("a JPEG Huffman table is damaged")
        at += 17 + total


def _check_scan(body: bytes, components: bytes | None) -> None:
    if components is None:
        raise ValueError("the JPEG scan comes before the frame header")
    known = len(body) >= 1 and len(body) == 4 + 2 * body[0]
    if not known or not 1 <= body[0] <= len(components) or any(c not in components for c in body[1:-3:2]):
        raise ValueError("the JPEG scan header does not fit the frame header")
