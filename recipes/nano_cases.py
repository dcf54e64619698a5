"""Step 6 of `nano`: forty real radiographs that it was not trained on, and three real CT, with gates, on one page.

Command: python recipes/nano_cases.py ../shared/data OUT.html [--model src/radglint/weights/nano]
Time:    about three minutes of one core.
Writes:  one self-contained page: label, query, probability, mask (red), peak (green), and beside it the gate as
         probabilities from black (0) over red to white (1), as square roots so that faint places show. Of a CT, the
         slice of the peak and the slice with most of the lesion, whose outline by radiologists is blue.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

import radglint
from nano_evaluate import LESIONS, peak_of
from nano_features_cxr import NIH_CONCEPTS, covid_training_patients, fold
from radglint.writing import write_text

TILE_PX, MASK_RGB, MASK_ALPHA, TRUTH_RGB = 320, (255, 60, 0), 0.35, (80, 170, 255)
LUNG_WINDOW_HU = (-1350.0, 150.0)
NIH_LABELS = {
    "Pneumonia": 5,
    "Effusion": 6,
    "Infiltration": 3,
    "Atelectasis": 3,
    "Cardiomegaly": 2,
    "Nodule": 3,
    "Mass": 2,
}
NORMALS = {"consolidation": 3, "pleural effusion": 3}
NUM_COVID = 10


def nih_cases(folder: Path, rng: np.random.Generator) -> list[tuple[Path, str, str]]:
    """Image, query and label of held-out patients: some of each label, and normal ones."""
    held_out = [r for r in json.loads((folder / "records.json").read_text()) if fold(r["patient"]) < 4]
    cases = []
    for label, count in NIH_LABELS.items():
        found = [r for r in held_out if label in r["labels"]]
        for k in rng.permutation(len(found))[:count]:
            cases.append((folder / found[k]["image"], NIH_CONCEPTS[label], "+".join(found[k]["labels"])))
    normal = [r for r in held_out if r["labels"] == ["No Finding"]]
    order = iter(rng.permutation(len(normal)))
    for query, count in NORMALS.items():
        cases += [(folder / normal[next(order)]["image"], query, "No Finding") for _ in range(count)]
    return cases


def covid_cases(folder: Path, rng: np.random.Generator) -> list[tuple[Path, str, str]]:
    """Frontal radiographs of pneumonia from another collection."""
    records = json.loads((folder / "records.json").read_text())
    trained = covid_training_patients(records)
    frontal = [r for r in records if r["view"] != "L" and r["finding"] != "No Finding"]
    sick = [r for r in frontal if r["patientid"] not in trained]
    return [
        (folder / sick[k]["image"], "consolidation", sick[k]["finding"]) for k in rng.permutation(len(sick))[:NUM_COVID]
    ]


def tiles(
    grey: np.ndarray,
    marked: np.ndarray,
    gate: np.ndarray,
    peak: tuple[int, ...] | None,
    truth: np.ndarray | None = None,
) -> Image.Image:
    """A picture with mask, outline and peak, and its gate beside it.

    Args:
        grey: uint8 `height width`.
        marked: bool, the mask.
        gate: float, probabilities.
        peak: row and column, if it lies in this picture.
        truth: bool, what radiologists outlined.
    """
    picture = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    picture[marked] = (1 - MASK_ALPHA) * picture[marked] + MASK_ALPHA * np.array(MASK_RGB, np.float32)
    if truth is not None:
        picture[truth & ~binary_erosion(truth)] = TRUTH_RGB
    lifted = np.sqrt(np.nan_to_num(gate))[..., None]
    heat = 255 * np.clip(3 * lifted - np.arange(3), 0, 1)
    both = [Image.fromarray(part.astype(np.uint8)).resize((TILE_PX, TILE_PX)) for part in (picture, heat)]
    if peak is not None:
        y, x = (place * TILE_PX / size for place, size in zip(peak, grey.shape, strict=True))
        for part in both:
            ImageDraw.Draw(part).ellipse([x - 5, y - 5, x + 5, y + 5], outline=(0, 255, 0), width=2)
    joined = Image.new("RGB", (2 * TILE_PX, TILE_PX))
    for k, part in enumerate(both):
        joined.paste(part, (k * TILE_PX, 0))
    return joined


def film(path: Path, finding: radglint.Finding) -> Image.Image:
    """A radiograph with its gate."""
    grey = np.asarray(Image.open(path).convert("L"))
    return tiles(grey, finding.mask(), finding.probability_map(), peak_of(finding))


def slices(folder: Path, outline: str, finding: radglint.Finding) -> Image.Image:
    """Two axial slices of a CT, one above the other: that of the peak, and that with most of the lesion."""
    truth = np.asarray(nib.load(folder / outline).dataobj).transpose(2, 1, 0) > 0  # pyright: ignore[reportAttributeAccessIssue]
    affine, marked, peak = finding.image.affine, finding.mask(), peak_of(finding)
    assert affine is not None
    steps = (affine[1, 1], affine[0, 2])  # towards the front, towards the patient's right
    turned = tuple(k for k, step in enumerate(steps) if step > 0)  # shown with the front up and the right side left
    picture = Image.new("RGB", (2 * TILE_PX, 2 * TILE_PX))
    for k, index in enumerate((peak[0], int(truth.sum(axis=(1, 2)).argmax()))):
        low, high = LUNG_WINDOW_HU
        grey = (255 * np.clip((finding.image.array[index] - low) / (high - low), 0, 1)).astype(np.uint8)
        planes = (grey, marked[index], finding.probability_plane(0, index), truth[index])
        grey, mask, gate, lesion = (np.flip(plane, turned) for plane in planes)
        place = [grey.shape[a] - 1 - peak[1 + a] if a in turned else peak[1 + a] for a in (0, 1)]
        shown = tiles(grey, mask, gate, tuple(place) if index == peak[0] else None, lesion)
        picture.paste(shown, (0, k * TILE_PX))
    return picture


def figure(name: str, query: str, label: str, finding: radglint.Finding, picture: Image.Image) -> str:
    """One case as HTML."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    said = "present" if finding.present else "not present"
    lines = (f"{name}: {label}", f"“{query}” {finding.probability:.2f}, {said}")
    caption = "<br>".join(html.escape(line) for line in lines)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'


STYLE = """body{background:#111;color:#ddd;font:13px sans-serif;margin:16px}main{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0;width:640px}figcaption{padding:4px 0}"""


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    pipe, rng = radglint.load(args.model), np.random.default_rng(0)
    cases = nih_cases(args.data / "nih_cxr", rng) + covid_cases(args.data / "covid_cxr_notes", rng)
    figures = ""
    for path, query, label in cases:
        finding = pipe.ask(path, [query])[0]
        figures += figure(path.stem, query, label, finding, film(path, finding))
    for patient, (query, outline) in LESIONS.items():
        folder = args.data / "ct_chest" / patient
        finding = pipe.ask(folder / "ct.nii.gz", [query])[0]
        label = "peak above, outlined lesion below"
        figures += figure(patient, query, label, finding, slices(folder, outline, finding))
    title = f"nano {pipe.model.fingerprint}: {len(cases)} real radiographs, none trained on, {len(LESIONS)} real CT"
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    write_text(args.out, f"{page}<main>{figures}</main>")


if __name__ == "__main__":
    main()
