"""From a phrase to a mask: the whole pipeline on tiny models, against `GlintModel.forward` and naive loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import radglint
from radglint import pipeline as pipeline_module
from radglint.checkpoint import Calibration, Checkpoint, LogisticMap, ModalityCalibration, load_checkpoint
from radglint.errors import CheckpointError, ConfigError, ImageError, InputError, QueryError
from radglint.gate import GateConfig, SparseGate
from radglint.image import MedicalImage
from radglint.pipeline import GlintAnswerer, Pipeline, choose_device, probability, trunk_dtype
from radglint.place import PlaceField
from radglint.preprocess import CtPreprocess, ct_canvas, preprocess
from tiny_models import tiny_model, write_tiny_checkpoint

CPU = torch.device("cpu")
PHRASES = ["nodule", "pleural effusion"]
PROMPTS = {"nodule": ["nodule"], "effusion": ["pleural effusion"]}


def calibration(presence_bias: float = 3.0, concepts: tuple[str, ...] = ("nodule", "effusion")) -> Calibration:
    """The prompts themselves are in scope and nothing else; slopes and biases differ by modality and concept."""
    entries = {
        modality: ModalityCalibration(
            presence={c: LogisticMap(slope=5.0 + k + n, bias=presence_bias) for n, c in enumerate(concepts)},
            presence_default=LogisticMap(slope=4.0, bias=-1.0),
            pixel=LogisticMap(slope=1.5 + k, bias=2.0 + 0.5 * k),
        )
        for k, modality in enumerate(("CXR", "CT"))
    }
    return Calibration(modalities=entries, scope_threshold=0.9999, origin="made up for tests")  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return replace(load_checkpoint(folder), prompts=PROMPTS, calibration=calibration())


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> Pipeline:
    return build(checkpoint)


def build(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A pipeline whose trunk runs in a given type, whatever this processor would choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_module, "trunk_dtype", lambda device: dtype)
        return Pipeline(GlintAnswerer(checkpoint, CPU))


def radiograph(height: int = 70, width: int = 51, seed: int = 0) -> MedicalImage:
    coarse = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 7, 6)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    array = smooth[0, 0].clamp(0, 1).numpy().astype(np.float32)
    return MedicalImage(array, "CXR", "display", path=f"chest_{height}x{width}.png")


def chest_ct(shape: tuple[int, int, int] = (13, 35, 44), spacing: tuple[float, ...] = (9.0, 6.5, 7.0)) -> MedicalImage:
    """An asymmetric chest: axes up, back, left; lungs of unlike size and one bright ball low on the left."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, -spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [3.0, -5.0, 40.0]
    x, y, z = np.einsum("ab,b...->a...", affine[:3], np.concatenate([np.indices(shape), np.ones((1, *shape))]))
    hu = np.where((x / 130) ** 2 + (y / 95) ** 2 < 1, 40.0, -1000.0)
    hu[((x - 60) / 45) ** 2 + (y / 60) ** 2 + ((z - 40) / 60) ** 2 < 1] = -820
    hu[((x + 62) / 38) ** 2 + ((y - 8) / 55) ** 2 + ((z - 50) / 45) ** 2 < 1] = -860
    hu[(x + 70) ** 2 + (y - 20) ** 2 + (z - 25) ** 2 < 22**2] = 300
    return MedicalImage((hu + 10 * np.sin(x / 9)).astype(np.float32), "CT", "HU", spacing, affine, "chest.nii.gz")


IMAGES = {"CXR": radiograph(), "CT": chest_ct()}


def same(first: Any, second: Any, atol: float = 0.0) -> None:
    assert [f.query for f in first] == [f.query for f in second]
    for a, b in zip(first, second, strict=True):
        assert a.score == pytest.approx(b.score, abs=atol)
        np.testing.assert_allclose(a.token_logits, b.token_logits, rtol=0, atol=20 * atol)


@pytest.mark.parametrize("modality", ["CXR", "CT"])
def test_a_pipeline_answers_what_the_model_and_the_calibration_say(pipeline: Pipeline, modality: Any) -> None:
    image, model = IMAGES[modality], pipeline.model.model  # type: ignore[attr-defined]
    findings = pipeline.ask(image, PHRASES)
    prepared = preprocess(image, model.config.branches[modality].preprocess)
    with torch.inference_mode():
        gated = model(torch.from_numpy(prepared.pixels)[None], PHRASES, modality).gated
    maps = calibration().modalities[modality]
    for k, (finding, concept) in enumerate(zip(findings, PROMPTS, strict=True)):
        assert finding.in_scope
        assert finding.score == pytest.approx(float(gated.scores[k, 0]), abs=2e-5)
        line = maps.presence[concept]
        wanted = 1 / (1 + np.exp(-(line.slope * float(gated.scores[k, 0]) + line.bias)))
        assert finding.probability == pytest.approx(wanted, abs=1e-4)
        logits = maps.pixel.slope * gated.map_logits[k, 0].double().numpy() + maps.pixel.bias
        shown = line.slope * gated.slice_scores[k, 0].double().numpy() + line.bias
        shown = shown.repeat(logits.size // shown.size)
        logits = np.where(shown < 0, np.minimum(logits, shown + 1e-3 * logits), logits)
        assert finding.token_logits.shape == prepared.record.grid_shape
        np.testing.assert_allclose(finding.token_logits.ravel(), logits, atol=2e-3)
        assert finding.mask().shape == finding.probability_map().shape == image.shape
    assert (findings.model_name, findings.model_fingerprint) == ("tiny", pipeline.model.fingerprint)


def test_a_slice_that_shows_nothing_caps_its_patches() -> None:
    """Two slices, one below the threshold: its patches stay in their order, none above it; the other is left alone."""
    tokens = torch.tensor([[[3.0, -1.0]], [[5.0, 4.0]]])
    out = pipeline_module.capped(tokens, torch.tensor([1.0, -2.0]), 0.0)
    assert torch.equal(out[0], tokens[0])
    assert -2 < out[1, 0, 1] < out[1, 0, 0] < -1.9
    assert torch.equal(pipeline_module.capped(tokens, torch.tensor([1.0, -2.0]), -3.0), tokens)
    assert (pipeline_module.capped(tokens[0], torch.tensor([-4.0]), 0.0) < -3.9).all()


def with_places(checkpoint: Checkpoint, logits: dict[str, float]) -> Pipeline:
    """The same model with a place field that says the same of every patch: logits of "lung" and "left"."""
    model = tiny_model()
    branch = model.branch("CXR")
    model.load_state_dict(checkpoint.model.state_dict(), strict=False)
    branch.place = PlaceField(model.trunk.embed_dim)
    branch.place.head.weight.zero_()
    branch.place.head.bias.copy_(torch.tensor([logits["lung"], logits["left"]]))
    entries = calibration().modalities
    entries["CXR"] = entries["CXR"].model_copy(update={"in_lungs": ("nodule",)})
    told = calibration().model_copy(update={"modalities": entries})
    return build(replace(checkpoint, model=model, calibration=told))


def test_a_finding_is_looked_for_where_the_query_and_anatomy_say(checkpoint: Checkpoint, pipeline: Pipeline) -> None:
    queries = ["nodule", "left nodule", "right nodule", "effusion", "right effusion"]
    plain = pipeline.ask(IMAGES["CXR"], queries)
    on_left = with_places(checkpoint, {"lung": 30.0, "left": 30.0}).ask(IMAGES["CXR"], queries)
    for k in (0, 1, 3):  # all is lung, all is left
        np.testing.assert_allclose(on_left[k].token_logits, plain[k].token_logits, atol=2e-3)
        assert on_left[k].score == pytest.approx(plain[k].score, abs=1e-4)
    for k in (2, 4):  # nothing is on the right: no patch, and the score is the null slot's
        assert (plain[k].token_logits - on_left[k].token_logits).min() > 5
    closed = with_places(checkpoint, {"lung": -30.0, "left": 0.0}).ask(IMAGES["CXR"], queries)
    assert (plain[0].token_logits - closed[0].token_logits).min() > 5
    np.testing.assert_allclose(closed[3].token_logits, plain[3].token_logits, atol=2e-3)  # fluid is not in the lung


@pytest.mark.parametrize("modality", ["CXR", "CT"])
def test_encoded_once_asked_often_gives_equal_answers(pipeline: Pipeline, modality: str) -> None:
    encoded = pipeline.encode_image(IMAGES[modality])
    tokens = encoded.tokens.clone()
    first = pipeline.ask(encoded, PHRASES)
    same(first, pipeline.ask(encoded, PHRASES))
    same(first, pipeline.ask(IMAGES[modality], PHRASES))
    assert torch.equal(tokens, encoded.tokens)
    assert first[0].image is encoded.image


@given(order=st.lists(st.sampled_from([*PHRASES, "no nodule", "large mass", "opacity"]), min_size=1, max_size=7))
@settings(max_examples=12)
def test_answers_do_not_depend_on_the_other_queries(order: list[str], pipeline: Pipeline) -> None:
    """Order, duplicates and company change nothing."""
    encoded = pipeline.encode_image(IMAGES["CT"])
    alone = {query: pipeline.ask(encoded, [query])[0] for query in set(order)}
    same(pipeline.ask(encoded, order), [alone[query] for query in order], atol=1e-5)


def test_a_path_is_read_and_asked(pipeline: Pipeline, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray((IMAGES["CXR"].array * 255).astype(np.uint8)).save(tmp_path / "chest.png")
    findings = pipeline.ask(tmp_path / "chest.png", PHRASES)
    assert findings.image.shape == IMAGES["CXR"].shape
    same(findings, pipeline.ask(str(tmp_path / "chest.png"), PHRASES))
    with pytest.raises(ImageError, match=r"missing\.png"):
        pipeline.ask(tmp_path / "missing.png", PHRASES)


def test_negated_query_is_the_positive_one_without_a_mask(pipeline: Pipeline) -> None:
    positive, negated, doubted = pipeline.ask(IMAGES["CXR"], ["nodule", "no nodule", "possible nodule"])
    assert (positive.assertion, negated.assertion, doubted.assertion) == ("present", "absent", "uncertain")
    assert positive.probability == negated.probability == doubted.probability
    assert positive.mask().any()
    assert np.array_equal(positive.mask(), doubted.mask())
    assert not negated.mask().any()
    assert not negated.mask(0.01).any()
    assert negated.present
    assert negated.peak is None
    assert negated.boxes == []


@pytest.mark.parametrize(
    ("query", "concepts"), [("opacity", ("nodule", "effusion")), ("pleural effusion", ("nodule",))]
)
def test_out_of_scope_is_not_answered(checkpoint: Checkpoint, query: str, concepts: tuple[str, ...]) -> None:
    """A phrase far from every prompt, or of a concept that this modality was not trained on."""
    pipeline = build(replace(checkpoint, calibration=calibration(9.0, concepts)))
    nodule, other = pipeline.ask(IMAGES["CT"], ["nodule", query])
    assert nodule.in_scope
    assert nodule.note == ""
    assert not other.in_scope
    assert not other.present
    assert not other.mask(0.001).any()
    assert other.peak is None
    assert all(word in other.note for word in (repr(query), "outside", "tiny", "CT", *concepts))
    assert np.isfinite(other.probability)


def test_threshold_moves_decision_and_mask_together(pipeline: Pipeline) -> None:
    encoded = pipeline.encode_image(IMAGES["CXR"])
    level = pipeline.ask(encoded, ["nodule"])[0].probability
    masks = []
    for threshold in (0.05, 0.4, level - 1e-6, level + 1e-6):
        finding = pipeline.ask(encoded, ["nodule"], threshold=threshold)[0]
        assert finding.threshold == threshold
        assert finding.probability == level
        assert finding.present == (level >= threshold)
        expected = np.nan_to_num(finding.probability_map()) >= threshold
        assert np.array_equal(finding.mask(), expected & finding.present)
        masks.append(finding.mask())
    assert all((b <= a).all() for a, b in pairwise(masks))
    assert masks[0].sum() > masks[2].sum()
    assert not masks[3].any()
    assert pipeline.ask(encoded, ["nodule"])[0].threshold == pipeline_module.DEFAULT_THRESHOLD


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_wrong_threshold_is_refused(pipeline: Pipeline, threshold: float) -> None:
    with pytest.raises(InputError, match="threshold must be between 0 and 1"):
        pipeline.ask(IMAGES["CXR"], ["nodule"], threshold=threshold)


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        ("nodule", "list of texts"),
        ([], "no query given"),
        (["nodule", " "], "empty"),
        ([3], "must be text"),
        (["no"], "names no finding"),
    ],
)
def test_wrong_queries_are_refused_before_the_image_is_read(pipeline: Pipeline, queries: Any, words: str) -> None:
    with pytest.raises(QueryError, match=words):
        pipeline.ask("no_such_image.png", queries)


def test_image_encoded_by_another_model_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    other = radglint.load(write_tiny_checkpoint(tmp_path / "other", modalities=("CXR",), seed=1), device="cpu")
    with pytest.raises(InputError, match="another model") as caught:
        pipeline.ask(other.encode_image(IMAGES["CXR"]), PHRASES)
    assert "chest_70x51.png" in str(caught.value)
    with pytest.raises(ConfigError, match=r"chest\.nii\.gz: model tiny answers CXR, this is CT"):
        other.ask(IMAGES["CT"], PHRASES)


def test_load_checks_the_device_and_the_name(folder: Path) -> None:
    assert radglint.load(folder, device="cpu").model.name == "tiny"
    with pytest.raises(ConfigError, match="'tpu'"):
        radglint.load(folder, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        radglint.load(folder / "nothing_here")


@pytest.mark.parametrize("shape", [(57, 57), (31, 90), (90, 31), (211, 140), (20, 23)])
def test_tokens_fill_the_grid_of_any_radiograph(pipeline: Pipeline, shape: tuple[int, int]) -> None:
    encoded = pipeline.encode_image(radiograph(*shape))
    rows, columns = encoded.record.grid_shape
    assert encoded.tokens.shape[:2] == (1, rows * columns)
    assert (rows > columns) == (shape[0] > 1.2 * shape[1])
    finding = pipeline.ask(encoded, ["nodule"])[0]
    assert finding.mask().shape == shape
    assert np.isfinite(finding.probability_map()).all()


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (3, 0), (2, 1), (3, 2)])
def test_the_token_of_a_changed_patch_changes_most(pipeline: Pipeline, place: tuple[int, int]) -> None:
    """Rows and columns keep their order on the way to the tokens."""
    base = np.tile(np.linspace(0, 1, 42, dtype=np.float32), (56, 1))
    changed = base.copy()
    row, column = place
    changed[14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = np.flip(
        base[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
    )
    tokens = [
        pipeline.encode_image(MedicalImage(a, "CXR", "display")).tokens.reshape(4, 3, -1) for a in (base, changed)
    ]
    shift = (tokens[0] - tokens[1]).norm(dim=-1).numpy()
    assert np.unravel_index(shift.argmax(), shift.shape) == place


@pytest.mark.parametrize("shape", [(1, 30, 31), (5, 21, 40), (17, 33, 26)])
def test_tokens_fill_the_grid_of_any_ct(pipeline: Pipeline, shape: tuple[int, int, int]) -> None:
    image = chest_ct(shape)
    encoded = pipeline.encode_image(image)
    assert encoded.tokens.shape[:2] == (1, np.prod(encoded.record.grid_shape))
    assert pipeline.ask(encoded, ["nodule"])[0].mask().shape == shape


def reoriented(image: MedicalImage, order: tuple[int, ...], flips: tuple[int, ...]) -> MedicalImage:
    """The same volume, its array axes in another order, some of them reversed."""
    affine = np.asarray(image.affine)[:, [*order, 3]].copy()
    array = image.array.transpose(order)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    spacing = tuple(image.spacing_mm[a] for a in order)  # type: ignore[index]
    return MedicalImage(np.ascontiguousarray(np.flip(array, flips)), "CT", "HU", spacing, affine, "turned.nii.gz")


@pytest.mark.parametrize("spacing", [(9.0, 6.5, 7.0), (8.0, 2.0, 1.7)])
def test_the_same_ct_in_any_orientation_gets_the_same_answer(pipeline: Pipeline, spacing: Any) -> None:
    """Scores and maps belong to the patient, not to the order of the voxels."""
    shape = tuple(round(n * old / new) for n, old, new in zip((13, 35, 44), (9.0, 6.5, 7.0), spacing, strict=True))
    image = chest_ct(shape, spacing)  # type: ignore[arg-type]
    wanted = pipeline.ask(image, PHRASES, threshold=0.7)
    maps = [finding.probability_map() for finding in wanted]
    assert any(0.05 < np.nanmean(m >= 0.7) < 0.95 for m in maps)
    flips = [(), (0,), (1, 2), (0, 2), (2,), (0, 1, 2)]
    for order, flip in zip(permutations(range(3)), flips, strict=True):
        turned = reoriented(image, order, flip)
        for finding, reference, there in zip(pipeline.ask(turned, PHRASES, threshold=0.7), wanted, maps, strict=True):
            assert finding.score == pytest.approx(reference.score, abs=1e-3)
            back = np.flip(finding.probability_map(), flip).transpose(np.argsort(order))
            np.testing.assert_allclose(back, there, atol=5e-3)  # NaN in the same places too
            mask = np.flip(finding.mask(), flip).transpose(np.argsort(order))
            assert not (mask != reference.mask())[np.abs(there - 0.7) > 5e-3].any()


def test_all_48_orientations_share_one_canvas() -> None:
    """The body is found by subsampling; that must not depend on which voxel comes first."""
    image, config = chest_ct((16, 65, 70), (2.2, 1.9, 2.3)), CtPreprocess(mm_per_px=6.0, height_px=56, width_px=56)
    wanted, shape = ct_canvas(image, config)
    for order, flags in product(permutations(range(3)), product((False, True), repeat=3)):
        turned = reoriented(image, order, tuple(axis for axis in range(3) if flags[axis]))
        canvas, turned_shape = ct_canvas(turned, config)
        assert turned_shape == shape
        np.testing.assert_allclose(canvas, wanted, atol=1e-6)


def test_batches_of_slices_and_queries_change_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [*PHRASES, "no nodule", "opacity", "large mass"]
    wanted = pipeline.ask(IMAGES["CT"], queries)
    for slices, gates in ((1, 1), (3, 500), (1000, 10**9)):
        monkeypatch.setattr(pipeline.model, "slices_at_once", slices)
        monkeypatch.setattr(pipeline_module, "GATES_AT_ONCE", gates)
        same(pipeline.ask(IMAGES["CT"], queries), wanted, atol=1e-5)


def naive_score(gate: SparseGate, tokens: torch.Tensor, text: torch.Tensor) -> float:
    """Score of one text on `tokens width`, in float64 with loops."""
    p = {name: value.detach().double().numpy() for name, value in gate.named_parameters()}

    def through(name: str, x: np.ndarray) -> np.ndarray:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).sum())

    words = text.double().numpy()
    total, mass = np.zeros(gate.config.joint_dim), 0.0
    for token in tokens.double().numpy():
        cosine = unit(through("image_gate", token)) @ unit(through("text_gate", words))
        logit = p["gate_scale"] * cosine + p["gate_bias"]
        weight = 1.0 if gate.config.pooling == "mean" else 1 / (1 + np.exp(-logit))
        total, mass = total + weight * through("image_content", token), mass + weight
    if gate.null is not None:
        total, mass = total + gate.config.null_weight * p["null"], mass + gate.config.null_weight
    return float(unit(total / mass) @ unit(through("text_content", words)))


@pytest.mark.parametrize("pooling", ["sigmoid", "sigmoid_null", "mean"])
@pytest.mark.parametrize("window", [1, 2, 4, 6, 9])
def test_windows_equal_the_naive_loop(pooling: Any, window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    depth, patches = 6, 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        gate = SparseGate(7, 4, GateConfig(pooling=pooling, joint_dim=6, gate_dim=3, null_weight=0.7, initial_bias=-1))
    tokens = torch.randn(2, depth * patches, 7, generator=generator)
    texts = torch.randn(3, 4, generator=generator)
    with torch.no_grad():
        got = gate.forward_windows(tokens, texts, depth, window)
        whole = gate(tokens, texts)
    span = min(window, depth)
    for t in range(3):
        for b in range(2):
            runs = [tokens[b, d * patches : (d + span) * patches] for d in range(depth - span + 1)]
            assert float(got.scores[t, b]) == pytest.approx(max(naive_score(gate, r, texts[t]) for r in runs), abs=2e-5)
    assert torch.equal(got.gate_logits, whole.gate_logits)
    if window >= depth:
        torch.testing.assert_close(got.scores, whole.scores, atol=2e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["softmax", "softmax_null", "top_k"])
def test_windows_are_refused_where_patches_compete(pooling: Any) -> None:
    gate = SparseGate(3, 3, GateConfig(pooling=pooling, joint_dim=2, gate_dim=2))
    with pytest.raises(ValueError, match=pooling):
        gate.forward_windows(torch.randn(1, 4, 3), torch.randn(1, 3), 2, 1)


def test_a_long_ct_is_scored_as_its_best_run_of_slices(checkpoint: Checkpoint) -> None:
    model = tiny_model()
    branch = model.config.branches["CT"].model_copy(update={"score_window_slices": 3})
    model.config = model.config.model_copy(update={"branches": {**model.config.branches, "CT": branch}})
    windowed = build(replace(checkpoint, model=model))
    encoded = windowed.encode_image(IMAGES["CT"])
    got = windowed.ask(encoded, PHRASES)
    depth, patches = encoded.record.grid_shape[0], int(np.prod(encoded.record.grid_shape[1:]))
    ct = model.branches["CT"]
    with torch.inference_mode():
        texts = ct.text_adapter(model.text.embed(PHRASES))  # type: ignore[operator]
    for finding, text in zip(got, texts, strict=True):
        runs = [encoded.tokens[0, d * patches : (d + 3) * patches] for d in range(depth - 2)]
        assert finding.score == pytest.approx(max(naive_score(ct.gate, r, text) for r in runs), abs=2e-5)  # type: ignore[arg-type]


def test_bfloat16_trunk_answers_nearly_as_float32(folder: Path, pipeline: Pipeline) -> None:
    half = build(replace(load_checkpoint(folder), prompts=PROMPTS, calibration=calibration()), torch.bfloat16)
    assert next(half.model.model.trunk.parameters()).dtype == torch.bfloat16  # type: ignore[attr-defined]
    for image in IMAGES.values():
        wanted, got = pipeline.ask(image, PHRASES), half.ask(image, PHRASES)
        for a, b in zip(wanted, got, strict=True):
            assert a.score == pytest.approx(b.score, abs=0.03)
            assert np.corrcoef(a.token_logits.ravel(), b.token_logits.ravel())[0, 1] > 0.98
            assert b.token_logits.dtype == np.float32


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "got"),
    [
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
        (False, True, "mps", "mps"),
        (False, True, "cuda", None),
        (False, False, "mps", None),
        (True, True, "npu", None),
    ],
)
def test_choose_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, wanted: Any, got: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if got is None:
        with pytest.raises(ConfigError, match=f"'{wanted}' is not available") as caught:
            choose_device(wanted)
        assert ("mps" in str(caught.value).split("one of")[1]) == mps
    else:
        assert choose_device(wanted) == torch.device(got)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    wanted = torch.bfloat16 if native else torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    assert trunk_dtype(torch.device("cpu")) == wanted
    assert trunk_dtype(torch.device("cuda")) == wanted
    assert trunk_dtype(torch.device("mps")) == torch.float32


@given(st.floats(-1, 1), st.floats(0, 20), st.floats(-10, 10))
def test_probability_is_a_rising_logistic_of_the_score(score: float, slope: float, bias: float) -> None:
    line = LogisticMap(slope=slope, bias=bias)
    value = probability(score, line)
    assert 0 <= value <= 1
    assert value <= probability(min(score + 0.1, 1.0), line) + 1e-12
    assert value + probability(-score, LogisticMap(slope=slope, bias=-bias)) == pytest.approx(1)
