"""Retrieval against plain loops, torchmetrics, and every order of ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from radglint.errors import ConfigError, InputError
from radglint.evaluation import retrieval
from radglint.evaluation.retrieval import Ranks, average_precision_at, both_ways, label_overlap, ranks


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_recall_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(40, 6)), rng.normal(size=(55, 6))
    query_ids, key_ids = rng.integers(0, 20, 40), rng.integers(0, 20, 55)
    got = ranks(queries, keys, query_ids, key_ids)
    scores = unit(queries) @ unit(keys).T
    for k in (1, 5, 10):
        hits = [
            float(retrieval_hit_rate(torch.tensor(scores[i]), torch.tensor(key_ids == q), top_k=k))
            for i, q in enumerate(query_ids)
            if (key_ids == q).any()
        ]
        assert got.recall_at(k) == pytest.approx(np.mean(hits), abs=1e-6)
    positions = [1 + min(np.flatnonzero((key_ids == q)[np.argsort(-scores[i])])) for i, q in enumerate(query_ids)
                 if (key_ids == q).any()]  # fmt: skip
    assert got.median_rank() == np.median(positions)


@given(st.integers(0, 2), st.integers(0, 3), st.integers(1, 3), st.integers(1, 8))
def test_ties_are_the_mean_over_all_orders(above: int, tied: int, same: int, k: int) -> None:
    got = Ranks(*(np.array([v]) for v in (above, tied, same)))
    orders = list(permutations([False] * tied + [True] * same))
    places = [1 + above + order.index(True) for order in orders]
    assert got.recall_at(k) == pytest.approx(np.mean([p <= k for p in places]))
    assert got.ranks()[0] == pytest.approx(np.mean(places))


def test_a_model_that_says_the_same_of_all_gets_what_chance_gets() -> None:
    same = np.ones((10, 4))
    for direction in both_ways(same, same, range(10), range(10)).values():
        assert direction.recall_at(1) == pytest.approx(0.1)
        assert direction.recall_at(10) == pytest.approx(1)
        assert direction.median_rank() == 5.5


def test_the_best_of_several_positives_counts_and_a_query_without_one_does_not() -> None:
    keys = np.array([[1.0, 0], [0.8, 0.6], [0, 1]])
    got = ranks(np.array([[1.0, 0.01], [0, 1]]), keys, ["a", "x"], ["b", "a", "a"])
    assert got.recall_at(1) == 0
    assert got.recall_at(2) == 1
    assert np.isnan(got.ranks()[1])
    nobody = ranks(keys, keys, ["x", "y", "z"], ["a", "b", "c"])
    assert np.isnan(nobody.recall_at(1))
    assert np.isnan(nobody.median_rank())


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(30, 5)), rng.normal(size=(31, 5))
    labels = rng.random((30, 4)) < 0.4
    whole = ranks(queries, keys, range(30), range(31)), average_precision_at(queries, label_overlap(labels), 5)
    monkeypatch.setattr(retrieval, "PIECE_BYTES", 4 * 31 * 7)
    parts = ranks(queries, keys, range(30), range(31)), average_precision_at(queries, label_overlap(labels), 5)
    np.testing.assert_array_equal(whole[0].ranks(), parts[0].ranks())
    np.testing.assert_array_equal(whole[1], parts[1])


def naive_ap(scores: np.ndarray, wanted: np.ndarray, k: int) -> float:
    order = np.argsort(-scores, kind="stable")[:k]
    hits = total = 0.0
    for i, place in enumerate(order):
        if wanted[place]:
            hits += 1
            total += hits / (i + 1)
    return total / min(k, wanted.sum()) if wanted.any() else np.nan


@pytest.mark.parametrize("k", [1, 5, 29])
def test_volume_to_volume_is_that_of_the_loop(k: int) -> None:
    rng = np.random.default_rng(2)
    volumes, labels = rng.normal(size=(30, 8)), rng.random((30, 3)) < 0.5
    patients = rng.integers(0, 12, 30)
    got = average_precision_at(volumes, label_overlap(labels, 0.5), k, patients)
    scores = np.round(unit(volumes) @ unit(volumes).T, 6)
    for i in range(30):
        searched = patients != patients[i]
        both, either = (labels[i] & labels).sum(1), (labels[i] | labels).sum(1)
        wanted = np.where(either == 0, 1.0, both / np.maximum(either, 1)) >= 0.5
        assert got[i] == pytest.approx(naive_ap(scores[i][searched], wanted[searched], k), nan_ok=True)


def test_volume_to_volume_over_all_keys_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(3)
    volumes, labels = rng.normal(size=(25, 8)), rng.random((25, 2)) < 0.5
    got = average_precision_at(volumes, label_overlap(labels), 24)
    scores = 2 + unit(volumes) @ unit(volumes).T  # torchmetrics takes no key at or below 0 for relevant
    for i in range(25):
        others = np.arange(25) != i
        wanted = (labels == labels[i]).all(1)[others]
        if wanted.any():
            expected = retrieval_average_precision(torch.tensor(scores[i][others]), torch.tensor(wanted))
            assert got[i] == pytest.approx(float(expected), abs=1e-6)


def test_the_first_few_are_found_without_a_full_sort() -> None:
    scores = np.round(np.random.default_rng(0).random((20, 200)), 1).astype(np.float32)
    np.testing.assert_array_equal(retrieval._first(scores, 10), np.argsort(-scores, axis=1, kind="stable")[:, :10])


def test_broken_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="row 1 is all 0"):
        ranks(np.array([[1.0], [0]]), np.ones((2, 1)), [0, 1], [0, 1])
    with pytest.raises(InputError, match="ids: 1 and 2 for 2 queries"):
        ranks(np.ones((2, 1)), np.ones((2, 1)), [0], [0, 1])
    with pytest.raises(InputError, match=r"\(rows, width\)"):
        ranks(np.ones(2), np.ones((2, 1)), [0], [0, 1])
    with pytest.raises(ConfigError, match="k: expected"):
        ranks(np.ones((1, 1)), np.ones((1, 1)), [0], [0]).recall_at(0)
    with pytest.raises(ConfigError, match="least"):
        label_overlap([[True]], 0)
    with pytest.raises(InputError, match="groups: 1 for 2"):
        average_precision_at(np.ones((2, 1)), label_overlap([[True], [True]]), 1, ["a"])
