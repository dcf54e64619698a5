"""Procedural scans for self-supervised training: regions of woven patterns under strong noise.

What a patch shows is mostly its own noise; the pattern is what it shares with its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

PERIOD_PX = 8
WAVES = ((1, 0), (0, 1), (1, 1))
"""Cycles down and across in one period, of each kind: lying, standing, slanting stripes."""
NOISE = 2.0
"""Standard deviation of the noise, in amplitudes of the stripes."""


def textured(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scan of two regions with a straight border.

    Returns:
        Values about 0.5, of the given shape (`[depth] height width`), and the kind at every place, `height width`.
    """
    height, width = shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    angle = rng.uniform(0, np.pi)
    away = np.cos(angle) * (rows / height - 0.5) + np.sin(angle) * (columns / width - 0.5)
    first, second = rng.choice(len(WAVES), size=2, replace=False)
    kinds = np.where(away > rng.uniform(-0.15, 0.15), first, second)
    turns = (
        np.take([down for down, _ in WAVES], kinds) * rows + np.take([across for _, across in WAVES], kinds) * columns
    )
    stripes = np.sin(2 * np.pi * (turns / PERIOD_PX + rng.uniform()))
    noisy = 0.5 + 0.08 * (stripes + NOISE * rng.normal(size=shape))
    return np.clip(noisy, 0, 1).astype(np.float32), kinds


def write_pictures(folder: Path, count: int, side: int, seed: int = 0) -> Path:
    """Square PNG files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        grey = np.round(textured((side, side), rng)[0] * 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{k:03d}.png")
    return folder


def write_volumes(folder: Path, count: int, shape: tuple[int, int, int], seed: int = 0) -> Path:
    """NIfTI files in HU, 1 mm voxels, `depth height width` as given; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        hu = (textured(shape, rng)[0] * 1400 - 1000).transpose(2, 1, 0)
        nibabel.Nifti1Image(hu, np.eye(4)).to_filename(folder / f"{k:03d}.nii.gz")
    return folder


def patch_kinds(kinds: np.ndarray, patch_px: int) -> np.ndarray:
    """Kind of every patch, `patches`; -1 where the border of the regions runs through it."""
    height, width = kinds.shape
    cells = kinds.reshape(height // patch_px, patch_px, width // patch_px, patch_px).swapaxes(1, 2)
    cells = cells.reshape(-1, patch_px**2)
    return np.where((cells == cells[:, :1]).all(axis=1), cells[:, 0], -1)
