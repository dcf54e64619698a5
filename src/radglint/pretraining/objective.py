"""Masked-token prediction with a moving-average teacher.

    scan --------------------> teacher (average of past students) -> tokens -> centred target ----+
    scan, patches hidden ----> student -> tokens -> predictor -> prediction at hidden patches ----+-> smooth L1

The target is a feature, not a pixel, so noise need not be predicted; it comes from the whole scan, so it holds context.
Features that say less are easier to predict. What keeps them from it: the teacher is slow, the target is centred and
scaled, the predictor is not the teacher's, and, where `expansion_weight` is set, using all directions is paid for.

Reference: the target is that of data2vec (Baevski et al. 2022, arXiv 2202.03555), the mask token that of iBOT (Zhou et
al. 2022, arXiv 2111.07832), the predictor that of I-JEPA (Assran et al. 2023, arXiv 2301.08243), tubes those of V-JEPA
(Bardes et al. 2024, arXiv 2404.08471), the expansion that of SimDINO (Wu et al. 2025, arXiv 2502.10385). Differs:
hidden patches become a mask token in every trunk, where I-JEPA and V-JEPA drop them, so that one form serves all;
channels are centred and scaled by running statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from radglint.encoders.backbones import image_encoder
from radglint.encoders.features import grey_to_channels
from radglint.encoders.video import VideoEncoder
from radglint.errors import ConfigError
from radglint.pretraining.config import PretrainConfig

NORM_EPS = 1e-5
CODING_EPSILON = 0.5  # as in SimDINO


class PatchTrunk(nn.Module):
    """A 2D or 3D trunk behind one call: a run of slices to tokens, with patches hidden on request.

    Args:
        backbone: a `transformers` model that `image_encoder` takes.
        num_target_blocks: how many of the last blocks the target is made of.

    Raises:
        ConfigError: fewer blocks than that, or no patch embedding to hide patches in.
    """

    def __init__(self, backbone: nn.Module, num_target_blocks: int) -> None:
        super().__init__()
        self.adapter = image_encoder(backbone)
        self._whole = (backbone,)  # not a submodule: a V-JEPA 2 model also holds a predictor, which is not trained here
        kind, blocks = self.whole.config.model_type, self.adapter.num_blocks
        if num_target_blocks > blocks:
            raise ConfigError(f"target.blocks: {num_target_blocks} asked of a trunk {kind!r} with {blocks} blocks")
        if not isinstance(getattr(self._embeddings, "patch_embeddings", None), nn.Module):
            raise ConfigError(f"backbone {kind!r}: its patches cannot be hidden; use DINOv2, DINOv3, ViT or V-JEPA 2")
        self.target_blocks = tuple(range(blocks - num_target_blocks + 1, blocks + 1))

    @property
    def whole(self) -> Any:
        """The `transformers` model with everything that its folder holds."""
        return self._whole[0]

    @property
    def _embeddings(self) -> Any:
        return getattr(self.adapter.backbone, "embeddings", None)

    @property
    def is_video(self) -> bool:
        """Whether slices are frames of one input (V-JEPA 2) and not inputs of their own."""
        return isinstance(self.adapter, VideoEncoder)

    def grid(self, slices: int, side_px: int) -> tuple[int, int, int]:
        """Token layers, patches down, patches across of a sample."""
        layers = -(-slices // self.adapter.tubelet) if isinstance(self.adapter, VideoEncoder) else slices
        return (layers, side_px // self.adapter.patch_px, side_px // self.adapter.patch_px)

    def own_mask_token(self) -> torch.Tensor | None:
        """The trunk's mask token, flat, or None if it has none."""
        token = getattr(self._embeddings, "mask_token", None)
        return None if token is None else token.flatten()

    def forward(
        self, pixels: torch.Tensor, hidden: torch.Tensor | None = None, mask_token: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode a batch.

        Args:
            pixels: `batch slices height width` in [0, 1].
            hidden: `batch tokens`, bool; None hides nothing.
            mask_token: `embed`, stands in for a hidden patch before positions are added.

        Returns:
            Tokens of the last layer and raw tokens of the target blocks, each `batch tokens embed`.
        """
        batch, slices = pixels.shape[:2]
        image = pixels if self.is_video else grey_to_channels(pixels.flatten(0, 1))
        covered = nullcontext()
        if hidden is not None and mask_token is not None:
            rows = hidden if self.is_video else hidden.unflatten(1, (slices, -1)).flatten(0, 1)
            covered = hidden_patches(self._embeddings.patch_embeddings, rows, mask_token)
        with covered:
            features = self.adapter(image, self.target_blocks)
        tokens = [features.tokens, *(features.layers[block] for block in self.target_blocks)]
        last, *inner = [t if self.is_video else t.unflatten(0, (batch, slices)).flatten(1, 2) for t in tokens]
        return last, inner


@contextmanager
def hidden_patches(patch_embeddings: nn.Module, hidden: torch.Tensor, mask_token: torch.Tensor) -> Iterator[None]:
    """Replace the embeddings of hidden patches while the block runs.

    Args:
        patch_embeddings: the module from pixels to `batch patches embed` or `batch embed height width`.
        hidden: `batch patches`, bool.
        mask_token: `embed`.
    """

    def replace(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        token = mask_token.to(output.dtype)
        if output.ndim == 4:
            return torch.where(hidden.unflatten(1, output.shape[-2:])[:, None], token[:, None, None], output)
        return torch.where(hidden[..., None], token, output)

    handle = patch_embeddings.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


class RunningNorm(nn.Module):
    """Centre and scale each channel by running statistics, so that no constant channel can dominate the target.

    Args:
        dim: number of channels.
        momentum: share of the past; the first batch sets the statistics.
    """

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("num_updates", torch.zeros(()))
        self.mean: torch.Tensor
        self.variance: torch.Tensor
        self.num_updates: torch.Tensor

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Take in a batch, `... embed`."""
        rows = features.flatten(0, -2).float()
        keep = self.momentum if self.num_updates > 0 else 0.0
        self.mean.lerp_(rows.mean(dim=0), 1 - keep)
        self.variance.lerp_(rows.var(dim=0, unbiased=False), 1 - keep)
        self.num_updates += 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`... embed` in and out."""
        return (features - self.mean) / (self.variance + NORM_EPS).sqrt()


class TokenPredictor(nn.Module):
    """A narrow transformer over all tokens of a sample, so that a hidden patch can be told from other slices too."""

    def __init__(self, embed_dim: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Linear(embed_dim, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, embed_dim)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int, int], hidden: torch.Tensor) -> torch.Tensor:
        """`batch tokens embed` to the prediction at the hidden tokens, `hidden embed`, sample by sample."""
        x = self.enter(tokens) + position_code(grid, self.enter.out_features, tokens.device)
        for layer in self.layers:
            x = layer(x)
        return self.leave(self.norm(x[hidden]))


def position_code(grid: tuple[int, int, int], width: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines of layer, row and column, `tokens width`, float32; `width` is a multiple of 6."""
    frequencies = 10000.0 ** -(torch.arange(width // 6, device=device) / (width // 6))
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    angles = (places[..., None] * frequencies).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def block_average(inner: list[torch.Tensor]) -> torch.Tensor:
    """Mean over blocks of the tokens, each brought to zero mean and unit variance: `batch tokens embed`, float32."""
    normal = [functional.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in inner]
    return torch.stack(normal).mean(dim=0)


def masked_smooth_l1(prediction: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, beta: float) -> torch.Tensor:
    """Mean smooth L1 distance at the hidden tokens.

    Args:
        prediction: `hidden embed`, sample by sample.
        target: `batch tokens embed`.
        hidden: `batch tokens`, bool, the same number in every sample.
        beta: where the square turns into a straight line.

    Returns:
        Scalar.

    Naive form: mean over b, over p with hidden[b, p], over c of h(|prediction - target[b, p, c]|), where
    h(d) = d * d / (2 * beta) if d < beta else d - beta / 2.
    """
    return functional.smooth_l1_loss(prediction.float(), target[hidden].float(), beta=beta)


def coding_rate(rows: torch.Tensor, epsilon: float = CODING_EPSILON) -> torch.Tensor:
    """How many bits a channel takes, on average, to say which row it is, to within `epsilon`.

    Args:
        rows: `tokens embed`; they are centred and brought to unit length first.
        epsilon: distance that does not matter, in lengths of a row.

    Returns:
        Scalar, in nats a channel; 0 only when all rows are equal, largest when all directions are used alike.

    Naive form: log det(I + embed / epsilon ** 2 * mean over n of outer(z[n], z[n])) / (2 * embed), where
    z[n] = (rows[n] - mean row) / |rows[n] - mean row|.
    """
    with torch.autocast(rows.device.type, enabled=False):
        values = rows if rows.dtype == torch.float64 else rows.float()
        unit = functional.normalize(values - values.mean(dim=0), dim=-1)
        count, width = unit.shape
        spread = torch.eye(width, dtype=unit.dtype, device=unit.device) + unit.mT @ unit * (width / epsilon**2 / count)
        return torch.logdet(spread) / (2 * width)


class MaskedPrediction(nn.Module):
    """Student, teacher, predictor and the statistics of the target.

    Args:
        backbone: the student; the teacher starts as its copy.
        config: the run.

    Raises:
        ConfigError: trunk and data do not fit.
    """

    def __init__(self, backbone: nn.Module, config: PretrainConfig) -> None:
        super().__init__()
        self.beta = config.optimizer.smooth_l1_beta
        self.expansion_weight = config.target.expansion_weight
        self.student = PatchTrunk(backbone, config.target.blocks)
        check_fit(self.student, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        dim, predictor = self.student.adapter.embed_dim, config.predictor
        self.predictor = TokenPredictor(dim, predictor.width, predictor.layers, predictor.heads)
        self.target_norm = RunningNorm(dim, config.target.norm_momentum)
        has_token = self.student.own_mask_token() is not None
        self.mask_token = None if has_token else nn.Parameter(torch.zeros(dim))
        self.grid = self.student.grid(config.data.slices, config.data.crop_px)

    def train(self, mode: bool = True) -> MaskedPrediction:
        """Like `nn.Module.train`, but the teacher never drops anything."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The teacher's features before they are centred: `batch tokens embed`, float32."""
        return block_average(self.teacher(pixels)[1])

    def forward(
        self, pixels: torch.Tensor, hidden: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of a batch.

        Args:
            pixels: `batch slices height width` in [0, 1], what the student sees a part of.
            hidden: `batch tokens`, bool.
            target: `batch tokens embed`, centred.

        Returns:
            The distance of the prediction, and the loss to descend, which also pays for expansion.
        """
        token = self.student.own_mask_token() if self.mask_token is None else self.mask_token
        tokens, inner = self.student(pixels, hidden, token)
        distance = masked_smooth_l1(self.predictor(tokens, self.grid, hidden), target, hidden, self.beta)
        if self.expansion_weight == 0:
            return distance, distance
        return distance, distance - self.expansion_weight * coding_rate(block_average(inner)[~hidden])

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: `teacher = momentum * teacher + (1 - momentum) * student`."""
        for past, now in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            past.lerp_(now, 1 - momentum)
        for past, now in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            past.copy_(now)


def check_fit(trunk: PatchTrunk, config: PretrainConfig) -> None:
    """Whether trunk and data fit.

    Raises:
        ConfigError: another patch size, a video trunk for radiographs, or slices that are not whole tubelets.
    """
    data, patch = config.data, trunk.adapter.patch_px
    if data.preprocess.patch_px != patch:
        got = data.preprocess.patch_px
        raise ConfigError(f"data.preprocess.patch_px: the trunk's patches have {patch} px, got {got}")
    if trunk.is_video and data.preprocess.kind == "CXR":
        raise ConfigError("backbone: a video trunk takes CT only; give radiographs a ViT")
    tubelet = getattr(trunk.adapter, "tubelet", 1)
    if data.slices % tubelet:
        raise ConfigError(f"data.slices: must be a multiple of the trunk's tubelet {tubelet}, got {data.slices}")
