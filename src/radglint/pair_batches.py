"""What each step of training on image-report pairs gets, and which of its images are encoded together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Dataset

from radglint.errors import ConfigError
from radglint.feature_cache import FeatureCache, TrunkTokens
from radglint.report_labels import LabelledSentences, draw_sentences
from radglint.report_pairs import (
    Pair,
    counted,
    load_manifest,
    load_shards,
    pair_pixels,
    pairs_of_step,
    share_of_rank,
)
from radglint.train_config import PairData, TrainConfig
from radglint.train_towers import Ranks


@dataclass(frozen=True)
class PairBatch:
    """One step's data.

    Attributes:
        ids: of all pairs of the step.
        pixels: this process's images, each `depth height width`; sizes may differ; none with a cache.
        sentences: of all pairs of the step.
        cached: with a cache, what the frozen trunk once made of these images.
    """

    ids: tuple[str, ...]
    pixels: tuple[torch.Tensor, ...]
    sentences: LabelledSentences
    cached: tuple[TrunkTokens, ...] = ()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each image of this process; what has the same one can be stacked."""
        if self.cached:
            return [(*image.grid, *image.tokens.shape) for image in self.cached]
        return [tuple(image.shape) for image in self.pixels]


class StepData(Dataset[PairBatch]):
    """The batch of each step, a function of seed and step; read in worker processes.

    Args:
        pairs: all of them.
        config: of the run.
        ranks: this process among all.
        cache: where the tokens of all images are; None reads the images.
    """

    def __init__(
        self, pairs: Sequence[Pair], config: TrainConfig, ranks: Ranks, cache: FeatureCache | None = None
    ) -> None:
        assert isinstance(config.data, PairData)
        self.pairs, self.data, self.fit = pairs, config.data, config.fit
        self.preprocess, self.rank, self.num_ranks = config.branch.preprocess, ranks.rank, ranks.count
        self.cache = cache

    def __len__(self) -> int:
        """Steps of the run."""
        return self.fit.steps

    def __getitem__(self, step: int) -> PairBatch:
        """The batch of a step.

        Raises:
            ImageError: an image cannot be read.
            TrainingError: its cached tokens cannot.
        """
        chosen = [self.pairs[k] for k in pairs_of_step(len(self.pairs), self.fit.batch, self.fit.seed, step)]
        rng = np.random.default_rng([self.fit.seed, 1, step])
        reports = [pair.report for pair in chosen]
        sentences = draw_sentences(reports, self.data.said, self.data.sentences_per_image, rng)
        own, ids = share_of_rank(chosen, self.rank, self.num_ranks), tuple(pair.id for pair in chosen)
        if self.cache is not None:
            return PairBatch(ids, (), sentences, tuple(self.cache.read(pair) for pair in own))
        pixels = tuple(pair_pixels(pair, self.preprocess, self.data.max_slices) for pair in own)
        return PairBatch(ids, pixels, sentences)


def load_pairs(data: PairData, modality: str) -> list[Pair]:
    """All training pairs, manifests before shards.

    Raises:
        ConfigError: one of them cannot be read, has no row of `train_split`, or rows of several and none is named.
    """
    split, key = data.train_split, "data.train_split"
    parts = [_of_one_split(str(path), load_manifest(path, modality, split), key) for path in data.manifests]
    parts += [_of_one_split(pattern, load_shards(pattern, modality, split), key) for pattern in data.shards]
    return [pair for part in parts for pair in part]


def load_validation(data: PairData, modality: str, training: Sequence[Pair]) -> list[Pair]:
    """The validation pairs; none without a `val_manifest`.

    Args:
        data: of the run.
        modality: CXR or CT.
        training: what is trained on.

    Raises:
        ConfigError: as with `load_pairs`, or somebody is in both.
    """
    if data.val_manifest is None:
        return []
    pairs = load_manifest(data.val_manifest, modality, data.val_split)
    pairs = _of_one_split(str(data.val_manifest), pairs, "data.val_split")
    _check_apart(training, pairs, str(data.val_manifest))
    return pairs


def _of_one_split(name: str, pairs: list[Pair], key: str) -> list[Pair]:
    splits = Counter(pair.split for pair in pairs)
    if len(splits) > 1:
        raise ConfigError(f"{name}: holds rows of several splits, {counted(splits)}; set {key} to the one to take")
    return pairs


def _check_apart(training: Sequence[Pair], validation: Sequence[Pair], name: str) -> None:
    """No patient and no file is in both; a group is somebody within its data set."""
    groups = {(pair.dataset, pair.group) for pair in training if pair.group}
    shared = sorted({pair.group for pair in validation if (pair.dataset, pair.group) in groups})
    what = "groups (patients)"
    if not shared:
        images = {str(pair.image) for pair in training}
        shared, what = sorted({str(pair.image) for pair in validation} & images), "images"
    if shared:
        listed = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise ConfigError(
            f"{name}: {len(shared)} of its {what} are trained on too: {listed}; take them out of one of both, or set "
            "data.train_split and data.val_split"
        )


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
