"""From a token map to places on the native image: probability map, mask, peak, boxes, area and volume.

Interpolation is a convex mix of the tokens around a voxel, so a voxel can only reach a level that one of those tokens
reaches. Masks and peaks are therefore computed only in blocks near tokens that do, and never need the whole map.

What is known of the voxels themselves (their density, see `density`) comes in as `lowering`: a function from a native
box to what is added to the logits there, never above 0, so that the same bound holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from radglint.errors import ImageError, InputError
from radglint.geometry import apply_affine, voxel_volume_ml
from radglint.image import MedicalImage
from radglint.preprocess import PreprocessRecord
from radglint.resample import Box

MAX_BOXES = 10
# Blocks of native voxels, by number of axes, that are computed or skipped as a whole.
BLOCK_VOX: dict[int, tuple[int, ...]] = {2: (128, 128), 3: (16, 64, 64)}
# Logits beyond this give the same probability in float32.
LOGIT_LIMIT = 80.0
# Slack on logits when tokens are ruled out, so that float32 rounding never drops a voxel.
LOGIT_SLACK = 1e-3
# Slack on token coordinates for the same reason; wider than the drift that counts as axis aligned.
COORDINATE_SLACK = 1e-2
# Highest tokens that are tried for a level that some voxel has for sure.
_TOKENS_TRIED = 256
# Voxels around a token's centre that are looked through for one that is not lowered much.
_AROUND_VOX = 8
Lowering = Callable[[Box], np.ndarray]


@dataclass(frozen=True)
class Peak:
    """The native voxel where a map is highest.

    Attributes:
        index: zero-based native index, one integer per axis, inside the image.
        world_mm: its position in RAS+ mm, or None in 2D.
        probability: the map's value there, in [0, 1].
    """

    index: tuple[int, ...]
    world_mm: tuple[float, float, float] | None
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; world coordinates to a micrometre."""
        world = None if self.world_mm is None else [round(v, 3) for v in self.world_mm]
        return {"index": list(self.index), "ras_mm": world, "probability": self.probability}


@dataclass(frozen=True)
class Measured:
    """What is kept of a mask: voxels in it, boxes of its pieces, and its volume (None in 2D)."""

    count: int
    boxes: list[tuple[int, ...]]
    volume_ml: float | None


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function in place, NaN kept; the same bits for the same logit wherever it stands."""
    np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT, out=logits)
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def probability_box(
    token_logits: np.ndarray, record: PreprocessRecord, box: Box, lowering: Lowering | None = None
) -> np.ndarray:
    """Probability in a native box: the logistic of the interpolated logits.

    Args:
        token_logits: calibrated logit per token, shape `record.grid_shape`.
        record: the image's preprocessing record.
        box: (start, stop) per native axis.
        lowering: see the module.

    Returns:
        float32 in [0, 1] of the box's shape, NaN where the model saw nothing.
    """
    return _sigmoid(_native_logits(token_logits, record, box, lowering))


def probability_map(token_logits: np.ndarray, record: PreprocessRecord, lowering: Lowering | None = None) -> np.ndarray:
    """`probability_box` of the whole image."""
    box = tuple((0, size) for size in record.native_shape)
    return probability_box(token_logits, record, box, lowering)


def _native_logits(
    token_logits: np.ndarray, record: PreprocessRecord, box: Box, lowering: Lowering | None
) -> np.ndarray:
    logits = record.upsample_box(token_logits, box)
    return logits if lowering is None else logits + lowering(box)


def _token_reach(record: PreprocessRecord, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All tokens that the voxels of native boxes are interpolated from: first and stop, each `boxes axes`."""
    linear = record.native_to_grid[:-1, :-1]
    ends = np.stack([starts, stops - 1], axis=-1).astype(np.float64)
    spans = linear[None, :, :, None] * ends[:, None]
    shift = record.native_to_grid[:-1, -1]
    limit = np.array(record.grid_shape) - 1
    low = np.clip(np.floor(spans.min(axis=3).sum(axis=2) + shift - COORDINATE_SLACK), 0, limit).astype(int)
    high = np.clip(np.floor(spans.max(axis=3).sum(axis=2) + shift + COORDINATE_SLACK) + 1, 0, limit).astype(int)
    return low, high + 1


def _hot_blocks(hot: np.ndarray, record: PreprocessRecord) -> Iterator[Box]:
    """Native blocks, not overlapping, that hold every voxel with a hot token around it."""
    sides = BLOCK_VOX[len(record.native_shape)]
    starts = np.array(list(product(*map(range, [0] * len(sides), record.native_shape, sides))))
    stops = np.minimum(starts + sides, record.native_shape)
    for start, stop, first, last in zip(starts, stops, *_token_reach(record, starts, stops), strict=True):
        if hot[tuple(map(slice, first, last))].any():
            yield tuple(zip(start.tolist(), stop.tolist(), strict=True))


def threshold_mask(
    token_logits: np.ndarray, record: PreprocessRecord, threshold: float, lowering: Lowering | None = None
) -> np.ndarray:
    """Where the probability reaches the threshold; equal to `probability_map(...) >= threshold` without that array.

    Args:
        token_logits: calibrated logit per token, shape `record.grid_shape`.
        record: the image's preprocessing record.
        threshold: probability in [0, 1].
        lowering: see the module.

    Returns:
        bool on the native grid; unseen voxels are False.

    Raises:
        InputError: the threshold is not in [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold: expected a probability from 0 to 1, got {threshold}")
    mask = np.zeros(record.native_shape, dtype=bool)
    # Beyond 1 - 6e-8 a float32 probability rounds to 1, so a higher level would rule out too much.
    level = min(threshold, 1 - 6e-8)
    least = np.log(level / (1 - level)) - LOGIT_SLACK if level > 0 else -np.inf
    logits = record.checked(token_logits)
    for box in _hot_blocks(logits >= least, record):
        place = tuple(slice(*ends) for ends in box)
        mask[place] = probability_box(logits, record, box, lowering) >= threshold
    return mask


def probability_bytes(
    token_logits: np.ndarray, record: PreprocessRecord, lowering: Lowering | None = None
) -> np.ndarray:
    """`probability_map` in steps of 1/255, computed only where it is not 0.

    Returns:
        uint8 on the native grid, 255 = 1.0; 0 also where the model saw nothing.
    """
    steps = np.zeros(record.native_shape, dtype=np.uint8)
    logits = record.checked(token_logits)
    least = np.log(0.5 / 254.5) - LOGIT_SLACK  # below, half a step is not reached
    for box in _hot_blocks(logits >= least, record):
        values = np.nan_to_num(probability_box(logits, record, box, lowering), nan=0.0)
        steps[tuple(slice(*ends) for ends in box)] = np.rint(values * 255)
    return steps


def _highest(logits: np.ndarray) -> np.ndarray:
    """Index of the highest tokens, `tokens axes`; of the thousands of a CT a few are enough for a bound."""
    count = min(_TOKENS_TRIED, logits.size)
    flat = np.argpartition(logits, logits.size - count, axis=None)[logits.size - count :]
    return np.stack(np.unravel_index(flat, logits.shape), axis=1)


def _seen_at(tokens: np.ndarray, record: PreprocessRecord) -> np.ndarray:
    """The native voxels nearest to tokens, those that the model saw, `voxels axes`."""
    nearest = np.clip(np.rint(record.grid_to_native(tokens)), 0, np.array(record.native_shape) - 1)
    return nearest[record.is_seen(nearest)].astype(int)


def _reached_level(logits: np.ndarray, record: PreprocessRecord, lowering: Lowering | None) -> float:
    """A logit that some seen native voxel has for sure: that of the best voxel next to a token's centre.

    Where voxels are lowered, the best block around such a voxel is looked through.
    """
    nearest = _seen_at(_highest(logits), record)
    if not len(nearest):  # the highest ones all lie outside the image
        nearest = _seen_at(np.argwhere(np.ones(record.grid_shape, dtype=bool)), record)
    if not len(nearest):
        return -np.inf
    values = ndimage.map_coordinates(logits, record.native_to_grid_points(nearest).T, order=1, mode="nearest")
    reach = 0 if lowering is None else _AROUND_VOX
    ends = zip(nearest[values.argmax()], record.native_shape, strict=True)
    box = tuple((max(0, int(i) - reach), min(n, int(i) + reach + 1)) for i, n in ends)
    seen = _native_logits(logits, record, box, lowering)
    return -np.inf if np.isnan(seen).all() else float(np.nanmax(seen))


def peak(
    token_logits: np.ndarray, record: PreprocessRecord, image: MedicalImage, lowering: Lowering | None = None
) -> Peak:
    """The native voxel where the interpolated map is highest (one of them on ties).

    Args:
        token_logits: calibrated logit per token, shape `record.grid_shape`.
        record: the image's preprocessing record.
        image: the native image; gives the world position.
        lowering: see the module.

    Returns:
        The peak; its voxel lies in the image and was seen by the model.

    Raises:
        ImageError: the model saw no voxel of the image.
    """
    logits = record.checked(token_logits)
    best, index = -np.inf, None
    for box in _hot_blocks(logits >= _reached_level(logits, record, lowering) - LOGIT_SLACK, record):
        values = _native_logits(logits, record, box, lowering)
        np.copyto(values, -np.inf, where=np.isnan(values))
        if values.max() > best:
            best = float(values.max())
            inside = np.unravel_index(int(values.argmax()), values.shape)
            index = tuple(int(i) + start for i, (start, _) in zip(inside, box, strict=True))
    if index is None:
        raise ImageError(f"{image.path}: the model saw no part of the image; check its geometry")
    world = None if image.affine is None else apply_affine(image.affine, np.array(index, dtype=np.float64))
    return Peak(
        index=index,
        world_mm=None if world is None else (float(world[0]), float(world[1]), float(world[2])),
        probability=float(_sigmoid(np.array([best], dtype=np.float32))[0]),
    )


def _bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask; None if it is empty."""
    bounds, part = [], mask  # each axis looks only at what the ones before it left
    for axis in range(mask.ndim):
        used = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not used.size:
            return None
        bounds.append(slice(int(used[0]), int(used[-1]) + 1))
        part = mask[tuple(bounds)]
    return tuple(bounds)


def _runs(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel of every run along the last axis, (runs, 3) as (z, y, x), and the runs' lengths."""
    first, last = volume.copy(), volume.copy()
    first[..., 1:] &= ~volume[..., :-1]
    last[..., :-1] &= ~volume[..., 1:]
    starts = np.flatnonzero(first)
    lengths = np.flatnonzero(last) - starts + 1
    return np.stack(np.unravel_index(starts, volume.shape), axis=1), lengths


def _pieces(starts: np.ndarray, lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """Number of the connected piece of every run; runs in neighbouring lines touch, corners included.

    Runs lie on one long line in which every row and slice is padded by an empty cell on both sides, so that a run's
    neighbours in another row are the runs that overlap its copy shifted by that row.
    """
    row = width + 2
    low = (starts[:, 0] * (height + 2) + starts[:, 1] + 1) * row + starts[:, 2] + 1
    high = low + lengths - 1
    runs, pairs = len(low), []
    for rows in (1, height + 1, height + 2, height + 3):
        begin = np.searchsorted(high, low + rows * row - 1, side="left")
        count = np.maximum(0, np.searchsorted(low, high + rows * row + 1, side="right") - begin)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        pairs.append((np.repeat(np.arange(runs), count), np.repeat(begin, count) + within))
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    graph = sparse.coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(runs, runs))
    return csgraph.connected_components(graph, directed=False)[1]


def boxes(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Bounding boxes of a mask's connected pieces (corners touching counts), largest piece first, at most 10.

    Args:
        mask: bool, 2D or 3D.

    Returns:
        Zero-based half-open boxes, starts then stops: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1).
    """
    whole = _bounds(mask)
    return [] if whole is None else _boxes(mask, whole)


def _boxes(mask: np.ndarray, whole: tuple[slice, ...]) -> list[tuple[int, ...]]:
    """`boxes` of a mask that lies within `whole`."""
    part = mask[whole] if mask.ndim == 3 else mask[whole][None]
    starts, lengths = _runs(part)
    piece = _pieces(starts, lengths, part.shape[1], part.shape[2])
    found = []
    for number in np.argsort(-np.bincount(piece, weights=lengths), kind="stable")[:MAX_BOXES]:
        mine = piece == number
        stops = starts[mine] + 1
        stops[:, 2] += lengths[mine] - 1
        offset = np.array([w.start for w in whole])
        low = starts[mine].min(axis=0)[-mask.ndim :] + offset
        high = stops.max(axis=0)[-mask.ndim :] + offset
        found.append((*low.tolist(), *high.tolist()))
    return found


def area_px(mask: np.ndarray) -> int:
    """Number of pixels in a 2D mask."""
    return int(np.count_nonzero(mask))


def volume_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    """Volume of a 3D mask in millilitres; the affine's determinant gives the voxel, also if oblique or sheared."""
    return int(np.count_nonzero(mask)) * voxel_volume_ml(affine)


def measure(mask: np.ndarray, affine: np.ndarray | None) -> Measured:
    """Count, boxes and volume of a mask.

    Args:
        mask: bool, native grid.
        affine: 4x4 from array index to mm, or None in 2D.
    """
    whole = _bounds(mask)
    if whole is None:
        return Measured(0, [], None if affine is None else 0.0)
    part = mask[whole]  # the rest of a CT is empty and need not be looked through again
    return Measured(area_px(part), _boxes(mask, whole), None if affine is None else volume_ml(part, affine))
