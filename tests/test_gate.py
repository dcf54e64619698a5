"""Sparsely Gated Alignment: every pooling mode against its naive float64 form, and the invariants of the method."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radglint.gate import GateConfig, SparseGate, pool_content, pooling_weights
from test_losses import assert_same_value_and_gradient

MODES = ["mean", "softmax", "softmax_null", "sigmoid", "sigmoid_null", "top_k"]
TEXTS, BATCH, TOKENS, TOKEN_DIM, TEXT_DIM = 3, 2, 5, 4, 3


def _gate(pooling="sigmoid_null", seed: int = 0, **options) -> SparseGate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SparseGate(TOKEN_DIM, TEXT_DIM, GateConfig(pooling=pooling, joint_dim=4, gate_dim=2, top_k=3, **options))


def _inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, TOKENS, TOKEN_DIM, generator=generator), torch.randn(TEXTS, TEXT_DIM, generator=generator)


def _naive_weights(logits: list, pooling: str, top_k: int) -> list:
    exps = [x.exp() for x in logits]
    if pooling == "mean":
        return [x * 0 + 1 for x in logits]
    if pooling == "softmax":
        return [e / sum(exps) for e in exps]
    if pooling == "softmax_null":
        return [e / (1 + sum(exps)) for e in exps]
    gate = [1 / (1 + (-x).exp()) for x in logits]
    if pooling == "top_k":
        kept = sorted(range(len(logits)), key=lambda p: -logits[p].item())[:top_k]
        return [g if p in kept else g * 0 for p, g in enumerate(gate)]
    return gate


def _dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


def _unit(vector: list) -> list:
    norm = _dot(vector, vector).sqrt()
    return [x / norm for x in vector]


def _affine(layer, x) -> list:
    return [_dot(row, x) + bias for row, bias in zip(layer["weight"], layer["bias"], strict=True)]


def _naive_scores(parameters: dict, tokens, texts, config: GateConfig) -> torch.Tensor:
    """Loops over texts, images and tokens; `parameters` as nested dicts."""
    keys = "image_content" if config.shared_space else "image_gate"
    queries = "text_content" if config.shared_space else "text_gate"
    rows = []
    for text in texts:
        query, wanted = _unit(_affine(parameters[queries], text)), _unit(_affine(parameters["text_content"], text))
        for image in tokens:
            cosines = [_dot(query, _unit(_affine(parameters[keys], token))) for token in image]
            logits = [parameters["gate_scale"] * cosine + parameters["gate_bias"] for cosine in cosines]
            weights = _naive_weights(logits, config.pooling, config.top_k)
            content = [_affine(parameters["image_content"], token) for token in image]
            has_null = config.pooling == "sigmoid_null"
            slot = config.null_weight if has_null else 1e-6
            null = parameters["null"] if has_null else [torch.zeros((), dtype=torch.float64)] * config.joint_dim
            pooled = [
                (sum(w * c[d] for w, c in zip(weights, content, strict=True)) + slot * null[d]) / (sum(weights) + slot)
                for d in range(config.joint_dim)
            ]
            rows.append(_dot(_unit(pooled), wanted))
    return torch.stack(rows).reshape(len(texts), len(tokens))


def _nested(names: list[str], tensors) -> dict:
    nested: dict = {}
    for name, tensor in zip(names, tensors, strict=True):
        layer, _, part = name.partition(".")
        if part:
            nested.setdefault(layer, {})[part] = tensor
        else:
            nested[layer] = tensor
    return nested


@pytest.mark.parametrize("shared_space", [False, True])
@pytest.mark.parametrize("pooling", MODES)
def test_scores_and_all_gradients_equal_the_naive_form(pooling, shared_space: bool) -> None:
    gate = _gate(pooling, shared_space=shared_space, initial_scale=3.0, initial_bias=-0.5)
    names = [name for name, _ in gate.named_parameters()]
    if pooling == "mean":  # the gate's own weights play no part
        names = [n for n in names if n not in ("gate_scale", "gate_bias") and not n.split(".")[0].endswith("_gate")]
    weights = torch.randn(TEXTS, BATCH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def fast(tokens, texts, *parameters):
        out = torch.func.functional_call(gate, dict(zip(names, parameters, strict=True)), (tokens, texts))
        return (out.scores * weights.float()).sum()

    def naive(tokens, texts, *parameters):
        nested = _nested([n for n, _ in gate.named_parameters()], [p.detach().double() for p in gate.parameters()])
        nested |= _nested(names, parameters)
        return (_naive_scores(nested, tokens, texts, gate.config) * weights).sum()

    values = dict(gate.named_parameters())
    assert_same_value_and_gradient(fast, naive, *_inputs(), *(values[n].detach() for n in names))


@pytest.mark.parametrize("pooling", MODES)
def test_pooling_weights_equal_their_naive_form(pooling) -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)) * 4
    weights = pooling_weights(logits, pooling, top_k=4)
    for row, got in zip(logits.double().reshape(-1, 9), weights.reshape(-1, 9), strict=True):
        expected = torch.stack(_naive_weights(list(row), pooling, 4))
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)
    assert weights.min() >= 0
    assert weights.max() <= 1


def test_top_k_larger_than_the_image_keeps_every_token() -> None:
    logits = torch.randn(1, 1, 5)
    assert torch.equal(pooling_weights(logits, "top_k", top_k=16), logits.sigmoid())


@pytest.mark.parametrize("pooling", ["sigmoid", "sigmoid_null", "top_k", "softmax_null"])
def test_all_gates_closed_gives_a_finite_result(pooling) -> None:
    gate = _gate(pooling, initial_scale=0.0, initial_bias=-200.0)
    tokens, texts = (x.requires_grad_() for x in _inputs())
    out = gate(tokens, texts)
    assert out.gate.max() == 0
    out.scores.sum().backward()
    assert torch.isfinite(out.scores).all()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    if pooling != "sigmoid_null":
        assert torch.equal(out.scores, torch.zeros(TEXTS, BATCH))


def test_all_gates_closed_pools_the_null_embedding() -> None:
    content, null = torch.randn(BATCH, TOKENS, 4), torch.randn(4)
    closed = torch.zeros(TEXTS, BATCH, TOKENS)
    torch.testing.assert_close(pool_content(content, closed, null, 2.0), null.expand(TEXTS, BATCH, 4))
    assert torch.equal(pool_content(content, closed), torch.zeros(TEXTS, BATCH, 4))


def test_with_a_zero_null_a_closed_gate_scores_near_zero() -> None:
    gate = _gate("sigmoid_null", initial_scale=0.0, initial_bias=-40.0)
    with torch.no_grad():
        assert gate.null is not None
        gate.null.zero_()
        assert gate(*_inputs()).scores.abs().max() < 1e-3


def test_an_open_gate_outweighs_the_null_slot() -> None:
    content, null = torch.ones(1, 100, 4), torch.full((4,), -1.0)
    pooled = pool_content(content, torch.ones(1, 1, 100), null, 1.0)
    assert pooled.min().item() == pytest.approx(99 / 101)


@pytest.mark.parametrize("pooling", MODES)
@given(order=st.permutations(range(TOKENS)))
def test_patches_permuted_gives_gates_permuted_and_equal_scores(pooling, order: list[int]) -> None:
    gate, (tokens, texts) = _gate(pooling), _inputs()
    with torch.no_grad():
        plain, moved = gate(tokens, texts), gate(tokens[:, order], texts)
    torch.testing.assert_close(moved.gate, plain.gate[..., order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved.gate_logits, plain.gate_logits[..., order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved.scores, plain.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["sigmoid", "sigmoid_null"])
def test_each_patch_decides_alone(pooling) -> None:
    gate, (tokens, texts) = _gate(pooling), _inputs()
    changed = tokens.clone()
    changed[:, 2] += 5.0
    with torch.no_grad():
        before, after = gate(tokens, texts).gate, gate(changed, texts).gate
    others = [p for p in range(TOKENS) if p != 2]
    torch.testing.assert_close(after[..., others], before[..., others], rtol=1e-6, atol=1e-7)
    assert (after[..., 2] - before[..., 2]).abs().max() > 1e-3
    softmax = _gate("softmax")
    with torch.no_grad():
        assert (softmax(changed, texts).gate - softmax(tokens, texts).gate)[..., others].abs().max() > 1e-3


@pytest.mark.parametrize("pooling", MODES)
def test_a_duplicated_image_does_not_change_scores(pooling) -> None:
    gate, (tokens, texts) = _gate(pooling), _inputs()
    with torch.no_grad():
        alone, doubled = gate(tokens, texts).scores, gate(torch.cat([tokens, tokens[:1]]), texts).scores
    torch.testing.assert_close(doubled[:, :BATCH], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(doubled[:, BATCH], alone[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", MODES)
def test_texts_permuted_gives_scores_permuted(pooling) -> None:
    gate, (tokens, texts) = _gate(pooling), _inputs()
    with torch.no_grad():
        torch.testing.assert_close(gate(tokens, texts[[2, 0, 1]]).scores, gate(tokens, texts).scores[[2, 0, 1]])


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_scores_are_cosines_whatever_the_gate(scale: float, bias: float) -> None:
    gate = _gate("sigmoid_null", initial_scale=scale, initial_bias=bias)
    with torch.no_grad():
        out = gate(*_inputs())
    assert out.scores.abs().max() <= 1 + 1e-5
    assert torch.isfinite(out.gate_logits).all()


@pytest.mark.parametrize("pooling", MODES)
def test_bfloat16_tokens_under_autocast_give_finite_scores_and_float32_logits(pooling) -> None:
    gate, (tokens, texts) = _gate(pooling), _inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = gate(tokens.bfloat16() * 100, texts)
    assert torch.isfinite(out.scores).all()
    assert out.gate_logits.dtype == torch.float32


def test_gate_logits_keep_float32_precision_under_autocast() -> None:
    gate = _gate("sigmoid_null", initial_scale=100.0)
    tokens, texts = _inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = gate.gate_logits(tokens, texts)
        keys, queries = gate.image_gate(tokens).double()[None], gate.text_gate(texts).double()[:, None, None]
    cosine = torch.nn.functional.cosine_similarity(queries, keys, dim=-1)
    torch.testing.assert_close(logits.double(), 100 * cosine - 2.0, rtol=1e-5, atol=1e-4)


def test_defaults_are_those_of_the_method() -> None:
    config = GateConfig()
    gate = SparseGate(8, 8, config)
    assert (config.pooling, config.initial_scale) == ("sigmoid_null", 10)
    assert (config.initial_bias, config.null_weight) == (-2, 1)
    assert pooling_weights(gate.gate_bias, "sigmoid").item() == pytest.approx(1 / (1 + math.exp(2)))
    assert gate.image_gate.weight.shape == (128, 8)
    assert not hasattr(SparseGate(8, 8, GateConfig(shared_space=True)), "image_gate")


def test_a_map_adds_how_well_each_patch_and_the_image_fit_the_text() -> None:
    """Naive form, patch by patch: log(gate) + v * cos(content, text) + w * score; without weights the gate's logit."""
    gate, (tokens, texts) = _gate(map_content_weight=5.0, map_score_weight=3.0).eval(), _inputs()
    out = gate(tokens, texts)
    content, wanted = gate.image_content(tokens), gate.text_content(texts)
    for t in range(TEXTS):
        for b in range(BATCH):
            for p in range(TOKENS):
                fit = torch.nn.functional.cosine_similarity(content[b, p], wanted[t], dim=0)
                expected = out.gate_logits[t, b, p].sigmoid().log() + 5 * fit + 3 * out.scores[t, b]
                torch.testing.assert_close(out.map_logits[t, b, p], expected, rtol=1e-5, atol=1e-5)
    plain = _gate().eval()(tokens, texts)
    assert plain.map_logits is plain.gate_logits


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_patch_of_a_volume_gets_the_best_score_of_the_runs_it_is_in(window: int) -> None:
    """Five slices of one token each: naive search over the runs that hold the slice."""
    gate, (tokens, texts) = _gate(map_score_weight=3.0).eval(), _inputs()
    out = gate.forward_windows(tokens, texts, depth=TOKENS, window=window)
    for d in range(TOKENS):
        runs = range(max(0, d - window + 1), min(d, TOKENS - window) + 1)
        scores = torch.stack([gate(tokens[:, start : start + window], texts).scores for start in runs]).amax(dim=0)
        expected = out.gate_logits[..., d].sigmoid().log() + 3 * scores
        torch.testing.assert_close(out.map_logits[..., d], expected, rtol=1e-4, atol=1e-4)
