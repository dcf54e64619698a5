"""Tokens that were prepared for many questions give the answers of those that were not."""

from __future__ import annotations

import pytest
import torch

from radglint.gate import GateConfig, SparseGate


@pytest.mark.parametrize("shared_space", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("window", [None, 3])
def test_prepared_tokens_give_the_same_answers(shared_space: bool, weight: float, window: int | None) -> None:
    torch.manual_seed(0)
    config = GateConfig(
        joint_dim=12, gate_dim=8, shared_space=shared_space, map_content_weight=weight, map_score_weight=weight
    )
    gate = SparseGate(16, 10, config)
    tokens, texts, prior = torch.randn(2, 7 * 5, 16), torch.randn(3, 10), torch.randn(3, 2, 35)
    prepared = gate.prepare(tokens)
    if window is None:
        plain, fast = gate(tokens, texts, prior), gate(prepared, texts, prior)
    else:
        plain = gate.forward_windows(tokens, texts, 7, window, prior)
        fast = gate.forward_windows(prepared, texts, 7, window, prior)
    for name in ("scores", "gate_logits", "gate", "map_logits", "slice_scores"):
        assert torch.allclose(getattr(plain, name), getattr(fast, name), atol=1e-5), name


def test_a_row_of_zeros_has_a_finite_fit() -> None:
    gate = SparseGate(4, 4, GateConfig(joint_dim=4, gate_dim=4, map_content_weight=1.0))
    with torch.no_grad():
        gate.image_content.weight.zero_()
        gate.image_content.bias.zero_()
    found = gate(gate.prepare(torch.ones(1, 3, 4)), torch.ones(1, 4))
    assert torch.isfinite(found.map_logits).all()
