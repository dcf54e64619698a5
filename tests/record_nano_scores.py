"""Record what the shipped weights say of the held-out films of `test_nano.py`: numbers only, by file name.

Run it when the weights change, and take the AUROCs that it prints into nano_expected.json:

    python tests/record_nano_scores.py ../shared/data

Time: about 2 minutes on one core.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

import radglint
from radglint.writing import write_text

RECORDED = Path(__file__).parent / "nano_scores.json"
RANKED = {"Effusion": "pleural effusion", "Pneumonia": "consolidation"}  # label and query
NORMAL = "No Finding"
DIGITS = 5


def chosen_films(folder: Path) -> dict[str, list[str]]:
    """Names of up to 30 films of each label and 40 normal ones, of patients that training never saw."""
    records = json.loads((folder / "records.json").read_text())
    held_out = [r for r in records if zlib.crc32(r["patient"].encode()) % 10 < 4]
    chosen = {label: [r["image"] for r in held_out if label in r["labels"]][:30] for label in RANKED}
    return chosen | {NORMAL: [r["image"] for r in held_out if r["labels"] == [NORMAL]][:40]}


def ask_films(nano: radglint.Pipeline, folder: Path, names: set[str]) -> dict[str, list[float]]:
    """Scores of each film, one for each query of `RANKED`; every film is asked once."""
    queries = list(RANKED.values())
    return {name: [round(f.score, DIGITS) for f in nano.ask(folder / name, queries)] for name in sorted(names)}


def auroc(scores: dict[str, list[float]], films: dict[str, list[str]], label: str) -> float:
    """A label against normal."""
    column = list(RANKED).index(label)
    sick, well = (np.array([scores[name][column] for name in films[key]]) for key in (label, NORMAL))
    return float((sick[:, None] > well[None, :]).mean())


def main() -> None:
    """Ask all films, write their scores, print the AUROCs."""
    folder = Path(sys.argv[1]) / "nih_cxr"
    films = chosen_films(folder)
    nano = radglint.load("nano", device="cpu")
    assert nano.model.dtype == torch.float32, "this processor multiplies bfloat16; record on one that does not"
    scores = ask_films(nano, folder, set().union(*films.values()))
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in scores.items()]
    write_text(RECORDED, "{\n" + ",\n".join(lines) + "\n}\n")
    print({label: round(auroc(scores, films, label), 3) for label in RANKED})


if __name__ == "__main__":
    main()
