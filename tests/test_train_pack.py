"""`radglint models pack`: from a run of `radglint train` to a model that is asked, calibrated and asked again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2Config

import radglint
from radglint import cli
from radglint.checkpoint import load_checkpoint
from radglint.errors import CheckpointError, ConfigError, OutputError, TrainingError
from radglint.manifest import ManifestRow, write_manifest
from radglint.train_config import TrainConfig
from radglint.train_engine import train
from radglint.train_pack import pack
from radglint.train_pairs import load_trained
from train_runs import tiny_run

COUNT = 48
CASES: dict[str, Any] = {"branch__trunk_layers": [], "branch__preprocess__long_side_px": 56, "data__val_prefix": None}


def write_trunk(folder: Path, **changes: Any) -> Path:
    """A tiny DINOv2 as wide as the cached tokens of a tiny run."""
    values = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    AutoModel.from_config(Dinov2Config(**values | changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = tiny_run(tmp_path_factory.mktemp("pairs"), "cxr_base", fit__steps=2, device="cpu")
    train(config)
    return config


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = tiny_run(tmp_path_factory.mktemp("cases"), "cxr_nano", **CASES)
    train(config)
    return config


@pytest.fixture
def copy(pairs: TrainConfig, tmp_path: Path) -> Path:
    """A run that a test may break."""
    return Path(shutil.copytree(pairs.out, tmp_path / "copy"))


def write_cases(folder: Path, model: Path) -> Path:
    """A manifest of small pictures, labelled by what the model scores for a nodule, every sixth turned round."""
    pipe, scores, rng = radglint.load(model, device="cpu"), [], np.random.default_rng(0)
    for k in range(COUNT):
        steps = rng.integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(np.kron(steps, np.ones((16, 16), np.uint8))).save(folder / f"{k}.png")
        scores.append(pipe.ask(folder / f"{k}.png", ["nodule"])[0].score)
    there = (np.array(scores) > np.median(scores)) ^ (np.arange(COUNT) % 6 == 0)
    rows = [
        ManifestRow(f"case {k}", f"{k}.png", "CXR", patient=f"p{k}", split="val",
                    labels={"nodule": "present" if there[k] else "absent"})
        for k in range(COUNT)
    ]  # fmt: skip
    return write_manifest(folder / "cases.jsonl", rows)


def asked(capsys: pytest.CaptureFixture[str], image: Path, model: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["ask", str(image), "nodule", "mass", "--model", str(model), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_packed_asked_calibrated_and_asked_again(
    pairs: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, better = tmp_path / "made", tmp_path / "better"
    assert cli.main(["models", "pack", str(pairs.out), "--out", str(made), "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("packed mine (CXR, ")
    assert "radglint calibrate" in err
    cases = write_cases(tmp_path, made)
    before = asked(capsys, tmp_path / "0.png", made)
    assert before["model"]["name"] == "mine"
    assert [f["note"].startswith("uncalibrated, see `radglint calibrate`") for f in before["findings"]] == [True] * 2
    assert any(text.startswith("uncalibrated model") for text in before["warnings"])
    first = before["findings"][0]
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-first["score"])), abs=1e-6)

    assert cli.main(["calibrate", str(made), str(cases), "--out", str(better), "--device", "cpu"]) == 0
    after = asked(capsys, tmp_path / "0.png", better)
    assert ["uncalibrated" in f["note"] for f in after["findings"]] == [False, True]  # no mass was labelled
    assert after["findings"][0]["score"] == pytest.approx(first["score"], abs=1e-6)
    assert after["findings"][0]["probability"] != pytest.approx(first["probability"], abs=1e-4)
    maps = load_checkpoint(better).calibration.modalities["CXR"]
    assert "nodule" not in maps.uncalibrated
    assert "mass" in maps.uncalibrated


def test_a_packed_run_is_evaluated(pairs: TrainConfig, tmp_path: Path) -> None:
    made = pack(pairs.out, tmp_path / "made").folder
    cases = write_cases(tmp_path, made)
    values = {"name": "packed", "manifest": cases, "model": made, "out": tmp_path / "out", "bank": "simfind_cxr"}
    config = tmp_path / "evaluation.toml"
    text = "".join(f"{key} = '{value}'\n" for key, value in values.items())
    config.write_text(text + "protocols = ['radglint']\nsplit = 'val'\ndraws = 5\n")
    assert cli.main(["evaluate", str(config)]) == 0
    assert (tmp_path / "out" / "results.json").is_file()


def test_the_packed_model_is_the_trained_one_and_says_where_it_comes_from(pairs: TrainConfig, tmp_path: Path) -> None:
    packed = pack(pairs.out, tmp_path / "made", training_data="made up", licence="CC0")
    checkpoint, trained = load_checkpoint(packed.folder), load_trained(pairs.out)
    assert checkpoint.fingerprint == packed.fingerprint
    assert checkpoint.calibration.origin.startswith("UNCALIBRATED")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(checkpoint.model.state_dict()[name], tensor), name
    facts = checkpoint.provenance
    assert facts["licences"] == {"code": "Apache-2.0", "weights": "CC0", "data": "made up"}
    assert (facts["training"]["steps"], facts["training"]["seed"]) == (2, pairs.fit.seed)
    assert facts["training"]["training_data"] == ["manifest.jsonl", *(["shard-000.tar"] if pairs.data.shards else [])]
    assert facts["training"]["config"]["out"] == pairs.out.name
    assert facts["training"]["metrics"] == json.loads((pairs.out / "metrics.json").read_text())
    written = "".join(path.read_text() for path in packed.folder.glob("*.json"))
    assert str(pairs.out.parent) not in written, "no folder of this machine"


def test_a_run_on_cached_cases_takes_its_trunk(cached: TrainConfig, tmp_path: Path) -> None:
    trunk = write_trunk(tmp_path / "trunk")
    packed = pack(cached.out, tmp_path / "made", trunk=trunk, quantize="bfloat16")
    checkpoint = load_checkpoint(packed.folder)
    branch = load_file(cached.out / "branch.safetensors")
    got = checkpoint.model.branch("CXR").state_dict()
    for name, tensor in branch.items():
        torch.testing.assert_close(got[name], tensor, rtol=8e-3, atol=1e-3)
    assert checkpoint.provenance["training"]["trunk"] == "trunk"
    assert checkpoint.calibration.modalities["CXR"].pixel.bias == -cached.fit.evidence_offset
    picture = tmp_path / "a.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 16 % 256).convert("L").save(picture)
    finding = radglint.load(packed.folder, device="cpu").ask(picture, ["nodule"])[0]
    assert finding.is_uncalibrated
    assert -1 <= finding.score <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "is 32 wide, the run was trained on tokens of a trunk 16 wide"),
        ({"patch_size": 28}, "has patches of 28 px, the run of 14 px"),
    ],
)
def test_another_trunk_is_refused(cached: TrainConfig, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        pack(cached.out, tmp_path / "made", trunk=write_trunk(tmp_path / "trunk", **changes))
    assert not (tmp_path / "made").exists()


def test_a_trunk_is_given_where_it_is_needed_and_only_there(
    pairs: TrainConfig, cached: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="give the folder of their trunk with --trunk"):
        pack(cached.out, tmp_path / "made")
    with pytest.raises(ConfigError, match="holds its own trunk; leave it out"):
        pack(pairs.out, tmp_path / "made", trunk=tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        pack(cached.out, tmp_path / "made", trunk=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "metrics.json"])
def test_an_unfinished_run_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(TrainingError, match=rf"is not finished, it lacks {name}; .* --resume"):
        pack(copy, tmp_path / "made")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run of `radglint train`, it lacks run\.json"):
        pack(tmp_path, tmp_path / "made")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json: cannot be read as JSON"),
        ("run.json", '{"versions": {}}', "expected the key 'config'"),
        ("run.json", '{"config": {"name": "x"}}', "use the radglint version that trained it"),
        ("model.json", "{}", "cannot be loaded"),
        ("tokenizer.json", "x", "cannot be loaded"),
        ("model.safetensors", "x", "cannot be loaded"),
    ],
)
def test_a_damaged_run_is_refused(copy: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(TrainingError, match=message):
        pack(copy, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_weights_that_are_not_finite_are_refused(copy: Path, tmp_path: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["branches.CXR.logit_scale"] = torch.tensor(float("nan"))
    save_file(state, copy / "model.safetensors")
    with pytest.raises(TrainingError, match=r"not finite \(branches\.CXR\.logit_scale"):
        pack(copy, tmp_path / "made")


def test_a_damaged_branch_is_refused(cached: TrainConfig, tmp_path: Path) -> None:
    run, trunk = Path(shutil.copytree(cached.out, tmp_path / "copy")), write_trunk(tmp_path / "trunk")
    state = load_file(run / "branch.safetensors")
    save_file({k: v for k, v in state.items() if k != "logit_scale"}, run / "branch.safetensors")
    with pytest.raises(TrainingError, match=r"does not fit run\.json and the text tower"):
        pack(run, tmp_path / "made", trunk=trunk)
    (run / "branch.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match=r"branch\.safetensors: cannot be read"):
        pack(run, tmp_path / "made", trunk=trunk)


def test_nothing_is_overwritten(pairs: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="is in the way"):
        pack(pairs.out, tmp_path)
    assert cli.main(["models", "pack", str(pairs.out), "--out", " "]) == 2
    assert "--out: it is empty" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--name: it is empty"):
        pack(pairs.out, tmp_path / "made", name=" ")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
