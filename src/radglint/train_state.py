"""Checkpoints of a training run: tensors in safetensors, numbers in JSON, no pickle; whole or not at all.

What a step draws (batch, sentences, dropout) is a function of seed and step, so the state is weights, optimizer,
moving average and the number of steps done; no generator has to be stored. One folder a checkpoint, which is renamed
to its final name when it is complete; a reader never meets half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from radglint.errors import TrainingError
from radglint.train_optimizer import MovingAverage
from radglint.writing import output_errors, write_json

FORMAT = "radglint-training-state"
FORMAT_VERSION = 1
STATE, TENSORS = "state.json", "state.safetensors"
KEPT = 2  # newest checkpoints that stay on disk
_NAME = re.compile(r"step_(\d{8})")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; all processes of a sharded one must ask for it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def training_tensors(
    named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, average: MovingAverage | None
) -> dict[str, torch.Tensor]:
    """Everything that a step changes, by name: `weight.*`, `optimizer.KEY.*`, `average.*`."""
    tensors = {f"weight.{name}": whole(parameter) for name, parameter in named.items()}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = whole(value)
    if average is not None:
        tensors |= {f"average.{name}": whole(value) for name, value in average.values.items()}
    return tensors


def save_state(run: Path, step: int, tensors: Mapping[str, torch.Tensor], identity: str) -> Path:
    """Write a checkpoint and drop those before the last `KEPT`.

    Args:
        run: the run's folder.
        step: steps done.
        tensors: see `training_tensors`.
        identity: of the run, see `run_identity`.

    Raises:
        OutputError: it cannot be written; older checkpoints are untouched.
    """
    final = run / "checkpoints" / f"step_{step:08d}"
    staging = final.with_name(f".radglint-{secrets.token_hex(6)}")
    with output_errors(final):
        try:
            staging.mkdir(parents=True)
            save_file(dict(tensors), staging / TENSORS)
            digest = hashlib.sha256((staging / TENSORS).read_bytes()).hexdigest()
            document = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step, "run": identity,
                        "sha256": digest}  # fmt: skip
            write_json(staging / STATE, document)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; what a killed process left unfinished is not among them."""
    folder = run / "checkpoints"
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and (path / STATE).is_file()]
    return sorted(found)


def load_state(folder: Path, identity: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Read a checkpoint.

    Returns:
        Steps done, and the tensors by name.

    Raises:
        TrainingError: it is damaged, of another version, or of a run with another configuration.
    """
    try:
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder}: the checkpoint cannot be read ({error}); delete it to resume before") from error
    got = (document.get("format"), document.get("format_version"), document.get("sha256"))
    if got != (FORMAT, FORMAT_VERSION, digest):
        raise TrainingError(f"{folder}: damaged or of another version; delete it to resume from the one before")
    if document["run"] != identity:
        raise TrainingError(
            f"{folder}: is of a run with another configuration; give the same one, or another out folder"
        )
    return int(document["step"]), tensors


@torch.no_grad()
def restore(
    tensors: Mapping[str, torch.Tensor], named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
) -> None:  # fmt: skip
    """Put a checkpoint back in place.

    Raises:
        TrainingError: a tensor is missing or of another shape.
    """
    for name, parameter in named.items():
        parameter.copy_(_like(tensors, f"weight.{name}", parameter))
        if average is not None:
            average.values[name].copy_(_like(tensors, f"average.{name}", parameter))
        if f"optimizer.step.{name}" not in tensors:  # never had a gradient
            continue
        state = {"step": tensors[f"optimizer.step.{name}"]}
        state |= {key: _like(tensors, f"optimizer.{key}.{name}", parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = state


def _like(tensors: Mapping[str, torch.Tensor], name: str, parameter: torch.Tensor) -> Any:
    stored = tensors.get(name)
    if stored is None or stored.shape != parameter.shape:
        got = "nothing" if stored is None else tuple(stored.shape)
        raise TrainingError(f"checkpoint: {name}: expected a tensor of shape {tuple(parameter.shape)}, got {got}")
    if isinstance(parameter, DTensor):
        return distribute_tensor(stored.to(parameter.device), parameter.device_mesh, parameter.placements)
    return stored.to(parameter.device)


def clean_unfinished(folder: Path) -> None:
    """Remove what a killed process left while it wrote."""
    for leftover in folder.glob(".radglint-*"):
        with suppress(OSError):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def run_identity(parts: Iterable[str]) -> str:
    """A short name for what a checkpoint belongs to."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
