"""Step 6 of `nano`: forty real radiographs that it was not trained on, with what it marks, on one page to look at.

Command: python recipes/nano_cases.py ../shared/data OUT.html [--model src/radglint/weights/nano]
Time:    about a minute on 2 cores.
Writes:  one self-contained page: label, query, probability, mask (red), peak (green).
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import radglint
from nano_evaluate import peak_of
from nano_features_cxr import NIH_CONCEPTS, covid_training_patients, fold
from radglint.writing import write_text

TILE_PX, MASK_RGB, MASK_ALPHA = 320, (255, 60, 0), 0.35
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


def tile(path: Path, finding: radglint.Finding) -> Image.Image:
    """The radiograph with mask and peak."""
    grey = Image.open(path).convert("RGB")
    picture = np.asarray(grey, np.float32)
    marked = finding.mask()[..., None]
    blended = np.where(marked, (1 - MASK_ALPHA) * picture + MASK_ALPHA * np.array(MASK_RGB, np.float32), picture)
    shown = Image.fromarray(blended.astype(np.uint8)).resize((TILE_PX, TILE_PX))
    row, column = peak_of(finding)
    y, x = row * TILE_PX / grey.height, column * TILE_PX / grey.width
    ImageDraw.Draw(shown).ellipse([x - 5, y - 5, x + 5, y + 5], outline=(0, 255, 0), width=2)
    return shown


def figure(path: Path, query: str, label: str, finding: radglint.Finding) -> str:
    """One case as HTML."""
    buffer = io.BytesIO()
    tile(path, finding).save(buffer, "JPEG", quality=85)
    said = "present" if finding.present else "not present"
    lines = (f"{path.stem}: {label}", f"“{query}” {finding.probability:.2f}, {said}")
    caption = "<br>".join(html.escape(line) for line in lines)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'


STYLE = """body{background:#111;color:#ddd;font:13px sans-serif;margin:16px}main{display:flex;flex-wrap:wrap;gap:10px}
figure{margin:0;width:320px}figcaption{padding:4px 0}"""


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    pipe, rng = radglint.load(args.model), np.random.default_rng(0)
    cases = nih_cases(args.data / "nih_cxr", rng) + covid_cases(args.data / "covid_cxr_notes", rng)
    figures = "".join(figure(path, query, label, pipe.ask(path, [query])[0]) for path, query, label in cases)
    title = f"nano {pipe.model.fingerprint}: {len(cases)} real radiographs, none trained on"
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    write_text(args.out, f"{page}<main>{figures}</main>")


if __name__ == "__main__":
    main()
