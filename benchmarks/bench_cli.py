"""Cold starts of the command line: each figure is the median of fresh processes, and a ratio to bare Python.

Command: python benchmarks/bench_cli.py            (about a minute on 2 cores)
Targets: `radglint --help` under 0.5 s; `radglint ask` on a PNG under 6 s. Ends with 1 if one is missed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 1024
CALL = "import sys; from radglint.cli import entry; entry()"
# name, arguments, number of runs, target in seconds
CASES = [
    ("radglint --help", ["--help"], 7, 0.5),
    ("radglint --version", ["--version"], 7, 0.5),
    ("radglint models list", ["models", "list"], 7, 0.5),
    ("radglint inspect PNG", ["inspect", "chest.png"], 5, None),
    ("radglint ask PNG, 1 query", ["ask", "chest.png", "pleural effusion"], 5, 6.0),
]


def main() -> int:
    """Time every case and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        write_picture(Path(folder) / "chest.png")
        bare = median_seconds(["-c", "pass"], 7, folder)
        print(f"{'case':<28}{'seconds':>9}{'x bare python':>15}{'target':>9}")
        print(f"{'python -c pass':<28}{bare:9.2f}{1:15.1f}{'':>9}")
        met = [report(name, ["-c", CALL, *argv], runs, target, bare, folder) for name, argv, runs, target in CASES]
    return 0 if all(met) else 1


def report(name: str, argv: list[str], runs: int, target: float | None, bare: float, folder: str) -> bool:
    """Time one case and print its row; tells whether the target was met."""
    seconds = median_seconds(argv, runs, folder)
    met = target is None or seconds < target
    goal = "" if target is None else f"{target:.1f} {'ok' if met else 'MISSED'}"
    print(f"{name:<28}{seconds:9.2f}{seconds / bare:15.1f}{goal:>9}", flush=True)
    return met


def median_seconds(argv: list[str], runs: int, folder: str) -> float:
    """Median wall time of fresh Python processes; the first one, which fills the file cache, is not counted."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *argv], cwd=folder, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode not in (0, 2) or (done.returncode == 2 and "inspect" not in argv):
            raise SystemExit(f"{argv[2:]} ended with {done.returncode}: {done.stderr.strip()}")
    return statistics.median(seconds[1:])


def write_picture(path: Path) -> None:
    """A picture with two dark lungs: it only has to be decoded and passed through the model."""
    row, column = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j]
    lungs = [np.exp(-(((column - side) / 0.3) ** 4) - (row / 0.7) ** 4) for side in (-0.45, 0.45)]
    grey = 0.8 - 0.6 * sum(lungs) + np.random.default_rng(0).normal(0, 0.02, row.shape)
    Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8)).save(path)


if __name__ == "__main__":
    sys.exit(main())
