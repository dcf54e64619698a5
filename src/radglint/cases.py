"""Cached training cases on disk: trunk tokens and coverage as safetensors, facts as JSON, one pair of files a shard."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from radglint.errors import ConfigError
from radglint.simulation.facts import Fact


@dataclass(frozen=True)
class Case:
    """One training image.

    Attributes:
        tokens: `depth patches embed`, bfloat16, from the frozen trunk.
        facts: what its report states.
        coverage: `facts (depth * patches)`, float16, share of each token inside the finding, or None if unknown; of
            the bag's slices only, where `tokens` has slices beside the bag (`crop_slices`).
        group: patient or body, for splits and for batches of one body with different findings.
        unsaid: concepts that its report may be silent on: where no fact names one, it is neither there nor absent.
    """

    tokens: torch.Tensor
    facts: tuple[Fact, ...]
    coverage: torch.Tensor | None = None
    group: str = ""
    unsaid: tuple[str, ...] = ()


def save_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write a shard `<path>.safetensors` and `<path>.json`; what fails leaves no half shard that could be read."""
    tensors = {f"{k}.tokens": case.tokens.contiguous() for k, case in enumerate(cases)}
    tensors |= {f"{k}.coverage": c.coverage.contiguous() for k, c in enumerate(cases) if c.coverage is not None}
    rows = [{"facts": [asdict(f) for f in c.facts], "group": c.group, "unsaid": c.unsaid} for c in cases]
    path.parent.mkdir(parents=True, exist_ok=True)
    index, staged = path.with_suffix(".json"), [path.with_suffix(s) for s in (".safetensors.tmp", ".json.tmp")]
    try:
        save_file(tensors, staged[0])
        staged[1].write_text(json.dumps(rows))
        index.unlink(missing_ok=True)  # without its index a shard is not read: old and new are never mixed
        os.replace(staged[0], path.with_suffix(".safetensors"))
        os.replace(staged[1], index)
    finally:
        for leftover in staged:
            leftover.unlink(missing_ok=True)


def load_cases(folder: Path, prefix: str) -> list[Case]:
    """Read all shards of a folder whose names start with a prefix, in order.

    Raises:
        ConfigError: no shard is there.
    """
    shards = sorted(folder.glob(f"{prefix}*.json"))
    if not shards:
        raise ConfigError(f"{folder}: no shard {prefix}*.json; run the feature recipe first")
    cases = []
    for shard in shards:
        tensors = load_file(shard.with_suffix(".safetensors"))
        for k, row in enumerate(json.loads(shard.read_text())):
            facts = tuple(Fact(**fact) for fact in row["facts"])
            cases.append(
                Case(tensors[f"{k}.tokens"], facts, tensors.get(f"{k}.coverage"), row["group"], tuple(row["unsaid"]))
            )
    return cases


def crop_slices(
    case: Case, starts: Sequence[int], num_slices: int, least_tokens: float = 0.25, context_slices: int = 0
) -> list[Case]:
    """Cut a slab into shorter ones, each with the facts that touch it.

    A long slab is a large bag for a small finding; a report that names the slices ("series 2, image 41") is worth more.
    Only the slice range of a finding is used here, never its outline.

    Args:
        case: a slab with known coverage, or without facts.
        starts: first slice of each piece.
        num_slices: length of a piece.
        least_tokens: a piece that a finding touches by less than this many tokens is undecided and left out.
        context_slices: neighbours kept in `tokens` on either end, but in neither facts nor coverage: the mixer sees
            them, the bag does not hold them.

    Raises:
        ConfigError: a piece with its context is not within the slab.
    """
    depth = case.tokens.shape[0]
    if starts and not context_slices <= min(starts) <= max(starts) <= depth - num_slices - context_slices:
        raise ConfigError(f"starts {list(starts)}: {num_slices} slices with {context_slices} beside do not fit {depth}")
    share = None if case.coverage is None else case.coverage.float().unflatten(-1, (depth, -1))
    pieces = []
    for start in starts:
        part = slice(start, start + num_slices)
        inside = torch.zeros(0) if share is None else share[:, part].sum(dim=(1, 2))
        if bool(((inside > 0) & (inside < least_tokens)).any()):
            continue
        kept = [k for k, amount in enumerate(inside) if amount >= least_tokens]
        cover = share[kept][:, part].flatten(1).half() if share is not None and kept else None
        tokens = case.tokens[start - context_slices : start + num_slices + context_slices]
        pieces.append(Case(tokens, tuple(case.facts[k] for k in kept), cover, case.group, case.unsaid))
    return pieces
