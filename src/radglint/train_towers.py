"""What the two ways of training share: towers, this process's place among all, and what a task offers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from radglint.encoders.backbones import image_encoder, load_backbone
from radglint.encoders.text import TextEncoder
from radglint.encoders.video import VideoEncoder
from radglint.encoders.vit import VitEncoder
from radglint.errors import CheckpointError, ConfigError
from radglint.model import GlintBranch
from radglint.quantize import quantize_in_place
from radglint.train_config import TextConfig, TrunkConfig
from radglint.train_log import GateView

Numbers = dict[str, float]


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Task(Protocol):
    """What the engine trains: data, loss and results of one way of training."""

    module: nn.Module
    towers: Sequence[tuple[nn.Module, Sequence[nn.Module]]]

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """The batches of steps `start` to `stop`; each is a function of seed and step."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[torch.Tensor, Numbers] | None:
        """The loss of the whole batch, the same on every process, and its parts; None if nothing can be learnt."""
        ...

    def keep(self, batch: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """This process's part of a batch as tensors and JSON, to look at when it broke the run."""
        ...

    def views(self) -> list[GateView]:
        """Gates on fixed validation cases; every process must ask."""
        ...

    def export(self, run: Path, is_first: bool) -> Numbers:
        """Write the weights (the first process; all must call), and measure them where that is possible."""
        ...


def load_text_tower(config: TextConfig) -> TextEncoder:
    """The text tower in eval mode, frozen or trained.

    Raises:
        CheckpointError: its weights or its tokenizer.json cannot be read.
    """
    backbone = load_backbone(config.source, local_files_only=not config.allow_download)
    if config.round_int8:
        backbone = quantize_in_place(backbone)
    tower = TextEncoder(backbone, _tokenizer(config), config.max_text_tokens).eval()
    return tower.requires_grad_(config.trained)


def _tokenizer(config: TextConfig) -> Tokenizer:
    try:
        path = Path(config.source) / "tokenizer.json"
        return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(config.source)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"text.source {config.source}: no tokenizer.json ({error}); give a whole folder"
        ) from error


def load_teacher(config: TrunkConfig, trunk: VitEncoder | VideoEncoder) -> VitEncoder | VideoEncoder:
    """The frozen trunk that an anchor holds the trained one to: `anchor.source`, or a copy of the trunk as it is now.

    Args:
        config: with an anchor.
        trunk: before any of its weights is trained.

    Raises:
        CheckpointError: the teacher cannot be loaded.
        ConfigError: its tokens cannot be compared with the trunk's, patch by patch.
    """
    source = config.anchor.source
    if source is None:
        teacher = copy.deepcopy(trunk)
    else:
        teacher = image_encoder(load_backbone(source, local_files_only=not config.allow_download))
    _check_teacher(config, trunk, teacher)
    return teacher.eval().requires_grad_(False)


def _check_teacher(config: TrunkConfig, trunk: VitEncoder | VideoEncoder, teacher: VitEncoder | VideoEncoder) -> None:
    anchor = config.anchor
    for name, tower in (("trunk.source", trunk), ("trunk.anchor.source", teacher)):
        if max(anchor.blocks) > tower.num_blocks:
            raise ConfigError(
                f"trunk.anchor.blocks: {list(anchor.blocks)} asked of {name}, whose blocks are 1 to {tower.num_blocks}"
            )
    if _patches(teacher) != _patches(trunk):
        raise ConfigError(
            f"trunk.anchor.source {anchor.source}: has {_patches(teacher)}, expected {_patches(trunk)} as trunk.source "
            "has: the anchor compares patch by patch; choose a teacher with these patches"
        )
    if anchor.form == "cosine" and teacher.embed_dim != trunk.embed_dim:
        raise ConfigError(
            f"trunk.anchor.source {anchor.source}: form 'cosine' needs tokens as wide as those of trunk.source, "
            f"{trunk.embed_dim}, got {teacher.embed_dim}; set form = 'gram', which compares similarities, or choose a "
            "teacher of that width"
        )


def _patches(tower: VitEncoder | VideoEncoder) -> str:
    """What decides the grid of tokens of an image, as a message names it."""
    depth = f"{tower.tubelet} slices" if isinstance(tower, VideoEncoder) else "one slice"
    return f"patches of {tower.patch_px} px on {depth}"


def load_branch(branch: GlintBranch, init: Path | None) -> None:
    """Start from the weights of another run, if any.

    Raises:
        CheckpointError: the file cannot be read, or is of a branch of another form.
    """
    if init is None:
        return
    try:
        branch.load_state_dict(load_file(init), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"init {init}: not the weights of this branch ({first}); check [branch]") from error
