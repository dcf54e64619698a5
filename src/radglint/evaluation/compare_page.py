"""A comparison of two evaluations as text for a terminal and as one HTML page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from radglint.evaluation.compare import LEVEL, Comparison, MeanDifference, PairedDifference
from radglint.evaluation.measure_names import measure
from radglint.evaluation.page_tables import estimate_cell
from radglint.evaluation.results import Estimate, Results
from radglint.evaluation.results_table import align, format_estimate, plain
from radglint.page_shell import DISCLAIMER, asset, html_document
from radglint.writing import write_text


def comparison_text(found: Comparison) -> str:
    """The comparison for a terminal: who, the means of the protocols, the paired tests, notes."""
    lines = [plain(f"{name}: {_who(one)}") for name, one in (("A", found.a), ("B", found.b))]
    for protocol, column in dict.fromkeys((row.protocol, row.column) for row in found.means):
        rows = [row for row in found.means if (row.protocol, row.column) == (protocol, column)]
        head = [f"{protocol}, {column}", "A", "B", "B - A"]
        lines += ["", *align(head, [_mean_cells(row) for row in rows])]
    for name in dict.fromkeys(row.measure for row in found.paired):
        rows = [row for row in found.paired if row.measure == name]
        head = [f"{_title(name)}, paired", "n", "positive", "A", "B", "B - A", "p", "p Holm", "verdict"]
        lines += ["", *align(head, [_paired_cells(row) for row in rows])]
    lines += ["", *(plain(f"note: {note}") for note in (*found.notes, *_method(found)))]
    return "\n".join(lines)


def _who(results: Results) -> str:
    model, data = results.model, results.manifest
    return f"{model.name} ({model.fingerprint}) on {data.path} ({data.sha256[:12]}), {data.images} images"


def _title(name: str) -> str:
    """Title of a measure, with the side that it was measured on."""
    base, _, side = name.partition(", ")
    return measure(base).title + (f", {side}" if side else "")


def _signed(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:+.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _mean_cells(row: MeanDifference) -> list[str]:
    return [measure(row.measure).title, format_estimate(row.a), format_estimate(row.b), _signed(row.difference)]


def _paired_cells(row: PairedDifference) -> list[str]:
    difference = _signed(row.difference)
    if row.p is not None:
        difference += f" [{_signed(row.low)}, {_signed(row.high)}]"
    p = _p(row.p) if row.p_delong is None else f"{_p(row.p)} (DeLong {_p(row.p_delong)})"
    return [row.question, str(row.n), str(row.positives), _number(row.a), _number(row.b), difference, p,
            _p(row.p_holm), row.verdict]  # fmt: skip


def _method(found: Comparison) -> list[str]:
    if not found.paired:
        return []
    tests = sum(row.p_holm is not None for row in found.paired)
    return [
        f"Paired bootstrap: the same {found.patients} patients drawn {found.draws} times for both (seed {found.seed}); "
        f"{LEVEL:.0%} percentile intervals of B - A; p two-sided; Holm's correction over all {tests} tests shown. "
        "A verdict needs a corrected p below 0.05. DeLong's p is shown for an AUROC where each patient has one image."
    ]


def write_comparison(found: Comparison, out: str | os.PathLike[str]) -> Path:
    """Write the comparison as one HTML file.

    Args:
        found: of `compare`.
        out: a file that ends in .html, or an existing folder, where it becomes compare.html.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(out)
    return write_text(path if path.suffix.lower() == ".html" else path / "compare.html", render_comparison(found))


def render_comparison(found: Comparison) -> str:
    """The comparison as HTML: self-contained, the same bytes each time, all text escaped."""
    sections = [_means_section(found), _paired_section(found), _notes_section((*found.notes, *_method(found)))]
    header = f'<div class="facts">{_facts("A", found.a)}{_facts("B", found.b)}</div>'
    style = asset("page.css") + asset("evaluation.css")
    footer = escape(f"{DISCLAIMER} A dash means not defined on this data. Differences are B - A.")
    return html_document("radglint: comparison", header, "\n".join(sections), footer, style, asset("evaluation.js"))


def _facts(name: str, results: Results) -> str:
    model, data = results.model, results.manifest
    rows = [("model", model.name), ("fingerprint", model.fingerprint), ("weights SHA-256", model.weights_sha256),
            ("manifest", data.path), ("SHA-256", data.sha256), ("images", f"{data.images} of {data.patients} patients"),
            ("date", results.created), ("radglint", results.radglint_version)]  # fmt: skip
    shown = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in rows)
    return f'<div class="fact"><h3>{name}</h3><dl>{shown}</dl></div>'


def _means_section(found: Comparison) -> str:
    rows = "".join(
        f'<tr><th scope="row"><span>{escape(row.protocol)}<small>{escape(row.column)}</small></span></th>'
        f'<td class="text">{escape(measure(row.measure).title)}</td>{estimate_cell(row.a)}{estimate_cell(row.b)}'
        f"<td>{_signed(row.difference)}</td></tr>"
        for row in found.means
    )
    return (
        '<section class="block"><h2>Means of the protocols</h2><div class="scroll"><table><thead><tr><th>Protocol</th>'
        '<th class="text">Measure</th><th>A</th><th>B</th><th>B - A</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


_HEADS = (("text", "Class"), ("number", "n"), ("number", "Positive"), ("number", "A"), ("number", "B"),
          ("number", "B - A"), ("number", "p"), ("number", "p Holm"), ("text", "Verdict"))  # fmt: skip


def _paired_section(found: Comparison) -> str:
    tables = ""
    for name in dict.fromkeys(row.measure for row in found.paired):
        rows = [row for row in found.paired if row.measure == name]
        tables += f'<div class="part"><h3>{escape(_title(name))}</h3>{_paired_table(rows)}</div>'
    return f'<section class="block"><h2>The same patients, paired</h2>{tables}</section>' if tables else ""


def _paired_table(rows: Sequence[PairedDifference]) -> str:
    head = "".join(
        f'<th><button type="button" class="sort" data-column="{n}" data-kind="{kind}">{title}</button></th>'
        for n, (kind, title) in enumerate(_HEADS)
    )
    body = "".join(_paired_row(row) for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _paired_row(row: PairedDifference) -> str:
    kind = ""
    if row.verdict in ("A better", "B better"):
        kind = ' class="better"' if row.verdict == "B better" else ' class="worse"'
    counts = "".join(f'<td data-value="{count}">{count}</td>' for count in (row.n, row.positives))
    values = "".join(f'<td data-value="{_key(value)}">{_number(value)}</td>' for value in (row.a, row.b))
    delong = "" if row.p_delong is None else f"<small>DeLong {escape(_p(row.p_delong))}</small>"
    difference = Estimate(value=row.difference, low=row.low, high=row.high)
    return (
        f'<tr><th scope="row" data-value="{escape(row.question)}"><span>{escape(row.question)}</span></th>'
        f"{counts}{values}{estimate_cell(difference, signed=True)}"
        f'<td data-value="{_key(row.p)}">{escape(_p(row.p))}{delong}</td><td data-value="{_key(row.p_holm)}">'
        f'{escape(_p(row.p_holm))}</td><td data-value="{row.verdict}"{kind}>{row.verdict}</td></tr>'
    )


def _key(value: float | None) -> str:
    """What the table sorts by; empty stays last."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def _notes_section(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="block"><h2>Notes</h2><ul class="plain">{items}</ul></section>' if items else ""
