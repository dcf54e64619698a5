"""The mathematics of a calibration: score maps, thresholds with a promise, conformal sets. No files, no model.

Maps are fitted on images, promises are made on patients: images of one patient are not independent, so each patient
enters with one image, drawn at random, and what is promised holds for an image of a new patient. Scores enter promises
by their order alone, and every map rises strictly; so the same cases may fit the map and the promise, and the promise
holds whatever the map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit
from scipy.stats import beta, binom

from radglint.decisions import Rate
from radglint.errors import InputError
from radglint.score_maps import KnotMap, LogisticMap, ScoreMap

CONFIDENCE = 0.95
FOLDS = 5
ISOTONIC_LEAST = 100  # present, and absent, from which `auto` considers isotonic: it has as many parameters as steps
TILT = 0.01  # share of the straight line's slope that an isotonic map rises by where the fit is flat
MAX_STEPS = 100

Fitted = Literal["platt", "temperature", "isotonic"]


@dataclass(frozen=True, eq=False)
class ClassCases:
    """Labelled cases of one class; uncertain and unlabelled ones are not among them.

    Attributes:
        scores: float64 `cases`, raw and finite.
        present: bool `cases`.
        patients: `cases`, whose image it is.
    """

    scores: np.ndarray
    present: np.ndarray
    patients: np.ndarray

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            InputError: other lengths or types than described, or a score that is not finite.
        """
        shapes = [np.shape(part) for part in (self.scores, self.present, self.patients)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise InputError(f"calibration: expected three lists of one length, got the shapes {shapes}")
        if self.present.dtype != np.bool_:
            got = self.present.dtype
            raise InputError(f"calibration: expected present as bool, got {got}; leave uncertain ones out")
        if not np.isfinite(self.scores).all():
            raise InputError("calibration: a score is not finite; leave out the images that the model could not read")

    @classmethod
    def of(cls, scores: Sequence[float], present: Sequence[bool], patients: Sequence[str] | None = None) -> ClassCases:
        """From plain lists; without patients every case is one of its own."""
        names = [str(k) for k in range(len(scores))] if patients is None else list(patients)
        return cls(np.asarray(scores, np.float64), np.asarray(present, bool), np.asarray(names, dtype=object))

    def part(self, kept: np.ndarray) -> ClassCases:
        """Some of the cases, by a bool mask or indices."""
        return ClassCases(self.scores[kept], self.present[kept], self.patients[kept])

    @property
    def prevalence(self) -> float:
        """Share of the present; 0 without cases."""
        return float(self.present.mean()) if len(self.present) else 0.0

    @cached_property
    def one_present(self) -> np.ndarray:
        """Rising: of each patient with the finding, the score of one image with it."""
        return _one_each(self.scores[self.present], self.patients[self.present])

    @cached_property
    def one_absent(self) -> np.ndarray:
        """Rising: of each patient with an image without the finding, the score of one such image."""
        return _one_each(self.scores[~self.present], self.patients[~self.present])


def _one_each(scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """One score of each patient, rising; the same draw for the same cases, in whatever order they come."""
    names, owner, counts = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    by_patient = np.lexsort((scores, owner))
    first = np.cumsum(counts) - counts
    drawn = np.random.default_rng(0).integers(counts) if len(names) else counts
    return np.sort(scores[by_patient[first + drawn]])


# --- maps ---------------------------------------------------------------------------------------------------------


def smoothed_targets(present: np.ndarray) -> np.ndarray:
    """Platt's targets: (N+ + 1) / (N+ + 2) for the present, 1 / (N- + 2) for the absent; float64.

    Reference: Platt 1999, "Probabilistic outputs for support vector machines"; a separable class keeps a finite slope.
    """
    count = int(present.sum())
    return np.where(present, (count + 1) / (count + 2), 1 / (len(present) - count + 2))


def fit_logistic(values: np.ndarray, targets: np.ndarray, *, with_bias: bool = True) -> tuple[float, float]:
    """Slope and bias of the line through logits with the least log loss, by Newton's method with halved steps.

    Args:
        values: float64 `cases`.
        targets: in [0, 1], `cases`.
        with_bias: False fits a slope through the origin.

    Returns:
        slope, bias (0 without).

    Raises:
        InputError: all values are the same, so that no slope is better than another.

    Naive form: argmin over slope, bias of -sum(t log p + (1 - t) log(1 - p)), p = sigmoid(slope * value + bias).
    """
    scale = float(values.std()) if with_bias else float(np.sqrt(np.mean(values**2)))
    if not scale > 0:
        raise InputError("calibration: all scores are the same, so they tell nothing apart")
    centre = float(values.mean()) if with_bias else 0.0
    columns = [(values - centre) / scale] + ([np.ones_like(values)] if with_bias else [])
    weights = _newton(np.stack(columns, axis=1), targets)
    slope = float(weights[0]) / scale
    return slope, float(weights[1]) - slope * centre if with_bias else 0.0


def _newton(design: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights `columns` of the logistic regression without penalty."""
    weights = np.zeros(design.shape[1])
    loss = _loss(design @ weights, targets)
    for _ in range(MAX_STEPS):
        p = expit(design @ weights)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(len(weights))
        step = np.linalg.solve(curvature, design.T @ (targets - p))
        while (new := _loss(design @ (weights + step), targets)) > loss + 1e-15 and np.abs(step).max() > 1e-14:
            step = step / 2
        weights, loss = weights + step, min(new, loss)
        if np.abs(step).max() < 1e-12:
            break
    return weights


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean log loss of logits, in nats."""
    return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))


def log_loss(to_logit: ScoreMap, cases: ClassCases) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return _loss(np.asarray(to_logit.logit(cases.scores)), cases.present.astype(np.float64))


def fit_platt(cases: ClassCases) -> LogisticMap:
    """Slope and bias: the bias corrects the prior that the model was shipped with."""
    slope, bias = fit_logistic(cases.scores, smoothed_targets(cases.present))
    return LogisticMap(slope=slope, bias=bias)


def fit_temperature(cases: ClassCases, shipped: ScoreMap) -> ScoreMap:
    """The shipped logits times one factor, the inverse of the temperature; the prior stays the shipped one."""
    logits = np.asarray(shipped.logit(cases.scores))
    factor, _ = fit_logistic(logits, smoothed_targets(cases.present), with_bias=False)
    if not factor > 0:
        raise InputError("the scores do not rise with the finding")
    return shipped.changed(factor=factor)


def isotonic_rates(cases: ClassCases) -> tuple[np.ndarray, np.ndarray]:
    """Share of the present as a rising step function: distinct scores, rising, and the rate of each.

    Naive form: pool neighbouring scores whose rates fall, until none do (pool adjacent violators).
    """
    scores, owner, counts = np.unique(cases.scores, return_inverse=True, return_counts=True)
    rates = np.bincount(owner, weights=cases.present) / counts
    return scores, isotonic_regression(rates, weights=counts).x


def fit_isotonic(cases: ClassCases) -> KnotMap:
    """Isotonic regression, made strictly rising.

    Plain isotonic regression gives neighbouring cases one value, and so loses ranks. Here each step becomes two knots,
    at its first and last score; rates are held off 0 and 1 by 1 / (n + 2), so that logits stay finite; and a line with
    `TILT` times Platt's slope is added, so that every map rises and AUROC is that of the scores.
    """
    slope = TILT * max(_rising(fit_platt(cases)).slope, 1e-3 / float(np.ptp(cases.scores)))
    scores, rates = isotonic_rates(cases)
    edge = 1 / (len(cases.scores) + 2)
    is_end = np.ones(len(scores), bool)
    is_end[1:-1] = (rates[1:-1] != rates[:-2]) | (rates[1:-1] != rates[2:])
    held = np.clip(rates[is_end], edge, 1 - edge)
    knots = scores[is_end]
    logits = np.log(held / (1 - held)) + slope * (knots - cases.scores.mean())
    return KnotMap(scores=tuple(knots.tolist()), logits=tuple(logits.tolist()), outer_slope=slope)


def _rising(line: LogisticMap) -> LogisticMap:
    if not line.slope > 0:
        raise InputError("the scores do not rise with the finding")
    return line


def fit_map(method: str, cases: ClassCases, shipped: ScoreMap) -> ScoreMap:
    """A map by the name of its method: platt, temperature or isotonic.

    Raises:
        InputError: the scores are all the same, or do not rise with the finding.
    """
    if method == "platt":
        return _rising(fit_platt(cases))
    return fit_temperature(cases, shipped) if method == "temperature" else fit_isotonic(cases)


def folds(cases: ClassCases, count: int = FOLDS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bool masks of the cases to fit on and of those to judge on; no patient is in both.

    Patients are dealt in turn, first those with the finding, so that every fold has its share of both.
    """
    names, owner = np.unique(cases.patients.astype(str), return_inverse=True)
    sick = np.zeros(len(names), bool)
    np.logical_or.at(sick, owner, cases.present)
    mixed = np.random.default_rng(0).permutation(len(names))
    dealt = np.concatenate([mixed[sick[mixed]], mixed[~sick[mixed]]])
    fold = np.empty(len(names), int)
    fold[dealt] = np.arange(len(names)) % count
    for k in range(count):
        yield fold[owner] != k, fold[owner] == k


def held_out_logits(method: str, cases: ClassCases, shipped: ScoreMap) -> np.ndarray:
    """Logits of all cases, each by a map that was fitted on other patients.

    Raises:
        InputError: as `fit_map`, in any of the folds.
    """
    logits = np.empty(len(cases.scores))
    for fitted, judged in folds(cases):
        logits[judged] = fit_map(method, cases.part(fitted), shipped).logit(cases.scores[judged])
    return logits


def choose_method(cases: ClassCases, shipped: ScoreMap) -> Fitted:
    """Platt, or isotonic where there are `ISOTONIC_LEAST` of both labels and its log loss on other patients is less."""
    count = int(cases.present.sum())
    if min(count, len(cases.present) - count) < ISOTONIC_LEAST:
        return "platt"
    targets = cases.present.astype(np.float64)
    methods: tuple[Fitted, ...] = ("platt", "isotonic")
    return min(methods, key=lambda method: _loss(held_out_logits(method, cases, shipped), targets))


def prior_shift(fitted: float, wanted: float) -> float:
    """What to add to logits that were fitted at one prevalence, for another.

    Bayes' rule with the likelihoods of the score kept: the log-odds of the prevalences are exchanged. True where the
    cases with the finding look like those at the other place, and those without it too; not where, say, the other
    place sees milder disease.
    """
    return math.log(wanted / (1 - wanted)) - math.log(fitted / (1 - fitted))


# --- promises -----------------------------------------------------------------------------------------------------


def exact_rate(hits: int, count: int, confidence: float = CONFIDENCE) -> Rate:
    """A share with its exact two-sided interval (Clopper and Pearson 1934).

    Naive form: the rates at which `hits` or more, and `hits` or fewer, of `count` have chance (1 - confidence) / 2.
    """
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return Rate(share=hits / count if count else 0.0, low=low, high=high, num_patients=count)


def least_patients(wanted: float, confidence: float = CONFIDENCE) -> int:
    """The fewest patients with which a rate can be promised at all: all of them on the right side must be unusual.

    Naive form: the least n with wanted ** n <= 1 - confidence.
    """
    return math.ceil(math.log(1 - confidence) / math.log(wanted) - 1e-12)


def allowed_misses(count: int, wanted: float, confidence: float = CONFIDENCE) -> int:
    """How many of `count` patients a threshold may leave on the wrong side and still promise the rate; -1 = none fits.

    The distribution-free tolerance limit (Wilks 1941): with the threshold at the (k + 1)-th worst score, the true rate
    is at least `wanted` with the given confidence if at most k of `count` draws with chance 1 - wanted are misses with
    probability at most 1 - confidence.

    Naive form: the largest k with P(Binomial(count, 1 - wanted) <= k) <= 1 - confidence.
    """
    ks = np.arange(count)
    fits = binom.cdf(ks, count, 1 - wanted) <= 1 - confidence + 1e-12
    return int(fits.sum()) - 1


def cut_for(goal: str, wanted: float, cases: ClassCases) -> float:
    """The score from which a class is present so that sensitivity, or specificity, is promised.

    Args:
        goal: "sensitivity" or "specificity".
        wanted: the rate, met on images of new patients of the same kind with 95 % confidence.
        cases: labelled cases.

    Returns:
        A score between two cases: the highest that keeps the sensitivity, the lowest that keeps the specificity.

    Raises:
        InputError: too few patients to promise it; the message says how many are needed.
    """
    worst = cases.one_present if goal == "sensitivity" else -cases.one_absent[::-1]
    misses = allowed_misses(len(worst), wanted)
    if misses < 0:
        kind = "with" if goal == "sensitivity" else "without"
        raise InputError(
            f"{goal} {wanted:g} cannot be promised: {least_patients(wanted)} patients {kind} the finding are needed, "
            f"there are {len(worst)}"
        )
    below = goal == "sensitivity"
    return between(cases.scores, float(worst[misses] if below else -worst[misses]), below=below)


def conformal_cuts(alpha: float, cases: ClassCases) -> tuple[float, float]:
    """Scores where the conformal sets change: "present" is kept from the first on, "absent" up to the second.

    Class-conditional split conformal prediction with the score itself as what is unusual: of n patients of a class, the
    floor(alpha * (n + 1)) - 1 worst ones are given up, so a new one is given up with chance at most alpha.

    Raises:
        InputError: too few patients for this alpha.

    Reference: Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world", Mondrian predictors.
    """
    present, absent = cases.one_present, cases.one_absent
    ranks = [math.floor(alpha * (len(part) + 1) + 1e-9) for part in (present, absent)]
    if min(ranks) < 1:
        raise InputError(
            f"abstention with alpha {alpha:g} needs {math.ceil(1 / alpha - 1 - 1e-9)} patients with and as many "
            f"without the finding, there are {len(present)} and {len(absent)}"
        )
    low = between(cases.scores, float(present[ranks[0] - 1]), below=True)
    return low, between(cases.scores, float(absent[len(absent) - ranks[1]]), below=False)


def between(scores: np.ndarray, edge: float, *, below: bool) -> float:
    """A score half-way from a case to the next one below or above, so that rounding moves no case to the other side.

    Beyond the last case, as far as the mean gap between cases.
    """
    others = scores[scores < edge] if below else scores[scores > edge]
    gap = float(np.ptp(scores)) / max(1, len(scores) - 1) or 1e-3
    if not len(others):
        return edge - gap if below else edge + gap
    return (edge + float(others.max() if below else others.min())) / 2
