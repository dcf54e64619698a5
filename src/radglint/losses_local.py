"""Local losses of two earlier methods, with sentences where they have words.

GLoRIA and MGCA train a text encoder and read an embedding for every word of a report. Here a frozen sentence encoder
gives one embedding for every sentence, so sentences stand where those methods have words; hence "like". A sentence
belongs to an image if it holds for it (`positives`), whichever report of the batch it was drawn from.

Memory grows with `texts batch tokens` (GLoRIA-like) and `batch tokens tokens` (MGCA-like): these are for comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch.nn import functional

from radglint.losses import NEVER, multi_positive_info_nce

LocalKind = Literal["none", "gloria", "mgca"]
ATTEND_SCALE, SENTENCE_SCALE, REPORT_SCALE = 4.0, 5.0, 10.0  # temp1, temp2, temp3 of GLoRIA's code
TOKEN_SCALE = 10.0  # one over local_temperature of MGCA's code


def local_rows(
    kind: LocalKind, patches: torch.Tensor, sentences: torch.Tensor, positives: torch.Tensor, alike: torch.Tensor
) -> torch.Tensor:
    """What a local loss needs of each image, so that images may be spread over pieces and processes.

    Args:
        kind: gloria or mgca.
        patches: `batch tokens embed`, content of the patches.
        sentences: `texts embed`, unit length, in the same space.
        positives: `texts batch`, bool: the sentence holds for the image.
        alike: `texts texts`, bool, see `alike_sentences`.

    Returns:
        gloria: `texts batch`, see `sentence_scores`; mgca: `1 batch`, see `token_losses`. Always in float32 or better.
    """
    with torch.autocast(patches.device.type, enabled=False):
        if kind == "gloria":
            return sentence_scores(patches, sentences)
        return token_losses(patches, sentences, positives, alike)[None]


def local_loss(
    kind: LocalKind, rows: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, alike: torch.Tensor
) -> torch.Tensor:
    """The local loss of the whole batch.

    Args:
        kind: gloria or mgca.
        rows: of all images, from `local_rows`.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool; a pair in neither is undecided.
        alike: `texts texts`, bool.
    """
    if kind == "gloria":
        return gloria_like_loss(rows, positives, negatives)
    counted = _with_unlike_sentences(positives, alike)
    return rows[0, counted].mean() if bool(counted.any()) else rows.sum() * 0


def alike_sentences(concepts: Sequence[Collection[str]]) -> torch.Tensor:
    """Which sentences are about one finding, so that they look at one place and are not told apart by it.

    Args:
        concepts: that each sentence names.

    Returns:
        `texts texts`, bool; a sentence is alike itself.
    """
    named = [frozenset(names) for names in concepts]
    return torch.tensor([[bool(a & b) for b in named] for a in named]) | torch.eye(len(named)).bool()


def sentence_scores(patches: torch.Tensor, sentences: torch.Tensor, attend_scale: float = ATTEND_SCALE) -> torch.Tensor:
    """How well each sentence fits what it attends to in each image.

    Args:
        patches: `batch tokens embed`.
        sentences: `texts embed`, unit length.
        attend_scale: one over the temperature of the attention.

    Returns:
        `texts batch`, cosine in [-1, 1].

    Naive form:
        a[t,b,p] = softmax over p of attend_scale * cos(v[b,p], u[t])
        out[t,b] = cos(sum_p a[t,b,p] * v[b,p], u[t])

    Reference: Huang et al., GLoRIA, ICCV 2021, section 3.2; the authors' loss file was read. It attends by inner
    products that are first put through a softmax over the words of the report. A report of one or two sentences would
    make that softmax constant, so the cosine takes its place, which is as bounded.
    """
    fit = torch.einsum("td,bpd->tbp", sentences, functional.normalize(patches, dim=-1))
    attended = torch.einsum("tbp,bpd->tbd", (attend_scale * fit).softmax(dim=-1), patches)
    return torch.einsum("tbd,td->tb", functional.normalize(attended, dim=-1), sentences)


def gloria_like_loss(
    scores: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, sentence_scale: float = SENTENCE_SCALE,
    report_scale: float = REPORT_SCALE,
) -> torch.Tensor:  # fmt: skip
    """Each report, the log-sum-exp of its sentences, contrasted over images, and each image over reports.

    A report is all sentences that hold for its image. It fits every image for which all of them hold, and does not fit
    one for which any fails; between the two it is undecided and stays out.

    Args:
        scores: `texts batch`, from `sentence_scores`.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool.
        sentence_scale: multiplies the scores inside the log-sum-exp.
        report_scale: multiplies its result.

    Returns:
        Scalar; 0 if no sentence holds for any image.

    Naive form, for reports r of images with a sentence:
        R[r,b] = log(sum over t of report r of exp(sentence_scale * s[t,b]))
        loss = multi_positive_info_nce(R, fits, report_scale, fails)

    Reference: Huang et al., GLoRIA, ICCV 2021, section 3.3. There each report fits its own image alone, and the two
    directions are added, not averaged.
    """
    own = positives.T[positives.any(dim=0)]
    if not len(own):
        return scores.sum() * 0
    spread = (sentence_scale * scores.float())[None].masked_fill(~own[:, :, None], NEVER).logsumexp(dim=1)
    said = own.float()
    fits, fails = said @ (~positives).float() == 0, said @ negatives.float() > 0
    return multi_positive_info_nce(spread, fits, report_scale, negatives=fails)


def token_losses(
    patches: torch.Tensor, sentences: torch.Tensor, positives: torch.Tensor, alike: torch.Tensor,
    scale: float = TOKEN_SCALE,
) -> torch.Tensor:  # fmt: skip
    """Cross-attention between an image's sentences and its patches, each contrasted within the image.

    Args:
        patches: `batch tokens embed`.
        sentences: `texts embed`, unit length.
        positives: `texts batch`, bool.
        alike: `texts texts`, bool: sentences about one finding are not contrasted with each other.
        scale: one over the temperature, of attention and contrast.

    Returns:
        `batch`; 0 for an image without two sentences that are not alike: it has nothing to contrast.

    Naive form, for one image with its sentences u[s] and unit patches v[p]:
        seen[s] = unit(sum_p softmax_p(scale * u[s] . v[p]) * v[p])
        told[p] = sum_s softmax_s(scale * v[p] . u[s]) * u[s]
        loss = info_nce of scale * u[s] . seen[s'], s' = s positive, s' not alike s negative, both ways, averaged
             + info_nce of scale * v[p] . told[p'], p' = p positive, every other patch negative, both ways, averaged

    Reference: Wang et al., MGCA, NeurIPS 2022, section 3.2 (token-wise alignment); the authors' training module was
    read. There words and patches are weighted by the attention of the encoders' class tokens, which a frozen sentence
    encoder and cached tokens do not have: here all weigh the same.
    """
    units, counted = functional.normalize(patches, dim=-1), _with_unlike_sentences(positives, alike)
    losses = []
    for image, own, counts in zip(units, positives.unbind(1), counted.tolist(), strict=True):
        loss = _token_loss(image, sentences[own], alike[own][:, own], scale) if counts else image.sum() * 0
        losses.append(loss)
    return torch.stack(losses)


def _token_loss(patches: torch.Tensor, sentences: torch.Tensor, alike: torch.Tensor, scale: float) -> torch.Tensor:
    """`token_losses` of one image: unit patches and its own sentences."""
    near = scale * sentences @ patches.T
    seen = functional.normalize(near.softmax(dim=1) @ patches, dim=-1)
    told = near.T.softmax(dim=1) @ sentences
    one = torch.eye(len(sentences), dtype=torch.bool, device=alike.device)
    of_sentences = multi_positive_info_nce(sentences @ seen.T, one, scale, negatives=~alike)
    return of_sentences + _one_to_one(scale * patches @ told.T)


def _one_to_one(logits: torch.Tensor) -> torch.Tensor:
    """InfoNCE with each row's positive on the diagonal, both ways, averaged."""
    ways = logits.logsumexp(dim=1) + logits.logsumexp(dim=0)
    return (ways / 2 - logits.diagonal()).mean()


def _with_unlike_sentences(positives: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """`batch`, bool: two sentences that hold for the image are not alike."""
    own = positives.float()
    return ((~alike).float() @ own * own).sum(dim=0) > 0
