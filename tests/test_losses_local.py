"""The local losses against their naive float64 forms, value and gradient, and what stays out of them."""

from __future__ import annotations

import pytest
import torch

from radglint.losses_local import (
    alike_sentences,
    gloria_like_loss,
    local_loss,
    local_rows,
    sentence_scores,
    token_losses,
)
from test_losses import assert_same_value_and_gradient

TEXTS, IMAGES, TOKENS, WIDTH = 5, 4, 6, 3
POSITIVES = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, 0]]).bool()
NEGATIVES = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0]]).bool()
CONCEPTS = [{"nodule"}, {"nodule"}, {"effusion"}, {"effusion", "mass"}, {"effusion"}]
ALIKE = alike_sentences(CONCEPTS)


def _inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches `batch tokens embed` of any length, sentences `texts embed` of length 1."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(IMAGES, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    sentences = torch.randn(TEXTS, WIDTH, generator=generator, dtype=torch.float64)
    return patches, sentences / sentences.norm(dim=1, keepdim=True)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / (vector @ vector).sqrt()


def _attended(wanted: torch.Tensor, keys, values, scale: float) -> torch.Tensor:
    """Mean of the values weighted by the softmax of the keys' products with what is wanted."""
    weights = [torch.exp(scale * (wanted @ key)) for key in keys]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def _naive_scores(patches: torch.Tensor, sentences: torch.Tensor, scale: float) -> torch.Tensor:
    rows = []
    for u in sentences:
        seen = [_attended(u, [_unit(v) for v in image], list(image), scale) for image in patches]
        rows.append(torch.stack([_unit(z) @ _unit(u) for z in seen]))
    return torch.stack(rows)


def _naive_gloria(scores: torch.Tensor, sentence_scale: float, report_scale: float) -> torch.Tensor:
    """All sentences of each report by loops; the images of the others are positive, negative or undecided."""
    said = {b: [t for t in range(TEXTS) if POSITIVES[t, b]] for b in range(IMAGES)}
    reports = [own for own in said.values() if own]
    e, fits, fails = {}, {}, {}
    for r, own in enumerate(reports):
        for b in range(IMAGES):
            spread = torch.log(sum(torch.exp(sentence_scale * scores[t, b]) for t in own))
            e[r, b] = torch.exp(report_scale * spread)
            fits[r, b] = all(POSITIVES[t, b] for t in own)
            fails[r, b] = any(NEGATIVES[t, b] for t in own)
    row, column = [], []
    for r, b in (pair for pair, fit in fits.items() if fit):
        others = sum(e[r, k] for k in range(IMAGES) if fails[r, k])
        row.append(-torch.log(e[r, b] / (e[r, b] + others)))
        others = sum(e[k, b] for k in range(len(reports)) if fails[k, b])
        column.append(-torch.log(e[r, b] / (e[r, b] + others)))
    return (sum(row) / len(row) + sum(column) / len(column)) / 2


def _naive_contrast(near: list[list[torch.Tensor]], negative) -> torch.Tensor:
    """Mean over k of -log(e[k][k] / (e[k][k] + sum of its negatives)), along rows and along columns, averaged."""
    terms = []
    for k in range(len(near)):
        own = torch.exp(near[k][k])
        terms.append(-torch.log(own / (own + sum(torch.exp(near[k][j]) for j in range(len(near)) if negative(k, j)))))
        terms.append(-torch.log(own / (own + sum(torch.exp(near[j][k]) for j in range(len(near)) if negative(j, k)))))
    return sum(terms) / len(terms)


def _naive_tokens(patches: torch.Tensor, sentences: torch.Tensor, b: int, scale: float) -> torch.Tensor:
    own = [t for t in range(TEXTS) if POSITIVES[t, b]]
    u, v = [sentences[t] for t in own], [_unit(p) for p in patches[b]]
    seen = [_unit(_attended(s, v, v, scale)) for s in u]
    told = [_attended(p, u, u, scale) for p in v]
    of_sentences = _naive_contrast([[scale * s @ z for z in seen] for s in u], lambda k, j: not ALIKE[own[k], own[j]])
    return of_sentences + _naive_contrast([[scale * p @ z for z in told] for p in v], lambda k, j: k != j)


@pytest.mark.parametrize("scale", [0.5, 4.0, 20.0])
def test_sentence_scores_equal_their_naive_form(scale: float) -> None:
    weights = torch.randn(TEXTS, IMAGES, generator=torch.Generator().manual_seed(3))

    def fast(v, u):
        return (sentence_scores(v, u / u.norm(dim=1, keepdim=True), scale) * weights.to(v)).sum()

    def naive(v, u):
        unit = torch.stack([_unit(row) for row in u])
        return (_naive_scores(v, unit, scale) * weights.to(v)).sum()

    assert_same_value_and_gradient(fast, naive, *_inputs())


@pytest.mark.parametrize(("sentence_scale", "report_scale"), [(5.0, 10.0), (1.0, 2.0)])
def test_gloria_like_loss_equals_its_naive_form(sentence_scale: float, report_scale: float) -> None:
    scores = torch.rand(TEXTS, IMAGES, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.5
    assert_same_value_and_gradient(
        lambda s: gloria_like_loss(s, POSITIVES, NEGATIVES, sentence_scale, report_scale),
        lambda s: _naive_gloria(s, sentence_scale, report_scale),
        scores,
    )


def test_token_losses_equal_their_naive_form() -> None:
    """Image 1 has no sentence and image 2 sentences of one finding: both have nothing to contrast."""
    weights = [1.0, 0.0, 0.0, 0.7]
    assert_same_value_and_gradient(
        lambda v, u: token_losses(v, u, POSITIVES, ALIKE, 3.0) @ torch.tensor(weights),
        lambda v, u: sum(weights[b] * _naive_tokens(v, u, b, 3.0) for b in (0, 3)),
        *_inputs(),
    )
    patches, sentences = _inputs()
    assert token_losses(patches, sentences, POSITIVES, ALIKE)[1:3].tolist() == [0.0, 0.0]


def test_sentences_of_one_finding_are_alike() -> None:
    assert ALIKE.int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1],
    ]  # fmt: skip
    assert alike_sentences([set(), set()]).int().tolist() == [[1, 0], [0, 1]], "no known finding: only itself"
    assert alike_sentences([["mass", "nodule"], ["nodule"], ["mass"]]).int().tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 0, 1],
    ]


def test_the_loss_of_the_batch_is_the_mean_over_images_with_something_to_contrast() -> None:
    patches, sentences = _inputs()
    rows = local_rows("mgca", patches, sentences, POSITIVES, ALIKE)
    assert rows.shape == (1, IMAGES)
    loss = local_loss("mgca", rows, POSITIVES, NEGATIVES, ALIKE)
    assert loss.item() == pytest.approx((rows[0, 0] + rows[0, 3]).item() / 2)


def test_rows_of_some_images_are_those_of_all() -> None:
    patches, sentences = _inputs()
    for kind in ("gloria", "mgca"):
        whole = local_rows(kind, patches, sentences, POSITIVES, ALIKE)
        parts = [local_rows(kind, patches[k : k + 2], sentences, POSITIVES[:, k : k + 2], ALIKE) for k in (0, 2)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_an_undecided_image_of_a_report_has_no_gradient() -> None:
    """Sentence 4 says neither yes nor no of images 0 and 3, and is alone in its report."""
    positives, negatives = POSITIVES[4:], NEGATIVES[4:]
    scores = torch.zeros(1, IMAGES, requires_grad=True)
    gloria_like_loss(scores, positives, negatives).backward()
    assert scores.grad is not None
    assert scores.grad[0, [0, 3]].tolist() == [0.0, 0.0]
    assert scores.grad[0, 1] > 0 > scores.grad[0, 2]


@pytest.mark.parametrize("kind", ["gloria", "mgca"])
def test_without_any_sentence_that_holds_the_loss_is_zero_with_a_zero_gradient(kind) -> None:
    patches, sentences = _inputs()
    patches.requires_grad_()
    none = torch.zeros_like(POSITIVES)
    loss = local_loss(kind, local_rows(kind, patches, sentences, none, ALIKE), none, ~none, ALIKE)
    loss.backward()
    assert loss.item() == 0
    assert patches.grad is not None
    assert not patches.grad.any()


@pytest.mark.parametrize("kind", ["gloria", "mgca"])
def test_autocast_does_not_touch_them(kind) -> None:
    patches, sentences = (x.float() for x in _inputs())
    wanted = local_rows(kind, patches, sentences, POSITIVES, ALIKE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local_rows(kind, patches, sentences, POSITIVES, ALIKE), wanted)
