"""`radglint pretrain`: from a configuration to a folder with the adapted trunk."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from radglint.encoders.backbones import build_backbone, load_backbone
from radglint.errors import ConfigError, TrainingError
from radglint.precision import autocast
from radglint.pretraining.collapse import check_spread, spread
from radglint.pretraining.config import OptimizerConfig, PretrainConfig
from radglint.pretraining.objective import MaskedPrediction, masked_smooth_l1
from radglint.pretraining.progress import Bar, StepLog
from radglint.pretraining.samples import Batch, Samples, prefetched
from radglint.pretraining.scans import Scan, prepare_scans
from radglint.pretraining.state import export_backbone, latest_state, load_state, read_state, save_state
from radglint.writing import output_errors

BETAS = (0.9, 0.95)
SEEDS_PER_RUN = 1_000_003  # prime, so that the steps of runs with other seeds do not share theirs


@dataclass(frozen=True)
class PretrainResult:
    """What a run leaves behind.

    Attributes:
        backbone: folder of the adapted trunk, in the layout of `transformers`.
        steps: steps done, over all starts.
        num_scans: scans that were drawn from.
        last: the last record of the log.
    """

    backbone: Path
    steps: int
    num_scans: int
    last: dict[str, Any]


def learning_rate_at(step: int, config: OptimizerConfig) -> float:
    """Linear warm-up to the peak, then a cosine to the final rate; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.final_learning_rate + _falling(done) * (config.learning_rate - config.final_learning_rate)


def teacher_momentum_at(step: int, config: OptimizerConfig) -> float:
    """From the configured momentum to 1, by a cosine."""
    return 1.0 - _falling(step / config.steps) * (1.0 - config.teacher_momentum)


def _falling(done: float) -> float:
    """Half a cosine, from 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def pretrain(config: PretrainConfig, *, resume: bool = False) -> PretrainResult:
    """Adapt a trunk to unlabelled scans.

    Args:
        config: the run.
        resume: go on from the last saved state of `config.out`; without one, start. On one device the weights are
            those of a run that was never stopped, bit by bit.

    Returns:
        Where the trunk is and what the last step measured.

    Raises:
        TrainingError: `out` holds a run and `resume` is False; the saved state does not fit; the loss is not finite or
            the features collapsed, with the last good state still in place.
        ConfigError: trunk, data and mask do not fit each other.
        ImageError: no scan is found.
        CheckpointError: the trunk cannot be loaded.
        OutputError: the folder cannot be written.
    """
    found = latest_state(config.out)
    if found is not None and not resume:
        raise TrainingError(f"{config.out}: holds a run ({found.name}); go on with --resume, or choose another out")
    saved = None if found is None else read_state(found, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = MaskedPrediction(_backbone(config), config).to(_device(config)).train()
        optimizer = _optimizer(model, config.optimizer)
        if saved is not None:
            load_state(saved, model, optimizer)
        scans = _scans(config, resume=saved is not None)
        return _Run(config, model, optimizer, scans).go(0 if saved is None else saved.step)


def _backbone(config: PretrainConfig) -> Any:
    source = config.backbone
    if source.config is not None:
        return build_backbone(source.config)
    assert source.source is not None
    return load_backbone(source.source, local_files_only=source.local_files_only, revision=source.revision)


def _device(config: PretrainConfig) -> torch.device:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device != "auto":
        if not there[config.device]:
            raise ConfigError(f"device: {config.device!r} is not there; set device = 'auto'")
        return torch.device(config.device)
    best = next(name for name in ("cuda", "mps", "cpu") if there[name])
    return torch.device(best)


def _optimizer(model: MaskedPrediction, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.squeeze().ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS)


def _scans(config: PretrainConfig, *, resume: bool) -> list[Scan]:
    with output_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    bar = Bar("reading scans", 0)

    def told(done: int, total: int) -> None:
        bar.total = total
        bar.show(done)

    try:
        return prepare_scans(config.data, pixels_folder(config), keep_index=resume, told=told)
    finally:
        bar.close()


def pixels_folder(config: PretrainConfig) -> Path:
    """Where a run keeps the pixels of its scans."""
    return config.out / "pixels"


class _Run:
    """The loop."""

    def __init__(
        self, config: PretrainConfig, model: MaskedPrediction, optimizer: torch.optim.Optimizer, scans: list[Scan]
    ) -> None:
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.scans = scans
        self.device = next(model.parameters()).device
        self.samples = Samples(
            scans, pixels_folder(config), config.data, config.mask, model.grid,
            batch=config.optimizer.batch, seed=config.seed,
        )  # fmt: skip

    def go(self, first: int) -> PretrainResult:
        """All steps from `first` on."""
        total, out = self.config.optimizer.steps, self.config.out
        log, record, backbone = StepLog(out, first), {}, None
        with _bar("pretrain", total, first) as bar:
            for step, batch, waited in prefetched(self.samples, first, total):
                record = self._step(step, batch) | {"data_wait_s": round(waited, 4)}
                if self._is_due(step, self.config.log_every_steps):
                    log.write(record)
                if self._is_due(step, self.config.save_every_steps):
                    save_state(out, step + 1, self.model, self.optimizer, self.config)
                    backbone = export_backbone(out, self.model, step + 1, self.config, len(self.scans))
                bar.show(step + 1, f"loss {record['loss']:.4f}")
        backbone = backbone or export_backbone(out, self.model, total, self.config, len(self.scans))
        return PretrainResult(backbone, total, len(self.scans), record)

    def _is_due(self, step: int, every: int) -> bool:
        return (step + 1) % every == 0 or step + 1 == self.config.optimizer.steps

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update of student and teacher; returns the record for the log."""
        begin = time.monotonic()
        config = self.config.optimizer
        torch.manual_seed(self.config.seed * SEEDS_PER_RUN + step)  # for dropout, where the trunk has any
        batch = batch.to(self.device)
        target, record = self._target(step, batch)
        loss = self._backward(batch, target)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(self._diverged(step, loss, norm))
        rate, momentum = learning_rate_at(step, config), teacher_momentum_at(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_teacher(momentum)
        constant = record.pop("constant_loss")
        return {
            "step": step, "loss": loss, "explained": 1 - loss / constant if constant else math.nan, **record,
            "gradient_norm": norm, "learning_rate": rate, "teacher_momentum": momentum,
            "seconds": round(time.monotonic() - begin, 4),
        }  # fmt: skip

    @torch.no_grad()
    def _target(self, step: int, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """What is to be predicted, and what it says about collapse."""
        with self._precision():
            features = torch.cat([self.model.features(part.pixels) for part in self._parts(batch)])
        found = spread(features, with_rank=self._is_due(step, self.config.log_every_steps))
        check_spread(found, self.config.min_feature_std, step)
        self.model.target_norm.update(features)
        target = self.model.target_norm(features)
        nothing = torch.zeros_like(target[batch.hidden])
        constant = float(masked_smooth_l1(nothing, target, batch.hidden, self.model.beta))
        record = {"constant_loss": constant, "log_feature_std": found.logs[0], "log_image_std": found.logs[1]}
        return target, record | {"effective_rank": found.rank}

    def _backward(self, batch: Batch, target: torch.Tensor) -> float:
        """Gradients of the whole batch, in parts where memory is short; returns the prediction's distance."""
        total, done = 0.0, 0
        for part in self._parts(batch):
            rows = slice(done, done + len(part.pixels))
            with self._precision():
                distance, loss = self.model(part.student_pixels, part.hidden, target[rows])
            share = len(part.pixels) / len(batch.pixels)
            (loss * share).backward()
            total, done = total + float(distance.detach()) * share, rows.stop
        return total

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.config.optimizer.micro_batch or self.config.optimizer.batch
        return [batch.part(slice(k, k + size)) for k in range(0, len(batch.pixels), size)]

    def _precision(self) -> Any:
        return autocast(self.config.precision, self.device)

    def _diverged(self, step: int, loss: float, norm: float) -> str:
        state = latest_state(self.config.out)
        kept = f"the state of {state.name} is kept" if state else "no state was saved yet"
        return (
            f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}, both must be finite; "
            f"lower optimizer.learning_rate or set precision = 'float32', and start again ({kept})"
        )


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Bar]:
    bar = Bar(title, total, done)
    try:
        yield bar
    finally:
        bar.close()
