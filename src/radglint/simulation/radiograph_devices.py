"""Devices drawn on a radiograph, and the distractors that no sentence mentions: electrodes, buttons, nipples."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from radglint.simulation.anatomy_cxr import Point
from radglint.simulation.canvas import (
    Canvas,
    curve,
    grow,
    pick_point,
    polar,
    sigmoid,
    smooth_noise,
    soft,
    stroke,
    window,
)
from radglint.simulation.facts import Fact

_MARKERS = ("L", "R", "AP", "PA", "PORTABLE", "SUPINE", "ERECT", "SEMI ERECT", "L  JS", "R  KM")


def draw_pacemaker(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a generator at the upper chest wall and one or two leads into the heart.

    Args:
        canvas: What to draw on.
        fact: The side of the generator.
        rng: Source of randomness.

    Returns:
        Mask (H, W) of generator and leads.
    """
    side = fact.side or "left"
    out = 1 if side == "left" else -1
    top, _ = canvas.lungs.apex(side)
    edge = np.nonzero(canvas.lungs.lung(side))[1]
    lateral = float(edge.max() if side == "left" else edge.min())
    centre = (top + rng.uniform(50, 115), lateral - out * rng.uniform(-12, 45))
    box = _generator(canvas, centre, rng)
    mask = box > 0.5
    vein = (top + rng.uniform(18, 40), canvas.lungs.midline_px + out * rng.uniform(35, 60))
    cava = (top + rng.uniform(80, 110), canvas.lungs.midline_px - rng.uniform(12, 24))
    heart = np.argwhere(canvas.lungs.heart)
    low, high = heart.max(0), heart.min(0)
    tips = [(low[0] - rng.uniform(5, 25), low[1] - rng.uniform(10, 40))]
    if rng.random() < 0.6:
        tips.append((high[0] + 0.4 * (low[0] - high[0]) + rng.normal(0, 6), high[1] + rng.uniform(8, 22)))
    for tip in tips:
        turn = (tip[0] + rng.uniform(0, 12), (cava[1] + tip[1]) / 2 - rng.uniform(0, 10))
        path = curve([centre, (vein[0] + rng.normal(0, 6), vein[1]), cava, (cava[0] + 55, cava[1] - 3), turn, tip])
        lead = stroke(mask.shape, path, rng.uniform(1.3, 2.2))
        canvas.add(lead * rng.uniform(0.35, 0.75), target=min(1.0, canvas.tissue + 0.3))
        mask |= grow(lead > 0.4, 1)
    return mask


def draw_central_line(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a thin catheter from neck, clavicle or arm to the superior vena cava; see `draw_pacemaker`."""
    side = fact.side or "right"
    out = 1 if side == "left" else -1
    top, apex = canvas.lungs.apex(side)
    middle = canvas.lungs.midline_px
    tip = (top + rng.uniform(105, 165), middle - rng.uniform(10, 26))
    cava = (top + rng.uniform(45, 70), middle - rng.uniform(12, 26))
    edge = np.nonzero(canvas.lungs.lung(side))[1]
    lateral = float(edge.max() if side == "left" else edge.min())
    starts = {
        "jugular": [(top - rng.uniform(30, 70), middle + out * rng.uniform(28, 55))],
        "subclavian": [(top + rng.uniform(20, 55), lateral - out * 10), (top + rng.uniform(0, 18), apex)],
        "arm": [(top + rng.uniform(60, 110), lateral + out * 55), (top + rng.uniform(15, 35), lateral)],
    }
    way = str(rng.choice(list(starts)))
    crossing = [(top + rng.uniform(15, 30), middle + 12)] if side == "left" else []
    line = stroke(canvas.image.shape, curve([*starts[way], *crossing, cava, tip]), rng.uniform(1.0, 2.0))
    return _lay(canvas, line, rng.uniform(0.25, 0.6))


def draw_endotracheal_tube(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a tube down the trachea with its bright stripe; see `draw_pacemaker`."""
    top = min(canvas.lungs.apex("left")[0], canvas.lungs.apex("right")[0])
    middle = canvas.lungs.midline_px
    tip = (top + rng.uniform(40, 85), middle - rng.uniform(0, 6))
    bend = (top - 20, middle + rng.uniform(-4, 6))
    path = curve([(max(0.0, top - rng.uniform(90, 130)), middle + rng.uniform(-8, 10)), bend, tip])
    return _tube(canvas, path, rng.uniform(6, 9), rng)


def draw_chest_tube(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> np.ndarray:
    """Draw a drain that enters from the side and runs up in the pleural space; see `draw_pacemaker`."""
    side = fact.side or "right"
    out = 1 if side == "left" else -1
    top, apex = canvas.lungs.apex(side)
    row, column = canvas.lungs.costophrenic_angle(side)
    entry = (row - rng.uniform(10, 70), column + out * rng.uniform(25, 60))
    inside = (entry[0] - rng.uniform(25, 45), column - out * rng.uniform(8, 25))
    tips = ((top + rng.uniform(15, 60), apex), (row - rng.uniform(20, 60), column - out * rng.uniform(55, 95)))
    middle = ((inside[0] + tips[0][0]) / 2, column - out * rng.uniform(10, 35))
    points = [entry, inside, middle, tips[0]] if rng.random() < 0.75 else [entry, inside, tips[1]]
    return _tube(canvas, curve(points), rng.uniform(5, 8), rng)


def add_distractors(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add things that look like findings and are none: electrodes, buttons, nipples, dots, wires and markers.

    Args:
        canvas: What to draw on.
        rng: Source of randomness.
    """
    chances = ((0.25, _electrodes), (0.1, _buttons), (0.15, _nipples), (0.15, _dots), (0.12, _wires), (0.35, _marker))
    for chance, draw in chances:
        if rng.random() < chance:
            draw(canvas, rng)


def _lay(canvas: Canvas, line: np.ndarray, strength: float) -> np.ndarray:
    """Lay a thin bright line on the canvas and return its mask."""
    canvas.add(line * strength, target=min(1.0, canvas.tissue + 0.25))
    return grow(line > 0.4, 1)


def _tube(canvas: Canvas, path: np.ndarray, width_px: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a hollow tube: faint body, brighter walls and one opaque stripe."""
    shape = canvas.image.shape
    body = stroke(shape, path, width_px)
    walls = (body - stroke(shape, path, max(1.0, width_px - 2.4))).clip(0, 1)
    normal = np.gradient(path, axis=0)[:, ::-1] * [1, -1]
    normal = normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6)
    stripe = stroke(shape, path + normal * width_px * 0.22, 1.2)
    strength = rng.uniform(0.5, 1.0)
    alpha = strength * (0.07 * body + 0.14 * walls + 0.45 * stripe)
    canvas.add(alpha.clip(0, 0.9), target=min(1.0, canvas.tissue + 0.2))
    return body > 0.5


def _generator(canvas: Canvas, centre: Point, rng: np.random.Generator) -> np.ndarray:
    """Draw the rounded metal box of a pacemaker and return its coverage."""
    height, width = rng.uniform(38, 54), rng.uniform(42, 62)
    rows, columns = np.mgrid[: canvas.image.shape[0], : canvas.image.shape[1]].astype(np.float32)
    turn = rng.uniform(-0.6, 0.6)
    down, across = rows - centre[0], columns - centre[1]
    along = np.abs(across * np.cos(turn) + down * np.sin(turn)) / (width / 2)
    aside = np.abs(down * np.cos(turn) - across * np.sin(turn)) / (height / 2)
    reach = (along**4 + aside**4) ** 0.25
    box = sigmoid((1 - reach) / 0.04)
    battery = sigmoid((0.8 - reach) / 0.05) * sigmoid((down * np.cos(turn) + rng.uniform(-6, 6)) / 1.5)
    parts = sigmoid((0.85 - reach) / 0.05) * (smooth_noise(box.shape, rng.uniform(4, 7), rng) > 0.7) * (1 - battery)
    canvas.add(box * (rng.uniform(0.6, 0.8) + 0.17 * battery + 0.15 * soft(parts, 0.6)).clip(0, 0.98), target=1.0)
    return box


def _electrodes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add round electrode pads with a metal stud, most with a wire."""
    for _ in range(int(rng.integers(1, 4))):
        centre = pick_point(grow(canvas.lungs.both, 15), rng)
        radius = rng.uniform(7, 13)
        where = window(centre, radius + 6, canvas.image.shape)
        distance, _ = polar(centre, where)
        canvas.add(sigmoid((radius - distance) / 0.6) * rng.uniform(0.08, 0.35), where=where)
        stud = sigmoid((rng.uniform(3, 5.5) - distance) / 0.4) * rng.uniform(0.3, 0.85)
        if rng.random() < 0.5:
            stud = stud * (1 - 0.7 * sigmoid((rng.uniform(1.2, 2.2) - distance) / 0.3))
        canvas.add(stud, target=1.0, where=where)
        if rng.random() < 0.7:
            _wire(canvas, centre, rng)


def _wires(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add one or two wires that cross the chest."""
    for _ in range(int(rng.integers(1, 3))):
        _wire(canvas, pick_point(canvas.lungs.both, rng), rng)


def _wire(canvas: Canvas, start: Point, rng: np.random.Generator) -> None:
    """Lead a wire from a point out of the image."""
    height, width = canvas.image.shape
    stop = (rng.uniform(0.3, 1.05) * height, rng.choice([-5.0, width + 5.0]))
    between = [
        ((1 - k) * start[0] + k * stop[0] + rng.normal(0, 45), (1 - k) * start[1] + k * stop[1] + rng.normal(0, 30))
        for k in (0.33, 0.67)
    ]
    line = stroke((height, width), curve([start, *between, stop]), rng.uniform(1.0, 2.2))
    canvas.add(line * rng.uniform(0.15, 0.6), target=min(1.0, canvas.tissue + 0.2))


def _buttons(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add crisp rings with holes near the midline, as a shirt has them."""
    column, row = canvas.lungs.midline_px + rng.normal(0, 45), rng.uniform(110, 200)
    radius, strength = rng.uniform(5, 9), rng.uniform(0.15, 0.5)
    for k in range(int(rng.integers(1, 5))):
        centre = (row + 70 * k, column + rng.normal(0, 4))
        where = window(centre, radius + 5, canvas.image.shape)
        distance, angle = polar(centre, where)
        holes = (np.abs(distance - 0.4 * radius) < 1.1) & (np.cos(4 * angle) > 0.6)
        ring = sigmoid((radius - distance) / 0.4) * np.where(distance > 0.8 * radius, 1.0, 0.6)
        canvas.add(strength * ring * ~holes, where=where)


def _nipples(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add a pair of faint round shadows over the lower lungs, at mirrored places."""
    rows = np.flatnonzero(canvas.lungs.both.any(1))
    row = rows[0] + rng.uniform(0.68, 0.85) * (rows[-1] - rows[0])
    away, radius, strength = rng.uniform(75, 125), rng.uniform(4, 7.5), rng.uniform(0.12, 0.3)
    for sign in (-1, 1):
        centre = (float(row + rng.normal(0, 5)), canvas.lungs.midline_px + sign * away + rng.normal(0, 6))
        where = window(centre, radius + 6, canvas.image.shape)
        distance, angle = polar(centre, where)
        lateral = 0.65 + 0.35 * sign * np.cos(angle)
        canvas.add(strength * sigmoid((radius - distance) / 0.9) * lateral, where=where)


def _dots(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add very small, very dense dots outside the lungs."""
    around = grow(canvas.lungs.both, 30) & ~canvas.lungs.both
    for _ in range(int(rng.integers(1, 5))):
        centre = pick_point(around, rng)
        where = window(centre, 7, canvas.image.shape)
        distance, _ = polar(centre, where)
        canvas.add(sigmoid((rng.uniform(0.8, 2.2) - distance) / 0.3) * rng.uniform(0.5, 0.95), target=1.0, where=where)


def _marker(canvas: Canvas, rng: np.random.Generator) -> None:
    """Print a side or projection marker in an upper corner; L stands on the patient's left."""
    text = str(rng.choice(_MARKERS))
    height, width = canvas.image.shape
    picture = Image.new("L", (width, height))
    on_right_half = text.startswith("L") or (not text.startswith("R") and rng.random() < 0.5)
    across = rng.uniform(0.84, 0.93) if on_right_half else rng.uniform(0.03, 0.1)
    place = (width * across, height * rng.uniform(0.03, 0.2))
    font = ImageFont.load_default(size=float(rng.uniform(9, 24 if len(text) < 3 else 12)))
    ImageDraw.Draw(picture).text(place, text, fill=255, font=font)
    ink = soft(np.asarray(picture) > 100, 0.5)
    canvas.add(ink * rng.uniform(0.6, 1.0), target=1.0)
