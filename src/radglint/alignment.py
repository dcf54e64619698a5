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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from radglint.gate import EPSILON, Pooling, SparseGate, pooling_weights

KEY_NORM_MIN = 1e-12  # as in torch.nn.functional.normalize
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
    queries, null = _scaled_queries(gate, texts, wanted), None if gate.null is None else gate.null.to(work)
    bias = None if queries is None else gate.gate_bias.to(work)
    sums: Any = _ImageByImage.apply(form, tokens, queries, bias, wanted, null, *_layers(gate))
    return Alignment(*sums.unbind(), num_tokens=tokens.shape[1])


def _scaled_queries(gate: SparseGate, texts: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """`texts gate_dim`: unit vectors times the gate's scale; None for the mean, which asks nothing."""
    if gate.config.pooling == "mean":
        return None
    if gate.config.shared_space:
        return gate.gate_scale * wanted
    return gate.gate_scale * functional.normalize(gate.text_gate(texts).to(wanted.dtype), dim=-1)


def _layers(gate: SparseGate) -> tuple[torch.Tensor | None, ...]:
    """Weight and bias of what makes the keys, then of what maps the pooled tokens to content.

    Mapping the pooled tokens is less work than mapping every token. In a shared space the keys are content already, so
    that content is pooled and nothing is left to map.
    """
    content = (gate.image_content.weight, gate.image_content.bias)
    if gate.config.pooling == "mean":
        return None, None, *content
    if gate.config.shared_space:
        return *content, None, None
    return gate.image_gate.weight, gate.image_gate.bias, *content


@dataclass(frozen=True)
class _Form:
    """What the passes need beside tensors."""

    pooling: Pooling
    top_k: int
    slot: float  # weight of the null slot
    product: torch.dtype  # of the factors of the large products
    chunk_elements: int


class _Layers(NamedTuple):
    """See `_layers`; with the passes they have the product's type, as gradients that of the parameters."""

    key_weight: Any
    key_bias: Any
    content_weight: Any
    content_bias: Any


class _Texts(NamedTuple):
    """The text side of the gate, or its gradients: all texts or one chunk."""

    queries: Any  # `texts gate_dim`, scaled; None with the mean
    bias: Any  # with the queries
    wanted: torch.Tensor  # `texts joint`, unit length
    null: Any  # `joint`, or None

    def chunks(self, form: _Form, num_tokens: int) -> Iterator[_Texts]:
        """Views of a run of texts each, whose gate over one image fits the chunk."""
        size = max(1, form.chunk_elements // num_tokens)
        for start in range(0, max(1, len(self.wanted)), size):  # no texts: one empty chunk
            queries = None if self.queries is None else self.queries[start : start + size]
            yield self._replace(queries=queries, wanted=self.wanted[start : start + size])


class _Image(NamedTuple):
    """One image, or its gradients."""

    tokens: Any  # `tokens token_dim`, in the product's type
    values: Any  # `tokens width`, what is pooled: the tokens, or in a shared space their content
    keys: Any  # `tokens gate_dim`, unit length; None with the mean
    norms: Any  # `tokens 1`: what the keys were divided by


class _Pooled(NamedTuple):
    """One image under one chunk of texts."""

    gate: torch.Tensor  # `texts tokens`
    factor: torch.Tensor  # the same in the product's type
    mass: torch.Tensor  # `texts`
    values: torch.Tensor  # `texts width`: gate-weighted sum of the image's values, in the product's type
    summed: torch.Tensor  # `texts joint`: the same as content, with the null slot
    norm: torch.Tensor  # `texts`: its length
    length: torch.Tensor  # `texts`: the length that divides the score, kept from zero as in `SparseGate.forward`
    scores: torch.Tensor  # `texts`


class _ImageByImage(torch.autograd.Function):
    """`3 texts batch`: scores, mass and squares. Only the inputs are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, form: _Form, tokens: torch.Tensor, *others: Any) -> torch.Tensor:
        ctx.form = form
        ctx.save_for_backward(tokens, *others)
        texts, layers = _Texts(*others[:4]), _Layers(*(_to(x, form.product) for x in others[4:]))
        with torch.autocast(tokens.device.type, enabled=False):
            return torch.stack([_image_sums(form, texts, layers, image) for image in tokens], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sums: torch.Tensor) -> tuple[Any, ...]:
        form, (tokens, *others) = ctx.form, ctx.saved_tensors
        texts, layers = _Texts(*others[:4]), _Layers(*(_to(x, form.product) for x in others[4:]))
        gradients: list[Any] = [None if x is None else torch.zeros_like(x) for x in others]
        d_texts, d_layers = _Texts(*gradients[:4]), _Layers(*gradients[4:])
        d_tokens = torch.empty_like(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            for image, d_image, d_column in zip(tokens, d_tokens, d_sums.unbind(-1), strict=True):
                d_image.copy_(_image_backward(form, texts, layers, image, d_column, d_texts, d_layers))
        return None, d_tokens, *gradients


def _to(tensor: torch.Tensor | None, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype)


def _image_sums(form: _Form, texts: _Texts, layers: _Layers, image: torch.Tensor) -> torch.Tensor:
    """`3 texts`: scores, mass and squares on one image."""
    projected = _project(form, layers, image, texts.wanted.dtype)
    pooled = (_pool(form, chunk, layers, projected) for chunk in texts.chunks(form, len(image)))
    return torch.cat([torch.stack([p.scores, p.mass, torch.linalg.vecdot(p.gate, p.gate)]) for p in pooled], dim=1)


def _project(form: _Form, layers: _Layers, image: torch.Tensor, work: torch.dtype) -> _Image:
    """Keys and values of `tokens token_dim`."""
    tokens = image.to(form.product)
    if layers.key_weight is None:
        return _Image(tokens, tokens, None, None)
    raw = functional.linear(tokens, layers.key_weight, layers.key_bias)
    norms = torch.linalg.vector_norm(raw, dim=-1, keepdim=True, dtype=work).clamp_min(KEY_NORM_MIN)
    return _Image(tokens, raw if layers.content_weight is None else tokens, raw / norms, norms)


def _pool(form: _Form, texts: _Texts, layers: _Layers, image: _Image) -> _Pooled:
    """The cosine does not depend on the length of the pooled embedding, so the sum is not divided by its mass."""
    if texts.queries is None:
        gate = texts.wanted.new_ones(len(texts.wanted), len(image.tokens))
    else:
        gate = pooling_weights(torch.addmm(texts.bias, texts.queries, image.keys.T), form.pooling, form.top_k)
    factor, mass = gate.to(form.product), gate.sum(dim=-1)
    summed = values = factor @ image.values
    if layers.content_weight is not None:
        summed = torch.addr((values @ layers.content_weight.T).to(gate.dtype), mass, layers.content_bias.to(gate.dtype))
    summed = summed.to(gate.dtype)
    if texts.null is not None:
        summed = summed + form.slot * texts.null
    norm = torch.linalg.vector_norm(summed, dim=-1)
    length = torch.maximum(norm, EPSILON * (mass + form.slot))
    scores = torch.linalg.vecdot(summed, texts.wanted) / length
    return _Pooled(gate, factor, mass, values, summed, norm, length, scores)


def _image_backward(
    form: _Form, texts: _Texts, layers: _Layers, image: torch.Tensor, d_sums: torch.Tensor, d_texts: _Texts,
    d_layers: _Layers,
) -> torch.Tensor:  # fmt: skip
    """Gradient of one image's tokens from that of its `3 texts`; those of texts and layers are added to."""
    projected = _project(form, layers, image, d_sums.dtype)
    d_image, start = _Image(None, None, None, None), 0
    for chunk, d_chunk in zip(texts.chunks(form, len(image)), d_texts.chunks(form, len(image)), strict=True):
        stop = start + len(chunk.wanted)
        made = _chunk_backward(form, chunk, layers, projected, d_sums[:, start:stop], d_chunk, d_layers)
        d_image, start = _Image(*(_sum(*pair) for pair in zip(d_image, made, strict=True))), stop
    if layers.key_weight is None:
        return d_image.values
    d_raw = _normalize_backward(projected, d_image.keys.to(d_sums.dtype))
    d_tokens = d_image.values
    if layers.content_weight is None:
        d_raw, d_tokens = d_raw.add_(d_image.values), None
    d_layers.key_bias.add_(d_raw.sum(dim=0))
    factor = d_raw.to(form.product)
    d_layers.key_weight.add_(factor.T @ projected.tokens)
    return _sum(d_tokens, factor @ layers.key_weight)


def _sum(total: torch.Tensor | None, more: torch.Tensor | None) -> Any:
    """Their sum, None being 0; in float32 from the second on."""
    if total is None or more is None:
        return more if total is None else total
    return total.to(torch.promote_types(total.dtype, torch.float32)).add_(more)


def _chunk_backward(
    form: _Form, texts: _Texts, layers: _Layers, image: _Image, d_sums: torch.Tensor, d_texts: _Texts,
    d_layers: _Layers,
) -> _Image:  # fmt: skip
    """Gradients of one image under one chunk of texts.

    Args:
        form: pooling and types.
        texts: the chunk.
        layers: of the gate.
        image: its keys and values.
        d_sums: `3 texts`, gradients of scores, mass and squares.
        d_texts: gradients of `texts`, added to.
        d_layers: gradients of `layers`, added to.

    Returns:
        Gradients of keys and values.
    """
    pooled = _pool(form, texts, layers, image)
    d_summed, d_mass, d_wanted = _scores_backward(pooled, texts.wanted, d_sums[0])
    d_texts.wanted.add_(d_wanted)
    if texts.null is not None:
        d_texts.null.add_(d_summed.sum(dim=0), alpha=form.slot)
    d_pooled = d_summed.to(form.product)
    if layers.content_weight is not None:
        d_layers.content_weight.add_(d_pooled.T @ pooled.values)
        d_layers.content_bias.add_(pooled.mass @ d_summed)
        d_mass = d_mass + d_summed @ layers.content_bias.to(d_summed.dtype)
        d_pooled = d_pooled @ layers.content_weight
    d_values = pooled.factor.T @ d_pooled
    if texts.queries is None:
        return _Image(None, d_values, None, None)
    d_gate = torch.addcmul((d_mass + d_sums[1])[:, None], pooled.gate, 2 * d_sums[2, :, None])
    d_logits = _logits_backward(form, pooled.gate, d_gate.add_(d_pooled @ image.values.T))
    d_texts.bias.add_(d_logits.sum())
    factor = d_logits.to(form.product)
    d_texts.queries.add_(factor @ image.keys.to(form.product))
    return _Image(None, d_values, factor.T @ texts.queries.to(form.product), None)


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


def _normalize_backward(image: _Image, d_keys: torch.Tensor) -> torch.Tensor:
    """Gradient of what was divided by its length to give the keys."""
    along = torch.linalg.vecdot(image.keys, d_keys)[:, None]
    return torch.addcmul(d_keys, image.keys, along, value=-1).div_(image.norms)
