"""Hard distractors of a radiograph: the look of a finding in the wrong place, or of another cause.

A skin fold has the edge of a pneumothorax but runs out of the lung and keeps the vessels beyond it; a vessel seen end
on is as round and dense as a small nodule but lies beside the hilum; round and calcified shadows outside the lungs are
neither nodules nor granulomas. No report mentions them, and they have no mask.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from radglint.simulation.canvas import Canvas, curve, grow, pick_point, polar, sigmoid, smooth_noise, window


def add_hard_distractors(canvas: Canvas, rng: np.random.Generator) -> list[str]:
    """Draw some of them, each with its own chance.

    Args:
        canvas: What to draw on.
        rng: Source of randomness.

    Returns:
        Names of those drawn, of `HARD_DISTRACTORS`.
    """
    drawn = [name for name, (chance, _) in HARD_DISTRACTORS.items() if rng.random() < chance]
    for name in drawn:
        HARD_DISTRACTORS[name][1](canvas, rng)
    return drawn


def _skin_fold(canvas: Canvas, rng: np.random.Generator) -> None:
    """A long oblique edge: a haze that ends at once on its outer side and fades on its inner one."""
    sign = int(rng.choice([-1, 1]))  # 1: over the left lung
    lung = canvas.lungs.lung("left" if sign == 1 else "right")
    rows, columns = np.flatnonzero(lung.any(1)), np.flatnonzero(lung.any(0))
    width = columns[-1] - columns[0]
    middle = columns[0] + width * (0.5 + sign * rng.uniform(0.05, 0.3))
    top, bottom = rows[0] + rng.uniform(-45, 40), rows[-1] + rng.uniform(10, 70)
    lean = rng.uniform(-35, 35)
    path = curve([(top, middle - lean), ((top + bottom) / 2, middle + rng.normal(0, 9)), (bottom, middle + lean)])
    place = np.arange(canvas.image.shape[0])
    edge = np.interp(place, path[:, 0], path[:, 1])[:, None]
    inward = sign * (edge - np.arange(canvas.image.shape[1])[None])
    haze = np.exp(-inward.clip(0, None) / rng.uniform(14, 40)) * sigmoid(inward / 0.8)
    ends = sigmoid((place - top) / 14) * sigmoid((bottom - place) / 14)
    target = min(1.0, canvas.tissue + 0.2)  # denser than soft tissue, so that the fold shows outside the lung too
    canvas.add((haze * ends[:, None] * rng.uniform(0.08, 0.22)).astype(np.float32), target=target)


def _vessel_end_on(canvas: Canvas, rng: np.random.Generator) -> None:
    """One to three dense dots of vessel size near the hilum, some beside the ring of their bronchus."""
    near = _beside_hilum(canvas)
    for _ in range(int(rng.integers(1, 4))):
        centre = pick_point(near, rng)
        radius = rng.uniform(2.0, 3.8)
        where = window(centre, 16, canvas.image.shape)
        distance, _ = polar(centre, where)
        canvas.add(sigmoid((radius - distance) / 0.6) * rng.uniform(0.35, 0.7), where=where)
        if rng.random() < 0.5:
            turn = rng.uniform(0, 6.3)
            beside = (centre[0] + 2.3 * radius * np.sin(turn), centre[1] + 2.3 * radius * np.cos(turn))
            distance, _ = polar(beside, where)
            canvas.add(np.exp(-(((distance - radius) / 0.8) ** 2)) * rng.uniform(0.2, 0.45), where=where)


def _beside_hilum(canvas: Canvas) -> np.ndarray:
    """The inner part of both lungs at half their height."""
    lungs = canvas.lungs.both
    rows = np.flatnonzero(lungs.any(1))
    height = (np.arange(lungs.shape[0]) - rows[0]) / (rows[-1] - rows[0])
    away = np.abs(np.arange(lungs.shape[1]) - canvas.lungs.midline_px)
    near = lungs & ((height > 0.35) & (height < 0.68))[:, None] & (away < 0.17 * lungs.shape[1])[None]
    return near if near.any() else lungs


def _round_shadow_outside(canvas: Canvas, rng: np.random.Generator) -> None:
    """A round soft shadow of nodule size over the chest wall, the shoulder or below the diaphragm."""
    centre = pick_point(_around(canvas), rng)
    radius = rng.uniform(5, 14)
    where = window(centre, 1.6 * radius + 4, canvas.image.shape)
    distance, angle = polar(centre, where)
    outline = radius * (1 + 0.08 * np.cos(2 * angle + rng.uniform(0, 6.3)))
    body = sigmoid((outline - distance) / (0.15 * radius))
    target = min(1.0, canvas.tissue + 0.12)
    canvas.add(body * rng.uniform(0.3, 0.6), target=target, where=where)


def _calcified_outside(canvas: Canvas, rng: np.random.Generator) -> None:
    """Specks of calcium over cartilage, shoulder or abdomen."""
    centre = pick_point(_around(canvas), rng)
    where = window(centre, 16, canvas.image.shape)
    distance, _ = polar(centre, where)
    grains = ndimage.gaussian_filter((smooth_noise(distance.shape, 3, rng) > 1.0).astype(np.float32), 0.6)
    specks = grains * sigmoid((rng.uniform(5, 12) - distance) / 1.5)
    canvas.add((specks * rng.uniform(0.5, 0.9)).clip(0, 1), target=min(1.0, canvas.tissue + 0.25), where=where)


def _around(canvas: Canvas) -> np.ndarray:
    """Within about 40 px of the lungs, but not in them, and not over the heart."""
    near = np.asarray(ndimage.distance_transform_edt(~canvas.lungs.both)) < 40
    return near & ~grow(canvas.lungs.both | canvas.lungs.heart, 14)


HARD_DISTRACTORS: dict[str, tuple[float, Callable[[Canvas, np.random.Generator], None]]] = {
    "skin fold": (0.12, _skin_fold),
    "vessel end-on": (0.2, _vessel_end_on),
    "round shadow outside the lungs": (0.12, _round_shadow_outside),
    "calcification outside the lungs": (0.12, _calcified_outside),
}
"""Chance and painter of each."""
