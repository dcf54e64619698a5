"""A rib fracture drawn on a radiograph: a step in a rib that is there, a dark line across it, and bright edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_cxr import Point
from radglint.simulation.canvas import Canvas, grow, pick_point, sigmoid, smooth_noise, window
from radglint.simulation.facts import Fact

_RIB_BAND_PX = (2.5, 13.0)  # a rib is brighter than its surroundings between these two blurs
_GRAIN_PX = 7.0  # the direction of a rib is that of the picture's grain at this scale
_ANGLES = (0.1, 1.15)  # ribs fall towards the flank: radians from the columns
_BEST_SHARE = 0.1  # of the candidate pixels, those most like a rib
_REACH_PX = 34.0


@dataclass(frozen=True)
class _Site:
    """Where a rib is broken: the point, and the direction of the rib in radians from the columns."""

    centre: Point
    angle: float


def draw_rib_fracture(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Break a rib of the outer chest, or one on each side where the fact says bilateral.

    Args:
        canvas: What to draw on.
        fact: The side.
        rng: Source of randomness.

    Returns:
        Mask (H, W): the rib within about 12 px of the break.
    """
    sides = ("left", "right") if fact.side == "bilateral" else (fact.side or "left",)
    masks = [_break(canvas, _find_rib(canvas, side, rng), rng) for side in sides]
    return np.logical_or.reduce(masks)


def _find_rib(canvas: Canvas, side: str, rng: np.random.Generator) -> _Site:
    """Choose a pixel of a bright band that runs like a rib in the outer part of the lung, and its direction there."""
    fine, wide = (ndimage.gaussian_filter(canvas.image, blur) for blur in _RIB_BAND_PX)
    band = fine - wide
    angle, grain = _grain(band)
    zone = _outer_part(canvas, side)
    falling = angle if side == "left" else -angle
    rib = zone & (falling > _ANGLES[0]) & (falling < _ANGLES[1]) & (band > 0) & (fine < canvas.tissue + 0.1)
    score = band * grain
    if rib.sum() < 20:  # a picture without ribs
        return _Site(pick_point(zone, rng), 0.35 if side == "left" else -0.35)
    likely = rib & (score >= np.quantile(score[rib], 1 - _BEST_SHARE))
    row, column = pick_point(likely, rng)
    return _Site((row, column), float(angle[int(row), int(column)]))


def _grain(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction of the picture's lines in (-pi/2, pi/2] from the columns, and how clear it is in [0, 1]."""
    down, across = np.gradient(band)
    mixed, differ, total = (
        ndimage.gaussian_filter(part, _GRAIN_PX)
        for part in (2 * down * across, across**2 - down**2, across**2 + down**2)
    )
    steepest = 0.5 * np.arctan2(mixed, differ)
    angle = np.where(steepest > 0, steepest - np.pi / 2, steepest + np.pi / 2)
    return angle, np.hypot(mixed, differ) / (total + 1e-9)


def _outer_part(canvas: Canvas, side: str) -> np.ndarray:
    """The lung's outer two fifths and a little of the chest wall, without apex and base."""
    lung = canvas.lungs.lung(side)
    rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
    outer = columns[0] + (0.6 if side == "left" else 0.4) * (columns[-1] - columns[0])
    zone = grow(lung, 3)
    place = np.arange(lung.shape[1])
    zone &= (place > outer if side == "left" else place < outer)[None]
    height = (np.arange(lung.shape[0]) - rows[0]) / (rows[-1] - rows[0])
    return zone & ((height > 0.15) & (height < 0.85))[:, None]


def _break(canvas: Canvas, site: _Site, rng: np.random.Generator) -> np.ndarray:
    """Shift one end across the rib, then draw the gap and the cortex beside it."""
    where = window(site.centre, _REACH_PX, canvas.image.shape)
    along, across = _along_and_across(site, where)
    half = float(rng.uniform(7, 10))
    line = along + rng.uniform(-0.7, 0.7) * across + 0.5 * smooth_noise(along.shape, 7, rng)
    _step(canvas, where, site, (line, across, half), rng)
    on_rib = sigmoid((half - np.abs(across)) / 1.5)
    view = canvas.image[where]
    rib = max(float(view[np.abs(across) < half].mean() - np.quantile(view, 0.2)), 0.06 * (canvas.tissue - canvas.air))
    gap = np.exp(-((line / rng.uniform(0.9, 1.8)) ** 2)) * on_rib * rng.uniform(0.5, 1.1)
    view -= (gap * min(rib, 0.14)).astype(np.float32)
    edges = (np.exp(-(((line - 3) / 1.2) ** 2)) + np.exp(-(((line + 3) / 1.2) ** 2))) * on_rib
    canvas.add((edges * rng.uniform(0.04, 0.2)).astype(np.float32), where=where)
    mask = np.zeros(canvas.image.shape, bool)
    mask[where] = (along / 12) ** 2 + (across / (half + 3)) ** 2 < 1
    return mask


def _along_and_across(site: _Site, where: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along the rib and across it, 0 at the break."""
    rows, columns = np.mgrid[where].astype(np.float32)
    down, right = rows - site.centre[0], columns - site.centre[1]
    cos, sin = np.cos(site.angle), np.sin(site.angle)
    return right * cos + down * sin, down * cos - right * sin


def _step(
    canvas: Canvas,
    where: tuple[slice, slice],
    site: _Site,
    place: tuple[np.ndarray, np.ndarray, float],
    rng: np.random.Generator,
) -> None:
    """Move what lies beyond the break by 2 to 8 px across the rib, fading out with the distance."""
    line, across, half = place
    offset = rng.choice([-1, 1]) * rng.uniform(2.5, 8.0)
    fades = np.exp(-((line / 20).clip(0, None) ** 2)) * np.exp(-((across / (2.2 * half)) ** 2))
    shift = offset * sigmoid(line / 0.7) * fades
    rows, columns = np.mgrid[where].astype(np.float32)
    source = (rows + shift * np.cos(site.angle), columns - shift * np.sin(site.angle))
    canvas.image[where] = ndimage.map_coordinates(canvas.image, source, order=1, mode="nearest")
