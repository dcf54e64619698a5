"""Evaluation: bootstrap of many AUROCs, and what the measures of a map cost beside reading it.

Command: python benchmarks/bench_evaluation.py [--draws N] [--repeats N]
    (about two minutes on 2 cores, most of it the plain forms; one thread)
Targets: 1,000 draws of 14 AUROCs on 22,000 images in at most 10 s; the measures of a map in less time than its plain
forms, and a small share of one answer of the model (`bench_queries.py` gives that).
Every ratio is within this run, and all times are CPU seconds, since other work may run on the machine. "read" is
numpy.load of an uncompressed map from a file that is in memory already: the least that reading can cost.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import correlate

from radglint.evaluation.bootstrap import auroc_statistic, bootstrap
from radglint.evaluation.instances import score_finding
from radglint.evaluation.localisation import cnr, dice, pointing_hit, smooth, sweep
from radglint.evaluation.overlap import LEVELS, tally

CASES, CLASSES, PATIENTS = 22_000, 14, 9_000
TARGET_S = 10.0
SHAPES = {"radiograph 1024 x 1024": (1024, 1024), "CT 130 x 512 x 512": (130, 512, 512)}
PLAIN_DRAWS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    bench_bootstrap(options.draws)
    for name, shape in SHAPES.items():
        bench_maps(name, shape, options.repeats if len(shape) == 2 else 1)


def bench_bootstrap(draws: int) -> None:
    """All draws of all classes against one scikit-learn call for each draw and class."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive = rng.random((CASES, CLASSES)) < np.linspace(0.01, 0.4, CLASSES)
    scores = rng.normal(size=positive.shape) + positive
    patients = rng.integers(0, PATIENTS, CASES)
    before = _peak_mb()
    seconds, drawn = _time(lambda: bootstrap(auroc_statistic(scores, positive), patients, draws))
    memory = _peak_mb() - before
    weights = rng.integers(0, 3, (PLAIN_DRAWS, CASES))
    plain, _ = _time(lambda: [roc_auc_score(positive[:, k], scores[:, k], sample_weight=w)
                              for w in weights for k in range(CLASSES)])  # fmt: skip
    plain *= draws / PLAIN_DRAWS
    print(f"bootstrap: {draws} draws of {CLASSES} AUROCs on {CASES} images of {PATIENTS} patients: {seconds:.2f} s, "
          f"{memory:.0f} MB above before; scikit-learn draw by draw {plain:.0f} s (from {PLAIN_DRAWS} draws), "
          f"{plain / seconds:.0f} times as long")  # fmt: skip
    per_run = seconds * 1000 / draws
    print(f"  {per_run:.1f} s for 1,000 draws: {'ok' if per_run <= TARGET_S else f'above {TARGET_S:g} s'}; first class "
          f"{drawn.interval().low:.4f} to {drawn.interval().high:.4f}")  # fmt: skip


def bench_maps(name: str, shape: tuple[int, ...], repeats: int) -> None:
    """Each measure of one cached map, in milliseconds, beside its plain form and beside reading the map."""
    values, mask, box = _case(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.npy"
        np.save(path, values)
        read = min(_time(lambda: np.load(path))[0] for _ in range(repeats + 1))
    print(f"{name}: read {1000 * read:.1f} ms")
    smoothed = smooth(values)
    rows: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {
        "pointing": (lambda: pointing_hit(values, [box]), lambda: np.argwhere(values == values.max())),
        "contrast": (lambda: cnr(values, mask), lambda: _plain_cnr(values, mask)),
        "smoothing": (lambda: smooth(values), lambda: _plain_smooth(values)),
        "sweep, smoothed": (lambda: sweep(smoothed, mask, smooth_sigma=None), lambda: _plain_sweep(smoothed, mask)),
        "sweep, no rescale": (lambda: sweep(smoothed, mask, smooth_sigma=None, rescale=False), None),
        "curve, 101 levels": (
            lambda: tally(values, mask).dice(),
            lambda: _plain_curve(values, mask),
        ),
    }
    if len(shape) == 3:
        rows["instances"] = lambda: score_finding(smoothed > 0.8, mask), None
    total = plain_total = 0.0
    for measure, (fast, plain) in rows.items():
        ours = min(_time(fast)[0] for _ in range(repeats))
        theirs = _time(plain)[0] if plain else float("nan")
        total, plain_total = total + ours, plain_total + (theirs if plain else ours)
        print(f"  {measure:20s}{1000 * ours:9.1f} ms, plain {1000 * theirs:9.1f} ms, {ours / read:6.1f} x read")
    print(f"  {'all':20s}{1000 * total:9.1f} ms, {total / plain_total:.0%} of plain, {total / read:.1f} x read; "
          f"share of metrics in read + metrics: {total / (total + read):.0%}")  # fmt: skip


def _case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """A map like the model's: smooth, in [0, 1], float32; a box of a tenth of each side, and it as the truth."""
    rng = np.random.default_rng(1)
    coarse = rng.random([max(2, s // 16) for s in shape], dtype=np.float32)
    for axis, size in enumerate(shape):
        coarse = np.repeat(coarse, -(-size // coarse.shape[axis]), axis=axis).take(range(size), axis=axis)
    low = [s // 3 for s in shape]
    high = [a + s // 10 for a, s in zip(low, shape, strict=True)]
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    noise = rng.random(shape, dtype=np.float32) * 0.01
    return np.clip(0.6 * coarse + 0.3 * mask + noise, 0, 1).astype(np.float32), mask, (*low, *high)


def _plain_cnr(values: np.ndarray, mask: np.ndarray) -> float:
    inside, outside = values[mask].astype(np.float64), values[~mask].astype(np.float64)
    return float((inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var()))


def _plain_smooth(values: np.ndarray) -> np.ndarray:
    """One kernel of 13 x 13 in place of two of 13, slice by slice in a volume."""
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    if values.ndim == 2:
        return correlate(values, kernel, mode="mirror")
    return np.stack([correlate(part, kernel, mode="mirror") for part in values])


def _plain_curve(values: np.ndarray, mask: np.ndarray) -> list[float]:
    return [dice(values >= t, mask) for t in LEVELS]


def _plain_sweep(values: np.ndarray, mask: np.ndarray) -> list[float]:
    scaled = 2 * (values.astype(np.float64) - values.min()) / (values.max() - values.min()) - 1
    return [v for t in (0.1, 0.2, 0.3, 0.4, 0.5) for v in (
        2 * (mask & (scaled >= t)).sum() / (mask.sum() + (scaled >= t).sum()),
        (mask & (scaled >= t)).sum() / (mask | (scaled >= t)).sum())]  # fmt: skip


def _time(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
