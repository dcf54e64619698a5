"""Data of `ablation_pairs.toml`: simulated radiographs with reports, masks and facts, patients kept apart.

Command: python recipes/ablation_pairs.py NIH_FOLDER runs/ablation_pairs_data
Time:    about 2 minutes on one CPU core.
Needs:   records.json and images of NIH ChestX-ray14 (labels, view, patient).
Writes:  train/manifest.jsonl (320 radiographs of 160 bodies), val/manifest.jsonl (120, other patients).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from nano_features_cxr import fold, looks_normal
from radglint.simulation.case import FilmSource, Plan
from radglint.simulation.dataset import write_dataset
from radglint.simulation.sources import radiograph_source

SETS = {"train": (320, range(4, 10)), "val": (120, range(4))}  # radiographs, and the folds of their patients
SEED = 20261124


def link_bases(nih: Path, bases: Path) -> None:
    """A folder of the normal radiographs: those without a finding, also to our own eye."""
    bases.mkdir(parents=True, exist_ok=True)
    records = [r for r in json.loads((nih / "records.json").read_text()) if looks_normal(Path(r["image"]).stem)]
    rows = []
    for record in (r for r in records if r["labels"] == ["No Finding"] and r["view"] == "PA"):
        link = bases / Path(record["image"]).name
        if not link.exists():
            os.symlink((nih / record["image"]).resolve(), link)
        rows.append({"image": link.name, "patient": record["patient"]})
    (bases / "records.json").write_text(json.dumps(rows))


def main() -> None:
    """Find the lungs of all bases together, then simulate each set from its own patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nih", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    link_bases(args.nih, args.out / "bases")
    films = radiograph_source([args.out / "bases"]).films
    for name, (count, folds) in SETS.items():
        source = FilmSource([film for film in films if fold(film.patient) in folds])
        plans = [Plan(f"cxr_{index:06d}", SEED, index) for index in range(count)]
        manifest = write_dataset(source, args.out / name, plans, SEED)
        print(f"{len(source.films)} bases, {count} radiographs: {manifest}", flush=True)


if __name__ == "__main__":
    main()
