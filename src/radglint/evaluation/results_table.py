"""Results as a table for the terminal: value [low, high], aligned, the columns of a protocol side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from radglint.evaluation.measure_names import measure
from radglint.evaluation.results import Estimate, ProtocolResult, Results

_MAX_NAME_CHARACTERS = 36


def format_estimate(estimate: Estimate | None, digits: int = 3) -> str:
    """`0.812 [0.790, 0.833]`, without brackets if there is no interval, and `-` if there is no value."""
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def to_terminal_table(results: Results, *, classes: bool = True) -> str:
    """The results as text for a terminal.

    Args:
        results: what was measured.
        classes: also a table of the leading measure per class.

    Returns:
        Lines without a newline at the end: provenance, then for each protocol its means and its classes.
    """
    facts = results.manifest
    lines = [
        f"{results.suite}: model {results.model.name} ({results.model.fingerprint}) on {facts.path}",
        f"{facts.images} images of {facts.patients} patients, manifest {facts.sha256[:12]}, "
        f"unit {results.unit_of_analysis}, seed {results.seed}",
    ]
    for protocol in results.protocols:
        lines += ["", *_protocol_lines(protocol, classes)]
    return "\n".join(lines)


def _protocol_lines(protocol: ProtocolResult, classes: bool) -> list[str]:
    head = f"{protocol.title} - {protocol.label_set}, {protocol.num_classes} classes"
    lines = [plain(head)]
    lines += [plain(f"  {column}: {protocol.how[column]}") for column in protocol.columns]
    lines += align(["mean", *protocol.columns], _mean_rows(protocol))
    if classes and protocol.classes:
        lead = (protocol.measure_names() or protocol.class_measure_names())[:1]
        for name in lead:
            head = [f"{measure(name).title} by class", "n", "positive", *protocol.columns]
            lines += ["", *align(head, _class_rows(protocol, name))]
    lines += [plain(f"  note: {note}") for note in protocol.notes]
    for left in protocol.left_out:
        count = "" if left.count is None else f"{left.count} "
        lines.append(plain(f"  left out: {count}{left.what}: {left.why}"))
    return lines


def _mean_rows(protocol: ProtocolResult) -> list[list[str]]:
    return [
        [measure(name).title, *(format_estimate(protocol.means[column].get(name)) for column in protocol.columns)]
        for name in protocol.measure_names()
    ]


def _class_rows(protocol: ProtocolResult, name: str) -> list[list[str]]:
    return [
        [one.name, str(one.n), str(one.positives)]
        + [format_estimate(one.measures.get(column, {}).get(name)) for column in protocol.columns]
        for one in protocol.classes
    ]


def align(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, two spaces apart.

    Widths count characters as a terminal shows them: wide ones twice, combining ones not at all.
    """
    table = [[_cut(plain(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(_width(row[n]) for row in table) for n in range(len(head))]
    lines = []
    for row in table:
        first = row[0] + " " * (widths[0] - _width(row[0]))
        rest = (" " * (width - _width(cell)) + cell for width, cell in zip(widths[1:], row[1:], strict=True))
        lines.append("  ".join(["", first, *rest]).rstrip())
    return lines


def plain(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp") else letter for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_NAME_CHARACTERS else text[: _MAX_NAME_CHARACTERS - 1] + "\u2026"


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
