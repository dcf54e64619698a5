"""Painters of single CT findings: each puts one finding into a `Scene` and returns its exact mask, or None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from radglint.simulation.ct_real import paint_lesion
from radglint.simulation.ct_scene import Scene, soft_step
from radglint.simulation.facts import Fact

Painter = Callable[[Scene, Fact], "np.ndarray | None"]
"""Changes the scene's HU; returns the finding's bool mask, or None if it does not fit (HU then unchanged)."""

NODULE_DIAMETER_MM = {"small": (4.5, 9.0), "medium": (9.0, 18.0), "large": (18.0, 30.0)}
"""Diameter range of each nodule size."""
MASS_DIAMETER_MM = {"small": (23.0, 36.0), "medium": (36.0, 46.0), "large": (46.0, 62.0)}
"""Diameter range of each mass size."""
REAL_SHARE = 0.67
"""Share of nodules and masses that are real ones, where there are real ones of that size."""
_REACH = {"small": 0.6, "medium": 0.85, "large": 1.25}


def _pick_centre(scene: Scene, fact: Fact, depth_mm: tuple[float, float]) -> np.ndarray | None:
    """Voxel of the right side and zone whose in-plane depth below the lung's surface is in a range."""
    slices = scene.rng.permutation(scene.slices_in_zone(fact.zone))
    for index in slices[:4]:
        lung = scene.lung(fact.side or "bilateral")[index]
        if lung.sum() < 300:
            continue
        depth = np.asarray(ndimage.distance_transform_edt(lung)) * scene.spacing_mm[1]
        rows, columns = np.nonzero((depth >= depth_mm[0]) & (depth <= depth_mm[1]))
        if rows.size:
            k = scene.rng.integers(rows.size)
            return np.array([index + scene.rng.uniform(-0.5, 0.5), rows[k], columns[k]])
    return None


def _box(scene: Scene, centre: np.ndarray, reach_mm: float) -> tuple[slice, slice, slice] | None:
    spans = []
    for c, s, n in zip(centre, scene.spacing_mm, scene.hu.shape, strict=True):
        low, high = max(0, int(c - reach_mm / s)), min(n, int(c + reach_mm / s) + 2)
        if high <= low:
            return None
        spans.append(slice(low, high))
    return spans[0], spans[1], spans[2]


@dataclass(frozen=True)
class _Lump:
    """Outline of a nodule or mass: a stretched ball with lobes, spikes and a rough surface."""

    radius_mm: float
    edge_mm: float
    rough: float
    stretch: np.ndarray
    bumps: np.ndarray
    """Rows of (direction z, y, x, height in mm, sharpness)."""


def _ball(scene: Scene, box: tuple[slice, ...], centre: np.ndarray, lump: _Lump) -> np.ndarray:
    """Share of each voxel of `box` inside a lump, [0, 1]; three sub-slices give the partial volume along z."""
    size = tuple(s.stop - s.start for s in box)
    total = np.zeros(size, np.float32)
    surface = np.full(size, lump.radius_mm, np.float32)
    if lump.rough > 0:
        for part, weight in ((1.0, 1.0), (0.4, 0.45)):
            scale = max(lump.radius_mm * part, 2.5)
            surface += np.float32(lump.rough * lump.radius_mm * weight) * scene.field(scale, shape=size)
    axes = [(np.arange(s.start, s.stop) - c) * step for s, c, step in zip(box, centre, scene.spacing_mm, strict=True)]
    for shift in (-1 / 3, 0.0, 1 / 3):
        grid = np.meshgrid(axes[0] + shift * scene.spacing_mm[0], axes[1], axes[2], indexing="ij")
        z, y, x = np.tensordot(lump.stretch, np.stack(grid), 1).astype(np.float32)
        distance = np.sqrt(z * z + y * y + x * x) + np.float32(1e-3)
        radius = surface.copy()
        for uz, uy, ux, bump, power in lump.bumps.astype(np.float32):
            along = np.clip((z * uz + y * uy + x * ux) / distance, 0, 1)
            radius += bump * along**power
        total += soft_step(radius - distance, lump.edge_mm)
    return total / 3


def _lump(scene: Scene, radius_mm: float, edge_mm: float, kind: str) -> _Lump:
    """Draw an outline: a few broad lobes, for "spiculated" many thin spikes, and a random stretch."""
    rng = scene.rng
    lobes = {"smooth": 2, "lobulated": 6, "spiculated": 4}[kind]
    strength = {"smooth": 0.12, "lobulated": 0.4, "spiculated": 0.25}[kind]
    rough = {"smooth": 0.03, "lobulated": 0.12, "spiculated": 0.16}[kind] * rng.uniform(0.5, 1.3)
    spikes = int(rng.integers(9, 24)) if kind == "spiculated" else 0
    bumps = []
    for number in range(lobes + spikes):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        if number < lobes:
            bump, power = radius_mm * strength * rng.uniform(-0.5, 1.0), rng.uniform(2, 8)
        else:
            bump, power = rng.uniform(2.5, 5.0 + 0.4 * radius_mm), rng.uniform(60, 260)
        bumps.append((*direction, bump, power))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    stretch = turn @ np.diag(np.exp(rng.uniform(-0.25, 0.25, 3))) @ turn.T
    return _Lump(radius_mm, edge_mm, rough, stretch, np.array(bumps))


def _edge_mm(scene: Scene) -> float:
    """Half width of a sharp border in this scan: wider where the scan is smoother."""
    return float(0.8 + scene.noise.blur_px * scene.rng.uniform(0.5, 1.2))


def paint_nodule(scene: Scene, fact: Fact) -> np.ndarray | None:
    """A nodule of 4.5 to 30 mm: smooth, lobulated or spiculated; solid, part-solid or ground-glass."""
    low, high = NODULE_DIAMETER_MM[fact.size or "medium"]
    real = _paint_real(scene, fact, low, high)
    if real is not None:
        return real
    texture = scene.rng.choice(["solid", "part-solid", "ground-glass"], p=[0.72, 0.13, 0.15])
    texture = "solid" if high < 10 and texture == "part-solid" else str(texture)
    return _paint_lump(scene, fact, scene.rng.uniform(low, high), texture)


def paint_calcified_nodule(scene: Scene, fact: Fact) -> np.ndarray | None:
    """A dense nodule (250 to 900 HU), smaller than a soft one of the same size word."""
    low, high = NODULE_DIAMETER_MM[fact.size or "medium"]
    return _paint_lump(scene, fact, 0.8 * scene.rng.uniform(low, high), "calcified")


def paint_mass(scene: Scene, fact: Fact) -> np.ndarray | None:
    """A lobulated or spiculated mass of 23 to 62 mm; about half of them abut the pleura or mediastinum."""
    low, high = MASS_DIAMETER_MM[fact.size or "medium"]
    real = _paint_real(scene, fact, low, high)
    return real if real is not None else _paint_lump(scene, fact, scene.rng.uniform(low, high), "mass")


def _paint_real(scene: Scene, fact: Fact, low_mm: float, high_mm: float) -> np.ndarray | None:
    """A real lesion of a size, in two of three cases if there is one; None leaves it to the made ones."""
    fitting = [x for x in scene.lesions if low_mm <= x.diameter_mm <= high_mm and not x.calcified]
    if not fitting or scene.rng.random() > REAL_SHARE:
        return None
    lesion = fitting[int(scene.rng.integers(len(fitting)))]
    centre = _pick_centre(scene, fact, (min(lesion.diameter_mm / 3, 12.0), 200.0))
    mask = None if centre is None else paint_lesion(scene, lesion, centre, scene.room(fact.side or "bilateral"))
    scene.placed = lesion if mask is not None else None
    return mask


def _paint_lump(scene: Scene, fact: Fact, diameter_mm: float, texture: str) -> np.ndarray | None:
    rng = scene.rng
    radius = diameter_mm / 2
    at_surface = rng.random() < (0.5 if texture == "mass" else 0.25)
    depth = (0.2 * radius, 0.9 * radius + 1) if at_surface else (min(radius + 2, 14.0), 200.0)
    centre = _pick_centre(scene, fact, depth)
    box = _box(scene, centre, radius * 1.9 + 8) if centre is not None else None
    if centre is None or box is None:
        return None
    odds = [0.15, 0.5, 0.35] if texture == "mass" else [0.5, 0.3, 0.2] if diameter_mm > 8 else [0.8, 0.2, 0.0]
    kind = "smooth" if texture == "calcified" else str(rng.choice(["smooth", "lobulated", "spiculated"], p=odds))
    edge = _edge_mm(scene) * (1.0 if texture != "ground-glass" else 1.8)
    share = _ball(scene, box, centre, _lump(scene, radius, edge, kind))
    room = scene.room(fact.side or "bilateral")[box]
    mask = np.zeros(scene.hu.shape, bool)
    mask[box] = (share > 0.5) & room
    if mask.sum() * np.prod(scene.spacing_mm) < 0.35 * 4.19 * min(radius, 4.0 * scene.spacing_mm[0]) * radius**2:
        return None
    if kind == "spiculated" and texture != "ground-glass":
        _paint_strands(scene, fact, centre, radius)
    _fill_lump(scene, box, share * room, centre, radius, texture)
    return mask


def _paint_strands(scene: Scene, fact: Fact, centre: np.ndarray, radius_mm: float) -> None:
    """Thin dense lines from a spiculated lump into the lung."""
    lines = np.zeros(scene.hu.shape, np.float32)
    for _ in range(int(scene.rng.integers(2, 7))):
        direction = scene.rng.standard_normal(3) * (0.4, 1, 1)
        reach = radius_mm * 1.1 + scene.rng.uniform(4, 18)
        _draw_tube(scene, lines, centre, centre + direction / np.linalg.norm(direction) * reach / scene.spacing_mm)
    scene.fill(lines * scene.room(fact.side or "bilateral") * np.float32(scene.rng.uniform(0.3, 0.8)), 20)


def _fill_lump(
    scene: Scene, box: tuple[slice, ...], share: np.ndarray, centre: np.ndarray, radius_mm: float, texture: str
) -> None:
    """Put the tissue of a nodule or mass into its place."""
    rng = scene.rng
    if texture in {"ground-glass", "part-solid"}:
        scene.fill(share * np.float32(rng.uniform(0.3, 0.6)), 20, box)
    if texture == "ground-glass":
        return
    if texture == "part-solid":
        core = _lump(scene, radius_mm * rng.uniform(0.35, 0.65), 1.6, "lobulated")
        share = np.minimum(share, _ball(scene, box, centre + rng.uniform(-0.1, 0.1, 3), core))
    target = rng.uniform(250, 900) if texture == "calcified" else rng.uniform(-15, 70)
    if texture == "mass":
        share = share * (1 - 0.12 * np.clip(scene.field(12)[box], 0, 2)) if rng.random() < 0.3 else share
        target = rng.uniform(5, 75)
    scene.fill(share, target, box)


def _blob(scene: Scene, fact: Fact, roughness: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Irregular region around a point of the lung: values above 0 inside; also the centre."""
    centre = _pick_centre(scene, fact, (2, 60))
    if centre is None:
        return None
    scale = _REACH[fact.size or "medium"] * scene.rng.uniform(0.85, 1.15)
    radii = scene.rng.uniform((28, 26, 26), (50, 48, 48)) * scale
    z, y, x = scene.millimetres(centre)
    distance = np.sqrt((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)
    region = 1 - distance + np.float32(roughness) * (scene.field(24 * scale, 30) + 0.4 * scene.field(9))
    return region.astype(np.float32), centre


def paint_consolidation(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Lobar or patchy filled lung (-40 to 60 HU) with air bronchograms; one edge may be a fissure."""
    found = _blob(scene, fact, scene.rng.uniform(0.25, 0.6))
    if found is None:
        return None
    region, centre = found
    rng = scene.rng
    if rng.random() < 0.4 and fact.size != "small":
        z, y, x = scene.millimetres(centre)
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        region = np.minimum(region, (normal[0] * z + normal[1] * y + normal[2] * x + rng.uniform(0, 15)) / 12)
    if rng.random() < 0.35:
        region = np.minimum(region + 0.25, 0.5 * scene.field(rng.uniform(10, 18), 16) + 0.12)
    share = soft_step(region, rng.uniform(0.1, 0.35)) * scene.room(fact.side or "bilateral")
    mask = share > 0.5
    if mask.sum() * np.prod(scene.spacing_mm) < 1500:
        return None
    density = np.clip(rng.uniform(0.88, 1.0) + 0.05 * scene.field(9), 0.78, 1)
    halo = rng.uniform(0.15, 0.45) * soft_step(region + 0.18 + 0.1 * scene.field(7), 0.22)
    halo = halo * scene.room(fact.side or "bilateral")
    share = np.maximum(share * density, halo)
    scene.fill(share * (1 - rng.uniform(0.5, 0.85) * _bronchi(scene, fact, mask)), rng.uniform(5, 65))
    return mask


def _bronchi(scene: Scene, fact: Fact, mask: np.ndarray) -> np.ndarray:
    """Thin branching air tubes from the hilum into a region, share [0, 1]."""
    side = scene.lung(fact.side or "bilateral")
    tubes = np.zeros(scene.hu.shape, np.float32)
    points = np.argwhere(mask)
    columns = np.nonzero(side.any(axis=(0, 1)))[0]
    inner = columns.max() if fact.side == "right" else columns.min()
    rows = np.nonzero(side.any(axis=(0, 2)))[0]
    for _ in range(int(scene.rng.integers(0, 6))):
        end = (0.5 * points.mean(axis=0) + 0.5 * points[scene.rng.integers(len(points))]).astype(np.float64)
        start = np.array([end[0] + scene.rng.uniform(-6, 8), 0.55 * rows.mean() + 0.45 * end[1], inner])
        _draw_tube(scene, tubes, start, end)
    return tubes


def _draw_tube(scene: Scene, tubes: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    """Draw a tapering, slightly bent tube into `tubes` (maximum)."""
    bend, twist = scene.rng.normal(0, 5, (2, 3)) * (0.4, 1, 1)
    radius_mm = scene.rng.uniform(0.8, 1.7)
    for t in np.linspace(0.15, 1.05, 70):
        point = start + t * (end - start) + bend * np.sin(np.pi * t) + 0.5 * twist * np.sin(2 * np.pi * t)
        box = _box(scene, point, 4)
        if box is None:
            continue
        z, y, x = (
            ((np.arange(s.start, s.stop) - p) * step).astype(np.float32)
            for s, p, step in zip(box, point, scene.spacing_mm, strict=True)
        )
        distance = np.sqrt((z[:, None, None] * 0.7) ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
        tubes[box] = np.maximum(tubes[box], soft_step(radius_mm * (1.2 - 0.7 * t) - distance, 0.9))


def paint_ground_glass(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Hazy patchy lung: part of the air is replaced by fluid (+150 to +400 HU); vessels stay visible."""
    rng = scene.rng
    if fact.side == "bilateral":
        region: np.ndarray = 0.4 * scene.field(rng.uniform(22, 50), 30) + np.float32(rng.uniform(-0.15, 0.2))
    else:
        found = _blob(scene, fact, rng.uniform(0.3, 0.55))
        if found is None:
            return None
        region = found[0]
    share = soft_step(region, rng.uniform(0.12, 0.35)) * scene.room(fact.side or "bilateral")
    mask = share > 0.5
    if mask.sum() * np.prod(scene.spacing_mm) < 2000:
        return None
    texture = np.clip(1 + 0.2 * scene.field(5), 0.4, 1.6)
    scene.fill(share * texture * np.float32(rng.uniform(0.2, 0.45)), 25)
    return mask
