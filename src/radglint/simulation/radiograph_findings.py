"""Diseases drawn on a radiograph: each function changes the canvas and returns the exact mask of what it drew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_cxr import Point
from radglint.simulation.canvas import (
    Canvas,
    curve,
    grow,
    pick_point,
    polar,
    shrink,
    sigmoid,
    smooth_noise,
    soft,
    stroke,
    window,
)
from radglint.simulation.facts import Fact

_NODULE_RADIUS_PX = {"small": (3.5, 6.0), "medium": (6.0, 10.0), "large": (10.0, 15.0)}
_MASS_RADIUS_PX = {"small": (15.0, 22.0), "medium": (22.0, 32.0), "large": (32.0, 46.0)}
_PATCH_RADIUS_PX = {"small": (24.0, 36.0), "medium": (38.0, 60.0), "large": (62.0, 100.0)}
_FLUID_SHARE = {"small": (0.1, 0.18), "medium": (0.24, 0.4), "large": (0.45, 0.72)}
_AIR_SHIFT_PX = {"small": (11.0, 20.0), "medium": (22.0, 42.0), "large": (48.0, 100.0)}


def draw_nodule(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a nodule of 7 to 30 px: round, ill-defined or spiculated, and rarely bright.

    Args:
        canvas: What to draw on.
        fact: Side, zone and size.
        rng: Source of randomness.

    Returns:
        Mask (H, W).
    """
    radius = rng.uniform(*_NODULE_RADIUS_PX[fact.size or "medium"])
    centre = _place(canvas, fact, radius * 0.5, rng)
    room = canvas.tissue - canvas.air
    behind = float(canvas.image[window(centre, radius, canvas.image.shape)].mean())
    wanted = rng.uniform(0.25, 0.55) * room
    strength = min(0.9, wanted / max(canvas.tissue - behind, 0.45 * room))
    return _blob(canvas, centre, (radius, strength, rng.choice([0.1, 0.18, 0.3]), 0.12), rng)


def draw_calcified_nodule(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a small, sharp and dense nodule; see `draw_nodule`."""
    radius = rng.uniform(2.2, 3.5) if fact.size == "small" else rng.uniform(3.5, 6.5)
    centre = _place(canvas, fact, radius, rng)
    target = min(1.0, canvas.tissue + 0.15)
    return _blob(canvas, centre, (radius, rng.uniform(0.6, 0.95), 0.09, 0.15), rng, target=target)


def draw_mass(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a lobulated mass of 30 to 90 px; see `draw_nodule`."""
    radius = rng.uniform(*_MASS_RADIUS_PX[fact.size or "medium"])
    shape = (radius, rng.uniform(0.45, 0.9), rng.choice([0.05, 0.09, 0.15]), 0.16)
    return _blob(canvas, _place(canvas, fact, 4, rng), shape, rng)


def draw_consolidation(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw fluffy airspace opacity with air bronchograms; see `draw_nodule`."""
    return _both_sides(canvas, fact, rng, lambda side: _patch(canvas, fact, side, rng, dense=True))


def draw_ground_glass(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw faint haze that hides nothing; see `draw_nodule`."""
    return _both_sides(canvas, fact, rng, lambda side: _patch(canvas, fact, side, rng, dense=False))


def draw_effusion(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw pleural fluid with a meniscus, or the haze of a supine film; see `draw_nodule`."""
    supine = fact.size != "small" and rng.random() < 0.2
    paint = _supine_fluid if supine else _meniscus_fluid
    return _both_sides(canvas, fact, rng, lambda side: paint(canvas, fact, side, rng))


def draw_pneumothorax(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a crescent without vessels and a thin pleural line; see `draw_nodule`."""
    side = fact.side or "left"
    lung = canvas.lungs.lung(side)
    down = rng.uniform(*_AIR_SHIFT_PX[fact.size or "medium"])
    medial = down * rng.uniform(0.15, 0.75) * (-1 if side == "left" else 1)
    collapsed = ndimage.shift(soft(lung, 3.0), (down, medial), order=1)
    wobble = 0.06 * smooth_noise(lung.shape, 40, rng)
    air = soft(lung, 1.5) * sigmoid((0.5 + wobble - collapsed) / 0.06)
    blurred = ndimage.gaussian_filter(canvas.image, rng.uniform(2, 3))
    dark = blurred - rng.uniform(0.15, 0.4) * np.maximum(blurred - canvas.air * 0.75, 0)
    share = air * rng.uniform(0.75, 0.95)
    canvas.image += share * (dark - canvas.image)
    inside = shrink(lung, 3)
    line = np.exp(-(((collapsed - 0.5 - wobble) / 0.11) ** 2)) * soft(inside, 1.0)
    canvas.add(line * rng.uniform(0.12, 0.3))
    if fact.size == "large":
        canvas.add(soft(lung, 2.0) * (1 - air) * rng.uniform(0.1, 0.4))
    return lung & (air > 0.5)


def draw_atelectasis(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw plates of collapsed lung, or a wedge at the base with a raised diaphragm; see `draw_nodule`."""
    paint = _basal_wedge if fact.size == "large" else _plates
    return _both_sides(canvas, fact, rng, lambda side: paint(canvas, fact, side, rng))


def draw_cardiomegaly(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Widen the heart by a smooth warp; see `draw_nodule`."""
    heart = canvas.lungs.heart
    rows = np.flatnonzero(heart.any(1))
    widest = max(int(heart.sum(1).max()), 1)
    outer = [np.flatnonzero(canvas.lungs.both[row]) for row in rows]
    thorax = max(int(span[-1] - span[0]) for span in outer if span.size)
    goal = {"small": 0.56, "medium": 0.62, "large": 0.7}[fact.size or "medium"] + rng.uniform(-0.02, 0.02)
    factor = float(np.clip(goal * thorax / widest, 1.15, 1.8))
    canvas.warp(*_widening(canvas, rows, factor, thorax))
    return canvas.lungs.heart & ~canvas.lungs.both


def draw_interstitial(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a net of fine lines with some haze, densest at the bases or at the periphery; see `draw_nodule`."""
    lungs = canvas.lungs
    lung = lungs.both if fact.side in (None, "bilateral") else lungs.lung(fact.side)
    height = np.cumsum(lung.any(1)) / max(1, int(lung.any(1).sum()))
    lean = {"upper": 1.1 - height, "mid": 1 - 2 * abs(height - 0.5), "lower": 0.1 + height}
    weight = soft(lung, 4.0) * (lean[fact.zone][:, None] if fact.zone else 0.8)
    weight = weight * (0.75 + 0.35 * smooth_noise(lung.shape, 60, rng)).clip(0.1, 1.3)
    strength = {"small": 0.2, "medium": 0.3, "large": 0.42}[fact.size or "medium"] * rng.uniform(0.85, 1.25)
    net = sum(_ridges(lung.shape, rng.uniform(low, high), rng) for low, high in ((5, 7), (8, 13)))
    canvas.add((weight * strength * (net + rng.uniform(0.1, 0.5))).clip(0, 0.8).astype(np.float32))
    if rng.random() < 0.5:
        _septal_lines(canvas, lung, rng)
    return lung & (weight > 0.3)


def _both_sides(canvas: Canvas, fact: Fact, rng: np.random.Generator, paint: Callable[[str], np.ndarray]) -> np.ndarray:
    """Paint on one side or on both and join the masks."""
    sides = ("left", "right") if fact.side == "bilateral" else (fact.side or rng.choice(["left", "right"]),)
    return np.logical_or.reduce([paint(str(side)) for side in sides])


def _place(canvas: Canvas, fact: Fact, margin_px: float, rng: np.random.Generator) -> Point:
    """Choose a point of the fact's zone, off the lung's edge where there is room."""
    zone = canvas.lungs.zone(fact.side or "left", fact.zone) if fact.zone else canvas.lungs.lung(fact.side or "left")
    inner = zone & shrink(canvas.lungs.lung(fact.side or "left"), max(1, round(margin_px)))
    return pick_point(inner if inner.any() else zone, rng)


def _blob(
    canvas: Canvas, centre: Point, form: tuple[float, float, float, float], rng: np.random.Generator, *,
    target: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Add a rounded body; form = radius px, strength, edge softness in radii, lobulation."""
    radius, strength, edge, lobes = form
    where = window(centre, 2.2 * radius + 4, canvas.image.shape)
    distance, angle = polar(centre, where)
    outline = 1 + 0.22 * rng.uniform(0, 1) * np.cos(2 * (angle - rng.uniform(0, np.pi)))
    for waves in range(3, 7):
        outline = outline + lobes * rng.standard_normal() * np.cos(waves * angle + rng.uniform(0, 6.3)) / waves
    reach = distance / (radius * outline.clip(0.4, 1.8))
    body = sigmoid((1 - reach) / edge) * (0.55 + 0.45 * np.sqrt((1 - reach**2).clip(0, 1)))
    alpha = strength * body * (1 + 0.06 * smooth_noise(body.shape, max(2.0, radius / 2), rng))
    if edge > 0.12 and rng.random() < 0.4:
        spokes = (np.cos(angle * rng.integers(5, 9) + 2 * np.sin(3 * angle + rng.uniform(0, 6.3))) > 0.8) * 1.0
        alpha = alpha + 0.35 * strength * spokes * np.exp(-((reach - 0.9) ** 2) / 0.25)
    canvas.add(alpha.clip(0, 0.97), target=target, where=where)
    mask = np.zeros(canvas.image.shape, bool)
    mask[where] = reach < 1
    return mask


def _patch(canvas: Canvas, fact: Fact, side: str, rng: np.random.Generator, *, dense: bool) -> np.ndarray:
    """Add an opacity with cloudy edges that stops at the border of the lung."""
    lung = canvas.lungs.lung(side)
    centre = _place(canvas, Fact(fact.concept, "left" if side == "left" else "right", fact.zone), 6, rng)
    radius = rng.uniform(*_PATCH_RADIUS_PX[fact.size or "medium"])
    rows, columns = np.ogrid[: lung.shape[0], : lung.shape[1]]
    tall = rng.uniform(0.75, 1.25)
    reach = np.hypot((rows - centre[0]) / (radius * tall), (columns - centre[1]) / radius).astype(np.float32)
    layers = ((0.35, radius * 0.5), (0.14, 16), (0.07, 7))
    cloud = sum(height * smooth_noise(lung.shape, scale, rng) for height, scale in layers)
    edge = rng.uniform(0.16, 0.34) if dense else rng.uniform(0.25, 0.4)
    share = sigmoid((1 - reach + cloud * (0.9 if dense else 0.6)) / edge) * soft(lung, 2.0)
    grain = 1 + (0.11 if dense else 0.06) * (smooth_noise(lung.shape, 18, rng) + 0.5 * smooth_noise(lung.shape, 6, rng))
    strength = rng.uniform(0.35, 0.85) if dense else rng.uniform(0.16, 0.34)
    alpha = strength * share * grain
    if dense and rng.random() < 0.45:
        alpha = alpha * (1 - rng.uniform(0.2, 0.4) * _bronchi(canvas, side, centre, radius, rng))
    canvas.add(alpha.clip(0, 0.95))
    return (share > 0.45) & lung


def _bronchi(canvas: Canvas, side: str, centre: Point, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a few branching airways that run from the hilum through an opacity."""
    lung = canvas.lungs.lung(side)
    hilum = np.array([np.nonzero(lung)[0].mean(), canvas.lungs.midline_px])
    outward = np.asarray(centre) - hilum
    outward /= np.linalg.norm(outward) + 1e-6
    paths = np.zeros(lung.shape, np.float32)
    for _ in range(int(rng.integers(2, 5))):
        start = np.asarray(centre) - outward * radius * 0.8 + rng.normal(0, radius * 0.2, 2)
        stop = np.asarray(centre) + outward * radius * 0.6 + rng.normal(0, radius * 0.45, 2)
        bend = (start + stop) / 2 + rng.normal(0, radius * 0.1, 2)
        path = curve([tuple(start), tuple(bend), tuple(stop)])
        paths = np.maximum(paths, stroke(lung.shape, path, rng.uniform(1.3, 2.4)))
    return ndimage.gaussian_filter(paths, 0.9)


def _span(canvas: Canvas, side: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return rows, lateral position (0 medial, 1 lateral), top and bottom row of a lung."""
    lung = canvas.lungs.lung(side)
    rows = np.flatnonzero(lung.any(1))
    low = np.flatnonzero(lung[(rows[0] + rows[-1]) // 2 :].any(0))
    lateral = (np.arange(lung.shape[1]) - low[0]) / max(1, low[-1] - low[0])
    if side == "right":
        lateral = 1 - lateral
    return np.arange(lung.shape[0])[:, None], lateral[None], int(rows[0]), int(rows[-1])


def _meniscus_fluid(canvas: Canvas, fact: Fact, side: str, rng: np.random.Generator) -> np.ndarray:
    """Fill the base below a line that rises towards the chest wall, diaphragm included, without a lower edge."""
    lung = canvas.lungs.lung(side)
    rows, lateral, top, bottom = _span(canvas, side)
    deep = (bottom - top) * rng.uniform(*_FLUID_SHARE[fact.size or "medium"])
    small = fact.size == "small"
    rise = ((lateral - 0.5) / 0.5).clip(0, 1.1) ** 1.2 if small else lateral.clip(0, 1.05) ** rng.uniform(1.8, 3.2)
    floor = 0.0 if small else rng.uniform(0.3, 0.6)
    level = bottom + 12 - (deep + 12) * (floor + (1 - floor) * rise) + 2.5 * smooth_noise((1, lung.shape[1]), 40, rng)
    wall = grow(np.maximum.accumulate(lung, axis=0), 4)
    behind = np.exp(-(((rows - bottom).clip(0, None) / rng.uniform(25, 60)) ** 2))  # fades in the abdomen
    share = sigmoid((rows - level) / rng.uniform(2.5, 7)) * soft(wall, 2.5) * behind
    fluid = (share * rng.uniform(0.8, 0.97)).astype(np.float32)
    abdomen = canvas.image[bottom + 6 : bottom + 46][:, lung.any(axis=0)]  # as dense as fluid: no diaphragm is seen
    dense = float(np.median(abdomen)) if abdomen.size else canvas.tissue
    canvas.add(fluid, target=max(canvas.tissue, dense))
    haze = np.exp(-(level - rows).clip(0, None) / rng.uniform(12, 40)) * soft(lung, 2.0) * (1 - share)
    canvas.add((haze * rng.uniform(0.05, 0.35)).astype(np.float32))
    blurred = ndimage.gaussian_filter(canvas.image, 5)
    canvas.image += 0.4 * fluid * (blurred - canvas.image)
    return wall & (rows > level) & (rows <= bottom + 4)


def _supine_fluid(canvas: Canvas, fact: Fact, side: str, rng: np.random.Generator) -> np.ndarray:
    """Veil the lower part of a lung with haze that grows downwards."""
    lung = canvas.lungs.lung(side)
    rows, _, top, bottom = _span(canvas, side)
    start = bottom - (bottom - top) * {"medium": 0.55, "large": 0.85}.get(fact.size or "medium", 0.55)
    ramp = ((rows - start) / (bottom - start)).clip(0, 1)
    alpha = ramp**0.8 * soft(lung, 3.0) * rng.uniform(0.4, 0.7)
    canvas.add(alpha.astype(np.float32))
    return lung & (ramp > 0.15)


def _plates(canvas: Canvas, fact: Fact, side: str, rng: np.random.Generator) -> np.ndarray:
    """Add one to three thin bands, near horizontal."""
    lung = canvas.lungs.lung(side)
    mask = np.zeros_like(lung)
    for _ in range(int(rng.integers(1, 4 if fact.size == "medium" else 2))):
        row, column = _place(canvas, Fact("atelectasis", "left" if side == "left" else "right", fact.zone), 8, rng)
        half = rng.uniform(20, 40) if fact.size == "small" else rng.uniform(35, 65)
        tilt = rng.normal(0, 0.25)
        bend, rise = rng.normal(0, 3), half * tilt
        ends = [(row - rise, column - half), (row + bend, column), (row + rise, column + half)]
        taper = sigmoid((half * 0.85 - np.abs(np.arange(lung.shape[1]) - column)) / (0.12 * half))[None]
        line = stroke(lung.shape, curve(ends), rng.uniform(2.0, 5.5))
        band = ndimage.gaussian_filter(line, rng.uniform(0.9, 2.2)) * taper * soft(lung, 1.5)
        canvas.add((band * (1 + 0.2 * smooth_noise(lung.shape, 15, rng)) * rng.uniform(0.3, 0.6)).clip(0, 0.9))
        mask |= (band > 0.3) & lung
    return grow(mask, 1)


def _basal_wedge(canvas: Canvas, fact: Fact, side: str, rng: np.random.Generator) -> np.ndarray:
    """Raise the diaphragm, then add a triangle of collapse that widens from the hilum to the base."""
    rows, lateral, top, bottom = _span(canvas, side)
    columns = np.arange(canvas.image.shape[1])[None]
    below = np.exp(-(((rows - bottom) / (0.3 * (bottom - top))) ** 2))
    lift = rng.uniform(10, 28) * below * np.exp(-((2 * lateral - 1) ** 4))
    canvas.warp((rows + lift).astype(np.float32), np.broadcast_to(columns, lift.shape).astype(np.float32))
    lung = canvas.lungs.lung(side)
    rows, _, top, bottom = _span(canvas, side)
    start = bottom - (bottom - top) * rng.uniform(0.35, 0.55)
    depth = (rows - start) / (bottom - start)
    inward = lung if side == "left" else lung[:, ::-1]
    lateral = np.cumsum(inward, axis=1) / np.maximum(inward.sum(1, keepdims=True), 20)
    lateral = lateral if side == "left" else lateral[:, ::-1]
    edge = rng.uniform(0.35, 0.8) * depth + 0.05 * smooth_noise(lung.shape, 25, rng)
    share = soft((lateral < edge) & lung, rng.uniform(2, 5)) * sigmoid(depth / 0.08) * soft(lung, 2.0)
    canvas.add((share * rng.uniform(0.5, 0.9)).clip(0, 0.95).astype(np.float32))
    return lung & (share > 0.45)


def _widening(canvas: Canvas, rows: np.ndarray, factor: float, thorax: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the warp that widens what lies between the lungs, more to the left, and squeezes the lungs."""
    height, width = canvas.image.shape
    grid_rows, grid_columns = np.mgrid[:height, :width].astype(np.float32)
    middle = canvas.lungs.midline_px
    deep = (grid_rows - rows[0]) / max(1, rows[-1] - rows[0])
    bump = np.exp(-(((deep - 0.72) / 0.5) ** 4))
    offset = grid_columns - middle
    heart_columns = np.flatnonzero(canvas.lungs.heart.any(0))
    half = {1: heart_columns[-1] - middle, -1: middle - heart_columns[0]}
    out = np.zeros_like(offset)
    for sign, gain in ((1, 1.15), (-1, 0.85)):
        chest = 0.56 * thorax
        inner = float(np.clip(half[sign], 8, 0.7 * chest))
        wide = np.minimum(inner * (1 + (factor - 1) * gain * bump), 0.9 * chest)
        away = np.abs(offset)
        squeezed = inner + (away - wide) * (chest - inner) / (chest - wide)
        source = np.where(away < wide, away * inner / wide, np.where(away < chest, squeezed, away))
        out = np.where(np.sign(offset) == sign, sign * source, out)
    return grid_rows, (middle + out).astype(np.float32)


def _ridges(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the zero lines of smooth noise: a net of fine curved lines."""
    return np.exp(-((smooth_noise(shape, scale_px, rng) / 0.22) ** 2)) * 0.8


def _septal_lines(canvas: Canvas, lung: np.ndarray, rng: np.random.Generator) -> None:
    """Add short horizontal lines at the outer base of the lungs."""
    for side in ("left", "right"):
        row, column = canvas.lungs.costophrenic_angle(side)
        inward = -1 if side == "left" else 1
        for k in range(int(rng.integers(3, 8))):
            start = (row - 14 - 9 * k + rng.normal(0, 2), column + inward * rng.uniform(0, 4))
            stop = (start[0] + rng.normal(0, 1.5), start[1] + inward * rng.uniform(9, 17))
            canvas.add(stroke(lung.shape, np.array([start, stop]), 1.0) * soft(lung, 1.0) * rng.uniform(0.15, 0.35))
