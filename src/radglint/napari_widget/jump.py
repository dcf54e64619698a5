"""Bring a voxel of a layer into the middle of napari's view, and the view upright."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def jump_to(viewer: Any, affine: np.ndarray, index: Sequence[int]) -> None:
    """Show the slice that holds a voxel, with the voxel in the middle.

    Args:
        viewer: `napari.Viewer` or its model.
        affine: (n+1)x(n+1), from layer index to world.
        index: the voxel, n integers in the axis order of the layer.
    """
    extra = viewer.dims.ndim - len(index)  # napari puts the axes of smaller layers last
    position = [int(value) for value in index]
    for axis in viewer.dims.not_displayed:
        if axis >= extra:
            viewer.dims.set_current_step(axis, _step_of(viewer.dims, axis, affine, axis - extra, position))
    shown = [axis - extra for axis in viewer.dims.displayed if axis >= extra]
    if shown:
        viewer.scene.camera.center = tuple(_shown_position(affine, position, shown))


def _step_of(dims: Any, axis: int, affine: np.ndarray, layer_axis: int, index: Sequence[int]) -> int:
    """The slider position whose slice is the wanted one.

    napari takes the slice from the diagonal of the inverse affine, also in a tilted scan, and its slider stands on
    multiples of a step only; so all positions are tried and the nearest wins.
    """
    start, stop, step = dims.range[axis]
    positions = start + step * np.arange(round((stop - start) / step) + 1)
    inverse = np.linalg.inv(affine)
    slices = inverse[layer_axis, layer_axis] * positions + inverse[layer_axis, -1]
    return int(np.abs(slices - index[layer_axis]).argmin())


def _shown_position(affine: np.ndarray, index: Sequence[int], shown: Sequence[int]) -> np.ndarray:
    """Where napari draws a voxel: along the axes that are shown, without what a tilt adds from the others."""
    part = affine[np.ix_(shown, shown)]
    return part @ np.array([index[axis] for axis in shown], dtype=np.float64) + affine[shown, -1]


def upright(viewer: Any) -> None:
    """The head on top where it is along the picture (coronal, sagittal), the front on top in an axial slice.

    napari counts rows downward, and the first axis of our world grows to the head; see `radglint.napari_widget`.

    Args:
        viewer: `napari.Viewer` or its model, whose last three axes are those of a CT.
    """
    rows = viewer.dims.displayed[-2] - (viewer.dims.ndim - 3)
    head_along_rows = viewer.dims.ndisplay == 2 and rows == 0
    viewer.scene.camera.orientation2d = ("up" if head_along_rows else "down", "right")
