"""Check a JPEG or JPEG-LS stream before gdcm sees it: gdcm ends the whole process on some damaged headers.

Only the segments up to the start of scan are looked at (ITU-T T.81 annex B, T.87 annex C), and that the stream ends.
"""

from __future__ import annotations

SOI, EOI, SOS, DHT = 0xD8, 0xD9, 0xDA, 0xC4
FRAME_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # baseline, extended, progressive, lossless; JPEG-LS
STAND_ALONE = (0x01, *range(0xD0, 0xD8))
MAX_PRECISION = 16


def check_jpeg(data: bytes, shape: tuple[int, int], samples: int) -> None:
    """Refuse a stream whose header is damaged or does not fit the image.

    Args:
        data: one frame.
        shape: rows and columns that the DICOM header promises.
        samples: samples per pixel.

    Raises:
        ValueError: what is wrong.
    """
    if data[:2] != bytes((0xFF, SOI)):
        raise ValueError("the frame does not start as JPEG")
    components: bytes | None = None
    at = 2
    while True:
        marker, body, at = _segment(data, at)
        if marker in FRAME_MARKERS:
            components = _check_frame(body, shape, samples)
        elif marker == DHT:
            _check_huffman(body)
        elif marker == SOS:
            _check_scan(body, components)
            break
    if data.rfind(bytes((0xFF, EOI))) < at:
        raise ValueError("the frame ends before its end marker")


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
