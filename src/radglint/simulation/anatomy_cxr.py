"""Lungs and heart of a frontal chest radiograph, from a vision backbone's patch features.

Only good enough to put simulated findings in the right place, and meant to say no where it is unsure:
`find_lungs` returns None rather than lungs that fail a check of size, symmetry or position.

Clustered over many radiographs, the features have one cluster that is lung (`fit_lung_tokens`). Its coarse
outline is then moved to the edges of the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

Point = tuple[float, float]

_WORK_PX = 128
_MIN_AREA_SHARE = 0.042
_MAX_AREA_SHARE = 0.24
_MIN_AREA_RATIO = 0.5
_SCORE_SCALE = 0.12
_SCORE_MARGIN = 0.03


@dataclass(frozen=True)
class LungFields:
    """Anatomy of one radiograph; left and right are the patient's, so the right lung is on the image's left.

    Attributes:
        left: Left lung, bool (H, W).
        right: Right lung, bool (H, W).
        heart: Heart, bool (H, W), approximate.
    """

    left: np.ndarray
    right: np.ndarray
    heart: np.ndarray

    @cached_property
    def both(self) -> np.ndarray:
        """Both lungs, bool (H, W)."""
        return self.left | self.right

    @cached_property
    def midline_px(self) -> float:
        """Column halfway between the inner borders of the lungs."""
        rows = np.flatnonzero(self.left.any(1) & self.right.any(1))
        inner = [(np.flatnonzero(self.right[r])[-1] + np.flatnonzero(self.left[r])[0]) / 2 for r in rows]
        return float(np.median(inner))

    def lung(self, side: str) -> np.ndarray:
        """Return the lung of a patient side.

        Args:
            side: "left" or "right".

        Returns:
            Bool mask (H, W).
        """
        return self.left if side == "left" else self.right

    def zone(self, side: str, zone: str) -> np.ndarray:
        """Return the upper, mid or lower third of a lung's height.

        Args:
            side: "left" or "right".
            zone: "upper", "mid" or "lower".

        Returns:
            Bool mask (H, W).
        """
        lung = self.lung(side)
        rows = np.flatnonzero(lung.any(1))
        third = ("upper", "mid", "lower").index(zone)
        edges = np.linspace(rows[0], rows[-1] + 1, 4).round().astype(int)
        band = np.zeros_like(lung)
        band[edges[third] : edges[third + 1]] = lung[edges[third] : edges[third + 1]]
        return band

    def apex(self, side: str) -> Point:
        """Return the highest point of a lung as (row, column)."""
        row = int(np.flatnonzero(self.lung(side).any(1))[0])
        return float(row), float(np.flatnonzero(self.lung(side)[row]).mean())

    def costophrenic_angle(self, side: str) -> Point:
        """Return the lowest outer corner of a lung as (row, column)."""
        rows, columns = np.nonzero(self.lung(side))
        outward = columns if side == "left" else -columns
        best = int(np.argmax(rows + 0.7 * outward))
        return float(rows[best]), float(columns[best])


@dataclass(frozen=True)
class LungTokens:
    """Which of the clusters of a vision backbone's features is lung.

    Attributes:
        centroids: Cluster centres of unit-length features, float32 (clusters, channels).
        index: The cluster that is lung.
    """

    centroids: np.ndarray
    index: int

    def score(self, features: np.ndarray) -> np.ndarray:
        """Score how much more a token is like lung than like the nearest other cluster.

        Args:
            features: Patch features (..., channels) of any length.

        Returns:
            Difference of cosine-like similarities (...), above 0 where the token is lung.
        """
        similarity = _unit(features) @ self.centroids.T - 0.5 * (self.centroids**2).sum(-1)
        others = np.delete(similarity, self.index, axis=-1)
        return similarity[..., self.index] - others.max(-1)


def fit_lung_tokens(features: np.ndarray, *, clusters: int = 8, seed: int = 3) -> LungTokens:
    """Cluster patch features of many radiographs and pick the cluster that lies where lungs lie.

    Args:
        features: Patch features (images, height, width, channels).
        clusters: How many clusters.
        seed: Seed of the clustering.

    Returns:
        The clusters, with the lung cluster marked.
    """
    tokens = _unit(features).reshape(-1, features.shape[-1])
    rng = np.random.default_rng(seed)
    sample = tokens[rng.choice(len(tokens), min(len(tokens), 20_000), replace=False)]
    centroids, _ = kmeans2(sample, clusters, minit="++", rng=rng, iter=25)
    nearest = (tokens @ centroids.T - 0.5 * (centroids**2).sum(-1)).argmax(-1).reshape(features.shape[:3])
    prior = _resize(np.maximum(_lung_prior("left"), _lung_prior("right")), features.shape[1:3]) - 0.5
    fit = [float(((nearest == k).mean(0) * prior).sum()) for k in range(clusters)]
    return LungTokens(centroids=centroids.astype(np.float32), index=int(np.argmax(fit)))


def find_lungs(image: np.ndarray, token_score: np.ndarray) -> LungFields | None:
    """Find the lungs and the heart of a frontal radiograph.

    Args:
        image: Gray values (H, W) in [0, 1], bright = dense, upright.
        token_score: Output of `LungTokens.score` for the whole image, (h, w).

    Returns:
        The fields, or None where the lungs found are too small, too unequal or in an unlikely place.
    """
    shape = (_WORK_PX, _WORK_PX)
    score = np.tanh((_resize(np.asarray(token_score, np.float32), shape) + _SCORE_MARGIN) / _SCORE_SCALE)
    lung = _refine(_resize(np.asarray(image, np.float32), shape), score)
    right, left = (_side_region(lung, _lung_prior(side)) for side in ("right", "left"))
    if not _plausible(left, right):
        return None
    left, right = (_resize(_smooth(mask).astype(np.float32), image.shape) > 0.5 for mask in (left, right))
    if (left & right).any():
        return None
    return LungFields(left=left, right=right, heart=heart_between(left, right))


def heart_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Estimate the heart as what lies between the lower halves of the lungs.

    Args:
        left: Left lung, bool (H, W).
        right: Right lung, bool (H, W).

    Returns:
        Bool mask (H, W).
    """
    heart = np.zeros_like(left)
    shared = np.flatnonzero(left.any(1) & right.any(1))
    if shared.size == 0:
        return heart
    height = int(shared[-1] - shared[0])
    starts = np.array([np.flatnonzero(right[row])[-1] + 1 for row in shared])
    stops = np.array([np.flatnonzero(left[row])[0] for row in shared])
    widest = int(0.72 * (len(shared) - 1))
    starts[widest:] = np.maximum(starts[widest:], starts[: widest + 1].min())
    stops[widest:] = np.minimum(stops[widest:], stops[: widest + 1].max() + height // 12)
    for row, start, stop in zip(shared, starts, stops, strict=True):
        if 0.48 * height <= row - shared[0] <= 0.93 * height:
            heart[row, start:stop] = True
    return np.asarray(ndimage.binary_opening(heart, iterations=max(1, left.shape[0] // 100)))


def _refine(image: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Move a coarse outline to the local edge between dark lung and brighter surroundings."""
    smooth = ndimage.gaussian_filter(image, 0.8)
    lung = score > 0
    near = np.asarray(ndimage.binary_dilation(lung, iterations=5), bool) & (score > -0.97)
    for _ in range(2):
        inside, outside = (_local_mean(smooth, part) for part in (lung & (score > -0.5), ~lung & near))
        contrast = np.clip((inside + outside - 2 * smooth) / (np.abs(outside - inside) + 0.06), -1.5, 1.5)
        evidence = score + 0.45 * contrast * (outside > inside)
        lung = (ndimage.gaussian_filter(evidence, 1.5) > 0) & near
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(lung, iterations=2)))


def _local_mean(image: np.ndarray, where: np.ndarray, sigma: float = 7.0) -> np.ndarray:
    """Average an image over the near pixels of a mask."""
    weight = ndimage.gaussian_filter(where.astype(np.float32), sigma) + 1e-6
    return ndimage.gaussian_filter(image * where, sigma) / weight


def _side_region(lung: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Keep the connected region that lies best on one side's prior."""
    labels, count = _label(np.asarray(ndimage.binary_opening(lung, iterations=2)))
    if count == 0:
        return np.zeros_like(lung)
    overlap = ndimage.sum_labels(prior, labels, np.arange(1, count + 1))
    return labels == 1 + int(np.argmax(overlap))


def _lung_prior(side: str) -> np.ndarray:
    """Return where a lung usually lies on the working grid, in [0, 1]."""
    rows, columns = np.mgrid[0:_WORK_PX, 0:_WORK_PX] / _WORK_PX
    centre = 0.28 if side == "right" else 0.72
    lean = (0.45 - rows) * (0.12 if side == "right" else -0.12)
    distance = np.abs((rows - 0.46) / 0.37) ** 2.4 + np.abs((columns - centre - lean) / 0.165) ** 2.4
    return 1 / (1 + np.exp(6 * (distance - 1)))


def _smooth(mask: np.ndarray) -> np.ndarray:
    """Round the outline of a mask and keep its largest part."""
    mask = ndimage.gaussian_filter(mask.astype(np.float32), 1.5) > 0.45
    labels, count = _label(mask)
    if count < 2:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _plausible(left: np.ndarray, right: np.ndarray) -> bool:
    """Check size, symmetry and position of a pair of lungs on the working grid."""
    areas = np.array([left.mean(), right.mean()])
    if areas.min() < _MIN_AREA_SHARE or areas.max() > _MAX_AREA_SHARE or areas.min() / areas.max() < _MIN_AREA_RATIO:
        return False
    (top_l, bottom_l), (top_r, bottom_r) = (np.flatnonzero(mask.any(1))[[0, -1]] / _WORK_PX for mask in (left, right))
    heights = (bottom_l - top_l, bottom_r - top_r)
    if min(heights) < 0.35 or abs(top_l - top_r) > 0.14 or abs(bottom_l - bottom_r) > 0.2:
        return False
    return np.nonzero(right)[1].mean() < 0.45 * _WORK_PX and np.nonzero(left)[1].mean() > 0.55 * _WORK_PX


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected parts of a mask from 1."""
    labels = np.zeros(mask.shape, np.int32)
    return labels, int(ndimage.label(mask, output=labels))  # pyright: ignore[reportArgumentType]


def _unit(features: np.ndarray) -> np.ndarray:
    """Scale features to unit length."""
    features = np.asarray(features, np.float32)
    return features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-8)


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample (H, W) by linear interpolation with pixel areas aligned."""
    zoom = [new / old for new, old in zip(shape, image.shape, strict=True)]
    blurred = ndimage.gaussian_filter(image, [max(0.0, 0.4 / z - 0.4) for z in zoom])
    rows, columns = ((np.arange(new) + 0.5) / z - 0.5 for new, z in zip(shape, zoom, strict=True))
    return ndimage.map_coordinates(blurred, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
