"""The sections of a radiology report: FINDINGS, IMPRESSION, INDICATION and the like, found by their headings.

Sections cover the report without gap or overlap, so joining their texts gives the report back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

SectionName = Literal[
    "unlabelled", "findings", "impression", "indication", "comparison", "technique", "examination", "other"
]

STATED: frozenset[SectionName] = frozenset({"unlabelled", "findings", "impression"})
"""Sections whose sentences are about this image; an indication asks, a comparison speaks of another image."""

_HEADINGS: dict[SectionName, tuple[str, ...]] = {
    "findings": (
        r"(?:(?:chest|ct|lung|radiographic|imaging)\s+)?findings?(?:\s*(?:and|/|&)\s*impressions?)?", "observations?",
        "report", "addendum", "description",
    ),
    "impression": (
        r"(?:(?:final|overall)\s+)?impressions?", "conclusions?", "opinion", "summary", "interpretation",
        r"(?:final\s+)?diagnos[ie]s",
    ),
    "indication": (
        r"(?:clinical\s+)?indications?(?:\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study|procedure))?",
        r"(?:(?:brief|clinical|medical|patient|relevant)\s+)?(?:history|information|statement|data|context|question)",
        r"history\s+of\s+present\s+illness", r"reason(?:\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study|this\s+exam"
        r"(?:ination)?|order|visit))?", "symptoms?", "complaints?", "clinical",
    ),
    "comparison": (r"comparisons?(?:\s+(?:stud(?:y|ies)|exams?))?", r"(?:prior|previous)\s+(?:stud(?:y|ies)|exams?)",
                   "compared?"),
    "technique": ("techniques?", "technical\\s+factors", "protocol", "contrast", r"(?:radiation\s+)?dose", "views?",
                  "number\\s+of\\s+views"),
    "examination": (r"exam(?:ination)?(?:\s+type)?", "study", "procedure", "modality", "date", "accession"),
    "other": (
        "recommendations?", "notifications?", "communications?", r"(?:electronically\s+)?signed(?:\s+by)?", "dictated",
        r"attending(?:\s+radiologist)?", "radiologist", r"(?:wet|preliminary)\s+read(?:ing)?", "transcribed(?:\\s+by)?",
        r"ordering\s+physician", "quality", "limitations?", "disclaimer",
    ),
}  # fmt: skip
_ANY = "|".join(words for group in _HEADINGS.values() for words in group)
_CAPITALS = r"(?-i:(?=[^a-z\n]{4,60}\s))"
_SENTENCE_AFTER = (
    r"(?-i:(?=\s+[A-Z\d(_\[])(?!\s+(?!XX)[A-Z]{2,}\b))"
    r"(?!\s+(?:is|are|was|were|has|have|may|of|on|in|for|with|consistent|suggest\w*|compatible)\b)"
)
# A heading stands at the start, on a new line or after a full stop; it ends with a colon or with its line, or it is
# written in capitals before a sentence that is not.
_HEADING = re.compile(
    rf"(?:(?:^|\n)[ \t*#_>-]*|(?<=[.?!;)])[ \t]+|(?<=XXXX)[ \t]+)"
    rf"(?:(?:{_ANY})[ \t*_]*(?::|[ \t][-\u2013\u2014](?=\s))"
    rf"|(?:{_ANY})[ \t*_]*(?=\n|$)"
    rf"|{_CAPITALS}(?:{_ANY}){_SENTENCE_AFTER})",
    re.IGNORECASE,
)
_KIND: dict[SectionName, re.Pattern[str]] = {
    name: re.compile("|".join(words), re.IGNORECASE) for name, words in _HEADINGS.items()
}
_NEXT_PARAGRAPH = re.compile(r"\S[^\n]*(?:\n[^\n]*\S[^\n]*)*(\n[ \t]*\n)\s*(?=\S)")


@dataclass(frozen=True)
class Section:
    """One stretch of a report.

    Attributes:
        name: what it holds; "unlabelled" is text under no heading.
        start: first character of the section, its heading included.
        body: first character after the heading.
        end: one past the last character.
    """

    name: SectionName
    start: int
    body: int
    end: int


def split_sections(report: str) -> tuple[Section, ...]:
    """Cut a report at its headings.

    A paragraph under COMPARISON, TECHNIQUE or EXAMINATION that follows an empty line is taken as unlabelled text if
    the report has no findings section: reports often leave that heading out. Under an indication nothing is.

    Args:
        report: the whole text, any length.

    Returns:
        Sections in order that cover the text; none for an empty text.
    """
    sections = tuple(_headed(report)) if report else ()
    if any(section.name == "findings" for section in sections):
        return sections
    return tuple(part for section in sections for part in _free_paragraphs(report, section))


def _headed(report: str) -> Iterator[Section]:
    """Sections by headings alone; the first is unlabelled unless a heading stands at the start."""
    marks: list[tuple[SectionName, int, int]] = []
    for match in _HEADING.finditer(report):
        marks.append((_kind(match), match.start(), match.end()))
    if not marks or marks[0][1] > 0:
        marks.insert(0, ("unlabelled", 0, 0))
    ends = [start for _, start, _ in marks[1:]] + [len(report)]
    for (name, start, body), end in zip(marks, ends, strict=True):
        yield Section(name, start, body, end)


def _kind(match: re.Match[str]) -> SectionName:
    words = re.sub(r"^[\s*#_>-]+|[\s*_:\u2013\u2014-]+$", "", match[0])
    for name, pattern in _KIND.items():
        if pattern.fullmatch(words):
            return name
    return "other"


def _free_paragraphs(report: str, section: Section) -> Iterator[Section]:
    """The section, cut after its first paragraph where a body without heading may follow."""
    if section.name not in ("comparison", "technique", "examination"):
        yield section
        return
    match = _NEXT_PARAGRAPH.search(report, section.body, section.end)
    cut = match.start(1) if match else section.end
    yield Section(section.name, section.start, section.body, cut)
    if match:
        yield Section("unlabelled", cut, cut, section.end)
