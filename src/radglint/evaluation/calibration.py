"""Do probabilities mean what they say? Expected calibration error, Brier score, reliability curve, log loss.

The probability is that of "present", not of the called class: in a bin of mean probability 0.3, 30 % should be positive.
Bins are half-open, the last one closed. For many labels use `classwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from radglint.errors import ConfigError, InputError
from radglint.evaluation.classification import ClassValues, per_class
from radglint.evaluation.inputs import as_flags, as_probabilities, as_weights, ratio

Binning = Literal["width", "mass"]
BINS = 15


@dataclass(frozen=True)
class Reliability:
    """What was said and what was true, in each bin that holds a case.

    Attributes:
        low: `bins`, lowest probability that the bin takes ("width") or holds ("mass").
        high: `bins`, the highest.
        weight: `bins`, weight of its cases.
        count: `bins`, its cases.
        said: `bins`, mean probability.
        true: `bins`, share of positives.
        true_low: `bins`, lower end of the interval of that share (Wilson's, of the weights' effective number of cases).
        true_high: `bins`, upper end.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    count: np.ndarray
    said: np.ndarray
    true: np.ndarray
    true_low: np.ndarray
    true_high: np.ndarray


def reliability(
    probabilities: Any, positive: Any, bins: int = BINS, binning: Binning = "width", weights: Any = None,
    level: float = 0.95,
) -> Reliability:  # fmt: skip
    """The reliability curve.

    Args:
        probabilities: `cases`, in [0, 1].
        positive: `cases`, bool.
        bins: how many.
        binning: width = equal widths; mass = as equal in cases as ties allow (equal probabilities share a bin).
        weights: `cases`; None = 1 each.
        level: of the interval of each share.

    Naive form: for each bin the cases in it, their mean probability and their share of positives.
    """
    p, y, w = _checked(probabilities, positive, weights)
    place, low, high = _bins(p, bins, binning)
    weight, square = np.bincount(place, w, minlength=len(low)), np.bincount(place, w * w, minlength=len(low))
    keep = weight > 0
    said, true = (np.bincount(place, w * v, minlength=len(low))[keep] / weight[keep] for v in (p, y))
    effective = weight[keep] ** 2 / square[keep]
    ends = _wilson(true, effective, level)
    count = np.bincount(place, w > 0, minlength=len(low))[keep].astype(int)
    return Reliability(low[keep], high[keep], weight[keep], count, said, true, *ends)


def ece(
    probabilities: Any, positive: Any, bins: int = BINS, binning: Binning = "width", weights: Any = None
) -> float:  # fmt: skip
    """Expected calibration error; arguments as `reliability`. It depends on the binning: name it with the number.

    Naive form: sum over bins of (weight of the bin / weight of all) |mean probability - share of positives|.
    """
    curve = reliability(probabilities, positive, bins, binning, weights)
    return float((curve.weight * np.abs(curve.said - curve.true)).sum() / curve.weight.sum())


def max_calibration_error(
    probabilities: Any, positive: Any, bins: int = BINS, binning: Binning = "width", weights: Any = None
) -> float:  # fmt: skip
    """The worst bin; arguments as `reliability`. Naive form: max over bins of |mean probability - share of positives|."""
    curve = reliability(probabilities, positive, bins, binning, weights)
    return float(np.abs(curve.said - curve.true).max())


def adaptive_ece(probabilities: Any, positive: Any, bins: int = BINS, weights: Any = None) -> float:
    """Adaptive calibration error of one label (Nixon et al. 2019): bins of equal mass, each counts the same.

    Naive form: mean over bins of equal mass of |mean probability - share of positives|.
    """
    curve = reliability(probabilities, positive, bins, "mass", weights)
    return float(np.abs(curve.said - curve.true).mean())


def classwise(
    measure: Callable[..., float], names: Sequence[str], probabilities: Any, positive: Any, known: Any = None,
    weights: Any = None, *, least: int = 1,
) -> ClassValues:  # fmt: skip
    """A calibration measure of each label, and (`.macro`) its mean over labels, which is the classwise ECE.

    Args:
        measure: of (probabilities, positive, weights=...), for example `ece` or `brier`.
        names: `classes`.
        probabilities: `cases classes`.
        positive: `cases classes`, bool.
        known: `cases classes`, bool; None = all.
        weights: `cases`; None = 1 each.
        least: positives and negatives that a class must have.
    """
    return per_class(
        lambda p, y, w: measure(p, y, weights=w), names, probabilities, positive, known, weights, least=least
    )


def brier(probabilities: Any, positive: Any, weights: Any = None) -> float:
    """Mean squared error of the probability. Naive form: sum w (p - y)^2 / sum w."""
    p, y, w = _checked(probabilities, positive, weights)
    return float((w * (p - y) ** 2).sum() / w.sum())


@dataclass(frozen=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty + within (Murphy 1973; Stephenson et al. 2008).

    Attributes:
        brier: the score.
        reliability: weighted mean of (said - true)^2 over groups: 0 is best.
        resolution: weighted mean of (true - base rate)^2: more is better.
        uncertainty: base rate (1 - base rate).
        within: what probabilities that differ inside a bin add; 0 without bins.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_parts(
    probabilities: Any, positive: Any, bins: int | None = None, binning: Binning = "width", weights: Any = None
) -> BrierParts:  # fmt: skip
    """Decomposition of the Brier score, exact.

    Args:
        probabilities: `cases`, in [0, 1].
        positive: `cases`, bool.
        bins: None = each distinct probability is a group of its own, Murphy's form.
        binning: see `reliability`.
        weights: `cases`; None = 1 each.

    Naive form: the sums of `BrierParts` over groups; within = sum w ((p - said)^2 - 2 (p - said)(y - true)) / sum w.
    """
    p, y, w = _checked(probabilities, positive, weights)
    place = np.unique(p, return_inverse=True)[1] if bins is None else _bins(p, bins, binning)[0]
    weight = np.bincount(place, w)
    said, true = (ratio(np.bincount(place, w * v), weight, 0.0) for v in (p, y))
    total, base = w.sum(), (w * y).sum() / w.sum()
    off, surprise = p - said[place], y - true[place]
    return BrierParts(
        brier=brier(p, y, w),
        reliability=float((weight * (said - true) ** 2).sum() / total),
        resolution=float((weight * (true - base) ** 2).sum() / total),
        uncertainty=float(base * (1 - base)),
        within=float((w * (off**2 - 2 * off * surprise)).sum() / total),
    )


def log_loss(probabilities: Any, positive: Any, weights: Any = None) -> float:
    """Mean of -log of the probability of what is true, in nats; probabilities are kept 2.2e-16 off 0 and 1.

    Naive form: - sum w (y ? log p : log(1 - p)) / sum w.
    """
    p, y, w = _checked(probabilities, positive, weights)
    tiny = np.finfo(np.float64).eps
    p = np.clip(p, tiny, 1 - tiny)
    return float(-(w * np.log(np.where(y, p, 1 - p))).sum() / w.sum())


def _checked(probabilities: Any, positive: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = as_probabilities("probabilities", probabilities)
    if p.ndim != 1:
        raise InputError(
            f"probabilities: expected one for each case, got shape {p.shape}; use classwise for many labels"
        )
    return p, as_flags("positive", positive, p.shape), as_weights(weights, p.shape)


def _bins(p: np.ndarray, bins: int, binning: Binning) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin of each case, and the range of each bin."""
    if bins < 1 or binning not in ("width", "mass"):
        raise ConfigError(f"bins {bins}, binning {binning!r}: expected 1 or more, and width or mass")
    if binning == "width":
        edges = np.linspace(0, 1, bins + 1)
        return np.clip(np.searchsorted(edges, p, "right") - 1, 0, bins - 1), edges[:-1], edges[1:]
    values, first, place = np.unique(np.sort(p), return_index=True, return_inverse=True)
    group = np.unique(first * bins // len(p), return_inverse=True)[1]  # by where its first case stands in the order
    low = np.array([values[group == k].min() for k in range(group.max() + 1)])
    high = np.array([values[group == k].max() for k in range(group.max() + 1)])
    return group[np.searchsorted(values, p)], low, high


def _wilson(share: np.ndarray, count: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of a share (Wilson 1927)."""
    if not 0 < level < 1:
        raise ConfigError(f"level: expected a number in (0, 1), got {level}")
    z = norm.ppf((1 + level) / 2)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.maximum(centre - reach, 0.0), np.minimum(centre + reach, 1.0)
