"""The training engine: one process or two, whole or in pieces, interrupted or not, it computes the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

from radglint.errors import ConfigError, TrainingError
from radglint.precision import product_dtype
from radglint.train_cached import CachedTask
from radglint.train_config import CachedData, TrainConfig
from radglint.train_engine import Trainer, train
from radglint.train_log import read_log
from radglint.train_optimizer import average_gradients, clip_gradients
from radglint.train_pairs import PairTask, load_trained
from radglint.train_state import checkpoints, whole
from radglint.train_towers import Ranks
from train_runs import flat, tiny_run, write_toml

CACHED_TOLERANCE = 1e-4 if product_dtype("auto", torch.device("cpu")) == torch.float32 else 2e-2
PLAIN = {"fit__evidence_weight": 0.0, "fit__in_lungs": []}
EVIDENCE = {"fit__evidence_from_step": 0, "fit__evidence_weight": 2.0, "fit__token_shift": 0.2}
CACHED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("cxr_nano", PLAIN | {"fit__token_shift": 0.2}),
    "evidence": ("cxr_nano", EVIDENCE),
    "evidence of bags": ("ct_nano", EVIDENCE),
    "cached gloria": ("cxr_nano", PLAIN | {"fit__local": "gloria", "fit__local_weight": 0.7}),
    "cached mgca": ("cxr_nano", PLAIN | {"fit__local": "mgca", "fit__local_weight": 0.7}),
}


def gradients(config: TrainConfig, ranks: Ranks, step: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and averaged gradients of one step; the update is not made."""
    task = CachedTask(config, ranks) if isinstance(config.data, CachedData) else PairTask(config, ranks)
    trainer = Trainer(config, task, ranks)
    torch.manual_seed(0)
    if task.branch.place is not None:
        torch.nn.init.normal_(task.branch.place.head.weight)  # so that it tells images apart
    batch = next(iter(task.batches(step, step + 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        out = task.loss(batch, step)  # type: ignore[arg-type]
    assert out is not None
    out[0].backward()
    average_gradients(list(trainer.named.values()), ranks.count)
    clip_gradients(list(trainer.named.values()), 1e9)
    found = {name: whole(p.grad) for name, p in trainer.named.items() if p.grad is not None}
    return float(out[0].detach()), found


def assert_same(got: tuple[float, dict[str, torch.Tensor]], wanted: tuple[float, dict[str, torch.Tensor]], tol: float):
    assert got[0] == pytest.approx(wanted[0], rel=tol)
    assert got[1].keys() == wanted[1].keys()
    difference = flat(got[1]) - flat(wanted[1])
    assert float(flat(wanted[1]).norm()) > 1e-3, "a comparison of zeros proves nothing"
    assert float(difference.norm() / flat(wanted[1]).norm()) < tol
    for name, gradient in wanted[1].items():
        assert float((got[1][name] - gradient).abs().max()) < tol * max(1.0, float(gradient.abs().max())), name


PAIRS: dict[str, Any] = {
    "fit__batch": 8, "microbatch_images": None, "trunk__anchor__start_weight": 1.0, "fit__sparsity_weight": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["cxr_base", "ct_base"])
def test_pieces_give_the_gradients_of_the_whole_batch(tmp_path: Path, recipe: str) -> None:
    one = tiny_run(tmp_path / "a", recipe, **PAIRS)
    config = one.model_copy(update={"microbatch_images": 3})
    assert_same(gradients(config, Ranks()), gradients(one, Ranks()), 1e-4)


def test_pieces_of_a_frozen_trunk(tmp_path: Path) -> None:
    frozen = {"trunk__trained_blocks": 0, "trunk__anchor": {"form": "none"}, "text__trained": False}
    one = tiny_run(tmp_path / "a", **PAIRS | frozen)
    wanted = gradients(one, Ranks())
    assert {name.split(".")[0] for name in wanted[1]} == {"branches"}
    assert_same(gradients(one.model_copy(update={"microbatch_images": 3}), Ranks()), wanted, 1e-4)


SIGMOID = {"fit__loss": "sigmoid", "branch__initial_logit_scale": 10.0, "branch__initial_logit_bias": -10.0}
LOCAL = {"data__said": ["present", "absent"], "fit__local_weight": 0.7}  # "no effusion" is of another finding


@pytest.mark.parametrize("changes", [LOCAL | {"fit__local": "gloria"}, LOCAL | {"fit__local": "mgca"}, SIGMOID])
def test_pieces_of_the_losses_of_baselines(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = tiny_run(tmp_path / "a", **PAIRS | changes)
    plain = tiny_run(tmp_path / "b", **PAIRS | {"data__said": one.data.model_dump()["said"]})
    wanted = gradients(one, Ranks())
    assert_same(gradients(one.model_copy(update={"microbatch_images": 3}), Ranks()), wanted, 1e-4)
    assert wanted[0] != pytest.approx(gradients(plain, Ranks())[0], rel=1e-3), "the loss must be another one"
    assert ("branches.CXR.logit_bias" in wanted[1]) == ("fit__loss" in changes)


@pytest.mark.parametrize("name", list(CACHED))
def test_pieces_of_cached_tokens(tmp_path: Path, name: str) -> None:
    recipe, changes = CACHED[name]
    one = tiny_run(tmp_path / "a", recipe, **changes | {"fit__batch": 8})
    pieces = one.model_copy(update={"microbatch_images": 3})
    assert_same(gradients(pieces, Ranks()), gradients(one, Ranks()), CACHED_TOLERANCE)


TWO_PROCESSES: dict[str, tuple[str, dict[str, Any]]] = {
    "data parallel": ("cxr_base", PAIRS | {"parallel": "data"}),
    "fsdp2 in pieces": ("cxr_base", PAIRS | {"parallel": "fsdp2", "microbatch_images": 2}),
    "fsdp2 with lora": ("ct_base", PAIRS | {"parallel": "fsdp2"}),
    "gloria": ("cxr_base", PAIRS | LOCAL | {"fit__local": "gloria", "microbatch_images": 3}),
    "mgca": ("cxr_base", PAIRS | LOCAL | SIGMOID | {"fit__local": "mgca"}),
    **{name: (recipe, changes | {"fit__batch": 7}) for name, (recipe, changes) in CACHED.items()},
    "evidence in pieces": ("cxr_nano", EVIDENCE | {"fit__batch": 7, "microbatch_images": 2}),
}


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in TWO_PROCESSES:
        values = (Path(folder) / f"{name}.json").read_text()
        loss, found = gradients(TrainConfig.model_validate_json(values), Ranks(rank, 2))
        save_file(found, Path(folder) / f"{name} {rank}.safetensors")
        (Path(folder) / f"{name} {rank}.loss").write_text(json.dumps(loss))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loss and gradients of every case, computed by two processes that start once."""
    folder = tmp_path_factory.mktemp("two")
    for name, (recipe, changes) in TWO_PROCESSES.items():
        (folder / f"{name}.json").write_text(tiny_run(folder / name, recipe, **changes).model_dump_json())
    multiprocessing.start_processes(_rank, args=(str(folder),), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TWO_PROCESSES))
def test_two_processes_have_the_gradients_of_one(two_processes: Path, name: str) -> None:
    config = TrainConfig.model_validate_json((two_processes / f"{name}.json").read_text())
    wanted = gradients(config.model_copy(update={"parallel": "data", "microbatch_images": None}), Ranks())
    for rank in range(2):
        loss = json.loads((two_processes / f"{name} {rank}.loss").read_text())
        got = (loss, load_file(two_processes / f"{name} {rank}.safetensors"))
        assert_same(got, wanted, CACHED_TOLERANCE if isinstance(config.data, CachedData) else 1e-4)


TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
ACCELERATE = [
    "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--no_python",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_a_launcher_trains_what_one_process_does(launcher: list[str], tmp_path: Path) -> None:
    """The command itself, sharded, with pictures and checkpoints on the way; one log."""
    changes = {"fit__steps": 3, "log_every_steps": 1, "parallel": "fsdp2", "picture_every_steps": 3}
    config = tiny_run(tmp_path, **changes, checkpoint_every_steps=2)
    one = config.model_copy(update={"out": tmp_path / "one"})
    train(one)
    radglint = [sys.executable, "-c", "from radglint.cli import entry; entry()", "train"]
    command = [sys.executable, "-m", *launcher, *radglint, str(write_toml(config, tmp_path / "run.toml"))]
    done = subprocess.run(
        command, capture_output=True, text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained cxr_base")
    assert done.stdout.count("\n") == 1
    got, wanted = ([row["loss"] for row in read_log(run)] for run in (config.out, one.out))
    assert got == pytest.approx(wanted, rel=2e-3)
    assert [path.name for path in (config.out / "gates").iterdir()] == ["step_00000003.png"]
    assert [path.name for path in checkpoints(config.out)] == ["step_00000002", "step_00000003"]
    assert load_trained(config.out).config == load_trained(one.out).config


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.out / "branch.safetensors")


KILLED = """
import os, signal, sys
from radglint import cli, train_engine, train_state

def kill_when(module, name, is_time):
    original = getattr(module, name)
    def function(*args):
        if is_time(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    setattr(module, name, function)

if sys.argv[1] == "in a step":
    kill_when(train_engine.Trainer, "train_step", lambda self, step, batch: step == 17)
else:
    kill_when(train_state, "write_json", lambda path, document: document.get("step") == 18)
cli.main(["train", sys.argv[2]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in a step", "while a checkpoint is written"])
def test_a_killed_run_resumed_has_the_weights_of_one_that_was_not(tmp_path: Path, when: str) -> None:
    """SIGKILL; dropout, channel shifts and moving average included, bit by bit."""
    changes = {"fit__steps": 24, "checkpoint_every_steps": 3, "log_every_steps": 1, "branch__mixer__dropout": 0.3}
    changes |= {"fit__token_shift": 0.2, "ema_decay": 0.9, "data__val_prefix": None, "data__train_prefixes": ["train"]}
    config = tiny_run(tmp_path, "cxr_nano", **changes)
    straight = config.model_copy(update={"out": tmp_path / "straight"})
    train(straight)
    command = [sys.executable, "-c", KILLED, when, str(write_toml(config, tmp_path / "run.toml"))]
    killed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints(config.out)[-1].name == "step_00000015"
    half = list(config.out.glob("checkpoints/.radglint-*"))
    assert bool(half) == (when == "while a checkpoint is written")
    train(config, resume=True)
    assert not list(config.out.glob("checkpoints/.radglint-*"))
    got, wanted = weights(config), weights(straight)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    numbers = ("step", "loss", "gradient_norm", "mass_pos")
    rows = [[row[key] for key in numbers] for row in read_log(config.out)]
    assert [row[0] for row in rows] == list(range(24)), "each step is logged once"
    assert rows == [[row[key] for key in numbers] for row in read_log(straight.out)]


def interrupted(config: TrainConfig, after: int) -> None:
    """Stop a run as a kill would, after some steps."""

    class StoppedError(Exception):
        pass

    task = CachedTask(config, Ranks()) if isinstance(config.data, CachedData) else PairTask(config, Ranks())
    trainer = Trainer(config, task, Ranks())
    whole_step = trainer.train_step

    def step_or_stop(step: int, batch: Any) -> dict[str, float]:
        if step == after:
            raise StoppedError
        return whole_step(step, batch)

    trainer.train_step = step_or_stop  # type: ignore[method-assign]
    trainer.start(resume=True)
    with pytest.raises(StoppedError):
        trainer.run()


def test_a_resumed_run_on_pairs_has_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"fit__steps": 4, "checkpoint_every_steps": 2, "fit__batch": 4, "device": "cpu"}
    config = tiny_run(tmp_path, **changes)
    straight = config.model_copy(update={"out": tmp_path / "straight"})
    train(straight)
    interrupted(config, after=3)
    train(config, resume=True)
    for name in ("model.safetensors", "branch.safetensors"):
        got, wanted = load_file(config.out / name), load_file(straight.out / name)
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_a_run_is_not_overwritten_and_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano", fit__steps=2, data__val_prefix=None)
    train(config)
    with pytest.raises(TrainingError, match="holds a run; add --resume"):
        train(config)
    other = config.model_copy(update={"fit": config.fit.model_copy(update={"learning_rate": 1e-5})})
    with pytest.raises(TrainingError, match="another configuration"):
        train(other, resume=True)
    logged_more = config.model_copy(update={"log_every_steps": 7})
    assert train(logged_more, resume=True) == {}


def test_a_batch_that_breaks_the_run_is_kept(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano", fit__steps=3, data__val_prefix=None, init=None)
    task = CachedTask(config, Ranks())
    with torch.no_grad():
        task.branch.mixer.enter.weight[0, 0] = float("nan")
    trainer = Trainer(config, task, Ranks())
    trainer.start(resume=False)
    before = {name: p.detach().clone() for name, p in trainer.named.items()}
    with pytest.raises(TrainingError, match=r"step 0: loss or gradient is not finite .*nan.* lower fit.learning_rate"):
        trainer.run()
    kept = load_file(config.out / "broken_00000000.safetensors")
    assert kept["tokens"].shape[0] == config.fit.batch
    document = json.loads((config.out / "broken_00000000.json").read_text())
    assert document["numbers"]["loss"] == "nan"
    assert len(document["cases"]) == config.fit.batch
    assert all(torch.equal(p, before[n]) or n == "mixer.enter.weight" for n, p in trainer.named.items())


@pytest.mark.parametrize("recipe", ["cxr_nano", "ct_nano", "cxr_base", "ct_base"])
def test_every_recipe_runs_one_step(tmp_path: Path, recipe: str) -> None:
    """As the recipe says, down to precision and moving average; what it leaves behind is complete."""
    tensorboard = {"tensorboard": True, "precision": "bfloat16"} if recipe.endswith("base") else {}
    config = tiny_run(tmp_path, recipe, picture_every_steps=1, **tensorboard)
    means = train(config)
    assert [row["step"] for row in read_log(config.out)] == [0]
    wanted = {"loss", "align", "sparsity", "mass_pos", "scale", "gradient_norm", "data_wait_share", "images_per_second"}
    assert wanted <= set(read_log(config.out)[0])
    assert 0 <= means["auroc"] <= 1
    assert ("pointing" in means) == recipe.endswith("nano"), "only cached cases know the place"
    assert [path.name for path in (config.out / "gates").iterdir()] == ["step_00000001.png"]
    assert bool(list(config.out.glob("tensorboard/events*"))) == bool(tensorboard)
    if recipe.endswith("base"):
        assert load_trained(config.out).config.name == recipe


def test_the_written_model_scores_as_the_trained_one(tmp_path: Path) -> None:
    """With its low-rank updates merged."""
    config = tiny_run(tmp_path, "ct_base", fit__steps=2, ema_decay=None, fit__learning_rate=0.05, device="cpu")
    task = PairTask(config, Ranks())
    trainer = Trainer(config, task, Ranks())
    trainer.start(resume=False)
    trainer.run()
    pixels = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        wanted = task.model.eval()(pixels, ["There is a nodule."], "CT").gated.scores
        got = load_trained(config.out)(pixels, ["There is a nodule."], "CT").gated.scores
        start = PairTask(config, Ranks()).model.eval()(pixels, ["There is a nodule."], "CT").gated.scores
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert float((start - wanted).abs().max()) > 1e-3, "training moved it"


def test_the_anchor_holds_its_own_blocks_whatever_the_mixer_reads(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, branch__trunk_layers=[1], trunk__anchor__blocks=[2], fit__steps=2)
    train(config)
    assert [row["anchor"] > 0 for row in read_log(config.out)] == [False, True]


def test_the_anchor_is_zero_at_first_and_holds_the_trunk(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, fit__steps=3, log_every_steps=1, fit__learning_rate=0.01, device="cpu")
    train(config)
    anchors = [row["anchor"] for row in read_log(config.out)]
    assert anchors[0] == 0.0
    assert anchors[1] > 0


def test_each_process_needs_images_of_its_own(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano", fit__batch=3)
    with pytest.raises(ConfigError, match=r"fit.batch: a step has 3 images, .* 4, two for each process .*on the CPU"):
        CachedTask(config, Ranks(0, 2))


def test_cached_tokens_of_blocks_that_are_not_named_are_refused(tmp_path: Path) -> None:
    """Tokens that do not divide into the blocks of branch.trunk_layers were cached with others."""
    with pytest.raises(ConfigError, match=r"branch\.trunk_layers does not divide"):
        train(tiny_run(tmp_path, "cxr_nano", branch__trunk_layers=[2, 4, 6, 8], data__val_prefix=None))


NO_VALIDATION = {"data__val_manifest": None, "data__val_split": None}


def test_pairs_read_the_earlier_blocks_that_the_branch_names(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_base", branch__trunk_layers=[1], fit__steps=1, **NO_VALIDATION)
    train(config)
    model = load_trained(config.out)
    assert model.branch("CXR").mixer.enter.in_features == 2 * model.trunk.embed_dim
