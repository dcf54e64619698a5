"""The number format of matrix products in training."""

from __future__ import annotations

from typing import Literal

import torch

from radglint.pipeline import trunk_dtype

Precision = Literal["auto", "float32", "bfloat16"]
"""Of matrix products; weights and losses stay float32. auto = bfloat16 where the device multiplies it natively."""


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What a configured precision means on a device: emulated, bfloat16 is several times slower than float32."""
    if precision == "auto":
        return trunk_dtype(device)
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Matrix products in that format, everything else as autocast has it."""
    wanted = product_dtype(precision, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted == torch.bfloat16)
