"""The gate's scores for training: the numbers of `SparseGate.forward` without its `texts batch tokens` tensors.

Images are taken one at a time and texts in chunks; the backward pass, written by hand, computes each gate again. What
stays in memory is `texts batch`, one image's projections and one chunk of the gate, however many sentences there are.

Under autocast the large products take their factors in its type, while what follows stays in float32: logits, sigmoid
or softmax, sums over tokens and the cosine. With bfloat16, scores are within 0.005 of those in float32, the gradient of
each tensor within 2 % of its length (of the gate's scale and bias, two sums of terms that cancel: 2 % of the length of
the whole gradient); top_k may keep another token where two are that close. Without autocast all is float32, or float64
if the tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from radglint.gate import EPSILON, Pooling, SparseGate, pooling_weights

CHUNK_ELEMENTS = 2**19  # texts x tokens of one chunk: 2 MB in float32, which caches hold


@dataclass(frozen=True)
class Alignment:
    """What the losses read, for every text and image.

    Attributes:
        scores: `texts batch`, cosine in [-1, 1].
        gate_mass: `texts batch`, sum of the gate over the tokens.
        gate_squares: `texts batch`, sum of its square.
        num_tokens: tokens of one image.
    """

    scores: torch.Tensor
    gate_mass: torch.Tensor
    gate_squares: torch.Tensor
    num_tokens: int


def align(
    gate: SparseGate, tokens: torch.Tensor, texts: torch.Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> Alignment:
    """Score every text on every image, with gradients to tokens, texts and the gate's parameters.

    Args:
        gate: any pooling form.
        tokens: `batch tokens token_dim`.
        texts: `texts text_dim`.
        chunk_elements: texts x tokens that may be in memory at once; it changes the speed, not the result.

    Naive form: out = gate(tokens, texts); out.scores, out.gate.sum(-1), out.gate.square().sum(-1)
    """
    config, device = gate.config, tokens.device.type
    work = torch.promote_types(tokens.dtype, torch.float32)
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else work
    slot = config.null_weight if gate.null is not None else EPSILON
    form = _Form(config.pooling, config.top_k, slot, product, chunk_elements)
    wanted = functional.normalize(gate.text_content(texts).to(work), dim=-1)
    null = None if gate.null is None else gate.null.to(work)
    queries, gate_layer = _scaled_queries(gate, texts, wanted), (None, None)
    if queries is not None and not config.shared_space:
        gate_layer = (gate.image_gate.weight, gate.image_gate.bias)
    layers = (gate.image_content.weight, gate.image_content.bias, *gate_layer)
    bias = None if queries is None else gate.gate_bias.to(work)
    sums: Any = _ImageByImage.apply(form, tokens, queries, bias, wanted, null, *layers)
    return Alignment(*sums.unbind(), num_tokens=tokens.shape[1])


def _scaled_queries(gate: SparseGate, texts: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """`texts gate_dim`: unit vectors times the gate's scale; None for the mean, which asks nothing."""
    if gate.config.pooling == "mean":
        return None
    if gate.config.shared_space:
        return gate.gate_scale * wanted
    return gate.gate_scale * functional.normalize(gate.text_gate(texts).to(wanted.dtype), dim=-1)


@dataclass(frozen=True)
class _Form:
    """What the passes need beside tensors."""

    pooling: Pooling
    top_k: int
    slot: float  # weight of the null slot
    product: torch.dtype  # of the factors of the large products
    chunk_elements: int


class _Texts(NamedTuple):
    """The text side of the gate, or its gradients: all texts or one chunk."""

    queries: torch.Tensor | None  # `texts gate_dim`, scaled
    bias: torch.Tensor | None  # with the queries
    wanted: torch.Tensor  # `texts joint`, unit length
    null: torch.Tensor | None  # `joint`

    def chunks(self, form: _Form, num_tokens: int) -> Iterator[_Texts]:
        """Views of a run of texts each, whose gate over one image fits the chunk."""
        size = max(1, form.chunk_elements // num_tokens)
        for start in range(0, len(self.wanted), size):
            queries = None if self.queries is None else self.queries[start : start + size]
            yield self._replace(queries=queries, wanted=self.wanted[start : start + size])


class _Pooled(NamedTuple):
    """One image under one chunk of texts."""

    gate: torch.Tensor  # `texts tokens`
    mass: torch.Tensor  # `texts`
    summed: torch.Tensor  # `texts joint`: gate-weighted sum of the content, with the null slot
    norm: torch.Tensor  # `texts`: its length
    length: torch.Tensor  # `texts`: the length that divides the score, kept from zero as in `SparseGate.forward`
    scores: torch.Tensor  # `texts`


def _project(image: torch.Tensor, layers: Sequence[Any], form: _Form, texts: _Texts) -> list[torch.Tensor]:
    """Content `tokens joint` in the product's type, and unit keys `tokens gate_dim` if the texts have queries."""
    weight, bias, gate_weight, gate_bias = layers
    content = functional.linear(image.to(form.product), weight, bias)
    if texts.queries is None:
        return [content]
    keys = content if gate_weight is None else functional.linear(image.to(form.product), gate_weight, gate_bias)
    return [content, functional.normalize(keys.to(texts.wanted.dtype), dim=-1)]


def _pool(form: _Form, texts: _Texts, content: torch.Tensor, keys: torch.Tensor | None = None) -> _Pooled:
    """The cosine does not depend on the length of the pooled embedding, so the sum is not divided by its mass."""
    if texts.queries is None or texts.bias is None or keys is None:
        gate = texts.wanted.new_ones(len(texts.wanted), len(content))
    else:
        gate = pooling_weights(torch.addmm(texts.bias, texts.queries, keys.T), form.pooling, form.top_k)
    mass = gate.sum(dim=-1)
    summed = (gate.to(form.product) @ content).to(gate.dtype)
    if texts.null is not None:
        summed += form.slot * texts.null
    norm = torch.linalg.vector_norm(summed, dim=-1)
    length = torch.maximum(norm, EPSILON * (mass + form.slot))
    return _Pooled(gate, mass, summed, norm, length, torch.linalg.vecdot(summed, texts.wanted) / length)


class _ImageByImage(torch.autograd.Function):
    """`3 texts batch`: scores, mass and squares. Only the inputs are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, form: _Form, tokens: torch.Tensor, queries: torch.Tensor | None, bias: torch.Tensor | None,
        wanted: torch.Tensor, null: torch.Tensor | None, *layers: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.form = form
        ctx.save_for_backward(tokens, queries, bias, wanted, null, *layers)
        texts, cast = _Texts(queries, bias, wanted, null), _factors(layers, form)
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.stack([_image_sums(form, texts, image, cast) for image in tokens], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums: torch.Tensor) -> tuple[Any, ...]:
        tokens, *others = ctx.saved_tensors
        texts, cast = _Texts(*others[:4]), _factors(others[4:], ctx.form)
        d_tokens, d_texts = torch.empty_like(tokens), _Texts(*map(_zeros_like, others[:4]))
        d_layers = [_zeros_like(layer) for layer in others[4:]]
        with torch.autocast(tokens.device.type, enabled=False):
            for image, d_image, d_column in zip(tokens, d_tokens, d_sums.unbind(-1), strict=True):
                gradients = _image_backward(ctx.form, texts, image, cast, d_column, d_texts)
                for total, gradient in zip((d_image.zero_(), *d_layers), gradients, strict=True):
                    if total is not None and gradient is not None:
                        total.add_(gradient)
        return None, d_tokens, *d_texts, *d_layers


def _factors(layers: Sequence[torch.Tensor | None], form: _Form) -> list[torch.Tensor | None]:
    """Weights in the product's type, as leaves of their own."""
    return [None if x is None else x.detach().to(form.product).requires_grad_() for x in layers]


def _zeros_like(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else torch.zeros_like(tensor)


def _image_sums(form: _Form, texts: _Texts, image: torch.Tensor, layers: Sequence[Any]) -> torch.Tensor:
    """`3 texts`: scores, mass and squares on one image."""
    projected = _project(image, layers, form, texts)
    pooled = (_pool(form, chunk, *projected) for chunk in texts.chunks(form, len(image)))
    return torch.cat([torch.stack([p.scores, p.mass, torch.linalg.vecdot(p.gate, p.gate)]) for p in pooled], dim=1)


def _image_backward(
    form: _Form, texts: _Texts, image: torch.Tensor, layers: Sequence[Any], d_sums: torch.Tensor, d_texts: _Texts
) -> Sequence[torch.Tensor | None]:
    """Gradients of the image and the layers from `3 texts`; those of the texts are added to `d_texts`."""
    leaf = image.detach().requires_grad_()
    with torch.enable_grad():
        projected = _project(leaf, layers, form, texts)
    d_projected = [torch.zeros_like(x, dtype=d_sums.dtype) for x in projected]
    start = 0
    for chunk, d_chunk in zip(texts.chunks(form, len(image)), d_texts.chunks(form, len(image)), strict=True):
        stop = start + len(chunk.wanted)
        _chunk_backward(form, chunk, [x.detach() for x in projected], d_sums[:, start:stop], d_chunk, d_projected)
        start = stop
    inputs = [x for x in (leaf, *layers) if x is not None]
    gradients = iter(
        torch.autograd.grad(projected, inputs, [d.to(x.dtype) for d, x in zip(d_projected, projected, strict=True)])
    )
    return [None if x is None else next(gradients) for x in (leaf, *layers)]


def _chunk_backward(
    form: _Form, texts: _Texts, projected: Sequence[torch.Tensor], d_sums: torch.Tensor, d_texts: _Texts,
    d_projected: Sequence[torch.Tensor],
) -> None:  # fmt: skip
    """Add the gradients of one image under one chunk of texts.

    Args:
        form: pooling and types.
        texts: the chunk.
        projected: content and keys of the image.
        d_sums: `3 texts`, gradients of scores, mass and squares.
        d_texts: gradients of `texts`, added to.
        d_projected: gradients of `projected`, added to.
    """
    pooled = _pool(form, texts, *projected)
    d_summed, d_mass, d_wanted = _scores_backward(pooled, texts.wanted, d_sums[0])
    d_texts.wanted.add_(d_wanted)
    if d_texts.null is not None:
        d_texts.null.add_(d_summed.sum(dim=0), alpha=form.slot)
    factor = d_summed.to(form.product)
    d_projected[0].add_(pooled.gate.to(form.product).T @ factor)
    if texts.queries is None or d_texts.queries is None or d_texts.bias is None:
        return
    d_gate = (factor @ projected[0].T).to(pooled.gate.dtype)
    d_gate.add_((d_mass + d_sums[1])[:, None]).addcmul_(pooled.gate, d_sums[2, :, None], value=2)
    d_logits = _logits_backward(form, pooled.gate, d_gate)
    d_texts.bias.add_(d_logits.sum())
    factor = d_logits.to(form.product)
    d_texts.queries.add_(factor @ projected[1].to(form.product))
    d_projected[1].add_(factor.T @ texts.queries.to(form.product))


def _scores_backward(
    pooled: _Pooled, wanted: torch.Tensor, d_scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `summed`, `mass` and `wanted`.

    scores = (summed . wanted) / length, where length is the norm of `summed`, or EPSILON * (mass + slot) if larger.
    """
    share = d_scores / pooled.length
    d_length = -share * pooled.scores
    is_short = pooled.norm < pooled.length
    d_norm = torch.where(is_short, 0, d_length / pooled.length)
    d_summed = share[:, None] * wanted + d_norm[:, None] * pooled.summed
    return d_summed, torch.where(is_short, EPSILON * d_length, 0), share[:, None] * pooled.summed


def _logits_backward(form: _Form, gate: torch.Tensor, d_gate: torch.Tensor) -> torch.Tensor:
    """Gradient of the gate's logits; the null slot gets none, so both softmax forms have the same one."""
    if form.pooling in ("softmax", "softmax_null"):
        return torch.ops.aten._softmax_backward_data(d_gate, gate, -1, gate.dtype)
    return torch.ops.aten.sigmoid_backward(d_gate, gate)  # 0 where top_k has closed the gate
