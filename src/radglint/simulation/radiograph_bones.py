"""A rib fracture drawn on a radiograph: a step in a rib that is there, a dark line across it, and bright edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_cxr import Point
from radglint.simulation.canvas import Canvas, grow, pick_point, sigmoid, smooth_noise, window
from radglint.simulation.facts import Fact

_RIB_BAND_PX = (1.5, 9.0)  # a rib is brighter than its surroundings between these two blurs
_BEST_SHARE = 0.12  # of the candidate pixels, those most like a rib
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
    """Choose a pixel of a bright band in the outer third of the lung, and the band's direction there."""
    fine, wide = (ndimage.gaussian_filter(canvas.image, blur) for blur in _RIB_BAND_PX)
    band = fine - wide
    zone = _outer_third(canvas, side)
    likely = zone & (band >= np.quantile(band[zone], 1 - _BEST_SHARE))
    centre = pick_point(likely, rng)
    where = window(centre, 12, canvas.image.shape)
    down, across = np.gradient(band[where])
    angle = 0.5 * np.arctan2(2 * (down * across).sum(), (across**2 - down**2).sum()) + np.pi / 2
    slope = 0.35 if side == "left" else -0.35  # ribs fall towards the flank; used where the picture shows none
    weak = np.hypot(down, across).mean() < 1e-4
    return _Site(centre, slope if weak else float(angle))


def _outer_third(canvas: Canvas, side: str) -> np.ndarray:
    """The lung's outer third and a little of the chest wall, without apex and base."""
    lung = canvas.lungs.lung(side)
    rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
    outer = columns[0] + (0.67 if side == "left" else 0.33) * (columns[-1] - columns[0])
    zone = grow(lung, 4)
    place = np.arange(lung.shape[1])
    zone &= (place > outer if side == "left" else place < outer)[None]
    height = (np.arange(lung.shape[0]) - rows[0]) / (rows[-1] - rows[0])
    return zone & ((height > 0.15) & (height < 0.85))[:, None]


def _break(canvas: Canvas, site: _Site, rng: np.random.Generator) -> np.ndarray:
    """Shift one end across the rib, then draw the gap and the cortex beside it."""
    where = window(site.centre, _REACH_PX, canvas.image.shape)
    along, across = _along_and_across(site, where)
    half = float(rng.uniform(5, 8))
    line = along + rng.uniform(-0.6, 0.6) * across + 0.8 * smooth_noise(along.shape, 4, rng)
    _step(canvas, where, site, (line, across, half), rng)
    on_rib = sigmoid((half - np.abs(across)) / 1.2)
    view = canvas.image[where]
    gap = np.exp(-((line / rng.uniform(0.9, 1.7)) ** 2)) * on_rib * rng.uniform(0.45, 0.85)
    view -= (gap * np.maximum(view - canvas.air, 0.12)).astype(np.float32)
    edges = (np.exp(-((line - 2.6) ** 2)) + np.exp(-((line + 2.6) ** 2))) * on_rib
    canvas.add((edges * rng.uniform(0.08, 0.25)).astype(np.float32), where=where)
    mask = np.zeros(canvas.image.shape, bool)
    mask[where] = (along / 12) ** 2 + (across / (half + 4)) ** 2 < 1
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
    """Move what lies beyond the break by 1.5 to 5.5 px across the rib, fading out with the distance."""
    line, across, half = place
    offset = rng.choice([-1, 1]) * rng.uniform(1.5, 5.5)
    fades = np.exp(-((line / 16).clip(0, None) ** 2)) * np.exp(-((across / (2.2 * half)) ** 2))
    shift = offset * sigmoid(line / 0.7) * fades
    rows, columns = np.mgrid[where].astype(np.float32)
    source = (rows + shift * np.cos(site.angle), columns - shift * np.sin(site.angle))
    canvas.image[where] = ndimage.map_coordinates(canvas.image, source, order=1, mode="nearest")
