"""Measures on cached cases, against scikit-learn and by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from radglint.case_metrics import (
    auroc,
    concept_metrics,
    evaluate_best_reading,
    mean_metrics,
    metrics_table,
    presence_metrics,
)
from radglint.cases import Case
from radglint.encoders.mixer import MixerConfig
from radglint.gate import GateConfig
from radglint.model import BranchConfig, GlintBranch
from radglint.preprocess import CxrPreprocess
from radglint.simulation.facts import Fact


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if positive.all() or not positive.any():
        return
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def case(concept: str | None, cover: list[float] | None = None) -> Case:
    facts = () if concept is None else (Fact(concept),)
    return Case(torch.zeros(1, 4, 2), facts, None if cover is None else torch.tensor([cover]).half())


def test_measures_worked_by_hand() -> None:
    """Three effusions, one pointed at wrongly; three normal images; a mass says nothing of effusion."""
    cases = [case("pleural effusion", [1, 1, 0, 0]), case("pleural effusion", [0, 0, 1, 1])]
    cases += [
        case("pleural effusion", [0, 0, 0, 1]),
        *(case(None) for _ in range(3)),
        case("atelectasis", [1, 0, 0, 0]),
    ]
    scores = np.array([0.9, 0.8, 0.3, 0.4, 0.1, 0.2, 5.0])
    gate = np.zeros((7, 4))
    gate[0, :2], gate[1, 2], gate[2, 0] = 0.6, 0.6, 0.6
    got = concept_metrics("pleural effusion", cases, scores, gate)
    assert got["n"] == 3
    assert got["auroc"] == pytest.approx(8 / 9), "the look-alike is left out"
    assert got["pointing"] == pytest.approx(2 / 3)
    assert got["chance"] == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert got["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_a_map_of_any_scale_is_read_at_its_own_thresholds() -> None:
    """Adding a constant to the logits and stretching them changes nothing; the threshold marks whom it should."""
    cases = [case("pleural effusion", [1, 1, 0, 0]) for _ in range(3)] + [case(None) for _ in range(3)]
    maps = np.array([[2.0, 1.5, -3, -4]] * 3 + [[-1, -1, 1.8, -2]] * 3)
    scores = np.array([3.0, 2, 4, 1, 0, 0.5])
    got = concept_metrics("pleural effusion", cases, scores, maps, any_scale=True)
    assert got["dice"] == pytest.approx(1.0)
    assert got["false_area"] == pytest.approx(0.25)
    moved = concept_metrics("pleural effusion", cases, scores, 5 * maps - 70, any_scale=True)
    assert {k: v for k, v in moved.items() if k != "threshold"} == {k: v for k, v in got.items() if k != "threshold"}


def test_the_best_reading_of_a_map_counts() -> None:
    """With a closed gate everywhere alike, only the fit of patch and text shows the place."""
    torch.manual_seed(0)
    gate = GateConfig(joint_dim=8, gate_dim=4, initial_bias=0.0)
    config = BranchConfig(
        preprocess=CxrPreprocess(), mixer=MixerConfig(width=8, num_layers=1, attention=False), gate=gate
    )
    branch = GlintBranch(8, 6, config)
    cases = [Case(torch.randn(1, 4, 8), (Fact("mass"),) if k % 2 else (), torch.ones(1, 4) if k % 2 else None)
             for k in range(8)]  # fmt: skip
    embed = lambda texts: torch.ones(len(texts), 6)  # noqa: E731
    metrics, reading = evaluate_best_reading(branch, cases, (2, 2), embed, (0.0, 4.0))
    assert set(metrics) == {"mass"}
    assert metrics["mass"]["pointing"] == 1.0
    assert reading in {f"fit x {w}, {scale}" for w in (0, 4) for scale in ("one scale", "relative")}
    assert branch.gate.config == gate
    assert evaluate_best_reading(branch, cases[::2], (2, 2), embed, (0.0,)) == ({}, "")


def test_the_best_reading_looks_where_the_concept_may_be() -> None:
    """A place field that knows the second patch as the only lung, where the mass is: the peak is there."""
    torch.manual_seed(0)
    config = BranchConfig(preprocess=CxrPreprocess(), mixer=MixerConfig(width=8, attention=False), place_field=True)
    branch = GlintBranch(8, 6, config)
    assert branch.place is not None
    branch.place.head.weight[0, 0] = 10.0
    tokens, cover = torch.randn(8, 1, 4, 8), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    tokens[..., 0] = torch.tensor([-5.0, 5.0, -5.0, -5.0])
    cases = [Case(tokens[k], (Fact("mass"),) if k % 2 else (), cover if k % 2 else None) for k in range(8)]

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return torch.ones(len(texts), 6)

    metrics, _ = evaluate_best_reading(branch, cases, (2, 2), embed, (0.0,), in_lungs=("mass",))
    assert metrics["mass"]["pointing"] == 1.0
    assert metrics["mass"]["dice"] == pytest.approx(1.0)
    anywhere, _ = evaluate_best_reading(branch, cases, (2, 2), embed, (0.0,))
    assert anywhere["mass"]["pointing"] < 1.0


def test_too_few_cases_are_not_measured() -> None:
    scores = np.arange(5.0)
    assert presence_metrics(np.array(["holds"] * 2 + ["fails"] * 3), scores) == {}
    assert presence_metrics(np.array(["holds"] * 3 + ["unknown"] * 2), scores) == {}


def test_means_are_over_the_concepts_that_have_the_measure() -> None:
    metrics = {"mass": {"n": 3, "auroc": 0.5}, "nodule": {"n": 3, "auroc": 0.7, "pointing": 0.4, "dice": 0.2}}
    assert mean_metrics(metrics) == pytest.approx({"auroc": 0.6, "pointing": 0.4, "dice": 0.2})
    lines = metrics_table(metrics).splitlines()
    assert lines[0].split() == ["mass", "n", "3", "auroc", "0.500"]
    assert lines[2].split() == ["mean", "auroc", "0.600"]
