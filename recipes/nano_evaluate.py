"""Step 5 of `nano`: the shipped checkpoint on real images that it was not trained on, by the public pipeline only.

Command: python recipes/nano_evaluate.py ../shared/data [--model src/radglint/weights/nano] [--out runs/real.json]
Time:    about 6 minutes on 2 cores.
Prints:  AUROC on held-out NIH patients, all and by view; how much of "consolidation" lies in radiologists' boxes of
         diseased lungs; peak, Dice, probability and marks elsewhere on lesions of real CT, outlined or boxed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from sklearn.metrics import roc_auc_score

import radglint
from nano_assemble import CALIBRATION_FOLDS
from nano_features_cxr import NIH_CONCEPTS, covid_training_patients, fold

LABELS = ("Effusion", "Pneumothorax", "Consolidation", "Infiltration", "Pneumonia", "Atelectasis", "Cardiomegaly",
          "Edema", "Nodule", "Mass", "Emphysema")  # fmt: skip
MIN_POSITIVES = 4
SIDES = ("left", "right")
LESIONS = {
    "lidc_0001": ("lung mass", "mask_nodules_consensus.nii.gz"),
    "lidc_0314": ("pulmonary nodule", "mask_nodules_consensus.nii.gz"),
    "fourd_lung_113": ("lung mass", "mask_tumor_c40.nii.gz"),
}
ABSENT = {
    "lidc_0001": ("pneumothorax", "left pleural effusion", "right pleural effusion"),
    "lidc_0314": ("pneumothorax", "left pleural effusion", "right pleural effusion"),
    "fourd_lung_113": ("pneumothorax",),
}
OF_TRAINING_PATIENTS = (  # whose other slices were trained on
    ("fourd_lung_113", "enlarged lymph node", "mask_ln_c40.nii.gz"),
    ("lungdx_a0001", "lung mass", "tumour_boxes.json"),
)


def auroc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """AUROC, or None with too few cases of a kind."""
    few = min(positive.sum(), (~positive).sum()) < MIN_POSITIVES
    return None if few else round(float(roc_auc_score(positive, scores)), 3)


def auroc_interval(
    positive: np.ndarray, scores: np.ndarray, patients: np.ndarray, draws: int = 500
) -> list[float] | None:
    """95 % interval over patients drawn with replacement, or None with too few cases of a kind."""
    if auroc(positive, scores) is None:
        return None
    rng, names = np.random.default_rng(0), np.unique(patients)
    rows = {name: np.flatnonzero(patients == name) for name in names}
    values = []
    for _ in range(draws):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        if 0 < positive[drawn].sum() < len(drawn):
            values.append(roc_auc_score(positive[drawn], scores[drawn]))
    return [round(float(v), 3) for v in np.quantile(values, (0.025, 0.975))]


def share(decisions: np.ndarray) -> float | None:
    """How many are yes, or None without any."""
    return round(float(decisions.mean()), 3) if len(decisions) else None


def evaluate_radiographs(pipe: radglint.Pipeline, folder: Path) -> dict[str, dict]:
    """Label against score on the patients of folds 0 to 3; cross-checks by view."""
    records = [r for r in json.loads((folder / "records.json").read_text()) if fold(r["patient"]) < 4]
    queries = sorted({NIH_CONCEPTS[label] for label in LABELS if label in NIH_CONCEPTS})
    answers = [pipe.ask(folder / r["image"], queries) for r in records]
    scores = {q: np.array([findings[k].score for findings in answers]) for k, q in enumerate(queries)}
    decided = {q: np.array([findings[k].present for findings in answers]) for k, q in enumerate(queries)}
    views = np.array([r["view"] for r in records])
    patients = np.array([r["patient"] for r in records])
    healthy = np.array([r["labels"] == ["No Finding"] for r in records])
    judged = np.array([fold(r["patient"]) not in CALIBRATION_FOLDS for r in records])  # the rest set the thresholds
    rows: dict[str, dict] = {}
    for label in LABELS:
        query = NIH_CONCEPTS[label]
        positive = np.array([label in r["labels"] for r in records])
        usable = positive | ~np.array([any(NIH_CONCEPTS.get(x) == query for x in r["labels"]) for r in records])
        by_view = {}
        for view in ("PA", "AP"):
            of_view = positive[usable & (views == view)], scores[query][usable & (views == view)]
            by_view[f"auroc_{view.lower()}"] = auroc(*of_view)
            by_view[f"interval_{view.lower()}"] = auroc_interval(*of_view, patients[usable & (views == view)])
        rows[label] = {"query": query, "n": int(positive.sum()),
                       "auroc": auroc(positive[usable], scores[query][usable]),
                       "interval": auroc_interval(positive[usable], scores[query][usable], patients[usable]),
                       **by_view,
                       "sensitivity": share(decided[query][positive & judged]),
                       "false_alarms_on_normal": share(decided[query][healthy & judged])}  # fmt: skip
    rows["images"] = {"n": len(records), "normal": int(healthy.sum()), "judged": int(judged.sum())}
    return rows


def lung_masks(record: dict, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The boxes of a record as masks: "left lung", "right lung"."""
    masks = {}
    for box in record["lung_boxes"]:
        left, top, right, bottom = np.round(box["bbox_xyxy"]).astype(int)
        masks[box["label"]] = np.zeros(shape, bool)
        masks[box["label"]][top:bottom, left:right] = True
    return masks


def peak_of(finding: radglint.Finding) -> tuple[int, ...]:
    """Where the map is highest, whether or not the finding is said to be present."""
    score = finding.probability_map()
    return tuple(int(k) for k in np.unravel_index(np.nanargmax(score), score.shape))


def evaluate_lung_boxes(pipe: radglint.Pipeline, folder: Path) -> dict:
    """Whether a lung finding is marked in the lungs, and one of a side on that side.

    Frontal radiographs of diseased lungs, of patients not trained on, with radiologists' boxes around both lungs.
    """
    records = json.loads((folder / "records.json").read_text())
    trained = covid_training_patients(records)
    usable = [r for r in records if r["view"] != "L" and r["lung_boxes"] and r["patientid"] not in trained]
    rows, sides = [], []
    for record in (r for r in usable if r["finding"] != "No Finding"):
        queries = ["consolidation", *(f"consolidation in the {side} lung" for side in SIDES)]
        finding, *by_side = pipe.ask(folder / record["image"], queries)
        lungs = lung_masks(record, finding.image.shape)
        marked, either = finding.mask(), np.logical_or.reduce(list(lungs.values()))
        inside = either[marked].mean() if marked.any() else np.nan
        rows.append((either[peak_of(finding)], either.mean(), finding.present, marked.mean(), inside))
        for side, other in zip(SIDES, by_side, strict=True):
            if len(lungs) == 2 and either[peak_of(other)]:
                sides.append(lungs[f"{side} lung"][peak_of(other)])
    peaks, chance, present, area, inside = np.array(rows, float).T
    return {"n": len(rows), "peak_in_lung_box": round(peaks.mean(), 3), "chance": round(chance.mean(), 3),
            "present": round(present.mean(), 3), "marked_share_of_image": round(area[present > 0].mean(), 3),
            "marked_inside_lung_box": round(float(np.nanmean(inside)), 3),
            "side_asked": len(sides), "peak_on_that_side": round(float(np.mean(sides)), 3)}  # fmt: skip


def lesion_mask(image: radglint.MedicalImage, path: Path) -> np.ndarray:
    """An outline (NIfTI), or boxes (JSON, slice by slice) filled, on the CT's own grid."""
    if path.suffix != ".json":
        return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0) > 0
    mask = np.zeros(image.shape, bool)
    for box in json.loads(path.read_text())["boxes"]:
        if box["series"] == "ct.nii.gz":
            lower, upper = (np.round(box[f"out_box_ijk_{end}"]).astype(int) for end in ("min", "max"))
            mask[lower[2] : upper[2] + 1, lower[1] : upper[1] + 1, lower[0] : upper[0] + 1] = True
    return mask


def evaluate_lesion(
    pipe: radglint.Pipeline, folder: Path, query: str, truth_file: str, absent: tuple[str, ...]
) -> dict:
    """Peak, overlap and marks elsewhere against the radiologists' outline or boxes; what is said of absent things."""
    image = radglint.read_image(folder / "ct.nii.gz")
    truth = lesion_mask(image, folder / truth_file)
    finding, *others = pipe.ask(image, [query, *absent])
    if not finding.in_scope:
        return {"query": query, "out_of_scope": True}
    volume = finding.probability_map()
    inside = np.unravel_index(np.nanargmax(volume), volume.shape)
    marked = finding.mask()
    best = max((dice(volume >= t, truth), t) for t in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99))
    voxel_ml = abs(np.linalg.det(image.affine)) / 1000
    return {
        "query": query, "probability": round(finding.probability, 3), "peak_inside": bool(truth[inside]),
        "dice": round(dice(marked, truth), 3), "best_dice": round(best[0], 3), "best_threshold": best[1],
        "mask_ml": round(float(finding.volume_ml or 0), 1),
        "marked_elsewhere_ml": round(float((marked & ~truth).sum() * voxel_ml), 1),
        "truth_ml": round(float(truth.sum() * voxel_ml), 1), "truth": truth_file,
        "absent": {o.query: round(o.probability, 3) for o in others},
    }  # fmt: skip


def dice(marked: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (marked & truth).sum() / max(marked.sum() + truth.sum(), 1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["CXR", "CT"])
    args = parser.parse_args()
    pipe = radglint.load(args.model)
    result: dict[str, dict] = {}
    if args.only != "CXR":
        asked = [(name, *lesion, ABSENT[name]) for name, lesion in LESIONS.items()]
        for name, query, truth, absent in asked + [(*more, ()) for more in OF_TRAINING_PATIENTS]:
            row = evaluate_lesion(pipe, args.data / "ct_chest" / name, query, truth, absent)
            result[f"{name} {query}"] = row
            print(name, json.dumps(row), flush=True)
    if args.only != "CT":
        result["nih"] = evaluate_radiographs(pipe, args.data / "nih_cxr")
        for label, row in result["nih"].items():
            print(f"{label:14s}", json.dumps(row), flush=True)
        result["lung_boxes"] = evaluate_lung_boxes(pipe, args.data / "covid_cxr_notes")
        print("lung boxes", json.dumps(result["lung_boxes"]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
