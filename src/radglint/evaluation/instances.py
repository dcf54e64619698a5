"""Instances of a finding: connected components, matched one to one, and the measures of the ReXGroundingCT board.

Confirmed on the board's page (rexrank.ai/ReXGroundingCT): global Dice is the mean Dice per finding per case, a hit is
a finding with Dice >= 0.1, precision is TP / (TP + FP) and recall TP / (TP + FN) over instances, TP at an instance Dice
of 0.2 or more, F1 their harmonic mean. Seen in a public wrapper around the board's scorer, whose own file is behind a
login and was not read: components smaller than 10 voxels are dropped, and connectivity is 2 (in skimage's words: faces
and edges, 18 neighbours), by that wrapper's defaults. Not confirmed: how the scorer matches instances (here: the
assignment of the highest total Dice among pairs that reach the threshold), what an empty pair of masks scores (here an
option), and whether small components are dropped on both sides (here: both). The EXACT readme reports hits at 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.ndimage import generate_binary_structure, label
from scipy.optimize import linear_sum_assignment

from radglint.errors import ConfigError, InputError
from radglint.evaluation.inputs import as_flags, ratio
from radglint.evaluation.localisation import Empty, dice
from radglint.evaluation.surfaces import bounding_slices

Measure = Literal["dice", "iou"]
HIT_DICE, EXACT_HIT_DICE, INSTANCE_DICE = 0.1, 0.05, 0.2
CONNECTIVITY, LEAST_VOXELS = 2, 10


def components(mask: Any, connectivity: int = CONNECTIVITY, least_voxels: int = 1) -> tuple[np.ndarray, int]:
    """Connected components of a mask.

    Args:
        mask: bool, 2D or 3D.
        connectivity: 1 = faces (4 neighbours in 2D, 6 in 3D), 2 = edges too (8, 18), 3 = corners too (26).
        least_voxels: smaller ones are dropped.

    Returns:
        int32 of the mask's shape, 0 or the component's number from 1, and how many there are.
    """
    mask = as_flags("mask", mask)
    if not 1 <= connectivity <= mask.ndim:
        raise ConfigError(
            f"connectivity: expected 1 to {mask.ndim} for a mask of shape {mask.shape}, got {connectivity}"
        )
    labels = np.zeros(mask.shape, np.int32)
    label(mask, generate_binary_structure(mask.ndim, connectivity), output=labels)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= max(1, least_voxels)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return (labels if keep[1:].all() else numbers[labels]), int(keep.sum())


def overlap_table(a: np.ndarray, b: np.ndarray, measure: Measure = "dice") -> np.ndarray:
    """Dice or IoU of every component of one labelled image with every one of the other.

    Args:
        a: int labels from 1 without gaps, 0 = background.
        b: the same shape.
        measure: dice or iou.

    Returns:
        `components of a, components of b`.

    Naive form: for each pair the Dice of (a == i) and (b == j).
    """
    if a.shape != b.shape or measure not in ("dice", "iou"):
        raise InputError(
            f"labels of shapes {a.shape} and {b.shape}, measure {measure!r}: expected one shape, dice or iou"
        )
    size_a, size_b = np.bincount(a.ravel())[1:], np.bincount(b.ravel())[1:]
    shared = (a > 0) & (b > 0)
    pair = (a[shared].astype(np.int64) - 1) * len(size_b) + b[shared] - 1
    both = np.bincount(pair, minlength=len(size_a) * len(size_b)).reshape(len(size_a), len(size_b))
    total = size_a[:, None] + size_b
    return both / (total - both) if measure == "iou" else 2 * both / total


def match(table: np.ndarray, least: float = INSTANCE_DICE) -> list[tuple[int, int]]:
    """One-to-one pairs of the highest total overlap, among those that reach `least`.

    Args:
        table: `truths predictions`, from `overlap_table`.
        least: a pair below it is no pair.

    Returns:
        (truth, prediction) numbers from 0, rising.

    Naive form: of all one-to-one pairings of such pairs the one with the highest sum.
    """
    allowed = np.where(table >= least, table, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j] > 0]


@dataclass(frozen=True)
class FindingScore:
    """One finding of one case.

    Attributes:
        dice: of the whole masks; NaN where both are empty and that is skipped.
        tp: instances found.
        fp: predicted instances that match none.
        fn: instances missed.
    """

    dice: float
    tp: int
    fp: int
    fn: int


def score_finding(
    marked: Any, mask: Any, *, connectivity: int = CONNECTIVITY, least_voxels: int = LEAST_VOXELS,
    least_dice: float = INSTANCE_DICE, empty: Empty = "one",
) -> FindingScore:  # fmt: skip
    """Dice and instances of one finding.

    Args:
        marked: bool, the prediction.
        mask: bool, the truth.
        connectivity: see `components`.
        least_voxels: smaller components are not instances; they stay in the Dice of the whole masks.
        least_dice: of a pair of instances.
        empty: see `localisation.dice_of`.
    """
    marked = as_flags("marked", marked)
    mask = as_flags("mask", mask, marked.shape)
    box = bounding_slices(marked | mask)
    truth, truths = components(mask[box], connectivity, least_voxels)
    found, predictions = components(marked[box], connectivity, least_voxels)
    hits = len(match(overlap_table(truth, found), least_dice)) if truths and predictions else 0
    return FindingScore(dice(marked, mask, empty), hits, predictions - hits, truths - hits)


@dataclass(frozen=True)
class GroundingScore:
    """The columns of the ReXGroundingCT board, and what stands behind them.

    Attributes:
        dice_macro: global Dice, the mean over findings.
        hit_rate: share of findings at or above the hit Dice.
        instance_precision_micro: instances of all findings pooled.
        instance_recall_micro: the same.
        instance_f1_micro: harmonic mean of the two.
        findings: that count; those with a NaN Dice do not.
        hit_dice: what a hit is.
    """

    dice_macro: float
    hit_rate: float
    instance_precision_micro: float
    instance_recall_micro: float
    instance_f1_micro: float
    findings: int
    hit_dice: float


def grounding_score(scores: Sequence[FindingScore], hit_dice: float = HIT_DICE) -> GroundingScore:
    """The board's numbers from the findings of all cases; a share of nothing is NaN.

    Args:
        scores: one for each finding of each case.
        hit_dice: `HIT_DICE` as on the board, or `EXACT_HIT_DICE`.
    """
    if not scores:
        raise InputError("scores: expected one or more findings")
    values = np.array([s.dice for s in scores])
    values = values[~np.isnan(values)]
    tp, fp, fn = (float(sum(getattr(s, name) for s in scores)) for name in ("tp", "fp", "fn"))
    return GroundingScore(
        dice_macro=float(ratio(values.sum(), len(values))),
        hit_rate=float(ratio((values >= hit_dice).sum(), len(values))),
        instance_precision_micro=float(ratio(tp, tp + fp)),
        instance_recall_micro=float(ratio(tp, tp + fn)),
        instance_f1_micro=float(ratio(2 * tp, 2 * tp + fp + fn)),
        findings=len(values),
        hit_dice=hit_dice,
    )
