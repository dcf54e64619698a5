"""Queries: what 100 different questions to one image cost, compared with one question.

Command: python benchmarks/bench_queries.py [--model NAME|PATH] [--image FILE] [--slices N]   (about 2 minutes, 2 cores)
Target: at most 1.2 times, from a loaded model, with the encoding of the image, to scores, decisions and token maps.
The model keeps the embedding of every phrase it was asked: "new" phrases were never seen, "known" ones were.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator

import numpy as np

from radglint.image import MedicalImage
from radglint.pipeline import Pipeline, load
from radglint.reading import read_image

MANY = 100
TARGET = 1.2
SIZES = ("small", "large", "subtle", "dense", "faint", "ill-defined", "rounded", "irregular", "new", "stable")
THINGS = ("pulmonary nodule", "lung mass", "consolidation", "pleural effusion", "pneumothorax", "opacity")
PLACES = ("left upper lobe", "left lower lobe", "right upper lobe", "right middle lobe", "right lower lobe", "lingula")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image", help="any radiograph or CT, in place of the two made ones")
    parser.add_argument("--slices", type=int, default=100, help="of the made CT")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    pipeline, queries = load(options.model), unseen_queries()
    images = [read_image(options.image)] if options.image else [radiograph(), ct(options.slices)]
    print(f"{'image':<18}{'1 new':>9}{f'{MANY} new':>9}{'ratio':>7}{'1 known':>10}{f'{MANY} known':>11}{'ratio':>7}")
    for image in images:
        new = measure(pipeline, image, queries, options.repeats)
        known = measure(pipeline, image, itertools.cycle(itertools.islice(queries, MANY)), options.repeats)
        ratios = [many / one for one, many in (new, known)]
        size = "x".join(map(str, image.shape))
        print(f"{image.modality + ' ' + size:<18}{new[0]:7.2f} s{new[1]:7.2f} s{ratios[0]:7.2f}", end="")
        print(f"{known[0]:8.2f} s{known[1]:9.2f} s{ratios[1]:7.2f}  {verdict(ratios)}", flush=True)


def verdict(ratios: list[float]) -> str:
    """How the ratios for new and known phrases stand to the target."""
    return ", ".join(
        f"{name} {'ok' if ratio <= TARGET else 'MISSED'}" for name, ratio in zip(("new", "known"), ratios, strict=True)
    )


def unseen_queries() -> Iterator[str]:
    """Different questions without end: the model keeps embeddings, so none may come twice."""
    for number in itertools.count():
        for size, thing, place in itertools.product(SIZES, THINGS, PLACES):
            yield f"{size} {thing} in the {place}" + (f" on study {number}" if number else "")


def measure(pipeline: Pipeline, image: MedicalImage, queries: Iterator[str], repeats: int) -> tuple[float, float]:
    """Median seconds of `ask` with one and with many of the questions, in turns, after a turn that is not counted."""
    seconds: dict[int, list[float]] = {1: [], MANY: []}
    for turn in range(repeats + 1):
        for count, found in seconds.items():
            wanted = list(itertools.islice(queries, count))
            start = time.perf_counter()
            pipeline.ask(image, wanted)
            found += [time.perf_counter() - start] if turn else []
    return statistics.median(seconds[1]), statistics.median(seconds[MANY])


def radiograph() -> MedicalImage:
    """Two dark lungs, 512 x 512: it only has to pass through the model."""
    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    lungs = sum(np.exp(-(((column - side) / 0.3) ** 4) - (row / 0.7) ** 4) for side in (-0.45, 0.45))
    grey = 0.8 - 0.6 * lungs + np.random.default_rng(0).normal(0, 0.02, row.shape)
    return MedicalImage(grey.clip(0, 1).astype(np.float32), "CXR", "display", path="radiograph")


def ct(slices: int) -> MedicalImage:
    """A body with two lungs, 512 x 512 pixels of 0.7 mm, slices of 2.5 mm."""
    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    plane = np.where((row / 0.65) ** 2 + (column / 0.9) ** 2 < 1, 40, -1000)
    for side in (-0.45, 0.45):
        plane[((column - side) / 0.3) ** 2 + (row / 0.5) ** 2 < 1] = -850
    hu = plane + np.random.default_rng(0).normal(0, 15, (slices, 1, 1))
    affine = np.array([[0, 0, -0.7, 179], [0, -0.7, 0, 179], [2.5, 0, 0, 0], [0, 0, 0, 1.0]])
    return MedicalImage(hu.astype(np.float32), "CT", "HU", (2.5, 0.7, 0.7), affine, "ct")


if __name__ == "__main__":
    main()
