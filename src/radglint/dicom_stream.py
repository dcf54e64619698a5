"""A DICOM file as a stream that cannot make its reader allocate more than the file holds.

Two promises in a header would: the length of an element (up to 4 GiB, allocated before it is read), and a deflated
data set (transfer syntax 1.2.840.10008.1.2.1.99), which can unpack to a thousand times its size.
"""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
MAX_INFLATED_BYTES = 2**31
MAX_RATIO = 200
"""Unpacked size over packed size, for anything above `RATIO_FROM_BYTES`; as for zips."""
RATIO_FROM_BYTES = 64 * 2**20

_LARGE_READ_BYTES = 2**16
_CHUNK_BYTES = 2**20
_META_AT = 132
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


class BoundedReader(io.BufferedReader):
    """A file whose `read` never asks for more than is left; a short answer tells the parser that the file is cut off.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(os.fspath(path)))  # a text: pydicom puts its name into messages
        self.size_bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, or all that is left."""
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(self.size_bytes - self.tell(), 0))
        return super().read(size)


def check_deflated(path: Path) -> None:
    """Refuse a deflated data set that unpacks to far too much; other files are not looked through.

    Raises:
        ValueError: what it unpacks to.
        OSError: the file cannot be read.
    """
    with BoundedReader(path) as file:
        if not _is_deflated(file):
            return
        inflate, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflate.eof and (chunk := inflate.unconsumed_tail or file.read(_CHUNK_BYTES)):
            unpacked += len(inflate.decompress(chunk, _CHUNK_BYTES))
            most = max(RATIO_FROM_BYTES, min(MAX_INFLATED_BYTES, MAX_RATIO * file.size_bytes))
            if unpacked > most:
                raise ValueError(f"the deflated data set unpacks to more than {most} bytes from {file.size_bytes}")


def _is_deflated(file: BoundedReader) -> bool:
    """Walk the file meta group (PS3.10 section 7.1, always explicit little endian); leave the file at its end."""
    file.seek(_META_AT)
    is_deflated = False
    while True:
        at = file.tell()
        head = file.read(12)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            file.seek(at)
            return is_deflated
        is_long = head[4:6] in _LONG_VRS
        length = int.from_bytes(head[8:12] if is_long else head[6:8], "little")
        file.seek(at + (12 if is_long else 8))
        if head[2:4] == b"\x10\x00":
            is_deflated = file.read(length).rstrip(b"\0 ") == DEFLATED_SYNTAX
        else:
            file.seek(length, os.SEEK_CUR)
