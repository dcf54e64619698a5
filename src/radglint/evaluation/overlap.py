"""Overlap at many thresholds from one pass over the voxels, and what is chosen from it: fixed, validated, oracle.

A tally holds how many voxels of a map lie between neighbouring levels, inside and outside the truth. Dice, IoU and
sensitivity at every level, and the AUROC over voxels, follow from it without touching the voxels again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from radglint.errors import InputError
from radglint.evaluation.inputs import as_flags, as_numbers, ratio
from radglint.evaluation.localisation import PIECE_VOXELS, Empty, as_map, dice_of, iou_of, smallest_not_below

LEVELS = np.arange(101) / 100  # 0, 0.01, ..., 1: the steps of RadZero
FEW_LEVELS = 24  # below this, comparing with each level beats looking the bin up


@dataclass(frozen=True)
class Tally:
    """Voxels by the number of levels that they pass; sums of tallies are tallies of several images together.

    Attributes:
        levels: rising.
        inside: `levels + 1`, voxels of the truth that pass 0, 1, ... levels.
        outside: the same of all other voxels.
    """

    levels: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def __add__(self, other: Tally) -> Tally:
        """Pool two images."""
        if not np.array_equal(self.levels, other.levels):
            raise InputError("tallies of different levels cannot be added; make them with the same levels")
        return Tally(self.levels, self.inside + other.inside, self.outside + other.outside)

    @property
    def both(self) -> np.ndarray:
        """`levels`: voxels of the truth that are marked at each level."""
        return _reaching(self.inside)

    @property
    def marked(self) -> np.ndarray:
        """`levels`: voxels that are marked at each level."""
        return self.both + _reaching(self.outside)

    @property
    def truth(self) -> int:
        """Voxels of the truth."""
        return int(self.inside.sum())

    def dice(self, empty: Empty = "one") -> np.ndarray:
        """`levels`: Dice at each; of pooled images the micro average."""
        return dice_of(self.both, self.marked, self.truth, empty)

    def iou(self, empty: Empty = "one") -> np.ndarray:
        """`levels`: intersection over union at each; of pooled images the micro average."""
        return iou_of(self.both, self.marked, self.truth, empty)

    def sensitivity(self) -> np.ndarray:
        """`levels`: share of the truth that is marked at each; NaN without any."""
        return ratio(self.both, np.full(len(self.levels), self.truth))

    def voxel_auroc(self) -> float:
        """AUROC over voxels, voxels between the same levels as ties; NaN with one class.

        Naive form: `classification.auroc` of the number of levels that each voxel passes.
        """
        below = np.cumsum(self.outside) - self.outside
        pairs = (self.inside * (below + self.outside / 2.0)).sum()
        return float(ratio(pairs, float(self.inside.sum()) * float(self.outside.sum())))

    def voxel_auroc_error(self) -> float:
        """How far at most `voxel_auroc` can be from the AUROC of the voxels themselves: half the tied pairs."""
        return float(ratio((self.inside * (self.outside / 2.0)).sum(), float(self.inside.sum()) * self.outside.sum()))


def tally(values: Any, mask: Any, levels: Any = LEVELS, *, strict: bool = False) -> Tally:
    """Count the voxels of a map between levels.

    Args:
        values: map; NaN passes no level.
        mask: bool, the truth.
        levels: rising.
        strict: True = a voxel must lie above a level (RadZero), not at it.

    Naive form: for each voxel the number of levels t with v >= t (v > t), then a histogram for each side of the mask.
    """
    values = as_map(values)
    mask = as_flags("mask", mask, values.shape)
    rising = as_numbers("levels", levels)
    if rising.ndim != 1 or (np.diff(rising) <= 0).any():
        raise InputError("levels: expected rising numbers")
    limits = smallest_not_below(np.nextafter(rising, np.inf) if strict else rising, values.dtype)
    flat, truth = values.ravel(), mask.ravel()
    counts = np.zeros((2, len(rising) + 1), np.int64)
    for start in range(0, flat.size, PIECE_VOXELS):
        part, inside = flat[start : start + PIECE_VOXELS], truth[start : start + PIECE_VOXELS]
        _count(counts, part, inside, limits)
    return Tally(rising, counts[1], counts[0])


def dice_curve(
    values: Any, mask: Any, levels: Any = LEVELS, *, strict: bool = False, empty: Empty = "one"
) -> np.ndarray:
    """Dice at each level in one pass. Naive form: `localisation.dice` of v >= t (v > t) for each level t."""
    return tally(values, mask, levels, strict=strict).dice(empty)


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, how it was come by, and what it gives.

    Attributes:
        how: fixed, validation or oracle (chosen on the very cases that it is measured on).
        threshold: of the map.
        dice_macro: mean Dice over the positive cases at it.
        specificity: share of the negative cases without a marked voxel; NaN without negatives.
    """

    how: str
    threshold: float
    dice_macro: float
    specificity: float


def best_level(curves: Any, levels: Any = LEVELS) -> int:
    """Which level has the highest mean Dice over cases; of equals the lowest, as in RadZero's code.

    Args:
        curves: `positives levels`, Dice; NaN = left out.
        levels: `levels`.
    """
    curves = as_numbers("curves", curves, allow_nan=True)
    if curves.ndim != 2 or curves.shape[1] != len(levels):
        raise InputError(f"curves: expected (cases, {len(levels)}), got {curves.shape}")
    means = _column_means(curves)
    if np.isnan(means).all():
        raise InputError("curves: NaN everywhere; a threshold needs a positive case")
    return int(np.nanargmax(means))


def threshold_columns(
    curves: Any, peaks: Any, fixed: float, validation_curves: Any = None, levels: Any = LEVELS, *, strict: bool = False
) -> list[ThresholdChoice]:  # fmt: skip
    """The three columns: a threshold fixed beforehand, one chosen on validation, and the oracle.

    Args:
        curves: `positives levels`, Dice of the test cases with the finding.
        peaks: `negatives`, highest value of the map of each test case without it; may be empty.
        fixed: threshold; the nearest level counts.
        validation_curves: `positives levels` of other patients; None = no such column.
        levels: `levels`.
        strict: as in `tally`.

    Source: segmentation_utils.py of deepnoid-ai/RadZero, which was read, is the oracle column with strict=True: sigmoid
    of the map, mean of the per-image Dice over positives, image specificity at the same threshold.
    """
    levels, curves = np.asarray(levels, np.float64), np.asarray(curves, np.float64)
    peaks = np.asarray(peaks, np.float64)
    chosen = {"fixed": int(np.abs(levels - fixed).argmin())}
    if validation_curves is not None:
        chosen["validation"] = best_level(validation_curves, levels)
    chosen["oracle"] = best_level(curves, levels)
    means = _column_means(curves)
    return [ThresholdChoice(how, float(levels[k]), float(means[k]), image_specificity(peaks, levels[k], strict=strict))
            for how, k in chosen.items()]  # fmt: skip


def image_specificity(peaks: Any, threshold: float, *, strict: bool = False) -> float:
    """Share of negative images in which no voxel passes; NaN without any. Naive form: mean of not (v >= t).any()."""
    peaks = np.asarray(peaks, np.float64)
    passed = peaks > threshold if strict else peaks >= threshold
    return float(ratio((~passed).sum(), len(peaks)))


@dataclass(frozen=True)
class GatedOverlap:
    """Masks that are shown only where the model says that the finding is there.

    Attributes:
        dice_macro_on_positives: mean over positive cases; 0 where the model said no.
        false_mask_rate_on_negatives: share of negative cases that are shown a mask.
        positives: cases.
        negatives: cases.
    """

    dice_macro_on_positives: float
    false_mask_rate_on_negatives: float
    positives: int
    negatives: int


def presence_gated(dice_values: Any, marked_voxels: Any, said_present: Any, positive: Any) -> GatedOverlap:
    """Overlap and false masks after the decision on presence.

    Args:
        dice_values: `cases`, Dice of the mask against the truth; read on positives only.
        marked_voxels: `cases`, voxels in the mask.
        said_present: `cases`, bool, the decision.
        positive: `cases`, bool, the truth.

    Naive form: mean over positives of (said ? dice : 0); mean over negatives of (said and marked > 0).
    """
    positive = as_flags("positive", positive)
    said = as_flags("said_present", said_present, positive.shape)
    marked = as_numbers("marked_voxels", marked_voxels, positive.shape)
    values = as_numbers("dice_values", dice_values, positive.shape, allow_nan=True)
    shown = np.where(said, values, 0.0)[positive]
    false = (said & (marked > 0))[~positive]
    return GatedOverlap(
        float(ratio(shown.sum(), len(shown))), float(ratio(false.sum(), len(false))), len(shown), len(false)
    )


def _count(counts: np.ndarray, values: np.ndarray, inside: np.ndarray, limits: np.ndarray) -> None:
    """Add the voxels of one piece to `2 (levels + 1)` counts."""
    passed = _levels_passed(values, limits)
    passed += inside * passed.dtype.type(counts.shape[1])
    counts += np.bincount(passed, minlength=counts.size).reshape(counts.shape)


def _levels_passed(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """How many limits each value reaches, int64."""
    if len(limits) <= FEW_LEVELS:
        passed = np.zeros(len(values), np.int64)
        for limit in limits:
            passed += values >= limit
        return passed
    even = np.linspace(limits[0], limits[-1], len(limits))
    if np.abs(limits - even).max() > 0.1 * (even[1] - even[0]):
        return np.searchsorted(limits, np.where(np.isnan(values), -np.inf, values), "right")
    return _even_levels_passed(values, limits)


def _even_levels_passed(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The same for evenly spaced limits: a division, then corrected by comparing with the limits themselves."""
    count = len(limits)
    guess = (values - limits[0]) * ((count - 1) / (limits[-1] - limits[0]))
    guess = np.clip(guess, 0, count - 1, out=guess)  # NaN stays NaN
    passed = np.where(np.isnan(guess), 0, guess).astype(np.int64)
    passed -= ~(values >= limits[passed])  # NaN and all below the first limit become -1
    above = np.append(limits, np.array(np.inf, limits.dtype))
    return passed + (values >= above[passed + 1]) + 1


def _reaching(counts: np.ndarray) -> np.ndarray:
    """Voxels that pass at least 1, 2, ... levels."""
    return np.cumsum(counts[::-1])[::-1][1:]


def _column_means(curves: np.ndarray) -> np.ndarray:
    known = ~np.isnan(curves)
    return ratio(np.where(known, curves, 0.0).sum(0), known.sum(0))
