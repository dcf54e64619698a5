"""Step 7 of `nano`: pictures of its worst failures on SimFind-DRR, for the model card.

Command: python recipes/nano_failures.py runs/simfind_drr runs/nano_simfind_drr.jsonl docs
         (the answers are those that `simfind_evaluate.py` keeps beside its --out)
Time:    10 s.
Writes:  failure_missed.png, failure_false.png, failure_place.png: overlays with mask, peak and caption.

SimFind-DRR is reconstructed from the CT of LIDC-IDRI-0001 (CC BY 3.0), so the pictures may be shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import radglint

Failure = tuple[float, str, str]  # how bad, case, query


def failures(rows: list[dict[str, Any]], kind: str) -> Iterator[Failure]:
    """All failures of a kind among the concepts that are offered."""
    for row in rows:
        for answer in row["answers"]:
            if answer["wording"] != "plain" or not answer["in_scope"]:
                continue
            sure, there = answer["probability"], answer["verdict"] == "holds"
            if kind == "missed" and there and not answer["marked"]:
                yield 1 - sure, row["id"], answer["phrase"]
            if kind == "false" and answer["verdict"] == "fails" and answer["marked"]:
                yield sure, row["id"], answer["phrase"]
            if kind == "place" and there and answer["marked"] and not answer.get("pointing", True):
                yield sure, row["id"], answer["phrase"]


def main() -> None:
    """Choose the worst of each kind and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.answers.read_text().splitlines()]
    pipe = radglint.load(args.model)
    args.out.mkdir(exist_ok=True)
    for kind in ("missed", "false", "place"):
        _, case, query = max(failures(rows, kind))
        finding = pipe.ask(args.folder / "images" / f"{case}.png", [query])[0]
        print(kind, case, query, finding.save_overlay(args.out / f"failure_{kind}.png"))


if __name__ == "__main__":
    main()
