"""A loss, anchor or gradient that is not finite in one process of two stops both, and neither waits for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing

from radglint.errors import TrainingError
from radglint.train_cached import CachedTask
from radglint.train_config import CachedData, TrainConfig
from radglint.train_engine import Trainer
from radglint.train_pairs import PairTask
from radglint.train_towers import Ranks
from train_runs import tiny_run

LIMIT_S = 240  # for both processes and all cases; seconds unless one waits for ever
BROKEN = {"anchor": "cxr_base", "loss": "cxr_nano", "gradient": "cxr_nano"}
"""What is not finite in process 1, and the recipe that it is tried with."""


def _poison(name: str, task: Any) -> None:
    if name == "anchor":
        with torch.no_grad():
            next(iter(task.teacher.parameters())).fill_(float("nan"))
    elif name == "loss":
        for case in task.cases:
            case.tokens.fill_(float("inf"))
    else:
        task.branch.mixer.enter.weight.register_hook(lambda gradient: gradient * float("nan"))


def _stopped(name: str, config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """What became of a run: its error, and whether weights have changed."""
    task = CachedTask(config, ranks) if isinstance(config.data, CachedData) else PairTask(config, ranks)
    trainer = Trainer(config, task, ranks)
    if ranks.rank == 1:
        _poison(name, task)
    trainer.start(resume=False)
    before = {key: p.detach().clone() for key, p in trainer.named.items()}
    try:
        trainer.run()
    except TrainingError as error:
        return {"error": str(error), "same": all(torch.equal(p, before[key]) for key, p in trainer.named.items())}
    return {"error": "none"}


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in BROKEN:
        config = TrainConfig.model_validate_json((Path(folder) / f"{name}.json").read_text())
        result = _stopped(name, config, Ranks(rank, 2))
        (Path(folder) / f"{name} {rank}.result").write_text(json.dumps(result))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, by two processes that start once; ended by force if they do not end by themselves."""
    folder = tmp_path_factory.mktemp("broken")
    for name, recipe in BROKEN.items():
        config = tiny_run(folder / name, recipe, fit__steps=2, fit__batch=8, init=None)
        (folder / f"{name}.json").write_text(config.model_dump_json())
    running = multiprocessing.start_processes(_rank, (str(folder),), nprocs=2, join=False, start_method="spawn")
    assert running is not None
    end, done = time.monotonic() + LIMIT_S, False
    while not done and time.monotonic() < end:
        done = running.join(timeout=1)
    for process in running.processes:
        process.kill()
    assert done, "a process waits for one that has stopped"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_not_finite_in_one_process_stops_both(stopped: Path, name: str) -> None:
    config = TrainConfig.model_validate_json((stopped / f"{name}.json").read_text())
    where = "process 1" if name == "anchor" else "process 0, 1"  # scores and gradients are gathered before the check
    for rank in range(2):
        result = json.loads((stopped / f"{name} {rank}.result").read_text())
        assert f"step 0: loss or gradient is not finite in {where} (" in result["error"]
        assert result["same"], "no process may make the step"
        kept = config.out / f"process_{rank}" / "broken_00000000"
        assert str(kept) in result["error"]
        assert load_file(kept.with_suffix(".safetensors"))
        assert "nan" in json.loads(kept.with_suffix(".json").read_text())["numbers"].values()
    assert not (config.out / "checkpoints").exists()
