"""Low-rank updates: nothing at first, trained alone, and merged without a trace."""

from __future__ import annotations

import torch
from torch import nn

from radglint.lora import LoraLinear, add_lora, merged_state


def tower() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Sequential(nn.Linear(7, 3, bias=False)))


def test_an_update_starts_at_nothing_and_alone_is_trained() -> None:
    plain, updated = tower(), tower()
    added = add_lora(updated, rank=2, alpha=4.0)
    x = torch.randn(6, 5)
    assert torch.equal(updated(x), plain(x))
    assert {id(p) for p in updated.parameters() if p.requires_grad} == {id(p) for p in added}
    assert sum(p.numel() for p in added) == 2 * (5 + 7) + 2 * (7 + 3)


def test_a_merged_module_computes_the_same_under_its_old_names() -> None:
    plain, updated = tower(), tower()
    add_lora(updated, rank=2, alpha=3.0)
    for module in updated.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up)
    x = torch.randn(6, 5)
    start = plain(x)
    plain.load_state_dict(merged_state(updated.state_dict(), 3.0 / 2), strict=True)
    torch.testing.assert_close(plain(x), updated(x))
    assert bool(((plain(x) - start).abs() > 0.1).any())


def test_a_state_without_updates_is_left_alone() -> None:
    state = {"base.weight": torch.ones(2, 2), "x.base.weight": torch.ones(1), "x.up": torch.ones(1)}
    plain = {name: state[name] for name in ("base.weight", "x.base.weight")}
    assert merged_state(plain, 2.0) == plain
