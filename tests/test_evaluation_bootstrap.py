"""Bootstrap by patient and tests between two models, each against its plain form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from radglint.errors import ConfigError, InputError
from radglint.evaluation.bootstrap import (
    Bootstrap,
    auroc_statistic,
    average_precision_statistic,
    bootstrap,
    confusion_statistic,
    draw_weights,
    group_index,
    macro_statistic,
    mean_statistic,
    ratio_statistic,
    running_sum,
)
from radglint.evaluation.classification import MEASURES, auroc, average_precision, confusion_at
from radglint.evaluation.significance import (
    delong,
    delong_covariance,
    delong_interval,
    holm,
    paired_difference,
    permutation_test,
    randomisation_test,
    randomisation_test_of,
)


def data(seed: int = 0, cases: int = 80, classes: int = 3) -> tuple[np.ndarray, ...]:
    """Scores with ties, labels, which labels are known, patients."""
    rng = np.random.default_rng(seed)
    positive = rng.random((cases, classes)) < np.linspace(0.2, 0.7, classes)
    scores = rng.integers(0, 12, (cases, classes)) + 3.0 * positive
    return scores, positive, rng.random((cases, classes)) < 0.85, rng.integers(0, cases // 2, cases)


def weights_of(groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    return np.concatenate(list(draw_weights(*group_index(groups), draws, seed)), axis=1)


def test_draws_take_whole_patients_and_do_not_depend_on_the_piece() -> None:
    groups = np.array(["b", "a", "b", "c", "a"])
    weights = weights_of(groups, 50, 7)
    assert weights.shape == (5, 50)
    assert (weights[0] == weights[2]).all()
    assert (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(0) == 3).all(), "as many patients as there are"
    pieces = np.concatenate(list(draw_weights(*group_index(groups), 50, 7, piece=7)), axis=1)
    np.testing.assert_array_equal(weights, pieces)
    assert not np.array_equal(weights, weights_of(groups, 50, 8))


@pytest.mark.parametrize("seed", range(4))
def test_auroc_and_average_precision_of_all_draws_are_those_of_each(seed: int) -> None:
    scores, positive, known, groups = data(seed)
    weights = weights_of(groups, 20, seed)
    for statistic, one in ((auroc_statistic, auroc), (average_precision_statistic, average_precision)):
        got = statistic(scores, positive, known)(weights)
        for d in range(weights.shape[1]):
            for k in range(scores.shape[1]):
                keep = known[:, k] & (weights[:, d] > 0)
                expected = one(scores[keep, k], positive[keep, k], weights[keep, d])
                assert got[d, k] == pytest.approx(expected, abs=1e-12)


def test_a_draw_is_the_cases_of_the_drawn_patients_repeated() -> None:
    """By scikit-learn, on lists that really hold a case twice."""
    scores, positive, _, groups = data(5)
    weights = weights_of(groups, 15, 1)
    got = auroc_statistic(scores[:, 1], positive[:, 1])(weights)[:, 0]
    for d in range(15):
        rows = np.repeat(np.arange(len(scores)), weights[:, d].astype(int))
        assert got[d] == pytest.approx(sk.roc_auc_score(positive[rows, 1], scores[rows, 1]), abs=1e-12)


def test_classes_where_positives_are_the_many_or_missing() -> None:
    scores, weights = np.array([0.1, 0.2, 0.3, 0.3]), np.ones((4, 1), np.float32)
    many = np.array([False, True, True, True])
    assert auroc_statistic(scores, many)(weights)[0, 0] == auroc(scores, many) == 1
    assert np.isnan(auroc_statistic(scores, np.ones(4, bool))(weights)).all()
    assert np.isnan(auroc_statistic(scores, np.zeros(4, bool))(weights)).all()
    assert np.isnan(average_precision_statistic(scores, np.zeros(4, bool))(weights)).all()
    drawn = bootstrap(auroc_statistic(scores, np.arange(4) == 3), np.arange(4), 200, 0)
    interval = drawn.interval()
    assert interval.undefined > 0
    assert interval.draws + interval.undefined == 200
    nothing = bootstrap(auroc_statistic(scores, np.ones(4, bool)), np.arange(4), 10, 0).interval(method="bca")
    assert np.isnan(nothing.low)
    assert nothing.draws == 0


@given(st.integers(1, 70), st.integers(1, 4))
def test_the_running_sum_is_that_of_numpy(rows: int, columns: int) -> None:
    values = np.random.default_rng(rows).integers(0, 9, (rows, columns))
    np.testing.assert_array_equal(running_sum(values), np.cumsum(values, axis=0))


def test_means_ratios_and_tables_are_those_of_each_draw() -> None:
    scores, positive, known, groups = data(2)
    values = np.where(known, scores, np.nan)
    weights = weights_of(groups, 12, 3)
    means = mean_statistic(values)(weights)
    ratios = ratio_statistic(scores, scores + 1)(weights)
    tables = confusion_statistic(scores, positive, [5.0, 6.0, 7.0], known)(weights).reshape(12, 3, len(MEASURES))
    macro = macro_statistic(mean_statistic(values))(weights)
    for d in range(12):
        w = weights[:, d].astype(float)
        np.testing.assert_allclose(macro[d], means[d].mean())
        for k in range(3):
            keep = known[:, k]
            assert means[d, k] == pytest.approx(np.average(values[keep, k], weights=w[keep]))
            assert ratios[d, k] == pytest.approx((w * scores[:, k]).sum() / (w * (scores[:, k] + 1)).sum())
            one = confusion_at(scores[keep, k], positive[keep, k], (5, 6, 7)[k], w[keep])
            np.testing.assert_allclose(tables[d, k], list(one.measures().values()), atol=1e-12)


def test_the_same_seed_gives_the_same_intervals_for_one_mean_as_scipy_would() -> None:
    values = np.random.default_rng(0).normal(size=60)
    drawn = bootstrap(mean_statistic(values), np.arange(60), 4000, 1)
    assert drawn.intervals() == bootstrap(mean_statistic(values), np.arange(60), 4000, 1, piece=77).intervals()
    for method, name in (("percentile", "percentile"), ("bca", "BCa")):
        ours = drawn.interval(method=method)  # pyright: ignore
        theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method=name, rng=0).confidence_interval
        assert ours.low == pytest.approx(theirs.low, abs=0.02)
        assert ours.high == pytest.approx(theirs.high, abs=0.02)
        assert ours.estimate == pytest.approx(values.mean(), abs=1e-6)


def test_bca_equals_that_of_scipy_on_the_same_draws() -> None:
    """A skewed sample, our quantile against the formula of Efron as scipy computes it."""
    values = np.random.default_rng(4).exponential(size=40)
    drawn = bootstrap(mean_statistic(values), np.arange(40), 2000, 2)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=0, method="BCa",
        bootstrap_result=type("Result", (), {"bootstrap_distribution": drawn.samples[:, 0]})(),
    )  # fmt: skip
    ours = drawn.interval(method="bca")
    assert ours.low == pytest.approx(result.confidence_interval.low, abs=1e-3)
    assert ours.high == pytest.approx(result.confidence_interval.high, abs=1e-3)


def test_many_patients_are_left_out_in_blocks() -> None:
    values = np.random.default_rng(4).exponential(size=900)
    drawn = bootstrap(mean_statistic(values), np.arange(900), 300, 2)
    assert isinstance(drawn, Bootstrap)
    plain, corrected = drawn.interval(), drawn.interval(method="bca")
    assert 0 < corrected.low - plain.low < 0.05, "a right-skewed mean moves up"


def test_patients_that_repeat_make_the_interval_wider() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)
    by_patient = bootstrap(mean_statistic(values), np.repeat(np.arange(30), 10), 500).interval()
    by_case = bootstrap(mean_statistic(values), np.arange(300), 500).interval()
    assert by_patient.high - by_patient.low > 2.5 * (by_case.high - by_case.low)


def test_missing_patients_other_lengths_and_no_draws_are_refused() -> None:
    with pytest.raises(InputError, match="case 1 has no patient"):
        group_index(["a", None])
    with pytest.raises(InputError, match="case 0 has no patient"):
        group_index([float("nan"), 1.0])
    with pytest.raises(InputError, match="one patient for each case"):
        group_index([])
    with pytest.raises(ConfigError, match="draws"):
        bootstrap(mean_statistic([1.0]), ["a"], 0)
    with pytest.raises(ConfigError, match="percentile or bca"):
        bootstrap(mean_statistic([1.0]), ["a"], 5).interval(method="normal")  # pyright: ignore
    with pytest.raises(InputError, match="one shape"):
        auroc_statistic([0.1, 0.2], [True])
    with pytest.raises(InputError, match=r"scores: value nan"):
        auroc_statistic([0.1, np.nan], [True, False])
    with pytest.raises(InputError, match="denominators"):
        ratio_statistic([1.0, 2.0], [1.0])


def naive_delong(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for row in scores:
        hits, misses = row[positive], row[~positive]
        tables.append([[1.0 if h > m else 0.5 if h == m else 0.0 for m in misses] for h in hits])
    table = np.array(tables)
    wins, losses = table.mean(2), table.mean(1)
    return table.mean((1, 2)), np.cov(wins) / wins.shape[1] + np.cov(losses) / losses.shape[1]


def test_delong_by_midranks_is_that_of_the_pairs() -> None:
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.4
    scores = rng.integers(0, 8, (3, 60)) + 2.0 * positive
    for got, expected in zip(delong_covariance(scores, positive), naive_delong(scores, positive), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    result = delong(scores[0], scores[1], positive)
    assert result.a == pytest.approx(auroc(scores[0], positive))
    z = (result.a - result.b) / np.sqrt(np.array([1, -1]) @ result.covariance @ np.array([1, -1]))
    assert result.z == pytest.approx(z)
    assert result.p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_delong_and_the_bootstrap_agree() -> None:
    rng = np.random.default_rng(6)
    positive = rng.random(600) < 0.3
    a, b = rng.normal(size=600) + 1.2 * positive, rng.normal(size=600) + 0.9 * positive
    analytic = delong(a, b, positive)
    drawn = paired_difference(auroc_statistic(a, positive), auroc_statistic(b, positive), np.arange(600), 2000, 3)[0]
    assert drawn.difference == pytest.approx(analytic.a - analytic.b)
    np.testing.assert_allclose([drawn.low, drawn.high], analytic.interval(), atol=0.006)
    assert drawn.p == pytest.approx(analytic.p, abs=0.02)
    area, low, high = delong_interval(a, positive)
    own = bootstrap(auroc_statistic(a, positive), np.arange(600), 2000, 3).interval()
    assert (area, low, high) == pytest.approx((own.estimate, own.low, own.high), abs=0.006)


def test_the_same_model_twice_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(50) < 0.5, rng.random(50)
    same = delong(scores, np.exp(scores), positive)
    assert (same.z, same.p) == (0, 1)
    drawn = paired_difference(*[auroc_statistic(scores, positive)] * 2, np.arange(50), 100)[0]
    assert (drawn.difference, drawn.low, drawn.high, drawn.p) == (0, 0, 0, 1)
    assert randomisation_test(scores, scores, np.arange(50), 100) == 1
    assert np.isnan(delong(scores, scores, np.ones(50, bool)).p)
    assert np.isnan(paired_difference(*[auroc_statistic(scores, np.ones(50, bool))] * 2, np.arange(50), 9)[0].p)


def test_paired_differences_of_several_measures_keep_their_order() -> None:
    a, b = np.array([[1.0, 5], [2, 6], [3, 9]]), np.array([[0.0, 7], [2, 8], [1, 9]])
    got = paired_difference(mean_statistic(a), mean_statistic(b), np.arange(3), 50)
    assert [(d.a, d.b) for d in got] == [(2, 1), (pytest.approx(20 / 3), 8)]


def test_the_randomisation_test_is_near_the_exact_one_over_all_exchanges() -> None:
    a, b = np.array([0.9, 0.7, 0.8, 0.6, 0.9, 0.5]), np.array([0.4, 0.6, 0.7, 0.3, 0.8, 0.6])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-12).mean()
    assert randomisation_test(a, b, np.arange(6), 20_000) == pytest.approx(exact, abs=0.01)
    assert randomisation_test_of(np.mean, a, b, np.arange(6), 4000) == pytest.approx(exact, abs=0.02)
    with_gaps = randomisation_test(np.append(a, np.nan), np.append(b, 1.0), np.arange(7), 20_000)
    assert with_gaps == pytest.approx(exact, abs=0.01)
    assert np.isnan(randomisation_test([np.nan], [1.0], ["a"], 10))


def test_patients_are_exchanged_whole() -> None:
    """Two patients have four exchanges, so p cannot fall below one half, however many cases they have."""
    a, b = np.ones(40), np.zeros(40)
    assert randomisation_test(a, b, np.repeat([0, 1], 20), 2000) == pytest.approx(0.5, abs=0.04)
    assert randomisation_test(a, b, np.arange(40), 2000) < 0.001


def test_the_permutation_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(2)
    values, member = rng.normal(size=24), np.arange(24) < 10
    values[member] += 0.8
    theirs = stats.permutation_test(
        (values[member], values[~member]), lambda x, y: x.mean() - y.mean(), n_resamples=9999, rng=0
    ).pvalue
    assert permutation_test(values, member, np.arange(24)) == pytest.approx(theirs, abs=0.015)
    with pytest.raises(InputError, match="each patient in one"):
        permutation_test([1.0, 2.0, 3.0], [True, False, False], ["a", "a", "b"])
    with pytest.raises(InputError, match="groups: 2 for 3"):
        permutation_test([1.0, 2.0, 3.0], [True, False, False], ["a", "b"])


def test_holm_by_hand() -> None:
    got = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan"), "e": 0.5})
    assert got["a"] == pytest.approx(0.04)
    assert got["c"] == pytest.approx(0.09)
    assert got["b"] == pytest.approx(0.09), "never below the one before"
    assert got["e"] == 0.5
    assert np.isnan(got["d"])
    assert holm({}) == {}
    with pytest.raises(InputError, match="p values"):
        holm({"a": 2.0})
