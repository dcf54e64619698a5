"""NIfTI (.nii, .nii.gz) to a CT in HU. The file's own voxels; only the axis order changes, (i, j, k) to (k, j, i)."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from radglint.errors import GeometryError, ImageError
from radglint.geometry import as_affine, check_plausible, shear_deg, spacing_from_affine
from radglint.hounsfield import check_hu, clamp_padding
from radglint.image import MedicalImage
from radglint.signatures import is_nifti_pair, nifti_version

MAX_VOXELS = 2**30
"""Larger volumes are refused from the header on: 1024 x 1024 x 1024, 4 GiB as float32."""
MAX_GZIP_RATIO = 1032
"""Deflate cannot do better, so a header that promises more than this times the file size lies."""

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 540
_DRAIN_CHUNKS = 16
_CLASSES = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
_NOTED_SHEAR_DEG = 0.1
_SPACING_MM = (0.1, 20.0)
_UNITS = {1: "meter", 3: "micron"}  # NIFTI_UNITS_METER and _MICRON; 2 is mm
_BROKEN = (
    EOFError, OSError, zlib.error, ValueError, HeaderDataError, ImageFileError, OverflowError, MemoryError,
    WrapStructError, LookupError, ArithmeticError, struct.error,
)  # fmt: skip


def read_nifti(path: str | Path) -> MedicalImage:
    """Read a chest CT from a NIfTI-1 or NIfTI-2 file.

    Args:
        path: `.nii` or `.nii.gz`; the content decides, not the suffix.

    Returns:
        A CT, `depth height width` = the file's (k, j, i), in HU (scl_slope and scl_inter applied), its affine in
        that order, and the file's header for writing masks.

    Raises:
        ImageError: not a NIfTI file, truncated, too large, 4-D, one slice, colour or complex, NaN, or not HU.
        GeometryError: the affine is singular or not finite, or the units cannot be mm.
    """
    path = Path(path)
    kind, header = _read_header(path)
    shape = _checked_shape(header, path)
    _check_size(header, shape, path)
    steps, notes = [f"decoded {kind.__name__.removesuffix('Image')}, {header.get_data_dtype()}"], []
    affine = _affine(header, path, notes)
    steps += _scaling_step(header)
    data, header = _load(kind, path)
    if len(header.get_data_shape()) > 3:
        steps.append(f"shape {header.get_data_shape()}: trailing axes of length 1 dropped")
    array = np.ascontiguousarray(data.reshape(shape, order="F").transpose(2, 1, 0))
    steps.append("axes (i, j, k) taken as width, height, depth; no voxel moved")
    _check_finite(array, path)
    notes += check_hu(array, str(path))
    array, clamped = clamp_padding(array)
    return MedicalImage(
        array=array,
        modality="CT",
        value_unit="HU",
        spacing_mm=spacing_from_affine(affine[:, [2, 1, 0, 3]]),
        affine=affine[:, [2, 1, 0, 3]],
        path=str(path),
        steps=(*steps, *clamped),
        warnings=tuple(notes),
        source_format="nifti",
        source_header=header,
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except _BROKEN as error:
        what = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(f"{path}: truncated or damaged NIfTI ({what}); copy or export it again") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _read_header(path: Path) -> tuple[type[nib.Nifti1Image], Any]:
    with _reading(path), _open(path) as file:
        head = file.read(_HEADER_BYTES)
        if is_nifti_pair(head):
            raise ImageError(f"{path}: one half of a NIfTI pair (.hdr and .img); convert it to a single .nii.gz")
        kind = _CLASSES.get(nifti_version(head))
        if kind is None:
            raise ImageError(f"{path}: expected NIfTI, but the header has no 'n+1' or 'n+2' mark; export it again")
        return kind, kind.header_class.from_fileobj(io.BytesIO(head))


def _checked_shape(header: Any, path: Path) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or 1 in shape[:3]:
        raise ImageError(f"{path}: one slice (shape {shape}), a CT needs a volume; give the whole series")
    if any(n < 1 for n in shape):
        raise ImageError(f"{path}: shape {shape} has an axis of no length; export it again")
    if any(n != 1 for n in shape[3:]):
        raise ImageError(f"{path}: 4-D, shape {shape}; expected one volume, save the one that you mean on its own")
    return shape[0], shape[1], shape[2]


def _check_size(header: Any, shape: tuple[int, int, int], path: Path) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError(f"{path}: data type {dtype} (colour or complex), expected one number a voxel; give the CT")
    voxels = shape[0] * shape[1] * shape[2]
    if voxels > MAX_VOXELS:
        raise ImageError(f"{path}: the header announces {voxels} voxels, at most {MAX_VOXELS} are read; crop the CT")
    with path.open("rb") as file:
        ratio = MAX_GZIP_RATIO if file.read(2) == _GZIP_MAGIC else 1
    needed, present = voxels * dtype.itemsize, path.stat().st_size
    if needed > present * ratio:
        raise ImageError(
            f"{path}: truncated, shape {shape} needs {needed} bytes, the file has {present}; copy it again"
        )


def _load(kind: type[nib.Nifti1Image], path: Path) -> tuple[np.ndarray, Any]:
    """Voxels as float32 in the file's order, scaled, and the header."""
    with _reading(path), _open(path) as file, np.errstate(all="ignore"):
        image = kind.from_stream(file)
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
        for _ in range(_DRAIN_CHUNKS):  # the checksum of gzip is only compared at the very end
            if not file.read(2**20):
                break
        return data, image.header.copy()


def _scaling_step(header: Any) -> list[str]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0 or (slope == 1 and inter == 0):
        return ["no scaling in the header (scl_slope is 0, 1 or NaN): values taken as they are"]
    return [f"scaled by the header: value * {slope:g} + {inter:g}"]


def _affine(header: Any, path: Path, notes: list[str]) -> np.ndarray:
    """(i, j, k) to RAS+ mm: sform, else qform, else the spacing alone with a warning."""
    with _reading(path):
        sform, s_code = header.get_sform(coded=True)
        qform, q_code = header.get_qform(coded=True)
        spacing_only = header.get_base_affine()
    if s_code and q_code:
        _compare_forms(sform, qform, header.get_data_shape(), notes)
    chosen = sform if s_code else qform if q_code else spacing_only
    if not s_code and not q_code:
        notes.append("qform_code and sform_code are 0: left, right, front and back are unknown and were assumed")
    matrix = as_affine(chosen, str(path))
    _check_spacing(matrix, header, path, notes)
    check_plausible(np.array(spacing_from_affine(matrix)), matrix[:3, 3], str(path))
    return matrix


def _compare_forms(sform: np.ndarray, qform: np.ndarray | None, shape: Any, notes: list[str]) -> None:
    far = np.array([*(int(n) - 1 for n in shape[:3]), 1])
    if qform is None or not np.isfinite(qform).all() or not np.isfinite(sform).all():
        return
    gap = max(float(np.abs((sform - qform) @ corner).max()) for corner in (far, np.array([0, 0, 0, 1])))
    if gap > 1:
        notes.append(f"sform and qform disagree by up to {gap:.1f} mm; the sform was used")


def _check_spacing(matrix: np.ndarray, header: Any, path: Path, notes: list[str]) -> None:
    spacing = spacing_from_affine(matrix)
    words = " x ".join(f"{s:.4g}" for s in spacing)
    unit = _UNITS.get(int(header["xyzt_units"]) & 7, "unknown")
    odd = min(spacing) < _SPACING_MM[0] or max(spacing) > _SPACING_MM[1]
    if odd and unit in ("meter", "micron"):
        raise GeometryError(f"{path}: spacing {words} {unit}, expected mm; save the image in mm")
    if unit in ("meter", "micron"):
        notes.append(f"the header says {unit}, but a spacing of {words} only makes sense in mm; mm was used")
    elif odd:
        notes.append(f"a spacing of {words} mm is unusual for a chest CT")
    shear = shear_deg(matrix)
    if shear > _NOTED_SHEAR_DEG:
        notes.append(f"the axes are sheared by {shear:.1f} degrees; the affine was kept as it is")


def _check_finite(array: np.ndarray, path: Path) -> None:
    if np.isfinite(array.sum(dtype=np.float64)):
        return
    count = int(np.count_nonzero(~np.isfinite(array)))
    raise ImageError(f"{path}: {count} of {array.size} voxels are NaN or infinite; repair or export it again")
