"""Batch: what a whole run takes, compared with the encoder alone on the same images in the same process.

Command: python benchmarks/bench_batch.py [--model NAME|PATH] [--cases N] [--masks]   (about 2 minutes, 2 cores)
Target: at most 1.15 times. The encoder alone is timed on images that are in memory already, before and after the run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import Case, find_cases
from radglint.pipeline import Pipeline, load

TARGET = 1.15
QUERIES = ["pulmonary nodule", "pleural effusion", "pneumothorax", "consolidation"]
SIDE_PX = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--masks", action="store_true")
    options = parser.parse_args()
    pipeline = load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder, "in"), options.cases)
        run_batch(pipeline, cases[:2], QUERIES, Path(folder, "warm"))
        before = encoder_s(pipeline, cases)
        start = time.perf_counter()
        run_batch(pipeline, cases, QUERIES, Path(folder, "out"), BatchOptions(masks=options.masks))
        whole = time.perf_counter() - start
        after = encoder_s(pipeline, cases)
    alone = (before + after) / 2
    verdict = "ok" if whole <= TARGET * alone else "MISSED"
    print(f"{len(cases)} radiographs: encoder {before:.1f} s and {after:.1f} s, batch {whole:.1f} s, "
          f"{len(cases) / whole:.2f} cases/s, ratio {whole / alone:.2f}  {verdict}")  # fmt: skip


def make_cases(folder: Path, count: int) -> list[Case]:
    """Radiographs of smooth noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (32, 32)).astype(np.uint8))
        small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
    return find_cases([str(folder)])


def encoder_s(pipeline: Pipeline, cases: list[Case]) -> float:
    """Seconds that encoding takes, images being in memory."""
    total = 0.0
    for case in cases:
        image = case.read()
        start = time.perf_counter()
        pipeline.encode_image(image)
        total += time.perf_counter() - start
    return total


if __name__ == "__main__":
    main()
