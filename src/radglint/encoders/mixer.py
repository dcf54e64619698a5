"""The trainable layers between a trunk and the gate: attention inside a slice, convolution over neighbouring slices.

With one slice and `depth_kernel=1` this is RadZero's "two trainable layers on a frozen encoder"; with CT slices it is
the small 3D mixer that tells a vessel seen end on (it goes on) from a nodule (it ends).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import nn


class MixerConfig(BaseModel):
    """Size of the trainable layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    width: PositiveInt = 256
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    mlp_ratio: float = 3.0
    depth_kernel: Literal[1, 3, 5] = 1  # slices that one layer sees along depth; 1 = none
    depth_layers: PositiveInt | None = None  # how many layers, from the first, mix along depth; None = all
    attention: bool = True  # inside a slice; the trunk has had nine blocks of it, so a volume can do without
    dropout: float = 0.1  # on the incoming tokens only: attention without dropout keeps the fused kernel

    @property
    def mixing_layers(self) -> int:
        """How many layers look at neighbouring slices."""
        return 0 if self.depth_kernel == 1 else min(self.depth_layers or self.num_layers, self.num_layers)

    @property
    def reach(self) -> int:
        """How many slices on either side decide what comes out for one."""
        return self.mixing_layers * (self.depth_kernel // 2)


def position_code(height: int, width: int, num_frequencies: int, device: torch.device) -> torch.Tensor:
    """Sine and cosine of the relative position in the grid, so that other grid sizes interpolate.

    Returns:
        `(height * width) (4 * num_frequencies)`, float32; a cell's position is its centre in [0, 1].
    """
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    frequencies = math.pi * 2.0 ** torch.arange(num_frequencies, device=device)
    row_code = (rows[:, None] * frequencies)[:, None].expand(height, width, num_frequencies)
    column_code = (columns[:, None] * frequencies)[None].expand(height, width, num_frequencies)
    angles = torch.cat([row_code, column_code], dim=-1).reshape(height * width, -1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DepthMix(nn.Module):
    """Residual mixing of each token with the same place in neighbouring slices (zero outside the volume)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(kernel * width, width)

    def forward(self, tokens: torch.Tensor, valid: bool = False) -> torch.Tensor:
        """`batch depth patches width` in and out; `valid` returns only the slices with all their neighbours."""
        reach = self.kernel // 2
        normal = self.norm(tokens)
        padded = normal if valid else nn.functional.pad(normal, (0, 0, 0, 0, reach, reach))
        depth = padded.shape[1] - 2 * reach
        neighbours = torch.cat([padded[:, k : k + depth] for k in range(self.kernel)], dim=-1)
        own = tokens[:, reach : reach + depth] if valid else tokens
        return own + nn.functional.gelu(self.mix(neighbours))


class PointwiseLayer(nn.Module):
    """A transformer layer without its attention: each token alone, residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`batch tokens width` in and out."""
        return tokens + self.layers(tokens)


class TokenMixer(nn.Module):
    """Frozen trunk tokens to the tokens that the gate and the content projection read.

    Args:
        embed_dim: width of the trunk's tokens.
        config: size of the mixer.
    """

    NUM_FREQUENCIES = 4

    def __init__(self, embed_dim: int, config: MixerConfig) -> None:
        super().__init__()
        width = config.width
        self.enter = nn.Linear(embed_dim, width)
        self.drop = nn.Dropout(config.dropout)
        self.position = nn.Linear(4 * self.NUM_FREQUENCIES, width)
        mixing, self.reach = config.mixing_layers, config.reach
        self.depth_mixes = nn.ModuleList(
            DepthMix(width, config.depth_kernel) if k < mixing else nn.Identity() for k in range(config.num_layers)
        )
        self.layers = nn.ModuleList(self._layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)

    @staticmethod
    def _layer(config: MixerConfig) -> nn.Module:
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        if not config.attention:
            return PointwiseLayer(width, hidden)
        return nn.TransformerEncoderLayer(
            width, config.num_heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True
        )

    def forward(
        self, tokens: torch.Tensor, grid: tuple[int, ...], valid: bool = False, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mix tokens.

        Args:
            tokens: `batch depth patches embed` (depth 1 for a radiograph).
            grid: `(height, width)` of one slice.
            valid: return only the slices that see all their neighbours: `reach` fewer on either end.
            kept: patches of each slice that enter, as indices into the grid; None = all.

        Returns:
            `batch (depth * patches) width`.
        """
        batch = tokens.shape[0]
        if not torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(self.enter.weight.dtype)  # cached tokens are bfloat16
        code = position_code(grid[-2], grid[-1], self.NUM_FREQUENCIES, tokens.device)
        if kept is not None:
            tokens, code = tokens[:, :, kept], code[kept]
        x = self.drop(self.enter(tokens)) + self.position(code)
        for mix_depth, layer in zip(self.depth_mixes, self.layers, strict=True):
            x = mix_depth(x, valid) if isinstance(mix_depth, DepthMix) else x
            x = layer(x.flatten(0, 1)).unflatten(0, (batch, -1))
        return self.norm(x).flatten(1, 2)
