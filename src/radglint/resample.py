"""Linear resampling through a matrix, in 2D or 3D: the one interpolation of radglint.

A matrix takes an output index to an input coordinate (integer = centre of an input cell). A coordinate within half a
cell of the input (-0.5 to n - 0.5) is inside and interpolated with the border repeated; everything else is outside.
Matrices that only permute, flip and scale axes go one axis at a time; all others go through `grid_sample`. Values do
not depend on how the output is cut into boxes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage

Box = tuple[tuple[int, int], ...]

# Largest drift of a coordinate, in input cells over the whole output, that still counts as axis aligned.
ALIGNED_TOLERANCE = 1e-3
# Slack, in half widths of the input, when a coordinate is tested against the border (float32 rounding).
INSIDE_SLACK = 1e-6
# Voxels that are interpolated at once; bounds the working memory.
CHUNK_VOXELS = 1 << 21
# A blur below this many input cells does nothing visible and is skipped.
MIN_SIGMA = 0.2


def aligned_axes(matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which input axis each output axis runs along, if the matrix only permutes, flips, scales and shifts.

    Args:
        matrix: homogeneous, output index to input coordinate.
        shape: output shape; small cross terms are judged by the drift they cause over it.

    Returns:
        One input axis per output axis, or None if the matrix mixes axes.
    """
    linear = np.abs(matrix[:-1, :-1])
    main = linear.argmax(axis=0)
    cross = linear * (np.array(shape) - 1)
    cross[main, np.arange(len(shape))] = 0.0
    if len(set(main.tolist())) < len(shape) or cross.sum(axis=1).max() > ALIGNED_TOLERANCE:
        return None
    return tuple(int(axis) for axis in main)


def _axis_coordinates(matrix: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...], box: Box) -> list[np.ndarray]:
    """Input coordinate of every output index along each output axis of an aligned matrix, float64."""
    centre = (np.array(shape) - 1) / 2
    coordinates = []
    for out_axis, in_axis in enumerate(axes):
        slope = matrix[in_axis, out_axis]
        drift = matrix[in_axis, :-1] @ centre - slope * centre[out_axis]
        coordinates.append(slope * np.arange(*box[out_axis]) + (matrix[in_axis, -1] + drift))
    return coordinates


def _inside(coordinates: np.ndarray, size: int) -> np.ndarray:
    """True where a coordinate lies within half a cell of an axis with `size` cells."""
    return np.abs((2 * coordinates + 1) / size - 1) <= 1 + INSIDE_SLACK


def _lerp(values: np.ndarray, axis: int, coordinates: np.ndarray) -> np.ndarray:
    """Interpolate along one axis, border repeated; bitwise independent of how the coordinates are grouped."""
    clamped = np.clip(coordinates, 0, values.shape[axis] - 1)
    low = np.floor(clamped).astype(np.intp)
    weight = (clamped - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    slope = np.diff(values, axis=axis, append=values.take([-1], axis=axis))
    out = slope.take(low, axis=axis)
    out *= weight
    out += values.take(low, axis=axis)
    return out


def _chunks(box: Box) -> Iterator[tuple[int, int]]:
    """Ranges along the first axis, relative to the box, of about CHUNK_VOXELS voxels each."""
    rows = box[0][1] - box[0][0]
    plane = max(1, int(np.prod([stop - start for start, stop in box[1:]])))
    step = max(1, CHUNK_VOXELS // plane)
    return ((low, min(low + step, rows)) for low in range(0, rows, step))


def _sample_aligned(values: np.ndarray, coordinates: list[np.ndarray], axes: tuple[int, ...], box: Box) -> np.ndarray:
    """One axis at a time; NaN outside."""
    turned = values.transpose(axes)
    out = np.empty([len(c) for c in coordinates], dtype=np.float32)
    for low, high in _chunks(box):
        part = turned
        for axis, along in enumerate(coordinates):
            part = _lerp(part, axis, along[low:high] if axis == 0 else along)
        out[low:high] = part
    for axis, along in enumerate(coordinates):
        outside = ~_inside(along, turned.shape[axis])
        if outside.any():
            out[(slice(None),) * axis + (outside,)] = np.nan
    return out


def _sample_general(values: np.ndarray, matrix: np.ndarray, box: Box, fill: float) -> np.ndarray:
    """Any matrix, 3D, through grid_sample in chunks of planes; each plane is a batch entry so that cores share them."""
    size = np.array(values.shape, dtype=np.float64)
    scale = matrix[:-1] * (2 / size)[:, None]
    scale[:, -1] += 1 / size - 1
    # grid_sample wants the last input axis first.
    planes, rows, columns = (
        torch.from_numpy((np.arange(*box[axis])[:, None] * scale[::-1, axis]).astype(np.float32)) for axis in range(3)
    )
    plane = rows[:, None] + columns + torch.from_numpy(scale[::-1, -1].astype(np.float32))
    source = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
    out = np.empty([stop - start for start, stop in box], dtype=np.float32)
    for low, high in _chunks(box):
        grid = plane + planes[low:high, None, None]
        batch = source.expand(high - low, 1, *source.shape)
        part = torch.nn.functional.grid_sample(batch, grid[:, None], "bilinear", "border", align_corners=False)[:, 0, 0]
        part[grid.abs_().amax(-1) > 1 + INSIDE_SLACK] = fill
        out[low:high] = part.numpy()
    return out


def sample_box(values: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], box: Box) -> np.ndarray:
    """Interpolate one box of the output.

    Args:
        values: float32 input, 2D or 3D, finite.
        matrix: homogeneous, output index to input coordinate.
        shape: the whole output's shape.
        box: (start, stop) per output axis.

    Returns:
        float32 of the box's shape, NaN outside the input.
    """
    axes = aligned_axes(matrix, shape)
    if axes is not None:
        return _sample_aligned(values, _axis_coordinates(matrix, shape, axes, box), axes, box)
    if values.ndim == 3:
        return _sample_general(values, matrix, box, np.nan)
    lifted = np.eye(4)
    lifted[1:, 1:] = matrix
    return _sample_general(values[None], lifted, ((0, 1), *box), np.nan)[0]


def blur_sigmas(matrix: np.ndarray) -> np.ndarray:
    """Gaussian width per input axis, in input cells, that keeps a coarser output free of aliasing.

    With r input cells per output step, sigma = 0.4 * sqrt(r^2 - 1): nothing at r = 1, about the width of the output
    step for large r. Axes that are not made coarser get 0.
    """
    ratio = np.abs(matrix[:-1, :-1]).max(axis=1)
    sigma = 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    return np.where(sigma < MIN_SIGMA, 0.0, sigma)


def _blur(values: np.ndarray, sigma: float, axis: int, output: np.ndarray | None = None) -> np.ndarray:
    """The one Gaussian of this module: three sigmas wide, border repeated."""
    return ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="nearest", truncate=3.0, output=output)


def _weights(size: int, coordinates: np.ndarray, sigma: float) -> np.ndarray:
    """Blur and interpolation along one axis as a (coordinates, size) matrix; rows outside are zero."""
    kernel = np.eye(size, dtype=np.float64)
    if sigma:
        kernel = _blur(kernel, sigma, axis=0)
    clamped = np.clip(coordinates, 0, size - 1)
    low = np.floor(clamped).astype(np.intp)
    high = np.minimum(low + 1, size - 1)
    part = (clamped - low)[:, None]
    weights = (1 - part) * kernel[low] + part * kernel[high]
    weights[~_inside(coordinates, size)] = 0.0
    return weights.astype(np.float32)


def _resample_aligned(
    values: np.ndarray, weights: list[np.ndarray], axes: tuple[int, ...], fill: float, slices: int = 16
) -> np.ndarray:
    """Three small matrix products per block of output slices; only the input slices that a block needs are read."""
    turned = values.transpose(axes)
    deep, high, wide = weights
    out = np.empty((len(deep), len(high), len(wide)), dtype=np.float32)
    for start in range(0, len(deep), slices):
        block = deep[start : start + slices]
        used = np.flatnonzero(block.any(axis=0))
        first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
        source = np.ascontiguousarray(turned[first:last])
        mixed = (block[:, first:last] @ source.reshape(len(source), -1)).reshape(len(block), *source.shape[1:])
        out[start : start + slices] = high @ mixed @ wide.T
    for axis, weight in enumerate(weights):
        out[(slice(None),) * axis + (~weight.any(axis=1),)] = fill
    return out


def resample_volume(values: np.ndarray, matrix: np.ndarray, shape: tuple[int, int, int], fill: float) -> np.ndarray:
    """Resample a volume, blurred first along those input axes that become coarser.

    Args:
        values: float32 `depth height width`.
        matrix: 4x4, output index to input coordinate.
        shape: output shape.
        fill: value outside the input.

    Returns:
        float32 of `shape`.
    """
    sigmas = blur_sigmas(matrix)
    axes = aligned_axes(matrix, shape)
    box = tuple((0, size) for size in shape)
    if axes is not None:
        along = _axis_coordinates(matrix, shape, axes, box)
        weights = [_weights(values.shape[a], c, sigmas[a]) for a, c in zip(axes, along, strict=True)]
        return _resample_aligned(values, weights, axes, fill)
    return _sample_general(blur(values, sigmas), matrix, box, fill)


def blur(values: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Gaussian blur with one width per axis, in cells; the input itself if all widths are zero."""
    out = values
    for axis, sigma in enumerate(sigmas):
        if sigma:
            out = _blur(out, sigma, axis, np.empty_like(values) if out is values else out)
    return out
