"""Masks, peaks, boxes and sizes on hand-made cases; the general laws are in properties/test_geometry_properties.py."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from radglint.density import DensityRange
from radglint.errors import ImageError, InputError
from radglint.image import MedicalImage
from radglint.localize import area_px, boxes, peak, probability_map, threshold_mask, volume_ml
from radglint.preprocess import PreprocessRecord
from radglint.resample import Box


def plain_record(native: tuple[int, ...], patch: int) -> PreprocessRecord:
    """Square patches over the whole image."""
    matrix = np.diag([*[1 / patch] * len(native), 1.0])
    matrix[:-1, -1] = 0.5 / patch - 0.5
    return PreprocessRecord(native, tuple(n // patch for n in native), matrix)


def cxr(shape: tuple[int, int]) -> MedicalImage:
    """A radiograph in memory."""
    return MedicalImage(np.zeros(shape, np.float32), "CXR", "display")


def test_probability_of_known_logits() -> None:
    """Logistic of a constant map, extremes included, without overflow."""
    record = plain_record((8, 8), 4)
    for logit, expected in [(0.0, 0.5), (np.log(3), 0.75), (-500.0, 0.0), (500.0, 1.0)]:
        out = probability_map(np.full((2, 2), logit), record)
        np.testing.assert_allclose(out, expected, atol=1e-6)


def test_mask_ends_halfway_between_equal_and_opposite_tokens() -> None:
    """+4 beside -4 crosses zero in the middle: 4-pixel patches, so the hot left column gives exactly 4 columns."""
    record = plain_record((8, 8), 4)
    mask = threshold_mask(np.array([[4.0, -4.0], [4.0, -4.0]]), record, 0.5)
    assert mask.all(axis=0).tolist() == [True] * 4 + [False] * 4
    assert not mask[:, 4:].any()


def test_threshold_limits() -> None:
    """0 marks everything seen, 1 nothing but certainty, outside [0, 1] is an error."""
    matrix = np.diag([0.25, 0.25, 1.0])
    record = PreprocessRecord((8, 20), (2, 2), matrix)
    logits = np.zeros((2, 2))
    seen = ~np.isnan(probability_map(logits, record))
    assert 0 < seen.sum() < seen.size
    np.testing.assert_array_equal(threshold_mask(logits, record, 0.0), seen)
    assert not threshold_mask(logits, record, 1.0).any()
    np.testing.assert_array_equal(threshold_mask(logits + 60, record, 1.0), seen)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            threshold_mask(logits, record, bad)


def test_blocks_do_not_show() -> None:
    """An image of several blocks in each direction, hot places at block borders included."""
    record = plain_record((300, 420), 4)
    logits = np.random.default_rng(1).normal(-2, 2, record.grid_shape)
    np.testing.assert_array_equal(threshold_mask(logits, record, 0.5), probability_map(logits, record) >= 0.5)


def test_cold_blocks_are_never_computed(monkeypatch) -> None:
    """One hot token in a corner: a fraction of the image is interpolated."""
    record = plain_record((512, 512), 4)
    logits = np.full(record.grid_shape, -5.0)
    logits[0, 0] = 5.0
    done = []
    whole = PreprocessRecord.upsample_box
    monkeypatch.setattr(PreprocessRecord, "upsample_box", lambda r, m, box: done.append(box) or whole(r, m, box))
    assert threshold_mask(logits, record, 0.5).any()
    assert done == [((0, 128), (0, 128))]


def test_mask_of_a_large_volume_needs_little_memory() -> None:
    """Beside the bool mask, far less than the float map (4 bytes a voxel) is held."""
    record = plain_record((64, 224, 224), 14)
    record = PreprocessRecord(record.native_shape, (5, 16, 16), record.native_to_grid)
    logits = np.random.default_rng(0).normal(-4, 2, (5, 16, 16))
    logits[2, 8, 8] = 5
    tracemalloc.start()
    mask = threshold_mask(logits, record, 0.9)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.any()
    assert peak_bytes < mask.size * 1.5 + 2**20


@pytest.mark.parametrize("seed", range(6))
def test_lowered_voxels_leave_mask_and_peak_as_the_whole_map_says(seed: int) -> None:
    """Masks and peaks look at a few blocks only; voxels marked down by their density do not change that."""
    rng = np.random.default_rng(seed)
    record = PreprocessRecord((24, 150, 140), (6, 15, 14), plain_record((24, 150, 140), 10).native_to_grid)
    record.native_to_grid[0, 0], record.native_to_grid[0, 3] = 0.25, -0.375
    logits = rng.normal(-3, 2, record.grid_shape)
    hu = rng.choice([-900.0, 30.0], size=record.native_shape, p=[0.97, 0.03]).astype(np.float32)
    image = MedicalImage(hu, "CT", "HU", (2.0, 1.0, 1.0), np.diag([1.0, 1.0, 2.0, 1.0]))
    density = DensityRange(low_hu=-400)

    def lowering(box: Box) -> np.ndarray:
        return density.log_share(hu[tuple(slice(*ends) for ends in box)])

    whole = probability_map(logits, record, lowering)
    plain = np.clip(probability_map(logits, record), 1e-7, 1 - 1e-7)
    expected = 1 / (1 + np.exp(-(np.log(plain / (1 - plain)) + density.log_share(hu))))
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    assert not whole[hu < -400].max() > 0.01
    for threshold in (0.0, 0.3, 0.5, 0.9):
        np.testing.assert_array_equal(threshold_mask(logits, record, threshold, lowering), whole >= threshold)
    found = peak(logits, record, image, lowering)
    assert found.probability == pytest.approx(float(whole.max()), rel=1e-6)
    assert whole[found.index] == whole.max()


def test_peak_in_2d() -> None:
    """The token's middle, no world position."""
    record = plain_record((40, 60), 10)
    logits = np.full((4, 6), -5.0)
    logits[1, 4] = 2.0
    found = peak(logits, record, cxr((40, 60)))
    assert found.world_mm is None
    assert found.index[0] in (14, 15)
    assert found.index[1] in (44, 45)
    assert all(type(i) is int for i in found.index)
    assert found.probability == pytest.approx(probability_map(logits, record).max())


def test_peak_stays_in_the_image_when_the_hottest_token_is_off_it() -> None:
    """The canvas is larger than the image; the hottest token lies on the empty margin."""
    matrix = np.diag([0.1, 0.1, 1.0])
    matrix[:2, 2] = 3.0
    record = PreprocessRecord((20, 20), (8, 8), matrix)
    logits = np.full((8, 8), -5.0)
    logits[0, 0], logits[4, 3] = 9.0, 1.0
    assert peak(logits, record, cxr((20, 20))).index == (10, 0)


def test_peak_without_any_seen_voxel_is_an_error() -> None:
    matrix = np.diag([0.1, 0.1, 1.0])
    matrix[:2, 2] = 50.0
    with pytest.raises(ImageError, match="saw no part"):
        peak(np.zeros((2, 2)), PreprocessRecord((5, 5), (2, 2), matrix), cxr((5, 5)))


@pytest.mark.parametrize("function", [lambda m, r: threshold_mask(m, r, 0.5), lambda m, r: peak(m, r, cxr((8, 8)))])
def test_broken_token_maps_are_refused(function) -> None:
    record = plain_record((8, 8), 4)
    for bad in (np.zeros((3, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="token_map"):
            function(bad, record)


def test_boxes_are_half_open_largest_first() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:5, 3:9] = True
    mask[10:20, 25:30] = True
    mask[0, 29] = True
    assert boxes(mask) == [(10, 25, 20, 30), (2, 3, 5, 9), (0, 29, 1, 30)]
    assert all(type(n) is int for box in boxes(mask) for n in box)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_boxes_equal_those_of_scipy(shape, density, seed) -> None:
    """Against scipy.ndimage with full connectivity; pieces of equal size may come in any order."""
    mask = np.random.default_rng(seed).random(shape) < density * 0.5
    labels = np.zeros(shape, dtype=np.int32)
    ndimage.label(mask, np.ones([3] * len(shape)), output=labels)
    count = labels.max()
    sizes = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)
    expected = sorted(
        (-int(n), *(s.start for s in place), *(s.stop for s in place)) for n, place in zip(sizes, places, strict=True)
    )
    found = boxes(mask)
    assert len(found) == min(10, count)
    if count <= 10:
        assert sorted(found) == sorted(e[1:] for e in expected)
    by_box = {e[1:]: set() for e in expected}
    for e in expected:
        by_box[e[1:]].add(-e[0])
    assert sum(max(by_box[box]) for box in found) >= sum(sorted(sizes.tolist(), reverse=True)[:10]) - 1e-9
    order = [max(by_box[box]) for box in found]
    if all(len(s) == 1 for s in by_box.values()):
        assert order == sorted(order, reverse=True)


def test_boxes_join_at_corners_and_work_in_3d() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1, 2, 3] = mask[2, 3, 4] = True
    assert boxes(mask) == [(1, 2, 3, 3, 4, 5)]


def test_boxes_of_nothing_and_of_too_much() -> None:
    assert boxes(np.zeros((4, 4), dtype=bool)) == []
    mask = np.zeros((16, 16), dtype=bool)
    mask[::3, ::3] = True
    assert len(boxes(mask)) == 10


def test_area_and_volume() -> None:
    """1000 voxels of 2 x 3 x 0.5 mm are 3 ml, however the axes are turned or sheared (shear keeps the volume)."""
    assert area_px(np.eye(7, dtype=bool)) == 7
    mask = np.zeros((10, 20, 30), dtype=bool)
    mask[:10, :10, :10] = True
    affine = np.array([[0, 0, -0.5, 7], [0, 3, 0.2, 1], [2, 0, 0.9, 4], [0, 0, 0, 1.0]])
    assert volume_ml(mask, affine) == pytest.approx(3.0)
