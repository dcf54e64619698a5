"""Parameter groups with layer-wise rates, gradients of several processes, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

Parameters = dict[str, nn.Parameter]


def trained_parameters(module: nn.Module) -> Parameters:
    """Name to parameter, of those that are trained."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def layer_factors(
    named: Mapping[str, nn.Parameter], towers: Sequence[tuple[nn.Module, Sequence[nn.Module]]], decay: float
) -> dict[str, float]:
    """Factor of the learning rate of each parameter.

    Args:
        named: the trained parameters.
        towers: a tower and its blocks, first to last. What lies in the tower but in no block comes before the first
            block; its last norm too, which is small.
        decay: factor from one block to the one below.

    Returns:
        1 outside of the towers; in a tower of n blocks, decay ** (n - k) for block k (from 1), decay ** n before them.
    """
    depth: dict[int, int] = {}
    for tower, blocks in towers:
        depth |= {id(parameter): len(blocks) for parameter in tower.parameters()}
        for number, block in enumerate(blocks, start=1):
            depth |= {id(parameter): len(blocks) - number for parameter in block.parameters()}
    return {name: decay ** depth.get(id(parameter), 0) for name, parameter in named.items()}


def build_optimizer(
    named: Mapping[str, nn.Parameter], factors: Mapping[str, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with a group per factor; vectors are not decayed. Rates are set by `set_learning_rate`."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in named.items():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        key = (factors[name], decay, isinstance(parameter, DTensor))  # sharded and whole ones are not updated together
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "factor": factors[name]})
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the step's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def average_gradients(parameters: Sequence[nn.Parameter], num_processes: int) -> None:
    """Mean over the processes of every gradient that FSDP2 has not averaged already; in one message.

    A parameter that the loss does not reach has no gradient on any process, and keeps none.
    """
    if num_processes == 1:
        return
    whole = [p for p in parameters if not isinstance(p, DTensor) and p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in whole if p.grad is not None])
    distributed.all_reduce(flat)
    parts = (flat / num_processes).split([p.numel() for p in whole])
    for parameter, part in zip(whole, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their common length is at most `limit`.

    Returns:
        The length before, the same on every process; NaN or infinite if any gradient is.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    sharded = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    total = _squares(whole)
    if any(isinstance(p, DTensor) for p in parameters):
        shards = _squares(sharded).to(parameters[0].device)
        distributed.all_reduce(shards)
        total = total + shards.to(total.device)
    length = math.sqrt(float(total)) if float(total) >= 0 else math.nan
    if math.isfinite(length) and length > limit:
        for gradient in gradients:
            gradient.mul_(limit / (length + 1e-6))
    return length


def _squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    lengths = [torch.linalg.vector_norm(t, dtype=torch.float32) ** 2 for t in tensors if t.numel()]
    return torch.stack(lengths).sum() if lengths else torch.zeros(())


class MovingAverage:
    """Exponential moving average of the trained weights.

    Args:
        named: the trained parameters; the average starts at their values.
        decay: weight of the old average; lower in the first steps, so that the start is forgotten.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.named = named
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.named.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights stand in for the trained ones inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name] = kept
