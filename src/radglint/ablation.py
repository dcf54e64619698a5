"""`radglint ablate`: which parts of the method help? The same data, steps and seeds for every variant, one table.

A variant changes the given configuration in one respect. Cached tokens serve for pooling, gate space and sparsity;
anchor and negated sentences need a trunk and reports, so they are tried on data of kind "pairs".
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radglint.case_metrics import MEASURES
from radglint.errors import ConfigError
from radglint.train_config import CachedData, TrainConfig
from radglint.train_engine import train
from radglint.train_state import checkpoints
from radglint.writing import write_json

RESULT = "result.json"
AS_GIVEN = "as given"
Changes = Mapping[str, Any]  # dotted key to value

_NO_ANCHOR = {"trunk.anchor": {"form": "none"}}
VARIANTS: dict[str, Changes] = {
    AS_GIVEN: {},
    "mean pooling": {"branch.gate.pooling": "mean", "branch.gate.shared_space": True},
    "softmax (RadZero)": {"branch.gate.pooling": "softmax", "branch.gate.shared_space": True,
                          "branch.gate.initial_bias": 0.0, "fit.sparsity": "none"},
    "softmax with zero slot": {"branch.gate.pooling": "softmax_null", "branch.gate.initial_bias": 0.0,
                               "fit.sparsity": "none"},
    "sigmoid without null slot": {"branch.gate.pooling": "sigmoid"},
    "top-k": {"branch.gate.pooling": "top_k", "fit.sparsity": "none"},
    "shared gate space": {"branch.gate.shared_space": True},
    "no sparsity": {"fit.sparsity": "none"},
    "sparsity on negatives": {"fit.sparsity": "negatives"},
    "sparsity by binarising": {"fit.sparsity": "binarise"},
}  # fmt: skip
PAIR_VARIANTS: dict[str, Changes] = {
    "no anchor": _NO_ANCHOR,
    "cosine anchor": {"trunk.anchor.form": "cosine"},
    "Gram anchor": {"trunk.anchor.form": "gram"},
    "negated sentences too": {"data.said": ["present", "absent"]},
}
Results = dict[str, list[dict[str, float]]]


def variants_for(config: TrainConfig) -> dict[str, Changes]:
    """Those that a configuration can be run with; an anchor only where it has one."""
    if isinstance(config.data, CachedData):
        return VARIANTS
    has_anchor = config.trunk is not None and config.trunk.anchor.form != "none"
    return VARIANTS | {name: c for name, c in PAIR_VARIANTS.items() if has_anchor or "anchor" not in name}


def changed(config: TrainConfig, changes: Changes, out: Path, seed: int, steps: int | None) -> TrainConfig:
    """The configuration of one run.

    Args:
        config: as given.
        changes: of the variant.
        out: the run's folder.
        seed: replaces the one of the configuration.
        steps: replace those of the configuration; None keeps them.
    """
    values = copy.deepcopy(config.model_dump(mode="json"))
    more = {"out": str(out), "fit.seed": seed} | ({} if steps is None else {"fit.steps": steps})
    for key, value in {**changes, **more}.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return TrainConfig.model_validate(values)


def ablate(
    config: TrainConfig, steps: int | None = None, num_seeds: int = 3, num_threads: int | None = None,
    only: Sequence[str] | None = None,
) -> Results:  # fmt: skip
    """Train every variant with every seed; runs that are done are not done again, one cut off goes on.

    Args:
        config: "as given", and what the variants change.
        steps: of each run; those of the configuration by default.
        num_seeds: seeds 0, 1, ...
        num_threads: of PyTorch; its default by default.
        only: names of some variants.

    Returns:
        Means of the validation measures of each variant, one entry per seed.

    Raises:
        ConfigError: an unknown variant, or nothing to measure with.
    """
    variants = variants_for(config)
    unknown = sorted(set(only or ()) - set(variants))
    if unknown:
        raise ConfigError(f"--only: no variant {unknown[0]!r}; choose from {', '.join(variants)}")
    has_validation = config.data.val_prefix if isinstance(config.data, CachedData) else config.data.val_manifest
    if has_validation is None:
        raise ConfigError("ablate measures on validation data; set data.val_prefix or data.val_manifest")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    chosen = {name: changes for name, changes in variants.items() if only is None or name in only}
    return {name: [_result(config, name, changes, seed, steps) for seed in range(num_seeds)]
            for name, changes in chosen.items()}  # fmt: skip


def _result(config: TrainConfig, name: str, changes: Changes, seed: int, steps: int | None) -> dict[str, float]:
    folder = name.replace(" ", "_").replace("(", "").replace(")", "")
    run = changed(config, changes, config.out / "ablation" / folder / f"seed_{seed}", seed, steps)
    asked, path = run.model_dump(mode="json"), run.out / RESULT
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["config"] == asked:
            return stored["means"]
        raise ConfigError(f"{path}: is of another configuration; move {config.out / 'ablation'} away")
    means = train(run, resume=bool(checkpoints(run.out)))
    write_json(path, {"config": asked, "means": means})
    return means


def table(results: Results) -> str:
    """Mean and, from two seeds on, standard deviation over the seeds of each measure, as a Markdown table."""
    lines = [f"| variant | {' | '.join(MEASURES)} | seeds |", f"|---|{'---|' * len(MEASURES)}---|"]
    for name, rows in results.items():
        cells = [_cell([row[key] for row in rows if key in row]) for key in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
