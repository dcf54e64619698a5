"""Train one branch on cached trunk tokens and sentences: the fast path for a frozen trunk and text tower.

A case is an image as its trunk tokens, with the facts that its report states; the report is written anew, in other
words, each time the case is drawn. Masks, where a simulator knows them, are for `score_cases` only and never enter
the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from radglint.alignment import Alignment
from radglint.cases import Case
from radglint.losses import (
    ContrastKind,
    SparsityKind,
    contrastive_loss,
    evidence_of_rows,
    evidence_rows,
    sparsity_of_sums,
)
from radglint.losses_local import LocalKind, alike_sentences, local_loss, local_rows
from radglint.model import GlintBranch
from radglint.place import Place
from radglint.precision import autocast
from radglint.simulation.entailment import Verdict, holds_for, spoken
from radglint.simulation.sentences import Fact, write

NOT_IN_LABELS = frozenset(
    {
        *("pacemaker", "central line", "endotracheal tube", "chest tube"),
        *("calcified nodule", "ground-glass opacity", "rib fracture"),
    }
)  # the labels of a real image say nothing of these, so they are neither positive nor negative there
# How many patches of 14 px or 14 mm show a finding at the least, if it is small, medium or large. Rough, from
# experience of radiology and not from masks: it keeps the map from settling on the one most telling patch.
SHOWN_PATCHES = {
    "nodule": (1, 2, 3), "calcified nodule": (1, 1, 2), "mass": (3, 6, 10), "rib fracture": (1, 1, 1),
    "consolidation": (6, 12, 24), "ground-glass opacity": (6, 12, 24), "pleural effusion": (4, 10, 30),
    "pneumothorax": (6, 14, 30), "atelectasis": (3, 6, 8), "interstitial pattern": (20, 40, 60),
    "emphysema": (20, 40, 60), "cardiomegaly": (6, 10, 16), "pacemaker": (4, 4, 4), "central line": (4, 4, 4),
    "endotracheal tube": (3, 3, 3), "chest tube": (4, 4, 4),
}  # fmt: skip
SIZES = ("small", "medium", "large")
EVIDENCE_RAMP = 100  # steps; at full weight from the start the evidence loss can hold the gate on its first plateau
LEAST_SHOWN = 2.0  # patches that must be left of a finding, on average, for a step that leaves patches out
Embed = Callable[[Sequence[str]], torch.Tensor]


class FitConfig(BaseModel):
    """One training run of a branch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: PositiveInt = 600
    batch: PositiveInt = 48  # images per step
    group_size: PositiveInt = 1  # cases of one group drawn together: one body with different findings
    valid_depth: bool = False  # the outer slices of each case are context for the mixer and outside the bag
    learning_rate: float = 7e-4  # peak, after a linear warm-up and before a cosine to zero
    warmup_steps: int = 40
    weight_decay: float = 0.05
    token_shift: NonNegativeFloat = 0.0  # random gain and offset of each image's channels, in their standard deviations
    sentences_per_fact: PositiveInt = 2
    loss: ContrastKind = "info_nce"  # between sentences and images; sigmoid needs a branch with a logit bias
    local: LocalKind = "none"  # a local loss of an earlier method beside it, see `radglint.losses_local`
    local_weight: NonNegativeFloat = 1.0
    sparsity: SparsityKind = "none"
    sparsity_weight: float = 0.0
    sparsity_budget: float = 0.05  # for the budget form: share of patches that a positive sentence may use
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)  # of the patches, up to this share is left out of a step
    evidence_weight: NonNegativeFloat = 0.0  # of `evidence_loss` on the map logits; 0 = off
    evidence_from_step: NonNegativeInt = 0  # its weight rises over the next `EVIDENCE_RAMP` steps; 0 = full at once
    evidence_offset: float = 4.0  # the map logit that is neither yes nor no
    in_lungs: tuple[str, ...] = ()  # concepts whose gate opens in the lungs only, at the height that is said
    patches_per_token: PositiveInt = 1  # patches of 14 px or 14 mm that a token stands for, see `SHOWN_PATCHES`
    gradient_clip: float = 1.0
    seed: int = 0

    @model_validator(mode="after")
    def _places_need_maps(self) -> FitConfig:
        if self.in_lungs and not self.evidence_weight:
            raise ValueError("in_lungs needs evidence_weight above 0: without maps the loss has no place to look")
        return self

    @model_validator(mode="after")
    def _one_way_to_see_patches(self) -> FitConfig:
        if self.local != "none" and self.evidence_weight:
            raise ValueError(f"local {self.local!r} needs evidence_weight = 0: it stands for another method's loss")
        return self


class SentencePool:
    """Sentences of every fact, written and embedded once by the frozen text tower."""

    def __init__(self, cases: Sequence[Case], embed: Embed, variants: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        facts = sorted({fact for case in cases for fact in case.facts}, key=repr)
        written = {fact: [write(fact, rng) for _ in range(variants)] for fact in facts}
        texts = sorted({text for options in written.values() for text in options})
        row = {text: k for k, text in enumerate(texts)}
        self.embeddings = embed(texts)
        self.options = {fact: [(row[t], spoken(fact, t)) for t in sorted(set(ts))] for fact, ts in written.items()}

    def draw(self, cases: Sequence[Case], per_fact: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Fact]]:
        """Distinct sentences for a batch: `texts embed` and what each one says."""
        chosen: dict[int, Fact] = {}
        for case in cases:
            for fact in case.facts:
                options = self.options[fact]
                for pick in rng.choice(len(options), size=min(per_fact, len(options)), replace=False):
                    chosen[options[pick][0]] = options[pick][1]
        return self.embeddings[list(chosen)], list(chosen.values())


def native_autocast() -> torch.autocast:
    """Matrix products in bfloat16 where the processor has them, else in float32: emulated, they are 6 times slower."""
    return autocast("auto", torch.device("cpu"))


def verdict(statement: Fact, case: Case) -> Verdict:
    """Whether a statement holds for a case; of what its report may be silent on, only what it names is known."""
    found = holds_for(statement, case.facts)
    return "unknown" if found == "fails" and statement.concept in case.unsaid else found


def label_pairs(statements: Sequence[Fact], cases: Sequence[Case]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which sentence holds for which image.

    Returns:
        positives and negatives, both `texts batch` bool; a pair in neither is undecided and stays out of the loss.
    """
    verdicts = [[verdict(statement, case) for case in cases] for statement in statements]
    positives = torch.tensor([[v == "holds" for v in row] for row in verdicts])
    return positives, torch.tensor([[v == "fails" for v in row] for row in verdicts])


def batch_order(cases: Sequence[Case], config: FitConfig, rng: np.random.Generator) -> Iterator[list[Case]]:
    """Endless batches, each epoch a new order; up to `group_size` cases of a group stay together.

    Telling one body's images apart takes the finding itself, where telling bodies apart takes anything.
    """
    groups: dict[str, list[int]] = {}
    for k, case in enumerate(cases):
        groups.setdefault(case.group if config.group_size > 1 else str(k), []).append(k)
    size = min(config.batch, len(cases))
    batch: list[Case] = []
    while True:
        for name in rng.permutation(sorted(groups)):
            chosen = rng.permutation(groups[name])[: config.group_size]
            batch += [cases[k] for k in chosen]
            if len(batch) >= size:
                yield batch[:size]
                batch = []


def learning_rate_factor(step: int, config: FitConfig) -> float:
    """Linear warm-up to 1, then cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def shift_channels(tokens: torch.Tensor, amount: float) -> torch.Tensor:
    """Another scanner, roughly: a random gain and offset for each channel of each image.

    Args:
        tokens: `batch depth patches embed`.
        amount: standard deviation of the gain around 1, and of the offset in standard deviations of the channel.
    """
    if amount == 0:
        return tokens
    batch, width = tokens.shape[0], tokens.shape[-1]
    spread = tokens.float().std(dim=(0, 1, 2))
    gain = 1 + amount * torch.randn(batch, 1, 1, width)
    return tokens * gain.to(tokens.dtype) + (amount * spread * torch.randn(batch, 1, 1, width)).to(tokens.dtype)


def keep_patches(num_patches: int, dropout: float) -> torch.Tensor | None:
    """In half of the steps a random subset of the patches, the same in every image and slice; None = all.

    Any part of a finding must do, so that its map does not settle on one telling patch; half the patches are half the
    work.
    """
    if dropout == 0 or torch.rand(()) < 0.5:
        return None
    share = 1 - dropout * float(torch.rand(()))
    return torch.randperm(num_patches)[: max(1, round(share * num_patches))].sort().values


def shown_patches(statement: Fact) -> int:
    """How many patches show at the least what a sentence says; without a size it may be small."""
    return SHOWN_PATCHES.get(statement.concept, (2, 4, 8))[SIZES.index(statement.size or "small")]


def evidence_weight_at(step: int, config: FitConfig) -> float:
    """Weight of the evidence loss: 0 until it begins, then rising linearly to its full value."""
    if config.evidence_from_step == 0:
        return config.evidence_weight
    return config.evidence_weight * min(max(step - config.evidence_from_step, 0) / EVIDENCE_RAMP, 1.0)


@dataclass(frozen=True)
class Asked:
    """What a batch is asked, and what its reports answer.

    Attributes:
        statements: what each sentence says.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool; a pair in neither stays out of the loss.
        least: `texts`, patches that show it at the least.
        alike: `texts texts`, bool, for a local loss; see `alike_sentences`.
    """

    statements: Sequence[Fact]
    positives: torch.Tensor
    negatives: torch.Tensor
    least: torch.Tensor
    alike: torch.Tensor


class Reading(NamedTuple):
    """What the losses need of some images; no tensor of it has an axis of tokens.

    Attributes:
        aligned: scores and sums of the gate.
        rows: `rows batch`, what the evidence loss (`evidence_rows`, both kinds one after the other) or a local loss
            (`local_rows`) is made of; no row without either.
    """

    aligned: Alignment
    rows: torch.Tensor


Read = Callable[[range], Reading]
"""Reads a run of a batch's images."""


def read_whole(read: Read, num_images: int) -> Reading:
    """All images at once; `radglint.train_cached` shares them out instead."""
    return read(range(num_images))


def branch_loss(
    branch: GlintBranch, cases: Sequence[Case], grid: tuple[int, ...], texts: torch.Tensor, statements: Sequence[Fact],
    config: FitConfig, step: int, share: Callable[[Read, int], Reading] = read_whole,
) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
    """Loss of one batch at one step, and the numbers worth logging.

    Args:
        branch: that is trained.
        cases: the batch.
        grid: `(height, width)` of one slice of tokens.
        texts: `texts embed`.
        statements: what each text says.
        config: losses and their weights.
        step: from 0.
        share: reads all images of the batch, given how to read some: on this process or on many, at once or in pieces.
    """
    tokens = shift_channels(torch.stack([case.tokens for case in cases]), config.token_shift)
    kept = keep_patches(tokens.shape[2], config.patch_dropout)
    asked = _asked(statements, cases, config, None if kept is None else len(kept) / tokens.shape[2])

    def read(images: range) -> Reading:
        some = slice(images.start, images.stop)
        inputs = (tokens[some], grid, texts, config.valid_depth, kept)
        with native_autocast():
            return _read(branch, inputs, asked, asked.positives[:, some], config)

    aligned, rows = share(read, len(cases))
    parts = _parts(branch, aligned, rows, asked, config)
    return _total(parts, config, step), _numbers(branch, aligned, parts, asked)


def _asked(statements: Sequence[Fact], cases: Sequence[Case], config: FitConfig, left: float | None) -> Asked:
    """Labels of a batch of whose patches a share is left; None = none was taken out."""
    positives, negatives = label_pairs(statements, cases)
    share = 1.0 if left is None else left
    shown = torch.tensor([share * shown_patches(s) / config.patches_per_token for s in statements])
    clear = (shown >= LEAST_SHOWN)[:, None]
    if left is not None and bool((positives & clear).any()):
        positives, negatives = positives & clear, negatives & clear  # a patch or two may be left out: not asked now
    alike = alike_sentences([[s.concept] for s in statements]) if config.local != "none" else torch.zeros(0, 0)
    return Asked(statements, positives, negatives, shown.round().clamp_min(1).long(), alike)


def _read(
    branch: GlintBranch, inputs: tuple[Any, ...], asked: Asked, positives: torch.Tensor, config: FitConfig
) -> Reading:
    """What the losses need of some images.

    Args:
        branch: that is trained.
        inputs: of `GlintBranch.align`.
        asked: the whole batch.
        positives: `texts batch`, of these images.
        config: which losses there are.
    """
    if config.evidence_weight:
        places = [Place(s.concept in config.in_lungs, s.side, s.zone) for s in asked.statements]
        gated = branch(*inputs, places)
        sums = (gated.scores, gated.gate.sum(-1), gated.gate.square().sum(-1), gated.gate.shape[-1])
        rows = evidence_rows(gated.map_logits.float() - config.evidence_offset, asked.least)
        return Reading(Alignment(*sums), rows.flatten(0, 1))
    if config.local == "none":
        aligned = branch.align(*inputs)
        return Reading(aligned, aligned.scores[:0])
    aligned, patches, wanted = branch.align_with_contents(*inputs)
    return Reading(aligned, local_rows(config.local, patches, wanted, positives, asked.alike))


def _parts(
    branch: GlintBranch, aligned: Alignment, rows: torch.Tensor, asked: Asked, config: FitConfig
) -> dict[str, torch.Tensor]:
    """The losses of the whole batch by name, not weighted."""
    positives, negatives, scale = asked.positives, asked.negatives, branch.logit_scale.exp()
    align = contrastive_loss(config.loss, aligned.scores, positives, negatives, scale, branch.logit_bias)
    kept = ~negatives if config.sparsity == "negatives" else positives  # undecided pairs are left alone here too
    sums = (aligned.gate_mass, aligned.gate_squares, aligned.num_tokens)
    parts = {"align": align, "sparsity": sparsity_of_sums(*sums, kept, config.sparsity, config.sparsity_budget)}
    if config.local != "none":
        parts["local"] = local_loss(config.local, rows, positives, negatives, asked.alike)
    if config.evidence_weight:
        parts["evidence"] = evidence_of_rows(rows.unflatten(0, (2, -1)), positives, negatives)
    return parts


def _total(parts: Mapping[str, torch.Tensor], config: FitConfig, step: int) -> torch.Tensor:
    """The weighted sum of the losses."""
    weights = {
        "align": 1.0, "sparsity": config.sparsity_weight, "local": config.local_weight,
        "evidence": evidence_weight_at(step, config),
    }  # fmt: skip
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


def _numbers(
    branch: GlintBranch, aligned: Alignment, parts: Mapping[str, torch.Tensor], asked: Asked
) -> dict[str, float]:
    """What is worth logging."""
    mass, bias = aligned.gate_mass.detach(), branch.logit_bias
    log = {name: float(part.detach()) for name, part in parts.items()}
    log |= {"mass_pos": float(mass[asked.positives].mean()), "mass_neg": float(mass[asked.negatives].mean())}
    log |= {"scale": float(branch.logit_scale.detach().exp())}
    return log | ({} if bias is None else {"bias": float(bias.detach())})


@torch.inference_mode()
def score_cases(
    branch: GlintBranch, cases: Sequence[Case], grid: tuple[int, ...], texts: torch.Tensor, chunk: int = 16,
    valid_depth: bool = False, places: Sequence[Place] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scores and map logits of fixed texts on many cases (`valid_depth`: their outer slices are context).

    Args:
        branch: put in eval mode.
        cases: all of one size.
        grid: `(height, width)` of one slice of tokens.
        texts: `texts embed`.
        chunk: cases at once.
        valid_depth: the outer slices of each case are context.
        places: where each text looks; None = anywhere.

    Returns:
        `texts cases` float32 cosine and `texts cases tokens` float16 map logits.
    """
    branch.eval()
    scores, logits = [], []
    for start in range(0, len(cases), chunk):
        tokens = torch.stack([case.tokens for case in cases[start : start + chunk]])
        with native_autocast():
            gated = branch(tokens, grid, texts, valid_depth, None, places)
        scores.append(gated.scores.float())
        logits.append(gated.map_logits.half())
    return torch.cat(scores, dim=1), torch.cat(logits, dim=1)
