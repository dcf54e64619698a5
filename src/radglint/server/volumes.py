"""Volumes for display, all on one grid: the image itself, a probability map, a mask, several masks as labels.

A CT keeps the geometry of its source. A radiograph becomes a volume of one slice that stands upright in a coronal view
in radiological convention: columns run to the patient's left, rows to the feet, as a film on a light box is looked at.
Whether its left really is there the pixels do not say. Without known spacing a pixel is a millimetre.

The image lies on the disk as it is drawn, not compressed: unpacking 70 MB takes a browser longer than all the rest.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radglint.geometry import apply_affine
from radglint.image import MedicalImage
from radglint.mask_nifti import volume_to_nifti
from radglint.writing import whole_file

if TYPE_CHECKING:
    from radglint.findings import Findings

BRIGHTNESS_STEPS = 65535
VOLUME, PACKED = "volume.nii", "volume.nii.gz"
FAST = 1  # gzip level: somebody waits
COPY_BYTES = 1 << 20


def display_volume(image: MedicalImage) -> Any:
    """The image as a nibabel NIfTI-1: CT in HU as int16; a radiograph as uint16, scaled to brightness 0 to 1."""
    import nibabel as nib

    if image.affine is not None:
        limits = np.iinfo(np.int16)
        whole = np.clip(np.rint(image.array), limits.min, limits.max).astype(np.int16)
        nifti = volume_to_nifti(whole, image, "radglint display")
        if not isinstance(nifti, nib.Nifti2Image):
            return nifti
        plain = nib.Nifti1Image(np.asarray(nifti.dataobj), nifti.header.get_best_affine())  # what every viewer reads
        plain.header.set_xyzt_units("mm")
        return plain
    nifti = _upright(np.rint(np.clip(image.array, 0, 1) * BRIGHTNESS_STEPS).astype(np.uint16), image)
    nifti.header.set_slope_inter(1 / BRIGHTNESS_STEPS, 0)
    return nifti


def on_grid(array: np.ndarray, image: MedicalImage) -> Any:
    """A uint8 map on the native grid as a nibabel NIfTI that lies exactly on `display_volume`."""
    return _upright(array, image) if image.affine is None else volume_to_nifti(array, image, "radglint map")


def around_marks(nifti: Any) -> Any:
    """The smallest part of a map that holds all its voxels above 0 and one more on every side; its affine tells where.

    Args:
        nifti: what `on_grid` made.

    Returns:
        A nibabel NIfTI; the first voxel alone where all are 0.
    """
    import nibabel as nib

    values = np.asarray(nifti.dataobj)
    bounds = [slice(0, 1)] * values.ndim
    for axis in reversed(range(values.ndim)):  # each axis looks only at what the ones before it left
        part = values[(slice(None),) * (axis + 1) + tuple(bounds[axis + 1 :])]
        used = np.flatnonzero(part.any(axis=tuple(a for a in range(values.ndim) if a != axis)))
        if used.size:
            bounds[axis] = slice(max(0, int(used[0]) - 1), int(used[-1]) + 2)
    affine = nifti.header.get_best_affine()
    affine[:3, 3] = apply_affine(affine, np.array([bound.start for bound in bounds], dtype=np.float64))
    part = nib.Nifti1Image(values[tuple(bounds)], affine)
    part.header.set_xyzt_units("mm")
    return part


def display_file(folder: Path, name: str) -> Path:
    """Where a study's image for display lies; packed or unpacked now, if only the other one is there.

    Args:
        folder: of the study.
        name: `VOLUME` or `PACKED`.

    Returns:
        The path; there is no file as long as the study is not read.

    Raises:
        OutputError: no space, for example.
    """
    path, other = folder / name, folder / (PACKED if name == VOLUME else VOLUME)
    if not path.is_file() and other.is_file():
        with whole_file(path) as sink:
            if name == VOLUME:
                with gzip.open(other) as source:
                    shutil.copyfileobj(source, sink, COPY_BYTES)
            else:
                with other.open("rb") as source, gzip.GzipFile("", "wb", FAST, sink, mtime=0) as packed:
                    shutil.copyfileobj(source, packed, COPY_BYTES)
    return path


def label_map(findings: Findings) -> np.ndarray:
    """Masks of several findings in one uint8 array: finding k has the value k + 1; the smaller one wins an overlap."""
    labels = np.zeros(findings.image.shape, dtype=np.uint8)
    masks = [(k, finding.mask()) for k, finding in enumerate(findings) if finding.is_marked]
    for k, mask in sorted(masks, key=lambda item: -int(item[1].sum())):
        labels[mask] = k + 1
    return labels


def _upright(array: np.ndarray, image: MedicalImage) -> Any:
    """A `height width` array as a NIfTI of one slice."""
    import nibabel as nib

    row_mm, column_mm = image.spacing_mm or (1.0, 1.0)
    height, width = array.shape
    affine = np.array([[-column_mm, 0, 0, 0], [0, 0, -1.0, 0], [0, -row_mm, 0, 0], [0, 0, 0, 1]])
    affine[[0, 2], 3] = column_mm * (width - 1) / 2, row_mm * (height - 1) / 2
    nifti = nib.Nifti1Image(array.T[:, :, None], affine)
    nifti.header.set_xyzt_units("mm")
    return nifti
