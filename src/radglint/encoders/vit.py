"""2D encoder: any ViT of `transformers` that keeps patch tokens (DINOv3 ViT, DINOv2, ViT), behind one call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from radglint.encoders.features import PatchFeatures
from radglint.errors import ConfigError


class VitEncoder(nn.Module):
    """Patch tokens, grid and intermediate layers of a `transformers` ViT.

    Args:
        backbone: a model whose `last_hidden_state` is `batch (prefix + patches) embed`. The prefix (class and
            register tokens) is counted from the configuration and dropped.

    Raises:
        ConfigError: the backbone has no patch size.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone
        config = self.backbone.config
        if not getattr(config, "patch_size", None):
            raise ConfigError(f"encoder {config.model_type!r} has no patch_size: a ViT with patch tokens is needed")
        self.patch_px = int(config.patch_size)
        self.embed_dim = int(config.hidden_size)
        self.num_blocks = int(config.num_hidden_layers)
        self.num_prefix_tokens = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
        takes = inspect.signature(backbone.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pixels: torch.Tensor, layers: tuple[int, ...] = ()) -> PatchFeatures:
        """Encode a batch of images.

        Args:
            pixels: `batch 3 height width`, normalised; both sides multiples of the patch size.
            layers: block numbers (1 to `num_blocks`) whose raw tokens are wanted too.

        Returns:
            PatchFeatures on a grid of `(height / patch, width / patch)`.

        Raises:
            ConfigError: a side is not a multiple of the patch size, or a layer does not exist.
        """
        grid = tuple(side // self.patch_px for side in pixels.shape[-2:])
        if any(side % self.patch_px for side in pixels.shape[-2:]):
            raise ConfigError(f"image sides {tuple(pixels.shape[-2:])} are not multiples of {self.patch_px} px")
        if any(not 1 <= layer <= self.num_blocks for layer in layers):
            raise ConfigError(f"layers {layers} asked of an encoder with blocks 1 to {self.num_blocks}")
        out = self.backbone(pixel_values=pixels, output_hidden_states=bool(layers), **self._options)
        inner = {layer: out.hidden_states[layer][:, self.num_prefix_tokens :] for layer in layers}
        return PatchFeatures(out.last_hidden_state[:, self.num_prefix_tokens :], grid, inner)
