"""Simulated radiographs: findings of known place and size in real normal images.

`make_image` varies the base, chooses findings, draws them and adds distractors that no sentence mentions.
The masks are exact and are meant for evaluation only: training sees the sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional

from radglint.simulation import radiograph_devices as devices
from radglint.simulation import radiograph_findings as findings
from radglint.simulation.anatomy_cxr import LungFields
from radglint.simulation.canvas import Canvas
from radglint.simulation.facts import Fact
from radglint.simulation.radiograph_bones import draw_rib_fracture
from radglint.simulation.radiograph_distractors import add_hard_distractors

_MIN_MASK_PX = 20
_MAX_BEND = 0.022  # standard deviation at the knots, in halves of the picture
_COUNT_CHANCES = (0.25, 0.4, 0.23, 0.12)


@dataclass(frozen=True)
class Simulated:
    """An image and what is in it.

    Attributes:
        image: Gray values float32 (H, W) in [0, 1], bright = dense.
        facts: What a report would state; empty for a normal image.
        masks: One bool mask (H, W) per fact, in the same order.
        lungs: Anatomy of the simulated image.
        contrasts: How much each finding changed the image inside its mask: mean absolute change of gray values as a
            share of the difference between soft tissue and lung.
        distractors: Hard distractors that were drawn (see `radiograph_distractors`).
    """

    image: np.ndarray
    facts: list[Fact]
    masks: list[np.ndarray]
    lungs: LungFields
    contrasts: list[float] = field(default_factory=list)
    distractors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Recipe:
    """How often a concept is drawn, by what, and which words of place and size it takes."""

    weight: float
    draw: Callable[[Canvas, Fact, np.random.Generator], np.ndarray]
    sides: dict[str, float] | None = None
    zones: dict[str, float] | None = None
    sized: bool = True


_EITHER = {"left": 0.5, "right": 0.5}
_ANY = {"upper": 1.0, "mid": 1.0, "lower": 1.0}
_LOW = {"upper": 0.6, "mid": 0.9, "lower": 1.5}

# In drawing order: what moves the anatomy comes first, what lies on top comes last.
_RECIPES: dict[str, _Recipe] = {
    "cardiomegaly": _Recipe(1.0, findings.draw_cardiomegaly),
    "atelectasis": _Recipe(
        1.0, findings.draw_atelectasis, {"left": 0.4, "right": 0.4, "bilateral": 0.2}, {"mid": 0.4, "lower": 1.6}
    ),
    "interstitial pattern": _Recipe(
        0.8, findings.draw_interstitial, {"left": 0.1, "right": 0.1, "bilateral": 0.8}, _LOW
    ),
    "ground-glass opacity": _Recipe(
        0.9, findings.draw_ground_glass, {"left": 0.4, "right": 0.4, "bilateral": 0.2}, _ANY
    ),
    "consolidation": _Recipe(1.5, findings.draw_consolidation, {"left": 0.42, "right": 0.42, "bilateral": 0.16}, _LOW),
    "mass": _Recipe(1.1, findings.draw_mass, _EITHER, _ANY),
    "nodule": _Recipe(1.5, findings.draw_nodule, _EITHER, _ANY),
    "calcified nodule": _Recipe(0.4, findings.draw_calcified_nodule, _EITHER, _ANY),
    "pneumothorax": _Recipe(1.2, findings.draw_pneumothorax, _EITHER),
    "pleural effusion": _Recipe(1.5, findings.draw_effusion, {"left": 0.4, "right": 0.4, "bilateral": 0.2}),
    "rib fracture": _Recipe(0.0, draw_rib_fracture, _EITHER, sized=False),
    "chest tube": _Recipe(0.4, devices.draw_chest_tube, _EITHER, sized=False),
    "endotracheal tube": _Recipe(0.4, devices.draw_endotracheal_tube, sized=False),
    "central line": _Recipe(0.5, devices.draw_central_line, {"left": 0.35, "right": 0.65}, sized=False),
    "pacemaker": _Recipe(0.5, devices.draw_pacemaker, {"left": 0.8, "right": 0.2}, sized=False),
}

CONCEPTS: tuple[str, ...] = tuple(_RECIPES)
"""Every concept that `simulate` can draw, in drawing order."""

FULL_WEIGHTS: dict[str, float] = {name: recipe.weight or 0.5 for name, recipe in _RECIPES.items()}
"""How often each concept is drawn where all are wanted; `nano` was trained without rib fractures."""


def make_image(
    base: np.ndarray,
    lungs: LungFields,
    rng: np.random.Generator,
    painter: np.random.Generator | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    hard: bool = False,
) -> Simulated:
    """Make one training image: vary the base, draw findings and distractors, vary the exposure.

    Args:
        base: A normal radiograph (H, W) in [0, 1], bright = dense.
        lungs: Its anatomy.
        rng: Source of all randomness; the same state gives the same image.
        painter: Source of findings and distractors alone, so that two images show one body with other findings;
            `rng` if None.
        weights: How often each concept is drawn; see `sample_facts`.
        hard: Draw hard distractors too.

    Returns:
        The image with its facts and masks.
    """
    chooser = painter or rng
    picture, moved = vary_geometry(base, lungs, rng)
    made = simulate(picture, moved, chooser, sample_facts(chooser, weights), hard=hard)
    return replace(made, image=vary_exposure(made.image, rng))


def simulate(
    image: np.ndarray,
    lungs: LungFields,
    rng: np.random.Generator,
    facts: Sequence[Fact] | None = None,
    *,
    hard: bool = False,
) -> Simulated:
    """Draw findings into a normal radiograph, and distractors that are no findings.

    Args:
        image: A normal radiograph (H, W) in [0, 1], bright = dense; not changed.
        lungs: Its anatomy.
        rng: Source of all randomness.
        facts: What to draw; chosen at random if None, nothing if empty.
        hard: Draw hard distractors too.

    Returns:
        The image with its facts and masks; a finding that found no room is left out.

    Raises:
        ValueError: If a fact names a concept that cannot be drawn on a radiograph.
    """
    wanted = sample_facts(rng) if facts is None else list(facts)
    unknown = [fact.concept for fact in wanted if fact.concept not in _RECIPES]
    if unknown:
        raise ValueError(f"facts: expected concepts of {', '.join(CONCEPTS)}; got {', '.join(unknown)}")
    canvas = Canvas(np.array(image, np.float32), lungs)
    drawn = sorted(wanted, key=lambda fact: CONCEPTS.index(fact.concept))
    contrasts = [_draw(canvas, fact, rng) for fact in drawn]
    devices.add_distractors(canvas, rng)
    distractors = add_hard_distractors(canvas, rng) if hard else []
    kept = [k for k, mask in enumerate(canvas.masks) if mask.sum() >= _MIN_MASK_PX]
    picture = canvas.image.clip(0, 1).astype(np.float32)
    return Simulated(
        picture, [drawn[k] for k in kept], [canvas.masks[k] for k in kept], canvas.lungs, [contrasts[k] for k in kept],
        distractors,
    )  # fmt: skip


def _draw(canvas: Canvas, fact: Fact, rng: np.random.Generator) -> float:
    """Draw one finding, keep its mask, and measure how much it changed."""
    before = canvas.image.copy()
    mask = _RECIPES[fact.concept].draw(canvas, fact, rng)
    canvas.masks.append(mask)
    change = float(np.abs(canvas.image - before)[mask].mean()) if mask.any() else 0.0
    return change / (canvas.tissue - canvas.air)


def sample_facts(rng: np.random.Generator, weights: Mapping[str, float] | None = None) -> list[Fact]:
    """Choose zero to three findings of different concepts.

    Args:
        rng: Source of randomness.
        weights: How often each concept is drawn, as `FULL_WEIGHTS`; those of the training of `nano` if None.

    Returns:
        The facts; none for about a quarter of the calls.
    """
    count = int(rng.choice(len(_COUNT_CHANCES), p=_COUNT_CHANCES))
    chances = np.array([(weights or {}).get(name, 0.0) if weights else r.weight for name, r in _RECIPES.items()])
    chosen = rng.choice(CONCEPTS, count, replace=False, p=chances / chances.sum())
    return [_sample_fact(str(concept), rng) for concept in chosen]


def vary_geometry(image: np.ndarray, lungs: LungFields, rng: np.random.Generator) -> tuple[np.ndarray, LungFields]:
    """Rotate, scale, shift and bend an image and its anatomy slightly; never a mirror image.

    Args:
        image: Gray values (H, W) in [0, 1].
        lungs: Anatomy of the image.
        rng: Source of randomness.

    Returns:
        The moved image and anatomy.
    """
    grid = _bent_grid(image.shape, rng)

    def move(plane: np.ndarray, mode: str) -> np.ndarray:
        stacked = torch.from_numpy(np.ascontiguousarray(plane, np.float32))[None, None]
        return functional.grid_sample(stacked, grid, mode=mode, align_corners=False)[0, 0].numpy()

    left, right, heart = (move(part, "nearest") > 0.5 for part in (lungs.left, lungs.right, lungs.heart))
    return move(image, "bilinear"), LungFields(left=left, right=right, heart=heart)


def _bent_grid(shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Sampling grid (1, H, W, 2) of a small turn, scale and shift and a smooth bend of up to about 2 %."""
    height, width = shape
    turn, scale = np.deg2rad(rng.normal(0, 2.5)), rng.uniform(0.93, 1.1)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    down, across = rng.normal(0, 0.04, 2)  # the picture is 2 units wide
    centres = [(np.arange(count) + 0.5) * 2 / count - 1 for count in (height, width)]
    y, x = np.meshgrid(*centres, indexing="ij")
    turned = np.stack([cos * (x - across) + sin * (y - down), cos * (y - down) - sin * (x - across)])
    knots = torch.from_numpy(rng.normal(0, rng.uniform(0, _MAX_BEND), (1, 2, 7, 7)))
    bend = functional.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)[0].numpy()
    return torch.from_numpy((turned + bend).transpose(1, 2, 0).astype(np.float32))[None]


def vary_exposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary gamma, brightness, contrast and noise.

    Args:
        image: Gray values (H, W) in [0, 1].
        rng: Source of randomness.

    Returns:
        Gray values float32 (H, W) in [0, 1].
    """
    curved = image.clip(0, 1) ** np.exp(rng.normal(0, 0.18))
    shifted = 0.5 + (curved - 0.5) * rng.uniform(0.8, 1.15) + rng.normal(0, 0.04)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 0.012)
    return (shifted + noise).clip(0, 1).astype(np.float32)


def _sample_fact(concept: str, rng: np.random.Generator) -> Fact:
    """Choose side, zone and size of one finding."""
    recipe = _RECIPES[concept]
    size = str(rng.choice(["small", "medium", "large"])) if recipe.sized else None
    return Fact(concept, _weighted(recipe.sides, rng), _weighted(recipe.zones, rng), size)  # pyright: ignore[reportArgumentType]


def _weighted(chances: dict[str, float] | None, rng: np.random.Generator) -> str | None:
    """Choose a key by its weight."""
    if not chances:
        return None
    weights = np.array(list(chances.values()))
    return str(rng.choice(list(chances), p=weights / weights.sum()))
