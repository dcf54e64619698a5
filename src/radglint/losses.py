"""Contrastive losses between sentences and images, and the sparsity terms of the gate.

Scores are `texts batch`; `positives` of the same shape is True where the sentence holds for the image, so one
sentence may fit many images and an image has many sentences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from radglint.errors import ConfigError

ContrastKind = Literal["info_nce", "sigmoid"]
SparsityKind = Literal["none", "budget", "negatives", "binarise"]
NEVER = -1e30  # a finite stand-in for minus infinity, so that a row without negatives has a zero gradient, not NaN


def _multi_positive(logits: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Mean over positive entries of -log(e^pos / (e^pos + sum of e^neg along the last axis)).

    The other positives of the same row are left out of the denominator.
    """
    contrast = logits.masked_fill(~negatives, NEVER).logsumexp(dim=-1, keepdim=True)
    per_entry = functional.softplus(contrast - logits)
    return per_entry[positives].mean()


def multi_positive_info_nce(
    scores: torch.Tensor,
    positives: torch.Tensor,
    logit_scale: torch.Tensor | float,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-positive InfoNCE, both ways, averaged.

    Each positive pair is contrasted with the images that its sentence does not fit, and with the sentences that do
    not fit its image.

    Args:
        scores: `texts batch`, cosine.
        positives: `texts batch`, bool, at least one True.
        logit_scale: 1 / temperature.
        negatives: `texts batch`, bool; every pair that is not positive by default. A pair in neither is undecided
            (a look-alike, an unknown side) and stays out.

    Returns:
        Scalar loss. A positive pair without any negative contributes 0.

    Raises:
        ValueError: no positive pair, or shapes differ.

    Naive form:
        row = mean over positive (t, b) of -log(e[t,b] / (e[t,b] + sum over b' negative for t of e[t,b']))
        col = mean over positive (t, b) of -log(e[t,b] / (e[t,b] + sum over t' negative for b of e[t',b]))
        loss = (row + col) / 2, with e = exp(logit_scale * scores)

    Reference: MP-NCE as in RadZero (Park et al., NeurIPS 2025), there for the column part only.
    """
    if scores.shape != positives.shape or not bool(positives.any()):
        raise ValueError(f"scores {tuple(scores.shape)} need positives of that shape with at least one True")
    logits = logit_scale * scores.float()
    others = ~positives if negatives is None else negatives
    return (_multi_positive(logits, positives, others) + _multi_positive(logits.T, positives.T, others.T)) / 2


def evidence_loss(
    evidence: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, shown: torch.Tensor
) -> torch.Tensor:
    """The highest patches of an image that a sentence fits say yes; those of one that it does not fit say no.

    The contrastive loss reads pooled patches only: what a closed gate hides may look like anything, and a map that asks
    how well a patch fits then marks it. Here the highest patches of the negatives are held down, from the report alone.

    Both sides count the same number of patches. With more of them on the no side than on the yes side, a map that marks
    the same few patches in every image, whatever is asked, has a low loss: it was .4 where chance is 1.39 (LOG.md).

    Args:
        evidence: `texts batch tokens`, logits of a patch showing what the text says.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool; a pair in neither stays out.
        shown: `texts`, how many patches at the least show it, from the words alone (a "large" effusion has more).

    Returns:
        Scalar, the sum of both means; a kind of pair that is missing adds 0. A map that does not look at the image has
        at least 2 log 2.

    Naive form:
        no = mean over negative (t, b) of mean over the shown[t] highest p of log(1 + exp(e[t,b,p]))
        yes = mean over positive (t, b) of mean over the shown[t] highest p of log(1 + exp(-e[t,b,p]))
    """
    return evidence_of_rows(evidence_rows(evidence, shown), positives, negatives)


def evidence_rows(evidence: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """What `evidence_loss` needs of each pair, so that images may be spread over pieces and processes.

    Args:
        evidence: `texts batch tokens`, as there.
        shown: `texts`, as there.

    Returns:
        `2 texts batch`: the loss of a pair if the sentence does not fit, and if it fits.
    """
    kept = min(int(shown.max()), evidence.shape[-1])
    highest = evidence.topk(kept, dim=-1).values
    chosen = torch.arange(kept, device=shown.device) < shown.clamp(1, kept)[:, None]
    share = (chosen / chosen.sum(-1, keepdim=True))[:, None]
    return torch.stack([(functional.softplus(sign * highest) * share).sum(-1) for sign in (1, -1)])


def evidence_of_rows(rows: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """`evidence_loss` of the whole batch from the `evidence_rows` of all its images."""
    pairs = zip(rows, (negatives, positives), strict=True)
    parts = [part[counted].mean() for part, counted in pairs if bool(counted.any())]
    return torch.stack(parts).sum() if parts else rows.sum() * 0


def sigmoid_contrastive_loss(
    scores: torch.Tensor, positives: torch.Tensor, logit_scale: torch.Tensor | float, logit_bias: torch.Tensor | float,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Pairwise sigmoid loss (SigLIP): every pair is its own yes-no question.

    Args:
        scores: `texts batch`, cosine.
        positives: `texts batch`, bool.
        logit_scale: multiplies the scores, start at 10.
        logit_bias: added to them, start at -10.
        negatives: `texts batch`, bool; every pair that is not positive by default. A pair in neither is undecided
            and stays out.

    Returns:
        Scalar: the sum over decided pairs divided by the number of images.

    Naive form: sum over decided t, b of -log(sigmoid(y[t,b] * (logit_scale * s[t,b] + logit_bias))) / batch, with
        y = +1 for a positive pair, else -1.

    Reference: Zhai et al. 2023, arXiv 2303.15343, equation 1.
    """
    logits = logit_scale * scores.float() + logit_bias
    sign = positives.to(logits.dtype) * 2 - 1
    per_pair = functional.softplus(-sign * logits)
    decided = per_pair if negatives is None else per_pair[positives | negatives]
    return decided.sum() / scores.shape[1]


def contrastive_loss(
    kind: ContrastKind, scores: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor,
    logit_scale: torch.Tensor, logit_bias: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The loss between sentences and images that a run asks for.

    Args:
        kind: info_nce = `multi_positive_info_nce`; sigmoid = `sigmoid_contrastive_loss`.
        scores: `texts batch`, cosine.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool; a pair in neither stays out.
        logit_scale: 1 / temperature.
        logit_bias: for the sigmoid form only.

    Raises:
        ConfigError: the sigmoid form without a bias.
    """
    if kind == "info_nce":
        return multi_positive_info_nce(scores, positives, logit_scale, negatives=negatives)
    if logit_bias is None:
        raise ConfigError("loss 'sigmoid' needs a branch with a logit bias; set branch.initial_logit_bias to -10")
    return sigmoid_contrastive_loss(scores, positives, logit_scale, logit_bias, negatives=negatives)


def gate_sparsity_loss(
    gate: torch.Tensor, positives: torch.Tensor, kind: SparsityKind, budget: float = 0.05
) -> torch.Tensor:
    """Explicit sparsity of the gate, one of four kinds.

    Args:
        gate: `texts batch tokens`, in [0, 1].
        positives: `texts batch`, bool. Leave negated sentences out of both arguments: they have no place.
        kind: none = 0; budget = hinge on the mean gate of positive pairs above `budget`; negatives = mean gate of
            the pairs that do not fit; binarise = g (1 - g) of positive pairs.
        budget: share of patches that a positive sentence may use.

    Returns:
        Scalar.

    Naive form: budget: mean over positive (t, b) of max(mean_p g - budget, 0) ** 2;
        negatives: mean over other (t, b) of mean_p g; binarise: mean over positive (t, b) and p of g (1 - g).
    """
    return sparsity_of_sums(gate.sum(-1), gate.square().sum(-1), gate.shape[-1], positives, kind, budget)


def sparsity_of_sums(
    mass: torch.Tensor, squares: torch.Tensor, num_tokens: int, positives: torch.Tensor, kind: SparsityKind,
    budget: float = 0.05,
) -> torch.Tensor:  # fmt: skip
    """`gate_sparsity_loss` from the sums over tokens that `align` gives, where no gate is in memory.

    Args:
        mass: `texts batch`, sum of the gate over the tokens.
        squares: `texts batch`, sum of its square.
        num_tokens: tokens of one image.
        positives: as there.
        kind: as there.
        budget: as there.

    Naive form: as there, with mean_p g = mass / num_tokens and mean_p g (1 - g) = (mass - squares) / num_tokens.
    """
    chosen = ~positives if kind == "negatives" else positives
    if kind == "none" or not bool(chosen.any()):
        return mass.new_zeros(())
    if kind == "budget":
        return (mass[chosen] / num_tokens - budget).clamp_min(0).square().mean()
    per_pair = mass if kind == "negatives" else mass - squares
    return per_pair[chosen].mean() / num_tokens
