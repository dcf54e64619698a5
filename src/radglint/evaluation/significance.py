"""Is one model better than another on the same cases? Bootstrap, DeLong, randomisation, permutation, and Holm.

Patients, not cases, are drawn and swapped. DeLong (1988) takes cases as independent: with several cases of a patient,
or whenever the two disagree, believe `paired_difference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from radglint.errors import ConfigError, InputError
from radglint.evaluation.bootstrap import DRAWS, Statistic, bootstrap, group_index
from radglint.evaluation.inputs import as_flags, as_numbers

ROUNDS = 10_000
PIECE_ROUNDS = 256


@dataclass(frozen=True)
class Difference:
    """Model A less model B.

    Attributes:
        a: measure of A on the cases as they are.
        b: measure of B.
        difference: a - b.
        low: lower end of the interval of the difference.
        high: upper end.
        p: two-sided; see the function that made it.
        level: of the interval.
        draws: that count.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    level: float
    draws: int


def paired_difference(
    statistic_a: Statistic, statistic_b: Statistic, groups: Sequence[Any] | np.ndarray, draws: int = DRAWS,
    seed: int = 0, level: float = 0.95,
) -> list[Difference]:  # fmt: skip
    """Difference of two models over the same draws of patients, for each measure.

    Args:
        statistic_a: of model A, see `radglint.evaluation.bootstrap`.
        statistic_b: of model B, the same measures of the same cases.
        groups: `cases`, patient identifiers.
        draws: how many.
        seed: of the draws.
        level: of the interval.

    Returns:
        One difference for each measure; p = 2 min(share of draws <= 0, share of draws >= 0), each share with one added
        to count and draws, at most 1. NaN draws are left out.

    Naive form: for each draw, both measures on the cases of the same drawn patients, and their difference.
    """

    def both(weights: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(s(weights), np.float64) for s in (statistic_a, statistic_b)]).reshape(
            2, weights.shape[1], -1
        ).transpose(1, 0, 2).reshape(weights.shape[1], -1)  # fmt: skip

    drawn = bootstrap(both, groups, draws, seed)
    half = len(drawn.estimate) // 2
    return [
        _difference(drawn.estimate[[k, half + k]], drawn.samples[:, k] - drawn.samples[:, half + k], level)
        for k in range(half)
    ]


def _difference(estimates: np.ndarray, samples: np.ndarray, level: float) -> Difference:
    a, b = (float(v) for v in estimates)
    samples = samples[~np.isnan(samples)]
    if not len(samples) or np.isnan(a - b):
        nan = float("nan")
        return Difference(a, b, a - b, nan, nan, nan, level, len(samples))
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    tail = min((samples <= 0).sum(), (samples >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(samples) + 1))
    return Difference(a, b, a - b, float(low), float(high), float(p), level, len(samples))


@dataclass(frozen=True)
class DeLong:
    """Two AUROCs of the same cases.

    Attributes:
        a: AUROC of A.
        b: AUROC of B.
        covariance: `2 2`, of the two; NaN with fewer than two positives or negatives.
        z: (a - b) over its standard error; 0 where both are 0.
        p: two-sided, normal; 1 where the two models give the same order.
    """

    a: float
    b: float
    covariance: np.ndarray
    z: float
    p: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of a - b."""
        return _normal(self.a - self.b, _variance_of_difference(self.covariance), level)


def delong(scores_a: Any, scores_b: Any, positive: Any) -> DeLong:
    """Compare two AUROCs on the same independent cases (DeLong 1988), by midranks (Sun and Xu 2014).

    Args:
        scores_a: `cases`, of model A.
        scores_b: `cases`, of model B.
        positive: `cases`, bool.

    Naive form: V10_i = mean over negatives j of psi(s_i, s_j), V01_j = mean over positives i of the same, psi = 1, 1/2
    or 0; the covariance of the AUROCs is cov(V10) / positives + cov(V01) / negatives.
    """
    scores = np.stack([as_numbers("scores_a", scores_a), as_numbers("scores_b", scores_b, np.shape(scores_a))])
    positive = as_flags("positive", positive, scores.shape[1:])
    areas, covariance = delong_covariance(scores, positive)
    variance, gap = _variance_of_difference(covariance), areas[0] - areas[1]
    z = 0.0 if gap == 0 and variance <= 0 else float(gap / np.sqrt(variance)) if variance > 0 else float("nan")
    return DeLong(float(areas[0]), float(areas[1]), covariance, z, float(2 * norm.sf(abs(z))))


def delong_interval(scores: Any, positive: Any, level: float = 0.95) -> tuple[float, float, float]:
    """AUROC with its normal interval by DeLong's variance, cut to [0, 1].

    Args:
        scores: `cases`.
        positive: `cases`, bool.
        level: of confidence.

    Returns:
        AUROC, low, high.
    """
    scores = as_numbers("scores", scores)
    areas, covariance = delong_covariance(scores[None], as_flags("positive", positive, scores.shape))
    low, high = _normal(float(areas[0]), float(covariance[0, 0]), level)
    return float(areas[0]), max(0.0, low), min(1.0, high)


def delong_covariance(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs of many models on the same cases, and their covariance.

    Args:
        scores: `models cases`.
        positive: `cases`, bool.

    Returns:
        `models`, and `models models`; NaN where there are too few cases (1 of each for the first, 2 for the second).
    """
    hits, misses = scores[:, positive], scores[:, ~positive]
    m, n = hits.shape[1], misses.shape[1]
    if not m or not n:
        return np.full(len(scores), np.nan), np.full((len(scores),) * 2, np.nan)
    together = rankdata(np.concatenate([hits, misses], axis=1), axis=1)
    wins = (together[:, :m] - rankdata(hits, axis=1)) / n  # share of negatives below each positive
    losses = 1 - (together[:, m:] - rankdata(misses, axis=1)) / m  # share of positives above each negative
    areas = wins.mean(1)
    if m < 2 or n < 2:
        return areas, np.full((len(scores),) * 2, np.nan)
    return areas, np.atleast_2d(np.cov(wins)) / m + np.atleast_2d(np.cov(losses)) / n


def _variance_of_difference(covariance: np.ndarray) -> float:
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return 0.0 if abs(variance) < 1e-15 else variance


def _normal(centre: float, variance: float, level: float) -> tuple[float, float]:
    reach = float(norm.ppf((1 + level) / 2) * np.sqrt(variance))
    return centre - reach, centre + reach


def randomisation_test(
    values_a: Any, values_b: Any, groups: Sequence[Any] | np.ndarray, rounds: int = ROUNDS, seed: int = 0
) -> float:
    """Two-sided p of the mean difference of per-case values: the two models change places by patient, at random.

    Args:
        values_a: `cases`, of model A (hit, Dice), NaN = not measured.
        values_b: `cases`, of model B; a case counts where both are measured.
        groups: `cases`, patient identifiers.
        rounds: of random exchange.
        seed: of the exchange.

    Returns:
        (1 + rounds whose mean is as far from 0 as the real one) / (1 + rounds); NaN without a case.

    Naive form: in each round a coin for each patient; heads exchange A and B in all its cases; mean of a - b.
    """
    a = as_numbers("values_a", values_a, allow_nan=True)
    gap = a - as_numbers("values_b", values_b, a.shape, allow_nan=True)
    index, count = group_index(groups)
    _same_length(index, gap)
    known = ~np.isnan(gap)
    if not known.any():
        return float("nan")
    sums = np.bincount(index[known], gap[known], minlength=count)
    return _p(_signed_sums(sums, rounds, seed), sums.sum())


def randomisation_test_of(
    measure: Callable[[np.ndarray], float], a: Any, b: Any, groups: Sequence[Any] | np.ndarray, rounds: int = 1000,
    seed: int = 0,
) -> float:  # fmt: skip
    """Two-sided p of the difference of any measure, approximate randomisation by patient.

    Args:
        measure: of `cases ...` outputs of one model, for example `lambda scores: auroc(scores, positive)`.
        a: `cases ...`, outputs of model A. Scores must be on the same scale as those of B: use ranks for AUROC.
        b: the same shape, of model B.
        groups: `cases`, patient identifiers.
        rounds: each takes two measures.
        seed: of the exchange.

    Naive form: as it stands; `randomisation_test` is the fast form for means.
    """
    a, b = as_numbers("a", a), as_numbers("b", b, np.shape(a))
    index, count = group_index(groups)
    _same_length(index, a)
    rng, found = np.random.default_rng(seed), []
    for _ in range(rounds):
        swap = (rng.random(count) < 0.5)[index].reshape(-1, *(1,) * (a.ndim - 1))
        found.append(measure(np.where(swap, b, a)) - measure(np.where(swap, a, b)))
    return _p(np.array(found), measure(a) - measure(b))


def permutation_test(
    values: Any, member: Any, groups: Sequence[Any] | np.ndarray, rounds: int = ROUNDS, seed: int = 0
) -> float:
    """Two-sided p of the difference in mean between two sets of patients: membership is dealt out anew.

    Args:
        values: `cases`.
        member: `cases`, bool: of the first set; the same in all cases of a patient.
        groups: `cases`, patient identifiers.
        rounds: of dealing.
        seed: of the dealing.

    Raises:
        InputError: a patient in both sets, or an empty set.

    Naive form: in each round the patients' memberships are shuffled; mean of the members less mean of the others.
    """
    values = as_numbers("values", values)
    member = as_flags("member", member, values.shape)
    index, count = group_index(groups)
    _same_length(index, values)
    share = np.bincount(index, member, minlength=count) / np.bincount(index, minlength=count)
    if not np.isin(share, (0, 1)).all() or share.min() == share.max():
        raise InputError("member: expected two sets of patients, none of them empty, and each patient in one of them")
    sums, sizes = np.bincount(index, values, minlength=count), np.bincount(index, minlength=count)
    rng = np.random.default_rng(seed)
    dealt = np.stack([rng.permutation(share) for _ in range(rounds)])
    gap = dealt @ sums / (dealt @ sizes) - (1 - dealt) @ sums / ((1 - dealt) @ sizes)
    return _p(gap, values[member].mean() - values[~member].mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of a family of tests (Holm 1979): reject where it is at most the level. NaN is left out of the family.

    Args:
        p_values: test to p.

    Naive form: p in rising order, the k-th of m (from 0) times (m - k), at most 1, never below the one before.
    """
    found = dict.fromkeys(p_values, float("nan"))
    order = sorted((p, name) for name, p in p_values.items() if not np.isnan(p))
    if order and not 0 <= order[0][0] <= order[-1][0] <= 1:
        raise InputError(f"p values: expected [0, 1], got {order[0][0]:g} to {order[-1][0]:g}")
    highest = 0.0
    for k, (p, name) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - k)))
        found[name] = highest
    return found


def _signed_sums(sums: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """`rounds`: sums of the groups, each with a random sign."""
    if rounds < 1:
        raise ConfigError(f"rounds: expected 1 or more, got {rounds}")
    rng, found = np.random.default_rng(seed), []
    for start in range(0, rounds, PIECE_ROUNDS):
        signs = rng.integers(0, 2, (min(PIECE_ROUNDS, rounds - start), len(sums))) * 2.0 - 1
        found.append(signs @ sums)
    return np.concatenate(found)


def _p(found: np.ndarray, real: float) -> float:
    """Share of rounds as far from 0 as the real value, the real one counted in; equal but for rounding is as far."""
    slack = 1e-12 * max(1.0, abs(real))
    return float((1 + (np.abs(found) >= abs(real) - slack).sum()) / (1 + len(found)))


def _same_length(index: np.ndarray, values: np.ndarray) -> None:
    if len(index) != len(values):
        raise InputError(f"groups: {len(index)} for {len(values)} cases; give one patient for each case")
