"""Intervals by patient: whole patients are drawn, and a case counts as often as its patient was drawn.

A statistic is a function of weights, `cases draws` float32 (how often each case counts in each draw), to `draws` or
`draws measures`. Those below are exact and vectorised over draws; any other function of that form works too. Draws come
in pieces, so that the weights of all draws never lie in memory at once. The same groups, number of draws and seed give
the same draws, whatever the piece size and the statistic: two models on the same cases are compared draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.stats import norm

from radglint.errors import ConfigError, InputError
from radglint.evaluation.classification import MEASURES, Confusion
from radglint.evaluation.inputs import as_flags, as_numbers, ratio

Statistic = Callable[[np.ndarray], np.ndarray]
Method = Literal["percentile", "bca"]
DRAWS = 1000
PIECE_BYTES = 12_000_000  # of weights: fits the caches better than more
BLOCKS = 200  # of patients, for the acceleration of BCa


@dataclass(frozen=True)
class Interval:
    """What was measured, and where it would lie in other patients.

    Attributes:
        estimate: on the cases as they are.
        low: lower end; NaN where no draw defines the measure.
        high: upper end.
        level: of confidence, 0.95 for 95 %.
        method: percentile or bca.
        draws: how many count.
        undefined: draws left out because the measure was NaN there.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: Method
    draws: int
    undefined: int


def group_index(groups: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, int]:
    """Number of each case's group, and how many groups there are.

    Args:
        groups: `cases`, for example patient identifiers; all of one type.

    Raises:
        InputError: none, or a missing one (None, NaN, "").
    """
    array = np.asarray(groups)
    if array.ndim != 1 or not len(array):
        raise InputError(f"groups: expected one patient for each case, got shape {array.shape}")
    missing = [k for k, g in enumerate(array.tolist()) if g is None or g == "" or g != g]
    if missing:
        raise InputError(f"groups: case {missing[0]} has no patient; give each such case a name of its own, or drop it")
    names, index = np.unique(array.astype(str) if array.dtype == object else array, return_inverse=True)
    return index.astype(np.int64), len(names)


def draw_weights(
    index: np.ndarray, count: int, draws: int, seed: int, piece: int | None = None
) -> Iterator[np.ndarray]:  # fmt: skip
    """Weights in pieces of draws.

    Args:
        index: `cases`, group numbers of `group_index`.
        count: groups.
        draws: in all.
        seed: of the generator.
        piece: draws at a time; None = what fits `PIECE_BYTES`. It does not change the draws.

    Yields:
        `cases draws`, float32, contiguous.

    Naive form: for each draw: groups drawn `count` times with replacement; weight of a case = times its group came up.
    """
    rng = np.random.default_rng(seed)
    piece = piece or max(1, PIECE_BYTES // (4 * len(index)))
    for start in range(0, draws, piece):
        size = min(piece, draws - start)
        picked = rng.integers(0, count, (size, count), dtype=np.int64)
        picked += np.arange(size)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=size * count).reshape(size, count).astype(np.float32)
        yield np.ascontiguousarray(times.T)[index]


@dataclass(frozen=True)
class Bootstrap:
    """Draws of a statistic.

    Attributes:
        estimate: `measures`, every case counted once.
        samples: `draws measures`.
        statistic: as given.
        index: `cases`, group numbers.
        groups: how many groups.
        seed: of the draws.
    """

    estimate: np.ndarray
    samples: np.ndarray
    statistic: Statistic
    index: np.ndarray
    groups: int
    seed: int

    def intervals(self, level: float = 0.95, method: Method = "percentile") -> list[Interval]:
        """One interval for each measure.

        Args:
            level: in (0, 1).
            method: percentile; or bca, corrected for bias and skewness (Efron 1987), of which the acceleration comes
                from leaving out one patient at a time, or one of `BLOCKS` random blocks where there are more.
        """
        return [self.interval(k, level, method) for k in range(len(self.estimate))]

    def interval(self, measure: int = 0, level: float = 0.95, method: Method = "percentile") -> Interval:
        """The interval of one measure; see `intervals`."""
        if not 0 < level < 1 or method not in ("percentile", "bca"):
            raise ConfigError(
                f"interval: level {level}, method {method!r}; expected a level in (0, 1), percentile or bca"
            )
        values, estimate = self.samples[:, measure], float(self.estimate[measure])
        known = values[~np.isnan(values)]
        ends = np.array([(1 - level) / 2, (1 + level) / 2])
        if method == "bca" and len(known) and not np.isnan(estimate):
            ends = _bca_ends(ends, known, estimate, self._left_out[:, measure])
        low, high = np.quantile(known, ends) if len(known) else (np.nan, np.nan)
        return Interval(estimate, float(low), float(high), level, method, len(known), len(values) - len(known))

    @cached_property
    def _left_out(self) -> np.ndarray:
        """`blocks measures`: the statistic without each block of patients."""
        count = min(self.groups, BLOCKS)
        block = np.random.default_rng(self.seed).permutation(self.groups) % count
        piece = max(1, PIECE_BYTES // (4 * len(self.index)))
        found = []
        for start in range(0, count, piece):
            left = np.arange(start, min(start + piece, count))
            found.append(_two_axes(self.statistic((block[self.index][:, None] != left).astype(np.float32))))
        return np.concatenate(found)


def bootstrap(
    statistic: Statistic, groups: Sequence[Any] | np.ndarray, draws: int = DRAWS, seed: int = 0,
    piece: int | None = None,
) -> Bootstrap:  # fmt: skip
    """Draw patients with replacement and measure again.

    Args:
        statistic: weights `cases draws` to `draws` or `draws measures`; NaN where undefined.
        groups: `cases`, patient identifiers.
        draws: how many.
        seed: equal seeds give equal draws.
        piece: draws at a time; None = what fits memory.

    Raises:
        InputError: a case without a patient.
        ConfigError: no draws.

    Naive form: for each draw, the cases of the drawn patients repeated, and the measure of that list.
    """
    if draws < 1:
        raise ConfigError(f"draws: expected 1 or more, got {draws}")
    index, count = group_index(groups)
    estimate = _two_axes(statistic(np.ones((len(index), 1), np.float32)))[0]
    samples = [_two_axes(statistic(weights)) for weights in draw_weights(index, count, draws, seed, piece)]
    return Bootstrap(estimate, np.concatenate(samples), statistic, index, count, seed)


def mean_statistic(values: Any) -> Statistic:
    """Weighted means of per-case values (hits, Dice), of those measured: a macro average over cases.

    Args:
        values: `cases` or `cases measures`; NaN = not measured in that case.

    Naive form: for each draw: sum of w v over the cases with v, divided by the sum of their w.
    """
    table = _two_columns(as_numbers("values", values, allow_nan=True))
    known = ~np.isnan(table)
    filled, counted = np.where(known, table, 0.0), known.astype(np.float64)

    def measure(weights: np.ndarray) -> np.ndarray:
        weights = weights.T.astype(np.float64)
        return ratio(weights @ filled, weights @ counted)

    return measure


def ratio_statistic(numerators: Any, denominators: Any) -> Statistic:
    """Sums over sums (precision of instances, pooled Dice): a micro average.

    Args:
        numerators: `cases` or `cases measures`.
        denominators: the same shape.

    Naive form: for each draw: sum of w n, divided by the sum of w d; NaN where that is 0.
    """
    top = _two_columns(as_numbers("numerators", numerators))
    bottom = _two_columns(as_numbers("denominators", denominators))
    if top.shape != bottom.shape:
        raise InputError(f"denominators: expected shape {top.shape}, got {bottom.shape}")

    def measure(weights: np.ndarray) -> np.ndarray:
        weights = weights.T.astype(np.float64)
        return ratio(weights @ top, weights @ bottom)

    return measure


def macro_statistic(statistic: Statistic) -> Statistic:
    """Mean over the measures of another statistic, NaN left out; NaN where all are."""

    def measure(weights: np.ndarray) -> np.ndarray:
        values = _two_axes(statistic(weights))
        known = ~np.isnan(values)
        return ratio(np.where(known, values, 0.0).sum(1), known.sum(1))

    return measure


def auroc_statistic(scores: Any, positive: Any, known: Any = None) -> Statistic:
    """AUROC of every class, exactly, for all draws at once.

    The negatives between two neighbouring positives count together: their weights are added by a sparse matrix, and
    only as many rows as there are distinct scores of positives (or of negatives, if those are fewer) are accumulated.

    Args:
        scores: `cases` or `cases classes`.
        positive: the same shape, bool.
        known: the same shape, bool; None = all.

    Returns:
        A statistic of `draws classes`; NaN where a draw has one side only.

    Naive form: `classification.auroc` with the weights of each draw.
    """
    return _by_class(_ClassOrder.auroc, scores, positive, known, swap=True)


def average_precision_statistic(scores: Any, positive: Any, known: Any = None) -> Statistic:
    """Average precision of every class, exactly, for all draws at once; arguments as `auroc_statistic`.

    Naive form: `classification.average_precision` with the weights of each draw.
    """
    return _by_class(_ClassOrder.average_precision, scores, positive, known, swap=False)


def confusion_statistic(scores: Any, positive: Any, thresholds: Any, known: Any = None) -> Statistic:
    """All of `classification.MEASURES` of every class at its threshold, fixed over the draws.

    Args:
        scores: `cases` or `cases classes`.
        positive: the same shape, bool.
        thresholds: one number, or `classes`.
        known: the same shape as scores, bool; None = all.

    Returns:
        A statistic of `draws (classes * measures)`, all measures of the first class first.

    Naive form: `classification.confusion_at` with the weights of each draw.
    """
    scores, positive, known = _class_table(scores, positive, known)
    called = np.where(known, scores, 0) >= np.broadcast_to(thresholds, scores.shape[1:])
    cells = [(mask & known).astype(np.float64) for mask in
             (called & positive, called & ~positive, ~called & ~positive, ~called & positive)]  # fmt: skip

    def measure(weights: np.ndarray) -> np.ndarray:
        weights = weights.T.astype(np.float64)
        tp, fp, tn, fn = (weights @ cell for cell in cells)
        table = Confusion(tp, fp, tn, fn, None)
        return np.stack([getattr(table, name) for name in MEASURES], axis=-1).reshape(len(tp), -1)

    return measure


@dataclass(frozen=True)
class _ClassOrder:
    """Where the cases of one class stand in the order of scores, as sparse sums of rows of weights.

    Attributes:
        anchors: `distinct cases`, sums the positives of each distinct score, from low to high.
        others: `(2 distinct + 1) cases`, sums the negatives: below the first score, equal to it, up to the next, ...
        swapped: positives and negatives have changed places.
    """

    anchors: sparse.csr_matrix
    others: sparse.csr_matrix
    swapped: bool

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray, known: np.ndarray, swap: bool) -> _ClassOrder:
        rows, others = np.flatnonzero(positive & known), np.flatnonzero(~positive & known)
        swapped = swap and len(rows) > len(others)
        rows, others = (others, rows) if swapped else (rows, others)
        steps, place = np.unique(scores[rows], return_inverse=True)
        between = np.searchsorted(steps, scores[others], "left") + np.searchsorted(steps, scores[others], "right")
        cases = len(scores)
        return cls(
            _row_sums(place, rows, len(steps), cases), _row_sums(between, others, 2 * len(steps) + 1, cases), swapped
        )

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """`draws`, from `cases draws`."""
        gained, passed = self.anchors @ weights, self.others @ weights
        tied = passed[1::2]
        steps = passed[:-1:2].astype(np.float64)  # between the score before and this one
        steps[1:] += tied[:-1]
        below = running_sum(steps)
        pairs = np.einsum("sd,sd->d", gained, below) + np.einsum("sd,sd->d", gained, tied, dtype=np.float64) / 2
        area = ratio(pairs, gained.sum(0, dtype=np.float64) * passed.sum(0, dtype=np.float64))
        return 1 - area if self.swapped else area

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """`draws`, from `cases draws`."""
        gained, passed = self.anchors @ weights, self.others @ weights
        hits = running_sum(gained[::-1])[::-1]  # at or above each distinct score
        called = running_sum((gained + passed[1::2] + passed[2::2])[::-1])[::-1]
        share = np.divide(hits, called, out=hits, where=called > 0)
        return ratio(np.einsum("sd,sd->d", gained, share), gained.sum(0, dtype=np.float64))


def running_sum(rows: np.ndarray) -> np.ndarray:
    """Sums of all rows up to each, `rows columns` float64: a stretch of rows in every block at once, then the blocks.

    Naive form: np.cumsum(rows, axis=0), which takes five times as long.
    """
    count, columns = rows.shape
    block = max(1, round(count**0.5))
    padded = np.zeros((-(-count // block) * block, columns))
    padded[:count] = rows
    blocks = padded.reshape(-1, block, columns)
    for k in range(1, block):
        blocks[:, k] += blocks[:, k - 1]
    blocks[1:] += np.cumsum(blocks[:-1, -1], axis=0)[:, None]
    return padded[:count]


def _row_sums(row: np.ndarray, case: np.ndarray, rows: int, cases: int) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(case), np.float32), (row, case)), shape=(rows, cases))


def _by_class(
    method: Callable[[_ClassOrder, np.ndarray], np.ndarray], scores: Any, positive: Any, known: Any, *, swap: bool
) -> Statistic:  # fmt: skip
    scores, positive, known = _class_table(scores, positive, known)
    orders = [_ClassOrder.of(scores[:, k], positive[:, k], known[:, k], swap) for k in range(scores.shape[1])]
    return lambda weights: np.stack([method(order, weights) for order in orders], axis=1)


def _class_table(scores: Any, positive: Any, known: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`cases classes` each; scores are checked where the label is known."""
    scores, positive = _two_columns(np.asarray(scores)), _two_columns(np.asarray(positive))
    known = np.ones(scores.shape, bool) if known is None else _two_columns(as_flags("known", known))
    if known.shape != scores.shape or positive.shape != scores.shape:
        raise InputError(f"scores {scores.shape}, positive {positive.shape}, known {known.shape}: expected one shape")
    scores = as_numbers("scores", np.where(known, scores, 0))
    return scores, as_flags("positive", np.where(known, positive, False)), known


def _two_columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _two_axes(values: np.ndarray) -> np.ndarray:
    """`draws measures`."""
    values = np.asarray(values, np.float64)
    return values[:, None] if values.ndim == 1 else values


def _bca_ends(ends: np.ndarray, samples: np.ndarray, estimate: float, left_out: np.ndarray) -> np.ndarray:
    """The quantiles to read in place of (1 - level) / 2 and (1 + level) / 2."""
    below = (samples < estimate).mean() + (samples == estimate).mean() / 2
    if not 0 < below < 1:
        return ends  # all draws on one side: no correction can be estimated
    away = np.nanmean(left_out) - left_out[~np.isnan(left_out)]
    spread = float((away**2).sum()) ** 1.5
    acceleration = float((away**3).sum()) / (6 * spread) if spread > 0 else 0.0
    bias = norm.ppf(below)
    shifted = bias + norm.ppf(ends)
    return norm.cdf(bias + shifted / (1 - acceleration * shifted))
