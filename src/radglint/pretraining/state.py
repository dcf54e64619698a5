"""The state of a run on disk: safetensors and JSON, no pickle, written elsewhere and renamed.

    OUT/state/step_00000100/tensors.safetensors   student, teacher, predictor, target statistics, moments of AdamW
    OUT/state/step_00000100/state.json            step, seed, configuration, versions
    OUT/backbone/                                 the teacher as a folder of transformers: what the run is for

The random generators need no state of their own: every step seeds them from the seed and its own number.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from radglint.errors import TrainingError
from radglint.fingerprint import versions
from radglint.pretraining.config import PretrainConfig
from radglint.pretraining.objective import MaskedPrediction
from radglint.writing import folder_transaction, output_errors, write_json, write_text

FORMAT = "radglint-pretrain-state"
FORMAT_VERSION = 1
TENSORS, STATE, STATES, BACKBONE = "tensors.safetensors", "state.json", "state", "backbone"
MODEL, OPTIMIZER = "model.", "optimizer."
FREE_KEYS = frozenset({"out", "device", "log_every_steps", "save_every_steps"})
"""Keys that a resumed run may change: they do not decide the weights (on one device)."""

_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True, eq=False)
class SavedState:
    """A state that was read back.

    Attributes:
        step: steps done.
        tensors: everything under its stored name.
        path: where it lies.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    path: Path


def save_state(
    out: Path, step: int, model: MaskedPrediction, optimizer: torch.optim.Optimizer, config: PretrainConfig
) -> Path:
    """Write the state after `step` steps, then remove older ones.

    Returns:
        The folder of the state.

    Raises:
        OutputError: it cannot be written; an older state is still there.
    """
    states = out / STATES
    final, staging = states / f"step_{step:08d}", states / ".writing"
    with output_errors(final):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(_tensors(model, optimizer), staging / TENSORS)
        write_json(staging / STATE, _facts(step, config))
        for name in (TENSORS, STATE):
            _to_disk(staging / name)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(staging, final)
        for other in states.iterdir():
            if _NAME.fullmatch(other.name) and other != final:
                shutil.rmtree(other)
    return final


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _facts(step: int, config: PretrainConfig) -> dict[str, Any]:
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "step": step, "seed": config.seed,
        "config": config.model_dump(mode="json"), "versions": versions(),
    }  # fmt: skip


def _named(model: MaskedPrediction, optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    """The optimizer's parameters by name, in its own order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}


def _tensors(model: MaskedPrediction, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in _named(model, optimizer).items():
        tensors |= {f"{OPTIMIZER}{name}:{key}": value for key, value in optimizer.state[parameter].items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def latest_state(out: Path) -> Path | None:
    """The folder of the last whole state of a run, or None."""
    states = out / STATES
    found = [path for path in states.iterdir() if _NAME.fullmatch(path.name)] if states.is_dir() else []
    return max(found, default=None)


def read_state(folder: Path, config: PretrainConfig) -> SavedState:
    """Read a state that belongs to the same run.

    Raises:
        TrainingError: damaged, of another version, or made with another configuration; the message names the keys.
    """
    try:
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        with safe_open(folder / TENSORS, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
        step, version, before = int(facts["step"]), facts["format_version"], dict(facts["config"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{folder}: not a whole state ({error}); delete it and start again") from error
    if version != FORMAT_VERSION:
        raise TrainingError(f"{folder}: state of version {version}, this radglint reads {FORMAT_VERSION}; start again")
    now = config.model_dump(mode="json")
    keys = (now.keys() | before.keys()) - FREE_KEYS
    changed = sorted(key for key in keys if now.get(key) != before.get(key))
    if changed:
        raise TrainingError(
            f"{folder}: made with another configuration ({', '.join(changed)} differ); "
            "restore the configuration, or choose another out and start again"
        )
    return SavedState(step, tensors, folder)


def load_state(saved: SavedState, model: MaskedPrediction, optimizer: torch.optim.Optimizer) -> None:
    """Put a state into a model and its optimizer.

    Raises:
        TrainingError: the tensors do not fit.
    """
    weights = {k.removeprefix(MODEL): v for k, v in saved.tensors.items() if k.startswith(MODEL)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{saved.path}: does not fit this trunk ({error}); start again") from error
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for number, name in enumerate(_named(model, optimizer)):
        start = f"{OPTIMIZER}{name}:"
        own = {key.removeprefix(start): value for key, value in saved.tensors.items() if key.startswith(start)}
        moments |= {number: own} if own else {}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def export_backbone(out: Path, model: MaskedPrediction, step: int, config: PretrainConfig, num_scans: int) -> Path:
    """Write the teacher as a folder that `from_pretrained` and `load_backbone` read.

    Args:
        out: the run's folder.
        model: its teacher is written, with the mask token that the student learnt if the trunk has a place for one.
        step: steps done.
        config: recorded beside the weights.
        num_scans: recorded too.

    Returns:
        The folder, `OUT/backbone`.
    """
    folder = out / BACKBONE
    with folder_transaction(folder) as staging:
        model.teacher.whole.save_pretrained(staging)
        made = {"made_by": "radglint pretrain", "steps": step, "scans": num_scans, "versions": versions()}
        private = {"out": True, "data": {"scans"}}  # paths may name patients; the folder may be passed on
        write_json(staging / "provenance.json", made | {"config": config.model_dump(mode="json", exclude=private)})
        write_text(staging / "README.md", _card(step, config, num_scans))
    return folder


def _card(step: int, config: PretrainConfig, num_scans: int) -> str:
    start = config.backbone.source or f"random weights ({(config.backbone.config or {}).get('model_type')})"
    return (
        f"# Image trunk adapted by `radglint pretrain`\n\n"
        f"Start: {start}. Data: {num_scans} unlabelled {config.data.preprocess.kind} scans. "
        f"{step} of {config.optimizer.steps} steps of masked-token prediction. These are the weights of the teacher, "
        "the moving average of the student; provenance.json holds the configuration.\n\n"
        "The licence of the start applies, and the terms of the scans. For research only: not a medical device.\n"
    )
