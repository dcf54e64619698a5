"""A radiograph that findings are drawn on, with the few drawing tools they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from radglint.simulation.anatomy_cxr import LungFields, Point


@dataclass
class Canvas:
    """An image under change, its anatomy and the masks drawn so far.

    Attributes:
        image: Gray values (H, W) in [0, 1], bright = dense; changed in place.
        lungs: Anatomy of the image, moved along by `warp`.
        masks: Masks drawn so far (H, W), moved along by `warp`.
        tissue: Gray value of soft tissue as thick as the heart.
        air: Gray value of well aerated lung.
    """

    image: np.ndarray
    lungs: LungFields
    masks: list[np.ndarray] = field(default_factory=list)
    tissue: float = field(init=False)
    air: float = field(init=False)

    def __post_init__(self) -> None:
        """Measure the gray values of soft tissue and of lung."""
        heart = self.image[self.lungs.heart]
        lung = self.image[self.lungs.both]
        self.air = float(np.percentile(lung, 10))
        self.tissue = float(max(np.median(heart) if heart.size else 0.0, np.percentile(lung, 90), self.air + 0.15))

    def add(self, alpha: np.ndarray, *, target: float | None = None, where: tuple[slice, slice] | None = None) -> None:
        """Add attenuation: move gray values towards dense tissue, so that what lies behind shows through.

        Args:
            alpha: Share of the way to the target, in [0, 1], of the shape of `where`.
            target: Gray value that full attenuation reaches; soft tissue by default.
            where: Window of the image; all of it by default.
        """
        view = self.image[where] if where else self.image
        goal = self.tissue if target is None else target
        view += alpha * np.maximum(goal - view, 0.15 * (1 - view))

    def warp(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Move the image, the anatomy and the masks so that output (r, c) shows input (rows, columns).

        Args:
            rows: Input row of each output pixel (H, W).
            columns: Input column of each output pixel (H, W).
        """
        self.image[...] = ndimage.map_coordinates(self.image, (rows, columns), order=1, mode="nearest")
        height, width = rows.shape
        near = np.rint(rows).astype(int).clip(0, height - 1), np.rint(columns).astype(int).clip(0, width - 1)
        lungs = self.lungs
        self.lungs = LungFields(left=lungs.left[near], right=lungs.right[near], heart=lungs.heart[near])
        self.masks = [mask[near] for mask in self.masks]


def smooth_noise(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """Make smooth random values with blobs of about `scale_px`.

    Args:
        shape: Height and width.
        scale_px: Distance between independent values.
        rng: Source of randomness.

    Returns:
        Values (H, W) of mean about 0 and standard deviation about 1.
    """
    coarse = [max(3, round(length / scale_px) + 2) for length in shape]
    noise = resize(rng.standard_normal(coarse).astype(np.float32), shape)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def resize(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample (H, W) by cubic interpolation."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def soft(mask: np.ndarray, blur_px: float) -> np.ndarray:
    """Blur a mask to [0, 1] with edges about `blur_px` wide; wide blurs are made on a coarse grid."""
    step = max(1, int(blur_px // 2))
    if step == 1:
        return ndimage.gaussian_filter(mask.astype(np.float32), blur_px)
    shape = [-(-length // step) for length in mask.shape]
    small = Image.fromarray(mask.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return resize(ndimage.gaussian_filter(np.asarray(small), blur_px / step), mask.shape).clip(0, 1)


def grow(mask: np.ndarray, by_px: int) -> np.ndarray:
    """Dilate a mask."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=by_px))


def shrink(mask: np.ndarray, by_px: int) -> np.ndarray:
    """Erode a mask."""
    return np.asarray(ndimage.binary_erosion(mask, iterations=by_px))


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Squash to (0, 1) without overflow."""
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def curve(control: Sequence[Point], *, count: int = 60) -> np.ndarray:
    """Sample a smooth curve through points.

    Args:
        control: Points (row, column), at least two.
        count: How many samples.

    Returns:
        Points (count, 2) as (row, column).
    """
    points = np.asarray(control, float)
    ends = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    place = np.linspace(0, len(points) - 1 - 1e-9, count)
    step, part = place.astype(int), (place % 1)[:, None]
    before, start, stop, after = (ends[step + k] for k in range(4))
    return 0.5 * (
        2 * start
        + (stop - before) * part
        + (2 * before - 5 * start + 4 * stop - after) * part**2
        + (3 * start - before - 3 * stop + after) * part**3
    )


def stroke(shape: tuple[int, int], points: np.ndarray, width_px: float) -> np.ndarray:
    """Draw an anti-aliased line.

    Args:
        shape: Height and width.
        points: Points (n, 2) as (row, column).
        width_px: Line width.

    Returns:
        Coverage (H, W) in [0, 1].
    """
    picture = Image.new("L", (2 * shape[1], 2 * shape[0]))
    path = [(2 * float(column) + 0.5, 2 * float(row) + 0.5) for row, column in points]
    ImageDraw.Draw(picture).line(path, fill=255, width=max(1, round(2 * width_px)), joint="curve")
    small = picture.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def window(centre: Point, half_px: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the part of the image within `half_px` of a point, cut at the border, and never empty."""
    rows, columns = (
        slice(max(0, min(length - 1, int(middle - half_px))), max(1, min(length, int(middle + half_px) + 2)))
        for middle, length in zip(centre, shape, strict=False)
    )
    return rows, columns


def polar(centre: Point, where: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return distance and angle from a point for each pixel of a window."""
    rows, columns = np.mgrid[where].astype(np.float32)
    return np.hypot(rows - centre[0], columns - centre[1]), np.arctan2(rows - centre[0], columns - centre[1])


def pick_point(mask: np.ndarray, rng: np.random.Generator) -> Point:
    """Choose a pixel of a mask.

    Raises:
        ValueError: If the mask is empty.
    """
    places = np.flatnonzero(mask)
    if places.size == 0:
        raise ValueError("mask: expected at least one pixel to place a finding; got none")
    row, column = np.unravel_index(places[int(rng.integers(places.size))], mask.shape)
    return float(row), float(column)
