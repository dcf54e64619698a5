"""Chest CT slabs with simulated findings of known place, side and size, and their exact masks.

A `CtBase` is a real CT on the canonical axial grid (slices feet to head, rows front to back, columns patient right to
left). `make_slab` cuts and deforms a slab of it and paints findings; `simulate` paints chosen findings into any volume.
Everything is decided by the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from radglint.errors import InputError
from radglint.simulation.anatomy_ct import (
    BODY,
    HEART,
    LEFT_LUNG,
    RIGHT_LUNG,
    ChestAnatomy,
    find_anatomy,
    zone_of_height,
)
from radglint.simulation.ct_distractors import add_hard_distractors
from radglint.simulation.ct_pleura import PAINTERS
from radglint.simulation.ct_scene import Lesion, NoiseModel, Scene, Spacing, measure_noise
from radglint.simulation.facts import Fact

CT_CONCEPTS: tuple[str, ...] = tuple(PAINTERS)
"""Concepts that can be painted into a CT."""

CONCEPT_WEIGHTS: dict[str, float] = {
    "nodule": 0.24, "mass": 0.13, "calcified nodule": 0.04, "consolidation": 0.13, "ground-glass opacity": 0.1,
    "pleural effusion": 0.12, "pneumothorax": 0.08, "atelectasis": 0.07, "emphysema": 0.05,
    "interstitial pattern": 0.04,
}  # fmt: skip
"""How often `make_slab` draws each concept."""

FULL_WEIGHTS: dict[str, float] = {**CONCEPT_WEIGHTS, "rib fracture": 0.06}
"""The same where all are wanted; `nano` was trained without rib fractures."""

_ORDER = (
    "rib fracture",
    "emphysema", "interstitial pattern", "ground-glass opacity", "consolidation", "atelectasis", "mass", "nodule",
    "calcified nodule", "pleural effusion", "pneumothorax",
)  # fmt: skip
_LEAST_CHANGE_HU = {"emphysema": 12, "interstitial pattern": 25, "pneumothorax": 40, "rib fracture": 40}
_BILATERAL = {"pleural effusion": 0.3, "ground-glass opacity": 0.4, "atelectasis": 0.3, "emphysema": 0.75,
              "interstitial pattern": 0.75, "pneumothorax": 0.03}  # fmt: skip
_WITHOUT_ZONE = {"pleural effusion", "pneumothorax", "rib fracture"}
_EVERYWHERE = {"emphysema", "interstitial pattern"}  # their painters fill the lung at any height


@dataclass(frozen=True, eq=False)
class CtBase:
    """A real CT that slabs are cut from.

    Attributes:
        volume_hu: float32 `slices height width`, HU, canonical axial grid.
        anatomy: its lungs and other coarse anatomy.
        noise: its noise.
        excluded: bool per slice; slabs never touch these (real disease that has no sentence).
        name: for messages and manifests.
        labelled: which of "lungs" and "heart" a label map gave; the rest is our own estimate.
    """

    volume_hu: np.ndarray
    anatomy: ChestAnatomy
    noise: NoiseModel
    excluded: np.ndarray
    name: str = "base"
    labelled: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SimulatedVolume:
    """A CT with painted findings.

    Attributes:
        volume_hu: float32 `slices height width`, HU.
        facts: what is in it; empty for a volume without painted findings.
        masks: one bool array per fact, of the volume's shape.
        labels: uint8 anatomy labels of the same grid (see `anatomy_ct`), before painting.
        contrasts_hu: mean absolute change inside the mask of each fact.
        distractors: hard distractors that were painted (see `ct_distractors`).
        lesions: the real lesion behind each fact; None for a made one.
    """

    volume_hu: np.ndarray
    facts: tuple[Fact, ...]
    masks: tuple[np.ndarray, ...]
    labels: np.ndarray
    contrasts_hu: tuple[float, ...] = ()
    distractors: tuple[str, ...] = ()
    lesions: tuple[Lesion | None, ...] = ()


def make_base(
    volume_hu: np.ndarray,
    spacing_mm: Spacing,
    *,
    excluded: np.ndarray | None = None,
    name: str = "base",
    anatomy: ChestAnatomy | None = None,
) -> CtBase:
    """Find the anatomy and the noise of a CT, once, so that many slabs can be cut from it.

    Args:
        volume_hu: `slices height width`, HU, canonical axial grid.
        spacing_mm: slice, row and column step.
        excluded: bool per slice, True where real disease must not be shown; a margin is not added here.
        name: for messages.
        anatomy: of the volume; found if None.

    Raises:
        InputError: `excluded` has another length than the volume.
        ImageError: no lungs were found.
    """
    volume = np.ascontiguousarray(volume_hu, np.float32)
    left_out = np.zeros(len(volume), bool) if excluded is None else np.asarray(excluded, bool)
    if left_out.shape != (len(volume),):
        raise InputError(f"{name}: excluded needs one value per slice, {len(volume)}, got shape {left_out.shape}")
    found = anatomy or find_anatomy(volume, spacing_mm)
    noise = measure_noise(volume, (found.labels == BODY) | (found.labels == HEART))
    return CtBase(volume, found, noise, left_out, name)


def simulate(
    volume_hu: np.ndarray,
    anatomy: ChestAnatomy,
    facts: Sequence[Fact],
    rng: np.random.Generator,
    *,
    noise: NoiseModel | None = None,
) -> SimulatedVolume:
    """Paint findings into a volume.

    Args:
        volume_hu: `slices height width`, HU; not changed.
        anatomy: its anatomy, from `find_anatomy`.
        facts: what to paint; a fact that does not fit (no lung there) is left out of the result.
        rng: source of everything random.
        noise: noise of the scan; measured if None.

    Raises:
        InputError: a fact's concept cannot be painted into a CT.
    """
    heights = np.array([anatomy.height_fraction(k) for k in range(len(volume_hu))])
    measured = noise or measure_noise(volume_hu, (anatomy.labels == BODY) | (anatomy.labels == HEART))
    scene = Scene(np.array(volume_hu, np.float32), anatomy.labels, heights, anatomy.spacing_mm, measured, rng)
    return _volume(scene, _paint_all(scene, facts))


@dataclass(eq=False)
class _Painted:
    """A fact in the volume: what it changed there, and the real lesion that it is."""

    fact: Fact
    mask: np.ndarray
    contrast_hu: float
    lesion: Lesion | None
    size_px: int


def _volume(scene: Scene, painted: Sequence[_Painted], distractors: tuple[str, ...] = ()) -> SimulatedVolume:
    """What a scene has become."""
    return SimulatedVolume(
        np.clip(scene.hu, -1024, 3071), tuple(p.fact for p in painted), tuple(p.mask for p in painted), scene.labels,
        tuple(p.contrast_hu for p in painted), distractors, tuple(p.lesion for p in painted),
    )  # fmt: skip


def _paint_all(scene: Scene, facts: Sequence[Fact]) -> list[_Painted]:
    """Paint in an order that makes sense (fluid and air hide what lies under them); cut the hidden parts of masks."""
    unknown = [f.concept for f in facts if f.concept not in PAINTERS]
    if unknown:
        raise InputError(f"cannot simulate {unknown[0]!r} in a CT: expected one of {', '.join(CT_CONCEPTS)}")
    painted: list[_Painted] = []
    for fact in sorted(facts, key=lambda f: _ORDER.index(f.concept)):
        before, scene.placed = scene.hu.copy(), None
        mask = PAINTERS[fact.concept](scene, fact)
        change = _change_hu(scene.hu, before, mask)
        if mask is None or change <= _LEAST_CHANGE_HU.get(fact.concept, 70):
            scene.hu[:] = before
            continue
        if fact.concept in {"pleural effusion", "pneumothorax"}:
            for earlier in painted:
                earlier.mask = earlier.mask & ~mask
        painted.append(_Painted(fact, mask, change, scene.placed, int(mask.sum())))
    return [p for p in painted if p.mask.sum() >= max(8, 0.4 * p.size_px)]


def _change_hu(hu: np.ndarray, before: np.ndarray, mask: np.ndarray | None) -> float:
    """How much painting changed the HU inside the mask: little where it is hidden in something dense."""
    return 0.0 if mask is None or not mask.any() else float(np.abs(hu[mask] - before[mask]).mean())


def draw_facts(rng: np.random.Generator, height: float, *, normal_share: float = 0.25) -> list[Fact]:
    """Draw zero to three findings for a slab at a height of the lungs.

    Args:
        rng: source of the choice.
        height: 0 base to 1 apex, the slab's middle.
        normal_share: probability of no finding.
    """
    count = 0 if rng.random() < normal_share else int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))
    names = list(CONCEPT_WEIGHTS)
    weights = np.array([CONCEPT_WEIGHTS[n] for n in names])
    if height > 0.7:
        weights = weights * [0.15 if n in {"pleural effusion", "atelectasis"} else 1 for n in names]
    chosen = rng.choice(names, size=min(count, 3), replace=False, p=weights / weights.sum())
    return [_draw_fact(str(concept), rng, height) for concept in chosen]


def draw_volume_facts(rng: np.random.Generator, *, normal_share: float = 0.2) -> list[Fact]:
    """Draw zero to three findings of all concepts for a whole volume, each in a zone of its own if it has one.

    Args:
        rng: source of the choice.
        normal_share: probability of no finding.
    """
    count = 0 if rng.random() < normal_share else int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))
    weights = np.array(list(FULL_WEIGHTS.values()))
    chosen = rng.choice(list(FULL_WEIGHTS), size=count, replace=False, p=weights / weights.sum())
    heights = {c: 0.3 if c in _WITHOUT_ZONE else float(rng.uniform(0.03, 0.97)) for c in map(str, chosen)}
    facts = [_draw_fact(concept, rng, height) for concept, height in heights.items()]
    spread = [
        f.concept in _EVERYWHERE or (f.side == "bilateral" and f.concept == "ground-glass opacity") for f in facts
    ]
    return [replace(f, zone=None) if s else f for f, s in zip(facts, spread, strict=True)]


def _draw_fact(concept: str, rng: np.random.Generator, height: float) -> Fact:
    side = "bilateral" if rng.random() < _BILATERAL.get(concept, 0) else ("left", "right")[int(rng.integers(2))]
    sizes = ("small", "medium", "large")
    if concept == "pleural effusion" and height > 0.5:
        sizes = ("medium", "large", "large")
    zone = None if concept in _WITHOUT_ZONE else zone_of_height(height)
    return Fact(concept, side, zone, sizes[int(rng.integers(3))])  # type: ignore[arg-type]


def make_slab(
    base: CtBase,
    rng: np.random.Generator,
    num_slices: int | None = 8,
    *,
    facts: Sequence[Fact] | None = None,
    normal_share: float = 0.25,
    painter: np.random.Generator | None = None,
    lesions: Sequence[Lesion] = (),
    with_lung: bool = True,
    hard: bool = False,
) -> SimulatedVolume:
    """Cut a random slab, deform it, and paint findings whose centre lies in it.

    Args:
        base: the CT to cut from.
        rng: source of everything random.
        num_slices: slices of the slab; None takes every slice of the base, in its place.
        facts: findings to paint, without those of a zone that the slab does not reach; drawn at random if None.
        normal_share: probability that a random slab has no finding.
        painter: source of the findings alone, so that two slabs show one body with other findings; `rng` if None.
        lesions: real nodules and masses to take as well as made ones.
        with_lung: False cuts anywhere, the neck and the abdomen too.
        hard: paint hard distractors too.

    Raises:
        InputError: the base has no slab of that many slices with lung and without excluded slices, or has excluded
            slices where all are wanted.
    """
    if num_slices is None:
        if base.excluded.any():
            raise InputError(f"{base.name}: has excluded slices, so not all can be taken; give a number of slices")
        positions = np.arange(len(base.volume_hu), dtype=float)
    else:
        start, step = _choose_slices(base, rng, num_slices, with_lung)
        positions = start + step * np.arange(num_slices)
    hu, labels = _deform(base, positions, rng)
    heights = np.array([base.anatomy.height_fraction(p) for p in positions])
    noise = _roughen(hu, base.noise, rng)
    scene = Scene(hu, labels, heights, base.anatomy.spacing_mm, noise, painter or rng, lesions)
    wanted = draw_facts(painter or rng, float(heights.mean()), normal_share=normal_share) if facts is None else facts
    wanted = [f for f in wanted if f.zone is None or f.zone in set(map(zone_of_height, heights))]
    distractors = tuple(add_hard_distractors(scene)) if hard else ()
    painted = _paint_all(scene, wanted)
    _sharpen(scene.hu, rng)
    return _volume(scene, painted, distractors)


def _choose_slices(base: CtBase, rng: np.random.Generator, num_slices: int, with_lung: bool) -> tuple[float, float]:
    """First slice position and step (in base slices) of a slab that is allowed."""
    lungs = ((base.anatomy.labels == RIGHT_LUNG) | (base.anatomy.labels == LEFT_LUNG)).sum(axis=(1, 2))
    enough = lungs > 0.12 * lungs.max()
    for _ in range(200):
        step = float(rng.uniform(0.85, 1.2))
        span = step * (num_slices - 1)
        if span > len(lungs) - 1:
            step, span = 1.0, num_slices - 1
        start = float(rng.uniform(0, max(len(lungs) - 1 - span, 0)))
        used = slice(int(start), int(np.ceil(start + span)) + 1)
        lung = not with_lung or (enough[int(start + span / 2)] and enough[used].mean() > 0.6)
        if lung and not base.excluded[used].any():
            return start, step
    raise InputError(f"{base.name}: no {num_slices} slices with lung and without excluded slices; use fewer slices")


def _deform(base: CtBase, positions: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Resample slices at fractional positions, with one smooth in-plane deformation for the slab."""
    low = np.clip(np.floor(positions).astype(int), 0, len(base.volume_hu) - 1)
    high = np.minimum(low + 1, len(base.volume_hu) - 1)
    weight = (positions - low).astype(np.float32)[:, None, None]
    slab = base.volume_hu[low] * (1 - weight) + base.volume_hu[high] * weight
    nearest = base.anatomy.labels[np.where(positions - low < 0.5, low, high)]
    grid = _warp_grid(slab.shape[1:], base.anatomy.spacing_mm, rng)
    air = np.float32(1024)
    warped = functional.grid_sample(torch.from_numpy(slab + air)[None], grid, mode="bilinear", align_corners=False)
    labels = functional.grid_sample(
        torch.from_numpy(nearest.astype(np.float32))[None], grid, mode="nearest", align_corners=False
    )
    return (warped[0].numpy() - air), labels[0].numpy().astype(np.uint8)


def _warp_grid(shape: tuple[int, ...], spacing_mm: Spacing, rng: np.random.Generator) -> torch.Tensor:
    """Sampling grid (1, H, W, 2): rotation, two scales, shift and an elastic part of about 80 mm wavelength."""
    height, width = shape
    angle = np.deg2rad(rng.uniform(-7, 7))
    scale = rng.uniform(0.88, 1.12) * rng.uniform(0.95, 1.06, 2)
    shift = rng.uniform(-10, 10, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - height / 2 + 0.5 - shift[0]) / scale[0], (x - width / 2 + 0.5 - shift[1]) / scale[1]
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    knots = [max(4, int(n * s / 80) + 3) for n, s in zip(shape, spacing_mm[1:], strict=True)]
    coarse = torch.from_numpy(rng.normal(0, rng.uniform(1, 7), (1, 2, *knots)).astype(np.float32))
    bend = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0].numpy()
    stacked = np.stack([(x + bend[0]) * 2 / width, (y + bend[1]) * 2 / height], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(stacked, np.float32))[None]


def _roughen(hu: np.ndarray, noise: NoiseModel, rng: np.random.Generator) -> NoiseModel:
    """Add noise like the scan's own, of a random strength; returns the noise that is then there."""
    if rng.random() < 0.35:
        return noise
    added = NoiseModel(float(rng.gamma(1.5, 9.0)), float(rng.uniform(0.45, 1.1)))
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, (0, added.blur_px, added.blur_px), truncate=2.5)
    hu += smooth * np.float32(added.std_hu / max(float(smooth.std()), 1e-6))
    both = float(np.hypot(noise.std_hu, added.std_hu))
    blur = (noise.blur_px * noise.std_hu**2 + added.blur_px * added.std_hu**2) / both**2
    return NoiseModel(both, float(blur))


def _sharpen(hu: np.ndarray, rng: np.random.Generator) -> None:
    """Change the sharpness of the reconstruction kernel a little, in place."""
    amount = rng.uniform(-0.7, 0.4)
    if abs(amount) > 0.15:
        hu += np.float32(amount) * (hu - ndimage.gaussian_filter(hu, (0, 0.9, 0.9), truncate=2.5))
