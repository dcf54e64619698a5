"""Stored masks of a manifest: PNG, NIfTI, or row K of the array `masks` of an .npz file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radglint.errors import InputError

ARRAY = "masks"


@dataclass(frozen=True)
class StoredMasks:
    """What a mask file holds.

    Attributes:
        masks: bool, `masks height width` or `masks depth height width`; one for a PNG or NIfTI.
        affine: of a NIfTI, in the order of `depth height width`; None of others.
    """

    masks: np.ndarray
    affine: np.ndarray | None = None


def split_reference(reference: str) -> tuple[str, int]:
    """Path and number of a reference such as `masks/7.npz#2`; number 0 without one."""
    path, _, number = reference.partition("#")
    return path, int(number or 0)


def read_mask_file(path: Path) -> StoredMasks:
    """All masks of a file; every value above 0 belongs to a mask.

    Args:
        path: .png, .nii, .nii.gz or .npz.

    Raises:
        InputError: missing, damaged, of another kind, or without an array `masks` of the right axes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such mask file; restore it, or correct the manifest")
    name = path.name.lower()
    try:
        if name.endswith(".npz"):
            return StoredMasks(_npz(path))
        if name.endswith(".png"):
            return StoredMasks(_png(path)[None])
        if name.endswith((".nii", ".nii.gz")):
            return _nifti(path)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder raises on a damaged file
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: the mask cannot be read ({reason}); write it again") from error
    raise InputError(f"{path}: expected a mask .png, .nii, .nii.gz or .npz; convert it")


def _npz(path: Path) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file, or cut off; write it again")
    with np.load(path, allow_pickle=False) as arrays:
        if ARRAY not in arrays:
            raise InputError(f"{path}: expected an array {ARRAY!r}, got {', '.join(arrays.files)}; rename it")
        masks = arrays[ARRAY]
    if masks.ndim not in (3, 4):
        raise InputError(f"{path}: expected `masks [depth] height width`, got shape {masks.shape}; add the first axis")
    return masks > 0


def _png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as picture:
        values = np.asarray(picture.convert("RGB") if "A" in picture.mode else picture)
    return (values > 0).max(axis=-1) if values.ndim == 3 else values > 0


def _nifti(path: Path) -> StoredMasks:
    import nibabel

    nifti: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
    if len(nifti.shape) != 3:
        raise InputError(f"{path}: expected a mask of three axes, got shape {nifti.shape}; give one file a mask")
    mask = np.asanyarray(nifti.dataobj).transpose(2, 1, 0) > 0
    return StoredMasks(mask[None], np.asarray(nifti.affine)[:, [2, 1, 0, 3]])
