"""A procedural chest in HU, for when there is no real scan: lungs, heart, spine, ribs, diaphragm, airway and vessels.

Shapes are simple (superellipsoids, domes, tubes), sizes vary with the generator. It teaches the place of a finding, not
what a chest looks like; use real bases wherever there are any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from radglint.simulation.ct import CtBase, make_base

_EXTENT_MM = (310.0, 308.0, 392.0)
_RIB_STEP_MM, _RIB_THICK_MM, _RIB_FALL_MM = 25.0, 8.0, 62.0
_HILUM_MM = (125.0, 5.0, 28.0)


@dataclass(frozen=True)
class _Grid:
    """Millimetres from the phantom's foot end, middle and midline (to the patient's left), ready to broadcast."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows and columns."""
        return self.z.size, self.y.size, self.x.size


def make_phantom(
    rng: np.random.Generator, name: str = "phantom", *, step_mm: float = 2.5, pixel_mm: float = 1.0
) -> CtBase:
    """Build one body.

    Args:
        rng: source of sizes, vessels and noise.
        name: for manifests.
        step_mm: slice step.
        pixel_mm: pixel size in the slice.

    Returns:
        A base of about 310 x 308 x 392 mm, with its anatomy found as that of a real CT.
    """
    spacing = (step_mm, pixel_mm, pixel_mm)
    scale = rng.uniform(0.93, 1.07, 3)
    z, y, x = (_axis(k, spacing[k], scale[k]) for k in range(3))
    grid = _Grid(z, y, x, spacing)
    hu = _body(grid)
    lungs = {side: _lung(grid, sign, rng) for side, sign in (("right", -1), ("left", 1))}
    both = lungs["right"] | lungs["left"]
    _ribs(hu, both, grid, rng)
    _spine(hu, grid)
    heart = _heart(grid, rng)
    hu[heart & (hu > -400)] = 45
    lung_hu = rng.uniform(-880, -820)
    hu[both & ~heart] = lung_hu
    for sign, side in ((-1, "right"), (1, "left")):
        _vessels(hu, lungs[side] & ~heart, grid, sign, rng)
    _airway(hu, grid)
    hu = ndimage.gaussian_filter(hu, (0.3, 0.7 / pixel_mm, 0.7 / pixel_mm))
    hu += _texture(both, rng) + rng.normal(0, rng.uniform(6, 14), hu.shape).astype(np.float32)
    return make_base(np.clip(hu, -1024, 3071), spacing, name=name)


def _axis(number: int, step: float, scale: float) -> np.ndarray:
    """Millimetres along one axis, unscaled body to scaled grid."""
    count = round(_EXTENT_MM[number] / step)
    start = 0.0 if number == 0 else (count - 1) / 2
    values = ((np.arange(count) - start) * step / scale).astype(np.float32)
    return values.reshape([-1 if k == number else 1 for k in range(3)])


def _body(grid: _Grid) -> np.ndarray:
    """Skin, fat and muscle: HU of a chest without its inside."""
    shoulders = 1 + 0.08 * np.clip((grid.z - 235) / 60, 0, 1)
    reach = (np.abs(grid.x) / (168 * shoulders)) ** 2.6 + (np.abs(grid.y) / 112) ** 2.4
    inside = [(1.0, -95.0), (0.86, 50.0)]
    hu = np.full(grid.shape, -1000, np.float32)
    for limit, value in inside:
        hu[np.broadcast_to(reach < limit, hu.shape)] = value
    return hu


def _lung(grid: _Grid, sign: int, rng: np.random.Generator) -> np.ndarray:
    """One lung: narrow at the apex, hollowed by a dome from below and by the mediastinum."""
    apex, floor = 272.0, 46.0 + (8.0 if sign < 0 else 0.0) + rng.uniform(-4, 4)
    height = np.clip((grid.z - floor) / (apex - floor), 0, 1)
    width = 60 * (1 - height**3.2) ** 0.5 * (0.9 + 0.1 * np.cos(3 * height))
    depth = 84 * (1 - height**2.6) ** 0.5
    centre = sign * (76 - 22 * height)
    reach = (np.abs(grid.x - centre) / np.maximum(width, 1)) ** 2.4 + (np.abs(grid.y - 2) / np.maximum(depth, 1)) ** 2.4
    inside = (reach < 1) & (grid.z > floor - 30) & (grid.z < apex)
    dome = floor + 46 * np.exp(-(((grid.x - centre) / 52) ** 2) - ((grid.y + 18) / 72) ** 2) - 22
    return inside & (grid.z > dome) & (np.abs(grid.x) > 14 + 8 * (grid.y > 20))


def _ribs(hu: np.ndarray, lungs: np.ndarray, grid: _Grid, rng: np.random.Generator) -> None:
    """Bands of bone in the wall around the lungs that fall from the spine to the front, and the sternum."""
    away = np.asarray(ndimage.distance_transform_edt(~lungs, sampling=grid.spacing_mm), np.float32)
    wall = (away > 2) & (away < 10)
    forward = np.arctan2(np.abs(grid.x), grid.y) / np.pi  # 0 at the back, 1 in front: rows run front to back
    phase = (grid.z + _RIB_FALL_MM * forward + rng.uniform(0, _RIB_STEP_MM)) % _RIB_STEP_MM
    rib = wall & (phase < _RIB_THICK_MM) & (np.abs(grid.x) > 22) & (hu > -200)
    inner = (away > 3.8) & (away < 8.2) & (phase > 1.8) & (phase < _RIB_THICK_MM - 1.8)
    hu[rib] = 1000
    hu[rib & inner] = 420
    sternum = (np.abs(grid.x) < 16) & (grid.y < -82) & (grid.y > -94) & (grid.z > 110) & (grid.z < 250)
    hu[np.broadcast_to(sternum, hu.shape) & (hu > -200)] = 220


def _spine(hu: np.ndarray, grid: _Grid) -> None:
    """Vertebrae with discs, and the canal behind them."""
    body = (grid.x / 17) ** 2 + ((grid.y - 62) / 15) ** 2 < 1
    disc = (grid.z % 24) < 4
    hu[np.broadcast_to(body & ~disc, hu.shape)] = 230
    hu[np.broadcast_to(body & disc, hu.shape)] = 80
    arch = ((grid.x / 24) ** 2 + ((grid.y - 88) / 11) ** 2 < 1) & ((grid.x / 9) ** 2 + ((grid.y - 84) / 8) ** 2 > 1)
    hu[np.broadcast_to(arch & ((grid.z % 24) > 7), hu.shape)] = 320


def _heart(grid: _Grid, rng: np.random.Generator) -> np.ndarray:
    """Heart and great vessels."""
    size = rng.uniform(0.92, 1.05)
    x, y, z = grid.x - 20, grid.y + 22, grid.z - 92
    heart = (x / (58 * size)) ** 2 + (y / (46 * size)) ** 2 + ((z + 0.25 * x) / (56 * size)) ** 2 < 1
    rounded = np.clip((grid.z - 180) / 24, 0, 1) ** 2
    aorta = ((grid.x - 18) / 15) ** 2 + ((grid.y - 42) / 14) ** 2 + rounded < 1
    stem = ((grid.x - 4) / 26) ** 2 + ((grid.y + 6) / 30) ** 2 + rounded < 1
    return heart | aorta | (stem & (grid.z > 110))


def _airway(hu: np.ndarray, grid: _Grid) -> None:
    """Trachea and the two main bronchi."""
    trachea = (grid.x / 9) ** 2 + ((grid.y - 12) / 9) ** 2 < 1
    hu[np.broadcast_to(trachea & (grid.z > 158), hu.shape)] = -980
    for sign, fall in ((-1, 0.9), (1, 0.65)):
        centre = sign * (160 - grid.z) / fall
        bronchus = ((grid.x - centre) / 8) ** 2 + ((grid.y - 14) / 6.5) ** 2 < 1
        part = bronchus & (grid.z <= 160) & (grid.z > 132)
        hu[np.broadcast_to(part, hu.shape)] = -980


def _vessels(hu: np.ndarray, lung: np.ndarray, grid: _Grid, sign: int, rng: np.random.Generator) -> None:
    """A tree from the hilum: each branch bends, thins and splits in two."""
    start = np.array([_HILUM_MM[0], _HILUM_MM[1], sign * _HILUM_MM[2]])
    tree: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(int(rng.integers(11, 16))):
        way = np.array([rng.normal(0, 1), rng.normal(0, 0.8), sign * rng.uniform(0.2, 1.2)])
        tree.append((start + rng.normal(0, 8, 3), way / np.linalg.norm(way), float(rng.uniform(3.2, 4.8))))
    origin, step = _to_index(grid)
    while tree:
        point, way, radius = tree.pop()
        for _ in range(int(rng.integers(8, 14))):
            way = way + rng.normal(0, 0.12, 3)
            way /= np.linalg.norm(way)
            point = point + 2.4 * way
            _dot(hu, lung, (point - origin) / step, radius, grid.spacing_mm)
        index = np.rint((point - origin) / step).astype(int)
        inside = (index >= 0).all() and (index < hu.shape).all() and bool(lung[tuple(index)])
        if radius > 0.9 and (inside or radius > 2.5):
            for _ in range(2):
                turn = way + rng.normal(0, 0.5, 3)
                tree.append((point, turn / np.linalg.norm(turn), radius * float(rng.uniform(0.68, 0.86))))


def _to_index(grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """First coordinate and step in mm of each axis."""
    axes = [part.ravel() for part in (grid.z, grid.y, grid.x)]
    return np.array([a[0] for a in axes]), np.array([a[1] - a[0] for a in axes])


def _dot(hu: np.ndarray, lung: np.ndarray, index: np.ndarray, radius_mm: float, spacing_mm: tuple[float, ...]) -> None:
    """A ball of blood, with partial volume, where there is lung."""
    reach = [int(np.ceil((radius_mm + 1) / s)) for s in spacing_mm]
    box = tuple(slice(max(0, round(c) - r), max(0, round(c) + r + 1)) for c, r in zip(index, reach, strict=True))
    view = hu[box]
    if not view.size:
        return
    z, y, x = (
        ((np.arange(s.start, s.start + n) - c) * step) ** 2
        for s, n, c, step in zip(box, view.shape, index, spacing_mm, strict=True)
    )
    distance = np.sqrt(z[:, None, None] + y[:, None] + x)
    share = np.minimum(np.maximum(radius_mm + 0.5 - distance, 0), 1) * lung[box]
    view[...] = np.maximum(view, -850 + share * 890)


def _texture(lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fine unevenness of the lung and a gradient to the back."""
    noise = ndimage.gaussian_filter(rng.standard_normal(lungs.shape, dtype=np.float32), (0.8, 1.6, 1.6))
    slope = np.linspace(-18, 22, lungs.shape[1], dtype=np.float32)[None, :, None]
    return lungs * (noise * np.float32(18 / noise.std()) + slope)
