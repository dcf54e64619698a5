"""A CT series: from a folder of DICOM slices to five masks on the native grid, in a fresh process.

Command: python benchmarks/bench_ct_series.py [--model NAME|PATH] [--slices N]           (about 2 minutes on 2 cores)
Targets for 512 x 512 x 300: at most 90 s and 4 GB of memory at the peak, imports and loading of the model included.
The baseline of the last column is pydicom decoding every slice, in the same process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TARGET_SECONDS, TARGET_GB = 90.0, 4.0
QUERIES = ("lung mass", "pulmonary nodule", "pleural effusion", "pneumothorax", "consolidation")
BASELINE = "baseline: decode slices"
LEVEL = 0.001  # so low that masks are really computed, whatever the model thinks of this phantom


def main() -> None:
    """Write the series, run the stages in a fresh process, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(stages(Path(options.worker), options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), options.slices)
        command = [sys.executable, __file__, "--model", options.model, "--worker", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    report(json.loads(done.stdout.splitlines()[-1]), options.slices)


def stages(folder: Path, model: str) -> dict[str, float]:
    """Seconds of each stage and the peak memory in GB; runs in its own process."""
    import resource

    clock = [time.perf_counter()]
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        clock.append(time.perf_counter())
        seconds[name] = clock[-1] - clock[-2]

    import pydicom

    lap("import of pydicom")
    for path in folder.iterdir():
        pydicom.dcmread(path).pixel_array  # noqa: B018
    lap(BASELINE)
    from radglint.pipeline import load
    from radglint.reading import read_image

    lap("other imports")
    pipeline = load(model)
    lap("load the model")
    image = read_image(folder)
    lap("read the series")
    encoded = pipeline.encode_image(image)
    lap("preprocess and encode")
    findings = pipeline.ask(encoded, QUERIES, threshold=LEVEL)
    lap(f"{len(QUERIES)} queries")
    marked = [int(finding.mask().sum()) for finding in findings]
    lap(f"{len(QUERIES)} masks")
    unit = 1e9 if sys.platform == "darwin" else 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return seconds | {"marked_queries": float(sum(map(bool, marked))), "peak_gb": peak}


def report(result: dict[str, float], slices: int) -> None:
    """Print the table; the targets are for 300 slices."""
    peak, marked = result.pop("peak_gb"), result.pop("marked_queries")
    baseline = result[BASELINE]
    total = sum(result.values()) - baseline
    print(f"512 x 512 x {slices} DICOM series, {marked:.0f} of {len(QUERIES)} masks not empty")
    print(f"{'stage':<28}{'seconds':>9}{'x baseline':>12}")
    for name, seconds in [*result.items(), ("total without the baseline", total)]:
        print(f"{name:<28}{seconds:9.2f}{seconds / baseline:12.1f}")
    print(f"total {total:.1f} s: {'ok' if total <= TARGET_SECONDS else 'MISSED'} (target {TARGET_SECONDS:.0f} s)")
    print(f"peak memory {peak:.2f} GB: {'ok' if peak <= TARGET_GB else 'MISSED'} (target {TARGET_GB:.0f} GB)")


def write_series(folder: Path, slices: int) -> None:
    """A body with two lungs and a ball, 0.7 mm pixels, 1 mm slices, one file each."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from dicom_files import write_ct_series

    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    plane = np.where((row / 0.65) ** 2 + (column / 0.9) ** 2 < 1, 40, -1000)
    for side in (-0.45, 0.45):
        plane[((column - side) / 0.3) ** 2 + (row / 0.5) ** 2 < 1] = -850
    noise = np.random.default_rng(0).normal(0, 15, (512, 512))
    hu = np.stack([np.roll(plane + noise, d, axis=0) if d % 2 else plane + noise for d in range(slices)])
    hu[slices // 2 - 10 : slices // 2 + 10, 250:280, 130:160] = 40
    geometry = {"step": (0.0, 0.0, 1.0), "origin": (-179.0, -179.0, 0.0), "PixelSpacing": [0.7, 0.7]}
    write_ct_series(folder, hu.astype(np.int16), SliceThickness=1.0, **geometry)


if __name__ == "__main__":
    main()
