"""Small real images, masks and manifests for tests, and a registry of two made-up data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from dicom_files import phantom_hu
from radglint.manifest import ManifestRow, write_manifest

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def radiograph(folder: Path, name: str, seed: int = 0, shape: tuple[int, int] = (40, 60)) -> Path:
    """A 16-bit PNG that looks like nothing, with its values over the whole range."""
    pixels = np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint16)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def volume(folder: Path, name: str, hu: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI of `depth height width` HU, by default the phantom of the DICOM tests."""
    hu = phantom_hu(24, 32, 40) if hu is None else hu
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine), path)
    return path


def png_mask(folder: Path, name: str, mask: np.ndarray) -> Path:
    """A mask of 0 and 255."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * mask).astype(np.uint8)).save(path)
    return path


def cxr_row(name: str, **values: Any) -> ManifestRow:
    """A row whose image is NAME.png."""
    return ManifestRow(**{"id": name, "image": f"{name}.png", "modality": "CXR", "report": "Clear lungs."} | values)


def cxr_manifest(folder: Path, *rows: ManifestRow, name: str = "m.jsonl") -> Path:
    """A manifest beside its images; an image that is not there is made, each of its own pixels."""
    for seed, row in enumerate(rows):
        if row.modality == "CXR" and not (folder / row.image).exists():
            radiograph(folder, row.image, seed)
    return write_manifest(folder / name, rows)
