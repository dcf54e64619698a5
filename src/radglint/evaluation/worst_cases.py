"""The best and the worst answers of an evaluation as overlays: asked again, drawn, and kept beside the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from radglint.display import ct_view, radiograph_view, window_for
from radglint.evaluation.answers import default_query
from radglint.evaluation.results import CaseResult, ProtocolResult
from radglint.evaluation.tables import answered
from radglint.evaluation.truth import place_of_class
from radglint.finding import Finding
from radglint.manifest import ManifestRow
from radglint.pipeline import Pipeline
from radglint.prompt_banks import PromptBank
from radglint.render import contour, fit, grey_layer, mask_layer, render_overlay

Line = dict[str, Any]
SHOWN_BY = ("presence", "radglint")  # the protocols that show cases, the first of them that was run
FOLDER = "cases"
WIDTH_PX = 700
TRUTH_RGB = (90, 220, 120)
EDGE_PX = 2


def with_cases(
    protocols: Sequence[ProtocolResult], pipe: Pipeline, rows: Sequence[ManifestRow], lines: Sequence[Line],
    config: Any, bank: PromptBank,
) -> list[ProtocolResult]:  # fmt: skip
    """The protocols, one of them with its best and worst cases.

    Args:
        protocols: as measured.
        pipe: the model.
        rows: of the manifest.
        lines: of the answers.
        config: `SuiteConfig`: manifest, out, split, shown_cases.
        bank: the classes.
    """
    name = next((n for n in SHOWN_BY if any(p.name == n for p in protocols)), None)
    if name is None:
        return list(protocols)
    tested = answered(lines, None if config.split == "all" else config.split)
    found = tuple(
        _case(rank, line, answer, pipe, rows, config, bank, number)
        for rank, chosen in ends(tested, config.shown_cases).items()
        for number, (line, answer) in enumerate(chosen)
    )
    return [p.model_copy(update={"cases": found}) if p.name == name else p for p in protocols]


def ends(lines: Sequence[Line], count: int) -> dict[Literal["best", "worst"], list[tuple[Line, Line]]]:
    """Best and worst answers, one of an image at most: positives with a place by Dice, else answers by their error.

    Args:
        lines: with answers.
        count: of each.
    """
    placed = [(a["place"]["dice_ask"], line, a) for line, a in _answers(lines) if "dice_ask" in a.get("place", {})]
    judged = placed or [(1 - _error(a), line, a) for line, a in _answers(lines) if a["truth"] in ("present", "absent")]
    ranked = sorted(judged, key=lambda row: (-row[0], row[1]["id"], row[2]["class"]))
    best = _distinct(ranked, count)
    taken = {line["id"] for line, _ in best}
    return {"best": best, "worst": _distinct([row for row in reversed(ranked) if row[1]["id"] not in taken], count)}


def _answers(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    return [(line, answer) for line in lines for answer in line["answers"]]


def _error(answer: Line) -> float:
    return abs((answer["truth"] == "present") - answer["probability"])


def _distinct(ranked: Sequence[tuple[float, Line, Line]], count: int) -> list[tuple[Line, Line]]:
    """The first answers, no image and no class twice as long as there are others."""
    found: list[tuple[Line, Line]] = []
    for _, line, answer in ranked:
        if len(found) < count and all(_differs(line, answer, *one) for one in found):
            found.append((line, answer))
    return found


def _differs(line: Line, answer: Line, other: Line, its: Line) -> bool:
    return line["id"] != other["id"] and answer["class"] != its["class"]


def _case(
    rank: Literal["best", "worst"], line: Line, answer: Line, pipe: Pipeline, rows: Sequence[ManifestRow], config: Any,
    bank: PromptBank, number: int,
) -> CaseResult:  # fmt: skip
    row = next(row for row in rows if row.id == line["id"])
    query = default_query(bank.find(answer["class"]))
    finding = pipe.ask(str(config.manifest.parent / row.image), [query])[0]
    name = f"{FOLDER}/{rank}_{number:02d}.png"
    place = place_of_class(row, bank.find(answer["class"]).label, config.manifest.parent, finding.image.shape)
    picture = render_overlay(finding)
    picture.thumbnail((WIDTH_PX, WIDTH_PX))
    if place is not None and place.mask.any():
        picture = beside(picture, truth_panel(finding, place.mask, picture.height))
    path = Path(config.out) / name
    path.parent.mkdir(exist_ok=True)
    picture.save(path, optimize=True)
    numbers = answer.get("place", {})
    shown = {"dice": "dice_ask", "iou": "iou_ask"}
    return CaseResult(
        rank=rank, id=row.id, class_name=answer["class"], query=query, score=answer["score"],
        probability=answer["probability"], truth=answer["truth"], overlay=name,
        measures={key: numbers[stored] for key, stored in shown.items() if stored in numbers},
    )  # fmt: skip


def truth_panel(finding: Finding, mask: np.ndarray, height_px: int) -> Image.Image:
    """The image with the outline of the truth, of a CT the axial slice that holds most of it.

    Args:
        finding: gives the image and how it is windowed.
        mask: bool, native.
        height_px: of the picture.
    """
    if finding.image.affine is None:
        view, plane = radiograph_view(finding.image), mask
    else:
        axis = ct_view(finding.image, "axial").axis or 0
        index = int(mask.sum(axis=tuple(k for k in range(3) if k != axis)).argmax())
        view, plane = ct_view(finding.image, "axial", index), np.take(mask, index, axis=axis)
    size = fit(view, height_px)
    picture = grey_layer(view.grey(finding.image, window_for(finding.phrase, finding.image)), size).convert("RGB")
    outline = contour(mask_layer(view.turn(plane), size), EDGE_PX)
    picture.paste(Image.new("RGB", size, TRUTH_RGB), mask=outline)
    return picture


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in a row, on black."""
    row = Image.new("RGB", (left.width + right.width, max(left.height, right.height)))
    row.paste(left, (0, 0))
    row.paste(right, (left.width, 0))
    return row
