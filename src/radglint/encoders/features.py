"""What every image encoder returns, and how grey values become its input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PatchFeatures:
    """Patch tokens of a batch of images, without class or register tokens.

    Attributes:
        tokens: `batch tokens embed`, the last layer, layer-normalised; tokens run row by row (slice by slice first).
        grid: `(height, width)` or `(depth, height, width)`, whose product is the number of tokens.
        layers: block number (1 = after the first block) to raw tokens `batch tokens embed` of the requested blocks.
    """

    tokens: torch.Tensor
    grid: tuple[int, ...]
    layers: dict[int, torch.Tensor] = field(default_factory=dict)


def join_layers(last: torch.Tensor, inner: Sequence[torch.Tensor]) -> torch.Tensor:
    """Earlier blocks beside the last one: they see small things more clearly, and less of the whole image.

    Args:
        last: `... embed`, layer-normalised.
        inner: raw tokens of other blocks, of that shape.

    Returns:
        `... (embed * (1 + inner))`, each part of unit variance.
    """
    return torch.cat([last, *(functional.layer_norm(x, x.shape[-1:]).to(last.dtype) for x in inner)], dim=-1)


def grey_to_channels(pixels: torch.Tensor) -> torch.Tensor:
    """Repeat grey images to three channels with ImageNet statistics.

    Args:
        pixels: `batch height width`, in [0, 1].

    Returns:
        `batch 3 height width`, zero mean and unit variance on natural images.
    """
    mean = pixels.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = pixels.new_tensor(IMAGENET_STD)[:, None, None]
    return (pixels[:, None] - mean) / std
