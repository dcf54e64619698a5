"""Tiny runs of `radglint train` for tests: the recipes' configurations on data and towers made in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from radglint.train_config import TrainConfig, load_config
from radglint.train_smoke import smoke_config

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def tiny_run(folder: Path, recipe: str = "cxr_base", **changes: Any) -> TrainConfig:
    """A recipe on tiny data, exact enough to compare runs: no dropout; float32 unless cached.

    Args:
        folder: data and run go there.
        recipe: its name.
        changes: keys with dots as double underscores, such as `fit__steps=3`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = smoke_config(load_config(RECIPES / f"{recipe}.toml"), folder).model_dump(mode="json")
    changes = {"branch__mixer__dropout": 0.0, "tensorboard": False, "checkpoint_every_steps": 1000} | changes
    changes = {"picture_every_steps": None} | changes
    if recipe.endswith("base"):
        changes = {"precision": "float32"} | changes
    for key, value in changes.items():
        *path, last = key.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return TrainConfig.model_validate(values)


def write_toml(config: TrainConfig, path: Path) -> Path:
    """The configuration as a TOML file."""
    path.write_text("\n".join(_lines("", config.model_dump(mode="json"))) + "\n")
    return path


def _lines(prefix: str, table: dict[str, Any]) -> list[str]:
    plain = [f"{key} = {_value(value)}" for key, value in table.items() if value is not None and not _is_table(value)]
    lines = [f"[{prefix}]", *plain] if prefix else plain
    for key, value in table.items():
        if _is_table(value):
            lines += _lines(f"{prefix}.{key}" if prefix else key, value)
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    return str(value)


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All tensors in one vector, by name."""
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])
