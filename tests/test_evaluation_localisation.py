"""Pointing, contrast, overlap and surfaces: against plain loops, a second implementation, and torchmetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.segmentation import dice_score, hausdorff_distance

from radglint.errors import ConfigError, InputError
from radglint.evaluation.classification import auroc
from radglint.evaluation.localisation import (
    THRESHOLDS,
    box_mask,
    cnr,
    dice,
    iou,
    overlap_counts,
    pointing_hit,
    smooth,
    sweep,
    voxel_sensitivity,
)
from radglint.evaluation.overlap import (
    LEVELS,
    best_level,
    dice_curve,
    image_specificity,
    presence_gated,
    tally,
    threshold_columns,
)
from radglint.evaluation.surfaces import hd95_mm, surface_dice, surface_distances


def maps(seed: int, shape: tuple[int, ...] = (17, 23), dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """A random map in [0, 1] with ties at the levels, and a mask that it leans towards."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s // 4, s // 4 + max(1, s // 3)) for s in shape)] = True
    values = np.clip(rng.random(shape) * 0.7 + 0.3 * mask, 0, 1)
    return np.where(rng.random(shape) < 0.3, np.round(values, 2), values).astype(dtype), mask


# --- an independent second implementation, in plain Python and torch, of what the cross-check stores ---


def second_pointing(values: np.ndarray, boxes: list[tuple[int, ...]]) -> float:
    best, place = -np.inf, (0, 0)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            if values[y, x] > best:
                best, place = values[y, x], (y, x)
    return float(any(b[0] <= place[0] < b[2] and b[1] <= place[1] < b[3] for b in boxes))


def second_cnr(values: np.ndarray, mask: np.ndarray) -> float:
    v = torch.tensor(values, dtype=torch.float64)
    a, b = v[torch.tensor(mask)], v[~torch.tensor(mask)]
    return float((a.mean() - b.mean()) / (a.var(correction=0) + b.var(correction=0)).sqrt())


def second_sweep(values: np.ndarray, mask: np.ndarray, rescale: bool) -> tuple[float, float]:
    grid = torch.arange(-6, 7, dtype=torch.float64)
    taps = torch.exp(-0.5 * (grid / 1.5) ** 2)
    kernel = taps[:, None] * taps[None] / taps.sum() ** 2
    padded = torch.nn.functional.pad(torch.tensor(values, dtype=torch.float64)[None, None], [6] * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0]
    if rescale:
        blurred = 2 * (blurred - blurred.min()) / (blurred.max() - blurred.min()) - 1
    ious, dices = [], []
    for t in (0.1, 0.2, 0.3, 0.4, 0.5):
        pairs = [(bool(p), bool(q)) for p, q in zip((blurred >= t).flatten().tolist(), mask.ravel(), strict=True)]
        both, either = sum(p and q for p, q in pairs), sum(p or q for p, q in pairs)
        ious.append(both / either if either else 1.0)
        dices.append(2 * both / (both + either) if either else 1.0)
    return sum(ious) / 5, sum(dices) / 5


def second_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    gap = scores[positive][:, None] - scores[~positive][None]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def test_stored_random_maps_measure_the_same_in_a_second_implementation(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    stored = tmp_path / "maps.npz"
    boxes = [[(3, 4, 14, 20), (1, 1, 3, 3)], [(10, 2, 22, 9)], [(0, 0, 26, 30)], [(25, 29, 26, 30)]]
    np.savez(
        stored, maps=rng.normal(size=(4, 26, 30)), scores=np.round(rng.normal(size=200), 1), y=rng.random(200) < 0.3
    )
    with np.load(stored) as data:
        for values, where in zip(data["maps"], boxes, strict=True):
            mask = box_mask(where, values.shape)
            assert pointing_hit(values, where) == second_pointing(values, where)
            if not mask.all():
                assert cnr(values, mask).signed == pytest.approx(second_cnr(values, mask), abs=1e-6)
            for rescale in (True, False):
                got = sweep(values, mask, rescale=rescale)
                expected = second_sweep(values, mask, rescale)
                assert (got.mean_iou, got.mean_dice) == pytest.approx(expected, abs=1e-6)
        assert auroc(data["scores"], data["y"]) == pytest.approx(second_auroc(data["scores"], data["y"]), abs=1e-6)


def test_pointing_and_its_rules_for_ties() -> None:
    values = np.zeros((4, 5), np.float32)
    values[1, 1] = values[1, 3] = values[3, 3] = 2
    box = [(1, 3, 4, 4)]
    assert [pointing_hit(values, box, ties) for ties in ("first", "expected", "any")] == [0, 2 / 3, 1]
    assert pointing_hit(values, box_mask(box, values.shape), "expected") == 2 / 3
    assert pointing_hit(np.full((4, 5), 0.3), box, "expected") == pytest.approx(3 / 20), "a constant map is a guess"
    assert pointing_hit(values, [(0, 0, 1, 1), (1, 1, 2, 2)]) == 1, "any of the boxes"
    assert pointing_hit(values, [(0, 0, 1, 1)]) == 0, "the end of a box is outside it"
    volume = np.zeros((3, 4, 5))
    volume[2, 1, 4] = 1
    assert pointing_hit(volume, [(2, 0, 4, 3, 2, 5)]) == 1
    assert pointing_hit(volume, [(0, 0, 0, 2, 4, 5)]) == 0


def test_unseen_voxels_are_never_the_peak_and_take_no_part_in_contrast() -> None:
    values, mask = maps(1)
    holes = values.copy()
    holes[:2] = np.nan
    assert pointing_hit(holes, mask) == pointing_hit(np.where(np.isnan(holes), -1, holes), mask)
    assert cnr(holes, mask).signed == pytest.approx(cnr(values[2:], mask[2:]).signed)
    assert dice_curve(holes, mask)[0] < dice_curve(holes[2:], mask[2:])[0] + 1e-12
    assert tally(holes, mask).inside[0] == mask[:2].sum()


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], "one or more"),
        ([(0, 0, 4)], "expected 4 numbers"),
        ([(2, 2, 2, 3)], "not empty"),
        ([(0, 0, 5, 4)], r"in \(4, 5\)"),
        ([(0, -1, 2, 4)], "lower corner first"),
        (np.zeros((4, 5), bool), "some True"),
        (np.ones((5, 4), bool), "shape"),
    ],
)
def test_impossible_boxes_are_refused(boxes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pointing_hit(np.zeros((4, 5)), boxes)


def test_broken_maps_and_unknown_rules_are_refused() -> None:
    mask = np.ones((2, 2), bool)
    for values, words in ((np.full((2, 2), np.nan), "NaN everywhere"), (np.array([[0, np.inf], [0, 0]]), "infinite"),
                          (np.array([[np.nan, np.inf], [0, 0]]), "infinite"), (np.zeros(4), "shape"),
                          (np.zeros((0, 2)), "shape")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            cnr(values, mask)
    with pytest.raises(InputError, match="mask: expected shape"):
        cnr(np.zeros((2, 2)), np.ones((2, 3), bool))
    with pytest.raises(InputError, match="mask: expected bool"):
        cnr(np.zeros((2, 2)), np.full((2, 2), 255))
    with pytest.raises(ConfigError, match="first, expected or any"):
        pointing_hit(np.zeros((2, 2)), mask, "last")  # pyright: ignore
    with pytest.raises(ConfigError, match="one or skip"):
        dice(mask, mask, "zero")  # pyright: ignore
    with pytest.raises(ConfigError, match="odd kernel"):
        smooth(np.zeros((9, 9)), kernel=4)
    with pytest.raises(InputError, match="rising"):
        tally(np.zeros((2, 2)), mask, [0.2, 0.1])
    with pytest.raises(InputError, match="different levels"):
        tally(np.zeros((2, 2)), mask, [0.1]) + tally(np.zeros((2, 2)), mask, [0.2])  # pyright: ignore


@given(st.integers(0, 50), st.floats(0.1, 4), st.floats(-3, 3))
def test_contrast_does_not_change_with_scale_and_turns_with_sign(seed: int, scale: float, shift: float) -> None:
    values, mask = maps(seed, dtype=np.float64)
    assert cnr(scale * values + shift, mask).signed == pytest.approx(cnr(values, mask).signed, abs=1e-9)
    assert cnr(-values, mask).signed == pytest.approx(-cnr(values, mask).signed)
    assert cnr(values, ~mask).absolute == pytest.approx(cnr(values, mask).absolute)


def test_contrast_without_two_sides_or_without_noise_is_undefined() -> None:
    values, mask = maps(0)
    assert np.isnan(cnr(values, np.zeros_like(mask)).signed)
    assert np.isnan(cnr(values, np.ones_like(mask)).absolute)
    assert np.isnan(cnr(mask.astype(float), mask).signed)
    assert cnr(values, mask).signed > 0


@settings(max_examples=12)
@given(st.integers(0, 60), st.sampled_from([(9, 11), (3, 6, 7)]), st.sampled_from([np.float32, np.float64, np.float16]))
def test_the_curve_of_one_pass_is_that_of_every_level(seed: int, shape: tuple[int, ...], dtype: type) -> None:
    values, mask = maps(seed, shape, dtype)
    exact = values.astype(np.float64)
    for levels in (LEVELS, np.array(THRESHOLDS), np.array([-0.5, 0.013, 0.02, 0.9, 1.7]), np.geomspace(1e-3, 1, 30)):
        for strict in (False, True):
            got = tally(values, mask, levels, strict=strict)
            for k, t in enumerate(levels):
                marked = exact > t if strict else exact >= t
                counts = got.both[k], got.marked[k], got.truth
                assert counts == overlap_counts(marked, mask)
                assert got.dice()[k] == dice(marked, mask)
                assert got.iou()[k] == iou(marked, mask)
                assert got.sensitivity()[k] == voxel_sensitivity(marked, mask)


def test_a_large_map_is_counted_in_pieces_that_fit() -> None:
    values, mask = maps(0, (400, 700))
    got = tally(values, mask)
    assert got.inside.sum() + got.outside.sum() == values.size
    for k in (0, 30, 100):
        assert got.marked[k] == (values.astype(float) >= LEVELS[k]).sum()


def test_overlap_is_that_of_torchmetrics() -> None:
    values, mask = maps(3)
    marked = values > 0.6
    tensors = [torch.tensor(m)[None, None].long() for m in (marked, mask)]
    assert dice(marked, mask) == pytest.approx(float(dice_score(*tensors, num_classes=1, average="macro")), abs=1e-6)
    both, m, t = overlap_counts(marked, mask)
    assert iou(marked, mask) == both / (m + t - both)
    assert iou(marked, mask) == pytest.approx(dice(marked, mask) / (2 - dice(marked, mask)))


def test_empty_masks_count_one_or_are_skipped() -> None:
    nothing, something = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert dice(nothing, nothing) == iou(nothing, nothing) == 1
    assert np.isnan(dice(nothing, nothing, "skip"))
    assert np.isnan(iou(nothing, nothing, "skip"))
    assert dice(something, nothing) == dice(nothing, something, "skip") == 0
    assert np.isnan(voxel_sensitivity(something, nothing))


def test_a_constant_map_marks_nothing_when_rescaled() -> None:
    mask = np.eye(20, dtype=bool)
    got = sweep(np.full((20, 20), 0.7), mask)
    assert got.mean_iou == got.mean_dice == 0
    assert sweep(np.full((20, 20), 0.7), mask, smooth_sigma=None, rescale=False).mean_iou == pytest.approx(20 / 400)
    assert list(got.thresholds) == list(THRESHOLDS)


def test_smoothing_is_the_weighted_mean_of_what_was_seen() -> None:
    values = np.random.default_rng(0).random((9, 12))
    values[0, 3] = values[5, 5] = np.nan
    got = smooth(values, sigma=0.8, kernel=5)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    for y, x in ((0, 0), (4, 4), (8, 11), (1, 3)):
        total = weight = 0.0
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                yy, xx = abs(y + dy), abs(x + dx)
                yy, xx = (2 * 8 - yy if yy > 8 else yy), (2 * 11 - xx if xx > 11 else xx)
                if not np.isnan(values[yy, xx]):
                    total += taps[dy + 2] * taps[dx + 2] * values[yy, xx]
                    weight += taps[dy + 2] * taps[dx + 2]
        assert got[y, x] == pytest.approx(total / weight)
    assert np.isnan(got[0, 3])
    volume = np.stack([values, values[::-1]])
    np.testing.assert_allclose(smooth(volume, 0.8, 5)[0], got)


def test_voxel_auroc_from_pooled_tallies_is_exact_to_the_level() -> None:
    pairs = [maps(seed) for seed in range(4)]
    pooled = sum((tally(v, m) for v, m in pairs[1:]), tally(*pairs[0]))
    passed = np.concatenate([(v.astype(float).ravel()[:, None] >= LEVELS).sum(1) for v, _ in pairs])
    values, truth = (np.concatenate([p[k].ravel() for p in pairs]) for k in (0, 1))
    assert pooled.voxel_auroc() == pytest.approx(roc_auc_score(truth, passed), abs=1e-12)
    error = abs(pooled.voxel_auroc() - roc_auc_score(truth, values))
    assert error <= pooled.voxel_auroc_error() < 0.02
    assert np.isnan(tally(pairs[0][0], np.zeros_like(pairs[0][1])).voxel_auroc())


def test_threshold_columns_by_hand() -> None:
    levels = np.array([0.2, 0.5, 0.8])
    test, val = np.array([[0.25, 0.5, 0.25], [0.5, np.nan, 0.75]]), np.array([[0.1, 0.2, 0.9]])
    peaks = np.array([0.5, 0.6, 0.1])
    fixed, chosen, oracle = threshold_columns(test, peaks, 0.3, val, levels)
    assert (fixed.how, fixed.threshold, fixed.dice_macro) == ("fixed", 0.2, pytest.approx(0.375))
    assert fixed.specificity == pytest.approx(1 / 3)
    assert (chosen.how, chosen.threshold, chosen.specificity) == ("validation", 0.8, 1)
    assert (oracle.how, oracle.threshold, oracle.dice_macro) == ("oracle", 0.5, 0.5), "of equals the lower"
    assert oracle.specificity == pytest.approx(1 / 3)
    assert image_specificity(peaks, 0.5, strict=True) == pytest.approx(2 / 3)
    assert [c.how for c in threshold_columns(test, [], 0.5, None, levels)] == ["fixed", "oracle"]
    assert np.isnan(image_specificity([], 0.5))
    with pytest.raises(InputError, match=r"\(cases, 3\)"):
        best_level(test[:, :2], levels)
    with pytest.raises(InputError, match="needs a positive case"):
        best_level(np.full((1, 3), np.nan), levels)


def test_masks_behind_the_decision_by_hand() -> None:
    got = presence_gated([0.8, 0.6, np.nan, np.nan, np.nan], [9, 9, 3, 0, 5], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0])
    assert got.dice_macro_on_positives == pytest.approx(0.4)
    assert got.false_mask_rate_on_negatives == pytest.approx(1 / 3)
    assert (got.positives, got.negatives) == (2, 3)


def naive_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    padded, points = np.pad(mask, 1), []
    for place in np.argwhere(mask):
        steps = [s * np.eye(mask.ndim, dtype=int)[k] for k in range(mask.ndim) for s in (-1, 1)]
        if not all(padded[tuple(place + 1 + step)] for step in steps):
            points.append(place * spacing)
    return np.array(points)


@pytest.mark.parametrize(("shape", "spacing"), [((14, 17), (0.7, 1.3)), ((8, 9, 10), (2.5, 0.8, 0.9))])
def test_surface_measures_are_those_of_all_pairs(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    for seed in range(3):
        marked, mask = np.random.default_rng(seed).random(shape) < 0.3, maps(seed, shape)[1]
        far = cdist(naive_surface(marked, spacing), naive_surface(mask, spacing))
        got = surface_distances(marked, mask, spacing)
        np.testing.assert_allclose(got.marked_to_truth, far.min(1), atol=1e-9)
        np.testing.assert_allclose(got.truth_to_marked, far.min(0), atol=1e-9)
        assert hd95_mm(marked, mask, spacing) == pytest.approx(
            max(np.percentile(far.min(1), 95), np.percentile(far.min(0), 95))
        )
        within = (far.min(1) <= 1).sum() + (far.min(0) <= 1).sum()
        assert surface_dice(marked, mask, spacing, 1.0) == pytest.approx(within / sum(far.shape))


def test_the_hausdorff_distance_is_that_of_torchmetrics() -> None:
    masks = np.zeros((2, 30, 30), bool)
    masks[0, 3:15, 4:20], masks[1, 8:25, 10:18] = True, True
    tensors = [torch.tensor(np.stack([~m, m]))[None].int() for m in masks]
    theirs = float(hausdorff_distance(*tensors, num_classes=2, include_background=False, input_format="one-hot"))
    assert hd95_mm(*masks, (1, 1), percentile=100) == pytest.approx(theirs, abs=1e-6)


def test_surfaces_of_empty_masks_and_bad_spacing() -> None:
    nothing, something = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert hd95_mm(nothing, nothing, (1, 1)) == 0
    assert surface_dice(nothing, nothing, (1, 1), 1) == 1
    assert hd95_mm(something, nothing, (1, 1)) == hd95_mm(nothing, something, (1, 1)) == np.inf
    assert surface_dice(something, nothing, (1, 1), 1) == 0
    for spacing in ((1,), (1, 0), (1, np.inf)):
        with pytest.raises(InputError, match="one for each axis"):
            hd95_mm(nothing, nothing, spacing)


@pytest.mark.parametrize("levels", [LEVELS, [0.2, 0.5], np.geomspace(0.01, 1, 40)])
def test_what_was_not_seen_passes_no_level(levels) -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.random((30, 40)).astype(np.float32), rng.random((30, 40)) < 0.2
    values[rng.random((30, 40)) < 0.3] = np.nan
    counted = tally(values, mask, levels)
    assert list(counted.marked) == [int((values >= level).sum()) for level in levels]
    assert list(counted.both) == [int(((values >= level) & mask).sum()) for level in levels]
