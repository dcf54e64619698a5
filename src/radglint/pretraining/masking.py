"""Which patches the student does not see: blocks in a slice, the same blocks in every slice (tubes).

Blocks rather than single patches, so that a hidden patch cannot be guessed from its neighbours; tubes rather than a new
mask for each slice, so that it cannot be copied from the next slice either.
"""

from __future__ import annotations

import math

import numpy as np

from radglint.pretraining.config import MaskConfig


def block_mask(height: int, width: int, config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """Hide a fixed number of patches in rectangles of random size, shape and place.

    Args:
        height: patches down.
        width: patches across.
        config: share of hidden patches and the size of the blocks.
        rng: where the randomness comes from.

    Returns:
        bool `height width`, True = hidden. Exactly `hidden_count` are True; the last block is cut to reach it.

    Reference: blocks as in BEiT (Bao et al. 2022, arXiv 2106.08254); differs: the number is exact, so that images of a
    batch weigh the same.
    """
    hidden = np.zeros((height, width), dtype=bool)
    wanted = hidden_count(height, width, config)
    while (missing := wanted - int(hidden.sum())) > 0:
        block = np.zeros_like(hidden)
        block[_rectangle(height, width, config, rng)] = True
        fresh = np.flatnonzero(block & ~hidden)
        hidden.flat[fresh[:missing]] = True
    return hidden


def hidden_count(height: int, width: int, config: MaskConfig) -> int:
    """How many patches of a slice are hidden: at least one, never all."""
    return min(max(round(config.share * height * width), 1), height * width - 1)


def tube_mask(grid: tuple[int, int, int], config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """A block mask that runs through all layers of a sample.

    Args:
        grid: token layers, patches down, patches across.
        config: as for `block_mask`.
        rng: where the randomness comes from.

    Returns:
        bool of shape `grid`, True = hidden.
    """
    depth, height, width = grid
    return np.broadcast_to(block_mask(height, width, config, rng), (depth, height, width)).copy()


def _rectangle(height: int, width: int, config: MaskConfig, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random block. It may hang over the edge, so that no place is hidden less than others."""
    largest = max(config.max_block_share * height * width, config.min_block_patches)
    area = rng.uniform(config.min_block_patches, largest)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(config.max_aspect))
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    columns = min(max(round(math.sqrt(area / aspect)), 1), width)
    top, left = rng.integers(1 - rows, height), rng.integers(1 - columns, width)
    return slice(max(top, 0), top + rows), slice(max(left, 0), left + columns)
