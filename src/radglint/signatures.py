"""What a file is, by its first bytes. Standard library only, so that a PNG is read without loading DICOM and NIfTI."""

from __future__ import annotations

from typing import Literal

FileKind = Literal["dicom", "nifti", "raster", "zip", "gzip"]

HEAD_BYTES = 560
"""How much of a file is looked at: past a NIfTI-2 header."""
SUPPORTED = "DICOM (file, folder or zip), NIfTI, PNG, JPEG and TIFF are read"

_RASTER_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHER_MAGIC = (
    (0, b"\x93NUMPY", "a NumPy array", "save it as NIfTI with its affine"),
    (0, b"%PDF", "a PDF", "export the image itself"),
    (0, b"GIF8", "a GIF", "save it as PNG"),
    (0, b"BM", "a BMP", "save it as PNG"),
    (8, b"WEBP", "a WebP", "save it as PNG"),
    (4, b"ftyp", "a HEIC, AVIF or MP4", "save it as PNG"),
    (4, b"jP  ", "a bare JPEG 2000", "save it as PNG"),
    (0, b"\x89HDF", "an HDF5 file", "save it as NIfTI"),
    (0, b"NRRD", "an NRRD", "save it as NIfTI"),
    (0, b"ObjectType", "a MetaImage", "save it as NIfTI"),
    (257, b"ustar", "a tar archive", "unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"<", "a web page or XML", "download the image itself"),
)


def file_kind(head: bytes) -> FileKind | None:
    """Tell the kind of a file.

    Args:
        head: its first `HEAD_BYTES` bytes, or all if it is shorter.

    Returns:
        The kind, or None if it is none that radglint reads; `describe` then says more.
    """
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_RASTER_MAGIC):
        return "raster"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    return "nifti" if nifti_version(head) or is_nifti_pair(head) else None


def nifti_version(head: bytes) -> int:
    """1 or 2 for the start of a single-file NIfTI (uncompressed), else 0.

    Args:
        head: the first bytes, at least 348.
    """
    sizes = (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    if head[344:347] == b"n+1" and 348 in sizes:
        return 1
    return 2 if head[4:7] == b"n+2" and 540 in sizes else 0


def is_nifti_pair(head: bytes) -> bool:
    """Whether this is the header half (.hdr) of a NIfTI pair.

    Args:
        head: the first bytes, at least 348.
    """
    return head[344:347] == b"ni1" or head[4:7] == b"ni2"


def describe(head: bytes) -> str:
    """Say what a file is that radglint does not read, and what to do about it.

    Args:
        head: its first `HEAD_BYTES` bytes.
    """
    for offset, magic, name, advice in _OTHER_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return f"this is {name}, which is not read: {advice}"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "this is a text file, no image"
    return "the content is no image that is known here (or a DICOM file that lost its DICM mark, or a cut file)"
