"""Linear probe and nearest neighbours on made-up features with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from radglint.errors import ConfigError, InputError
from radglint.evaluation.probe import Split, knn_scores, make_split, probe, subset

NAMES = ["effusion", "mass", "rare"]


def split(name: str, cases: int = 120, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    positive = rng.random((cases, 3)) < (0.5, 0.3, 0.0)
    features = rng.normal(size=(cases, 8))
    features[:, :2] += 1.5 * positive[:, :2]
    patients = [f"{name}{k}" for k in rng.integers(0, cases // 2, cases)]
    return make_split(features, positive, patients, rng.random((cases, 3)) < 0.9)


TRAIN, VAL, TEST = split("a", 200, 1), split("b", 80, 2), split("c", 150, 3)


def test_the_linear_probe_is_scikit_learn_with_c_chosen_on_validation() -> None:
    got = probe("linear", NAMES, TRAIN, VAL, TEST, fractions=[1.0], seeds=[0, 1], strengths=[1e-4, 1.0])
    assert len(got) == 1, "all patients are the same patients for every seed"
    for k, name in enumerate(NAMES[:2]):
        values = {}
        rows, val, test = TRAIN.known[:, k], VAL.known[:, k], TEST.known[:, k]
        scaler = StandardScaler().fit(TRAIN.features[rows])
        for c in (1e-4, 1.0):
            model = LogisticRegression(C=c, max_iter=2000)
            model.fit(scaler.transform(TRAIN.features[rows]), TRAIN.positive[rows, k])
            values[c] = [
                roc_auc_score(s.positive[m, k], model.decision_function(scaler.transform(s.features[m])))
                for s, m in ((VAL, val), (TEST, test))
            ]
        best = max(values, key=lambda c: values[c][0])
        assert got[0].strength[name] == best
        assert got[0].test.values[name] == pytest.approx(values[best][1])
    assert set(got[0].test.left_out) == {"rare"}
    assert got[0].test.macro > 0.8


def test_nearest_neighbours_vote_as_in_scikit_learn() -> None:
    known = np.ones(TRAIN.positive.shape, bool)
    got = knn_scores(TRAIN.features, TRAIN.positive, known, TEST.features, 7, 0.1)
    model = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp(-d / 0.1), algorithm="brute")
    model.fit(TRAIN.features, TRAIN.positive[:, 0])
    np.testing.assert_allclose(got[:, 0], model.predict_proba(TEST.features)[:, 1], atol=1e-9)
    assert np.isnan(got[:, 2]).all()
    result = probe("knn", NAMES, TRAIN, VAL, TEST, fractions=[0.2, 1.0], seeds=[0, 1])
    assert [(r.fraction, r.seed) for r in result] == [(0.2, 0), (0.2, 1), (1.0, 0)]
    assert result[-1].test.macro > 0.7
    assert result == probe("knn", NAMES, TRAIN, VAL, TEST, fractions=[0.2, 1.0], seeds=[0, 1])


def test_a_share_takes_whole_patients_and_a_larger_one_holds_the_smaller() -> None:
    patients = set(TRAIN.patients)
    small, large = subset(TRAIN, 0.1, 4), subset(TRAIN, 0.5, 4)
    assert len(set(small.patients)) == round(0.1 * len(patients))
    assert set(small.patients) < set(large.patients)
    for name in set(small.patients):
        assert (small.patients == name).sum() == (TRAIN.patients == name).sum()
    assert set(subset(TRAIN, 0.1, 5).patients) != set(small.patients)
    assert len(set(subset(TRAIN, 1e-6, 0).patients)) == 1


def test_too_few_drawn_patients_leave_a_class_out_with_the_reason() -> None:
    got = probe("linear", NAMES, TRAIN, VAL, TEST, fractions=[0.01], seeds=[0], strengths=[1.0])[0]
    assert got.patients == 1
    assert any("drawn training patients" in reason for reason in got.test.left_out.values())


def test_a_class_that_validation_cannot_judge_takes_the_middle_strength() -> None:
    blind = make_split(VAL.features, VAL.positive, VAL.patients, np.zeros(VAL.known.shape, bool))
    got = probe("linear", NAMES, TRAIN, blind, TEST, fractions=[1.0], strengths=[0.01, 0.1, 1.0])[0]
    assert got.strength["mass"] == 0.1


def test_broken_splits_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="is in two splits"):
        probe("knn", NAMES, TRAIN, TRAIN, TEST)
    with pytest.raises(InputError, match="with 2 classes"):
        probe("knn", NAMES[:2], TRAIN, VAL, TEST)
    with pytest.raises(ConfigError, match="linear or knn"):
        probe("svm", NAMES, TRAIN, VAL, TEST)  # pyright: ignore
    with pytest.raises(InputError, match="one patient for each case"):
        make_split(TRAIN.features, TRAIN.positive, ["a"])
    with pytest.raises(InputError, match="row 0 is all 0"):
        knn_scores(np.zeros((2, 2)), np.array([[True], [False]]), np.ones((2, 1), bool), np.ones((1, 2)))
