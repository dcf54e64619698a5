"""DICOM results of many findings on a large CT: seconds, size on disk and peak memory, each kind in a fresh process.

Command: python benchmarks/bench_dicom_out.py [--slices N] [--findings N]              (about 5 minutes on 2 cores)
Every finding marks an ellipsoid of its own with a blurred edge, in 512 x 512 x 300 voxels; a third is not found and
stays as a named segment without a frame. The baseline, 1.0 x, is writing the same masks as NIfTI, in its own process.
Target: BINARY in at most 1.5 times the CPU seconds of the baseline.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BASELINE, KINDS = "NIfTI masks", ("BINARY", "LABELMAP", "FRACTIONAL")
TARGET = 1.5
TOKEN_PX = 8  # one token in 8 x 8 pixels of a slice


def main() -> None:
    """Write the series, measure each kind in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--findings", type=int, default=30)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # folder of the series, kind
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    if options.worker:
        print(json.dumps(measure(Path(options.worker[0]), options.worker[1], options.findings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder) / "series", options.slices)
        report(Path(folder), options)


def in_process(folder: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement."""
    command = [sys.executable, __file__, f"--findings={options.findings}", "--worker", str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"problem": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Seconds and CPU seconds of writing, of the report too; bytes; GB at the peak, and before the writing."""
    import highdicom  # noqa: F401 - its import is not what is measured

    from radglint.reading import read_image

    findings = make_findings(read_image(folder / "series"), count, apart=kind == "LABELMAP")
    out = folder / kind
    out.mkdir()
    before = peak_gb()
    start, cpu = time.perf_counter(), time.process_time()
    if kind == BASELINE:
        for number, finding in enumerate(findings):
            finding.to_nifti(out / f"{number}.nii.gz")
    else:
        findings.to_dicom_seg(out / "seg.dcm", kind)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(path.stat().st_size for path in out.iterdir())
    start = time.perf_counter()
    if kind != BASELINE:
        findings.to_dicom_sr(out / "sr.dcm", seg=out / "seg.dcm")
    return {
        "seconds": seconds, "cpu": cpu, "bytes": size, "report": time.perf_counter() - start,
        "peak": peak_gb(), "before": before,
    }  # fmt: skip


def make_findings(image: Any, count: int, *, apart: bool) -> Any:
    """Ellipsoids of 20 to 100 mm along the lungs; on a grid without overlap if `apart`."""
    from dataclasses import replace

    from findings_phantom import answer, collect
    from radglint.preprocess import PreprocessRecord

    grid = (image.shape[0], image.shape[1] // TOKEN_PX, image.shape[2] // TOKEN_PX)
    scale = np.diag([1, 1 / TOKEN_PX, 1 / TOKEN_PX, 1])
    record = PreprocessRecord(image.shape, grid, scale, (f"one token in {TOKEN_PX} x {TOKEN_PX} pixels",))
    empty, rng = np.zeros(image.shape, bool), np.random.default_rng(0)
    index, found = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij")), []
    for number in range(count):
        across = np.array([number // 6 + 0.5, number % 6 + 0.5]) / (count / 6, 6) * grid[1:]
        center = np.array([grid[0] * 0.5, *across]) if apart else rng.uniform(0.25, 0.75, 3) * grid
        radius = np.array([grid[0] * 0.3, *((3, 3) if apart else rng.uniform(2, 9, 2))])
        distance = np.sqrt((((index - center[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0))
        logits = (12 * (1 - distance)).clip(-12, 6).astype(np.float32)
        finding = answer(image, empty, f"nodule {number + 1}", probability=0.9 if number % 3 else 0.2)
        found.append(replace(finding, token_logits=logits, record=record))
    return collect(*found)


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Measure, and print the rows as they come."""
    print(f"{options.findings} findings on 512 x 512 x {options.slices}, {(options.findings + 2) // 3} not found")
    print(
        f"{'':<14}{'seconds':>9}{'CPU s':>8}{'x base':>8}{'MB':>9}{'report s':>10}{'peak GB':>9}{'before':>8}",
        flush=True,
    )
    ratios = {}
    for kind in (BASELINE, *KINDS):
        row = in_process(folder, kind, options)
        if "problem" in row:
            print(f"{kind:<14}{row['problem']}", flush=True)
            continue
        ratios[kind] = row["cpu"] / ratios.setdefault("base", row["cpu"])
        print(
            f"{kind:<14}{row['seconds']:9.1f}{row['cpu']:8.1f}{ratios[kind]:8.2f}{row['bytes'] / 1e6:9.2f}"
            f"{row['report']:10.1f}{row['peak']:9.2f}{row['before']:8.2f}",
            flush=True,
        )
    verdict = "ok" if ratios["BINARY"] <= TARGET else "MISSED"
    print(f"BINARY {ratios['BINARY']:.2f} x the CPU seconds of the baseline: {verdict} (target {TARGET} x)")


def write_series(folder: Path, slices: int) -> None:
    """A body with two lungs, 0.7 mm pixels, 1 mm slices, one file each."""
    from dicom_files import write_ct_series

    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    plane = np.where((row / 0.65) ** 2 + (column / 0.9) ** 2 < 1, 40, -1000)
    for side in (-0.45, 0.45):
        plane[((column - side) / 0.3) ** 2 + (row / 0.5) ** 2 < 1] = -850
    hu = np.broadcast_to(plane.astype(np.int16), (slices, 512, 512))
    place = {"step": (0.0, 0.0, 1.0), "origin": (-179.0, -179.0, 0.0), "FrameOfReferenceUID": "1.2.3.4.9"}
    write_ct_series(folder, hu, SliceThickness=1.0, PixelSpacing=[0.7, 0.7], **place)


if __name__ == "__main__":
    main()
