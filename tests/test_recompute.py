"""A batch in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from radglint.recompute import in_pieces


@pytest.mark.parametrize("size", [None, 1, 3, 5, 8])
def test_pieces_change_neither_result_nor_gradient(size: int | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), torch.randn(7, 4)
    out = torch.cat(in_pieces(layer, x, size))
    gradient = torch.autograd.grad(out.logsumexp(0).sum(), list(layer.parameters()))
    wanted = layer(x)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.logsumexp(0).sum(), list(layer.parameters())))


def test_a_piece_draws_the_same_the_second_time_and_keeps_no_graph() -> None:
    layer, calls = nn.Linear(4, 4), []

    def noisy(x: torch.Tensor) -> torch.Tensor:
        mask = torch.rand(len(x), 4) < 0.5
        calls.append(mask)
        return layer(x) * mask

    parts = in_pieces(noisy, torch.randn(6, 4), 2)
    assert len(parts) == len(calls) == 3
    torch.cat(parts).square().sum().backward()
    assert len(calls) == 6, "each piece is computed once more for its gradient"
    assert sorted(m.tolist() for m in calls[:3]) == sorted(m.tolist() for m in calls[3:])
