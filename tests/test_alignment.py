"""The training form of the gate against its naive form, its memory, and its precision under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from radglint.alignment import Alignment, align
from radglint.gate import GateConfig, SparseGate
from radglint.losses import multi_positive_info_nce, sparsity_of_sums
from test_gate import (
    BATCH,
    MODES,
    TEXTS,
    TOKENS,
    _affine,
    _dot,
    _gate,
    _inputs,
    _naive_scores,
    _naive_weights,
    _nested,
    _unit,
)
from test_losses import assert_same_value_and_gradient

SCORE_TOLERANCE, GRADIENT_TOLERANCE = 0.005, 0.02  # as the module's docstring states them for bfloat16


class _Aligned(nn.Module):
    """`align` as a module, so that its parameters can be passed in."""

    def __init__(self, gate: SparseGate, chunk_elements: int) -> None:
        super().__init__()
        self.gate, self.chunk_elements = gate, chunk_elements

    def forward(self, tokens: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return _stacked(align(self.gate, tokens, texts, self.chunk_elements))


def _stacked(out: Alignment) -> torch.Tensor:
    return torch.stack([out.scores, out.gate_mass, out.gate_squares])


def _used_parameters(gate: SparseGate) -> list[str]:
    names = [name for name, _ in gate.named_parameters()]
    if gate.config.pooling == "mean":  # the gate's own weights play no part
        return [n for n in names if n not in ("gate_scale", "gate_bias") and not n.split(".")[0].endswith("_gate")]
    return names


def _call(gate: SparseGate, names: list[str], parameters, inputs, chunk_elements: int = 7) -> torch.Tensor:
    given = {f"gate.{name}": p for name, p in zip(names, parameters, strict=True)}
    return torch.func.functional_call(_Aligned(gate, chunk_elements), given, inputs)


def _naive_sums(parameters: dict, tokens, texts, config: GateConfig) -> torch.Tensor:
    """Scores, mass and squares, by loops over texts, images and tokens."""
    keys, queries = ("image_content", "text_content") if config.shared_space else ("image_gate", "text_gate")
    mass, squares = [], []
    for text in texts:
        query = _unit(_affine(parameters[queries], text))
        for image in tokens:
            cosines = [_dot(query, _unit(_affine(parameters[keys], token))) for token in image]
            logits = [parameters["gate_scale"] * cosine + parameters["gate_bias"] for cosine in cosines]
            weights = _naive_weights(logits, config.pooling, config.top_k)
            mass.append(sum(weights))
            squares.append(sum(w * w for w in weights))
    shape = (len(texts), len(tokens))
    rows = [torch.stack(x).reshape(shape) for x in (mass, squares)]
    return torch.stack([_naive_scores(parameters, tokens, texts, config), *rows])


@pytest.mark.parametrize("shared_space", [False, True])
@pytest.mark.parametrize("pooling", MODES)
def test_sums_and_all_gradients_equal_the_naive_form(pooling, shared_space: bool) -> None:
    gate = _gate(pooling, shared_space=shared_space, initial_scale=3.0, initial_bias=-0.5)
    names, values = _used_parameters(gate), dict(gate.named_parameters())
    weights = torch.randn(3, TEXTS, BATCH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def fast(tokens, texts, *parameters):
        return (_call(gate, names, parameters, (tokens, texts)) * weights.float()).sum()

    def naive(tokens, texts, *parameters):
        nested = _nested([n for n, _ in gate.named_parameters()], [p.detach().double() for p in gate.parameters()])
        nested |= _nested(names, parameters)
        return (_naive_sums(nested, tokens, texts, gate.config) * weights).sum()

    assert_same_value_and_gradient(fast, naive, *_inputs(), *(values[n].detach() for n in names))


@pytest.mark.parametrize("pooling", MODES)
def test_gradients_are_those_of_finite_differences(pooling) -> None:
    gate = _gate(pooling, initial_scale=3.0, initial_bias=-0.5).double()
    names, values = _used_parameters(gate), dict(gate.named_parameters())
    inputs = [x.double().requires_grad_() for x in (*_inputs(), *(values[n].detach() for n in names))]
    assert torch.autograd.gradcheck(lambda *x: _call(gate, names, x[2:], x[:2]), inputs, fast_mode=True)


@pytest.mark.parametrize("bias", [-0.5, -20.0, -30.0, -200.0])
@pytest.mark.parametrize("pooling", ["sigmoid", "sigmoid_null", "softmax_null", "top_k"])
def test_a_closing_gate_has_the_gradients_of_the_plain_form(pooling, bias: float) -> None:
    """At -30 the pooled embedding is shorter than what a length is kept above; at -200 nothing is left of the gate."""
    gate = _gate(pooling, initial_bias=bias)
    weights = torch.randn(TEXTS, BATCH, generator=torch.Generator().manual_seed(2))
    tokens, texts = (x.requires_grad_() for x in _inputs())
    wanted = [tokens, texts, *gate.parameters()]
    plain, ours = gate(tokens, texts).scores, align(gate, tokens, texts).scores
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
    expected = torch.autograd.grad((plain * weights).sum(), wanted)
    got = torch.autograd.grad((ours * weights).sum(), wanted)
    slack = 5e-5 if bias == -30.0 else 1e-6  # there terms of 0.3 cancel, in float32 down to 1e-5
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=slack)


@pytest.mark.parametrize("chunk_elements", [1, 2 * TOKENS, 10**6])
@pytest.mark.parametrize("pooling", MODES)
def test_chunk_sizes_do_not_matter(pooling, chunk_elements: int) -> None:
    gate = _gate(pooling)
    tokens, texts = (x.requires_grad_() for x in _inputs())
    wanted = [tokens, texts, *(dict(gate.named_parameters())[n] for n in _used_parameters(gate))]
    out, again = (_stacked(align(gate, tokens, texts, size)) for size in (TOKENS, chunk_elements))
    torch.testing.assert_close(again, out)
    expected, got = (torch.autograd.grad(x.square().sum(), wanted) for x in (out, again))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_no_texts_give_no_scores() -> None:
    tokens, texts = _inputs()
    out = align(_gate(), tokens, texts[:0])
    assert out.scores.shape == out.gate_mass.shape == (0, BATCH)


def _larger(pooling, texts: int = 48) -> tuple[SparseGate, torch.Tensor, torch.Tensor]:
    """Three images of 80 tokens; the first tokens of each resemble one another, as a region's do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = SparseGate(64, 32, GateConfig(pooling=pooling, joint_dim=64, gate_dim=32))
        tokens = torch.randn(3, 80, 64)
        tokens[:, :20] += 2 * torch.randn(3, 1, 64)
        return gate, tokens.requires_grad_(), torch.randn(texts, 32, requires_grad=True)


def _loss(scores: torch.Tensor, mass: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    positives = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    return multi_positive_info_nce(scores, positives, 1 / 0.07) + sparsity_of_sums(
        mass, squares, 80, positives, "binarise"
    )


@pytest.mark.parametrize("pooling", [mode for mode in MODES if mode != "top_k"])
def test_bfloat16_stays_within_its_tolerance(pooling) -> None:
    gate, tokens, texts = _larger(pooling)
    plain = gate(tokens, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = align(gate, tokens, texts)
    assert ours.scores.dtype == torch.float32
    assert (ours.scores - plain.scores).detach().abs().max() < SCORE_TOLERANCE
    torch.testing.assert_close(ours.gate_mass, plain.gate.sum(-1), rtol=0.01, atol=1e-4)
    wanted = [tokens, texts, *(dict(gate.named_parameters())[n] for n in _used_parameters(gate))]
    expected = torch.autograd.grad(_loss(plain.scores, plain.gate.sum(-1), plain.gate.square().sum(-1)), wanted)
    got = torch.autograd.grad(_loss(ours.scores, ours.gate_mass, ours.gate_squares), wanted)
    whole = torch.cat([g.flatten() for g in expected]).norm()
    for ours_, exact in zip(got, expected, strict=True):
        assert (ours_ - exact).norm() < GRADIENT_TOLERANCE * (exact.norm() if exact.ndim else whole)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return out


def _largest(pooling, num_texts: int, num_tokens: int = 80) -> tuple[int, int]:
    """Largest tensor made by a training step, and elements kept for its backward pass beside the tokens."""
    gate, tokens, texts = _larger(pooling, num_texts)
    tokens = tokens.detach()[:, :num_tokens].requires_grad_()
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with _Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = align(gate, tokens, texts, chunk_elements=40 * 80)
        _stacked(out).square().sum().backward()
    return largest.elements, sum(kept.values()) - tokens.numel()


@pytest.mark.parametrize("pooling", MODES)
def test_memory_is_flat_in_the_number_of_sentences(pooling) -> None:
    """Four times the sentences: no tensor larger than the tokens', and what is kept knows nothing of the tokens."""
    (few, _), (many, kept) = _largest(pooling, 50), _largest(pooling, 200)
    assert few == many == 3 * 80 * 64 < 200 * 3 * 80
    assert _largest(pooling, 200, num_tokens=40)[1] == kept


def test_the_plain_form_fails_that_test_of_memory() -> None:
    gate, tokens, texts = _larger("sigmoid_null", 200)
    with _Largest() as largest:
        gate(tokens, texts).scores.sum().backward()
    assert largest.elements >= 200 * 3 * 80
