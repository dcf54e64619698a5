"""Small images for the viewer's tests: a made chest with a ball in the left lung, as CT and as its radiograph."""

from __future__ import annotations

import numpy as np

SHAPE = (26, 112, 128)  # slices feet to head, rows front to back, columns from the patient's right to the left
STEP_MM = (10.0, 2.6, 2.8)
BALL_MM = (24.0, 0.0, 78.0)  # up, back, left of the middle
BALL_RADIUS_MM = 26.0


def _ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """1 in the middle of an ellipsoid (millimetres from the middle of the volume), 0 on its surface."""
    axes = [((np.arange(n) - (n - 1) / 2) * step - c) / r for n, step, c, r in zip(SHAPE, STEP_MM, centre, radii, strict=True)]
    return 1 - axes[0][:, None, None] ** 2 - axes[1][:, None] ** 2 - axes[2] ** 2


def chest_hu() -> np.ndarray:
    """HU of the chest, int16 of `SHAPE`."""
    rng = np.random.default_rng(7)
    hu = np.full(SHAPE, -1000.0)
    body = _ball((0, 0, 0), (1e4, 120, 165))
    hu[body > 0] = 40
    hu[(body > 0) & (body < 0.16)] = -90
    for side in (-1, 1):
        lung = _ball((10, -5, side * 75), (125, 88, 58))
        hu[lung > 0] = -840 + 60 * rng.random(SHAPE)[lung > 0]
    hu[_ball((-20, -30, 15), (60, 45, 48)) > 0] = 45
    hu[_ball((0, 75, 0), (1e4, 20, 20)) > 0] = 350
    hu[_ball(BALL_MM, (BALL_RADIUS_MM,) * 3) > 0] = 40
    return np.rint(hu + rng.normal(0, 12, SHAPE)).astype(np.int16)


def film() -> np.ndarray:
    """A frontal radiograph of the same chest, uint8, head up, the patient's right on the left; rows are 2.8 mm as well."""
    hu = chest_hu().astype(np.float32)
    through = np.clip(hu + 1000, 0, None).sum(axis=1)[::-1] * (STEP_MM[1] / 10000)
    rows = np.linspace(0, SHAPE[0] - 1, round(SHAPE[0] * STEP_MM[0] / STEP_MM[2]))
    low = np.floor(rows).astype(int)
    part = (rows - low)[:, None]
    tall = through[low] * (1 - part) + through[np.minimum(low + 1, SHAPE[0] - 1)] * part
    bright = 1 - np.exp(-0.12 * tall)
    return np.rint(255 * np.clip(bright / bright.max(), 0, 1)).astype(np.uint8)
