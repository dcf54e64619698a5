"""Weight-only int8: one float32 scale per row, symmetric, the same numbers when packed, unpacked and packed again."""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 127  # integers run from -127 to 127


def is_quantizable(weight: torch.Tensor) -> bool:
    """Whether a tensor is a floating point matrix: embeddings, linear layers; not biases, norms or convolutions."""
    return weight.ndim == 2 and weight.is_floating_point()


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack a matrix to int8.

    Args:
        weight: `rows columns`, finite.

    Returns:
        int8 `rows columns` and float32 scale `rows`, such that weight is about `integers * scale[:, None]`, off by at
        most half a scale. A matrix that came from `dequantize_rows` is packed to the very same numbers.

    Raises:
        ValueError: the matrix holds NaN or infinite values.

    Naive form: scale[r] = max_c |w[r, c]| / 127 (1 for a row of zeros); integers[r, c] = round(w[r, c] / scale[r]).
    """
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weights hold NaN or infinite values and cannot be quantised")
    largest = weight.abs().amax(dim=1)
    scale = _stable_scale(largest)
    integers = (weight / scale[:, None]).round().clamp(-LEVELS, LEVELS)
    return integers.to(torch.int8), scale


def _stable_scale(largest: torch.Tensor) -> torch.Tensor:
    """Largest / 127 with its last mantissa bits cut off, so that 127 * scale is exact in float32 and divides back."""
    scale = (largest / LEVELS).clamp_min(torch.finfo(torch.float32).tiny * 256)
    coarse = (scale.view(torch.int32) + 0x40) & ~0x7F  # 17 bits of mantissa stay; 7 more hold the product with 127
    return torch.where(largest > 0, coarse.view(torch.float32), torch.ones_like(scale))


def dequantize_rows(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Float32 matrix `rows columns` from `quantize_rows`; exact, the same on every machine."""
    return integers.float() * scale[:, None]


@torch.no_grad()
def quantize_in_place(module: nn.Module) -> nn.Module:
    """Round every matrix of a module to what an int8 checkpoint will hold, so that training sees the final weights.

    Saving such a module with `quantize="int8_trunk"` and loading it again gives the same weights bit for bit.

    Args:
        module: its 2-D floating point parameters are overwritten.

    Returns:
        The module itself.
    """
    for parameter in module.parameters():
        if is_quantizable(parameter):
            parameter.copy_(dequantize_rows(*quantize_rows(parameter)))
    return module
