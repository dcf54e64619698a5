"""How well a score tells positives from negatives: areas, curves, tables at a threshold, and how a threshold is chosen.

A case is called positive where its score is at least the threshold. Weights say how often a case counts (bootstrap
multiplicities, or importance). See `radglint.evaluation` for what happens with broken or undefined inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from radglint.errors import ConfigError, InputError
from radglint.evaluation.inputs import as_flags, as_numbers, as_weights, ratio

Rule = Literal["youden", "corner", "mcc", "f1", "sensitivity", "specificity"]


def why_undefined(positive: Any, weights: Any = None) -> str:
    """Why AUROC and the like are NaN here: "no positives", "no negatives", or "" where they are defined."""
    positive = as_flags("positive", positive)
    counts = as_weights(weights, positive.shape)
    if not counts[positive].any():
        return "no positives"
    return "" if counts[~positive].any() else "no negatives"


def auroc(scores: Any, positive: Any, weights: Any = None) -> float:
    """Area under the ROC curve; NaN without positives or without negatives.

    Args:
        scores: `cases`, any scale.
        positive: `cases`, bool.
        weights: `cases`, not negative; None = 1 each.

    Raises:
        InputError: NaN, other lengths, empty.

    Naive form: sum over pairs of a positive i and a negative j of w_i w_j (s_i > s_j ? 1 : s_i == s_j ? 1/2 : 0),
    divided by the sum of w_i w_j.
    """
    curve = _totals(scores, positive, weights)
    below = curve.negatives - curve.fp  # weight of negatives that score less than each distinct score
    tied, gained = np.diff(curve.fp, prepend=0.0), np.diff(curve.tp, prepend=0.0)
    return float(ratio((gained * (below + tied / 2)).sum(), curve.positives * curve.negatives))


def average_precision(scores: Any, positive: Any, weights: Any = None) -> float:
    """Area under the precision-recall steps, not interpolated (as scikit-learn); NaN without positives.

    Args:
        scores: `cases`.
        positive: `cases`, bool.
        weights: `cases`; None = 1 each.

    Naive form: sum over distinct scores t, from high to low, of (recall(t) - recall(next higher t)) precision(t).
    """
    curve = _totals(scores, positive, weights)
    gained = np.diff(curve.tp, prepend=0.0)
    return float(ratio((gained * ratio(curve.tp, curve.tp + curve.fp, 0.0)).sum(), curve.positives))


@dataclass(frozen=True)
class RocCurve:
    """Shares called positive at each threshold, from the strictest, +inf, to the laxest.

    Attributes:
        false_positive_rate: `thresholds`, of the negatives; NaN without any.
        true_positive_rate: `thresholds`, of the positives; NaN without any.
        thresholds: falling; the first is +inf, then every distinct score.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


def roc_curve(scores: Any, positive: Any, weights: Any = None) -> RocCurve:
    """The ROC curve at every distinct score (none is dropped).

    Naive form: for each t: the weight of the negatives (positives) with s >= t, divided by the weight of all of them.
    """
    table = confusion_curve(scores, positive, weights)
    thresholds = np.asarray(table.threshold)
    return RocCurve(np.asarray(1 - table.specificity), np.asarray(table.sensitivity), thresholds)


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision and recall at each threshold, from the strictest score to the laxest.

    Attributes:
        precision: `thresholds`.
        recall: `thresholds`; NaN without positives.
        thresholds: distinct scores, falling.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def precision_recall_curve(scores: Any, positive: Any, weights: Any = None) -> PrecisionRecallCurve:
    """Precision and recall at every distinct score; the point (recall 0, precision 1) is not added.

    Naive form: for each distinct score t: precision and recall of "s >= t".
    """
    table = confusion_curve(scores, positive, weights)
    thresholds = np.asarray(table.threshold)
    return PrecisionRecallCurve(np.asarray(table.ppv)[1:], np.asarray(table.sensitivity)[1:], thresholds[1:])


@dataclass(frozen=True)
class Confusion:
    """Weights of true and false calls; every measure is a property. Arrays over thresholds, or single numbers.

    A share of nothing is NaN. As in scikit-learn, MCC is 0 where a row or column of the table is empty.

    Attributes:
        tp: positives called positive.
        fp: negatives called positive.
        tn: negatives called negative.
        fn: positives called negative.
        threshold: scores at or above it are called positive.
    """

    tp: Any
    fp: Any
    tn: Any
    fn: Any
    threshold: Any

    @property
    def sensitivity(self) -> Any:
        """Share of the positives that are called positive; recall."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> Any:
        """Share of the negatives that are called negative."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> Any:
        """Share of the positive calls that are right; precision."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> Any:
        """Share of the negative calls that are right."""
        return ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> Any:
        """Share of all calls that are right."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def f1(self) -> Any:
        """2 tp / (2 tp + fp + fn)."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def weighted_f1(self) -> Any:
        """F1 of the positives and F1 of the negatives, weighted by how many there are (an undefined one counts 0)."""
        of_negatives = ratio(2 * self.tn, 2 * self.tn + self.fp + self.fn, 0.0)
        of_positives = ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, 0.0)
        positives, negatives = self.tp + self.fn, self.tn + self.fp
        return ratio(of_positives * positives + of_negatives * negatives, positives + negatives)

    @property
    def mcc(self) -> Any:
        """Matthews correlation coefficient."""
        margins = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        return ratio(self.tp * self.tn - self.fp * self.fn, np.sqrt(margins), 0.0)

    def measures(self) -> dict[str, Any]:
        """All of `MEASURES` by name."""
        return {name: getattr(self, name) for name in MEASURES}


MEASURES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "f1", "weighted_f1", "mcc")


def confusion_at(scores: Any, positive: Any, threshold: float, weights: Any = None) -> Confusion:
    """The table at one threshold (+inf calls nothing positive, -inf all).

    Naive form: tp = sum of w where s >= threshold and positive, and so on.
    """
    scores = as_numbers("scores", scores)
    positive = as_flags("positive", positive, scores.shape)
    weights = as_weights(weights, scores.shape)
    if np.isnan(threshold):
        raise InputError("threshold: is NaN; expected a number: no threshold could be chosen, see why_undefined")
    called = scores >= threshold
    tp, fp = float(weights[called & positive].sum()), float(weights[called & ~positive].sum())
    tn, fn = float(weights[~called & ~positive].sum()), float(weights[~called & positive].sum())
    return Confusion(tp, fp, tn, fn, float(threshold))


def confusion_curve(scores: Any, positive: Any, weights: Any = None) -> Confusion:
    """The tables at +inf and at every distinct score, from high to low, in one sort.

    Naive form: `confusion_at` for each threshold.
    """
    totals = _totals(scores, positive, weights)
    tp, fp = np.insert(totals.tp, 0, 0.0), np.insert(totals.fp, 0, 0.0)
    thresholds = np.insert(totals.thresholds, 0, np.inf)
    return Confusion(tp, fp, totals.negatives - fp, totals.positives - tp, thresholds)


def youden(scores: Any, positive: Any, weights: Any = None) -> float:
    """Threshold of the highest sensitivity + specificity; of equals the highest. NaN with one class only."""
    table = confusion_curve(scores, positive, weights)
    return _best(table, table.sensitivity + table.specificity)


def closest_to_corner(scores: Any, positive: Any, weights: Any = None) -> float:
    """Threshold nearest to (false positive rate 0, true positive rate 1); of equals the highest. NaN with one class."""
    table = confusion_curve(scores, positive, weights)
    return _best(table, -((1 - table.specificity) ** 2 + (1 - table.sensitivity) ** 2))


def best_mcc(scores: Any, positive: Any, weights: Any = None) -> float:
    """Threshold of the highest Matthews correlation; of equals the highest. NaN with one class only."""
    table = confusion_curve(scores, positive, weights)
    return _best(table, np.where(np.isnan(table.sensitivity + table.specificity), np.nan, table.mcc))


def best_f1(scores: Any, positive: Any, weights: Any = None) -> float:
    """Threshold of the highest F1; of equals the highest. NaN without positives."""
    table = confusion_curve(scores, positive, weights)
    return _best(table, np.where(np.isnan(table.sensitivity), np.nan, table.f1))


def for_sensitivity(target: float, scores: Any, positive: Any, weights: Any = None) -> float:
    """The highest threshold that reaches a sensitivity: as specific as it can be. NaN without positives.

    Args:
        target: in (0, 1].
        scores: `cases`.
        positive: `cases`, bool.
        weights: `cases`; None = 1 each.
    """
    _check_target("sensitivity", target)
    table = confusion_curve(scores, positive, weights)
    return _best(table, _where_reached(table.sensitivity, target, np.asarray(table.threshold)))


def for_specificity(target: float, scores: Any, positive: Any, weights: Any = None) -> float:
    """The lowest threshold that reaches a specificity: as sensitive as it can be; +inf where no score does.

    Args:
        target: in (0, 1].
        scores: `cases`.
        positive: `cases`, bool.
        weights: `cases`; None = 1 each.
    """
    _check_target("specificity", target)
    table = confusion_curve(scores, positive, weights)
    return _best(table, _where_reached(table.specificity, target, -np.asarray(table.threshold)))


def choose(rule: Rule, scores: Any, positive: Any, weights: Any = None, *, target: float | None = None) -> float:
    """A threshold by the name of its rule.

    Args:
        rule: youden, corner, mcc, f1, sensitivity or specificity; the last two need `target`.
        scores: `cases`.
        positive: `cases`, bool.
        weights: `cases`; None = 1 each.
        target: in (0, 1].

    Raises:
        ConfigError: an unknown rule, or a target that is missing or not wanted.
    """
    free: Mapping[str, Callable[..., float]] = {
        "youden": youden, "corner": closest_to_corner, "mcc": best_mcc, "f1": best_f1}  # fmt: skip
    aimed: Mapping[str, Callable[..., float]] = {"sensitivity": for_sensitivity, "specificity": for_specificity}
    if rule in free and target is None:
        return free[rule](scores, positive, weights)
    if rule in aimed and target is not None:
        return aimed[rule](target, scores, positive, weights)
    raise ConfigError(f"threshold rule {rule!r} with target {target}: expected one of {', '.join(free)} without a "
                      f"target, or {' or '.join(aimed)} with one")  # fmt: skip


@dataclass(frozen=True)
class ClassValues:
    """A measure of each class, and what was left out.

    Attributes:
        values: class to value, of those that count.
        left_out: class to the reason in words.
        counts: class to (positives, negatives), of all.
    """

    values: dict[str, float]
    left_out: dict[str, str]
    counts: dict[str, tuple[int, int]]

    @property
    def macro(self) -> float:
        """Mean over the classes that count; NaN if there is none."""
        return float(np.mean(list(self.values.values()))) if self.values else float("nan")


def per_class(
    measure: Callable[..., float], names: Sequence[str], scores: Any, positive: Any, known: Any = None,
    weights: Any = None, *, least: int = 1,
) -> ClassValues:  # fmt: skip
    """A measure of each class over the cases whose label is known.

    Args:
        measure: for example `auroc`: (scores, positive, weights) to a number.
        names: `classes`, distinct.
        scores: `cases classes`; may be anything (also NaN) where the label is not known.
        positive: `cases classes`, bool; may be anything where the label is not known.
        known: `cases classes`, bool; None = all. Uncertain and unlabelled are False.
        weights: `cases`; None = 1 each.
        least: positives and negatives that a class must have.

    Raises:
        InputError: shapes that do not fit, a name twice.
    """
    scores, positive = np.asarray(scores), np.asarray(positive)
    shape = (len(scores), len(names))
    if scores.shape != shape or positive.shape != shape or len(set(names)) != len(names):
        raise InputError(f"scores {scores.shape}, positive {positive.shape}: expected (cases, {len(names)}) both, one "
                         f"column for each of the distinct names {', '.join(names)}")  # fmt: skip
    known = np.ones(shape, bool) if known is None else as_flags("known", known, shape)
    weights = as_weights(weights, shape[:1])
    found = ClassValues({}, {}, {})
    for k, name in enumerate(names):
        _one_class(found, measure, name, scores[known[:, k], k], positive[known[:, k], k], weights[known[:, k]], least)
    return found


def _one_class(
    found: ClassValues, measure: Callable[..., float], name: str, scores: np.ndarray, positive: np.ndarray,
    weights: np.ndarray, least: int,
) -> None:  # fmt: skip
    positive = as_flags(f"positive[{name}]", positive) if len(positive) else positive.astype(bool)
    counts = int(positive.sum()), int((~positive).sum())
    found.counts[name] = counts
    for count, word in zip(counts, ("positives", "negatives"), strict=True):
        if count < least:
            found.left_out.setdefault(name, f"{count} {word}, fewer than {least}" if count else f"no {word}")
    if name not in found.left_out:
        value = measure(scores, positive, weights)
        if np.isnan(value):
            found.left_out[name] = "undefined: " + (why_undefined(positive, weights) or "the measure is NaN")
        else:
            found.values[name] = float(value)


@dataclass(frozen=True)
class _Totals:
    """Weights at or above each distinct score, scores falling."""

    tp: np.ndarray
    fp: np.ndarray
    thresholds: np.ndarray
    positives: float
    negatives: float


def _totals(scores: Any, positive: Any, weights: Any) -> _Totals:
    scores = as_numbers("scores", scores)
    if scores.ndim != 1:
        raise InputError(f"scores: expected one value for each case, got shape {scores.shape}; use per_class for many")
    positive = as_flags("positive", positive, scores.shape)
    weights = as_weights(weights, scores.shape)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.where(positive, weights, 0.0)[order]
    misses = weights[order] - hits
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last case of each distinct score
    tp, fp = np.cumsum(hits)[last], np.cumsum(misses)[last]
    return _Totals(tp, fp, scores[last], float(tp[-1]), float(fp[-1]))


def _best(table: Confusion, value: np.ndarray) -> float:
    """Threshold of the highest value, the strictest of equals; NaN where the value is."""
    if np.isnan(value).any():
        return float("nan")
    return float(np.asarray(table.threshold)[int(np.argmax(value))])


def _where_reached(share: np.ndarray, target: float, value: np.ndarray) -> np.ndarray:
    """The value where a share reaches its target (but for rounding), else -inf; NaN where the share is."""
    return np.where(np.isnan(share), np.nan, np.where(share >= target - 1e-12, value, -np.inf))


def _check_target(name: str, target: float) -> None:
    if not 0 < target <= 1:
        raise ConfigError(f"target {name}: expected a number in (0, 1], got {target}; 0.9 means 90 %")
