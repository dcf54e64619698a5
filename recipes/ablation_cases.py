"""Cases of `ablation_cxr.toml`: the cached tokens of nano's radiographs, four neighbouring patches made one.

Command: python recipes/ablation_cases.py runs/cxr runs/ablation_cases     (first: recipes/nano_features_cxr.py)
Time:    about 1 minute on one CPU core.
Writes:  train_* and val_* (other patients) on a grid of 14 x 14; of train_* only
         what is painted on normal radiographs.

A quarter of the tokens is a quarter of the work, so that many variants can each be trained for some hundred steps.
Bases with disease of unknown place are left out: in so few steps a branch learns to tell kinds of bases apart instead.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from nano_features_cxr import DRR_TRAIN, GRID
from radglint.cases import Case, load_cases, save_cases

SETS = ("train", "val")


def pooled(rows: torch.Tensor) -> torch.Tensor:
    """`rows patches width` of the full grid to a quarter of the patches, each the mean of four."""
    height, width = GRID
    blocks = rows.float().unflatten(1, (height // 2, 2, width // 2, 2))
    return blocks.mean(dim=(2, 4)).flatten(1, 2).to(rows.dtype)


def is_normal(case: Case) -> bool:
    """Whether the base is a normal radiograph, so that every finding was painted and has a place."""
    return not case.unsaid and not case.group.startswith(tuple(DRR_TRAIN))


def small(case: Case) -> Case:
    """The same case on the coarse grid."""
    cover = None if case.coverage is None else pooled(case.coverage[..., None]).squeeze(-1)
    return replace(case, tokens=pooled(case.tokens), coverage=cover)


def main() -> None:
    """Read each shard, write its coarse twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for shard in sorted(path for name in SETS for path in args.cases.glob(f"{name}_*.json")):
        cases = [small(case) for case in load_cases(args.cases, shard.stem) if is_normal(case)]
        save_cases(args.out / shard.stem, cases)
        print(f"{shard.stem}: {len(cases)} cases", flush=True)


if __name__ == "__main__":
    main()
