"""What each step of training on image-report pairs gets, and which of its images are encoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Dataset

from radglint.report_labels import LabelledSentences, draw_sentences
from radglint.report_pairs import Pair, load_manifest, load_shards, pair_pixels, pairs_of_step, share_of_rank
from radglint.train_config import PairData, TrainConfig
from radglint.train_towers import Ranks


@dataclass(frozen=True)
class PairBatch:
    """One step's data.

    Attributes:
        ids: of all pairs of the step.
        pixels: this process's images, each `depth height width`; sizes may differ.
        sentences: of all pairs of the step.
    """

    ids: tuple[str, ...]
    pixels: tuple[torch.Tensor, ...]
    sentences: LabelledSentences


class StepData(Dataset[PairBatch]):
    """The batch of each step, a function of seed and step; read in worker processes.

    Args:
        pairs: all of them.
        config: of the run.
        ranks: this process among all.
    """

    def __init__(self, pairs: Sequence[Pair], config: TrainConfig, ranks: Ranks) -> None:
        assert isinstance(config.data, PairData)
        self.pairs, self.data, self.fit = pairs, config.data, config.fit
        self.preprocess, self.rank, self.num_ranks = config.branch.preprocess, ranks.rank, ranks.count

    def __len__(self) -> int:
        """Steps of the run."""
        return self.fit.steps

    def __getitem__(self, step: int) -> PairBatch:
        """The batch of a step.

        Raises:
            ImageError: an image cannot be read.
        """
        chosen = [self.pairs[k] for k in pairs_of_step(len(self.pairs), self.fit.batch, self.fit.seed, step)]
        rng = np.random.default_rng([self.fit.seed, 1, step])
        reports = [pair.report for pair in chosen]
        sentences = draw_sentences(reports, self.data.said, self.data.sentences_per_image, rng)
        own = share_of_rank(chosen, self.rank, self.num_ranks)
        pixels = tuple(pair_pixels(pair, self.preprocess, self.data.max_slices) for pair in own)
        return PairBatch(tuple(pair.id for pair in chosen), pixels, sentences)


def load_pairs(data: PairData, modality: str) -> list[Pair]:
    """All training pairs, manifests before shards.

    Raises:
        ConfigError: one of them cannot be read.
    """
    pairs = [pair for path in data.manifests for pair in load_manifest(path, modality)]
    return pairs + [pair for pattern in data.shards for pair in load_shards(pattern, modality)]


def equal_pieces(
    shapes: Sequence[tuple[int, ...]], size: int | None, ranks: Ranks, is_sharded: bool
) -> list[list[int]]:
    """Which images are encoded together: those of one size, at most `size` of them.

    Args:
        shapes: of each image.
        size: most images of a piece; None = no limit.
        ranks: this process among all.
        is_sharded: every process must run the trunk equally often (FSDP2), so pieces are halved until that is so.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(k)
    step = size or len(shapes)
    pieces = [group[start : start + step] for group in groups.values() for start in range(0, len(group), step)]
    if is_sharded:
        most = torch.tensor(len(pieces), device=ranks.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        while len(pieces) < int(most):
            largest = max(pieces, key=len)
            pieces.remove(largest)
            pieces += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return pieces
