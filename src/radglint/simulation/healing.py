"""A real lesion taken out of a CT: covered with lung from nearby, so that the volume can serve as a normal base."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

from radglint.simulation.ct_scene import Spacing

_MARGIN_MM, _FADE_MM = 4.0, 2.5
_OFFSETS_MM = range(-72, 73, 8)
_OFFSET_SLICES = (0, -2, 2, -4, 4)


def cover_lesions(volume_hu: np.ndarray, lesions: np.ndarray, lungs: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Cover each lesion with the nearest piece of lung of its own shape.

    Args:
        volume_hu: `slices height width`, HU; not changed.
        lesions: bool, the outlines.
        lungs: bool, both lungs as found with the lesions in.
        spacing_mm: slice, row and column step.

    Returns:
        The volume without them, float32. A lesion with no lung around it stays.
    """
    healed = np.array(volume_hu, np.float32)
    parts = np.zeros(lesions.shape, np.int32)
    count = int(ndimage.label(lesions, output=parts))  # pyright: ignore[reportArgumentType]
    away = np.asarray(ndimage.distance_transform_edt(~lesions, sampling=spacing_mm))
    usable = lungs & (away > _MARGIN_MM + _FADE_MM)
    for number in range(1, count + 1):
        outside = np.asarray(ndimage.distance_transform_edt(parts != number, sampling=spacing_mm))
        share = np.clip(1 - (outside - _MARGIN_MM) / _FADE_MM, 0, 1).astype(np.float32)
        places = np.argwhere(share > 0)
        source = _nearest_piece(places, usable, spacing_mm)
        if source is not None:
            here, there = tuple(places.T), tuple(source.T)
            healed[here] += share[here] * (volume_hu[there] - healed[here])
    return healed


def _nearest_piece(places: np.ndarray, usable: np.ndarray, spacing_mm: Spacing) -> np.ndarray | None:
    """Voxels of the same shape elsewhere, most of them lung; the nearest of the best."""
    best: tuple[float, float] = (0.6, 0.0)
    chosen = None
    for dz, dy, dx in itertools.product(_OFFSET_SLICES, _OFFSETS_MM, _OFFSETS_MM):
        step = np.array([dz, round(dy / spacing_mm[1]), round(dx / spacing_mm[2])])
        moved = places + step
        if (moved < 0).any() or (moved >= usable.shape).any():
            continue
        inside = round(float(usable[tuple(moved.T)].mean()), 2)
        rank = (inside, -float(np.linalg.norm(step * np.array(spacing_mm))))
        if rank > best:
            best, chosen = rank, moved
    return chosen
