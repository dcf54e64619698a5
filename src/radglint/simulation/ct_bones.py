"""A rib fracture painted into a CT: a gap across a rib that is there, one end displaced, blood around it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_ct import BONE, LEFT_LUNG, RIGHT_LUNG
from radglint.simulation.ct_scene import Scene, soft_step
from radglint.simulation.facts import Fact

_FROM_LUNG_MM = 14.0  # a rib lies this near to the lung; a scapula does not
_FROM_MIDLINE_MM = 60.0
_BONE_HU = 180.0
_REACH_MM = 24.0


def paint_rib_fracture(scene: Scene, fact: Fact) -> np.ndarray | None:
    """Break one rib of each side that the fact names.

    Args:
        scene: changed in place.
        fact: its side.

    Returns:
        The mask: bone and blood within about 10 mm of the break; None if there is no rib.
    """
    sides = ("right", "left") if fact.side in {"bilateral", None} else (str(fact.side),)
    mask = np.zeros(scene.hu.shape, bool)
    for side in sides:
        centre = _find_rib(scene, side)
        if centre is None:
            return None
        _break(scene, centre, mask)
    return mask


def _find_rib(scene: Scene, side: str) -> np.ndarray | None:
    """A voxel of bone near the outer surface of a lung."""
    lungs = np.nonzero(((scene.labels == LEFT_LUNG) | (scene.labels == RIGHT_LUNG)).any(axis=(0, 1)))[0]
    if not lungs.size:
        return None
    away = (np.arange(scene.hu.shape[2]) - (lungs[0] + lungs[-1]) / 2) * scene.spacing_mm[2]
    outer = (away > _FROM_MIDLINE_MM) if side == "left" else (away < -_FROM_MIDLINE_MM)
    lung = scene.lung(side)
    for index in scene.rng.permutation(np.arange(1, len(lung) - 1))[:30]:
        bone = (scene.labels[index] == BONE) & outer[None] & (scene.hu[index] > _BONE_HU)
        if not bone.any() or lung[index].sum() < 300:
            continue
        near = np.asarray(ndimage.distance_transform_edt(~lung[index])) * scene.spacing_mm[1] < _FROM_LUNG_MM
        places = np.argwhere(bone & near)
        if len(places) > 12:
            return np.array([index, *places[scene.rng.integers(len(places))]], float)
    return None


def _break(scene: Scene, centre: np.ndarray, mask: np.ndarray) -> None:
    """Displace one end, open the gap, let blood spread; adds to `mask`."""
    rng = scene.rng
    box = tuple(
        slice(max(0, int(c - _REACH_MM / s)), min(n, int(c + _REACH_MM / s) + 2))
        for c, s, n in zip(centre, scene.spacing_mm, scene.hu.shape, strict=True)
    )
    offset_mm = _offsets(scene, box, centre)
    axis = _axis(scene.hu[box], offset_mm)
    along = np.tensordot(axis, offset_mm, 1)
    away = np.sqrt(np.maximum((offset_mm**2).sum(0) - along**2, 0))
    before = scene.hu[box].copy()
    _displace(scene, box, axis, along, away)
    line = along + 0.5 * scene.field(5, shape=along.shape)
    gap = np.exp(-((line / rng.uniform(0.9, 1.6)) ** 2)) * (scene.hu[box] > 100) * soft_step(9 - away, 2)
    scene.fill(gap.astype(np.float32) * np.float32(rng.uniform(0.7, 1)), rng.uniform(30, 80), box, replace=True)
    distance = np.sqrt((offset_mm**2).sum(0))
    blood = soft_step(rng.uniform(4, 8) - distance, 2) * np.float32(rng.uniform(0.4, 1))
    scene.fill(blood, rng.uniform(35, 65), box)
    changed = np.abs(scene.hu[box] - before) > 60
    mask[box] |= (distance < 11) & (changed | (before > _BONE_HU) | (scene.hu[box] > _BONE_HU))


def _offsets(scene: Scene, box: tuple[slice, ...], centre: np.ndarray) -> np.ndarray:
    """Offsets in mm from the break, `3 slices rows columns` of the box."""
    axes = [(np.arange(s.start, s.stop) - c) * step for s, c, step in zip(box, centre, scene.spacing_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _axis(hu: np.ndarray, offset_mm: np.ndarray) -> np.ndarray:
    """Direction in which the bone around the break is longest, unit length."""
    bone = (hu > _BONE_HU) & ((offset_mm**2).sum(0) < 15**2)
    points = offset_mm[:, bone]
    if points.shape[1] < 8:
        return np.array([0.0, 1.0, 0.0], np.float32)
    return np.linalg.eigh(np.cov(points))[1][:, -1].astype(np.float32)


def _displace(scene: Scene, box: tuple[slice, ...], axis: np.ndarray, along: np.ndarray, away: np.ndarray) -> None:
    """Move what lies beyond the gap by 1 to 5 mm across the rib in the slice plane, fading out with the distance."""
    across = np.array([0.0, -axis[2], axis[1]])
    across = across / max(float(np.linalg.norm(across)), 1e-6) * scene.rng.choice([-1, 1]) * scene.rng.uniform(1, 5)
    fades = soft_step(along, 0.8) * np.exp(-((along.clip(0, None) / 11) ** 2)) * np.exp(-((away / 9) ** 2))
    index = np.mgrid[tuple(slice(0, n) for n in along.shape)].astype(np.float32)
    steps = np.array(scene.spacing_mm)
    source = [index[k] + fades * across[k] / steps[k] for k in range(3)]
    scene.hu[box] = ndimage.map_coordinates(scene.hu[box], source, order=1, mode="nearest")
