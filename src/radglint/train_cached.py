"""Training one branch on cached tokens of a frozen trunk, through `radglint.train.branch_loss`.

It computes on the CPU, whatever else the machine has: a branch on cached tokens is small. Every process holds all
tokens of all training shards in memory, and at the end those of the validation shards too, so several processes on one
machine need as many times the room. Of each batch a process reads its own share of the images, in pieces if
`microbatch_images` says so; what the losses need of each image (scores, sums of the gate, evidence) is gathered, so
that the loss is that of the whole batch. What does not fit into memory is for data of kind "pairs".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from radglint.alignment import Alignment
from radglint.case_metrics import evaluate_cases, mean_metrics
from radglint.cases import Case, crop_slices, load_cases
from radglint.encoders.text import TextEncoder
from radglint.errors import ConfigError
from radglint.gather import gather_images
from radglint.model import GlintBranch
from radglint.place import Place
from radglint.recompute import in_pieces
from radglint.report_pairs import share_of_rank
from radglint.train import Read, Reading, SentencePool, batch_order, branch_loss, native_autocast, read_whole
from radglint.train_config import CachedData, TextConfig, TrainConfig
from radglint.train_log import GateView
from radglint.train_towers import Numbers, Ranks, load_branch, load_text_tower
from radglint.writing import output_errors, write_json, write_text

VARIANTS = 12  # wordings of each fact
RELATIVE_POOLINGS = ("mean", "softmax", "softmax_null")  # whose maps have no scale of their own
Batch = tuple[list[Case], torch.Tensor, list[Any]]


@lru_cache(maxsize=1)
def _embedded(config: TextConfig) -> dict[str, torch.Tensor]:
    """What a frozen tower has made of each sentence so far."""
    return {}


@torch.no_grad()
def embed_once(tower: TextEncoder, config: TextConfig, sentences: Sequence[str]) -> torch.Tensor:
    """`texts embed` of a frozen tower; no sentence is encoded twice in one process, however many runs it does.

    Args:
        tower: of that configuration.
        config: what tells towers apart.
        sentences: any number of texts.
    """
    known = _embedded(config)  # pyright: ignore[reportArgumentType]
    new = sorted(set(sentences) - known.keys())
    if new:
        known.update(zip(new, tower.embed(new), strict=True))
    return torch.stack([known[sentence] for sentence in sentences])


def load_bags(data: CachedData, prefix: str) -> list[Case]:
    """The cases of some shards, slabs cut into bags.

    Raises:
        ConfigError: no shard is there.
    """
    cases, size, beside = load_cases(data.folder, prefix), data.bag_slices, data.context_slices
    if size is None:
        return cases
    bags = []
    for case in cases:
        starts = range(beside, case.tokens.shape[0] - size - beside + 1, size)
        bags += crop_slices(case, list(starts), size, context_slices=beside)
    return bags


class CachedTask:
    """See `radglint.train_towers.Task`.

    Args:
        config: with data of kind "cases".
        ranks: this process among all.

    Raises:
        ConfigError: no cases, or they do not fit the grid.
    """

    towers: Sequence[tuple[nn.Module, Sequence[nn.Module]]] = ()

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        assert isinstance(config.data, CachedData)
        self.config, self.data, self.ranks = config, config.data, ranks
        self.cases = [case for prefix in self.data.train_prefixes for case in load_bags(self.data, prefix)]
        self._check_cases()
        self.text = load_text_tower(config.text)
        self.pool = SentencePool(self.cases, self.embed, VARIANTS, config.fit.seed)
        torch.manual_seed(config.fit.seed)
        self.branch = GlintBranch(self._trunk_dim(), self.text.embed_dim, config.branch)
        load_branch(self.branch, config.init)
        self.module: nn.Module = self.branch.train()
        self.is_plain = ranks.count == 1 and config.microbatch_images is None

    def _trunk_dim(self) -> int:
        """Width of one trunk block: cached tokens hold the last one and the branch's `trunk_layers` side by side."""
        width, blocks = self.cases[0].tokens.shape[-1], 1 + len(self.config.branch.trunk_layers)
        if width % blocks:
            raise ConfigError(
                f"{self.data.folder}: tokens are {width} wide, which branch.trunk_layers does not divide into {blocks} "
                "blocks; name the blocks that were cached"
            )
        return width // blocks

    def _check_cases(self) -> None:
        shapes = {tuple(case.tokens.shape) for case in self.cases}
        height, width = self.data.grid_tokens
        if not shapes or any(shape[1] != height * width for shape in shapes) or len(shapes) > 1:
            raise ConfigError(
                f"data.grid_tokens: {height} x {width} expected of all cases of {self.data.folder}, which have tokens "
                f"of shape {sorted(shapes)[:4]}; correct it, or set data.bag_slices so that all have as many slices"
            )
        least, got = 2 * self.ranks.count, min(len(self.cases), self.config.fit.batch)
        if got < least:
            raise ConfigError(
                f"fit.batch: a step has {got} images, expected at least {least}, two for each process "
                f"({self.ranks.count}, on the CPU, each with all cases in memory); give more, or start fewer processes"
            )

    @torch.no_grad()
    def embed(self, sentences: Sequence[str]) -> torch.Tensor:
        """`texts embed` of the frozen tower."""
        return embed_once(self.text, self.config.text, sentences)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Cases and sentences of each step."""
        fit = self.config.fit
        order = batch_order(self.cases, fit, np.random.default_rng([fit.seed, 0]))
        for step, batch in enumerate(islice(order, start, stop), start=start):
            rng = np.random.default_rng([fit.seed, 1, step])
            yield batch, *self.pool.draw(batch, fit.sentences_per_fact, rng)

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, Numbers] | None:
        """`branch_loss` over all processes; None for a batch without a finding."""
        cases, texts, statements = batch
        if not statements:
            return None
        share = read_whole if self.is_plain else self._share
        return branch_loss(self.branch, cases, self.data.grid_tokens, texts, statements, self.config.fit, step, share)

    def _share(self, read: Read, num_images: int) -> Reading:
        """This process's images, in pieces that are computed again for the gradient; then those of all."""
        own = share_of_rank(range(num_images), self.ranks.rank, self.ranks.count)
        pieces = in_pieces(read, own, self.config.microbatch_images)
        tables = [torch.cat([a.scores, a.gate_mass, a.gate_squares, rows]) for a, rows in pieces]
        table, (first, _) = gather_images(torch.cat(tables, dim=1)), pieces[0]
        count = len(first.scores)
        scores, mass, squares, rows = table.split([count, count, count, len(table) - 3 * count])
        return Reading(Alignment(scores, mass, squares, first.num_tokens), rows)

    def keep(self, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tokens and sentence embeddings; facts and statements."""
        cases, texts, statements = batch
        tensors = {"tokens": torch.stack([case.tokens for case in cases]), "texts": texts}
        rows = [{"group": case.group, "facts": [asdict(fact) for fact in case.facts]} for case in cases]
        return tensors, {"cases": rows, "statements": [asdict(statement) for statement in statements]}

    @torch.no_grad()
    def views(self) -> list[GateView]:
        """The first validation cases with a finding, asked for it; the slice with the highest gate."""
        if self.data.val_prefix is None:
            return []
        shown = [case for case in load_bags(self.data, self.data.val_prefix) if case.facts][: self.config.picture_cases]
        self.branch.eval()
        views = [self._view(case) for case in shown]
        self.branch.train()
        return views

    def _view(self, case: Case) -> GateView:
        fact, (height, width) = case.facts[0], self.data.grid_tokens
        with native_autocast():
            gated = self.branch(
                case.tokens[None], self.data.grid_tokens, self.embed([f"There is {fact.concept}."]),
                self.config.fit.valid_depth, None, [Place(fact.concept in self.config.fit.in_lungs)],
            )  # fmt: skip
        gate = gated.gate[0, 0].float().reshape(-1, height, width).numpy()
        best = int(gate.max(axis=(1, 2)).argmax())
        truth = None
        if case.coverage is not None:
            truth = case.coverage[0].float().reshape(-1, height, width).numpy()[best]
        side = " ".join(str(part) for part in (fact.size, fact.side, fact.zone, fact.concept) if part)
        return GateView(f"{fact.concept} (is: {side}), score {float(gated.scores[0, 0]):.2f}", truth, gate[best])

    def export(self, run: Path, is_first: bool) -> Numbers:
        """`branch.safetensors`, `branch.json`, and `metrics.json` of the validation cases."""
        if not is_first:
            return {}
        with output_errors(run):
            staged = run / "branch.tmp"
            save_file({k: v.contiguous() for k, v in self.branch.state_dict().items()}, staged)
            staged.replace(run / "branch.safetensors")
        write_text(run / "branch.json", self.config.branch.model_dump_json(indent=2))
        if self.data.val_prefix is None:
            return {}
        held_out, pooling = load_bags(self.data, self.data.val_prefix), self.config.branch.gate.pooling
        metrics = evaluate_cases(
            self.branch,
            held_out,
            self.data.grid_tokens,
            self.embed,
            per_case=pooling in RELATIVE_POOLINGS,
            in_lungs=self.config.fit.in_lungs,
        )
        self.branch.train()
        write_json(run / "metrics.json", metrics)
        return mean_metrics(metrics)
