"""Calibration measures against plain loops, scikit-learn, scipy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from radglint.errors import ConfigError, InputError
from radglint.evaluation.calibration import (
    adaptive_ece,
    brier,
    brier_parts,
    classwise,
    ece,
    log_loss,
    max_calibration_error,
    reliability,
)

ROWS = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.floats(0.25, 3)), min_size=1, max_size=50)


def split(rows: list[tuple[int, bool, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, y, w = zip(*rows, strict=True)
    return np.array(p) / 40, np.array(y), np.array(w)


def naive_ece(p: np.ndarray, y: np.ndarray, w: np.ndarray, bins: int) -> float:
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for k in range(bins):
        inside = (p >= edges[k]) & ((p < edges[k + 1]) | (k == bins - 1))
        if inside.any():
            said, true = (np.average(v[inside], weights=w[inside]) for v in (p, y))
            total += w[inside].sum() * abs(said - true)
    return total / w.sum()


@given(ROWS, st.sampled_from([1, 5, 10, 15]))
def test_ece_of_equal_widths_is_that_of_the_loop(rows, bins: int) -> None:
    p, y, w = split(rows)
    assert ece(p, y, bins, weights=w) == pytest.approx(naive_ece(p, y, w, bins), abs=1e-12)
    assert ece(p, y, bins) <= max_calibration_error(p, y, bins) + 1e-12


def test_ece_and_the_curve_are_those_of_torchmetrics_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = rng.random(500) < p**2
    tensors = torch.tensor(p), torch.tensor(y).long()
    assert ece(p, y) == pytest.approx(float(binary_calibration_error(*tensors, n_bins=15)), abs=1e-6)
    worst = float(binary_calibration_error(*tensors, n_bins=15, norm="max"))
    assert max_calibration_error(p, y) == pytest.approx(worst, abs=1e-6)
    for binning, strategy in (("width", "uniform"), ("mass", "quantile")):
        true, said = calibration_curve(y, p, n_bins=10, strategy=strategy)
        got = reliability(p, y, 10, binning)  # pyright: ignore
        np.testing.assert_allclose(got.true, true, atol=0.02 if binning == "mass" else 1e-9)
        np.testing.assert_allclose(got.said, said, atol=0.002 if binning == "mass" else 1e-9)
    assert got.count.tolist() == [50] * 10


def test_bins_of_equal_mass_by_hand_and_ties_stay_together() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    y = np.array([0, 1, 0, 1, 1, 1], bool)
    curve = reliability(p, y, 3, "mass")
    np.testing.assert_allclose(curve.said, [0.15, 0.35, 0.55])
    np.testing.assert_allclose(curve.true, [0.5, 0.5, 1])
    np.testing.assert_allclose(curve.low, [0.1, 0.3, 0.5])
    np.testing.assert_allclose(curve.high, [0.2, 0.4, 0.6])
    expected = (0.35 + 0.15 + 0.45) / 3
    assert ece(p, y, 3, "mass") == pytest.approx(expected)
    assert adaptive_ece(p, y, 3) == pytest.approx(expected)
    tied = reliability(np.array([0.2] * 5 + [0.9]), y, 3, "mass")
    assert tied.count.tolist() == [5, 1]
    assert adaptive_ece(np.array([0.2] * 5 + [0.9]), y, 3) == pytest.approx((0.4 + 0.1) / 2)


@given(ROWS)
def test_a_calibrated_forecast_has_no_error_and_order_does_not_matter(rows) -> None:
    p, y, w = split(rows)
    base = np.full(len(p), np.average(y, weights=w))
    assert ece(base, y, weights=w) == pytest.approx(0, abs=1e-12)
    order = np.random.default_rng(0).permutation(len(p))
    for binning in ("width", "mass"):
        assert ece(p, y, 7, binning, w) == pytest.approx(ece(p[order], y[order], 7, binning, w[order]))
        assert ece(1 - base, ~y, 7, binning, w) == pytest.approx(0, abs=1e-12)


def test_intervals_of_the_curve_are_wilsons() -> None:
    p, y = np.full(40, 0.3), np.arange(40) < 11
    curve = reliability(p, y)
    expected = binomtest(11, 40).proportion_ci(0.95, "wilson")
    assert (curve.true_low[0], curve.true_high[0]) == pytest.approx((expected.low, expected.high))
    assert (curve.low[0], curve.high[0]) == pytest.approx((4 / 15, 5 / 15))
    half = reliability(p, y, weights=np.full(40, 0.5))
    assert half.true_low[0] == pytest.approx(expected.low), "equal weights change nothing"
    assert half.weight[0] == 20


@given(ROWS)
def test_scores_are_those_of_scikit_learn_and_the_parts_add_up(rows) -> None:
    p, y, w = split(rows)
    assert brier(p, y, w) == pytest.approx(sk.brier_score_loss(y, p, sample_weight=w, pos_label=True))
    inner = np.clip(p, 0.01, 0.99)
    expected = sk.log_loss(y, inner, sample_weight=w, labels=[False, True])
    assert log_loss(inner, y, w) == pytest.approx(expected)
    for bins, binning in ((None, "width"), (5, "width"), (4, "mass")):
        parts = brier_parts(p, y, bins, binning, w)  # pyright: ignore
        total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
        assert total == pytest.approx(parts.brier, abs=1e-12)
        assert bins is not None or parts.within == pytest.approx(0, abs=1e-12)


def test_murphys_parts_by_hand() -> None:
    parts = brier_parts([0.2, 0.2, 0.8, 0.8], [False, True, True, True])
    assert parts.reliability == pytest.approx((0.3**2 + 0.2**2) / 2)
    assert parts.resolution == pytest.approx(0.25**2)
    assert parts.uncertainty == pytest.approx(0.1875)
    assert log_loss([0.0, 1.0], [False, True]) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(log_loss([0.0], [True]))


def test_classes_have_a_value_each_and_a_mean() -> None:
    rng = np.random.default_rng(1)
    p, y, known = rng.random((50, 3)), rng.random((50, 3)) < 0.5, rng.random((50, 3)) < 0.8
    y[:, 2] = True
    p[~known] = np.nan
    got = classwise(ece, ["a", "b", "c"], p, y, known)
    assert got.values["b"] == pytest.approx(ece(p[known[:, 1], 1], y[known[:, 1], 1]))
    assert got.macro == pytest.approx((got.values["a"] + got.values["b"]) / 2)
    assert got.left_out == {"c": "no negatives"}
    assert set(classwise(brier, ["a", "b"], p[:, :2], y[:, :2], known[:, :2]).values) == {"a", "b"}


@pytest.mark.parametrize(
    ("p", "words"),
    [([0.1, np.nan], "value nan"), ([0.1, 1.2], "calibrate scores first"), ([-0.1, 0.2], "calibrate"), ([], "is empty"),
     ([[0.1], [0.2]], "classwise")],
)  # fmt: skip
def test_what_is_not_a_probability_is_refused(p, words: str) -> None:
    for measure in (ece, brier, log_loss, adaptive_ece, brier_parts):
        with pytest.raises(InputError, match=words):
            measure(p, np.zeros(np.shape(p), bool))


def test_bad_bins_and_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="width or mass"):
        ece([0.1], [True], 5, "equal")  # pyright: ignore
    with pytest.raises(ConfigError, match="1 or more"):
        ece([0.1], [True], 0)
    with pytest.raises(ConfigError, match="level"):
        reliability([0.1], [True], level=95)
