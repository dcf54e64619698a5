"""Low-rank updates of linear layers, and how they are folded into the weights.

Reference: Hu et al. 2022 (LoRA), arXiv 2106.09685: W x + (alpha / rank) * up(down(x)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update that starts at zero.

    Args:
        base: the layer; frozen in place.
        rank: inner width of the update.
        alpha: the update is scaled by `alpha / rank`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`... in_features` to `... out_features`."""
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up) * self.scale


def add_lora(module: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Give every linear layer inside a module an update.

    Args:
        module: changed in place; what is not updated is left as it is.
        rank: see `LoraLinear`.
        alpha: see `LoraLinear`.

    Returns:
        The new parameters.
    """
    trained: list[nn.Parameter] = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LoraLinear):
                update = LoraLinear(child, rank, alpha)
                setattr(parent, name, update)
                trained += [update.down, update.up]
    return trained


def merged_state(state: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The tensors of a module before `add_lora`, with every update added to its weight.

    Args:
        state: name to tensor, of a module with updates or without.
        scale: alpha / rank.

    Returns:
        Names as the module has them without updates.
    """
    merged = {}
    for name, tensor in state.items():
        if name.endswith((".down", ".up")) and f"{name.rpartition('.')[0]}.base.weight" in state:
            continue
        prefix = name.removesuffix(".base.weight")
        if f"{prefix}.up" in state and prefix != name:
            tensor = tensor + scale * (state[f"{prefix}.up"] @ state[f"{prefix}.down"])
        merged[_plain(name, state)] = tensor
    return merged


def _plain(name: str, state: Mapping[str, torch.Tensor]) -> str:
    prefix, base, leaf = name.rpartition(".base.")
    return f"{prefix}.{leaf}" if base and f"{prefix}.up" in state else name
