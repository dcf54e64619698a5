"""From a decoded CT to a base of the simulator: canonical axial grid, and slices with real disease left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from radglint.errors import GeometryError
from radglint.geometry import grid_gap_mm
from radglint.image import MedicalImage
from radglint.simulation.ct import CtBase, make_base

_SAME_GRID_MM = 0.1


def base_from_image(
    image: MedicalImage,
    *,
    diseased_z_mm: Sequence[tuple[float, float]] = (),
    margin_mm: float = 10.0,
    step_mm: float = 2.5,
    shape_px: tuple[int, int] = (308, 392),
) -> CtBase:
    """Resample a CT to the canonical axial grid (1.0 mm pixels) and prepare it for the simulator.

    Args:
        image: a CT whose axes are near the body's axes (within about 20 degrees).
        diseased_z_mm: ranges of RAS+ z, in mm, that show real disease; slabs never touch them.
        margin_mm: added on both ends of each range.
        step_mm: slice step of the grid.
        shape_px: rows and columns; the volume's centre comes to the grid's centre, outside is air.

    Raises:
        GeometryError: the axes are too oblique, or the image has no affine.
        ImageError: no lungs were found.
    """
    volume, lowest_z_mm = canonical_volume(image, step_mm=step_mm, shape_px=shape_px)
    z_mm = lowest_z_mm + step_mm * np.arange(len(volume))
    excluded = np.zeros(len(volume), bool)
    for low, high in diseased_z_mm:
        excluded |= (z_mm >= min(low, high) - margin_mm) & (z_mm <= max(low, high) + margin_mm)
    return make_base(volume, (step_mm, 1.0, 1.0), excluded=excluded, name=image.path)


def canonical_volume(
    image: MedicalImage, *, step_mm: float = 2.5, shape_px: tuple[int, int] = (308, 392)
) -> tuple[np.ndarray, float]:
    """Resample a CT to slices feet to head, rows front to back, columns patient right to left, 1.0 mm pixels.

    Args:
        image: the CT.
        step_mm: slice step.
        shape_px: rows and columns.

    Returns:
        float32 HU `slices height width`, and the RAS+ z in mm of slice 0.

    Raises:
        GeometryError: the image has no affine, or its axes are more than about 20 degrees off the body's.
    """
    volume, spacing = to_canonical_axes(image)
    count = int((volume.shape[0] - 1) * spacing[0] / step_mm) + 1
    scale = np.array([step_mm, 1.0, 1.0]) / spacing
    centre = [(n - 1) / 2 - (m - 1) / 2 * s for n, m, s in zip(volume.shape[1:], shape_px, scale[1:], strict=True)]
    grid = ndimage.affine_transform(
        volume,
        scale,
        [0, *centre],  # type: ignore[arg-type]
        (count, *shape_px),
        np.float32,
        order=1,
        mode="constant",
        cval=-1024,
    )
    corners = np.array([[d, h, w, 1] for d in (0, 1) for h in (0, 1) for w in (0, 1)], float)
    corners[:, :3] *= np.array(image.shape) - 1
    heights = (corners @ np.asarray(image.affine).T)[:, 2]
    return grid, float(heights.min())


def to_canonical_axes(image: MedicalImage) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip a CT's axes to Superior, Posterior, Left, without resampling.

    Args:
        image: a CT whose axes are within about 20 degrees of the body's.

    Returns:
        The array (a view) with axes slices, rows, columns, and the spacing in mm of each.

    Raises:
        GeometryError: the image has no affine or is too oblique.
    """
    order, is_flipped = _axes(image)
    flips = tuple(slice(None, None, -1 if flipped else 1) for flipped in is_flipped)
    lengths = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
    return image.array.transpose(order)[flips], lengths[order]


def is_same_grid(image: MedicalImage, other: MedicalImage) -> bool:
    """Whether two CT have the same voxels in space (corners to 0.1 mm), in whatever order each stores its axes.

    Raises:
        GeometryError: one has no affine or is too oblique.
    """
    (one_shape, one), (two_shape, two) = (_canonical_grid(i) for i in (image, other))
    return one_shape == two_shape and grid_gap_mm(one, two, one_shape) < _SAME_GRID_MM


def _canonical_grid(image: MedicalImage) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a CT after `to_canonical_axes`."""
    order, is_flipped = _axes(image)
    affine = np.asarray(image.affine)[:, [*order, 3]].copy()
    shape = tuple(image.shape[axis] for axis in order)
    for axis in np.flatnonzero(is_flipped):
        affine[:, 3] += affine[:, axis] * (shape[axis] - 1)
        affine[:, axis] *= -1
    return shape, affine


def _axes(image: MedicalImage) -> tuple[np.ndarray, np.ndarray]:
    """Which array axis runs along slices, rows and columns, and whether it runs the other way."""
    if image.affine is None:
        raise GeometryError(f"{image.path}: a CT needs an affine to be put on the axial grid")
    columns = image.affine[:3, :3]
    directions = columns / np.linalg.norm(columns, axis=0)
    cosines = np.array([[0, 0, 1.0], [0, -1.0, 0], [-1.0, 0, 0]]) @ directions
    order = np.abs(cosines).argmax(axis=1)
    if len(set(order.tolist())) != 3 or np.abs(cosines).max(axis=1).min() < 0.94:
        raise GeometryError(f"{image.path}: the slices are too oblique for an axial grid (more than 20 degrees)")
    return order, cosines[np.arange(3), order] < 0
