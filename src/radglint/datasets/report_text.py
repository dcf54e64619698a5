"""The findings and the impression of a whole report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from radglint.report_sections import Section, split_sections

_TITLE = re.compile(r"^\s*(?:final|preliminary|addendum)\s+report\s*:?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ReportParts:
    """A report as a manifest row holds it; `report` only where no section is known apart.

    Attributes:
        findings: section, or the text under no heading of a report that has an impression.
        impression: section.
        report: the whole text, empty if one of the others is not.
    """

    findings: str = ""
    impression: str = ""
    report: str = ""


def report_parts(text: str) -> ReportParts:
    """Cut a report at its headings; several sections of one kind are joined by an empty line."""
    sections = split_sections(text)
    impression = _joined(text, (s for s in sections if s.name == "impression"))
    findings = _joined(text, (s for s in sections if s.name == "findings"))
    if impression and not findings:
        findings = _joined(text, (s for s in sections if s.name == "unlabelled"))
    if findings or impression:
        return ReportParts(findings, impression)
    return ReportParts(report=_TITLE.sub("", text).strip())


def _joined(text: str, sections: Iterable[Section]) -> str:
    bodies = (_TITLE.sub("", text[section.body : section.end]).strip() for section in sections)
    return "\n\n".join(body for body in bodies if body)
