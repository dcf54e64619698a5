"""Areas, curves, tables and thresholds: against a plain loop over pairs, scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from radglint.errors import ConfigError, InputError
from radglint.evaluation.classification import (
    MEASURES,
    auroc,
    average_precision,
    best_f1,
    best_mcc,
    choose,
    closest_to_corner,
    confusion_at,
    confusion_curve,
    for_sensitivity,
    for_specificity,
    per_class,
    precision_recall_curve,
    roc_curve,
    why_undefined,
    youden,
)

Rows = list[tuple[int, bool, float]]
ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.floats(0.25, 3)), min_size=2, max_size=40)


def split(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, positive, weights = zip(*rows, strict=True)
    return np.array(scores, float), np.array(positive), np.array(weights)


def both_classes(positive: np.ndarray) -> bool:
    return bool(positive.any() and not positive.all())


def naive_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    won = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * (1 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0)
    return won / total


def naive_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    area = reached = 0.0
    for t in sorted(set(scores.tolist()), reverse=True):
        called = scores >= t
        recall = weights[called & positive].sum() / weights[positive].sum()
        area += (recall - reached) * weights[called & positive].sum() / weights[called].sum()
        reached = recall
    return area


@given(ROWS)
def test_areas_are_those_of_the_loops_and_of_scikit_learn(rows: Rows) -> None:
    scores, positive, weights = split(rows)
    if not both_classes(positive):
        return
    assert auroc(scores, positive, weights) == pytest.approx(naive_auroc(scores, positive, weights), abs=1e-9)
    assert auroc(scores, positive, weights) == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=weights))
    expected = sk.average_precision_score(positive, scores, sample_weight=weights)
    assert average_precision(scores, positive, weights) == pytest.approx(expected)
    assert average_precision(scores, positive, weights) == pytest.approx(naive_precision(scores, positive, weights))


def test_areas_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(0, 50, 400) / 64, rng.random(400) < 0.2
    given_to_torch = torch.tensor(scores), torch.tensor(positive).long()
    assert auroc(scores, positive) == pytest.approx(float(binary_auroc(*given_to_torch)), abs=1e-6)
    assert average_precision(scores, positive) == pytest.approx(
        float(binary_average_precision(*given_to_torch)), abs=1e-6
    )


@given(ROWS)
def test_an_order_preserving_map_keeps_the_auroc_and_a_turned_one_mirrors_it(rows: Rows) -> None:
    scores, positive, weights = split(rows)
    if not both_classes(positive):
        return
    value = auroc(scores, positive, weights)
    assert auroc(np.exp(scores) * 3 - 7, positive, weights) == pytest.approx(value)
    assert auroc(-scores, positive, weights) == pytest.approx(1 - value)
    assert auroc(scores, ~positive, weights) == pytest.approx(1 - value)
    order = np.random.default_rng(0).permutation(len(scores))
    assert auroc(scores[order], positive[order], weights[order]) == pytest.approx(value)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25))
def test_a_weight_is_a_repetition(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, times = (np.array(column) for column in zip(*rows, strict=True))
    if not both_classes(np.repeat(positive, times)):
        return
    repeated = np.repeat(scores, times), np.repeat(positive, times)
    assert auroc(scores, positive, times) == pytest.approx(auroc(*repeated))
    assert average_precision(scores, positive, times) == pytest.approx(average_precision(*repeated))


@given(ROWS)
def test_curves_are_those_of_scikit_learn(rows: Rows) -> None:
    scores, positive, weights = split(rows)
    if not both_classes(positive):
        return
    fpr, tpr, thresholds = sk.roc_curve(positive, scores, sample_weight=weights, drop_intermediate=False)
    got = roc_curve(scores, positive, weights)
    np.testing.assert_allclose(got.false_positive_rate, fpr, atol=1e-12)
    np.testing.assert_allclose(got.true_positive_rate, tpr, atol=1e-12)
    np.testing.assert_array_equal(got.thresholds, thresholds)
    precision, recall, cuts = sk.precision_recall_curve(positive, scores, sample_weight=weights)
    pr = precision_recall_curve(scores, positive, weights)
    np.testing.assert_allclose(pr.precision[::-1], precision[:-1], atol=1e-12)
    np.testing.assert_allclose(pr.recall[::-1], recall[:-1], atol=1e-12)
    np.testing.assert_array_equal(pr.thresholds[::-1], cuts)


@given(ROWS, st.integers(-5, 5))
def test_the_table_at_a_threshold_is_that_of_scikit_learn(rows: Rows, threshold: int) -> None:
    scores, positive, weights = split(rows)
    table, called = confusion_at(scores, positive, threshold, weights), scores >= threshold
    options = {"sample_weight": weights}
    assert table.accuracy == pytest.approx(sk.accuracy_score(positive, called, **options))
    assert np.nan_to_num(table.f1) == pytest.approx(sk.f1_score(positive, called, zero_division=0, **options))
    expected = sk.f1_score(positive, called, average="weighted", zero_division=0, **options)
    assert table.weighted_f1 == pytest.approx(expected)
    assert np.nan_to_num(table.sensitivity) == pytest.approx(
        sk.recall_score(positive, called, zero_division=0, **options)
    )
    assert np.nan_to_num(table.ppv) == pytest.approx(sk.precision_score(positive, called, zero_division=0, **options))
    assert np.nan_to_num(table.specificity) == pytest.approx(
        sk.recall_score(~positive, ~called, zero_division=0, **options)
    )
    assert np.nan_to_num(table.npv) == pytest.approx(sk.precision_score(~positive, ~called, zero_division=0, **options))
    if both_classes(positive):
        assert table.mcc == pytest.approx(sk.matthews_corrcoef(positive, called, **options), abs=1e-9)
    assert set(table.measures()) == set(MEASURES)


@given(ROWS)
def test_the_tables_of_a_curve_are_those_at_each_threshold(rows: Rows) -> None:
    scores, positive, weights = split(rows)
    curve = confusion_curve(scores, positive, weights)
    for k, threshold in enumerate(curve.threshold):
        one = confusion_at(scores, positive, threshold, weights)
        assert (curve.tp[k], curve.fp[k], curve.tn[k], curve.fn[k]) == pytest.approx((one.tp, one.fp, one.tn, one.fn))


@given(ROWS)
def test_chosen_thresholds_are_the_best_of_all(rows: Rows) -> None:
    scores, positive, weights = split(rows)
    if not both_classes(positive):
        assert np.isnan(youden(scores, positive))
        assert np.isnan(best_mcc(scores, positive))
        return
    tables = [confusion_at(scores, positive, t, weights) for t in (np.inf, *sorted(set(scores), reverse=True))]
    worth = {
        "youden": (youden, lambda c: c.sensitivity + c.specificity),
        "corner": (closest_to_corner, lambda c: -((1 - c.sensitivity) ** 2 + (1 - c.specificity) ** 2)),
        "mcc": (best_mcc, lambda c: c.mcc),
        "f1": (best_f1, lambda c: c.f1),
    }
    for rule, (chooser, value) in worth.items():
        threshold = chooser(scores, positive, weights)
        assert choose(rule, scores, positive, weights) == threshold  # pyright: ignore
        assert value(confusion_at(scores, positive, threshold, weights)) == pytest.approx(max(map(value, tables)))


@given(ROWS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_a_threshold_for_a_target_reaches_it_and_the_next_does_not(rows: Rows, target: float) -> None:
    scores, positive, _ = split(rows)
    if not both_classes(positive):
        return
    t = for_sensitivity(target, scores, positive)
    assert confusion_at(scores, positive, t).sensitivity >= target - 1e-12
    higher = scores[scores > t]
    assert not len(higher) or confusion_at(scores, positive, higher.min()).sensitivity < target
    t = for_specificity(target, scores, positive)
    assert confusion_at(scores, positive, t).specificity >= target - 1e-12
    lower = scores[scores < t]
    assert not len(lower) or confusion_at(scores, positive, lower.max()).specificity < target


def test_one_class_and_constant_scores() -> None:
    scores = np.array([0.1, 0.1, 0.1])
    assert auroc(scores, [True, False, True]) == 0.5
    assert np.isnan(auroc(scores, [True] * 3))
    assert why_undefined([True] * 3) == "no negatives"
    assert np.isnan(average_precision(scores, [False] * 3))
    assert why_undefined([False] * 3) == "no positives"
    assert why_undefined([True, False], [1.0, 0.0]) == "no negatives"
    assert why_undefined([True, False]) == ""
    assert np.isnan(for_sensitivity(0.9, scores, [False] * 3))
    assert np.isnan(for_specificity(0.9, scores, [True] * 3))
    assert for_specificity(1.0, [1.0, 2.0], [True, False]) == np.inf


@pytest.mark.parametrize(
    ("scores", "positive", "weights", "words"),
    [
        ([], [], None, "scores: is empty"),
        ([0.1, np.nan], [True, False], None, r"scores: value nan at \(1,\)"),
        ([0.1, np.inf], [True, False], None, "finite"),
        (["a", "b"], [True, False], None, "expected numbers"),
        ([0.1, 0.2], [True], None, r"expected shape \(2,\)"),
        ([0.1, 0.2], [1, 2], None, "expected bool"),
        ([0.1, 0.2], [1.0, np.nan], None, "mask uncertain labels"),
        ([0.1, 0.2], [True, False], [-1.0, 1.0], "below 0"),
        ([0.1, 0.2], [True, False], [0.0, 0.0], "above 0"),
        ([[0.1], [0.2]], [[True], [False]], None, "use per_class"),
    ],
)
def test_broken_inputs_are_refused_with_what_to_do(scores, positive, weights, words: str) -> None:
    with pytest.raises(InputError, match=words):
        auroc(scores, positive, weights)


def test_a_nan_threshold_an_unknown_rule_and_a_bad_target_are_refused() -> None:
    with pytest.raises(InputError, match="no threshold could be chosen"):
        confusion_at([0.1, 0.2], [True, False], float("nan"))
    with pytest.raises(ConfigError, match="one of youden"):
        choose("best", [0.1], [True])  # pyright: ignore
    with pytest.raises(ConfigError, match="with one"):
        choose("sensitivity", [0.1], [True])
    with pytest.raises(ConfigError, match="means 90 %"):
        for_sensitivity(90, [0.1], [True])
    assert choose("sensitivity", [0.1, 0.4], [False, True], target=0.9) == 0.4


def test_classes_with_missing_labels_and_too_few_positives() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.random((60, 4)), rng.random((60, 4)) < 0.4
    known = rng.random((60, 4)) < 0.8
    scores[~known] = np.nan
    positive[:, 1] = False
    known[:, 2] = False
    positive[:, 3] = np.arange(60) < 2
    known[:2, 3] = True
    scores[:2, 3] = 0.5
    got = per_class(auroc, ["a", "b", "c", "d"], scores, positive, known, least=3)
    assert set(got.values) == {"a"}
    keep = known[:, 0]
    assert got.values["a"] == pytest.approx(sk.roc_auc_score(positive[keep, 0], scores[keep, 0]))
    assert got.left_out == {"b": "no positives", "c": "no positives", "d": "2 positives, fewer than 3"}
    assert got.counts["d"][0] == 2
    assert got.macro == got.values["a"]
    assert np.isnan(per_class(auroc, ["b"], scores[:, 1:2], positive[:, 1:2], known[:, 1:2]).macro)
    with pytest.raises(InputError, match="distinct names"):
        per_class(auroc, ["a", "a"], scores[:, :2], positive[:, :2])


def test_a_class_whose_weights_leave_one_side_is_left_out_with_the_reason() -> None:
    got = per_class(auroc, ["a"], np.array([[0.1], [0.2]]), np.array([[True], [False]]), weights=[1.0, 0.0])
    assert got.left_out == {"a": "undefined: no negatives"}
