"""`radglint ablate`: which parts of the method help? The same data, steps and seeds for every variant, one table.

A variant changes the given configuration in one respect, or is an earlier method. Cached tokens serve for pooling, gate
space, sparsity and coverage; anchor and negated sentences need a trunk and reports, so they are tried on data of kind
"pairs". Every variant is measured on the same held-out images, its maps read in the way that suits them best.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from radglint.case_metrics import MEASURES, Metrics, evaluate_best_reading, mean_metrics
from radglint.cases import Case
from radglint.errors import ConfigError
from radglint.model import GlintBranch
from radglint.pair_batches import load_pairs, load_validation
from radglint.report_pairs import FLAT_SUFFIXES, Pair, pair_pixels, split_of
from radglint.simulation.facts import Fact
from radglint.train_cached import embed_once, load_bags
from radglint.train_config import CachedData, PairData, TrainConfig
from radglint.train_engine import train
from radglint.train_pairs import load_trained
from radglint.train_state import checkpoints
from radglint.train_towers import load_text_tower
from radglint.writing import write_json, write_text

RESULT, TABLE = "result.json", "table.md"
AS_GIVEN = "as given"
CONTENT_WEIGHTS = (0.0, 2.0, 8.0)  # readings of a map: the gate alone, or also how well a patch fits the text
Changes = Mapping[str, Any]  # dotted key to value

MEAN = {"branch.gate.pooling": "mean", "branch.gate.shared_space": True}  # its map: the cosine of patch and text
RADZERO = {"branch.gate.pooling": "softmax", "branch.gate.shared_space": True, "branch.gate.initial_bias": 0.0,
           "fit.sparsity": "none"}  # fmt: skip
FLAIR = {"branch.gate.pooling": "softmax_null", "branch.gate.initial_bias": 0.0, "fit.sparsity": "none"}
BARE = {"fit.patch_dropout": 0.0, "fit.evidence_weight": 0.0, "fit.in_lungs": []}
NO_ANCHOR = {"trunk.anchor": {"form": "none"}}
VARIANTS: dict[str, Changes] = {
    AS_GIVEN: {},
    "mean pooling": MEAN,
    "softmax (RadZero)": RADZERO,
    "softmax with zero slot (FLAIR)": FLAIR,
    "sigmoid without null slot": {"branch.gate.pooling": "sigmoid"},
    "top-k": {"branch.gate.pooling": "top_k"},
    "shared gate space": {"branch.gate.shared_space": True},
    "no sparsity": {"fit.sparsity": "none"},
    "sparsity on negatives": {"fit.sparsity": "negatives"},
    "sparsity by binarising": {"fit.sparsity": "binarise"},
}  # fmt: skip
CACHED_VARIANTS: dict[str, Changes] = {
    "patch dropout": {"fit.patch_dropout": 0.7},
    "no patch dropout": {"fit.patch_dropout": 0.0},
    "evidence loss from the start": {"fit.evidence_from_step": 0},
    "no evidence loss": {"fit.evidence_weight": 0.0, "fit.in_lungs": []},
    "bare sigmoid gate": BARE,
    "bare, mean pooling": BARE | MEAN,
    "bare, softmax (RadZero)": BARE | RADZERO,
    "bare, softmax with zero slot (FLAIR)": BARE | FLAIR,
    "no twins": {"fit.group_size": 1},
}
PAIR_VARIANTS: dict[str, Changes] = {
    "no anchor": NO_ANCHOR,
    "cosine anchor": {"trunk.anchor.form": "cosine"},
    "Gram anchor": {"trunk.anchor.form": "gram"},
    "negated sentences too": {"data.said": ["present", "absent"]},
    "frozen trunk": {"trunk.trained_blocks": 0, "trunk.lora": None} | NO_ANCHOR,
}
Results = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        folder: in that of the configuration; runs and table go there.
        variants: name to what it changes.
        page: the table's file from the results so far.
    """

    folder: str
    variants: Mapping[str, Changes]
    page: Callable[[Results], str]


def variants_for(config: TrainConfig) -> dict[str, Changes]:
    """Those that a configuration can be run with and that change it, each once; an anchor only where it has one."""
    if isinstance(config.data, CachedData):
        return _distinct(config, VARIANTS | CACHED_VARIANTS)
    has_anchor = config.trunk is not None and config.trunk.anchor.form != "none"
    return VARIANTS | {name: c for name, c in PAIR_VARIANTS.items() if has_anchor or "anchor" not in name}


def _distinct(config: TrainConfig, variants: Mapping[str, Changes]) -> dict[str, Changes]:
    """Of variants that come to the same run, the first."""
    kept: dict[str, Changes] = {}
    runs: list[TrainConfig] = []
    for name, changes in variants.items():
        run = changed(config, changes, config.out, config.fit.seed, None)
        if run not in runs:
            kept[name], runs = changes, [*runs, run]
    return kept


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

    All variants are run with one seed before the next; `ablation/table.md` in the configuration's folder has what is
    done so far.

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
    plan = Plan("ablation", variants_for(config), lambda results: f"{table(results)}\n\n{difference_table(results)}\n")
    return compare(config, plan, steps, num_seeds, num_threads, only)


def compare(
    config: TrainConfig, plan: Plan, steps: int | None = None, num_seeds: int = 3, num_threads: int | None = None,
    only: Sequence[str] | None = None,
) -> Results:  # fmt: skip
    """`ablate` for any plan.

    Args:
        config: what the variants change.
        plan: the variants.
        steps: of each run; those of the configuration by default.
        num_seeds: seeds 0, 1, ...
        num_threads: of PyTorch; its default by default.
        only: names of some variants.

    Returns:
        Means of the validation measures of each variant, one entry per seed.

    Raises:
        ConfigError: an unknown variant, or nothing to measure with.
    """
    variants = plan.variants
    unknown = sorted(set(only or ()) - set(variants))
    if unknown:
        raise ConfigError(f"--only: no variant {unknown[0]!r}; choose from {', '.join(variants)}")
    has_validation = config.data.val_prefix if isinstance(config.data, CachedData) else config.data.val_manifest
    if has_validation is None:
        raise ConfigError("ablate measures on validation data; set data.val_prefix or data.val_manifest")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    results: Results = {name: [] for name in variants if only is None or name in only}
    for seed in range(num_seeds):
        for name, rows in results.items():
            rows.append(_result(config, plan, name, seed, steps))
            write_text(config.out / plan.folder / TABLE, plan.page(results))
    return results


def _result(config: TrainConfig, plan: Plan, name: str, seed: int, steps: int | None) -> dict[str, float]:
    folder = config.out / plan.folder / "".join(c for c in name.replace(" ", "_") if c not in "(),")
    run = changed(config, plan.variants[name], folder / f"seed_{seed}", seed, steps)
    asked, path = run.model_dump(mode="json"), run.out / RESULT
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["config"] == asked:
            return stored["means"]
        raise ConfigError(f"{path}: is of another configuration; move {config.out / plan.folder} away")
    held_out = _held_out(run)
    means = train(run if held_out is None else _unmeasured(run), resume=bool(checkpoints(run.out)))
    metrics, reading = {}, ""
    if held_out is not None:
        metrics, reading = _measure(run, held_out)
        means = mean_metrics(metrics)
    write_json(path, {"config": asked, "means": means, "reading": reading, "concepts": metrics})
    return means


@dataclass(frozen=True)
class _Known:
    """An image-report pair with what a simulator knows of it."""

    pair: Pair
    facts: tuple[Fact, ...]
    masks: np.ndarray  # bool `facts height width`


def _held_out(run: TrainConfig) -> Sequence[Case] | Sequence[_Known] | None:
    """Validation images with facts and places; None for reports alone, which the run itself measures."""
    if isinstance(run.data, CachedData):
        assert run.data.val_prefix is not None
        return _cached_cases(run.data.model_copy(update={"train_prefixes": ()}), run.data.val_prefix)  # pyright: ignore[reportArgumentType]
    return _known_pairs(run.data, run.branch.preprocess.kind)  # pyright: ignore[reportArgumentType]


def _unmeasured(run: TrainConfig) -> TrainConfig:
    """The same run without a measurement of its own at the end."""
    keys = ("val_prefix",) if isinstance(run.data, CachedData) else ("val_manifest", "val_split")
    return run.model_copy(update={"data": run.data.model_copy(update=dict.fromkeys(keys))})


@lru_cache(maxsize=1)
def _cached_cases(data: CachedData, prefix: str) -> list[Case]:
    return load_bags(data, prefix)


@lru_cache(maxsize=1)
def _known_pairs(data: PairData, modality: str) -> list[_Known] | None:
    """The radiographs of `radglint simulate`; None if a line has no facts and masks, or the manifest is no JSONL.

    A view that does not show all of its study's findings is left out.
    """
    manifest = data.val_manifest
    assert manifest is not None
    if manifest.suffix.lower() in FLAT_SUFFIXES:
        return None
    pairs = load_validation(data, modality, load_pairs(data, modality))
    lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    rows = [row for row in map(json.loads, filter(str.strip, lines)) if data.val_split in (None, split_of(row))]
    known = []
    for pair, row in zip(pairs, rows, strict=True):
        if "masks" not in row or "facts" not in row or row.get("modality") != "CXR":
            return None
        if row.get("hidden"):
            continue
        facts = sorted(row["facts"], key=lambda fact: (fact["mask"] is None, fact["mask"]))  # without a mask: last
        with np.load(manifest.parent / row["masks"], allow_pickle=False) as arrays:
            masks = np.zeros((len(facts), *arrays["masks"].shape[1:]), dtype=bool)
            masks[: len(arrays["masks"])] = arrays["masks"]
        known.append(_Known(pair, tuple(Fact(f["concept"], f["side"], f["zone"], f["size"]) for f in facts), masks))
    return known


def _measure(run: TrainConfig, held_out: Sequence[Any]) -> tuple[Metrics, str]:
    """Measures of a finished run, and how its maps were read; see `evaluate_best_reading`."""
    if isinstance(run.data, CachedData):
        tower = load_text_tower(run.text)
        dim = held_out[0].tokens.shape[-1] // (1 + len(run.branch.trunk_layers))
        branch = GlintBranch(dim, tower.embed_dim, run.branch)
        branch.load_state_dict(load_file(run.out / "branch.safetensors"), strict=True)
        embed = partial(embed_once, tower, run.text)
        grid, in_lungs = run.data.grid_tokens, run.fit.in_lungs
        return evaluate_best_reading(branch, held_out, grid, embed, CONTENT_WEIGHTS, in_lungs)
    model, kind = load_trained(run.out).requires_grad_(False), run.branch.preprocess.kind
    cases, grid = [], (1, 1)
    for known in held_out:
        pixels = pair_pixels(known.pair, run.branch.preprocess, run.data.max_slices)
        features = model.branch_features(pixels[None], kind)
        grid = features.grid[0], features.grid[1]
        cases.append(Case(features.tokens[0], known.facts, token_coverage(known.masks, grid), known.pair.group))
    return evaluate_best_reading(model.branch(kind), cases, grid, model.text.embed, CONTENT_WEIGHTS)


def token_coverage(masks: np.ndarray, grid: tuple[int, int]) -> torch.Tensor | None:
    """Share of each token inside each mask, float16 `masks tokens`; None without a mask.

    Args:
        masks: bool `masks height width`, of the whole image.
        grid: of the tokens, which cover the whole image too.
    """
    if not len(masks):
        return None
    shares = torch.nn.functional.interpolate(torch.from_numpy(masks).float()[:, None], size=grid, mode="area")
    return shares.flatten(1).half()


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


def difference_table(results: Results, less: str | None = None) -> str:
    """Each variant less another, mean over the seeds that both have, as a Markdown table.

    In bold: more than the spread, the larger of the two standard deviations over the seeds, from two seeds on.

    Args:
        results: of at least one variant.
        less: name of the other; the first one by default.
    """
    other = next(iter(results)) if less is None else less
    base = results[other]
    lines = [f"| less {other} | {' | '.join(MEASURES)} |", f"|---|{'---|' * len(MEASURES)}"]
    for name, rows in ((name, rows) for name, rows in results.items() if name != other):
        cells = [_difference([(a[key], b[key]) for a, b in zip(rows, base, strict=False) if key in a and key in b])
                 for key in MEASURES]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    """Mean of the differences; one in bold if it is more than the spread."""
    if not pairs:
        return "-"
    values = np.array(pairs)
    mean = float((values[:, 0] - values[:, 1]).mean())
    is_clear = len(pairs) > 1 and abs(mean) > float(values.std(axis=0, ddof=1).max())
    return f"**{mean:+.3f}**" if is_clear else f"{mean:+.3f}"
