"""Label volumes as NRRD, and the numbers in a label volume, for MONAI Label's clients.

Only what 3D Slicer (through SimpleITK) and OHIF (through nrrd-js, which cannot unpack) read: three axes, uint8 or
uint16, gzip or raw, in the patient's left-posterior-superior millimetres, the first axis running fastest.
"""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

FAST = 1  # gzip level: label volumes are mostly empty, and somebody waits
Dtype = Literal["uint8", "uint16"]
_AXES_TO_LPS = (-1.0, -1.0, 1.0)


def nrrd_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A label volume as a gzipped NRRD.

    Args:
        array: uint8, as in NIfTI: the first index is the column.
        affine: 4 x 4, index to RAS+ millimetres, as in NIfTI.
    """
    lps = [[sign * float(value) + 0.0 for value in row] for sign, row in zip(_AXES_TO_LPS, affine[:3], strict=True)]
    directions = " ".join(_vector(row[axis] for row in lps) for axis in range(3))
    header = (
        "NRRD0004\n"
        "type: uint8\n"
        "dimension: 3\n"
        "space: left-posterior-superior\n"
        f"sizes: {' '.join(str(size) for size in array.shape)}\n"
        f"space directions: {directions}\n"
        "kinds: domain domain domain\n"
        "endian: little\n"
        "encoding: gzip\n"
        f"space origin: {_vector(row[3] for row in lps)}\n\n"
    )
    return header.encode("ascii") + gzip.compress(array.tobytes(order="F"), FAST, mtime=0)


def _vector(values: object) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"  # type: ignore[attr-defined]


def rewritten(nrrd: bytes, numbers: dict[int, int], dtype: Dtype, *, is_packed: bool) -> bytes:
    """A volume of `nrrd_bytes` with other numbers, of another type, or not packed.

    Args:
        nrrd: the file.
        numbers: label there to label wanted, both 1 to 255; those not named stay.
        dtype: of the voxels.
        is_packed: whether with gzip.
    """
    head, _, packed = nrrd.partition(b"\n\n")
    voxels = renumbered(gzip.decompress(packed), numbers)
    if dtype == "uint16":
        wide = bytearray(2 * len(voxels))
        wide[::2] = voxels
        voxels = bytes(wide)
    head = head.replace(b"type: uint8", f"type: {dtype}".encode())
    if not is_packed:
        return head.replace(b"encoding: gzip", b"encoding: raw") + b"\n\n" + voxels
    return head + b"\n\n" + gzip.compress(voxels, FAST, mtime=0)


def renumbered_nifti(packed: bytes, numbers: dict[int, int]) -> bytes:
    """A uint8 label volume as .nii.gz with other numbers; see `rewritten`."""
    if all(old == new for old, new in numbers.items()):
        return packed
    nifti = gzip.decompress(packed)
    is_first = struct.unpack_from("<i", nifti)[0] == 348  # the size of NIfTI-1's header; else it is NIfTI-2
    start = int(struct.unpack_from("<f", nifti, 108)[0]) if is_first else struct.unpack_from("<q", nifti, 168)[0]
    return gzip.compress(nifti[:start] + renumbered(nifti[start:], numbers), FAST, mtime=0)


def renumbered(voxels: bytes, numbers: dict[int, int]) -> bytes:
    """uint8 voxels with other numbers; those that are not named stay."""
    table = bytearray(range(256))
    for old, new in numbers.items():
        table[old] = new
    return voxels.translate(table)
