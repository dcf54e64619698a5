"""3D encoder: V-JEPA 2 of `transformers` over slices as frames, at any volume size, behind the same call as the ViT."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from radglint.encoders.features import PatchFeatures, grey_to_channels
from radglint.errors import ConfigError


class GridPositions:
    """Rotary positions of the tokens of the volume at hand, shared by every attention layer of one encoder.

    `transformers` counts positions along the pretraining grid, which is wrong for any other height or width. Here the
    centres of the tokens are spread over the pretraining grid instead, so a volume of the pretraining size gets exactly
    the original positions and other sizes interpolate between them. Along depth positions count 0, 1, 2, ... and are
    compressed only if there are more token layers than in pretraining.

    Args:
        depth: token layers in pretraining.
        side: tokens along one side of a frame in pretraining.
    """

    def __init__(self, depth: int, side: int) -> None:
        self.depth = depth
        self.side = side
        self.grid = (depth, side, side)

    def __call__(self, x: torch.Tensor, masks: Any = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Depth, row and column position of every token, each `tokens`, float32; stands in for transformers' own."""
        layers, rows, columns = self.grid
        spans = (min(layers, self.depth), self.side, self.side)
        axes = [_spread(n, span, x.device) for n, span in zip((layers, rows, columns), spans, strict=True)]
        depth, row, column = torch.meshgrid(*axes, indexing="ij")
        return depth.flatten(), row.flatten(), column.flatten()


def _spread(count: int, span: int, device: torch.device) -> torch.Tensor:
    """Centres of `count` equal cells over `span` unit cells, whose own centres are 0, 1, ..., span - 1."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (span / count) - 0.5


class VideoEncoder(nn.Module):
    """Patch tokens, grid and intermediate layers of a V-JEPA 2 encoder. Its predictor is dropped.

    Args:
        backbone: a `transformers.VJEPA2Model`.

    Raises:
        ConfigError: the backbone is not of that form, or its input is not three channels.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        config: Any = backbone.config
        if not hasattr(backbone, "encoder") or not hasattr(config, "tubelet_size"):
            raise ConfigError(f"encoder {config.model_type!r} has no tubelets: a V-JEPA 2 model is needed")
        if config.in_chans != 3 or not isinstance(config.patch_size, int):
            got = f"in_chans {config.in_chans}, patch_size {config.patch_size}"
            raise ConfigError(f"V-JEPA 2 encoder: 3 channels and square patches are needed, got {got}")
        self.backbone: Any = backbone.encoder
        self.patch_px = int(config.patch_size)
        self.tubelet = int(config.tubelet_size)
        self.embed_dim = int(config.hidden_size)
        self.num_blocks = int(config.num_hidden_layers)
        self.positions = GridPositions(
            max(1, config.frames_per_clip // self.tubelet), max(1, config.crop_size // self.patch_px)
        )
        for block in self.backbone.layer:
            block.attention.get_position_ids = self.positions

    def forward(self, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> PatchFeatures:
        """Encode a batch of volumes.

        Args:
            pixels: `batch depth height width` in [0, 1], slices as frames; height and width multiples of the patch
                size. The last slice is repeated until the depth is a multiple of `tubelet`.
            layers: block numbers (1 to `num_blocks`) whose raw tokens are wanted too.

        Returns:
            PatchFeatures on a grid of `(ceil(depth / tubelet), height / patch, width / patch)`: one token layer stands
            for `tubelet` slices.

        Raises:
            ConfigError: a side is not a multiple of the patch size, or a layer does not exist.
        """
        batch, depth, height, width = pixels.shape
        if height % self.patch_px or width % self.patch_px:
            raise ConfigError(f"image sides {(height, width)} are not multiples of {self.patch_px} px")
        if any(not 1 <= layer <= self.num_blocks for layer in layers):
            raise ConfigError(f"layers {layers} asked of an encoder with blocks 1 to {self.num_blocks}")
        grid = (-(-depth // self.tubelet), height // self.patch_px, width // self.patch_px)
        missing = grid[0] * self.tubelet - depth
        padded = torch.cat([pixels, pixels[:, -1:].expand(batch, missing, height, width)], dim=1)
        frames = grey_to_channels(padded.flatten(0, 1)).unflatten(0, (batch, -1))
        self.positions.grid = grid
        return self._encode(frames, grid, layers)

    def _encode(self, frames: torch.Tensor, grid: tuple[int, ...], layers: tuple[int, ...]) -> PatchFeatures:
        """Run the blocks one by one, keeping the raw tokens that are wanted."""
        tokens = self.backbone.embeddings(frames)
        inner: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.backbone.layer, start=1):
            tokens = block(tokens)[0]
            if number in layers:
                inner[number] = tokens
        return PatchFeatures(self.backbone.layernorm(tokens), grid, inner)
