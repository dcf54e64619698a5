"""HU or not: the right range passes, every wrong one is named with its cure."""

from __future__ import annotations

import numpy as np
import pytest

from radglint.errors import ImageError
from radglint.hounsfield import check_hu, clamp_padding, sample_voxels, tissue_shares


def chest(size=40) -> np.ndarray:
    """Air, lung, fat, muscle and bone in the shares of a real chest, with 20 HU of noise."""
    rng = np.random.default_rng(3)
    parts = rng.choice([-1000.0, -850, -100, 45, 600], p=[0.4, 0.2, 0.17, 0.2, 0.03], size=(size,) * 3)
    return (parts + rng.normal(0, 20, parts.shape)).round().clip(-1024).astype(np.float32)


def mr() -> np.ndarray:
    rng = np.random.default_rng(4)
    values = np.abs(rng.normal(0, 15, (30, 30, 30)))
    values[5:25, 5:25] = rng.gamma(4, 120, (20, 20, 30))
    return values.round().astype(np.float32)


def test_a_chest_in_hu_passes_without_a_word():
    assert check_hu(chest(), "ct") == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((9, 9, 9), np.float32), "every voxel is the same"),
        (np.where(chest() > 0, -1024, -2000).astype(np.float32), "nothing lies above -1024 HU"),
        (np.random.default_rng(0).integers(0, 118, (20, 20, 20)).astype(np.float32), "label map"),
        ((chest() + 1024) / 4095, "normalised"),
        ((chest() + 1024) / 16.1, "8 bits"),
        (chest() + 1024, "rescale is missing: add -1024"),
        (np.where(chest() < -990, -2000, chest() + 1024).astype(np.float32), "rescale is missing"),
        (chest() - 1024, "rescale was applied twice: add 1024"),
        (np.maximum(chest() - 1024, -2048), "rescale was applied twice"),
        (chest() + 8192, "no value is negative"),
        (mr(), "no air at -1000"),
        (chest().clip(-160, 240), "scale was cut at -160"),
        (chest() * 3, "where no tissue is"),
    ],
)
def test_wrong_ranges_are_refused_with_the_cure(values, words):
    with pytest.raises(ImageError, match=words) as caught:
        check_hu(values.astype(np.float32), "ct.nii")
    assert str(caught.value).startswith("ct.nii: expected HU, got values from")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padding", [-1024, -2000, -2048, -3024, -32768])
def test_padding_of_any_value_passes_and_is_clamped(padding):
    values = chest()
    values[:, :6] = padding
    assert check_hu(values, "ct") == ()
    clamped, steps = clamp_padding(values)
    assert clamped.min() == -1024
    np.testing.assert_array_equal(clamped[:, 6:], values[:, 6:])
    assert len(steps) == (padding < -1024)


def test_clamping_copies_only_when_needed():
    values = chest()
    assert clamp_padding(values)[0] is values


def test_metal_is_kept_and_noted():
    values = chest()
    values[0, 0, 0] = 9000
    assert "up to 9000 HU" in check_hu(values, "ct")[0]


def test_odd_contents_warn():
    soft_only = np.random.default_rng(0).normal(0, 40, (20, 20, 20)).astype(np.float32)
    assert "hardly any air" in check_hu(soft_only, "ct")[0]
    lung_only = np.random.default_rng(0).normal(-850, 40, (20, 20, 20)).astype(np.float32)
    assert "hardly any soft tissue" in check_hu(lung_only, "ct")[0]


def test_shares_against_counting():
    values = np.array([-1000, -960, -800, -100, 0, 40, 60, 300, -300, 200], dtype=np.float32)
    shares = tissue_shares(values)
    assert shares == pytest.approx({"air": 0.2, "lung": 0.1, "fat": 0.1, "soft_tissue": 0.3, "bone": 0.1})


@pytest.mark.parametrize("size", [10, 2_000_000, 2_000_001, 7_000_000])
def test_sampling_is_bounded_and_hits_both_ends_of_small_arrays(size):
    sample = sample_voxels(np.arange(size, dtype=np.float32))
    assert len(sample) <= 2_000_000
    assert len(sample) >= min(size, 600_000)
