"""Checkpoint folders: bit-exact round trips, int8, strictness against every kind of damage, names and the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from radglint import fingerprint, hub
from radglint.checkpoint import FILES, HASHED_FILES, load_checkpoint, save_checkpoint
from radglint.errors import CheckpointError, OutputError
from radglint.fingerprint import TOLERANCE, probe_outputs, probe_pixels
from radglint.model import GlintModel
from radglint.quantize import dequantize_rows, is_quantizable, quantize_in_place, quantize_rows
from radglint.registry import describe
from tiny_models import (
    PROMPTS,
    PROVENANCE,
    tiny_calibration,
    tiny_config,
    tiny_image_configs,
    tiny_model,
    tiny_tokenizer,
    write_tiny_checkpoint,
)

PACKINGS = ["none", "bfloat16", "int8_trunk"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", quantize="int8_trunk")


@pytest.fixture
def damaged(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def _edit(path: Path, **changes) -> None:
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def _same_weights(one: GlintModel, other: GlintModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("image", sorted(tiny_image_configs()))
def test_every_tensor_and_output_comes_back_exactly(image: str, tmp_path: Path) -> None:
    modalities = ("CT",) if image == "vjepa2" else ("CXR", "CT")
    model = tiny_model(image, modalities)
    before = probe_outputs(model)
    loaded = load_checkpoint(write_tiny_checkpoint(tmp_path / "c", image, modalities))
    assert _same_weights(loaded.model, model)
    assert probe_outputs(loaded.model) == before
    buffers, expected = dict(loaded.model.named_buffers()), dict(model.named_buffers())
    assert buffers.keys() == expected.keys()  # positions and rotary frequencies that no file holds
    assert all(torch.equal(buffer, expected[name]) for name, buffer in buffers.items())
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_everything_else_comes_back(original: Path) -> None:
    loaded = load_checkpoint(original)
    assert loaded.prompts == PROMPTS
    assert loaded.calibration == tiny_calibration()
    assert loaded.provenance == PROVENANCE
    assert (loaded.name, loaded.folder, loaded.quantize) == ("tiny", original, "int8_trunk")
    assert loaded.model.config.model_dump(mode="json") == tiny_config().model_dump(mode="json")
    sentences = ["a Nodule, left lung", "xyzzy"]
    assert all(map(torch.equal, loaded.model.text.tokenize(sentences), tiny_model().text.tokenize(sentences)))
    assert sorted(p.name for p in original.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("quantize", PACKINGS)
def test_saving_a_loaded_checkpoint_again_changes_no_bit(quantize, tmp_path: Path) -> None:
    first = load_checkpoint(write_tiny_checkpoint(tmp_path / "one", quantize=quantize))
    assert first.save_pretrained(tmp_path / "two") == first.fingerprint
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert _same_weights(load_checkpoint(tmp_path / "two").model, first.model)


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model, untouched = tiny_model(), tiny_model()
    save_checkpoint(tmp_path / "c", model, prompts=PROMPTS, calibration=tiny_calibration(), provenance=PROVENANCE,
                    quantize="int8_trunk")  # fmt: skip
    assert _same_weights(model, untouched)


def test_packed_weights_are_near_and_small(tmp_path: Path) -> None:
    exact = tiny_model()
    sizes = {}
    for quantize in PACKINGS:
        folder = write_tiny_checkpoint(tmp_path / quantize, quantize=quantize)
        sizes[quantize] = (folder / "model.safetensors").stat().st_size
        packed = load_checkpoint(folder).model.state_dict()
        for name, tensor in exact.state_dict().items():
            if tensor.ndim < 2:
                assert torch.equal(packed[name], tensor), name
            else:
                allowed = {"none": 0, "bfloat16": 2**-8, "int8_trunk": 0.51 / 127}[quantize]
                assert (packed[name] - tensor).abs().max() <= allowed * tensor.abs().max(), name
    assert max(sizes["int8_trunk"], sizes["bfloat16"]) < 0.75 * sizes["none"]


def test_weights_quantised_before_training_are_those_that_are_loaded(tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert quantize_in_place(model.trunk) is model.trunk
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("trunk.") and before[name].ndim == 2 for name in changed)
    pixels = probe_pixels(14, 2)
    cached = model.trunk_features(pixels).tokens
    save_checkpoint(tmp_path / "c", model, prompts=PROMPTS, calibration=tiny_calibration(), provenance=PROVENANCE,
                    quantize="int8_trunk")  # fmt: skip
    loaded = load_checkpoint(tmp_path / "c").model
    assert _same_weights(loaded.trunk, model.trunk)  # type: ignore[arg-type]
    assert torch.equal(loaded.trunk_features(pixels).tokens, cached)


@given(st.integers(0, 10_000), st.floats(-30, 30), st.integers(1, 5), st.integers(1, 40))
def test_quantisation_is_near_and_idempotent(seed: int, exponent: float, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    weight[0] = 0
    integers, scale = quantize_rows(weight)
    back = dequantize_rows(integers, scale)
    assert ((back - weight).abs() <= 0.51 * scale[:, None]).all()
    assert int(integers.abs().max()) <= 127
    again = quantize_rows(back)
    assert torch.equal(again[0], integers)
    assert torch.equal(again[1], scale)
    assert torch.equal(back[0], torch.zeros(columns))


def test_quantisation_equals_its_naive_form() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    integers, scale = quantize_rows(weight)
    for r in range(4):
        naive = max(abs(float(x)) for x in weight[r]) / 127
        assert float(scale[r]) == pytest.approx(naive, rel=1e-5)
        assert integers[r].tolist() == [round(float(x) / float(scale[r])) for x in weight[r]]


def test_what_is_quantised() -> None:
    assert is_quantizable(torch.zeros(2, 2))
    assert not any(map(is_quantizable, [torch.zeros(2), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.long)]))
    with pytest.raises(ValueError, match="NaN"):
        quantize_rows(torch.full((2, 2), float("nan")))


def test_backbones_are_stored_under_their_published_names(original: Path) -> None:
    stored = load_file(original / "model.safetensors")
    assert "trunk.backbone.encoder.layer.0.attention.attention.query.weight.int8" in stored
    assert "text.backbone.encoder.layer.1.attention.self.value.weight.scale" in stored


def test_the_name_a_trunk_was_loaded_under_does_not_matter(tmp_path: Path) -> None:
    AutoModel.from_config(tiny_image_configs()["dinov2"]).save_pretrained(tmp_path / "trunk")
    model = tiny_model()
    model.trunk.backbone = AutoModel.from_pretrained(tmp_path / "trunk", dtype=torch.float32).eval()
    save_checkpoint(tmp_path / "c", model, prompts={}, calibration=tiny_calibration(), provenance=PROVENANCE)
    assert _same_weights(load_checkpoint(tmp_path / "c").model, model)


# ---- damage ---------------------------------------------------------------------------------------------------------


def _refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, folder.name):
        assert part in message, message


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_a_missing_file_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    _refused(damaged, "lacks", name)


def test_no_folder_and_a_file_instead_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nothing", "found nothing")
    (tmp_path / "file").write_text("x")
    _refused(tmp_path / "file", "found a file")


def test_a_pickle_is_never_read(damaged: Path) -> None:
    (damaged / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert load_checkpoint(damaged).name == "tiny"
    (damaged / "model.safetensors").unlink()
    _refused(damaged, "model.safetensors", "pytorch_model.bin is a pickle")
    (damaged / "pytorch_model.bin").rename(damaged / "model.safetensors")
    _refused(damaged, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json") and name != "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "[" * 100_000, "\x00\xff"])
def test_wrong_json_is_refused(damaged: Path, name: str, content: str) -> None:
    (damaged / name).write_bytes(content.encode("latin-1"))
    _refused(damaged, name)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(damaged: Path, keep: float) -> None:
    path = damaged / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    _refused(damaged, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize("name", HASHED_FILES)
def test_one_flipped_bit_is_noticed(damaged: Path, name: str) -> None:
    path = damaged / name
    content = bytearray(path.read_bytes())
    if name == "model.safetensors":
        content[-3] ^= 1
    else:
        content += b" "
    path.write_bytes(content)
    _refused(damaged, name)


def test_a_header_of_absurd_size_is_refused(damaged: Path) -> None:
    (damaged / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    _refused(damaged, "model.safetensors")


def _retensor(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BIAS, MATRIX = "branches.CT.gate.image_gate.bias", "trunk.backbone.encoder.layer.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(BIAS), ("lacks the tensor", BIAS)),
        (lambda t: t.pop(MATRIX + ".scale"), ("lacks the tensor", MATRIX)),
        (lambda t: t.update(extra=torch.zeros(1)), ("unknown tensor extra",)),
        (lambda t: t.update({MATRIX: torch.zeros(64, 32)}), ("unknown tensor", MATRIX)),
        (lambda t: t.update({BIAS: torch.zeros(3)}), (BIAS, "(8,)", "(3,)")),
        (lambda t: t.update({BIAS: torch.zeros(8, dtype=torch.int64)}), (BIAS, "I64")),
        (lambda t: t.update({MATRIX + ".scale": torch.zeros(63)}), (MATRIX, "(63,)")),
        (lambda t: t.update({BIAS: torch.full((8,), float("nan"))}), (BIAS, "NaN")),
        (lambda t: t.update({MATRIX + ".scale": torch.full((64,), float("inf"))}), (MATRIX, "NaN or infinite")),
    ],
)
def test_tensors_must_fit_exactly(damaged: Path, change, parts) -> None:
    _retensor(damaged, change)
    _refused(damaged, "model.safetensors", *parts)


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("config.json", {"format_version": 2}, ("format_version 1", "2")),
        ("config.json", {"format_version": ...}, ("format_version", "None")),
        ("config.json", {"format": "other"}, ("other",)),
        ("config.json", {"quantize": "int2"}, ("int2",)),
        ("config.json", {"surprise": 1}, ("surprise",)),
        ("config.json", {"model": {}}, ("Field required",)),
        ("prompts.json", {"nodule": "not a list"}, ("nodule", "list")),
        ("calibration.json", {"scope_threshold": float("nan")}, ("scope_threshold", "finite")),
        ("calibration.json", {"origin": ...}, ("origin", "required")),
        ("calibration.json", {"modalities": {}}, ("['CT', 'CXR']",)),
        ("provenance.json", {"licences": {"code": "MIT", "weights": "MIT"}}, ("licences lacks data",)),
        ("fingerprint.json", {"files": None}, ("altered",)),
        ("fingerprint.json", {"id": "0" * 12}, ("altered",)),
        ("fingerprint.json", {"outputs": None}, ("outputs",)),
        ("fingerprint.json", {"outputs": {"CXR": [1.0]}}, ("outputs",)),
    ],
)
def test_documents_must_fit(damaged: Path, name: str, changes: dict, parts: tuple[str, ...]) -> None:
    _edit(damaged / name, **changes)
    _refused(damaged, name, *parts)


@pytest.mark.parametrize("model_type", ["no_such_model", "gpt2"])
def test_a_backbone_that_is_none_is_refused(damaged: Path, model_type: str) -> None:
    model = json.loads((damaged / "config.json").read_text())["model"]
    _edit(damaged / "config.json", model=model | {"image_backbone": {"model_type": model_type}})
    _refused(damaged, "config.json", "no model can be built")


def test_a_broken_tokenizer_is_refused(damaged: Path) -> None:
    (damaged / "tokenizer.json").write_text('{"model": 3}')
    _refused(damaged, "tokenizer.json", "not a tokenizer")


def test_other_outputs_are_refused_with_difference_and_versions(damaged: Path) -> None:
    outputs = json.loads((damaged / "fingerprint.json").read_text())["outputs"]
    outputs["CT"][0] += 0.5 * TOLERANCE
    _edit(damaged / "fingerprint.json", outputs=outputs)
    load_checkpoint(damaged)
    outputs["CT"][0] += 1.0
    _edit(damaged / "fingerprint.json", outputs=outputs, versions={"torch": "9.9"})
    _refused(damaged, "fingerprint.json", "difference 1", "torch 9.9", f"torch {torch.__version__.split('+')[0]}")
    assert load_checkpoint(damaged, verify=False).name == "tiny"
    outputs["CT"][0] = "text"
    _edit(damaged / "fingerprint.json", outputs=outputs)
    _refused(damaged, "fingerprint.json", "numbers")


def test_the_probe_notices_a_change_of_any_part(original: Path) -> None:
    before = probe_outputs(load_checkpoint(original).model)
    for part in ("trunk", "text", "branches"):
        model = load_checkpoint(original).model
        with torch.no_grad():
            for parameter in model.get_submodule(part).parameters():
                parameter.mul_(1.05)
        after = probe_outputs(model)
        assert max(abs(a - b) for key in before for a, b in zip(before[key], after[key], strict=True)) > TOLERANCE, part
    assert fingerprint.probe_pixels(14, 2).shape == (1, 2, 70, 70)


# ---- saving ---------------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    model = tiny_model(modalities=("CXR",))
    with pytest.raises(CheckpointError, match=r"\['CXR'\]"):
        save_checkpoint(folder, model, prompts={}, calibration=tiny_calibration(), provenance=PROVENANCE)
    with pytest.raises(CheckpointError, match="licences"):
        save_checkpoint(folder, model, prompts={}, calibration=tiny_calibration(("CXR",)), provenance={})
    assert not folder.exists()


def test_a_failure_while_saving_leaves_the_old_checkpoint(damaged: Path, monkeypatch) -> None:
    before = {p.name: p.read_bytes() for p in damaged.iterdir()}

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("radglint.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="no space"):
        load_checkpoint(damaged).save_pretrained(damaged)
    assert {p.name: p.read_bytes() for p in damaged.iterdir()} == before


def test_a_model_card_is_written(original: Path, tmp_path: Path) -> None:
    card = (original / "README.md").read_text()
    assert "untrained" in card
    assert load_checkpoint(original).fingerprint in card
    model = tiny_model()
    save_checkpoint(tmp_path, model, prompts={}, calibration=tiny_calibration(), provenance=PROVENANCE, card="# mine\n")
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_the_registry_can_describe_it_without_loading(original: Path) -> None:
    info = describe(original)
    assert info.modalities == ("CT", "CXR")
    assert info.data_licence == "none, untrained"
    assert info.fingerprint == load_checkpoint(original).fingerprint


# ---- names and the hub ----------------------------------------------------------------------------------------------


def test_a_folder_and_an_imported_name_are_found_offline(original: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RADGLINT_HOME", str(tmp_path))
    shutil.copytree(original, tmp_path / "models" / "mine")
    assert hub.from_pretrained("mine").folder == tmp_path / "models" / "mine"
    assert hub.from_pretrained(original).fingerprint == hub.from_pretrained("mine").fingerprint
    with pytest.raises(CheckpointError, match="unknown name"):
        hub.from_pretrained("yours")


def test_a_hub_id_needs_leave_to_go_online(original: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("RADGLINT_ONLINE", raising=False)
    with pytest.raises(CheckpointError, match=r"RADGLINT_ONLINE=1 or pass local_files_only=False"):
        hub.from_pretrained("nobody/no-such-model-of-ours")
    asked = []

    def download(repo_id, **options):
        asked.append((repo_id, options))
        return str(original)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.from_pretrained("somebody/model")
    hub.from_pretrained("somebody/model", revision="v1", local_files_only=False)
    monkeypatch.setenv("RADGLINT_ONLINE", "1")
    assert hub.from_pretrained("somebody/model").name == "tiny"
    assert [(repo, o["local_files_only"], o["revision"]) for repo, o in asked] == [
        ("somebody/model", True, None), ("somebody/model", False, "v1"), ("somebody/model", False, None),
    ]  # fmt: skip
    assert all(sorted(o["allow_patterns"]) == sorted(FILES) for _, o in asked)


def test_a_failed_download_says_why(monkeypatch) -> None:
    def download(*_args, **_options):
        raise ConnectionError("name not resolved\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"cannot be had from the hub \(name not resolved\)"):
        hub.from_pretrained("somebody/model", local_files_only=False)


class _Hub:
    """Stands in for HfApi and keeps what it was told."""

    calls: list[tuple[str, dict]] = []  # noqa: RUF012

    def __init__(self, token=None) -> None:
        self.calls.clear()
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))
        if options["repo_id"].startswith("forbidden"):
            raise PermissionError("403")
        return "commit-address"


def test_exactly_our_files_go_to_the_hub(damaged: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub)
    (damaged / "secret.txt").write_text("mine")
    assert hub.push_to_hub(damaged, "somebody/model", token="t") == "commit-address"
    (_, first), (_, create), (_, upload) = _Hub.calls
    assert first == {"token": "t"}
    assert create == {"repo_id": "somebody/model", "private": True, "exist_ok": True}
    assert (upload["repo_id"], upload["folder_path"]) == ("somebody/model", str(damaged))
    assert sorted(upload["allow_patterns"]) == sorted(FILES)
    assert load_checkpoint(damaged).fingerprint in upload["commit_message"]
    with pytest.raises(OutputError, match="403"):
        hub.push_to_hub(damaged, "forbidden/model")


def test_a_bad_checkpoint_is_not_uploaded(damaged: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub)
    _Hub.calls.clear()
    (damaged / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README\.md"):
        hub.push_to_hub(damaged, "somebody/model")
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        hub.push_to_hub(damaged, "somebody/model")
    assert _Hub.calls == []


def test_an_unloaded_model_is_built_without_random_numbers(original: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_checkpoint(original)
    assert torch.equal(torch.rand(3), expected)


def test_the_tiny_tokenizer_knows_its_words() -> None:
    assert tiny_tokenizer().encode("Left nodule").tokens == ["[CLS]", "left", "nodule", "[SEP]"]
