"""One self-contained HTML page for looking at answers: no network, no files beside it, all text escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from radglint.display import View, is_oblique
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.page_layers import scale_uri, stack_views, study_layers
from radglint.page_shell import DISCLAIMER, asset, html_document
from radglint.render import overlay_views

_LETTER_PLACES = ("left", "right", "top", "bottom")


def render_page(
    findings: Findings | Sequence[Findings],
    *,
    title: str = "radglint: answers",
    intro: Sequence[tuple[str, str]] = (),
) -> str:
    """The page that `Findings.save` writes as index.html.

    Args:
        findings: the answers on one image, or on several images, shown one below the other.
        title: heading of the page, plain text.
        intro: sections (heading, text) above the images, plain text; line breaks are kept.

    Returns:
        HTML. Nothing in it can load or send anything: pictures are data URIs and a content security policy allows only
        the page's own script and style.
    """
    studies = [findings] if isinstance(findings, Findings) else list(findings)
    sections = "".join(f"<h3>{escape(head)}</h3><p>{escape(text)}</p>" for head, text in intro)
    footer = (
        f"{escape(DISCLAIMER)} Positions: RAS+ counts to the patient's right, front and head; LPS, as in "
        "DICOM, to the left, back and head. Where sides are marked, the patient's right is on the left of the picture."
    )
    body = "\n".join(_study(study) for study in studies)
    return html_document(
        title, f'<div class="intro">{sections}</div>', body, footer, asset("page.css"), asset("page.js")
    )


def _study(findings: Findings) -> str:
    layers = study_layers(findings)
    # "<" is the only character that could end the script block.
    data = json.dumps(layers, allow_nan=False).replace("<", "\\u003c")
    cards = "\n".join(
        _card(f, name, n == 0) for n, (f, name) in enumerate(zip(findings, findings.mask_names, strict=True))
    )
    return (
        f'<section class="study"><h2>{escape(str(findings.image.path))}</h2>\n<div class="bench">\n<div class="viewer">'
        f"{_viewer(findings, layers)}{_tools(layers)}{_legend(layers)}</div>\n"
        f'<div class="cards" role="group" aria-label="Queries">{cards}</div>\n'
        f'<div class="facts">{_image_facts(findings)}{_steps(findings)}{_model(findings)}</div>\n</div>\n'
        f'<script type="application/json">{data}</script></section>'
    )


def _viewer(findings: Findings, layers: dict[str, Any]) -> str:
    """The stack of layers of each view, filled for the first query so that the page also shows without its script."""
    views = stack_views(findings)
    query = layers["queries"][0] if layers["queries"] else None
    at = query["slice"] if query else 0
    window = query["window"] if query else 0
    stack = layers["stack"]
    mask = query["stack"]["mask"][at] if query else ""
    figures = [_figure(findings, views[at], (stack["base"][window][at], stack["unseen"][at], mask))]
    for view, plane in zip(overlay_views(findings[0])[1:], query["planes"], strict=True) if query else ():
        figures.append(_figure(findings, view, (plane["base"][window][0], plane["unseen"][0], plane["mask"][0])))
    kind = "views ct" if len(figures) > 1 else "views"
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _figure(findings: Findings, view: View, sources: tuple[str, str, str]) -> str:
    base, unseen, mask = sources
    tags = ""
    if view.letters is not None:
        oblique = ", oblique" if is_oblique(findings.image) else ""
        places = zip(_LETTER_PLACES, view.letters, strict=True)
        tags = "".join(f'<span class="tag {place}">{letter}</span>' for place, letter in places)
        tags += f'<span class="tag name">{view.name}{oblique}</span><span class="tag where">{view.position}</span>'
    image = '<img class="layer {0}" alt="" {1}>'
    overlays = "".join(
        image.format(kind, f'src="{source}"' if source else "")
        for kind, source in (("unseen", unseen), ("heat", ""), ("mask", mask))
    )
    return (
        f'<figure class="view {view.name}"><img class="base" alt="{view.name}" src="{base}">{overlays}{tags}</figure>'
    )


def _tools(layers: dict[str, Any]) -> str:
    modes = (("mask", "Mask"), ("heat", "Probability"), ("plain", "Image only"))
    buttons = "".join(
        f'<button type="button" data-mode="{mode}" aria-pressed="{str(mode == "mask").lower()}">{label}</button>'
        for mode, label in modes
    )
    parts = [f'<div class="choice" role="group" aria-label="Overlay">{buttons}</div>']
    if len(layers["windows"]) > 1:
        buttons = "".join(
            f'<button type="button" data-window="{n}" aria-pressed="false" title="{escape(label)}">'
            f"{escape(label.split(' window')[0].capitalize())}</button>"
            for n, label in enumerate(layers["windows"])
        )
        parts.append(f'<div class="choice" role="group" aria-label="Grey window">{buttons}</div>')
    parts.append('<label>Opacity <input class="opacity" type="range" min="0" max="100" value="45"></label>')
    last = len(layers["stack"]["position"]) - 1
    if last > 0:
        parts.append(
            f'<label class="long">Slice <input class="slice" type="range" min="0" max="{last}" value="0"></label>'
        )
    return f'<div class="tools">{"".join(parts)}</div>'


def _legend(layers: dict[str, Any]) -> str:
    unseen = '<span><i class="swatch unseen"></i>not seen by the model</span>' if any(layers["stack"]["unseen"]) else ""
    windows = "" if len(layers["windows"]) == 1 else f"<span>{escape('; '.join(layers['windows']))}</span>"
    sides = "<span>sides as stored in the file</span>" if len(layers["windows"]) == 1 else ""
    return (
        f'<div class="scale"><span><i class="swatch"></i>mask</span><span>probability 0 '
        f'<img alt="colour scale from 0 to 1" src="{scale_uri()}"> 1</span>{unseen}{windows}{sides}</div>'
    )


def _card(finding: Finding, mask_name: str, pressed: bool) -> str:
    yes = " yes" if finding.is_marked and finding.present else ""
    chance, level = f"{finding.probability:.2f}", finding.threshold_words
    rows = [("probability", f"{chance}, threshold {level}, score {finding.score:.3f}")]
    rows += [("asked as", finding.assertion), *_place_rows(finding), ("mask file", mask_name)]
    state = str(pressed).lower()
    note = f'<p class="note">{escape(finding.remark)}</p>' if finding.remark else ""
    return (
        f'<article class="card"><div class="top"><button type="button" class="query" aria-pressed="{state}">'
        f'{escape(finding.query)}</button><span class="decision{yes}">{escape(finding.verdict)}</span></div>'
        f"{_bar(finding)}{_definitions(rows)}{note}</article>"
    )


def _place_rows(finding: Finding) -> list[tuple[str, str]]:
    if finding.peak is None:
        return []
    if finding.peak.world_mm is None:
        row, column = finding.peak.index
        return [("size", f"{finding.area_px} px"), ("peak", f"row {row}, column {column}")]
    x, y, z = finding.peak.world_mm
    return [
        ("size", f"{finding.volume_ml:.1f} ml"),
        ("peak RAS+", f"({x:.1f}, {y:.1f}, {z:.1f}) mm"),
        ("peak LPS", f"({-x:.1f}, {-y:.1f}, {z:.1f}) mm"),
    ]


def _bar(finding: Finding) -> str:
    """The probability as a bar with a tick at the threshold."""
    probability = min(1.0, max(0.0, finding.probability)) if finding.probability == finding.probability else 0.0
    colour = "#ff9f1c" if finding.is_marked and finding.present else "#6b7685"
    return (
        f'<svg viewBox="0 0 200 14" preserveAspectRatio="none" role="img" aria-label="probability {probability:.2f}">'
        f'<rect x="0" y="4" width="200" height="6" rx="3" fill="#2a313c"/><rect x="0" y="4" height="6" rx="3" '
        f'width="{200 * probability:.1f}" fill="{colour}"/>'
        f'<rect x="{200 * finding.threshold - 0.5:.1f}" y="0" width="1" height="14" fill="#e6edf3"/></svg>'
    )


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"


def _image_facts(findings: Findings) -> str:
    image = findings.image
    spacing = "unknown" if image.spacing_mm is None else " x ".join(f"{s:.4g}" for s in image.spacing_mm) + " mm"
    axes = "depth x height x width" if image.affine is not None else "height x width"
    low, high = float(image.array.min()), float(image.array.max())
    rows = [
        ("modality", image.modality),
        ("size", f"{' x '.join(map(str, image.shape))} ({axes})"),
        ("spacing", spacing),
        ("orientation", image.orientation or "as stored in the file"),
        ("values", f"{low:.4g} to {high:.4g} {image.value_unit}"),
    ]
    return f'<div class="fact"><h3>Image</h3>{_definitions(rows)}</div>'


def _steps(findings: Findings) -> str:
    steps = findings.to_steps()
    items = "".join(f"<li>{escape(step)}</li>" for step in steps) or "<li>none</li>"
    return f'<div class="fact"><h3>How the image was read</h3><ol>{items}</ol></div>'


def _model(findings: Findings) -> str:
    rows = [("name", findings.model_name), ("fingerprint", findings.model_fingerprint)]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in findings.warnings) or "<li>none</li>"
    return (
        f'<div class="fact"><h3>Model</h3>{_definitions(rows)}</div>'
        f'<div class="fact"><h3>Warnings</h3><ul>{warnings}</ul></div>'
    )
