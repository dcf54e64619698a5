"""The loss against its naive float64 form, hidden patches in every trunk, the teacher, and collapse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel

from radglint.errors import ConfigError, TrainingError
from radglint.pretraining.collapse import Spread, check_spread, effective_rank, spread
from radglint.pretraining.config import PretrainConfig
from radglint.pretraining.objective import (
    MaskedPrediction,
    PatchTrunk,
    RunningNorm,
    block_average,
    coding_rate,
    masked_smooth_l1,
    position_code,
)
from tiny_models import tiny_image_configs

KINDS = sorted(tiny_image_configs())


def run_config(kind: str, **changes) -> PretrainConfig:
    """A run on a tiny trunk of the given kind; `changes` replace whole tables."""
    trunk = tiny_image_configs()[kind]
    patch = int(trunk.patch_size)
    cxr = {"kind": "CXR", "long_side_px": 4 * patch, "patch_px": patch}
    ct = {"kind": "CT", "height_px": 4 * patch, "width_px": 4 * patch, "patch_px": patch, "slice_step_mm": 1.0}
    data = {"preprocess": ct if kind == "vjepa2" else cxr, "slices": 4 if kind == "vjepa2" else 1}
    values = {
        "out": "unused", "device": "cpu", "precision": "float32", "min_feature_std": 0.0,
        "backbone": {"config": trunk.to_dict()},
        "data": {"scans": ["unused"], "crop_px": 4 * patch, **data},
        "target": {"blocks": 2}, "predictor": {"width": 24, "layers": 1, "heads": 2},
        "optimizer": {"steps": 4, "batch": 2, "warmup_steps": 1},
    }  # fmt: skip
    return PretrainConfig.model_validate(values | changes)


def tiny_prediction(kind: str, **changes) -> MaskedPrediction:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        backbone = AutoModel.from_config(tiny_image_configs()[kind])
        for parameter in backbone.parameters():
            parameter.normal_(0, 0.2)
        return MaskedPrediction(backbone, run_config(kind, **changes)).train()


def random_input(model: MaskedPrediction, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of two samples, and half of the patches hidden, the same number in each."""
    draw = torch.Generator().manual_seed(seed)
    side = model.grid[1] * model.student.adapter.patch_px
    slices = 4 if model.student.is_video else 1
    tokens = math.prod(model.grid)
    order = torch.stack([torch.randperm(tokens, generator=draw) for _ in range(2)])
    return torch.rand(2, slices, side, side, generator=draw), order < tokens // 2


def test_loss_and_gradient_equal_the_naive_float64_form():
    draw = torch.Generator().manual_seed(1)
    target = torch.randn(3, 10, 6, generator=draw) * 2
    hidden = torch.stack([torch.randperm(10, generator=draw) < 4 for _ in range(3)])
    prediction = (torch.randn(12, 6, generator=draw) * 2).requires_grad_()
    exact = prediction.detach().double().requires_grad_()
    terms, row = [], 0
    for b in range(3):
        for p in range(10):
            if not hidden[b, p]:
                continue
            for c in range(6):
                distance = (exact[row, c] - target[b, p, c].double()).abs()
                terms.append(distance**2 / (2 * 0.7) if distance < 0.7 else distance - 0.35)
            row += 1
    naive = torch.stack(terms).sum() / len(terms)
    loss = masked_smooth_l1(prediction, target, hidden, 0.7)
    naive.backward()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-6)
    torch.testing.assert_close(prediction.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


def test_coding_rate_and_gradient_equal_the_naive_float64_form():
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    exact = rows.detach().double().requires_grad_()
    mean = sum(exact[n] for n in range(20)) / 20
    total = torch.zeros(5, 5, dtype=torch.float64)
    for n in range(20):
        unit = (exact[n] - mean) / (exact[n] - mean).pow(2).sum().sqrt()
        total = total + torch.outer(unit, unit) / 20
    naive = torch.linalg.det(torch.eye(5) + 5 / 0.25 * total).log() / 10
    rate = coding_rate(rows)
    naive.backward()
    rate.backward()
    assert float(rate.detach()) == pytest.approx(float(naive.detach()), rel=1e-5)
    torch.testing.assert_close(rows.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


def test_coding_rate_is_zero_for_equal_rows_and_rises_with_the_directions_used():
    draw = torch.Generator().manual_seed(0)
    line = torch.randn(64, 1, generator=draw) * torch.randn(1, 8, generator=draw)
    assert float(coding_rate(torch.ones(64, 8))) == 0
    assert 0 < float(coding_rate(line)) < float(coding_rate(torch.randn(64, 8, generator=draw)))


def test_block_average_equals_its_naive_float64_form():
    inner = [torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(k)) * (k + 1) for k in range(2)]
    for b, p in np.ndindex(2, 3):
        rows = [t[b, p].double() for t in inner]
        naive = sum((row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt() for row in rows) / 2
        torch.testing.assert_close(block_average(inner)[b, p].double(), naive, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hidden_cannot_be_seen(kind: str):
    model = tiny_prediction(kind).eval()
    pixels, hidden = random_input(model)
    layers, side = model.grid[0], model.student.adapter.patch_px
    cells = hidden.unflatten(1, model.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    cells = cells.repeat_interleave(pixels.shape[1] // layers, 1)
    token = torch.randn(model.student.adapter.embed_dim, generator=torch.Generator().manual_seed(5))
    other = torch.where(cells, 1 - pixels, pixels)
    shown = torch.where(cells, pixels, 1 - pixels)
    with torch.no_grad():
        first, second, third, whole = (
            model.student(p, h, token)[0]
            for p, h in ((pixels, hidden), (other, hidden), (shown, hidden), (pixels, None))
        )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, third, atol=1e-3)
    assert not torch.allclose(first, whole, atol=1e-3)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_hiding_equals_that_of_transformers(kind: str):
    model = tiny_prediction(kind).eval()
    pixels, hidden = random_input(model)
    backbone, token = model.student.whole, model.student.own_mask_token()
    from radglint.encoders.features import grey_to_channels

    with torch.no_grad():
        own = model.student(pixels, hidden, token)[0]
        theirs = backbone(pixel_values=grey_to_channels(pixels[:, 0]), bool_masked_pos=hidden).last_hidden_state
    torch.testing.assert_close(own, theirs[:, -own.shape[1] :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_student_mask_token_and_predictor_but_never_the_teacher(kind: str):
    model = tiny_prediction(kind)
    pixels, hidden = random_input(model)
    target = model.target_norm(model.features(pixels))
    distance, loss = model(pixels, hidden, target)
    loss.backward()
    assert distance is loss
    token = model.mask_token if model.mask_token is not None else model.student._embeddings.mask_token
    assert float(token.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())
    moved = [p for p in model.student.adapter.parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0]
    assert len(moved) > len(list(model.student.adapter.parameters())) / 2


def test_expansion_is_paid_for():
    plain, paid = tiny_prediction("vit"), tiny_prediction("vit", target={"blocks": 2, "expansion_weight": 0.5})
    pixels, hidden = random_input(plain)
    target = plain.features(pixels)
    distance, loss = paid(pixels, hidden, target)
    rate = coding_rate(block_average(paid.student(pixels, hidden, paid.mask_token)[1])[~hidden])
    torch.testing.assert_close(plain(pixels, hidden, target)[1], distance)
    torch.testing.assert_close(loss, distance - 0.5 * rate)


def test_the_teacher_is_a_moving_average():
    model = tiny_prediction("vit")
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.75)
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)
    model.update_teacher(1.0)
    torch.testing.assert_close(dict(model.teacher.named_parameters())[name], before[name] + 0.25)


def test_a_new_teacher_gives_the_students_features_of_the_whole_scan():
    model = tiny_prediction("vjepa2").eval()
    pixels, _ = random_input(model)
    with torch.no_grad():
        assert torch.equal(model.features(pixels), block_average(model.student(pixels)[1]))


def test_running_statistics():
    norm = RunningNorm(4, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 50, 4, generator=draw) * 3 + 1 for _ in range(2))
    norm.update(first)
    rows = norm(first).flatten(0, 1)
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.var(dim=0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    norm.update(second)
    means = [batch.flatten(0, 1).mean(dim=0) for batch in (first, second)]
    torch.testing.assert_close(norm.mean, 0.9 * means[0] + 0.1 * means[1])


def test_positions_differ_along_every_axis():
    code = position_code((2, 3, 4), 12, torch.device("cpu"))
    assert code.shape == (24, 12)
    assert len(torch.unique(code, dim=0)) == 24


def test_spread_tells_collapse_to_positions_from_none():
    draw = torch.Generator().manual_seed(0)
    free = torch.randn(8, 20, 6, generator=draw)
    places = torch.randn(1, 20, 6, generator=draw).expand(8, -1, -1)
    assert spread(free).images == pytest.approx(1, abs=0.15)
    assert spread(free).rank > 5.5
    assert spread(places).tokens > 0.5
    assert spread(places).images == 0
    assert spread(places, with_rank=False).logs[1] == -math.inf
    with pytest.raises(TrainingError, match="step 7: the teacher's features have collapsed"):
        check_spread(spread(places), 0.01, step=7)
    check_spread(spread(free), 0.01, step=7)


@pytest.mark.parametrize("found", [Spread(math.nan, math.nan, 1.0), Spread(math.inf, 1.0, 1.0)])
def test_features_that_are_not_finite_stop_the_run(found: Spread):
    with pytest.raises(TrainingError, match="collapsed"):
        check_spread(found, 0.0, step=0)


def test_effective_rank_counts_directions():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 3, generator=draw) @ torch.linalg.qr(torch.randn(8, 8, generator=draw))[0][:3]
    assert effective_rank(rows) == pytest.approx(3, abs=0.05)
    assert effective_rank(torch.ones(10, 8)) == 0


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vit", {"target": {"blocks": 3}}, "target.blocks: 3 asked of a trunk 'vit' with 2 blocks"),
        ("dinov2", {"data": run_config("vit").model_dump()["data"]}, "data.preprocess.patch_px: .* 14 px, got 16"),
        ("vjepa2", {"data": {**run_config("vjepa2").model_dump()["data"], "slices": 3}}, "multiple of .* tubelet 2"),
        (
            "vjepa2",
            {"data": {"scans": ["x"], "crop_px": 8, "preprocess": {"kind": "CXR", "long_side_px": 16, "patch_px": 4}}},
            "a video trunk takes CT only",
        ),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused(kind: str, changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        tiny_prediction(kind, **changes)


def test_a_trunk_without_patch_embeddings_is_refused():
    backbone = AutoModel.from_config(tiny_image_configs()["vit"])
    backbone.embeddings.patch_embeddings = None
    with pytest.raises(ConfigError, match="cannot be hidden"):
        PatchTrunk(backbone, 1)
