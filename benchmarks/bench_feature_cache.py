"""Cached tokens of a frozen trunk: seconds a training step with and without them, in one run.

Command: python benchmarks/bench_feature_cache.py [--threads N] [--steps N]      (about half a minute on two cores)
Target:  a step of at most a third of the time, its data included; filling the cache takes no longer than two passes
         over the images without one. What is left of a step is the branch, the same for a larger trunk.

A ViT-S/14 of 12 blocks with random weights reads made-up radiographs at 224 px; branch and losses are those of a run on
image-report pairs, 8 images a step. Images or tokens are read in this very process, so that their time is counted.
Steps of both kinds alternate: a machine that is shared changes, and changes for both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model
from transformers.utils.logging import disable_progress_bar

from radglint.precision import product_dtype
from radglint.simulation.facts import CONCEPTS
from radglint.train_config import TrainConfig
from radglint.train_engine import Trainer
from radglint.train_pairs import PairTask
from radglint.train_smoke import write_text_tower
from radglint.train_towers import Ranks

TARGET_SHARE, TARGET_PASSES = 1 / 3, 2.0
ONE = Ranks(device=torch.device("cpu"))
Clock = Callable[[], float]
WIDTH, IMAGES, BATCH, SIDE_PX = 384, 32, 8, 224


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--steps", type=int, default=5, help="timed ones of each kind")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for one thread on a loaded machine")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{product_dtype('auto', ONE.device)}, {torch.get_num_threads()} threads, {BATCH} images a step")
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        make_data(Path(folder))
        report(Path(folder), options.steps, clock)


def make_data(folder: Path) -> None:
    """Radiographs of noise with a sentence each, a trunk and a text tower."""
    trunk = Dinov2Config(
        hidden_size=WIDTH, num_attention_heads=6, num_hidden_layers=12, patch_size=14, image_size=SIDE_PX
    )  # fmt: skip
    Dinov2Model(trunk).save_pretrained(folder / "trunk")
    write_text_tower(folder / "text", WIDTH)
    rng, rows = np.random.default_rng(0), []
    for k in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (512, 512), dtype=np.uint8)).save(folder / f"{k}.png")
        words = f"{CONCEPTS[k % 8]} on the {('left', 'right')[k % 2]}"
        rows.append(json.dumps({"image": f"{k}.png", "report": f"There is a {words}."}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))


def report(folder: Path, steps: int, clock: Clock) -> None:
    """The table: a step of either kind, their ratio, and what filling the cache takes."""
    plain = Steps(config(folder, steps, None))
    start = clock()
    cached = Steps(config(folder, steps, folder / "cache"))
    again = clock()
    Steps(config(folder, steps, folder / "cache"))
    filling = (again - start) - (clock() - again)  # without what every start takes
    pairs = [(plain.timed(clock), cached.timed(clock)) for _ in range(steps + 1)][1:]
    slow, fast = (float(np.median(seconds)) for seconds in zip(*pairs, strict=True))
    passes = filling / (slow * IMAGES / BATCH)
    size_mb = sum(path.stat().st_size for path in (folder / "cache").glob("??/*")) / 2**20
    print(f"{'without cache':<15}{slow:>8.2f} s a step")
    print(f"{'with cache':<15}{fast:>8.2f} s a step, {fast / slow:.0%}: {met(fast / slow, TARGET_SHARE)}")
    print(f"{'ratio':<15}{slow / fast:>8.1f}")
    print(f"{'filling it':<15}{filling:>8.2f} s for {IMAGES} images ({size_mb / IMAGES:.2f} MB each), as long as "
          f"{passes:.1f} passes without: {met(passes, TARGET_PASSES)}")  # fmt: skip


def met(value: float, target: float) -> str:
    """Whether a measure is within its target, in words."""
    return "ok" if value <= target else f"above the target of {target:g}"


def config(folder: Path, steps: int, cache: Path | None) -> TrainConfig:
    """A run on the made-up pairs."""
    return TrainConfig.model_validate({
        "name": "bench", "out": str(folder / "run"), "text": {"source": str(folder / "text")},
        "trunk": {"source": str(folder / "trunk")},
        "branch": {"preprocess": {"kind": "CXR", "long_side_px": SIDE_PX}},
        "data": {"kind": "pairs", "manifests": [str(folder / "manifest.jsonl")], "workers": 0,
                 "cache": None if cache is None else str(cache)},
        "fit": {"steps": steps + 1, "batch": BATCH},
    })  # fmt: skip


class Steps:
    """Steps of one run, one at a time.

    Args:
        config: of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        task = PairTask(config, ONE)
        self.trainer = Trainer(config, task, ONE)
        self.batches: Iterator[tuple[int, Any]] = enumerate(task.batches(0, config.fit.steps))

    def timed(self, clock: Clock) -> float:
        """Seconds of the next step with its data."""
        start = clock()
        step, batch = next(self.batches)
        self.trainer.train_step(step, batch)
        return clock() - start


if __name__ == "__main__":
    main()
