"""Outlines that readers drew around a finding, to masks; and the masks of several readers, to one.

The outline is a closed chain of pixel centres that lies just outside the finding, so its own pixels do not belong to
the finding. All arithmetic is in whole numbers: a pixel is inside, outside or on the line, never nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class BoxedMask:
    """A mask stored as the box that holds it.

    Attributes:
        origin: index of the box's first voxel in the volume, (depth, height, width).
        voxels: bool, `depth height width` of the box.
    """

    origin: tuple[int, int, int]
    voxels: np.ndarray

    @property
    def end(self) -> tuple[int, ...]:
        """One past the last index of the box, per axis."""
        return tuple(o + n for o, n in zip(self.origin, self.voxels.shape, strict=True))

    def add_to(self, volume: np.ndarray) -> None:
        """Count this mask into a volume of numbers: `volume[voxel] += 1` where the mask holds."""
        volume[tuple(slice(o, e) for o, e in zip(self.origin, self.end, strict=True))] += self.voxels

    def overlaps(self, other: BoxedMask) -> bool:
        """Whether the two masks share a voxel."""
        low = np.maximum(self.origin, other.origin)
        high = np.minimum(self.end, other.end)
        if (low >= high).any():
            return False
        own, its = (
            mask.voxels[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, mask.origin, strict=True))]
            for mask in (self, other)
        )
        return bool((own & its).any())


def enclosed_pixels(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies strictly inside a closed outline.

    Args:
        outline: int, n x 2, (row, column) of its corners in order; the last is joined to the first.
        shape: (height, width) of the slice.

    Returns:
        bool `height width`. Pixels on the outline are False; where the line winds around a pixel twice, it is inside;
        a line that goes and returns on itself encloses nothing. Parts beyond the slice are cut off.

    Naive form: for every pixel, add up the signed crossings of the outline with the ray to the right; inside where the
    sum is not zero and the pixel lies on none of the outline's segments.
    """
    mask = np.zeros(shape, dtype=bool)
    corners = np.asarray(outline, dtype=np.int64).reshape(-1, 2)
    if len(corners) < 3:
        return mask
    low = np.maximum(corners.min(axis=0), 0)
    high = np.minimum(corners.max(axis=0) + 1, shape)
    if (low >= high).any():
        return mask
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    inside = _winding(corners - low, size) != 0
    mask[low[0] : high[0], low[1] : high[1]] = inside & ~drawn_pixels(corners - low, size)
    return mask


def _winding(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How often the outline winds around each pixel: each segment counts for the pixels on its left, row by row."""
    winding = np.zeros(size, dtype=np.int64)
    columns = np.arange(size[1])[None, :]
    for (y0, x0), (y1, x1) in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True):
        first, last = max(min(y0, y1), 0), min(max(y0, y1), size[0])
        if first >= last:
            continue
        rows = np.arange(first, last)[:, None]
        side = (x1 - x0) * (rows - y0) - (columns - x0) * (y1 - y0)
        if y1 > y0:
            winding[first:last] += side > 0
        else:
            winding[first:last] -= side < 0
    return winding


def drawn_pixels(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies on the outline: its corners, and what lies exactly between two of them.

    Args:
        outline: int, n x 2, (row, column), closed.
        shape: (height, width) of the slice.

    Returns:
        bool `height width`.
    """
    mask = np.zeros(shape, dtype=bool)
    corners = np.asarray(outline, dtype=np.int64).reshape(-1, 2)
    steps = np.roll(corners, -1, axis=0) - corners
    parts = np.maximum(np.gcd(steps[:, 0], steps[:, 1]), 1)  # whole-numbered points on each segment
    place = np.concatenate([np.arange(n) for n in parts]) if len(parts) else np.zeros(0, dtype=np.int64)
    points = np.repeat(corners, parts, axis=0) + np.repeat(steps // parts[:, None], parts, axis=0) * place[:, None]
    points = points[((points >= 0) & (points < shape)).all(axis=1)]
    mask[points[:, 0], points[:, 1]] = True
    return mask


def boxed(slices: dict[int, np.ndarray]) -> BoxedMask | None:
    """Gather masks of single slices into one boxed mask.

    Args:
        slices: depth index to bool `height width`.

    Returns:
        The tightest box around all that is True; None if nothing is.
    """
    filled = {depth: plane for depth, plane in slices.items() if plane.any()}
    if not filled:
        return None
    where = np.concatenate([np.argwhere(plane) for plane in filled.values()])
    (y0, x0), (y1, x1) = where.min(axis=0), where.max(axis=0) + 1
    z0, z1 = min(filled), max(filled) + 1
    voxels = np.zeros((z1 - z0, y1 - y0, x1 - x0), dtype=bool)
    for depth, plane in filled.items():
        voxels[depth - z0] = plane[y0:y1, x0:x1]
    return BoxedMask((int(z0), int(y0), int(x0)), voxels)


def overlap_groups(masks: Sequence[BoxedMask]) -> list[list[int]]:
    """Indices of masks that belong together: linked by shared voxels, directly or through others.

    Returns:
        Groups in the order of their first member.
    """
    group = list(range(len(masks)))
    for i, mask in enumerate(masks):
        for j in range(i):
            if group[i] != group[j] and mask.overlaps(masks[j]):
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if g == old else g for g in group]
    return [[i for i, g in enumerate(group) if g == first] for first in sorted(set(group))]


def union(masks: Sequence[BoxedMask]) -> BoxedMask:
    """All voxels of at least one of the masks (of which there is at least one)."""
    return agreement(masks, 0.0)


def agreement(masks: Sequence[BoxedMask], share: float) -> BoxedMask:
    """Voxels that at least a share of the masks hold, and at least one of them.

    Args:
        masks: one for each reader who drew something, at least one.
        share: 0 to 1; 0.5 keeps a voxel of one reader out of two, and of two out of three or four.

    Returns:
        A mask in the box that holds all masks, not tightened; its voxels may all be False.

    Naive form: voxel in result <=> max(1, share * len(masks)) <= number of masks that hold it.
    """
    low = np.min([mask.origin for mask in masks], axis=0)
    high = np.max([mask.end for mask in masks], axis=0)
    count = np.zeros(tuple(int(n) for n in high - low), dtype=np.int32)
    for mask in masks:
        z, y, x = (int(o - a) for o, a in zip(mask.origin, low, strict=True))
        BoxedMask((z, y, x), mask.voxels).add_to(count)
    z, y, x = (int(n) for n in low)
    return BoxedMask((z, y, x), count >= max(1.0, share * len(masks)))


def longest_in_plane_mm(mask: BoxedMask, pixel_mm: tuple[float, float]) -> float:
    """Greatest extent of a mask within one slice, as a reader measures a nodule.

    Args:
        mask: at least one voxel True.
        pixel_mm: distance of neighbouring rows and of neighbouring columns.

    Returns:
        Distance between the centres of the two pixels of one slice that are farthest apart, plus one pixel (half of it
        on either end, the mean of the two spacings), in mm.

    Naive form: max over slices and over pairs p, q of pixels in it: norm((p - q) * pixel_mm) + mean(pixel_mm).
    """
    farthest = 0.0
    for plane in mask.voxels:
        points = np.argwhere(_row_ends(plane)) * np.asarray(pixel_mm)
        if len(points):
            gaps = points[:, None, :] - points[None, :, :]
            farthest = max(farthest, float(np.sqrt((gaps**2).sum(axis=2).max())))
    return farthest + float(np.mean(pixel_mm))


def _row_ends(plane: np.ndarray) -> np.ndarray:
    """The first and last True of each row: the two farthest pixels are among them."""
    ends = np.zeros_like(plane)
    rows = np.flatnonzero(plane.any(axis=1))
    ends[rows, plane[rows].argmax(axis=1)] = True
    ends[rows, plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)] = True
    return ends
