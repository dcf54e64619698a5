"""Every loss against its naive float64 form, value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from radglint.errors import ConfigError
from radglint.losses import (
    contrastive_loss,
    evidence_loss,
    gate_sparsity_loss,
    multi_positive_info_nce,
    sigmoid_contrastive_loss,
)

TEXTS, IMAGES, TOKENS = 5, 4, 6


def _scores(seed: int = 0) -> torch.Tensor:
    return torch.rand(TEXTS, IMAGES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def _positives(seed: int = 1) -> torch.Tensor:
    positives = torch.rand(TEXTS, IMAGES, generator=torch.Generator().manual_seed(seed)) < 0.4
    positives[0, 1] = True
    return positives


def assert_same_value_and_gradient(
    fast: Callable[..., torch.Tensor], naive: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> None:
    """Compare a float32 function with its naive float64 form: value and the gradient of every input."""
    singles = [x.float().requires_grad_() for x in inputs]
    doubles = [x.detach().float().double().requires_grad_() for x in inputs]
    value, expected = fast(*singles), naive(*doubles)
    assert value.item() == pytest.approx(expected.item(), rel=2e-5, abs=2e-6)
    expected_gradients = torch.autograd.grad(expected, doubles)
    assert any(bool(g.abs().max() > 1e-4) for g in expected_gradients), "a comparison of zeros proves nothing"
    for got, wanted in zip(torch.autograd.grad(value, singles), expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6)


def _naive_info_nce(scores, positives, scale, negatives) -> torch.Tensor:
    e = (scores * scale).exp()
    row, column = [], []
    for t in range(scores.shape[0]):
        for b in range(scores.shape[1]):
            if positives[t, b]:
                images = [e[t, k] for k in range(scores.shape[1]) if negatives[t, k]]
                texts = [e[k, b] for k in range(scores.shape[0]) if negatives[k, b]]
                row.append(-torch.log(e[t, b] / (e[t, b] + sum(images))))
                column.append(-torch.log(e[t, b] / (e[t, b] + sum(texts))))
    return (sum(row) / len(row) + sum(column) / len(column)) / 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_info_nce_equals_its_naive_form(seed: int) -> None:
    positives = _positives(seed)
    assert_same_value_and_gradient(
        lambda s, k: multi_positive_info_nce(s, positives, k),
        lambda s, k: _naive_info_nce(s, positives, k, ~positives),
        _scores(seed), torch.tensor(1 / 0.07),
    )  # fmt: skip


def test_undecided_pairs_stay_out_of_info_nce() -> None:
    positives = _positives()
    negatives = ~positives & (torch.rand(TEXTS, IMAGES, generator=torch.Generator().manual_seed(9)) < 0.6)
    undecided = ~positives & ~negatives
    assert undecided.any()
    assert_same_value_and_gradient(
        lambda s, k: multi_positive_info_nce(s, positives, k, negatives=negatives),
        lambda s, k: _naive_info_nce(s, positives, k, negatives),
        _scores(), torch.tensor(5.0),
    )  # fmt: skip
    scores = _scores().float().requires_grad_()
    multi_positive_info_nce(scores, positives, 5.0, negatives=negatives).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad[undecided], torch.zeros(int(undecided.sum())))


def test_info_nce_of_equal_embeddings_is_the_log_of_one_plus_the_negatives() -> None:
    positives = torch.eye(TEXTS, dtype=torch.bool)
    loss = multi_positive_info_nce(torch.full((TEXTS, TEXTS), 0.7), positives, 14.3)
    assert loss.item() == pytest.approx(math.log(1 + (TEXTS - 1)), rel=1e-6)
    shared = torch.tensor([[True, True, False, False]])  # one sentence: 2 negative images, no negative sentence
    assert multi_positive_info_nce(torch.zeros(1, 4), shared, 10.0).item() == pytest.approx(math.log(3) / 2, rel=1e-6)


def test_info_nce_without_negatives_is_zero_with_a_zero_gradient() -> None:
    scores = torch.rand(2, 2, requires_grad=True)
    loss = multi_positive_info_nce(scores, torch.ones(2, 2, dtype=torch.bool), 14.3)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(2, 2))


def test_other_positives_of_a_text_do_not_repel() -> None:
    scores = torch.tensor([[0.1, 0.9, -0.5]], requires_grad=True)
    multi_positive_info_nce(scores, torch.tensor([[True, True, False]]), 1.0).backward()
    assert scores.grad is not None
    assert scores.grad[0, 0] < 0
    assert scores.grad[0, 1] < 0
    assert scores.grad[0, 2] > 0


@pytest.mark.parametrize("positives", [torch.zeros(2, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)])
def test_info_nce_refuses_no_positive_and_other_shapes(positives: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="positives"):
        multi_positive_info_nce(torch.zeros(2, 3), positives, 1.0)


def test_sigmoid_loss_equals_its_naive_form() -> None:
    positives = _positives()

    def naive(scores, scale, bias):
        total = sum(
            -torch.log(torch.sigmoid((1 if positives[t, b] else -1) * (scale * scores[t, b] + bias)))
            for t in range(TEXTS) for b in range(IMAGES)
        )  # fmt: skip
        return total / IMAGES

    assert_same_value_and_gradient(
        lambda s, k, c: sigmoid_contrastive_loss(s, positives, k, c), naive,
        _scores(), torch.tensor(10.0), torch.tensor(-10.0),
    )  # fmt: skip


def test_undecided_pairs_stay_out_of_the_sigmoid_loss() -> None:
    positives = _positives()
    negatives = ~positives & (torch.rand(TEXTS, IMAGES, generator=torch.Generator().manual_seed(9)) < 0.6)
    undecided = ~positives & ~negatives
    assert undecided.any()

    def naive(scores, scale, bias):
        pairs = [(t, b) for t in range(TEXTS) for b in range(IMAGES) if not undecided[t, b]]
        logits = [(1 if positives[t, b] else -1) * (scale * scores[t, b] + bias) for t, b in pairs]
        return sum(-torch.log(torch.sigmoid(logit)) for logit in logits) / IMAGES

    assert_same_value_and_gradient(
        lambda s, k, c: sigmoid_contrastive_loss(s, positives, k, c, negatives), naive,
        _scores(), torch.tensor(10.0), torch.tensor(-10.0),
    )  # fmt: skip
    scores = _scores().float().requires_grad_()
    sigmoid_contrastive_loss(scores, positives, 10.0, -10.0, negatives).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad[undecided], torch.zeros(int(undecided.sum())))


def test_a_run_gets_the_loss_that_it_asks_for() -> None:
    positives = _positives()
    negatives, scale, bias = ~positives & (_positives(7) | _positives(8)), torch.tensor(9.0), torch.tensor(-4.0)
    given = (_scores(), positives, negatives, scale, bias)
    info_nce = multi_positive_info_nce(_scores(), positives, scale, negatives)
    sigmoid = sigmoid_contrastive_loss(_scores(), positives, scale, bias, negatives)
    assert contrastive_loss("info_nce", *given) == info_nce
    assert contrastive_loss("sigmoid", *given) == sigmoid
    with pytest.raises(ConfigError, match=r"set branch\.initial_logit_bias to -10"):
        contrastive_loss("sigmoid", *given[:4], None)


@pytest.mark.parametrize("loss", [multi_positive_info_nce, lambda s, p, k: sigmoid_contrastive_loss(s, p, k, -10.0)])
def test_losses_stay_finite_at_extreme_scores(loss) -> None:
    scores = (torch.eye(3) * 2 - 1).requires_grad_()
    value = loss(scores, ~torch.eye(3, dtype=torch.bool), 1000.0)
    value.backward()
    assert torch.isfinite(value)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def _naive_sparsity(gate, positives, kind: str, budget: float) -> torch.Tensor:
    terms = []
    for t in range(gate.shape[0]):
        for b in range(gate.shape[1]):
            g = gate[t, b]
            mean = sum(g) / len(g)
            if kind == "budget" and positives[t, b]:
                terms.append(torch.clamp(mean - budget, min=0) ** 2)
            if kind == "negatives" and not positives[t, b]:
                terms.append(mean)
            if kind == "binarise" and positives[t, b]:
                terms += [x * (1 - x) for x in g]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("kind", ["budget", "negatives", "binarise"])
def test_sparsity_equals_its_naive_form(kind) -> None:
    gate = torch.rand(TEXTS, IMAGES, TOKENS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    positives = _positives()
    assert_same_value_and_gradient(
        lambda g: gate_sparsity_loss(g, positives, kind, 0.45),
        lambda g: _naive_sparsity(g, positives, kind, 0.45),
        gate,
    )


def test_budget_leaves_gates_below_it_alone() -> None:
    gate = torch.full((1, 1, 4), 0.04, requires_grad=True)
    gate_sparsity_loss(gate, torch.ones(1, 1, dtype=torch.bool), "budget", 0.05).backward()
    assert gate.grad is not None
    assert torch.equal(gate.grad, torch.zeros_like(gate))


@pytest.mark.parametrize("kind", ["none", "budget", "negatives", "binarise"])
def test_sparsity_without_any_pair_of_its_kind_is_zero(kind) -> None:
    positives = torch.full((2, 2), kind == "negatives")
    assert gate_sparsity_loss(torch.rand(2, 2, 3), positives, kind).item() == 0.0


@pytest.mark.parametrize("kind", ["budget", "negatives", "binarise"])
def test_a_negated_sentence_gets_no_sparsity_gradient(kind) -> None:
    gate = torch.rand(TEXTS, IMAGES, TOKENS, generator=torch.Generator().manual_seed(3)).requires_grad_()
    asserted = torch.tensor([True, True, False, True, False])  # two sentences say "there is no ..."
    gate_sparsity_loss(gate[asserted], _positives()[asserted], kind, 0.1).backward()
    assert gate.grad is not None
    assert torch.equal(gate.grad[~asserted], torch.zeros(2, IMAGES, TOKENS))
    assert gate.grad[asserted].abs().max() > 0


def _naive_evidence(evidence, positives, negatives, shown) -> torch.Tensor:
    yes, no = [], []
    for t in range(evidence.shape[0]):
        for b in range(evidence.shape[1]):
            highest = sorted(evidence[t, b], key=lambda e: float(e.detach()), reverse=True)
            few = highest[: int(shown[t])]
            if positives[t, b]:
                yes.append(sum(torch.log1p(torch.exp(-e)) for e in few) / len(few))
            if negatives[t, b]:
                no.append(sum(torch.log1p(torch.exp(e)) for e in few) / len(few))
    return sum(yes) / len(yes) + sum(no) / len(no)


def test_evidence_equals_its_naive_form() -> None:
    evidence = 4 * torch.randn(TEXTS, IMAGES, TOKENS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    positives, shown = _positives(), torch.tensor([1, 2, 3, 6, 9])
    negatives = ~positives
    negatives[1, 2] = False
    assert_same_value_and_gradient(
        lambda e: evidence_loss(e, positives, negatives, shown),
        lambda e: _naive_evidence(e, positives, negatives, shown),
        evidence,
    )


def test_evidence_of_undecided_pairs_has_no_gradient() -> None:
    evidence = torch.zeros(2, 2, TOKENS, requires_grad=True)
    positives, negatives = torch.tensor([[True, False], [False, False]]), torch.tensor([[False, False], [False, True]])
    evidence_loss(evidence, positives, negatives, torch.tensor([2, 2])).backward()
    assert evidence.grad is not None
    assert bool((evidence.grad[positives] <= 0).all() and (evidence.grad[positives] < 0).any())
    assert bool((evidence.grad[negatives] >= 0).all() and (evidence.grad[negatives] > 0).any())
    assert not evidence.grad[~(positives | negatives)].any()


def test_evidence_without_any_pair_is_zero_with_a_zero_gradient() -> None:
    evidence, none = torch.ones(1, 2, TOKENS, requires_grad=True), torch.zeros(1, 2, dtype=torch.bool)
    loss = evidence_loss(evidence, none, none, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0
    assert evidence.grad is not None
    assert not evidence.grad.any()


def test_a_map_that_does_not_look_at_the_image_gains_nothing_by_the_evidence_loss() -> None:
    positives = torch.tensor([[True, False, False, False]])
    for few in (-3.0, 0.0, 1.0, 5.0):  # the same patches marked in every image
        evidence = torch.full((1, 4, 50), -9.0)
        evidence[..., :3] = few
        loss = evidence_loss(evidence, positives, ~positives, torch.tensor([3]))
        assert float(loss) >= 2 * math.log(2) - 1e-5
