"""Painters of pleural and diffuse CT findings: effusion, pneumothorax, atelectasis, emphysema, reticulation."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from radglint.simulation.ct_bones import paint_rib_fracture
from radglint.simulation.ct_findings import (
    Painter,
    _edge_mm,
    _pick_centre,
    paint_calcified_nodule,
    paint_consolidation,
    paint_ground_glass,
    paint_mass,
    paint_nodule,
)
from radglint.simulation.ct_scene import Scene, soft_step
from radglint.simulation.facts import Fact

EFFUSION_DEPTH_MM = {"small": (8.0, 18.0), "medium": (20.0, 38.0), "large": (45.0, 80.0)}
"""Largest front-to-back depth of the fluid at the lung base."""
PNEUMOTHORAX_DEPTH_MM = {"small": (5.0, 13.0), "medium": (14.0, 28.0), "large": (30.0, 60.0)}
"""Largest depth of the air layer in front of the lung."""


def _sides(fact: Fact) -> tuple[str, ...]:
    return ("right", "left") if fact.side in {"bilateral", None} else (str(fact.side),)


def _surface_mm(scene: Scene, side: str, *, back: bool) -> np.ndarray:
    """Row position in mm of the lung's back (or front) surface per slice and column; NaN-free, -1e4 or 1e4 outside."""
    lung = scene.lung(side)
    rows = lung.shape[1]
    present = lung.any(axis=1)
    if back:
        position = rows - 1 - lung[:, ::-1].argmax(axis=1)
        surface = np.where(present, position, 10_000)
    else:
        surface = np.where(present, lung.argmax(axis=1), -10_000)
    return (surface * scene.spacing_mm[1]).astype(np.float32)


def _layer(scene: Scene, side: str, thickness_mm: np.ndarray, *, back: bool) -> np.ndarray:
    """Signed depth (mm, positive inside) of a layer on the back or front surface; rows broadcast."""
    rows = (np.arange(scene.hu.shape[1], dtype=np.float32) * np.float32(scene.spacing_mm[1]))[None, :, None]
    surface = _surface_mm(scene, side, back=back)[:, None, :]
    into_lung = surface - rows if back else rows - surface
    gate = _outermost(surface, 25 + 0.9 * max(float(np.max(thickness_mm)), 0.0), back=back)
    return np.where(gate > 0.05, thickness_mm * gate, -50) - np.maximum(into_lung, -3)


def _outermost(surface_mm: np.ndarray, limit_mm: float, *, back: bool) -> np.ndarray:
    """1 where the surface is the outer wall, 0 for columns whose surface lies deep (beside heart, spine, hilum)."""
    depth = surface_mm if back else -surface_mm
    depth = np.where(np.abs(depth) < 9_000, depth, -1e4)
    below = depth.max(axis=2, keepdims=True) - depth
    return soft_step(limit_mm - below, 20)


def _wave(scene: Scene, amplitude_mm: float, scale_mm: float = 45) -> np.ndarray:
    """Gentle waviness of an interface, `slices 1 columns`."""
    return np.float32(amplitude_mm) * scene.field(scale_mm, 60)[:, :1, :]


def _side_profile(scene: Scene, side: str, power: float) -> np.ndarray:
    """1 in the middle of the lung's width, falling to 0 at its inner and outer edge, `1 1 columns`."""
    columns = np.nonzero(scene.lung(side).any(axis=(0, 1)))[0]
    if not columns.size:
        return np.zeros((1, 1, scene.hu.shape[2]), np.float32)
    middle, half = (columns[0] + columns[-1]) / 2, max((columns[-1] - columns[0]) / 2, 1)
    u = np.clip(np.abs(np.arange(scene.hu.shape[2]) - middle) / half, 0, 1)
    return ((1 - u**power) ** 0.5).astype(np.float32)[None, None, :]


def paint_effusion(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Dependent fluid (0 to 25 HU), deepest at the base, with passive collapse of the lung beside it."""
    rng = scene.rng
    low, high = EFFUSION_DEPTH_MM[fact.size or "medium"]
    mask = np.zeros(scene.hu.shape, bool)
    target = rng.uniform(0, 28)
    for side in _sides(fact):
        depth = rng.uniform(low, high)
        top = rng.uniform(0.45, 0.7) + 0.5 * depth / 80
        falls = np.clip(1.15 * (1 - (scene.heights / top) ** 2), 0, 1).astype(np.float32)[:, None, None]
        thickness = depth * falls * _side_profile(scene, side, rng.uniform(2, 5)) + _wave(scene, 0.06 * depth)
        inside = _layer(scene, side, np.where(falls > 0, thickness, -50), back=True)
        if depth > 30:
            inside = np.minimum(inside, _horizontal(scene, side, depth * falls * rng.uniform(0.9, 1.1)))
        room = scene.room(side)
        collapse = soft_step(inside + rng.uniform(1, 6) + 0.08 * depth + 2.5 * scene.field(12), 6)
        collapse = collapse * np.float32(rng.uniform(0.3, 0.9))
        if depth > 14:
            scene.fill(collapse * room, rng.uniform(30, 90))
        share = soft_step(inside, _edge_mm(scene)) * room
        scene.fill(share, target, replace=True)
        mask |= (share > 0.5) & room
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 600 else None


def _horizontal(scene: Scene, side: str, depth_mm: np.ndarray) -> np.ndarray:
    """Signed depth below a fluid level `depth_mm` above the lung's lowest point, rising at the wall."""
    surface = _surface_mm(scene, side, back=True)
    lowest = np.where(surface < 9_000, surface, -1).max(axis=1)[:, None, None]
    rows = (np.arange(scene.hu.shape[1], dtype=np.float32) * np.float32(scene.spacing_mm[1]))[None, :, None]
    bend = 0.45 * depth_mm * (1 - _side_profile(scene, side, 2.0)) ** 2
    return rows - (lowest - 1.15 * depth_mm - bend)


def paint_pneumothorax(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Air in front of the lung without vessels, and the thin pleural line between them."""
    rng = scene.rng
    low, high = PNEUMOTHORAX_DEPTH_MM[fact.size or "medium"]
    mask = np.zeros(scene.hu.shape, bool)
    for side in _sides(fact):
        depth = rng.uniform(low, high)
        rise = np.clip(0.55 + 0.6 * scene.heights, 0.3, 1).astype(np.float32)[:, None, None]
        thickness = depth * rise * _side_profile(scene, side, rng.uniform(2.5, 6)) + _wave(scene, 0.07 * depth)
        inside = _layer(scene, side, thickness, back=False)
        lung = scene.lung(side)
        scene.fill(soft_step(inside + 12, 12) * lung * np.float32(rng.uniform(0.02, 0.12)), 30)
        share = soft_step(inside, _edge_mm(scene)) * (lung | (scene.room(side) & (inside > 0)))
        air = np.float32(-998) + np.float32(0.7) * scene.noise_hu
        scene.hu += share * (air - scene.hu)
        line = np.exp(-((inside / np.float32(1.3)) ** 2)) * (thickness > 2) * lung * np.float32(rng.uniform(0.35, 0.75))
        scene.fill(line, 20)
        mask |= (share > 0.5) & lung
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 500 else None


def paint_atelectasis(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Collapsed lung: a dependent basal band, or one to three thin plates."""
    if fact.zone == "lower" and scene.rng.random() < 0.55:
        return _dependent_band(scene, fact)
    return _plates(scene, fact)


def _dependent_band(scene: Scene, fact: Fact) -> np.ndarray | None:
    rng = scene.rng
    low, high = {"small": (6, 10), "medium": (10, 18), "large": (18, 32)}[fact.size or "medium"]
    mask = np.zeros(scene.hu.shape, bool)
    for side in _sides(fact):
        rows_falls = np.clip(1.2 - scene.heights / 0.5, 0.15, 1).astype(np.float32)[:, None, None]
        thickness = rng.uniform(low, high) * rows_falls * _side_profile(scene, side, 2.5)
        inside = _layer(scene, side, thickness + _wave(scene, 2.5, 25), back=True) + 1.5 * scene.field(12)
        room = scene.room(side)
        share = soft_step(inside, rng.uniform(1.5, 3)) * room
        scene.fill(share * np.float32(rng.uniform(0.75, 1)), rng.uniform(25, 90))
        mask |= (share > 0.5) & room
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 800 else None


def _plates(scene: Scene, fact: Fact) -> np.ndarray | None:
    rng = scene.rng
    mask = np.zeros(scene.hu.shape, bool)
    half_mm = {"small": 1.6, "medium": 2.4, "large": 3.4}[fact.size or "medium"] * rng.uniform(0.8, 1.3)
    for side in _sides(fact):
        for _ in range(int(rng.integers(1, 4))):
            centre = _pick_centre(scene, Fact(fact.concept, side, fact.zone, fact.size), (4, 30))  # type: ignore[arg-type]
            if centre is None:
                continue
            z, y, x = scene.millimetres(centre)
            angle = rng.uniform(0, np.pi)
            across = np.cos(angle) * y + np.sin(angle) * x + rng.uniform(-0.5, 0.5) * z
            along = -np.sin(angle) * y + np.cos(angle) * x
            length, height = rng.uniform(14, 42), rng.uniform(8, 22)
            reach = 1 - np.sqrt((along / length) ** 2 + (z / height) ** 2)
            across = across + 2.0 * scene.field(30) + 0.004 * along**2 * rng.uniform(-1, 1)
            taper = half_mm * np.clip(reach * 2, 0, 1) * (1 + 0.45 * scene.field(10))
            share = soft_step(taper - np.abs(across), _edge_mm(scene)) * (reach > 0) * scene.room(side)
            scene.fill(share * np.float32(rng.uniform(0.6, 1)), rng.uniform(0, 60))
            mask |= share > 0.5
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 300 else None


def _edge_nearness(scene: Scene, side: str, reach_mm: float) -> np.ndarray:
    """About 1 at the lung's surface, 0 deeper than `reach_mm`."""
    size = int(2 * reach_mm / scene.spacing_mm[1]) | 1
    lung = scene.lung(side).astype(np.float32)
    inner = ndimage.uniform_filter(lung, (1, size, size), mode="nearest")  # type: ignore[arg-type]
    return np.clip(2 - 2 * inner, 0, 1)


def paint_emphysema(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Many small wall-less holes of -960 HU and, near the surface, some bullae; the mask is the affected region."""
    rng = scene.rng
    mask = np.zeros(scene.hu.shape, bool)
    spread = {"small": -0.3, "medium": 0.15, "large": 0.8}[fact.size or "medium"]
    depth = {"small": 0.7, "medium": 0.85, "large": 0.95}[fact.size or "medium"]
    for side in _sides(fact):
        lung = scene.lung(side)
        region = soft_step(scene.field(40) + np.float32(spread + rng.uniform(-0.2, 0.2)), 0.5) * lung
        holes = soft_step(scene.field(rng.uniform(4, 8)) - np.float32(0.75 - 0.4 * spread), 0.6)
        bullae = soft_step(scene.field(26, 30) * _edge_nearness(scene, side, 14) - np.float32(1.0 - 0.3 * spread), 0.12)
        holes = np.maximum(holes, bullae * rng.integers(0, 2))
        parenchyma = soft_step(-scene.hu - 640, 90)
        share = region * holes * parenchyma * np.float32(depth)
        scene.hu += share * (np.float32(-970) + np.float32(0.6) * scene.noise_hu - scene.hu)
        mask |= region > 0.5
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 5000 else None


def paint_interstitial(scene: Scene, fact: Fact) -> np.ndarray | None:
    """A net of thin dense lines, mostly under the pleura, with some haze; the mask is the affected region."""
    rng = scene.rng
    mask = np.zeros(scene.hu.shape, bool)
    reach = {"small": 16.0, "medium": 26.0, "large": 45.0}[fact.size or "medium"] * rng.uniform(0.8, 1.2)
    for side in _sides(fact):
        near = _edge_nearness(scene, side, reach)
        region = soft_step(near - 0.5 + 0.35 * scene.field(30, 40), 0.25) * scene.room(side)
        width = np.float32(rng.uniform(0.22, 0.34))
        net = np.maximum(*(np.exp(-((scene.field(rng.uniform(4, 7), 9) / width) ** 2)) for _ in range(2)))
        strength = np.float32(rng.uniform(0.2, 0.5)) * np.clip(1 + 0.5 * scene.field(14), 0.1, 1.6)
        scene.fill(region * np.maximum(net * strength, np.float32(rng.uniform(0, 0.12))), 20)
        mask |= (region > 0.5) & scene.lung(side)
    return mask if mask.sum() * np.prod(scene.spacing_mm) > 3000 else None


PAINTERS: dict[str, Painter] = {
    "nodule": paint_nodule,
    "mass": paint_mass,
    "calcified nodule": paint_calcified_nodule,
    "consolidation": paint_consolidation,
    "ground-glass opacity": paint_ground_glass,
    "pleural effusion": paint_effusion,
    "pneumothorax": paint_pneumothorax,
    "atelectasis": paint_atelectasis,
    "emphysema": paint_emphysema,
    "interstitial pattern": paint_interstitial,
    "rib fracture": paint_rib_fracture,
}
"""The painter of each concept that the CT simulator knows."""
