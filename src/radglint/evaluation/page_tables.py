"""Tables of the evaluation page: all text escaped, numbers with their intervals below, heads that sort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from radglint.evaluation.measure_names import measure
from radglint.evaluation.results import Estimate, LeftOut, ProtocolResult, Results

COLUMN_MEANINGS = {
    "published": "as the method's paper does it, with its own thresholds and choices: compare it with printed numbers",
    "honest": "no choice made on the images that are measured: expect this on new images of the same kind",
    "oracle": "threshold chosen on the images that are measured: an upper bound, not a performance",
    "validation": "threshold chosen on other patients, the validation split",
    "fixed": "threshold that the model came with",
}
"""What a column means in one line; a protocol's own sentence (`ProtocolResult.how`) says it exactly."""

_SORT = '<button type="button" class="sort" data-column="{0}" data-kind="{1}">{2}</button>'


def summary_table(results: Results) -> str:
    """One row per protocol: its leading measure in each column."""
    columns = list(dict.fromkeys(column for protocol in results.protocols for column in protocol.columns))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = "".join(_summary_row(protocol, number, columns) for number, protocol in enumerate(results.protocols, 1))
    known = [column for column in columns if column in COLUMN_MEANINGS]
    meanings = "".join(f"<li><b>{escape(column)}</b>: {escape(COLUMN_MEANINGS[column])}</li>" for column in known)
    return (
        f'<div class="scroll"><table class="summary"><thead><tr><th>Protocol</th>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><ul class="plain quiet meanings">{meanings}</ul>'
    )


def _summary_row(protocol: ProtocolResult, number: int, columns: Sequence[str]) -> str:
    lead = next(iter(protocol.measure_names()), "")
    cells = "".join(
        estimate_cell(protocol.means[column].get(lead)) if column in protocol.columns else "<td></td>"
        for column in columns
    )
    what = f"{measure(lead).title}, {classes_of(protocol)}" if lead else classes_of(protocol)
    return (
        f'<tr><th scope="row"><span><a href="#protocol-{number}">{escape(protocol.title)}</a>'
        f"<small>{escape(what)}</small></span></th>{cells}</tr>"
    )


def classes_of(protocol: ProtocolResult) -> str:
    """The label set with its number of classes, which is said only once where the name says it already."""
    if str(protocol.num_classes) in protocol.label_set.split():
        return protocol.label_set
    return f"{protocol.label_set} ({protocol.num_classes} classes)"


def means_table(protocol: ProtocolResult) -> str:
    """One row per measure, a column per form of the protocol; above it a sentence on how each was done."""
    head = "".join(f"<th>{_column(column, number)}</th>" for number, column in enumerate(protocol.columns))
    ways = "".join(
        f"<li>{_column(column, number)}: {escape(protocol.how[column])}</li>"
        for number, column in enumerate(protocol.columns)
    )
    rows = "".join(
        f'<tr><th scope="row"><span>{escape(measure(name).title)}<small>{escape(measure(name).meaning)}</small></span>'
        "</th>" + "".join(estimate_cell(protocol.means[column].get(name)) for column in protocol.columns) + "</tr>"
        for name in protocol.measure_names()
    )
    return (
        f'<ul class="plain ways">{ways}</ul><div class="scroll"><table class="means"><thead><tr><th>'
        f"{escape(_capital(protocol.average))}</th>{head}</tr>"
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def class_table(protocol: ProtocolResult) -> str:
    """One row per class, every measure in every column, sortable; the mean is the last row."""
    names = protocol.class_measure_names()
    columns = protocol.columns
    groups = "".join(f'<th class="group" colspan="{len(columns)}">{escape(measure(n).title)}</th>' for n in names)
    at, heads = 3, ""
    for _ in names:
        for number, column in enumerate(columns):
            first = "" if number else ' class="first"'
            heads += f"<th{first}>{_SORT.format(at, 'number', _column(column, number))}</th>"
            at += 1
    rows = "".join(
        f'<tr><th scope="row" data-value="{escape(one.name)}"><span>{escape(one.name)}{_label(one.name, one.label)}'
        "</span></th>"
        f'<td data-value="{one.n}">{one.n}</td><td data-value="{one.positives}">{one.positives}</td>'
        + _cells([one.measures.get(column, {}).get(name) for name in names for column in columns], len(columns))
        + "</tr>"
        for one in protocol.classes
    )
    means = _cells([protocol.means[column].get(name) for name in names for column in columns], len(columns))
    own = [_SORT.format(n, kind, text) for n, kind, text in _OWN_HEADS]
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr><th rowspan="2">{own[0]}</th><th rowspan="2">{own[1]}'
        f'</th><th rowspan="2">{own[2]}</th>{groups}</tr><tr>{heads}</tr></thead><tbody>{rows}'
        f'<tr class="mean"><th scope="row"><span>mean</span></th><td></td><td></td>{means}</tr></tbody></table></div>'
    )


_OWN_HEADS = ((0, "text", "Class"), (1, "number", "n"), (2, "number", "Positive"))


def _cells(estimates: Sequence[Estimate | None], group: int) -> str:
    return "".join(estimate_cell(one, first=number % group == 0) for number, one in enumerate(estimates))


def estimate_cell(one: Estimate | None, *, first: bool = False, signed: bool = False) -> str:
    """A cell: the value, and its interval in small print; a dash where nothing is defined.

    Args:
        one: what to show.
        first: draw a line to the left.
        signed: a difference: the sign is always shown.
    """
    border = ' class="first"' if first else ""
    if one is None or one.value is None:
        return f'<td{border} data-value="">-</td>'
    form = "+.3f" if signed else ".3f"
    span = "" if one.low is None or one.high is None else f"<small>{_span(one.low, one.high, form)}</small>"
    return f'<td{border} data-value="{one.value!r}">{one.value:{form}}{span}</td>'


def _span(low: float, high: float, form: str) -> str:
    """An en dash between the ends, or "to" where it could be read as a minus."""
    between = " to " if low < 0 or form.startswith("+") else "\u2013"
    return f"{low:{form}}{between}{high:{form}}"


def styles_table(protocol: ProtocolResult, name: str) -> str:
    """Prompt styles with an example of their wording."""
    rows = "".join(
        f'<tr><th scope="row"><span>{escape(style.name)}</span></th><td class="text">{escape(style.example)}</td>'
        f"{estimate_cell(style.measures.get(name))}</tr>"
        for style in protocol.styles
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Style</th><th class="text">Asked as, for example</th>'
        f"<th>{escape(measure(name).title)}</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def left_out_list(left: Sequence[LeftOut]) -> str:
    """What was not measured and why, as a list."""
    items = "".join(
        f"<li>{'' if one.count is None else f'{one.count} '}{escape(one.what)}: {escape(one.why)}</li>" for one in left
    )
    return f'<ul class="plain">{items}</ul>'


def _column(column: str, number: int) -> str:
    return f'<span class="column c{number % 4 + 1}">{escape(column)}</span>'


def _label(name: str, label: str) -> str:
    return f"<small>{escape(label)}</small>" if label and label.lower() != name.lower() else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
