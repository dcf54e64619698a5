"""Hidden blocks and tubes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from radglint.pretraining.config import MaskConfig
from radglint.pretraining.masking import block_mask, hidden_count, tube_mask

MASKS = st.builds(
    MaskConfig, share=st.floats(0.05, 0.95), min_block_patches=st.integers(1, 30),
    max_block_share=st.floats(0.01, 1.0), max_aspect=st.floats(1.0, 20.0),
)  # fmt: skip


@given(MASKS, st.integers(1, 20), st.integers(2, 20), st.integers(0, 99))
def test_exactly_the_wanted_number_is_hidden(config, height, width, seed):
    mask = block_mask(height, width, config, np.random.default_rng(seed))
    assert mask.shape == (height, width)
    assert mask.sum() == hidden_count(height, width, config)
    assert 1 <= mask.sum() < height * width


def test_the_same_generator_gives_the_same_mask():
    first, again, other = (block_mask(16, 16, MaskConfig(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_hidden_patches_hang_together():
    """Far fewer pieces than as many patches hidden one by one."""
    rng = np.random.default_rng(0)
    config = MaskConfig(share=0.3)
    blocks = [block_mask(16, 16, config, rng) for _ in range(50)]
    singles = [rng.permutation(mask.ravel()).reshape(mask.shape) for mask in blocks]
    pieces = [np.mean([ndimage.label(mask)[1] for mask in masks]) for masks in (blocks, singles)]
    assert pieces[0] < 6
    assert pieces[1] > 20


def test_every_place_is_hidden_about_as_often():
    rng = np.random.default_rng(0)
    often = np.mean([block_mask(8, 8, MaskConfig(share=0.5), rng) for _ in range(600)], axis=0)
    assert often.mean() == 0.5
    assert often.min() > 0.4
    assert often.max() < 0.6


def test_a_tube_is_the_same_block_in_every_layer():
    mask = tube_mask((5, 6, 7), MaskConfig(), np.random.default_rng(0))
    assert mask.shape == (5, 6, 7)
    assert np.array_equal(mask, np.broadcast_to(mask[:1], mask.shape))
    assert np.array_equal(mask[0], block_mask(6, 7, MaskConfig(), np.random.default_rng(0)))
