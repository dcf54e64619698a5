"""Files that the CT adapters write: volumes in HU and masks, each on a stated grid, each written once.

Axes: NIfTI data are (i, j, k) = (width, height, depth); `read_image` gives them as `depth height width`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from radglint.errors import GeometryError, InputError
from radglint.geometry import as_affine, grid_gap_mm, shear_deg, spacing_from_affine
from radglint.image import MedicalImage
from radglint.mask_nifti import MAX_QFORM_SHEAR_DEG, mask_to_nifti
from radglint.writing import output_errors, write_nifti

SAME_GRID_MM = 0.01
"""Two affines that place every corner voxel this near to each other are one grid."""


def load_nifti(path: Path) -> Any:
    """Open a NIfTI file without reading its voxels.

    Returns:
        A `nibabel` image.

    Raises:
        InputError: missing, or no NIfTI.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        return nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
    except (OSError, ImageFileError, EOFError, ValueError) as error:
        raise InputError(f"{path}: expected a NIfTI file ({error}); download it again") from error


def voxels(nifti: Any, path: Path) -> np.ndarray:
    """The voxels of an opened NIfTI file, in its own order and type, scaled only if its header says so.

    Raises:
        InputError: truncated or damaged.
    """
    import zlib

    try:
        return np.asanyarray(nifti.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged NIfTI ({error}); download it again") from error


def nifti_grid(path: Path) -> MedicalImage:
    """The grid of a NIfTI volume without its voxels: shape, affine and header as `read_image` would give them.

    Returns:
        An image whose array is all zeros and takes no memory; of use only to say where a mask lies.

    Raises:
        InputError: no NIfTI, or not three axes.
        GeometryError: the affine cannot be used.
    """
    nifti = load_nifti(path)
    shape = tuple(int(n) for n in nifti.shape)
    if len(shape) != 3:
        raise InputError(f"{path}: shape {shape}, expected a volume with three axes")
    affine = as_affine(nifti.affine, str(path))[:, [2, 1, 0, 3]]
    return MedicalImage(
        array=np.broadcast_to(np.float32(0), shape[::-1]),
        modality="CT",
        value_unit="HU",
        spacing_mm=spacing_from_affine(affine),
        affine=affine,
        path=str(path),
        source_format="nifti",
        source_header=nifti.header.copy(),
    )


def write_mask(path: Path, mask: np.ndarray, grid: MedicalImage) -> Path:
    """Write a mask as compressed NIfTI (uint8, 0 and 1) in the geometry of the image that it lies on.

    Args:
        path: ends in .nii.gz; its folder is made.
        mask: bool, `depth height width` of `grid`.
        grid: the image, or `nifti_grid` of it.

    Raises:
        GeometryError: the mask's shape is not that of the grid.
        OutputError: the file cannot be written.
    """
    if mask.shape != grid.shape:
        raise GeometryError(f"{path}: a mask of shape {mask.shape} on an image of shape {grid.shape} ({grid.path})")
    _make_folder(path)
    return write_nifti(path, mask_to_nifti(np.ascontiguousarray(mask, dtype=bool), grid))


def write_volume(path: Path, hu: np.ndarray, affine: np.ndarray) -> Path:
    """Write a CT in HU as compressed NIfTI.

    Args:
        path: ends in .nii.gz; its folder is made.
        hu: int16, `depth height width`.
        affine: 4x4 from index (depth, height, width, 1) to RAS+ mm.

    Raises:
        OutputError: the file cannot be written.
    """
    import nibabel as nib

    columns = as_affine(affine, str(path))[:, [2, 1, 0, 3]]
    nifti = nib.Nifti1Image(hu.transpose(2, 1, 0), columns)  # pyright: ignore[reportPrivateImportUsage]
    nifti.set_sform(columns, code=1)
    sheared = shear_deg(columns) > MAX_QFORM_SHEAR_DEG
    nifti.set_qform(columns, code=0 if sheared else 1, strip_shears=True, update_affine=False)
    nifti.header.set_xyzt_units("mm")
    _make_folder(path)
    return write_nifti(path, nifti)


def is_written(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Whether a volume of this shape and grid is there already, from an earlier run (files are written whole).

    Args:
        path: what `write_volume` would write.
        shape: `depth height width`.
        affine: 4x4 from index (depth, height, width, 1) to RAS+ mm.
    """
    if not path.is_file():
        return False
    try:
        grid = nifti_grid(path)
    except InputError:
        return False
    return grid.shape == tuple(shape) and grid_gap_mm(np.asarray(grid.affine), affine, grid.shape) < SAME_GRID_MM


def mask_box(mask: np.ndarray) -> tuple[int, ...]:
    """The half-open box around a mask: (z0, y0, x0, z1, y1, x1).

    Args:
        mask: bool, `depth height width`, at least one voxel True.
    """
    low, high = [], []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low.append(int(where[0]))
        high.append(int(where[-1]) + 1)
    return (*low, *high)


def _make_folder(path: Path) -> None:
    with output_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
