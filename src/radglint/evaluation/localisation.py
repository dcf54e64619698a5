"""Does a map point at the finding: pointing game, contrast to noise, thresholded overlap, on the image's own grid.

Maps have any scale unless said otherwise and may hold NaN where the model saw nothing (see `radglint.evaluation`);
masks are bool of the same shape; boxes are half-open, (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1). Works in 2D and 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.ndimage import correlate1d

from radglint.errors import ConfigError, InputError
from radglint.evaluation.inputs import as_flags, ratio

Ties = Literal["first", "expected", "any"]
Empty = Literal["one", "skip"]
Box = Sequence[int]
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
SMOOTH_SIGMA_PX, SMOOTH_KERNEL_PX = 1.5, 13
PIECE_VOXELS = 1 << 17  # fits the caches


def as_map(values: Any) -> np.ndarray:
    """A map in its own float type; NaN allowed, infinities and a map of NaN alone are not.

    Raises:
        InputError: not 2D or 3D, empty, infinite, nothing seen.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or not array.size:
        raise InputError(f"map: expected numbers of shape (h, w) or (d, h, w), got {array.dtype} {array.shape}")
    if array.dtype.kind != "f" or array.dtype == np.float16:
        array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    low, high = array.min(), array.max()
    if np.isinf(low) or np.isinf(high) or (np.isnan(high) and np.isinf(array).any()):
        raise InputError("map: holds infinite values; expected finite ones, or NaN where the model saw nothing")
    if np.isnan(high) and np.isnan(array).all():
        raise InputError("map: is NaN everywhere; leave a case without an answer out and count it")
    return array


def box_mask(boxes: Sequence[Box], shape: tuple[int, ...]) -> np.ndarray:
    """Bool mask of some half-open boxes together.

    Args:
        boxes: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1).
        shape: of the image.

    Raises:
        InputError: another length, empty, or outside the image.
    """
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[_slices(box, shape)] = True
    return mask


def pointing_hit(values: Any, boxes: Sequence[Box] | np.ndarray, ties: Ties = "first") -> float:
    """Does the highest voxel lie in any of the boxes, or in the mask?

    Args:
        values: map.
        boxes: half-open boxes, or a bool mask; not empty.
        ties: of several highest voxels, first = the first in C order counts (RadZero's code takes one argmax);
            expected = the share of them that hits, which is what a random choice scores; any = one hit is enough (the
            code of the mIoU sweep), which a constant map always gets.

    Returns:
        1 or 0; a share for "expected".

    Naive form: the voxels with v == max v; the first, the mean, or any of "inside a box".

    Source: grounding_utils.py of deepnoid-ai/RadZero, which was read: its boxes include their last row and column, ours
    do not, so that a data set's inclusive corners must be converted by its adapter.
    """
    values = as_map(values)
    first = int(np.argmax(values))
    first = int(np.nanargmax(values)) if np.isnan(values.flat[first]) else first
    places = np.array([first]) if ties == "first" else np.flatnonzero(values == values.flat[first])
    hit = _inside(places, boxes, values.shape)
    if ties == "any":
        return float(hit.any())
    if ties not in ("first", "expected"):
        raise ConfigError(f"ties: expected first, expected or any, got {ties!r}")
    return float(hit.mean())


class Contrast(NamedTuple):
    """Contrast to noise ratio, with its sign and without (BioViL's form)."""

    signed: float
    absolute: float


def cnr(values: Any, mask: Any) -> Contrast:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), over the voxels that were seen.

    Args:
        values: map.
        mask: bool.

    Returns:
        NaN where one side is empty or both are constant. Variances are those of the voxels at hand (divided by n); the
        code of generate_to_ground divides by n - 1, which changes the ratio by 0.005 % in a region of 10,000
        voxels.

    Naive form: as above, with numpy's mean and var in float64.
    """
    values = as_map(values)
    mask = as_flags("mask", mask, values.shape)
    (mean_in, var_in), (mean_out, var_out) = _moments(values[mask]), _moments(values[~mask])
    signed = float(ratio(mean_in - mean_out, np.sqrt(var_in + var_out)))
    return Contrast(signed, abs(signed))


def overlap_counts(marked: Any, mask: Any) -> tuple[int, int, int]:
    """Voxels in both, voxels marked, voxels of the truth: all that Dice, IoU and sensitivity need."""
    marked = as_flags("marked", marked)
    mask = as_flags("mask", mask, marked.shape)
    return int(np.count_nonzero(marked & mask)), int(np.count_nonzero(marked)), int(np.count_nonzero(mask))


def dice_of(both: Any, marked: Any, truth: Any, empty: Empty = "one") -> Any:
    """2 both / (marked + truth); numbers or arrays.

    Args:
        both: voxels in both.
        marked: voxels marked.
        truth: voxels of the truth.
        empty: where nothing is marked and nothing true: one = 1, skip = NaN.
    """
    return ratio(2 * np.asarray(both), np.asarray(marked) + truth, _empty_value(empty))


def iou_of(both: Any, marked: Any, truth: Any, empty: Empty = "one") -> Any:
    """Both / union; arguments as `dice_of`."""
    return ratio(both, np.asarray(marked) + truth - both, _empty_value(empty))


def dice(marked: Any, mask: Any, empty: Empty = "one") -> float:
    """Dice of two masks. Naive form: 2 |a and b| / (|a| + |b|)."""
    return float(dice_of(*overlap_counts(marked, mask), empty))


def iou(marked: Any, mask: Any, empty: Empty = "one") -> float:
    """Intersection over union of two masks. Naive form: |a and b| / |a or b|."""
    return float(iou_of(*overlap_counts(marked, mask), empty))


def voxel_sensitivity(marked: Any, mask: Any) -> float:
    """Share of the truth that is marked; NaN without any. Naive form: |a and b| / |b|."""
    both, _, truth = overlap_counts(marked, mask)
    return float(ratio(both, truth))


class Sweep(NamedTuple):
    """Overlap at each threshold: arrays of the length of `thresholds`."""

    thresholds: np.ndarray
    iou: np.ndarray
    dice: np.ndarray

    @property
    def mean_iou(self) -> float:
        """Mean over thresholds: the "mIoU" of the sweep."""
        return float(self.iou.mean())

    @property
    def mean_dice(self) -> float:
        """Mean over thresholds."""
        return float(self.dice.mean())


def sweep(
    values: Any, mask: Any, thresholds: Sequence[float] = THRESHOLDS, smooth_sigma: float | None = SMOOTH_SIGMA_PX,
    kernel: int = SMOOTH_KERNEL_PX, rescale: bool = True, empty: Empty = "one",
) -> Sweep:  # fmt: skip
    """Overlap of "v >= t" with the truth at some thresholds, smoothed first.

    Args:
        values: map.
        mask: bool.
        thresholds: after rescaling.
        smooth_sigma: of the Gaussian, in voxels of this map; None = not smoothed.
        kernel: its width, odd.
        rescale: True = lowest to -1 and highest to 1 in each image, as published, which makes a map of an absent
            finding look sure (a constant map is 0 everywhere then); False = as it is.
        empty: see `dice_of`.

    Source: evaluate_zero_shot_seg.py of a project that imports `cxrseg`, which was read: torchvision's GaussianBlur of
    kernel 13 and sigma 1.5 with mirrored borders on the patch map, then bilinear enlargement, then min-max, then
    "v >= t". For its exact numbers smooth the patch map with `smooth`, enlarge, and pass smooth_sigma=None; on an
    enlarged map the default smooths far less.

    Naive form: smooth, 2 (v - min) / (max - min) - 1, then Dice and IoU of v >= t for each t.
    """
    values = as_map(values)
    mask = as_flags("mask", mask, values.shape)
    values = values if smooth_sigma is None else smooth(values, smooth_sigma, kernel)
    levels = np.asarray(thresholds, np.float64)
    if not rescale:
        marked, both = _counts_at(values, mask, levels)
    else:
        low, high = (float(f.reduce(values, axis=None)) for f in (np.fmin, np.fmax))
        if low == high:
            values = np.where(np.isnan(values), values, 0)
            low, high = -1.0, 1.0
        marked, both = _counts_at(values, mask, low + (levels + 1) / 2 * (high - low))
    truth = np.count_nonzero(mask)
    return Sweep(levels, iou_of(both, marked, truth, empty), dice_of(both, marked, truth, empty))


def smooth(values: Any, sigma: float = SMOOTH_SIGMA_PX, kernel: int = SMOOTH_KERNEL_PX) -> np.ndarray:
    """Gaussian over every axis but depth, borders mirrored without repeating the edge (torchvision's "reflect").

    Unseen voxels have no part in the mean of their neighbours and stay NaN. Sums are made in float64.

    Args:
        values: map, `h w` or `d h w`.
        sigma: voxels.
        kernel: odd width, voxels.

    Naive form: for each voxel the weighted mean of its neighbours, weights exp(-k^2 / (2 sigma^2)) in rows and columns.
    """
    if kernel < 1 or kernel % 2 == 0 or sigma <= 0:
        raise ConfigError(f"smoothing: kernel {kernel}, sigma {sigma}; expected an odd kernel and a sigma above 0")
    values = as_map(values)
    taps = np.exp(-0.5 * (np.arange(-(kernel // 2), kernel // 2 + 1) / sigma) ** 2)
    taps /= taps.sum()
    unseen = np.isnan(values)
    if not unseen.any():
        return _blur(values, taps)
    spread = ratio(_blur(np.where(unseen, 0, values), taps), _blur((~unseen).astype(values.dtype), taps))
    return np.where(unseen, np.nan, spread).astype(values.dtype)


def _blur(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    for axis in (values.ndim - 2, values.ndim - 1):
        values = correlate1d(values, taps, axis=axis, mode="mirror")
    return values


def _counts_at(values: np.ndarray, mask: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels marked, and of them those in the truth, at each level."""
    inside = values[mask]
    levels = smallest_not_below(levels, values.dtype)
    return (np.array([np.count_nonzero(values >= level) for level in levels]),
            np.array([np.count_nonzero(inside >= level) for level in levels]))  # fmt: skip


def smallest_not_below(levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Levels in a map's own type: "v >= level" is then decided as in float64, without a float64 copy of the map."""
    cast = levels.astype(dtype)
    return np.where(cast.astype(np.float64) < levels, np.nextafter(cast, np.array(np.inf, dtype)), cast).astype(dtype)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and variance of what was seen, in float64, in pieces that fit the caches; NaN of nothing."""
    values = values[~np.isnan(values)] if len(values) and np.isnan(values.min()) else values
    if not len(values):
        return float("nan"), float("nan")
    mean, square = float(values.mean(dtype=np.float64)), 0.0
    for start in range(0, len(values), PIECE_VOXELS):
        away = values[start : start + PIECE_VOXELS] - np.float64(mean)
        square += float(away @ away)
    return mean, square / len(values)


def _inside(places: np.ndarray, boxes: Sequence[Box] | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(boxes, np.ndarray) and boxes.dtype == bool:
        if boxes.shape != shape or not boxes.any():
            raise InputError(f"mask: expected some True and shape {shape}, got {boxes.shape} with {boxes.sum()} True")
        return boxes.ravel()[places]
    if not len(boxes):
        raise InputError("boxes: expected one or more; pointing is not defined where nothing is marked")
    indices = np.unravel_index(places, shape)
    hit = np.zeros(len(places), bool)
    for box in boxes:
        parts = _slices(box, shape)
        hit |= np.all([(i >= p.start) & (i < p.stop) for i, p in zip(indices, parts, strict=True)], axis=0)
    return hit


def _slices(box: Box, shape: tuple[int, ...]) -> tuple[slice, ...]:
    n = len(shape)
    corners = [int(v) for v in box]
    low, high = corners[:n], corners[n:]
    if len(corners) != 2 * n or not all(0 <= a < b <= s for a, b, s in zip(low, high, shape, strict=False)):
        raise InputError(f"box {tuple(box)}: expected {2 * n} numbers, lower corner first, not empty, in {shape}; "
                         "are x and y, or corner and size, in the right order?")  # fmt: skip
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _empty_value(empty: Empty) -> float:
    if empty not in ("one", "skip"):
        raise ConfigError(f"empty: expected one or skip, got {empty!r}")
    return 1.0 if empty == "one" else float("nan")
