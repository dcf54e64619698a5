"""Distances between the surfaces of two masks, in millimetres: HD95 and the normalised surface Dice.

The surface of a mask is its voxels that touch the background through a face (the border of the image counts as
background), at their centres. Definitions differ between tools by up to a voxel; ours are those of MONAI's
`compute_hausdorff_distance(percentile=95)` and `compute_surface_dice(use_subvoxels=False)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from radglint.errors import InputError
from radglint.evaluation.inputs import as_flags, ratio


class SurfaceDistances(NamedTuple):
    """Millimetres from each surface voxel of one mask to the nearest of the other."""

    marked_to_truth: np.ndarray
    truth_to_marked: np.ndarray


def surface_distances(marked: Any, mask: Any, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances both ways; infinite where the other mask is empty, an empty array where its own is.

    Args:
        marked: bool, 2D or 3D.
        mask: bool, the truth.
        spacing_mm: along each axis of the arrays.

    Raises:
        InputError: shapes or spacing that do not fit.

    Naive form: for each surface voxel the smallest distance to all surface voxels of the other mask.
    """
    marked = as_flags("marked", marked)
    mask = as_flags("mask", mask, marked.shape)
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (marked.ndim,) or not (spacing > 0).all() or not np.isfinite(spacing).all():
        raise InputError(f"spacing_mm: expected {marked.ndim} numbers above 0, one for each axis, got {spacing_mm}")
    box = bounding_slices(marked | mask)
    edge, true_edge = _surface(marked[box]), _surface(mask[box])
    return SurfaceDistances(_distances(edge, true_edge, spacing), _distances(true_edge, edge, spacing))


def hd95_mm(marked: Any, mask: Any, spacing_mm: Sequence[float], percentile: float = 95) -> float:
    """The larger of both directions' 95th percentiles; 0 if both masks are empty, infinite if one is.

    An infinite value has no place in a mean: say with it how often it happened.

    Args:
        marked: bool.
        mask: bool, the truth.
        spacing_mm: along each axis.
        percentile: 100 = the Hausdorff distance itself.
    """
    found = [d for d in surface_distances(marked, mask, spacing_mm) if len(d)]
    if any(np.isinf(d).any() for d in found):
        return float("inf")
    return max((float(np.percentile(d, percentile)) for d in found), default=0.0)


def surface_dice(marked: Any, mask: Any, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Share of both surfaces within a tolerance of the other (NSD); 1 if both masks are empty, 0 if one is.

    Args:
        marked: bool.
        mask: bool, the truth.
        spacing_mm: along each axis.
        tolerance_mm: at most this far counts as on the surface.

    Naive form: (|a within| + |b within|) / (|a| + |b|) over surface voxels.
    """
    distances = np.concatenate(surface_distances(marked, mask, spacing_mm))
    return float(ratio((distances <= tolerance_mm).sum(), len(distances), 1.0))


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~np.asarray(binary_erosion(mask), dtype=bool)


def _distances(edge: np.ndarray, other: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    if not other.any():
        return np.full(np.count_nonzero(edge), np.inf)
    return np.asarray(distance_transform_edt(~other, sampling=spacing))[edge]


def bounding_slices(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around all True; distances between surfaces do not reach outside it."""
    found = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        found.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1))
    return tuple(found)
