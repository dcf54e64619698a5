"""A free-text radiology report as statements for a contrastive trainer, and the duplicates among them.

Only what a report states of its own image becomes a statement: an indication asks, a comparison speaks of another
image. Two statements that say the same in other words are found here, so that neither becomes a false negative.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radglint.errors import ConfigError, QueryError, ReportError
from radglint.place_words import read_side, read_zone
from radglint.query import parse_query
from radglint.report_reading import Reading, read_sentence
from radglint.report_sections import STATED, Section, SectionName, split_sections
from radglint.report_sentences import split_sentences

Embed = Callable[[Sequence[str]], Any]
"""Texts to unit-length rows `texts embed`: a torch tensor, or anything that `torch.as_tensor` takes."""

_Outline = frozenset[tuple[str | None, str, str | None, str | None]]
_ROWS = 512  # rows of the similarity matrix held at a time


@dataclass(frozen=True)
class Statement:
    """One sentence of a report.

    Attributes:
        text: its words, exactly as in the report, without a list number.
        section: where it stands.
        index: its place among the statements of the report, from 0.
        start: its first character in the report.
        readings: findings that it states, with their assertion; empty where it speaks of something else.
    """

    text: str
    section: SectionName
    index: int
    start: int
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class ReadReport:
    """A report that has been read.

    Attributes:
        text: the report.
        sections: its sections in order; they cover the text.
        statements: the sentences of findings, impression and text under no heading.
    """

    text: str
    sections: tuple[Section, ...]
    statements: tuple[Statement, ...]


def read_report(text: str) -> ReadReport:
    """Read a report: sections, sentences, and what each sentence states.

    Args:
        text: the whole report, with or without headings.

    Returns:
        The report with its statements; none for an empty text.

    Raises:
        ReportError: not text.

    Example:
        >>> report = read_report("INDICATION: rule out pneumonia. FINDINGS: No effusion.")
        >>> [(s.text, s.readings) for s in report.statements]
        [('No effusion.', ((Fact(concept='pleural effusion', side=None, zone=None, size=None), 'absent'),))]
    """
    if not isinstance(text, str):
        raise ReportError(f"a report must be text, got {type(text).__name__}; pass the words of one report")
    sections = split_sections(text)
    statements = [
        Statement(text[start:end], name, index, start, read_sentence(text[start:end]))
        for index, (name, start, end) in enumerate(_stated(text, sections))
    ]
    return ReadReport(text, sections, tuple(statements))


def _stated(text: str, sections: Sequence[Section]) -> Iterator[tuple[SectionName, int, int]]:
    """Spans of the sentences that are about this image."""
    for section in sections:
        if section.name in STATED:
            for start, end in split_sentences(text[section.body : section.end]):
                yield section.name, section.body + start, section.body + end


def same_meaning(statements: Sequence[Statement], embed: Embed | None = None, threshold: float = 0.9) -> list[int]:
    """Find which statements of a batch say the same.

    Statements with the same readings are one group, and so are statements without readings that have the same words.
    With `embed`, groups join where a pair of their texts has a cosine of at least `threshold` and no two statements of
    the joined group contradict each other: other findings, another assertion, or a different side or zone. A side that
    is said and one that is left unsaid do not contradict.

    Args:
        statements: of one report or of many.
        embed: a sentence encoder.
        threshold: the least cosine that joins, above 0 and at most 1.

    Returns:
        One label per statement, numbered from 0 in order of first appearance.

    Raises:
        ConfigError: `threshold` is out of range.
        ReportError: `embed` gives another number of rows, or rows that are not finite and of unit length.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold: expected a cosine above 0 and at most 1, got {threshold}")
    keys: dict[object, int] = {}
    labels = [keys.setdefault(_meaning(statement), len(keys)) for statement in statements]
    if embed is None or len(keys) < 2:
        return labels
    joined = _joined(statements, labels, embed, threshold)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(joined[label], len(numbers)) for label in labels]


def _meaning(statement: Statement) -> object:
    """Readings, or else the words without case and punctuation."""
    return frozenset(statement.readings) or " ".join(re.findall(r"\w+", statement.text.casefold()))


def _joined(statements: Sequence[Statement], labels: Sequence[int], embed: Embed, threshold: float) -> list[int]:
    """The group of each group: most similar pairs first, and only while nothing in a group contradicts."""
    texts = {statement.text: label for statement, label in zip(statements, labels, strict=True)}
    owners = list(texts.values())
    outlines: list[set[_Outline]] = [set() for _ in range(max(labels) + 1)]
    for statement, label in zip(statements, labels, strict=True):
        outlines[label].add(_outline(statement))
    root = list(range(len(outlines)))
    for one, two in _similar_pairs(_embedded(list(texts), embed), threshold):
        a, b = sorted((root[owners[one]], root[owners[two]]))
        if a != b and all(_agree(x, y) for x in outlines[a] for y in outlines[b]):
            outlines[a] |= outlines[b]
            root = [a if r == b else r for r in root]
    return root


def _outline(statement: Statement) -> _Outline:
    """What must not differ between two statements of one meaning."""
    if statement.readings:
        return frozenset((fact.concept, assertion, fact.side, fact.zone) for fact, assertion in statement.readings)
    try:
        assertion = parse_query(statement.text).assertion
    except QueryError:
        assertion = "present"
    return frozenset({(None, assertion, read_side(statement.text), read_zone(statement.text))})


def _agree(one: _Outline, two: _Outline) -> bool:
    """Whether each item of either has a counterpart in the other that it does not contradict."""
    return all(any(_compatible(x, y) for y in two) for x in one) and all(
        any(_compatible(x, y) for x in one) for y in two
    )


def _compatible(one: tuple[str | None, ...], two: tuple[str | None, ...]) -> bool:
    said = all(None in pair or pair[0] == pair[1] for pair in zip(one[2:], two[2:], strict=True))
    return one[:2] == two[:2] and said


def _embedded(texts: Sequence[str], embed: Embed) -> np.ndarray:
    """Embeddings `texts embed`, float32, checked."""
    rows = torch.as_tensor(embed(texts)).detach().float().cpu().numpy()
    if rows.ndim != 2 or len(rows) != len(texts):
        raise ReportError(f"embed: expected {len(texts)} rows for as many texts, got an array of shape {rows.shape}")
    if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3):
        raise ReportError("embed: expected finite rows of unit length; divide each embedding by its norm")
    return rows


def _similar_pairs(rows: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs of rows with a cosine of at least the threshold, most similar first."""
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(rows), _ROWS):
        cosine = rows[start : start + _ROWS] @ rows.T
        for k, column in np.argwhere(cosine >= threshold - 1e-6):
            if column > start + k:
                found.append((-float(cosine[k, column]), start + int(k), int(column)))
    return [(one, two) for _, one, two in sorted(found)]
