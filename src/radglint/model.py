"""GlintModel: one image trunk, one text tower, and per modality a mixer and a gate.

    pixels -> trunk (frozen or trained) -> patch tokens -> TokenMixer -> SparseGate <- TextAdapter <- text tower <- text

A checkpoint may hold one branch (a CXR model, a CT model) or both over one shared trunk, as `nano` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from tokenizers import Tokenizer
from torch import nn

from radglint.alignment import Alignment, align
from radglint.encoders.backbones import build_backbone, image_encoder
from radglint.encoders.features import PatchFeatures, grey_to_channels, join_layers
from radglint.encoders.mixer import MixerConfig, TokenMixer
from radglint.encoders.text import TextEncoder
from radglint.encoders.video import VideoEncoder
from radglint.errors import ConfigError
from radglint.gate import GateConfig, GatedScores, SparseGate
from radglint.place import Place, PlaceField, place_prior
from radglint.preprocess import PreprocessConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BranchConfig(_Config):
    """What is particular to one modality."""

    preprocess: PreprocessConfig = Field(discriminator="kind")
    trunk_layers: tuple[PositiveInt, ...] = ()  # earlier trunk blocks whose tokens stand beside the last ones
    mixer: MixerConfig = MixerConfig()
    gate: GateConfig = GateConfig()
    text_hidden: PositiveInt = 512  # width of the text adapter's hidden layer
    initial_logit_scale: PositiveFloat = 1 / 0.07  # of the contrastive loss, learnt; 10 for the sigmoid form
    initial_logit_bias: float | None = None  # learnt, for the sigmoid form only: -10; None = no such tensor
    place_field: bool = False  # a head that knows the lungs and their sides, for findings that lie nowhere else
    score_window_slices: PositiveInt | None = None  # a volume's score is that of its best run of slices; None = all


class GlintConfig(_Config):
    """Everything needed to rebuild the model around its weights."""

    architecture: Literal["glint"] = "glint"
    name: str
    image_backbone: dict[str, Any]  # the transformers configuration, with model_type
    text_backbone: dict[str, Any]
    max_text_tokens: PositiveInt = 128
    num_trainable_blocks: int = 0  # last blocks of the image trunk that are trained; -1 = all
    train_text: bool = True
    branches: dict[Literal["CXR", "CT"], BranchConfig]

    @model_validator(mode="after")
    def _branches_fit(self) -> GlintConfig:
        for modality, branch in self.branches.items():
            if branch.preprocess.kind != modality:
                raise ValueError(f"branch {modality} has a {branch.preprocess.kind} preprocessing")
        if not self.branches:
            raise ValueError("at least one branch (CXR or CT) is needed")
        return self


@dataclass(frozen=True)
class GlintOutput:
    """Scores of a batch and what the losses need.

    Attributes:
        gated: scores, gate logits and gate of every text on every image.
        layers: raw trunk tokens of the requested blocks, for Dense Feature Regularization.
    """

    gated: GatedScores
    layers: dict[int, torch.Tensor]


class TextAdapter(nn.Module):
    """A residual two-layer map from the sentence embedding to the gate's text input."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`texts embed` in and out; unit-length input is first brought to unit variance."""
        scaled = embeddings * embeddings.shape[-1] ** 0.5
        return scaled + self.layers(scaled)


class GlintBranch(nn.Module):
    """Mixer, text adapter and gate of one modality, with the loss's temperature and, if asked for, its bias."""

    def __init__(self, trunk_dim: int, text_dim: int, config: BranchConfig) -> None:
        super().__init__()
        token_dim = trunk_dim * (1 + len(config.trunk_layers))
        self.mixer = TokenMixer(token_dim, config.mixer)
        self.text_adapter = TextAdapter(text_dim, config.text_hidden)
        self.gate = SparseGate(config.mixer.width, text_dim, config.gate)
        self.place = PlaceField(token_dim) if config.place_field else None
        self.logit_scale = nn.Parameter(torch.tensor(config.initial_logit_scale).log())
        bias = config.initial_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        trunk_tokens: torch.Tensor,
        grid: tuple[int, ...],
        texts: torch.Tensor,
        valid: bool = False,
        kept: torch.Tensor | None = None,
        places: Sequence[Place] | None = None,
    ) -> GatedScores:
        """Score texts on cached trunk tokens: the fast path when the trunk is frozen.

        Args:
            trunk_tokens: `batch depth patches embed`.
            grid: `(height, width)` of one slice.
            texts: `texts embed`, from the text tower.
            valid: score only the slices that see all their neighbours; the outer ones are context.
            kept: patches of each slice that enter, as indices into the grid; None = all.
            places: where each text looks; None = anywhere. Without a place field everywhere all the same.
        """
        prior = None if places is None else self.place_prior(trunk_tokens, grid, places, valid, kept)
        return self.gate(self.mixer(trunk_tokens, grid, valid, kept), self.text_adapter(texts), prior)

    def place_prior(
        self, trunk_tokens: torch.Tensor, grid: tuple[int, ...], places: Sequence[Place], valid: bool = False,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor | None:  # fmt: skip
        """`texts batch tokens` to add to the gate's logits, None without a place field; arguments as in `forward`."""
        if self.place is None:
            return None
        reach = self.mixer.reach if valid else 0
        inner = trunk_tokens[:, reach : trunk_tokens.shape[1] - reach]
        field = self.place(inner, grid).unflatten(-1, (inner.shape[1], -1))
        return place_prior((field if kept is None else field[..., kept]).flatten(2), places)

    def align(
        self,
        trunk_tokens: torch.Tensor,
        grid: tuple[int, ...],
        texts: torch.Tensor,
        valid: bool = False,
        kept: torch.Tensor | None = None,
    ) -> Alignment:
        """What the losses need of `forward`, in memory that does not grow with the sentences; arguments as there."""
        return align(self.gate, self.mixer(trunk_tokens, grid, valid, kept), self.text_adapter(texts))

    def align_with_contents(
        self,
        trunk_tokens: torch.Tensor,
        grid: tuple[int, ...],
        texts: torch.Tensor,
        valid: bool = False,
        kept: torch.Tensor | None = None,
    ) -> tuple[Alignment, torch.Tensor, torch.Tensor]:
        """`align`, and the contents that a local loss compares, see `SparseGate.contents`; arguments as there."""
        mixed, asked = self.mixer(trunk_tokens, grid, valid, kept), self.text_adapter(texts)
        return align(self.gate, mixed, asked), *self.gate.contents(mixed, asked)


class GlintModel(nn.Module):
    """Image and text to gated scores.

    Args:
        config: architecture.
        tokenizer: fast tokenizer of the text tower.

    Raises:
        ConfigError: a CXR branch on a video trunk.
    """

    def __init__(self, config: GlintConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.trunk = image_encoder(build_backbone(config.image_backbone))
        if isinstance(self.trunk, VideoEncoder) and "CXR" in config.branches:
            raise ConfigError(f"{config.name}: a video trunk serves CT only; give the CXR branch a ViT trunk")
        self.text = TextEncoder(build_backbone(config.text_backbone), tokenizer, config.max_text_tokens)
        sizes = (self.trunk.embed_dim, self.text.embed_dim)
        self.branches = nn.ModuleDict({m: GlintBranch(*sizes, b) for m, b in config.branches.items()})
        self._freeze()

    def _freeze(self) -> None:
        """Leave only the configured blocks of the trunk trainable."""
        self.text.requires_grad_(self.config.train_text)
        trained = self.config.num_trainable_blocks
        self.trunk.requires_grad_(trained == -1)
        if trained > 0:
            for block in trunk_blocks(self.trunk)[-trained:]:
                block.requires_grad_(True)

    def branch(self, modality: str) -> GlintBranch:
        """The branch of a modality, "CXR" or "CT".

        Raises:
            ConfigError: this model has none.
        """
        if modality not in self.branches:
            raise ConfigError(f"model {self.config.name} has no {modality} branch, only {', '.join(self.branches)}")
        branch = self.branches[modality]
        assert isinstance(branch, GlintBranch)
        return branch

    def trunk_features(self, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> PatchFeatures:
        """Trunk tokens of a batch.

        Args:
            pixels: `batch depth height width` in [0, 1]; depth is 1 for a radiograph, slices for CT.
            layers: blocks whose raw tokens are wanted too.

        Returns:
            PatchFeatures with tokens `batch depth patches embed`, one layer per slice whatever the trunk's tubelet, and
            the grid of one slice. `layers` keeps the trunk's own token order.
        """
        video = isinstance(self.trunk, VideoEncoder)
        features = self.trunk(pixels if video else grey_to_channels(pixels.flatten(0, 1)), layers)
        return PatchFeatures(self._by_slice(features.tokens, pixels.shape), features.grid[-2:], features.layers)

    def _by_slice(self, tokens: torch.Tensor, pixels_shape: torch.Size) -> torch.Tensor:
        """The trunk's own order to `batch depth patches embed`."""
        batch, depth = pixels_shape[:2]
        if not isinstance(self.trunk, VideoEncoder):
            return tokens.unflatten(0, (batch, depth))
        per_tubelet = tokens.unflatten(1, (-(-depth // self.trunk.tubelet), -1))
        return per_tubelet.repeat_interleave(self.trunk.tubelet, dim=1)[:, :depth]  # one layer per slice again

    def branch_features(self, pixels: torch.Tensor, modality: str, layers: tuple[int, ...] = ()) -> PatchFeatures:
        """What the branch of a modality reads: `trunk_features`, with the branch's `trunk_layers` joined to the tokens.

        Args:
            pixels: as there.
            modality: "CXR" or "CT".
            layers: as there.
        """
        own = self.config.branches[modality].trunk_layers  # pyright: ignore[reportArgumentType]
        features = self.trunk_features(pixels, tuple(dict.fromkeys((*layers, *own))))
        inner = [self._by_slice(features.layers[k], pixels.shape) for k in own]
        return PatchFeatures(join_layers(features.tokens, inner), features.grid, features.layers)

    def forward(
        self,
        pixels: torch.Tensor,
        sentences: Sequence[str],
        modality: Literal["CXR", "CT"],
        layers: tuple[int, ...] = (),
    ) -> GlintOutput:
        """Score sentences on a batch of images, with gradient where parameters are trainable.

        Args:
            pixels: `batch depth height width` in [0, 1], from `preprocess`.
            sentences: any number of texts.
            modality: which branch answers.
            layers: trunk blocks to return for Dense Feature Regularization.
        """
        features = self.branch_features(pixels, modality, layers)
        gated = self.branch(modality)(features.tokens, features.grid, self.text.embed(sentences))
        return GlintOutput(gated, features.layers)


def trunk_blocks(trunk: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a trunk, first to last: its longest list of equal modules."""
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len({type(x) for x in m}) == 1]
    if not lists:
        raise ConfigError(f"{type(trunk).__name__} has no list of blocks to train in part")
    return list(max(lists, key=len))
