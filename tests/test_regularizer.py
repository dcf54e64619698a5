"""Dense Feature Regularization against its naive float64 form, and its invariants."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from radglint.regularizer import DenseFeatureRegularizer, cosine_anchor, gram_anchor
from test_losses import assert_same_value_and_gradient
from tiny_models import tiny_model


def _pair(width: int = 5, other_width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 6, width, generator=generator, dtype=torch.float64)
    return student, torch.randn(2, 6, other_width, generator=generator, dtype=torch.float64)


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def _cosine(a, b):
    return _dot(a, b) / (_dot(a, a).sqrt() * _dot(b, b).sqrt())


def _layer_norm(a):
    mean = sum(a) / len(a)
    variance = sum((x - mean) ** 2 for x in a) / len(a)
    return [(x - mean) / (variance + 1e-5).sqrt() for x in a]


def _naive_cosine(student, teacher):
    pairs = zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    terms = [1 - _cosine(_layer_norm(s), _layer_norm(t)) for s, t in pairs]
    return sum(terms) / len(terms)


def _naive_gram(student, teacher):
    terms = []
    for s, t in zip(student, teacher, strict=True):
        terms += [(_cosine(s[p], s[q]) - _cosine(t[p], t[q])) ** 2 for p in range(len(s)) for q in range(len(s))]
    return sum(terms) / len(terms)


def test_cosine_anchor_equals_its_naive_form() -> None:
    assert_same_value_and_gradient(cosine_anchor, _naive_cosine, *_pair())


def test_gram_anchor_equals_its_naive_form() -> None:
    assert_same_value_and_gradient(gram_anchor, _naive_gram, *_pair(5, 7))


def test_cosine_anchor_spans_zero_to_two() -> None:
    student, _ = _pair()
    assert cosine_anchor(student, student).item() == 0.0
    assert cosine_anchor(student, -student).item() == pytest.approx(2.0, abs=1e-5)


def test_gram_anchor_is_free_of_rotations_but_cosine_is_not() -> None:
    student, _ = _pair()
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    assert gram_anchor(student @ rotation, student).item() < 1e-12
    assert cosine_anchor(student @ rotation, student).item() > 0.1


@pytest.mark.parametrize("anchor", ["cosine", "gram", "none"])
@pytest.mark.parametrize("image", ["dinov2", "dinov3_vit", "vjepa2"])
def test_it_is_exactly_zero_while_the_student_equals_its_teacher(image: str, anchor) -> None:
    model = tiny_model(image, ("CT",), num_trainable_blocks=-1)
    teacher = copy.deepcopy(model).requires_grad_(False)
    side = 64 if image == "dinov3_vit" else 28
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    student_layers = model.trunk_features(pixels, (1, 2)).layers
    with torch.no_grad():
        teacher_layers = teacher.trunk_features(pixels, (1, 2)).layers
    assert DenseFeatureRegularizer(anchor)(student_layers, teacher_layers).item() == 0.0
    with torch.no_grad():
        for parameter in model.trunk.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
        moved = model.trunk_features(pixels, (1, 2)).layers
    assert (DenseFeatureRegularizer(anchor)(moved, teacher_layers).item() > 1e-6) == (anchor != "none")


def test_layers_are_averaged_and_the_teacher_gets_no_gradient() -> None:
    first, second = (x.float().requires_grad_() for x in _pair())
    other = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(8))
    loss = DenseFeatureRegularizer("cosine")({1: first, 2: first}, {1: second, 2: other})
    expected = (cosine_anchor(first, second) + cosine_anchor(first, other)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert second.grad is None
    assert first.grad is not None
    assert first.grad.abs().max() > 0


def test_gram_of_a_sample_takes_the_same_tokens_of_both() -> None:
    student, teacher = (x.float() for x in _pair())
    regularizer = DenseFeatureRegularizer("gram", max_tokens=3)
    assert regularizer({1: student}, {1: student.clone()}).item() == 0.0
    torch.manual_seed(0)
    values = [regularizer({1: student}, {1: teacher}).item() for _ in range(400)]
    assert len(set(values)) > 1
    # The diagonal of the matrix is 0, so a sample of 3 of 6 tokens keeps 6 of 9 entries off it instead of 30 of 36.
    expected = gram_anchor(student, teacher).item() * (36 / 30) * (6 / 9)
    assert math.fsum(values) / len(values) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("student", "teacher"), [({}, {}), ({1: torch.ones(1, 2, 3)}, {2: torch.ones(1, 2, 3)})])
def test_it_refuses_no_layer_and_different_layers(student, teacher) -> None:
    with pytest.raises(ValueError, match="layers"):
        DenseFeatureRegularizer()(student, teacher)
