"""Training on image-report pairs: trunk, text tower and branch, each frozen or trained, on one process or many.

pixels -> trunk -> mixer  \
                               gate -> scores, gathered over processes -> loss of the whole batch
sentences -> tower -> adapter, gathered  /
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import distributed, nn
from torch.utils.data import DataLoader

from radglint.alignment import align
from radglint.case_metrics import Metrics, mean_metrics, presence_metrics
from radglint.encoders.backbones import image_encoder, load_backbone
from radglint.errors import ConfigError
from radglint.feature_cache import filled_cache
from radglint.gate import GatedScores
from radglint.gather import gather_images, gather_texts
from radglint.lora import add_lora, merged_state
from radglint.losses import contrastive_loss, sparsity_of_sums
from radglint.losses_local import alike_sentences, local_loss, local_rows
from radglint.model import GlintConfig, GlintModel, trunk_blocks
from radglint.pair_batches import PairBatch, StepData, equal_pieces, load_pairs, load_validation
from radglint.recompute import again
from radglint.regularizer import DenseFeatureRegularizer
from radglint.report_labels import (
    LabelledSentences,
    join_duplicates,
    presence_verdicts,
    said,
    statements_of,
)
from radglint.report_pairs import Pair, pair_pixels, share_of_rank
from radglint.simulation.facts import CONCEPTS
from radglint.train_config import PairData, TrainConfig, TrunkConfig
from radglint.train_log import GateView
from radglint.train_state import whole
from radglint.train_towers import Numbers, Ranks, load_branch, load_teacher, load_text_tower
from radglint.writing import output_errors, write_json, write_text

TEXTS_AT_ONCE = 64
MODEL_CONFIG, MODEL_WEIGHTS, MODEL_TOKENIZER = "model.json", "model.safetensors", "tokenizer.json"


def build_model(config: TrainConfig) -> GlintModel:
    """Pretrained trunk and text tower with a new branch; what is frozen is frozen.

    Raises:
        CheckpointError: a tower cannot be loaded.
    """
    assert config.trunk is not None
    backbone = load_backbone(config.trunk.source, local_files_only=not config.trunk.allow_download)
    text = load_text_tower(config.text)
    kind = config.branch.preprocess.kind
    torch.manual_seed(config.fit.seed)
    glint = GlintConfig(
        name=config.name, image_backbone=backbone.config.to_dict(), text_backbone=text.backbone.config.to_dict(),
        max_text_tokens=config.text.max_text_tokens, num_trainable_blocks=config.trunk.trained_blocks,
        train_text=config.text.trained, branches={kind: config.branch},
    )  # fmt: skip
    model = GlintModel(glint, text.tokenizer)
    model.trunk, model.text = image_encoder(backbone), text
    model.trunk.requires_grad_(config.trunk.trained_blocks == -1)
    for block in trunk_blocks(model.trunk)[len(trunk_blocks(model.trunk)) - max(config.trunk.trained_blocks, 0) :]:
        block.requires_grad_(True)
    load_branch(model.branch(kind), config.init)
    return model


def load_trained(run: Path) -> GlintModel:
    """The model that a run has written, in eval mode on the CPU."""
    tokenizer = Tokenizer.from_file(str(run / MODEL_TOKENIZER))
    model = GlintModel(GlintConfig.model_validate_json((run / MODEL_CONFIG).read_text(encoding="utf-8")), tokenizer)
    model.load_state_dict(load_file(run / MODEL_WEIGHTS), strict=True)
    return model.eval()


class PairTask:
    """See `radglint.train_towers.Task`.

    Args:
        config: with data of kind "pairs".
        ranks: this process among all.

    Raises:
        ConfigError: too few pairs, several splits and none named, somebody in training and validation, a batch that
            cannot be shared out evenly, or a teacher whose tokens are not like the trunk's.
        CheckpointError: a tower cannot be loaded.
        TrainingError, ImageError, OutputError: the cache of tokens cannot be filled, see `radglint.feature_cache`.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        assert isinstance(config.data, PairData)
        assert config.trunk is not None
        self.config, self.data, self.ranks = config, config.data, ranks
        self.trunk_config: TrunkConfig = config.trunk
        self.kind = config.branch.preprocess.kind
        self.pairs = load_pairs(self.data, self.kind)
        self.held_out = load_validation(self.data, self.kind, self.pairs)
        self._check_batch()
        self.model = build_model(config)
        self.branch = self.model.branch(self.kind)
        self._add_teacher_and_updates()
        towers: list[nn.Module] = [self.model.trunk, self.model.text]
        self.towers: Sequence[tuple[nn.Module, Sequence[nn.Module]]] = [(t, trunk_blocks(t)) for t in towers]
        self.model.to(ranks.device)
        self.cache = filled_cache(config, self.model, ranks, [*self.pairs, *self.held_out])
        self.is_sharded = config.parallel == "fsdp2" and ranks.count > 1
        if self.is_sharded:
            self._shard()
        self.module: nn.Module = self.model
        self._train_mode()

    def _check_batch(self) -> None:
        size, count = min(self.config.fit.batch, len(self.pairs)), self.ranks.count
        if size < 2 or size % count:
            raise ConfigError(
                f"fit.batch: {size} of {len(self.pairs)} pairs cannot be shared by {count} processes; "
                f"choose a multiple of {count}, at least 2"
            )

    def _add_teacher_and_updates(self) -> None:
        anchor, lora = self.trunk_config.anchor, self.trunk_config.lora
        self.teacher = None
        if anchor.form != "none":
            self.teacher = load_teacher(self.trunk_config, self.model.trunk).to(self.ranks.device)
        self.regularizer = DenseFeatureRegularizer(anchor.form)
        if lora is not None:
            torch.manual_seed(self.config.fit.seed + 1)
            for block in trunk_blocks(self.model.trunk):
                add_lora(block, lora.rank, lora.alpha)

    def _shard(self) -> None:
        """FSDP2: blocks and towers are sharded; the branch, which is small, is kept whole and averaged."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.count,))
        for tower, blocks in self.towers:
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(tower, mesh=mesh)

    def _train_mode(self) -> None:
        """The trunk stays in eval mode, trained or not: no random positions or depth, so its anchor starts at zero."""
        self.model.train()
        self.model.trunk.eval()
        if not self.config.text.trained:
            self.model.text.eval()

    def batches(self, start: int, stop: int) -> Iterator[PairBatch]:
        """Images, or their cached tokens, and sentences of each step, read ahead by the workers."""
        data, workers = StepData(self.pairs, self.config, self.ranks, self.cache), self.data.workers
        return iter(DataLoader(data, batch_size=None, sampler=range(start, stop), num_workers=workers,
                               multiprocessing_context="spawn" if workers else None))  # fmt: skip

    def loss(self, batch: PairBatch, step: int) -> tuple[torch.Tensor, Numbers] | None:
        """The contrastive loss of the whole batch, the gate's sparsity, the trunk's anchor and any local loss."""
        sentences, fit = batch.sentences, self.config.fit
        if self.data.duplicate_cosine is not None and sentences.statements:
            sentences = join_duplicates(sentences, self._embed_frozen, self.data.duplicate_cosine)
        if not bool(sentences.positives.any()):
            return None
        texts, (order, encoded) = self._texts(sentences.texts), self._encoded(batch)
        scores, mass, squares = self._scores(encoded, texts, order)
        anchor = torch.stack([anchor * len(tokens) for tokens, anchor in encoded]).sum() / scores.shape[1]
        positives, negatives = sentences.positives.to(scores.device), sentences.negatives.to(scores.device)
        scale, bias = self.branch.logit_scale.exp(), self.branch.logit_bias
        align_loss = contrastive_loss(fit.loss, scores, positives, negatives, scale, bias)
        kept, placed = ~negatives if fit.sparsity == "negatives" else positives, sentences.placed.to(scores.device)
        sums = (mass[placed], squares[placed], 1, kept[placed])
        sparsity = sparsity_of_sums(*sums, fit.sparsity, fit.sparsity_budget)
        weight = self._anchor_weight(step)
        numbers = {"align": align_loss, "sparsity": sparsity, "anchor": gather_sum(anchor), "anchor_weight": weight}
        numbers |= {"mass_pos": mass[positives].mean(), "scale": scale}
        numbers |= {} if bias is None else {"bias": bias}
        numbers |= {"mass_neg": mass[negatives].mean()} if bool(negatives.any()) else {}
        total = align_loss + fit.sparsity_weight * sparsity + weight * self.ranks.count * anchor
        if fit.local != "none":
            numbers["local"] = self._local(encoded, texts, order, sentences)
            total = total + fit.local_weight * numbers["local"]
        return total, {key: float(torch.as_tensor(value).detach()) for key, value in numbers.items()}

    def _anchor_weight(self, step: int) -> float:
        anchor, done = self.trunk_config.anchor, step / max(self.config.fit.steps - 1, 1)
        return anchor.end_weight + (anchor.start_weight - anchor.end_weight) * 0.5 * (1 + math.cos(math.pi * done))

    @torch.no_grad()
    def _embed_frozen(self, texts: Sequence[str]) -> torch.Tensor:
        """All texts on every process; with a sharded tower all of them ask for the same texts."""
        return self.model.text.embed(texts)

    def _texts(self, texts: list[str]) -> torch.Tensor:
        """`texts embed` after the adapter; each process encodes as many as every other, the last repeated."""
        missing = -len(texts) % self.ranks.count
        ids = share_of_rank([*range(len(texts)), *[len(texts) - 1] * missing], self.ranks.rank, self.ranks.count)
        own = [texts[k] for k in ids]
        pieces = [own[start : start + TEXTS_AT_ONCE] for start in range(0, len(own), TEXTS_AT_ONCE)]
        if not self.config.text.trained:
            with torch.no_grad():
                embedded = [self.model.text.embed(piece) for piece in pieces]
        else:
            embedded = again(self.model.text.embed, pieces) if len(pieces) > 1 else [self.model.text.embed(own)]
        rows, _ = gather_texts(torch.cat(embedded), torch.tensor(ids, device=self.ranks.device))
        return self.branch.text_adapter(rows)

    def _encoded(self, batch: PairBatch) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Mixed tokens and anchor of each piece; and the place of each of this process's images in the pieces."""
        runs_shards = self.is_sharded and not batch.cached
        pieces = equal_pieces(batch.shapes, self.config.microbatch_images, self.ranks, runs_shards)
        encoded = self._encode_trained(batch, pieces) if self.trunk_config.is_trained else self._mix(batch, pieces)
        return torch.tensor([k for piece in pieces for k in piece], device=self.ranks.device).argsort(), encoded

    def _scores(
        self, encoded: Sequence[tuple[torch.Tensor, torch.Tensor]], texts: torch.Tensor, order: torch.Tensor
    ) -> list[torch.Tensor]:
        """Scores, gate mass and squares per token, `texts all_images`."""
        sums = []
        for tokens, _ in encoded:
            aligned = align(self.branch.gate, tokens, texts)
            share = (aligned.gate_mass / aligned.num_tokens, aligned.gate_squares / aligned.num_tokens)
            sums.append(torch.stack([aligned.scores, *share]))
        return [gather_images(own) for own in torch.cat(sums, dim=2)[:, :, order].unbind()]

    def _local(
        self, encoded: Sequence[tuple[torch.Tensor, torch.Tensor]], texts: torch.Tensor, order: torch.Tensor,
        sentences: LabelledSentences,
    ) -> torch.Tensor:  # fmt: skip
        """The local loss of the whole batch."""
        alike = alike_sentences([{fact.concept for fact, _ in s.readings} for s in sentences.statements])
        labels = (sentences.positives, sentences.negatives, alike)
        positives, negatives, alike = (label.to(self.ranks.device) for label in labels)
        own = share_of_rank(positives.T, self.ranks.rank, self.ranks.count)[order.argsort()]
        kind, rows = self.config.fit.local, []
        for (tokens, _), held in zip(encoded, own.split([len(tokens) for tokens, _ in encoded]), strict=True):
            rows.append(local_rows(kind, *self.branch.gate.contents(tokens, texts), held.T, alike))
        return local_loss(kind, gather_images(torch.cat(rows, dim=1)[:, order]), positives, negatives, alike)

    def _encode_trained(
        self, batch: PairBatch, pieces: Sequence[Sequence[int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        stacks = [self._stack([batch.pixels[k] for k in piece]) for piece in pieces]
        return [self._encode(stacks[0])] if len(stacks) == 1 else again(self._encode, stacks)

    def _mix(self, batch: PairBatch, pieces: Sequence[Sequence[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Behind a frozen trunk, piece by piece, keeping tokens and no graph; the trunk is run once, or not at all."""
        frozen = [self._frozen_features(batch, piece) for piece in pieces]
        mix = self.branch.mixer
        mixed = [mix(*frozen[0])] if len(frozen) == 1 else again(lambda features: mix(*features), frozen)
        return [(tokens, tokens.new_zeros(())) for tokens in mixed]

    def _stack(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(images)).to(self.ranks.device)

    @torch.no_grad()
    def _frozen_features(self, batch: PairBatch, piece: Sequence[int]) -> tuple[torch.Tensor, tuple[int, ...]]:
        if batch.cached:
            return self._stack([batch.cached[k].tokens for k in piece]), batch.cached[piece[0]].grid
        features = self.model.branch_features(self._stack([batch.pixels[k] for k in piece]), self.kind)
        return features.tokens, features.grid

    def _encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed tokens of some images of one size, and the anchor's mean over them."""
        features = self.model.branch_features(pixels, self.kind, self.trunk_config.anchor.blocks)
        mixed = self.branch.mixer(features.tokens, features.grid)
        if self.teacher is None:
            return mixed, pixels.new_zeros(())
        blocks = self.trunk_config.anchor.blocks  # the mixer may read others beside them
        anchored = {block: features.layers[block] for block in blocks}
        return mixed, self.regularizer(anchored, self._teacher_layers(pixels))

    @torch.no_grad()
    def _teacher_layers(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        assert self.teacher is not None
        student, self.model.trunk = self.model.trunk, self.teacher  # the same path from pixels to layers
        try:
            return self.model.trunk_features(pixels, self.trunk_config.anchor.blocks).layers
        finally:
            self.model.trunk = student

    def keep(self, batch: PairBatch) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """This process's pixels or cached tokens, and the labels; ids and sentences."""
        sentences = batch.sentences
        tensors = {f"pixels.{k}": image for k, image in enumerate(batch.pixels)}
        tensors |= {f"tokens.{k}": image.tokens for k, image in enumerate(batch.cached)}
        tensors |= {"positives": sentences.positives, "negatives": sentences.negatives}
        return tensors, {"ids": list(batch.ids), "texts": sentences.texts}

    @torch.no_grad()
    def views(self) -> list[GateView]:
        """The first validation images whose report states a finding, asked with that sentence."""
        self.model.eval()
        views = [self._view(pair, text) for pair, text in self._asked()]
        self._train_mode()
        return views

    def _asked(self) -> list[tuple[Pair, str]]:
        first = [(pair, [s.text for s in statements_of(pair.report) if said(s) == "present"]) for pair in self.held_out]
        return [(pair, texts[0]) for pair, texts in first if texts][: self.config.picture_cases]

    def _view(self, pair: Pair, text: str) -> GateView:
        pixels = self._pixels(pair)
        gated, grid = self._gated(pair, self.model.text.embed([text]), pixels)
        gate = gated.gate[0, 0].float().reshape(-1, *grid).cpu().numpy()
        best = int(gate.max(axis=(1, 2)).argmax())
        return GateView(f"{pair.id}: {text} score {float(gated.scores[0, 0]):.2f}", pixels[best].numpy(), gate[best])

    def export(self, run: Path, is_first: bool) -> Numbers:
        """Weights, model.json and tokenizer.json for `load_trained`; `branch.safetensors` for `init`."""
        lora = self.trunk_config.lora
        state = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        branch = {name: whole(tensor) for name, tensor in self.branch.state_dict().items()}
        metrics = self._measure()
        if not is_first:
            return {}
        state = merged_state(state, lora.alpha / lora.rank) if lora is not None else state
        with output_errors(run):
            for name, tensors in ((MODEL_WEIGHTS, state), ("branch.safetensors", branch)):
                save_file(tensors, run / "weights.tmp")
                (run / "weights.tmp").replace(run / name)
        write_text(run / MODEL_CONFIG, self.model.config.model_dump_json(indent=2))
        write_text(run / MODEL_TOKENIZER, self.model.text.tokenizer.to_str())
        write_json(run / "metrics.json", metrics)
        return mean_metrics(metrics)

    @torch.no_grad()
    def _measure(self) -> Metrics:
        """AUROC of "There is a ..." for each finding of the validation reports; nothing without such reports."""
        pairs = self.held_out
        if not pairs:
            return {}
        self.model.eval()
        texts = self.model.text.embed([f"There is {concept}." for concept in CONCEPTS])
        scores = torch.cat([self._gated(pair, texts)[0].scores for pair in pairs], dim=1).float().cpu().numpy()
        verdicts = [np.array(presence_verdicts(concept, [pair.report for pair in pairs])) for concept in CONCEPTS]
        self._train_mode()
        rows = zip(CONCEPTS, verdicts, scores, strict=True)
        return {concept: row for concept, verdict, score in rows if (row := presence_metrics(verdict, score))}

    def _pixels(self, pair: Pair) -> torch.Tensor:
        return pair_pixels(pair, self.config.branch.preprocess, self.data.max_slices)

    def _gated(
        self, pair: Pair, texts: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> tuple[GatedScores, tuple[int, ...]]:
        """Scores and token grid of one image; its pixels, if they are at hand."""
        if self.cache is not None:
            known = self.cache.read(pair)
            return self.branch(known.tokens[None].to(self.ranks.device), known.grid, texts), known.grid
        pixels = self._pixels(pair) if pixels is None else pixels
        features = self.model.branch_features(pixels[None].to(self.ranks.device), self.kind)
        return self.branch(features.tokens, features.grid, texts), features.grid


def gather_sum(value: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, without gradient."""
    total = value.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total
