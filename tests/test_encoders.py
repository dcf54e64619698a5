"""Encoder adapters on tiny checkpoints in the real on-disk formats: tokens, grids, layers, strict loading."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, VJEPA2Model

from radglint.encoders.backbones import build_backbone, config_from_dict, image_encoder, load_backbone
from radglint.encoders.features import IMAGENET_MEAN, IMAGENET_STD, grey_to_channels
from radglint.encoders.mixer import DepthMix, MixerConfig, TokenMixer, position_code
from radglint.encoders.text import TextEncoder
from radglint.encoders.video import VideoEncoder
from radglint.encoders.vit import VitEncoder
from radglint.errors import CheckpointError, ConfigError
from radglint.model import GlintModel, trunk_blocks
from tiny_models import tiny_config, tiny_image_configs, tiny_model, tiny_text_config, tiny_tokenizer

PREFIX = {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5, "vit": 1}
# One attention tensor of each family as the published checkpoints on the hub name it.
PUBLISHED = {
    "dinov2": "encoder.layer.0.attention.attention.query.weight",
    "dinov2_with_registers": "encoder.layer.0.attention.attention.query.weight",
    "dinov3_vit": "layer.0.attention.q_proj.weight",
    "vit": "encoder.layer.0.attention.attention.query.weight",
    "vjepa2": "encoder.layer.0.attention.query.weight",
}


def _backbone(kind: str, seed: int = 0):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModel.from_config(tiny_image_configs()[kind]).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return model


def _pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def _volume_tokens(model: VJEPA2Model, pixels: torch.Tensor) -> torch.Tensor:
    frames = grey_to_channels(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    return model(frames, skip_predictor=True).last_hidden_state


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def folder(request, tmp_path_factory) -> Path:
    """A folder as on the hub: config.json and model.safetensors under the published tensor names."""
    path = tmp_path_factory.mktemp(request.param)
    _backbone(request.param).save_pretrained(path)
    return path


def _kind(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_a_checkpoint_under_its_published_names_loads_every_tensor(folder: Path) -> None:
    kind = _kind(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert PUBLISHED[kind] in file.keys()  # noqa: SIM118 (no mapping)
    loaded = load_backbone(folder)
    expected = _backbone(kind).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training


def test_a_bfloat16_checkpoint_loads_as_float32(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    half = {k: v.bfloat16() for k, v in tensors.items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert {p.dtype for p in load_backbone(tmp_path).parameters()} == {torch.float32}


def test_a_missing_tensor_is_an_error(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[PUBLISHED[_kind(folder)]]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"do not fit.*attention"):
        load_backbone(tmp_path)


def test_pickles_and_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("kind", sorted(PREFIX))
def test_vit_tokens_are_the_models_own_without_class_and_registers(kind: str) -> None:
    model = _backbone(kind)
    encoder = image_encoder(model)
    assert isinstance(encoder, VitEncoder)
    assert encoder.num_prefix_tokens == PREFIX[kind]
    patch = encoder.patch_px
    pixels = _pixels(2, 3, 3 * patch, 5 * patch)  # neither square nor the pretraining size
    raw: dict[int, torch.Tensor] = {}
    for number, block in enumerate(trunk_blocks(encoder), start=1):
        block.register_forward_hook(lambda _m, _i, out, n=number: raw.__setitem__(n, out[0] if isinstance(out, tuple) else out))  # noqa: E501 # fmt: skip
    with torch.no_grad():
        features = encoder(pixels, (1, 2))
        options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        own = model(pixel_values=pixels, **options).last_hidden_state
    assert features.grid == (3, 5)
    assert features.tokens.shape == (2, 15, encoder.embed_dim)
    assert own.shape[1] == 15 + PREFIX[kind]
    torch.testing.assert_close(features.tokens, own[:, PREFIX[kind] :])
    for layer in (1, 2):
        torch.testing.assert_close(features.layers[layer], raw[layer][:, PREFIX[kind] :])


@pytest.mark.parametrize("kind", sorted(PREFIX))
def test_tokens_run_row_by_row(kind: str) -> None:
    encoder = image_encoder(_backbone(kind))
    patch = encoder.patch_px
    plain = torch.zeros(1, 3, 3 * patch, 4 * patch)
    marked = plain.clone()
    marked[..., patch : 2 * patch, 2 * patch : 3 * patch] = 1.0  # row 1, column 2
    with torch.no_grad():
        change = (encoder(marked, (1,)).layers[1] - encoder(plain, (1,)).layers[1]).norm(dim=-1)[0]
    assert int(change.argmax()) == 1 * 4 + 2


@pytest.mark.parametrize("kind", ["dinov2", "vjepa2"])
def test_sides_and_layers_out_of_range_are_errors(kind: str) -> None:
    encoder = image_encoder(_backbone(kind))
    with pytest.raises(ConfigError, match="multiples"):
        encoder(_pixels(1, 3, 28, 27))
    with pytest.raises(ConfigError, match="blocks 1 to 2"):
        encoder(_pixels(1, 3, 28, 28), (3,))


def test_video_tokens_of_the_pretraining_size_are_the_models_own() -> None:
    model = _backbone("vjepa2")
    assert isinstance(model, VJEPA2Model)
    pixels = _pixels(2, 8, 16, 16)
    with torch.no_grad():
        own = _volume_tokens(model, pixels)
        states = model(grey_to_channels(pixels.flatten(0, 1)).unflatten(0, (2, 8)), skip_predictor=True, output_hidden_states=True)  # noqa: E501 # fmt: skip
        features = image_encoder(model)(pixels, (1, 2))
    assert features.grid == (4, 4, 4)
    assert torch.equal(features.tokens, own)
    assert all(torch.equal(features.layers[n], states.hidden_states[n]) for n in (1, 2))


def test_video_of_another_size_equals_a_model_configured_for_it() -> None:
    """5 x 5 patches on a 4 x 4 model: the same weights in a 5 x 5 model, whose positions are then scaled by 4/5."""
    small = _backbone("vjepa2")
    config = copy.deepcopy(tiny_image_configs()["vjepa2"])
    config.crop_size = 20
    large = AutoModel.from_config(config).eval()
    large.load_state_dict(small.state_dict())
    for block in large.encoder.layer:
        counted = block.attention.get_position_ids

        def scaled(x, masks=None, counted=counted):
            depth, row, column = counted(x, masks)
            return depth.float(), (row + 0.5) * 0.8 - 0.5, (column + 0.5) * 0.8 - 0.5

        block.attention.get_position_ids = scaled
    pixels = _pixels(1, 4, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close(image_encoder(small)(pixels).tokens, _volume_tokens(large, pixels))


def test_video_positions_of_other_grids() -> None:
    encoder = image_encoder(_backbone("vjepa2"))
    assert isinstance(encoder, VideoEncoder)
    encoder.positions.grid = (2, 2, 3)
    depth, row, column = (axis.reshape(2, 2, 3) for axis in encoder.positions(torch.zeros(1)))
    assert depth[:, 0, 0].tolist() == [0, 1]
    assert row[0, :, 0].tolist() == [0.5, 2.5]
    torch.testing.assert_close(column[0, 0], torch.tensor([1 / 6, 1.5, 17 / 6]))
    encoder.positions.grid = (8, 4, 4)  # twice the depth of pretraining: squeezed into its range
    deep = encoder.positions(torch.zeros(1))[0].reshape(8, 16)[:, 0]
    assert deep.tolist() == [k / 2 - 0.25 for k in range(8)]


def test_video_depth_is_padded_with_the_last_slice() -> None:
    encoder = image_encoder(_backbone("vjepa2"))
    pixels = _pixels(1, 3, 12, 20)
    with torch.no_grad():
        odd = encoder(pixels)
        even = encoder(torch.cat([pixels, pixels[:, -1:]], dim=1))
        single = encoder(pixels[:, :1])
    assert odd.grid == (2, 3, 5)
    assert torch.equal(odd.tokens, even.tokens)
    assert single.grid == (1, 3, 5)


def test_video_encoder_holds_no_predictor_and_copies_are_independent() -> None:
    encoder = image_encoder(_backbone("vjepa2"))
    assert not [name for name, _ in encoder.named_parameters() if "predictor" in name]
    other = copy.deepcopy(encoder)
    pixels = _pixels(1, 2, 16, 16)
    with torch.no_grad():
        before = encoder(pixels).tokens
        other(_pixels(1, 2, 8, 8))
        assert other.positions.grid == (1, 2, 2)
        assert encoder.positions.grid == (1, 4, 4)
        assert all(block.attention.get_position_ids is other.positions for block in other.backbone.layer)
        assert torch.equal(encoder(pixels).tokens, before)


def test_backbones_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size"):
        VitEncoder(AutoModel.from_config(tiny_text_config()))
    with pytest.raises(ConfigError, match="tubelets"):
        VideoEncoder(_backbone("vit"))
    config = tiny_image_configs()["vjepa2"]
    config.in_chans = 1
    with pytest.raises(ConfigError, match="in_chans 1"):
        VideoEncoder(AutoModel.from_config(config))


def test_an_unknown_model_type_is_an_error() -> None:
    for values in ({"model_type": "no_such_model"}, {}):
        with pytest.raises(ConfigError, match="not known"):
            config_from_dict(values)


def test_a_configuration_cannot_name_code_or_a_number_type() -> None:
    values = tiny_image_configs()["vit"].to_dict() | {
        "auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "somebody/kernels",
        "attn_implementation": "somebody/kernels", "dtype": "bfloat16",
    }  # fmt: skip
    model = build_backbone(values)
    assert type(model).__module__.startswith("transformers.models.vit")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation in ("eager", "sdpa")
    assert not hasattr(model.config, "auto_map")


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vjepa2"])
@pytest.mark.parametrize("trained", [0, 1, -1])
def test_only_the_configured_blocks_are_trained(kind: str, trained: int) -> None:
    modalities = ("CT",) if kind == "vjepa2" else ("CXR",)
    model = GlintModel(tiny_config(kind, modalities, num_trainable_blocks=trained), tiny_tokenizer())
    blocks = trunk_blocks(model.trunk)
    assert len(blocks) == 2
    free = {id(p) for p in model.trunk.parameters() if p.requires_grad}
    expected = {0: [], 1: list(blocks[-1].parameters()), -1: list(model.trunk.parameters())}[trained]
    assert free == {id(p) for p in expected}
    assert all(p.requires_grad for p in model.branches.parameters())


def test_gradient_reaches_exactly_the_trained_blocks() -> None:
    model = tiny_model("dinov3_vit", ("CXR",), num_trainable_blocks=1)
    model(_pixels(1, 1, 64, 64), ["a nodule"], "CXR").gated.scores.sum().backward()
    first, last = trunk_blocks(model.trunk)
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in last.parameters())


def test_grey_images_get_the_imagenet_statistics() -> None:
    channels = grey_to_channels(torch.full((1, 2, 2), 0.5))
    expected = [(0.5 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(channels[0, :, 0, 0], torch.tensor(expected))
    assert channels.shape == (1, 3, 2, 2)


def _text() -> TextEncoder:
    return tiny_model().text


SENTENCES = ["nodule", "there is a large right pleural effusion in the left lung.", "xyzzy", "no mass", "a nodule ."]


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_text_chunks_and_order_do_not_matter(chunk: int) -> None:
    text = _text()
    with torch.no_grad():
        expected = torch.cat([text.embed([sentence]) for sentence in SENTENCES])
        torch.testing.assert_close(text.embed(SENTENCES, chunk=chunk), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(len(SENTENCES)))
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_text_is_the_mean_of_its_own_tokens() -> None:
    text = _text()
    ids, mask = text.tokenize(SENTENCES[:2])
    assert mask[0].sum() < mask[1].sum()
    with torch.no_grad():
        hidden = text.backbone(input_ids=ids[:1, : int(mask[0].sum())]).last_hidden_state[0]
        mean = hidden.mean(dim=0)
        torch.testing.assert_close(text(ids, mask)[0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_long_text_is_cut_to_the_longest_allowed() -> None:
    ids, _ = _text().tokenize(["nodule " * 500])
    assert ids.shape == (1, 48)


def test_the_mixers_position_code_depends_on_the_relative_place_only() -> None:
    small, large = position_code(2, 3, 4, torch.device("cpu")), position_code(6, 9, 4, torch.device("cpu"))
    torch.testing.assert_close(small, large.reshape(6, 9, -1)[1::3, 1::3].reshape(6, -1), rtol=1e-5, atol=1e-5)
    assert len({tuple(row.tolist()) for row in large}) == 54


def test_depth_mixing_reaches_the_neighbouring_slices_only() -> None:
    torch.manual_seed(0)
    mix = DepthMix(8, 3)
    tokens = torch.randn(1, 6, 4, 8)
    changed = tokens.clone()
    changed[0, 2, 1] += torch.randn(8)
    with torch.no_grad():
        difference = (mix(changed) - mix(tokens)).abs().amax(dim=-1)[0]
    touched = {(int(d), int(p)) for d, p in difference.nonzero()}
    assert touched == {(1, 1), (2, 1), (3, 1)}


def test_without_depth_mixing_slices_are_independent() -> None:
    torch.manual_seed(0)
    mixer = TokenMixer(8, MixerConfig(width=8, num_layers=1, num_heads=2)).eval()
    tokens = torch.randn(1, 3, 4, 8)
    with torch.no_grad():
        whole = mixer(tokens, (2, 2)).reshape(3, 4, 8)
        alone = torch.cat([mixer(tokens[:, k : k + 1], (2, 2)) for k in range(3)])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize(("kernel", "layers", "reach"), [(3, 1, 1), (3, 2, 2), (5, 1, 2), (5, None, 4)])
def test_slices_with_all_their_neighbours_come_out_the_same(kernel: Any, layers: int | None, reach: int) -> None:
    """Cut to the valid slices, a mixer gives what the whole volume gives there."""
    torch.manual_seed(0)
    config = MixerConfig(width=8, num_layers=2, num_heads=2, depth_kernel=kernel, depth_layers=layers, attention=False)
    mixer = TokenMixer(6, config).eval()
    volume = torch.randn(2, 11, 4, 6)
    whole = mixer(volume, (2, 2)).unflatten(1, (11, 4))
    assert mixer.reach == reach
    torch.testing.assert_close(mixer(volume, (2, 2), True).unflatten(1, (-1, 4)), whole[:, reach : 11 - reach])
