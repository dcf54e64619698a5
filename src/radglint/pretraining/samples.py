"""From stored scans to batches. A batch depends on the seed and its step only, so that a run can be resumed exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from radglint.pretraining.config import DataConfig, MaskConfig
from radglint.pretraining.masking import tube_mask
from radglint.pretraining.scans import WHITE, Scan, open_pixels

ORDER, SAMPLE = 0, 1  # keep the random streams of the two apart


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's input.

    Attributes:
        pixels: `batch slices height width`, in [0, 1]: what the teacher sees.
        student_pixels: the same places with another gamma.
        hidden: `batch tokens`, bool: patches that the student does not see.
    """

    pixels: torch.Tensor
    student_pixels: torch.Tensor
    hidden: torch.Tensor

    def part(self, rows: slice) -> Batch:
        """Some samples of the batch."""
        return Batch(self.pixels[rows], self.student_pixels[rows], self.hidden[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(self.pixels.to(device), self.student_pixels.to(device), self.hidden.to(device))


class Samples:
    """Batches by the number of their step.

    Args:
        scans: what is drawn from, each once an epoch.
        folder: where their pixels lie.
        data: size and augmentation of a sample.
        mask: what is hidden.
        grid: token layers, patches down, patches across of a sample.
        batch: samples a step.
        seed: another seed, other samples.
    """

    def __init__(
        self, scans: Sequence[Scan], folder: Path, data: DataConfig, mask: MaskConfig, grid: tuple[int, int, int], *,
        batch: int, seed: int,
    ) -> None:  # fmt: skip
        self.scans = scans
        self.folder = folder
        self.data = data
        self.mask = mask
        self.grid = grid
        self.batch = batch
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    def _drawn_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.scans))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step."""
        samples = [self._sample(step * self.batch + k) for k in range(self.batch)]
        clean, seen, hidden = zip(*samples, strict=True)
        return Batch(torch.stack(clean), torch.stack(seen), torch.from_numpy(np.stack(hidden)).flatten(1))

    def _sample(self, number: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        epoch, place = divmod(number, len(self.scans))
        scan = self.scans[self._order(epoch)[place]]
        rng = np.random.default_rng([self.seed, SAMPLE, number])
        clean = random_crop(open_pixels(self.folder / scan.pixels), self.data, rng)
        gamma = math.exp(rng.uniform(-1, 1) * self.data.gamma_jitter)
        return clean, clean**gamma, tube_mask(self.grid, self.mask, rng)


def random_crop(pixels: np.ndarray, config: DataConfig, rng: np.random.Generator) -> torch.Tensor:
    """A random part of a scan, magnified.

    Never flipped: left and right must stay apart.

    Args:
        pixels: uint16 `depth height width`.
        config: size and zoom. Where the scan is smaller than the wanted part, all of its shorter side is taken.
        rng: where the randomness comes from.

    Returns:
        float32 `slices crop_px crop_px` in [0, 1].
    """
    depth, height, width = pixels.shape
    zoom = math.exp(rng.uniform(math.log(config.zoom[0]), math.log(config.zoom[1])))
    side = min(max(round(config.crop_px / zoom), 1), height, width)
    first, top, left = (int(rng.integers(n + 1)) for n in (depth - config.slices, height - side, width - side))
    part = pixels[first : first + config.slices, top : top + side, left : left + side]
    values = torch.from_numpy(part.astype(np.float32) / np.float32(WHITE))
    if side == config.crop_px:
        return values
    sides = (config.crop_px, config.crop_px)
    resized = torch.nn.functional.interpolate(values[:, None], size=sides, mode="bilinear", antialias=True)
    return resized[:, 0].clamp(0, 1)


def prefetched(samples: Samples, start: int, stop: int) -> Iterator[tuple[int, Batch, float]]:
    """Steps with their batches, the next one made while the last one is used.

    Yields:
        Number of the step, its batch, and how many seconds were spent waiting for it.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples") as pool:
        coming = pool.submit(samples.__getitem__, start) if start < stop else None
        for step in range(start, stop):
            assert coming is not None
            begin = time.monotonic()
            batch = coming.result()
            waited = time.monotonic() - begin
            coming = pool.submit(samples.__getitem__, step + 1) if step + 1 < stop else None
            yield step, batch, waited
