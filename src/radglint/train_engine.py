"""`radglint train`: from a configuration to weights, on one process or many, resumable at any step.

    batch of the step -> loss of the whole batch -> gradients, averaged -> clip -> AdamW -> moving average
                                  every few steps: log row, checkpoint, picture of gates

One process computes the same with or without an interruption, bit by bit: what a step draws depends on seed and step
alone. Several processes are started by `torchrun` or `accelerate launch`; they compute what one would.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from radglint.errors import ConfigError, TrainingError
from radglint.precision import autocast
from radglint.train import learning_rate_factor
from radglint.train_cached import CachedTask
from radglint.train_config import CachedData, TrainConfig
from radglint.train_log import RunLog, gate_sheet, stop_on_nan
from radglint.train_optimizer import (
    MovingAverage,
    average_gradients,
    build_optimizer,
    clip_gradients,
    layer_factors,
    set_learning_rate,
    trained_parameters,
)
from radglint.train_pairs import PairTask
from radglint.train_state import (
    checkpoints,
    clean_unfinished,
    load_state,
    restore,
    run_identity,
    save_state,
    training_tensors,
)
from radglint.train_towers import Numbers, Ranks, Task
from radglint.writing import output_errors, write_json

NOT_IDENTITY = frozenset({
    *("name", "out", "log_every_steps", "checkpoint_every_steps", "picture_every_steps", "picture_cases"),
    *("tensorboard", "device", "parallel"),
})  # fmt: skip
"""Keys that may change between a run and its resumption: they do not change the weights."""
STOPPING = ("loss", "gradient_norm")
"""Numbers of a step that must be finite."""


def train(config: TrainConfig, *, resume: bool = False) -> Numbers:
    """Train, and write the weights into the run's folder.

    Args:
        config: of the run.
        resume: go on from the newest checkpoint in the folder; without one, from the start.

    Returns:
        Means of the validation measures, where there are masks to measure with.

    Raises:
        TrainingError: a loss is not finite, the folder holds another run, or its checkpoint cannot be resumed.
        ConfigError: the data do not fit, or `accelerate` is not installed.
        CheckpointError: a tower cannot be loaded.
    """
    ranks = _ranks(config)
    task: Task = CachedTask(config, ranks) if isinstance(config.data, CachedData) else PairTask(config, ranks)
    trainer = Trainer(config, task, ranks)
    trainer.start(resume)
    return trainer.run()


def _ranks(config: TrainConfig) -> Ranks:
    """This process among those that `torchrun` or `accelerate launch` has started."""
    try:
        from accelerate import PartialState  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("radglint train needs accelerate: pip install 'radglint[train]'") from error
    on_cpu = config.device == "cpu" or isinstance(config.data, CachedData) or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)  # without being told, it would count one process on a machine without a GPU
    return Ranks(state.process_index, state.num_processes, torch.device(str(state.device)))


class Trainer:
    """Steps, and what is kept of them.

    Args:
        config: of the run.
        task: data and loss.
        ranks: this process among all.
    """

    def __init__(self, config: TrainConfig, task: Task, ranks: Ranks) -> None:
        self.config, self.task, self.ranks = config, task, ranks
        self.named = trained_parameters(task.module)
        factors = layer_factors(self.named, task.towers, config.layer_decay)
        self.optimizer = build_optimizer(self.named, factors, config.fit.weight_decay)
        self.average = MovingAverage(self.named, config.ema_decay) if config.ema_decay is not None else None
        shapes = (f"{name} {tuple(p.shape)}" for name, p in self.named.items())
        self.identity = run_identity([str(sorted(_identity_values(config).items())), *shapes])
        self.step = 0

    def start(self, resume: bool) -> None:
        """Take up the newest checkpoint, or begin.

        Raises:
            TrainingError: there are checkpoints and `resume` is False, or the newest cannot be resumed.
        """
        found = checkpoints(self.config.out)
        if found and not resume:
            raise TrainingError(f"{self.config.out}: holds a run; add --resume to go on, or choose another out folder")
        if found:
            self.step, tensors = load_state(found[-1], self.identity)
            restore(tensors, self.named, self.optimizer, self.average)
        self._wait()
        if self.is_first:
            with output_errors(self.config.out):
                self.config.out.mkdir(parents=True, exist_ok=True)
            clean_unfinished(self.config.out / "checkpoints")
            write_json(self.config.out / "run.json", self._facts())
        self.log = RunLog(self.config.out, self.step, self.config.tensorboard) if self.is_first else None

    def _facts(self) -> dict[str, Any]:
        """What one needs to know to run it again."""
        import radglint

        versions = {"radglint": radglint.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
        trained = sum(parameter.numel() for parameter in self.named.values())
        return {"config": self.config.model_dump(mode="json"), "versions": versions, "processes": self.ranks.count,
                "trained_parameters": trained}  # fmt: skip

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.ranks.rank == 0

    def run(self) -> Numbers:
        """Train to the last step, then write the weights and measure them.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        fit, since = self.config.fit, _Since()
        bar = tqdm(total=fit.steps, initial=self.step, disable=None if self.is_first else True, unit="step")
        batches = self.task.batches(self.step, fit.steps)
        for step, batch in enumerate(since.waited(batches), start=self.step):
            numbers = self.train_step(step, batch)
            since.images += fit.batch
            bar.update()
            if numbers and (step % self.config.log_every_steps == 0 or step == fit.steps - 1):
                bar.set_postfix_str(f"loss {numbers['loss']:.3f}")
                self._add_row({"step": step, **numbers, **since.numbers()})
            self._keep(step + 1)
        bar.close()
        return self._finish()

    def train_step(self, step: int, batch: Any) -> Numbers:
        """One update.

        Returns:
            Parts of the loss, length of the gradient, learning rate; nothing where the batch taught nothing.

        Raises:
            TrainingError: loss or gradient is not finite; the batch is kept, the weights are as before.
        """
        fit = self.config.fit
        torch.manual_seed(_step_seed(fit.seed, step))
        self.optimizer.zero_grad(set_to_none=True)
        rate = fit.learning_rate * learning_rate_factor(step, fit)
        set_learning_rate(self.optimizer, rate)
        numbers = self._backward(step, batch)
        if numbers is None:
            return {}
        parameters = list(self.named.values())
        average_gradients(parameters, self.ranks.count)
        numbers["gradient_norm"] = clip_gradients(parameters, fit.gradient_clip)
        self._check(step, batch, numbers)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step)
        return numbers | {"learning_rate": rate}

    def _backward(self, step: int, batch: Any) -> Numbers | None:
        with autocast(self.config.precision, self.ranks.device):
            out = self.task.loss(batch, step)
        if out is None:
            return None
        loss, numbers = out
        numbers = {"loss": float(loss.detach()), **numbers}
        self._check(step, batch, numbers)
        loss.backward()
        return numbers

    def _check(self, step: int, batch: Any, numbers: Numbers) -> None:
        """Stop every process if the loss or gradient of any is not finite; each keeps its part of the batch."""
        broken = self._processes_with(not all(math.isfinite(numbers[k]) for k in STOPPING if k in numbers))
        if not broken:
            return
        is_alone = self.ranks.count == 1
        folder = self.config.out / ("" if is_alone else f"process_{self.ranks.rank}")
        try:
            error = stop_on_nan(folder, step, numbers, *self.task.keep(batch), () if is_alone else broken)
        finally:
            self._wait()  # a launcher kills the others when one process ends: all must have written
        raise error

    def _processes_with(self, problem: bool) -> list[int]:
        """Processes that have a problem, the same list on each; every process must ask."""
        flags = torch.zeros(self.ranks.count, dtype=torch.int64, device=self.ranks.device)
        flags[self.ranks.rank] = int(problem)
        if self.ranks.count > 1:
            distributed.all_reduce(flags)
        return flags.nonzero().flatten().tolist()

    def _add_row(self, row: dict[str, float]) -> None:
        if self.log is not None:
            self.log.add({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})

    def _keep(self, done: int) -> None:
        """Checkpoint and picture, when they are due; `done` steps are behind."""
        every = self.config.picture_every_steps
        if every is not None and (done % every == 0 or done == self.config.fit.steps):
            views = self.task.views()
            if self.log is not None and views:
                self.log.picture(done, gate_sheet(views))
        if done % self.config.checkpoint_every_steps == 0 or done == self.config.fit.steps:
            tensors = training_tensors(self.named, self.optimizer, self.average)
            if self.is_first:
                save_state(self.config.out, done, tensors, self.identity)
            self._wait()

    def _finish(self) -> Numbers:
        with self.average.applied() if self.average is not None else nullcontext():
            numbers = self.task.export(self.config.out, self.is_first)
        self._wait()
        if self.log is not None:
            self.log.close()
        return numbers

    def _wait(self) -> None:
        if self.ranks.count > 1:
            distributed.barrier()


def _identity_values(config: TrainConfig) -> dict[str, Any]:
    """The keys that decide the weights: of a cache of tokens, whether there is one (they are rounded), not where."""
    kept = {key: value for key, value in config.model_dump(mode="json").items() if key not in NOT_IDENTITY}
    if kept["data"].pop("cache", None) is not None:
        kept["data"]["cache"] = True
    return kept


def _step_seed(seed: int, step: int) -> int:
    """A seed for what a step draws from PyTorch's generator: dropout, channel shifts."""
    return (seed * 1_000_003 + step) % 2**63


class _Since:
    """Time and images since the last row of the log."""

    def __init__(self) -> None:
        self.start, self.wait_s, self.images = time.monotonic(), 0.0, 0
        self.first = self.start

    def waited(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time spent waiting for each is counted."""
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.wait_s += time.monotonic() - start
            yield batch

    def numbers(self) -> Numbers:
        """Speed, share of the time spent waiting for data, and time in all; then counts anew."""
        now = time.monotonic()
        spent = max(now - self.start, 1e-9)
        row = {"seconds": now - self.first, "images_per_second": self.images / spent,
               "data_wait_share": self.wait_s / spent}  # fmt: skip
        self.start, self.wait_s, self.images = now, 0.0, 0
        return row
