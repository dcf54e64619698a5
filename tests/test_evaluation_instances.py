"""Components, matching and the ReXGroundingCT measures, against brute force and by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radglint.errors import ConfigError, InputError
from radglint.evaluation.instances import (
    EXACT_HIT_DICE,
    FindingScore,
    components,
    grounding_score,
    match,
    overlap_table,
    score_finding,
)
from radglint.evaluation.localisation import dice, iou


def blobs(seed: int, shape: tuple[int, ...] = (14, 15)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        corner = [int(rng.integers(0, s - 3)) for s in shape]
        mask[tuple(slice(c, c + int(rng.integers(1, 5))) for c in corner)] = True
    return mask


def test_connectivity_decides_what_hangs_together() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True
    mask[2, 2, 2] = True
    assert [components(mask, c)[1] for c in (1, 2, 3)] == [3, 2, 1], "a corner, an edge, a face"
    flat = np.array([[1, 0], [0, 1]], bool)
    assert [components(flat, c)[1] for c in (1, 2)] == [2, 1]
    with pytest.raises(ConfigError, match="1 to 2"):
        components(flat, 3)


def test_small_components_are_dropped_and_the_rest_numbered_without_gaps() -> None:
    mask = np.zeros((5, 9), bool)
    mask[0, 0] = True
    mask[2:4, 2:4] = mask[2:5, 6:9] = True
    labels, count = components(mask, 1, least_voxels=4)
    assert count == 2
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert labels[0, 0] == 0
    assert components(np.zeros((2, 2), bool))[1] == 0


@given(st.integers(0, 100), st.sampled_from([(14, 15), (6, 7, 8)]))
def test_the_table_is_that_of_every_pair(seed: int, shape: tuple[int, ...]) -> None:
    (a, n), (b, m) = components(blobs(seed, shape)), components(blobs(seed + 999, shape))
    for measure, one in (("dice", dice), ("iou", iou)):
        table = overlap_table(a, b, measure)  # pyright: ignore
        assert table.shape == (n, m)
        for i in range(n):
            for j in range(m):
                assert table[i, j] == pytest.approx(one(a == i + 1, b == j + 1), abs=1e-12)


def brute_force(table: np.ndarray, least: float) -> float:
    """The best sum over every way to give each row a column of its own, or none."""
    allowed = np.where(table >= least, table, 0)
    padded = np.zeros((len(table), table.shape[1] + len(table)))
    padded[:, : table.shape[1]] = allowed
    return max(sum(padded[i, c] for i, c in enumerate(p)) for p in permutations(range(padded.shape[1]), len(table)))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4))
def test_matching_is_the_best_of_all_permutations(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.round(rng.random((n, m)) * (rng.random((n, m)) < 0.7), 2)
    pairs = match(table, 0.2)
    assert sum(table[i, j] for i, j in pairs) == pytest.approx(brute_force(table, 0.2))
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(table[i, j] >= 0.2 for i, j in pairs)


def test_a_greedy_choice_would_be_worse() -> None:
    assert match(np.array([[0.6, 0.5], [0.5, 0.0]])) == [(0, 1), (1, 0)]
    assert match(np.array([[0.19, 0.2]])) == [(0, 1)]
    assert match(np.zeros((2, 3))) == []


def test_one_finding_by_hand() -> None:
    truth, marked = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[0:4, 0:4] = truth[10:14, 10:14] = True  # two instances of 16
    marked[0:4, 2:6] = True  # half of the first: Dice 0.5
    marked[16:20, 0:4] = True  # nothing there
    marked[8, 19] = True  # one voxel: no instance, but in the Dice
    got = score_finding(marked, truth)
    assert (got.tp, got.fp, got.fn) == (1, 1, 1)
    assert got.dice == pytest.approx(2 * 8 / (32 + 33))
    assert score_finding(marked, truth, least_dice=0.6) == FindingScore(got.dice, 0, 2, 2)
    assert score_finding(marked, truth, least_voxels=1).fp == 2


def test_empty_masks() -> None:
    nothing, something = np.zeros((6, 6), bool), np.ones((6, 6), bool)
    assert score_finding(nothing, nothing) == FindingScore(1.0, 0, 0, 0)
    assert np.isnan(score_finding(nothing, nothing, empty="skip").dice)
    assert score_finding(something, nothing) == FindingScore(0.0, 0, 1, 0)
    assert score_finding(nothing, something) == FindingScore(0.0, 0, 0, 1)


def test_the_board_by_hand() -> None:
    scores = [FindingScore(0.5, 1, 2, 0), FindingScore(0.1, 0, 1, 1), FindingScore(0.06, 0, 0, 2)]
    got = grounding_score([*scores, FindingScore(float("nan"), 0, 0, 0)])
    assert got.dice_macro == pytest.approx(0.22)
    assert got.hit_rate == pytest.approx(2 / 3)
    assert (got.instance_precision_micro, got.instance_recall_micro) == (0.25, 0.25)
    assert got.instance_f1_micro == 0.25
    assert got.findings == 3
    assert grounding_score(scores, EXACT_HIT_DICE).hit_rate == 1
    assert np.isnan(grounding_score([FindingScore(1.0, 0, 0, 0)]).instance_precision_micro)
    with pytest.raises(InputError, match="one or more"):
        grounding_score([])


def test_labels_of_two_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        overlap_table(np.zeros((2, 2), int), np.zeros((2, 3), int))
