"""The page of an evaluation: one HTML file with everything in it, to be sent to a reviewer as it is."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from radglint.errors import InputError
from radglint.evaluation.figures import (
    forest_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
    styles_figure,
    sweep_figure,
)
from radglint.evaluation.measure_names import measure
from radglint.evaluation.page_tables import (
    class_table,
    classes_of,
    left_out_list,
    means_table,
    styles_table,
    summary_table,
)
from radglint.evaluation.results import CaseResult, ClassResult, ProtocolResult, Results
from radglint.evaluation.results_table import format_estimate
from radglint.page_shell import DISCLAIMER, asset, html_document
from radglint.writing import write_text

Overlays = Mapping[str, bytes] | str | os.PathLike[str]
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def write_page(results: Results, out: str | os.PathLike[str], overlays: Overlays | None = None) -> Path:
    """Write the page.

    Args:
        results: what was measured.
        out: a file that ends in .html, or an existing folder, where it becomes index.html.
        overlays: pictures of the cases: the folder that their names are relative to, or name to PNG or JPEG bytes.

    Returns:
        The file written. The same arguments give the same bytes.

    Raises:
        InputError: a picture is not below the folder, or is neither PNG nor JPEG.
        OutputError: the file cannot be written.
    """
    path = Path(out)
    return write_text(path if path.suffix.lower() == ".html" else path / "index.html", render_page(results, overlays))


def render_page(results: Results, overlays: Overlays | None = None) -> str:
    """The page as HTML; see `write_page`. A picture that is missing is named in its place."""
    sections = [_protocol(one, number, overlays) for number, one in enumerate(results.protocols, 1)]
    body = "\n".join([_summary(results), *sections, _remarks(results)])
    footer = f"{escape(DISCLAIMER)} {_how_to_read(results)}"
    style = asset("page.css") + asset("evaluation.css")
    title = f"radglint: evaluation, {results.suite}"
    return html_document(title, _provenance(results), body, footer, style, asset("evaluation.js"))


def _how_to_read(results: Results) -> str:
    intervals = f" Intervals: {results.resampled}." if results.resampled else ""
    return escape(f"A dash means not defined on this data. n counts one per {results.unit_of_analysis}.{intervals}")


def _provenance(results: Results) -> str:
    model, data = results.model, results.manifest
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.versions.items()))
    blocks = [
        ("Model", [("name", model.name), ("fingerprint", model.fingerprint),
                   ("weights SHA-256", model.weights_sha256)]),
        ("Data", [("manifest", data.path), ("SHA-256", data.sha256), ("images", _counts(results)),
                  ("data set", data.dataset), ("licence", data.licence)]),
        ("Run", [("date", results.created), ("unit of analysis", results.unit_of_analysis), ("seed", str(results.seed)),
                 ("command", results.command), ("radglint", results.radglint_version), ("versions", versions)]),
    ]  # fmt: skip
    facts = "".join(f'<div class="fact"><h3>{head}</h3>{_definitions(rows)}</div>' for head, rows in blocks)
    return f'<div class="facts">{facts}</div>'


def _counts(results: Results) -> str:
    data = results.manifest
    return f"{data.images} of {data.patients} patients ({data.rows} rows)"


def _definitions(rows: Sequence[tuple[str, str]]) -> str:
    mono = ("fingerprint", "weights SHA-256", "SHA-256", "command")
    shown = [(head, text, ' class="mono"' if head in mono else "") for head, text in rows if text]
    return "<dl>" + "".join(f"<dt>{escape(h)}</dt><dd{m}>{escape(t)}</dd>" for h, t, m in shown) + "</dl>"


def _summary(results: Results) -> str:
    links = "".join(
        f'<li><a href="#protocol-{number}">{escape(one.title)}</a></li>'
        for number, one in enumerate(results.protocols, 1)
    )
    contents = f'<ul class="contents">{links}</ul>' if len(results.protocols) > 3 else ""
    return f'<section class="block"><h2>Summary</h2>{summary_table(results)}{contents}</section>'


def _protocol(one: ProtocolResult, number: int, overlays: Overlays | None) -> str:
    lead = next(iter(one.measure_names()), "")
    about = f"{classes_of(one)}."
    source = f" Source: {one.citation}" if one.citation else ""
    parts = [("", means_table(one) + _overview(one, lead))]
    parts.append(("Classes", class_table(one) if one.classes else ""))
    parts.append(("Curves", _curves(one, lead)))
    parts += [(f"{rank.capitalize()} cases", _cases(one, rank, overlays)) for rank in ("best", "worst")]
    parts.append(("Notes", _list(one.notes)))
    parts.append(("Left out", left_out_list(one.left_out) if one.left_out else ""))
    return (
        f'<section class="block protocol" id="protocol-{number}"><h2>{escape(one.title)}</h2>'
        f'<p class="lede">{escape(about + source)}</p>{"".join(_part(head, text) for head, text in parts)}</section>'
    )


def _part(head: str, content: str) -> str:
    if not content:
        return ""
    return f'<div class="part">{f"<h3>{escape(head)}</h3>" if head else ""}{content}</div>'


def _overview(one: ProtocolResult, lead: str) -> str:
    """The leading measure by class and by way of asking, side by side, and what the ways of asking are."""
    title = measure(lead).title
    plots = [(f"{title} by class", forest_figure(one, lead)), (f"{title} by way of asking", styles_figure(one, lead))]
    shown = "".join(f'<figure class="wide"><figcaption>{escape(h)}</figcaption>{p}</figure>' for h, p in plots if p)
    ways = ""
    if one.styles:
        ways = f'<details class="fold"><summary>Ways of asking</summary>{styles_table(one, lead)}</details>'
    return (f'<div class="overview">{shown}</div>' if shown else "") + ways


def _curves(one: ProtocolResult, lead: str) -> str:
    """A fold per class with its plots; the first is open."""
    folds, is_open = "", " open"
    for each in one.classes:
        plots = _plots(each)
        if plots:
            folds += (
                f'<details class="curves"{is_open}><summary>{_class_line(one, each, lead)}</summary>{plots}</details>'
            )
            is_open = ""
    return folds


def _class_line(one: ProtocolResult, each: ClassResult, lead: str) -> str:
    column = one.columns[-1]
    value = format_estimate(each.measures.get(column, {}).get(lead))
    facts = f"{measure(lead).title} {value} ({column})" if lead else ""
    return f"<b>{escape(each.name)}</b><span>{escape(facts)}</span><span>{each.positives} of {each.n} positive</span>"


def _plots(each: ClassResult) -> str:
    plots = (
        ("ROC", roc_figure(each)), ("Precision and recall", pr_figure(each)),
        ("Reliability", reliability_figure(each)), ("Threshold sweep", sweep_figure(each)),
    )  # fmt: skip
    shown = "".join(f"<figure><figcaption>{head}</figcaption>{plot}</figure>" for head, plot in plots if plot)
    return f'<div class="plots">{shown}</div>' if shown else ""


def _cases(one: ProtocolResult, rank: str, overlays: Overlays | None) -> str:
    figures = "".join(_case(case, overlays) for case in one.cases if case.rank == rank)
    return f'<div class="cases-grid">{figures}</div>' if figures else ""


def _case(case: CaseResult, overlays: Overlays | None) -> str:
    numbers = [("score", case.score), ("probability", case.probability)]
    rows = [("case", case.id), ("class", case.class_name), ("truth", case.truth)]
    rows += [(name, f"{value:.3f}") for name, value in numbers if value is not None]
    rows += [(measure(k).title, "-" if v is None else f"{v:.3f}") for k, v in case.measures.items()]
    if case.note:
        rows.append(("note", case.note))
    caption = f"<figcaption><b>{escape(case.query)}</b>{_definitions(rows)}</figcaption>"
    return f'<figure class="case">{_picture(case, overlays)}{caption}</figure>'


def _picture(case: CaseResult, overlays: Overlays | None) -> str:
    if not case.overlay:
        return '<div class="missing">no picture</div>'
    source = case.overlay if case.overlay.startswith("data:image/") else _data_uri(case.overlay, overlays)
    if not source:
        return f'<div class="missing">picture not found: {escape(case.overlay)}</div>'
    return f'<img alt="{escape(f"{case.query} on {case.id}")}" src="{escape(source)}" loading="lazy">'


def _data_uri(name: str, overlays: Overlays | None) -> str:
    content = overlays.get(name) if isinstance(overlays, Mapping) else _read(name, overlays)
    if content is None:
        return ""
    if not content.startswith((_PNG, _JPEG)):
        raise InputError(f"overlay {name}: expected a PNG or JPEG picture; write the overlays again")
    kind = "png" if content.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read(name: str, folder: str | os.PathLike[str] | None) -> bytes | None:
    """A picture below the folder, None if it is not there."""
    if folder is None:
        return None
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"overlay {name}: expected a file below {root}; give names relative to it")
    try:
        return path.read_bytes()
    except OSError:
        return None


def _remarks(results: Results) -> str:
    parts = _part("Notes", _list(results.notes))
    parts += _part("Left out of the whole run", left_out_list(results.left_out) if results.left_out else "")
    return f'<section class="block"><h2>About this run</h2>{parts}</section>' if parts else ""


def _list(lines: Sequence[str]) -> str:
    return f'<ul class="plain">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""
