"""Manifests of the real images that radglint is developed with, for `radglint evaluate`.

Command: python recipes/real_manifest.py ../shared/data runs/real
         radglint evaluate --suite chestxray14 --manifest runs/real/nih.jsonl --out runs/real_nih
         radglint evaluate --suite lidc --manifest runs/real/ct.jsonl --out runs/real_ct
Time:    seconds.

Radiographs: patients whose real labels nano was not trained on. Those that set its probabilities are the validation
split, the others the test split. CT: three patients with outlined lesions. lidc_0001 was never read, lidc_0314 set CT
probabilities, and of fourd_lung_113 other slices and a computed radiograph were trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nano_assemble import CALIBRATION_FOLDS
from nano_evaluate import ABSENT, LESIONS
from nano_features_cxr import fold
from radglint.datasets.nih_cxr14 import LABELS
from radglint.manifest import ManifestRow, Phrase, write_manifest

TRAINED_FOLDS = 4  # folds from here on were trained on


def radiographs(folder: Path) -> list[ManifestRow]:
    """One row per image of a patient that was not trained on; what is not named is absent, as in NIH's own files."""
    rows = []
    for record in json.loads((folder / "records.json").read_text()):
        if fold(record["patient"]) >= TRAINED_FOLDS:
            continue
        named = {LABELS[label] for label in record["labels"] if label in LABELS}
        labels = {label: "present" if label in named else "absent" for label in LABELS.values()}
        split = "val" if fold(record["patient"]) in CALIBRATION_FOLDS else "test"
        rows.append(
            ManifestRow(
                id=Path(record["image"]).stem, image=str((folder / record["image"]).resolve()), modality="CXR",
                dataset="nih-chestxray14", patient=record["patient"], study=Path(record["image"]).stem, split=split,
                view=record["view"], labels=labels,
            )
        )  # fmt: skip
    return rows


def volumes(folder: Path) -> list[ManifestRow]:
    """One row per volume with an outlined lesion."""
    rows = []
    for name, (query, mask) in LESIONS.items():
        label = "mass" if "mass" in query else "nodule"
        gone = {"pneumothorax": "absent"} | ({"pleural effusion": "absent"} if len(ABSENT[name]) > 1 else {})
        place = Phrase(query, label=label, masks=(str((folder / name / mask).resolve()),))
        rows.append(
            ManifestRow(
                id=name, image=str((folder / name / "ct.nii.gz").resolve()), modality="CT", patient=name, split="test",
                labels={label: "present", **gone}, phrases=(place,),
            )
        )  # fmt: skip
    return rows


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("nih", radiographs(args.data / "nih_cxr")), ("ct", volumes(args.data / "ct_chest"))):
        print(write_manifest(args.out / f"{name}.jsonl", rows), len(rows))


if __name__ == "__main__":
    main()
