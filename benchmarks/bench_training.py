"""Training: what share of this machine's matrix rate a step reaches, and how much of the time it waits for data.

Command: python benchmarks/bench_training.py [--threads N] [--steps N]      (about two minutes on one core)
Target:  45 % or more of the rate of a 2048 x 2048 x 2048 product for the trained part, in the same run with the same
         threads and number format; waiting for data: none to speak of (5 % or less).

Cached: branches of nano's size on made-up tokens of its shape: labels, forward, losses, backward and update take time,
but only the products of linear layers and gate, forward and backward, count. Pairs: a ViT-S of nine blocks, the last
two trained and anchored, on made-up radiographs that two processes read ahead; only the waiting is of interest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model
from transformers.utils.logging import disable_progress_bar

from radglint.cases import Case, save_cases
from radglint.precision import product_dtype
from radglint.simulation.facts import CONCEPTS, Fact
from radglint.train_cached import CachedTask
from radglint.train_config import TrainConfig
from radglint.train_engine import Trainer
from radglint.train_pairs import PairTask
from radglint.train_smoke import write_text_tower
from radglint.train_towers import Ranks

TARGET_SHARE, TARGET_WAIT = 0.45, 0.05
CPU = torch.device("cpu")
ONE = Ranks(device=CPU)
WIDTH, NUM_CASES, PAIR_PX = 384, 64, 224
MATRIX = 2048
Clock = Callable[[], float]
SIZES = ("small", "moderate", "large")
FIT = {"batch": 48, "group_size": 2, "valid_depth": True, "sparsity": "budget", "sparsity_weight": 5.0}
GATE = {"initial_bias": -4.0, "map_content_weight": 8.0}
# The two branches of nano as they are trained: grid, slices, the branch, and what is particular to the loss.
BRANCHES: dict[str, dict[str, Any]] = {
    "CXR, with evidence loss": {
        "grid": (28, 28), "depth": 1, "blocks": 2, "fit": {"patch_dropout": 0.7, "evidence_weight": 0.5},
        "branch": {"preprocess": {"kind": "CXR"}, "trunk_layers": [6], "mixer": {"attention": False}, "gate": GATE},
    },
    "CXR, without": {
        "grid": (28, 28), "depth": 1, "blocks": 2, "fit": {},
        "branch": {"preprocess": {"kind": "CXR"}, "trunk_layers": [6], "mixer": {"attention": False}, "gate": GATE},
    },
    "CT": {
        "grid": (22, 28), "depth": 3, "blocks": 1, "fit": {},
        "branch": {"preprocess": {"kind": "CT"}, "gate": GATE,
                   "mixer": {"depth_kernel": 3, "depth_layers": 1, "attention": False}},
    },
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for one thread on a loaded machine")
    options = parser.parse_args()
    disable_progress_bar()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = product_dtype("auto", CPU)
    print(f"{dtype}, {torch.get_num_threads()} threads")
    print(f"{'case':<26}{'ms a step':>10}{'GFLOP':>8}{'matrix GFLOP/s':>16}{'share':>7}{'waits':>7}")
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        text = str(write_text_tower(Path(folder) / "text", WIDTH))
        for name, kind in BRANCHES.items():
            measured = cached(kind, text, Path(folder) / name.replace(" ", "_"), options.steps, clock)
            report(name, dtype, clock, *measured)
        report("pairs, 2 of 9 blocks", dtype, clock, *pairs(text, Path(folder) / "pairs", options.steps, clock))


def report(
    name: str, dtype: torch.dtype, clock: Clock, seconds: float, wait: float, work: float | None = None
) -> None:  # fmt: skip
    """One line; the matrix rate is measured beside each case, since a shared machine changes."""
    line, misses = f"{name:<26}{1000 * seconds:>10.0f}", []
    if work is not None:
        rate = matrix_rate(dtype, clock)
        share = work / seconds / rate
        line += f"{work / 1e9:>8.1f}{rate / 1e9:>16.0f}{share:>7.0%}"
        misses += [f"share below {TARGET_SHARE:.0%}"] if share < TARGET_SHARE else []
    else:
        line += f"{'-':>8}{'-':>16}{'-':>7}"
    misses += [f"waits more than {TARGET_WAIT:.0%}"] if wait > TARGET_WAIT else []
    print(f"{line}{wait:>7.1%}  {', '.join(misses) or 'ok'}", flush=True)


def matrix_rate(dtype: torch.dtype, clock: Clock) -> float:
    """Operations a second of a large square product, at its best."""
    left, right = (torch.rand(MATRIX, MATRIX).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = clock()
        left @ right
        seconds.append(clock() - start)
    return 2.0 * MATRIX**3 / min(seconds[1:])


def cached(kind: dict[str, Any], text: str, folder: Path, steps: int, clock: Clock) -> tuple[float, float, float]:
    """Seconds of a step, share of the time that waits for data, operations of a step."""
    height, width = kind["grid"]
    save_cases(folder / "cases" / "train_000", made_up_cases(kind, height * width))
    beside = (kind["depth"] - 1) // 2
    bags = {"bag_slices": 1, "context_slices": beside} if beside else {}
    config = TrainConfig.model_validate({
        "name": "bench", "out": str(folder / "run"), "text": {"source": text}, "branch": kind["branch"],
        "data": {"kind": "cases", "folder": str(folder / "cases"), "grid_tokens": [height, width], **bags},
        "fit": FIT | {"steps": steps + 1} | kind["fit"],
    })  # fmt: skip
    task = CachedTask(config, ONE)
    seconds, wait = timed(Trainer(config, task, ONE), task, clock)
    works = [operations(task, batch, step) for step, batch in enumerate(task.batches(0, steps + 1))]
    return seconds, wait, float(np.mean(works[1:]))


def made_up_cases(kind: dict[str, Any], patches: int) -> list[Case]:
    """Noise as tokens, one or two findings each, two cases of every body."""
    rng = np.random.default_rng(0)
    concepts, sides, zones = list(CONCEPTS[:16]), ("left", "right"), ("upper", "mid", "lower")
    made = []
    for k in range(NUM_CASES):
        facts = tuple(Fact(str(rng.choice(concepts)), str(rng.choice(sides)), str(rng.choice(zones)))  # pyright: ignore[reportArgumentType]
                      for _ in range(int(rng.integers(1, 3))))  # fmt: skip
        tokens = torch.randn(kind["depth"], patches, WIDTH * kind["blocks"]).bfloat16()
        made.append(Case(tokens, facts, torch.ones(len(facts), kind["depth"] * patches).half(), str(k // 2)))
    return made


def operations(task: CachedTask, batch: Any, step: int) -> float:
    """Multiplications and additions of a step's products, forward and backward.

    A product of the forward pass has two in the backward one: for the weights and for what goes in. The tokens that go
    into the first layer need none. What the backward pass computes once more does not count.
    """
    entered: list[int] = []
    hook = task.branch.mixer.enter.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].numel()))
    torch.manual_seed(step)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.loss(batch, step)
    hook.remove()
    return 3.0 * counter.get_total_flops() - 2.0 * entered[0] * task.branch.mixer.enter.out_features


def pairs(text: str, folder: Path, steps: int, clock: Clock) -> tuple[float, float]:
    """Seconds of a step and share that waits, with images read ahead by two processes."""
    folder.mkdir()
    trunk = Dinov2Config(
        hidden_size=WIDTH, num_attention_heads=6, num_hidden_layers=9, patch_size=14, image_size=PAIR_PX
    )  # fmt: skip
    Dinov2Model(trunk).save_pretrained(folder / "trunk")
    rng, rows = np.random.default_rng(0), []
    for k in range(NUM_CASES):
        Image.fromarray(rng.integers(0, 255, (512, 512), dtype=np.uint8)).save(folder / f"{k}.png")
        words = f"{SIZES[k % 3]} {CONCEPTS[k % 8]} on the {('left', 'right')[k % 2]}"
        rows.append(json.dumps({"image": f"{k}.png", "report": f"There is a {words}."}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))
    config = TrainConfig.model_validate({
        "name": "bench", "out": str(folder / "run"), "text": {"source": text},
        "branch": {"preprocess": {"kind": "CXR", "long_side_px": PAIR_PX}, "mixer": {"attention": False}, "gate": GATE},
        "data": {"kind": "pairs", "manifests": [str(folder / "manifest.jsonl")], "workers": 2},
        "trunk": {"source": str(folder / "trunk"), "trained_blocks": 2,
                  "anchor": {"form": "cosine", "blocks": [8, 9]}},
        "fit": {"steps": steps + 1, "batch": 8},
    })  # fmt: skip
    task = PairTask(config, ONE)
    return timed(Trainer(config, task, ONE), task, clock)


def timed(trainer: Trainer, task: Any, clock: Clock) -> tuple[float, float]:
    """Seconds of a step without its data, and the share of all time that waits for data; the first step is left out."""
    steps, waits, spent = [], [], []
    start = time.perf_counter()
    for step, batch in enumerate(task.batches(0, trainer.config.fit.steps)):
        waits.append(time.perf_counter() - start)
        began = clock()
        trainer.train_step(step, batch)
        steps.append(clock() - began)
        spent.append(time.perf_counter() - start)
        start = time.perf_counter()
    return float(np.median(steps[1:])), sum(waits[1:]) / sum(spent[1:])


if __name__ == "__main__":
    main()
