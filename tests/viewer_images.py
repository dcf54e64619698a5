"""Small images for the viewer's tests: a made chest with a ball in the left lung, as CT and as its radiograph."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dicom_files import write_ct_series
from dicom_results import FRAME_OF_REFERENCE

SHAPE = (14, 96, 112)  # slices feet to head, rows front to back, columns from the patient's right to the left
STEP_MM = (18.0, 3.0, 3.2)
BALL_MM = (24.0, 0.0, 78.0)  # up, back, left of the middle
BALL_RADIUS_MM = 26.0
MARK = (200, 8, 216, 24)  # left, top, right, bottom of the film's mark


def _ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """1 in the middle of an ellipsoid (millimetres from the middle of the volume), 0 on its surface."""
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step - c) / r
        for n, step, c, r in zip(SHAPE, STEP_MM, centre, radii, strict=True)
    ]
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
    """A frontal radiograph of the same chest, uint8, head up, the patient's right on the left; square pixels."""
    hu = chest_hu().astype(np.float32)
    through = np.clip(hu + 1000, 0, None).sum(axis=1)[::-1] * (STEP_MM[1] / 10000)
    rows = np.linspace(0, SHAPE[0] - 1, round(SHAPE[0] * STEP_MM[0] / STEP_MM[2]))
    low = np.floor(rows).astype(int)
    part = (rows - low)[:, None]
    tall = through[low] * (1 - part) + through[np.minimum(low + 1, SHAPE[0] - 1)] * part
    bright = 1 - np.exp(-0.12 * tall)
    return np.rint(255 * np.clip(bright / bright.max(), 0, 1)).astype(np.uint8)


def film_png() -> bytes:
    """The radiograph as a PNG of twice the size, with a bright mark in its upper right corner, as on real films."""
    picture = Image.fromarray(film()).resize((2 * film().shape[1], 2 * film().shape[0]), Image.Resampling.BILINEAR)
    picture.paste(255, MARK)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def series_zip(folder: Path) -> bytes:
    """The CT as a zip of DICOM slices, written below a folder."""
    tags: dict[str, Any] = {"PixelSpacing": [STEP_MM[1], STEP_MM[2]], "SliceThickness": STEP_MM[0]}
    tags["FrameOfReferenceUID"] = FRAME_OF_REFERENCE
    origin = tuple(-(n - 1) / 2 * step for n, step in zip(SHAPE[::-1], STEP_MM[::-1], strict=True))
    paths = write_ct_series(folder, chest_hu(), step=(0.0, 0.0, STEP_MM[0]), origin=origin, **tags)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return buffer.getvalue()
