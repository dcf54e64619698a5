"""Voxels that cannot be what is asked for, by their HU."""

import numpy as np
import pytest
from pydantic import ValidationError

from radglint.density import DensityRange

HU = np.array([-1024.0, -600.0, -400.0, 0.0, 300.0, 3071.0], np.float32)


@pytest.mark.parametrize(("low", "high"), [(None, None), (-400.0, None), (None, 100.0), (-400.0, 100.0)])
def test_log_share_equals_its_naive_form(low: float | None, high: float | None) -> None:
    wide = HU.astype(np.float64)
    expected = np.zeros(len(HU))
    if low is not None:
        expected += np.log(1 / (1 + np.exp(-(wide - low) / 40)))
    if high is not None:
        expected += np.log(1 / (1 + np.exp(-(high - wide) / 40)))
    got = DensityRange(low_hu=low, high_hu=high).log_share(HU)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert (got <= 0).all()


def test_whole_numbers_are_looked_up_to_the_same_bits() -> None:
    hu = np.random.default_rng(0).integers(-1100, 3000, (40, 40, 40)).astype(np.float32)
    fits = DensityRange(low_hu=-400, high_hu=60.5)
    np.testing.assert_array_equal(fits.log_share(hu), fits._computed(hu))
    broken = hu + np.float32(0.25) * (np.arange(40) == 7)
    np.testing.assert_array_equal(fits.log_share(broken), fits._computed(broken))
    assert fits.log_share(hu[:0]).shape == (0, 40, 40)


def test_an_end_of_the_range_is_one_half() -> None:
    assert np.exp(DensityRange(low_hu=-400).log_share(np.array([-400.0])))[0] == pytest.approx(0.5)


def test_a_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValidationError, match="low_hu 100 must be below high_hu -100"):
        DensityRange(low_hu=100, high_hu=-100)
