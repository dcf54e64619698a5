"""The loss of a branch on cached tokens against numbers that an earlier form of it gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from radglint.precision import product_dtype
from radglint.simulation.sentences import Fact
from radglint.train import FitConfig, branch_loss
from test_train import AIR, CONFIG, GRID, HEART, SIGMOID, embed, planted, tiny_branch

SEEN_BEFORE: dict[str, tuple[dict[str, Any], float, float]] = {
    "plain": ({}, 1.378581, 4.176318),
    "sigmoid": ({"loss": "sigmoid"}, 9.535040, 16.877899),
    "some patches": (
        {"token_shift": 0.2, "patch_dropout": 0.7, "sparsity": "budget", "sparsity_weight": 5.0,
         "sparsity_budget": 0.01},
        1.706654, 5.052853,
    ),
    "evidence": (
        {"evidence_weight": 0.5, "evidence_from_step": 20, "patch_dropout": 0.7, "in_lungs": ("pneumothorax",),
         "sparsity": "negatives", "sparsity_weight": 0.3},
        2.332602, 4.657537,
    ),
    "gloria": ({"local": "gloria", "local_weight": 0.5, "sparsity": "binarise", "sparsity_weight": 0.2}, 3.131668,
               9.159981),
    "mgca": ({"local": "mgca", "token_shift": 0.1}, 5.275990, 8.091967),
}  # fmt: skip
"""Keys of the fit, loss, and length of the gradient, as computed in float32 by an earlier form of `branch_loss`."""


@pytest.mark.parametrize("name", list(SEEN_BEFORE))
def test_the_loss_is_what_it_was(name: str) -> None:
    changes, wanted, wanted_length = SEEN_BEFORE[name]
    gate = CONFIG.gate.model_copy(update={"map_content_weight": 8.0})
    config = (SIGMOID if name == "sigmoid" else CONFIG).model_copy(update={"gate": gate})
    branch = tiny_branch(config=config.model_copy(update={"place_field": name == "evidence"}))
    statements = [AIR, HEART, Fact("cardiomegaly", size="large"), Fact("pneumothorax", "left", "upper", "small")]
    texts = embed(["pneumothorax", "cardiomegaly", "enlarged heart", "left upper pneumothorax"])
    torch.manual_seed(3)
    loss, _ = branch_loss(branch, planted(8, seed=5), GRID, texts, statements, FitConfig(**changes), step=60)
    loss.backward()
    length = torch.cat([p.grad.flatten() for p in branch.parameters() if p.grad is not None]).norm()
    tolerance = 1e-4 if product_dtype("auto", torch.device("cpu")) == torch.float32 else 3e-2
    assert float(loss.detach()) == pytest.approx(wanted, rel=tolerance)
    assert float(length) == pytest.approx(wanted_length, rel=tolerance)
