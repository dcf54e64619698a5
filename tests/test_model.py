"""GlintModel as a whole: batches, grids, order of texts, slices and tubelets, configuration."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from radglint.errors import ConfigError
from radglint.losses import multi_positive_info_nce
from radglint.model import GlintConfig, GlintModel, trunk_blocks
from radglint.place import Place
from tiny_models import tiny_config, tiny_model, tiny_tokenizer

SENTENCES = ["a nodule in the left lung", "large right pleural effusion", "no mass"]


def _pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def _case(image: str) -> tuple[GlintModel, str, torch.Tensor]:
    """A model, its modality and a batch of two images with a grid that is not square."""
    if image == "vjepa2":
        return tiny_model(image, ("CT",)), "CT", _pixels(2, 3, 12, 20)
    side = 14 if image == "dinov2" else 16
    return tiny_model(image), "CT", _pixels(2, 3, 2 * side, 3 * side)


@pytest.mark.parametrize("image", ["dinov2", "dinov3_vit", "vit", "vjepa2"])
@torch.no_grad()
def test_a_batch_of_two_equals_two_batches_of_one(image: str) -> None:
    model, modality, pixels = _case(image)
    both = model(pixels, SENTENCES, modality).gated
    for k in range(2):
        alone = model(pixels[k : k + 1], SENTENCES, modality).gated
        torch.testing.assert_close(both.scores[:, k : k + 1], alone.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both.gate_logits[:, k : k + 1], alone.gate_logits, rtol=1e-4, atol=1e-4)
    assert (both.scores[:, 0] - both.scores[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("image", ["dinov2", "vjepa2"])
@torch.no_grad()
def test_the_grid_is_always_slices_by_rows_by_columns(image: str) -> None:
    model, modality, pixels = _case(image)
    features = model.trunk_features(pixels)
    rows, columns = features.grid
    assert features.tokens.shape == (2, 3, rows * columns, model.trunk.embed_dim)
    assert columns > rows
    assert model(pixels, SENTENCES, modality).gated.gate_logits.shape == (3, 2, 3 * rows * columns)


@torch.no_grad()
def test_slices_of_a_tubelet_share_its_tokens() -> None:
    model, _, pixels = _case("vjepa2")
    tokens = model.trunk_features(pixels).tokens
    own = model.trunk(pixels).tokens.unflatten(1, (2, -1))
    assert torch.equal(tokens[:, 0], tokens[:, 1])
    assert torch.equal(tokens[:, 0], own[:, 0])
    assert torch.equal(tokens[:, 2], own[:, 1])
    assert (tokens[:, 0] - tokens[:, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_slices_of_a_slice_trunk_are_encoded_alone() -> None:
    model, _, pixels = _case("dinov2")
    tokens = model.trunk_features(pixels).tokens
    torch.testing.assert_close(model.trunk_features(pixels[:, 1:2]).tokens, tokens[:, 1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_texts_permuted_gives_scores_permuted() -> None:
    model, modality, pixels = _case("dinov2")
    order = [2, 0, 1]
    plain = model(pixels, SENTENCES, modality).gated
    moved = model(pixels, [SENTENCES[k] for k in order], modality).gated
    torch.testing.assert_close(moved.scores, plain.scores[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.gate_logits, plain.gate_logits[order], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_duplicated_image_keeps_its_scores() -> None:
    model, modality, pixels = _case("dinov2")
    scores = model(pixels[[0, 1, 0]], SENTENCES, modality).gated.scores
    torch.testing.assert_close(scores[:, 2], scores[:, 0])
    torch.testing.assert_close(scores[:, :2], model(pixels, SENTENCES, modality).gated.scores, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_radiograph_and_a_ct_are_answered_by_their_own_branch() -> None:
    model = tiny_model()
    pixels = _pixels(1, 1, 28, 42)
    radiograph, ct = (model(pixels, SENTENCES, m).gated.scores for m in ("CXR", "CT"))
    assert (radiograph - ct).abs().max() > 1e-3


@torch.no_grad()
def test_cached_trunk_tokens_and_texts_give_the_same_answer() -> None:
    model, modality, pixels = _case("dinov2")
    features = model.trunk_features(pixels)
    fast = model.branches[modality](features.tokens, features.grid, model.text.embed(SENTENCES))
    assert torch.equal(fast.scores, model(pixels, SENTENCES, modality).gated.scores)


@pytest.mark.parametrize("image", ["dinov2", "vjepa2"])
def test_requested_layers_come_back_raw(image: str) -> None:
    model, modality, pixels = _case(image)
    layers = model(pixels, SENTENCES, modality, layers=(1, 2)).layers
    assert sorted(layers) == [1, 2]
    normalised = model.trunk_features(pixels).tokens
    assert layers[2].shape[-1] == normalised.shape[-1]
    assert layers[2].var(dim=-1).mean() > 1.5 * normalised.var(dim=-1).mean()


def test_scores_under_bfloat16_autocast_are_finite_and_close() -> None:
    model, modality, pixels = _case("dinov2")
    with torch.no_grad():
        exact = model(pixels, SENTENCES, modality).gated.scores
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(pixels, SENTENCES, modality).gated.scores
    assert torch.isfinite(rough).all()
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)


def test_every_trainable_weight_gets_a_finite_gradient() -> None:
    model = tiny_model(num_trainable_blocks=-1)
    out = model(_pixels(2, 3, 28, 42), SENTENCES, "CT")
    positives = torch.tensor([[True, False], [False, True], [False, True]])
    multi_positive_info_nce(out.gated.scores, positives, model.branches["CT"].logit_scale.exp()).backward()
    unused = ("text.backbone.pooler", "trunk.backbone.embeddings.mask_token", "branches.CXR.")
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name.startswith(unused), name
        else:
            assert torch.isfinite(parameter.grad).all(), name


def test_a_few_steps_tell_two_images_apart() -> None:
    model = tiny_model(modalities=("CXR",)).train()
    pixels = torch.stack([_pixels(1, 28, 28), torch.zeros(1, 28, 28)])
    optimiser = torch.optim.Adam(model.branches.parameters(), lr=3e-3)
    positives = torch.tensor([[True, False], [False, True]])
    with torch.no_grad():
        features, texts = model.trunk_features(pixels), model.text.embed(SENTENCES[:2])
    losses = []
    for _ in range(25):
        gated = model.branches["CXR"](features.tokens, features.grid, texts)
        loss = multi_positive_info_nce(gated.scores, positives, model.branches["CXR"].logit_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_configuration_survives_json() -> None:
    config = tiny_config()
    again = GlintConfig.model_validate_json(config.model_dump_json())
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    assert again.branches == config.branches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branches": {}}, "at least one branch"),
        ({"colour": 1}, "Extra inputs"),
        ({"architecture": "other"}, "glint"),
        ({"max_text_tokens": 0}, "greater than 0"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict, message: str) -> None:
    values = tiny_config().model_dump(mode="json") | change
    with pytest.raises(ValidationError, match=message):
        GlintConfig.model_validate(values)


def test_a_branch_with_the_other_modalitys_preprocessing_is_refused() -> None:
    values = tiny_config().model_dump(mode="json")
    values["branches"]["CT"] = values["branches"]["CXR"]
    with pytest.raises(ValidationError, match="branch CT has a CXR preprocessing"):
        GlintConfig.model_validate(values)


def test_a_video_trunk_serves_ct_only() -> None:
    with pytest.raises(ConfigError, match="CT only"):
        GlintModel(tiny_config("vjepa2", ("CXR", "CT")), tiny_tokenizer())


def test_a_trunk_without_blocks_cannot_be_trained_in_part() -> None:
    with pytest.raises(ConfigError, match="no list of blocks"):
        trunk_blocks(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("image", ["dinov2", "vjepa2"])
@torch.no_grad()
def test_earlier_blocks_stand_beside_the_last_one(image: str) -> None:
    """The branch reads the last block's tokens and, of unit variance, those of the blocks it names."""
    plain, modality, pixels = _case(image)
    branches = {m: b.model_copy(update={"trunk_layers": (1,)}) for m, b in plain.config.branches.items()}
    model = GlintModel(plain.config.model_copy(update={"branches": branches}), tiny_tokenizer()).eval()
    features, width = model.branch_features(pixels, modality), model.trunk.embed_dim
    rows, columns = features.grid
    assert features.tokens.shape == (2, 3, rows * columns, 2 * width)
    last, inner = features.tokens.split(width, dim=-1)
    assert torch.equal(last, model.trunk_features(pixels).tokens)
    assert (inner - last).abs().max() > 1e-3
    torch.testing.assert_close(inner.var(-1, unbiased=False), torch.ones(inner.shape[:-1]), rtol=1e-2, atol=1e-2)
    assert model(pixels, SENTENCES, modality).gated.scores.shape == (3, 2)


@torch.no_grad()
@pytest.mark.parametrize("valid", [False, True])
def test_a_branch_looks_where_a_text_wants_it(valid: bool) -> None:
    plain, modality, pixels = _case("dinov2")
    branches = {m: b.model_copy(update={"place_field": True}) for m, b in plain.config.branches.items()}
    model = GlintModel(plain.config.model_copy(update={"branches": branches}), tiny_tokenizer()).eval()
    branch, features = model.branch(modality), model.branch_features(pixels, modality)
    assert branch.place is not None
    torch.nn.init.normal_(branch.place.head.weight)
    texts = model.text.embed(["left nodule", "nodule"])
    kept = torch.arange(0, features.tokens.shape[2], 2)
    places = [Place(in_lungs=True, side="left"), Place()]
    anywhere = branch(features.tokens, features.grid, texts, valid, kept)
    there = branch(features.tokens, features.grid, texts, valid, kept, places)
    prior = branch.place_prior(features.tokens, features.grid, places, valid, kept)
    assert prior is not None
    torch.testing.assert_close(there.gate_logits, anywhere.gate_logits + prior)
    torch.testing.assert_close(there.scores[1], anywhere.scores[1])
    assert (there.scores[0] - anywhere.scores[0]).abs().max() > 1e-4
    assert not any(p.requires_grad for p in branch.place.parameters())
    unplaced = plain.branch(modality)(features.tokens, features.grid, texts, valid, kept, places)
    without = plain.branch(modality)(features.tokens, features.grid, texts, valid, kept)
    assert torch.equal(unplaced.scores, without.scores)
