"""How much is in frozen features: a linear probe and nearest neighbours, with 1, 10 and 100 % of the patients.

Fractions are of patients, not of cases: all cases of a patient are in, or none. Everything is chosen on validation; the
test split is scored once. Each seed draws other patients; with 100 % all seeds draw the same ones, and only one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from radglint.errors import ConfigError, InputError
from radglint.evaluation.bootstrap import group_index
from radglint.evaluation.classification import ClassValues, auroc, per_class
from radglint.evaluation.inputs import as_flags, as_numbers

FRACTIONS = (0.01, 0.1, 1.0)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression
NEIGHBOURS, TEMPERATURE = 20, 0.07  # the weighted vote of DINO's k-NN
PIECE_ROWS = 1024
Kind = Literal["linear", "knn"]


@dataclass(frozen=True)
class Split:
    """Features and labels of one split.

    Attributes:
        features: `cases width`.
        positive: `cases classes`, bool; anything where not known.
        known: `cases classes`, bool.
        patients: `cases`.
    """

    features: np.ndarray
    positive: np.ndarray
    known: np.ndarray
    patients: np.ndarray


def make_split(features: Any, positive: Any, patients: Sequence[Any], known: Any = None) -> Split:
    """A checked split.

    Raises:
        InputError: lengths that do not fit, features that are not finite, a case without a patient.
    """
    rows = as_numbers("features", features)
    flags = np.asarray(positive)
    if rows.ndim != 2 or flags.ndim != 2 or len(rows) != len(flags) or len(rows) != len(patients):
        raise InputError(f"features {rows.shape}, positive {flags.shape}, {len(patients)} patients: expected (cases, "
                         "width), (cases, classes) and one patient for each case")  # fmt: skip
    seen = np.ones(flags.shape, bool) if known is None else as_flags("known", known, flags.shape)
    group_index(patients)
    return Split(rows, as_flags("positive", np.where(seen, flags, False)), seen, np.asarray(patients))


@dataclass(frozen=True)
class ProbeResult:
    """One run.

    Attributes:
        kind: linear or knn.
        fraction: of the training patients.
        seed: of their draw.
        patients: how many were drawn.
        cases: how many cases they have.
        strength: class to the C that validation chose; of knn, empty.
        test: AUROC of each class on the test split, and what was left out.
    """

    kind: Kind
    fraction: float
    seed: int
    patients: int
    cases: int
    strength: dict[str, float]
    test: ClassValues


def probe(
    kind: Kind, names: Sequence[str], train: Split, val: Split, test: Split, *,
    fractions: Sequence[float] = FRACTIONS, seeds: Sequence[int] = (0, 1, 2), strengths: Sequence[float] = STRENGTHS,
    neighbours: int = NEIGHBOURS,
) -> list[ProbeResult]:  # fmt: skip
    """Fit on a share of the training patients, choose on validation, measure on test.

    Args:
        kind: linear = one logistic regression for each class on standardised features; knn = cosine, weighted vote.
        names: `classes`.
        train: training split.
        val: validation split; a class that it cannot judge takes the middle of `strengths`.
        test: test split.
        fractions: of the training patients, in (0, 1].
        seeds: of the draws.
        strengths: tried for each class.
        neighbours: of knn; fewer where fewer are known.

    Raises:
        ConfigError: an unknown kind, a fraction out of range.
        InputError: a patient in two splits, other widths or classes.
    """
    if kind not in ("linear", "knn") or not all(0 < f <= 1 for f in fractions) or not strengths:
        raise ConfigError(f"probe: kind {kind!r}, fractions {tuple(fractions)}; expected linear or knn, in (0, 1]")
    _check_splits(names, train, val, test)
    found = []
    for fraction in fractions:
        for seed in seeds if fraction < 1 else seeds[:1]:
            part = subset(train, fraction, seed)
            scores, strength = (
                _linear(names, part, val, test, strengths) if kind == "linear" else (_knn(part, test, neighbours), {})
            )
            usable = ~np.isnan(scores)
            values = per_class(auroc, names, np.where(usable, scores, 0), test.positive, test.known & usable)
            values.left_out.update({n: "no positives or no negatives in the drawn training patients"
                                    for k, n in enumerate(names) if not usable[:, k].any()})  # fmt: skip
            patients = len(np.unique(part.patients))
            found.append(ProbeResult(kind, fraction, seed, patients, len(part.features), strength, values))
    return found


def subset(split: Split, fraction: float, seed: int) -> Split:
    """A share of the patients with all their cases: at least one patient; a larger share holds the smaller one.

    Args:
        split: to draw from.
        fraction: of its patients, in (0, 1].
        seed: equal seeds draw the same order of patients.
    """
    index, count = group_index(split.patients)
    order = np.random.default_rng(seed).permutation(count)
    drawn = np.zeros(count, bool)
    drawn[order[: max(1, round(fraction * count))]] = True
    keep = drawn[index]
    return Split(split.features[keep], split.positive[keep], split.known[keep], split.patients[keep])


def knn_scores(
    features: np.ndarray, positive: np.ndarray, known: np.ndarray, queries: np.ndarray, neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:  # fmt: skip
    """Weighted vote of the nearest cases by cosine, each class among the cases whose label is known.

    Args:
        features: `cases width`.
        positive: `cases classes`, bool.
        known: `cases classes`, bool.
        queries: `queries width`.
        neighbours: how many vote.
        temperature: weight = exp(cosine / temperature).

    Returns:
        `queries classes` in [0, 1]; NaN where no case with both answers is known.

    Naive form: for each query the `neighbours` known cases of the highest cosine; sum of the weights of the positive
    ones over the sum of all.
    """
    cases, asked = _unit(features), _unit(queries)
    scores = np.full((len(asked), positive.shape[1]), np.nan)
    for k in range(positive.shape[1]):
        rows = np.flatnonzero(known[:, k])
        if not 0 < positive[rows, k].sum() < len(rows):
            continue
        for start in range(0, len(asked), PIECE_ROWS):
            cosines = asked[start : start + PIECE_ROWS] @ cases[rows].T
            near = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
            weights = np.exp((np.take_along_axis(cosines, near, 1) - 1) / temperature)
            scores[start : start + PIECE_ROWS, k] = (weights * positive[rows[near], k]).sum(1) / weights.sum(1)
    return scores


def _knn(train: Split, test: Split, neighbours: int) -> np.ndarray:
    return knn_scores(train.features, train.positive, train.known, test.features, neighbours)


def _linear(
    names: Sequence[str], train: Split, val: Split, test: Split, strengths: Sequence[float]
) -> tuple[np.ndarray, dict[str, float]]:
    """`test cases classes` of decision values, and the chosen C of each class."""
    scores, chosen = np.full(test.positive.shape, np.nan), {}
    for k, name in enumerate(names):
        rows = train.known[:, k]
        truth = train.positive[rows, k]
        if not 0 < truth.sum() < len(truth):
            continue
        fits = [(c, _fit(train.features[rows], truth, c)) for c in strengths]
        value = [_validation_auroc(model, val, k) for _, model in fits]
        best = len(fits) // 2 if np.isnan(value).all() else int(np.nanargmax(value))
        chosen[name] = float(fits[best][0])
        scores[:, k] = fits[best][1](test.features)
    return scores, chosen


def _validation_auroc(model: Callable[[np.ndarray], np.ndarray], val: Split, k: int) -> float:
    rows = val.known[:, k]
    return auroc(model(val.features[rows]), val.positive[rows, k]) if rows.any() else float("nan")


def _fit(features: np.ndarray, truth: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    return model.fit(features, truth).decision_function


def _check_splits(names: Sequence[str], *splits: Split) -> None:
    shapes = {(s.features.shape[1], s.positive.shape[1]) for s in splits}
    if len(shapes) > 1 or splits[0].positive.shape[1] != len(names):
        raise InputError(f"splits of (width, classes) {sorted(shapes)}: expected one, with {len(names)} classes")
    seen: set[Any] = set()
    for split in splits:
        own = set(split.patients.tolist())
        if seen & own:
            raise InputError(f"patient {sorted(map(str, seen & own))[0]} is in two splits; split by patient")
        seen |= own


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"features: row {int(np.argmin(norms))} is all 0 and has no direction")
    return rows / norms
