"""Rates, moving average, checkpoints, log and pictures of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from radglint.errors import ConfigError, OutputError, TrainingError
from radglint.train_log import GateView, RunLog, gate_sheet, read_log
from radglint.train_optimizer import (
    MovingAverage,
    build_optimizer,
    clip_gradients,
    layer_factors,
    set_learning_rate,
    trained_parameters,
)
from radglint.train_state import checkpoints, load_state, restore, save_state, training_tensors


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


def test_rates_fall_from_block_to_block() -> None:
    module = nn.ModuleDict({"tower": Tower(), "head": nn.Linear(2, 1)})
    tower = module["tower"]
    assert isinstance(tower, Tower)
    named = trained_parameters(module)
    factors = layer_factors(named, [(tower, list(tower.blocks))], 0.5)
    assert [factors[f"tower.blocks.{k}.weight"] for k in range(3)] == [0.25, 0.5, 1.0]
    assert (factors["tower.embed.weight"], factors["head.weight"]) == (0.125, 1.0)
    optimizer = build_optimizer(named, factors, 0.1)
    set_learning_rate(optimizer, 0.2)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(named["tower.blocks.0.weight"])] == (0.05, 0.1)
    assert rate[id(named["head.bias"])] == (0.2, 0.0)
    assert len(rate) == len(named)


def test_gradients_are_clipped_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 10.0) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0, 0.0]
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    assert parameters[1].grad.item() == pytest.approx(0.8, rel=1e-5)
    parameters[1].grad = torch.tensor([float("nan")])
    assert not np.isfinite(clip_gradients(parameters, 1.0))


def test_the_moving_average_follows_and_steps_in() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = MovingAverage({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    average.update(100)
    assert average.values["w"].item() == pytest.approx(0.5)
    with average.applied():
        assert weight.item() == pytest.approx(0.5)
    assert (weight.item(), average.values["w"].item()) == (1.0, 0.5)
    average.update(0)  # the first steps forget the start: weight 1/10 on the old average
    assert average.values["w"].item() == pytest.approx(0.95)


def trained(seed: int) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW, MovingAverage]:
    torch.manual_seed(seed)
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
    named = trained_parameters(module)
    optimizer = build_optimizer(named, dict.fromkeys(named, 1.0), 0.1)
    set_learning_rate(optimizer, 0.1)
    average = MovingAverage(named, 0.9)
    for step in range(3):
        optimizer.zero_grad()
        module["used"](torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        average.update(step)
    return named, optimizer, average


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    one, other = trained(0), trained(1)
    tensors = training_tensors(*one)
    folder = save_state(tmp_path, 3, tensors, "me")
    step, stored = load_state(folder, "me")
    restore(stored, *other)
    again = training_tensors(*other)
    assert step == 3
    assert again.keys() == tensors.keys()
    assert any(name.startswith("optimizer.exp_avg_sq.used") for name in tensors)
    assert not any(name.startswith("optimizer") and "unused" in name for name in tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]


def test_only_the_newest_checkpoints_stay_and_half_ones_are_not_seen(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        save_state(tmp_path, step, {"weight.w": torch.zeros(1)}, "me")
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000010", "step_00000011"]
    (tmp_path / "checkpoints" / "step_00000012").mkdir()
    (tmp_path / "checkpoints" / ".radglint-0123").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000010", "step_00000011"]


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = save_state(tmp_path, 1, {"weight.w": torch.zeros(4)}, "me")
    with pytest.raises(TrainingError, match="another configuration"):
        load_state(folder, "you")
    named = {"w": nn.Parameter(torch.zeros(3))}
    with pytest.raises(TrainingError, match=r"weight.w: expected a tensor of shape \(3,\), got \(4,\)"):
        restore(load_state(folder, "me")[1], named, build_optimizer(named, {"w": 1.0}, 0.0), None)
    content = bytearray((folder / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "state.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match="damaged or of another version"):
        load_state(folder, "me")
    (folder / "state.safetensors").write_bytes(content[:20])
    with pytest.raises(TrainingError, match="cannot be read"):
        load_state(folder, "me")


def test_a_log_goes_on_where_the_run_does(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", 0, tensorboard=False)
    for step in range(5):
        log.add({"step": step, "loss": 1.0 / (step + 1)})
    log.close()
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    again = RunLog(tmp_path / "run", 3, tensorboard=False)
    again.add({"step": 3, "loss": 7.0})
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "run")][-2:] == [(2, 1 / 3), (3, 7.0)]
    assert len(read_log(tmp_path / "run")) == 4


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run/log\.jsonl"):
        RunLog(tmp_path / "file" / "run", 0, tensorboard=False)


def test_tensorboard_needs_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'radglint\[train\]'"):
        RunLog(tmp_path, 0, tensorboard=True)


def test_tensorboard_gets_every_number_and_the_picture(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=True)
    log.add({"step": 4, "loss": 0.25})
    path = log.picture(4, gate_sheet([GateView("nodule", None, np.eye(3))]))
    log.close()
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"gates" in events
    with Image.open(path) as picture:
        assert picture.size == (448, 254)
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 4, "loss": 0.25}
    shutil.rmtree(tmp_path / "tensorboard")


def test_a_sheet_shows_the_gate_where_it_is_open() -> None:
    gate = np.zeros((4, 4))
    gate[0, 3] = 0.02
    pixels = np.asarray(gate_sheet([GateView("x", np.ones((8, 8)), gate)] * 5), dtype=int).sum(axis=-1)
    assert pixels.shape == (2 * 254, 4 * 448)
    tile = pixels[30:254, 224:448]
    assert tile[20, 200] > 2 * tile[200, 20], "brightest at the top right"
    assert pixels[100, 100] == 3 * 255
    assert pixels[-1, -1] == 0, "three places of the second row are empty"
