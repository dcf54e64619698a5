"""Sparsely Gated Alignment: which patches is this phrase about, and how well do they fit it?

Reference: GLINT, arXiv 2606.03180 (abstract); the equations are our reconstruction, section 3 of our method notes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt
from torch import nn

Pooling = Literal["mean", "softmax", "softmax_null", "sigmoid", "sigmoid_null", "top_k"]
EPSILON = 1e-6  # keeps a fully closed gate finite


class GateConfig(BaseModel):
    """Choices of the gate; the defaults are GLINT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pooling: Pooling = "sigmoid_null"
    joint_dim: PositiveInt = 256  # width of the content space, where image and text are compared
    gate_dim: PositiveInt = 128  # width of the gate space, where patches are chosen
    shared_space: bool = False  # True: the gate reads the content space (RadZero), no weights of its own
    initial_scale: float = 10.0
    initial_bias: float = -2.0  # sigmoid(-2) = 0.12; sparsity emerges from there
    null_weight: float = 1.0  # weight of the null slot, in patches
    top_k: PositiveInt = 16
    map_content_weight: NonNegativeFloat = 0.0  # how much a map also asks how well a patch fits the text
    map_score_weight: NonNegativeFloat = 0.0  # and how well the whole image fits, or in a volume the patch's slice


@dataclass(frozen=True)
class GatedScores:
    """The gate's answer for every text and image.

    Attributes:
        scores: `texts batch`, cosine in [-1, 1].
        gate_logits: `texts batch tokens`, before the sigmoid.
        gate: `texts batch tokens`, the pooling weights before normalisation, in [0, 1].
        map_logits: `texts batch tokens`, what a map shows, see `SparseGate.map_logits`.
        slice_scores: `texts batch slices`, the best score of the runs that hold each slice; one "slice" if the image
            was pooled as a whole.
    """

    scores: torch.Tensor
    gate_logits: torch.Tensor
    gate: torch.Tensor
    map_logits: torch.Tensor
    slice_scores: torch.Tensor


class PreparedTokens(NamedTuple):
    """What the gate makes of image tokens before any text is known, for images that are asked often.

    Attributes:
        keys: `batch tokens gate`, unit length.
        content: `batch tokens joint`, float32.
        lengths: `batch tokens`, of the rows of `content`, at least `EPSILON`.
    """

    keys: torch.Tensor
    content: torch.Tensor
    lengths: torch.Tensor


def pooling_weights(gate_logits: torch.Tensor, pooling: Pooling, top_k: int = 16) -> torch.Tensor:
    """Weight of each patch for each text, not normalised over patches except for the softmax forms.

    Args:
        gate_logits: `... tokens`, float32.
        pooling: mean = 1 everywhere; softmax = over tokens; softmax_null = the same with an extra slot of logit 0;
            sigmoid and sigmoid_null = each patch alone; top_k = sigmoid, kept at the k largest logits.
        top_k: how many patches stay on in the top_k form.

    Returns:
        `... tokens`, in [0, 1].

    Naive form: sigmoid: w[p] = 1 / (1 + exp(-l[p])); softmax_null: w[p] = exp(l[p]) / (1 + sum_q exp(l[q])).
    """
    if pooling == "mean":
        return torch.ones_like(gate_logits)
    if pooling == "softmax":
        return gate_logits.softmax(dim=-1)
    if pooling == "softmax_null":
        zero_slot = torch.zeros_like(gate_logits[..., :1])
        return torch.cat([gate_logits, zero_slot], dim=-1).softmax(dim=-1)[..., :-1]
    gate = gate_logits.sigmoid()
    if pooling == "top_k":
        keep = gate_logits.topk(min(top_k, gate_logits.shape[-1]), dim=-1).indices
        gate = gate * torch.zeros_like(gate).scatter(-1, keep, 1.0)
    return gate


def pool_content(
    content: torch.Tensor, gate: torch.Tensor, null: torch.Tensor | None = None, null_weight: float = 1.0
) -> torch.Tensor:
    """Gate-weighted mean of the content embeddings, with a null slot if one is given.

    Args:
        content: `batch tokens embed`.
        gate: `texts batch tokens`, in [0, 1].
        null: `embed`, what an image without the finding looks like; None leaves the slot out.
        null_weight: weight of that slot, in patches.

    Returns:
        `texts batch embed`. With every gate closed it is the null embedding (or zero), never NaN.

    Naive form: z[t, b] = (sum_p g[t, b, p] * c[b, p] + g0 * n) / (sum_p g[t, b, p] + g0), with g0 = 1e-6 and n = 0
        when there is no null slot.
    """
    summed = torch.einsum("tbp,bpd->tbd", gate, content)
    mass = gate.sum(dim=-1, keepdim=True)
    if null is None:
        return summed / (mass + EPSILON)
    return (summed + null_weight * null) / (mass + null_weight)


def _window_sums(per_slice: torch.Tensor, window: int) -> torch.Tensor:
    """Sums over runs of `window` slices: `texts batch slices width` to `texts batch (slices - window + 1) width`."""
    window = min(window, per_slice.shape[2])
    return per_slice.unfold(2, window, 1).sum(dim=-1)


def _best_of_windows(scores: torch.Tensor, depth: int) -> torch.Tensor:
    """Best score of the runs that hold each slice: `texts batch windows` to `texts batch depth`."""
    window = depth - scores.shape[-1] + 1
    padded = nn.functional.pad(scores, (window - 1, window - 1), value=-1.0)  # a cosine is no less
    return padded.unfold(-1, window, 1).amax(dim=-1)


def _lengths(tokens: torch.Tensor | PreparedTokens) -> torch.Tensor | None:
    return tokens.lengths if isinstance(tokens, PreparedTokens) else None


class SparseGate(nn.Module):
    """Text-conditioned pooling with a gate space of its own.

    Args:
        token_dim: width of the image tokens.
        text_dim: width of the sentence embeddings.
        config: pooling form and widths.
    """

    def __init__(self, token_dim: int, text_dim: int, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.image_content = nn.Linear(token_dim, config.joint_dim)
        self.text_content = nn.Linear(text_dim, config.joint_dim)
        if not config.shared_space:
            self.image_gate = nn.Linear(token_dim, config.gate_dim)
            self.text_gate = nn.Linear(text_dim, config.gate_dim)
        self.gate_scale = nn.Parameter(torch.tensor(float(config.initial_scale)))
        self.gate_bias = nn.Parameter(torch.tensor(float(config.initial_bias)))
        has_null = config.pooling == "sigmoid_null"
        self.null = nn.Parameter(torch.randn(config.joint_dim) / math.sqrt(config.joint_dim)) if has_null else None

    def prepare(self, tokens: torch.Tensor) -> PreparedTokens:
        """Project `batch tokens token_dim` once; `forward` and `forward_windows` take the result in their place."""
        content = self.image_content(tokens).float()
        return PreparedTokens(self._keys(tokens), content, content.norm(dim=-1).clamp(min=EPSILON))

    def _keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """`batch tokens gate`, unit length, float32."""
        keys = self.image_content(tokens) if self.config.shared_space else self.image_gate(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            return nn.functional.normalize(keys.float(), dim=-1)

    def contents(self, tokens: torch.Tensor | PreparedTokens, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`batch tokens joint`, content of the patches, and `texts joint`, what the texts want, at unit length."""
        wanted = nn.functional.normalize(self.text_content(texts).float(), dim=-1)
        prepared = isinstance(tokens, PreparedTokens)
        return tokens.content if prepared else self.image_content(tokens).float(), wanted

    def gate_logits(
        self, tokens: torch.Tensor | PreparedTokens, texts: torch.Tensor, prior: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`texts batch tokens`: scale * cosine in the gate space + bias + prior, float32."""
        queries = self.text_content(texts) if self.config.shared_space else self.text_gate(texts)
        keys = tokens.keys if isinstance(tokens, PreparedTokens) else self._keys(tokens)
        with torch.autocast(keys.device.type, enabled=False):  # in bfloat16 a logit near 10 is off by 0.04
            queries = nn.functional.normalize(queries.float(), dim=-1)
            logits = self.gate_scale * torch.einsum("td,bpd->tbp", queries, keys) + self.gate_bias
        return logits if prior is None else logits + prior

    def map_logits(
        self, gate_logits: torch.Tensor, content: torch.Tensor, wanted: torch.Tensor, scores: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Evidence for each patch: log(gate) + v * cos(content, text) + w * score; with v = w = 0 the gate's logit.

        A gate only has to pick some telling patches; asking also whether a patch fits the text shows more of it, and
        asking whether its slice fits keeps one stray patch of a long volume below a finding.

        Args:
            gate_logits: `texts batch tokens`.
            content: `batch tokens joint`.
            wanted: `texts joint`, unit length.
            scores: `texts batch tokens` or `texts batch 1`, the score of what each patch was pooled with.
            lengths: of `content`, where they are known already.

        Returns:
            `texts batch tokens`, float32.
        """
        content_weight, score_weight = self.config.map_content_weight, self.config.map_score_weight
        if content_weight == score_weight == 0:
            return gate_logits
        if lengths is None:
            fit = torch.einsum("td,bpd->tbp", wanted, nn.functional.normalize(content, dim=-1, eps=EPSILON))
        else:
            fit = torch.einsum("td,bpd->tbp", wanted, content) / lengths
        return nn.functional.logsigmoid(gate_logits) + content_weight * fit + score_weight * scores

    def forward_windows(
        self, tokens: torch.Tensor | PreparedTokens, texts: torch.Tensor, depth: int, window: int,
        prior: torch.Tensor | None = None,
    ) -> GatedScores:  # fmt: skip
        """Like `forward` on a long volume, scored as its best run of slices.

        A gate is trained on slabs; pooled over a hundred slices, its few wrong patches would drown a nodule. The score
        of a volume is the highest score of any `window` neighbouring slices.

        Args:
            tokens: `batch (depth * patches) token_dim`, or what `prepare` made of it.
            texts: `texts text_dim`.
            depth: slices of the volume.
            window: slices pooled together; with `window >= depth` this is `forward`.
            prior: as there.

        Raises:
            ValueError: the pooling form normalises over all patches, so that windows make no sense.

        Naive form: max over d of score(tokens of slices d to d + window - 1).
        """
        if self.config.pooling not in ("sigmoid", "sigmoid_null", "mean"):
            raise ValueError(f"windows need a gate that decides patch by patch, not {self.config.pooling!r}")
        logits = self.gate_logits(tokens, texts, prior)
        gate = pooling_weights(logits, self.config.pooling)
        sliced = gate.unflatten(-1, (depth, -1))
        content, wanted = self.contents(tokens, texts)
        content = content.unflatten(1, (depth, -1))
        summed = _window_sums(torch.einsum("tbsp,bspd->tbsd", sliced, content), window)
        mass = _window_sums(sliced.sum(dim=-1, keepdim=True), window)
        null_weight = self.config.null_weight if self.null is not None else EPSILON
        pooled = (summed + null_weight * (self.null if self.null is not None else 0.0)) / (mass + null_weight)
        scores = torch.einsum("tbsd,td->tbs", nn.functional.normalize(pooled, dim=-1, eps=EPSILON), wanted)
        by_slice = _best_of_windows(scores, depth)
        by_token = by_slice.repeat_interleave(logits.shape[-1] // depth, dim=-1)
        maps = self.map_logits(logits, content.flatten(1, 2), wanted, by_token, _lengths(tokens))
        return GatedScores(scores.amax(dim=-1), logits, gate, maps, by_slice)

    def forward(
        self, tokens: torch.Tensor | PreparedTokens, texts: torch.Tensor, prior: torch.Tensor | None = None
    ) -> GatedScores:
        """Score every text on every image.

        Args:
            tokens: `batch tokens token_dim`, or what `prepare` made of it.
            texts: `texts text_dim`.
            prior: `texts batch tokens`, added to the gate's logits: the log-probability that a patch is where the text
                wants it (`place.place_prior`); None = anywhere.

        Returns:
            GatedScores; `scores[t, b] = cos(z[t, b], u[t])`.
        """
        logits = self.gate_logits(tokens, texts, prior)
        gate = pooling_weights(logits, self.config.pooling, self.config.top_k)
        content, wanted = self.contents(tokens, texts)
        pooled = pool_content(content, gate, self.null, self.config.null_weight)
        scores = torch.einsum("tbd,td->tb", nn.functional.normalize(pooled, dim=-1, eps=EPSILON), wanted)
        maps = self.map_logits(logits, content, wanted, scores[..., None], _lengths(tokens))
        return GatedScores(scores, logits, gate, maps, scores[..., None])
