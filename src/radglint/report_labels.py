"""Sentences of a batch of reports, and which of them hold for which image.

A sentence that says the same as one of another image's report is a positive of that image too, whatever its words.
Where a report leaves it open (a look-alike, an uncertain finding, an absence that it does not mention), the pair is
undecided and stays out of the loss. A finding that a report does not mention counts as not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from radglint.report_reading import Reading
from radglint.reports import Embed, Statement, read_report, same_meaning
from radglint.simulation.entailment import Verdict, holds_for
from radglint.simulation.facts import Fact

_STRENGTH = ("present", "uncertain", "absent")


@dataclass(frozen=True)
class LabelledSentences:
    """Distinct sentences of a batch.

    Attributes:
        statements: one per distinct text.
        positives: `texts batch`, bool.
        negatives: `texts batch`, bool; a pair in neither is undecided.
        placed: `texts`, bool: False for a sentence that only denies, which has no place in the image.
        reports: of each image, all its statements.
    """

    statements: tuple[Statement, ...]
    positives: torch.Tensor
    negatives: torch.Tensor
    placed: torch.Tensor
    reports: tuple[tuple[Statement, ...], ...]

    @property
    def texts(self) -> list[str]:
        """The sentences."""
        return [statement.text for statement in self.statements]


@lru_cache(maxsize=65536)
def statements_of(report: str) -> tuple[Statement, ...]:
    """All statements of a report; read once."""
    return read_report(report).statements


def said(statement: Statement) -> str:
    """What a sentence states at most: present, uncertain, absent, or other where it names no known finding."""
    assertions = {assertion for _, assertion in statement.readings}
    return next((strength for strength in _STRENGTH if strength in assertions), "other")


def draw_sentences(
    reports: Sequence[str], kinds: Sequence[str], per_image: int, rng: np.random.Generator
) -> LabelledSentences:
    """Draw sentences of every report and label them against every image.

    Args:
        reports: of the whole batch.
        kinds: which sentences are drawn, see `said`.
        per_image: at most so many of each report.
        rng: the choice.
    """
    read = tuple(statements_of(report) for report in reports)
    chosen: dict[str, Statement] = {}
    for statements in read:
        options = [statement for statement in statements if said(statement) in kinds]
        for pick in sorted(rng.permutation(len(options))[:per_image]):
            chosen.setdefault(options[pick].text, options[pick])
    return _labelled(tuple(chosen.values()), read)


def _labelled(statements: tuple[Statement, ...], reports: tuple[tuple[Statement, ...], ...]) -> LabelledSentences:
    same = _said_in(statements, reports, None, 1.0)
    rows: dict[object, list[Verdict]] = {}
    readings = [tuple(r for s in statements_ for r in s.readings) for statements_ in reports]
    for statement in statements:
        if statement.readings not in rows:
            rows[statement.readings] = [_verdict(statement.readings, of_image) for of_image in readings]
    verdicts = [rows[statement.readings] for statement in statements]
    shape = (len(statements), len(reports))
    holds = torch.tensor([[v == "holds" for v in row] for row in verdicts], dtype=torch.bool).reshape(shape)
    fails = torch.tensor([[v == "fails" for v in row] for row in verdicts], dtype=torch.bool).reshape(shape)
    placed = torch.tensor([said(statement) != "absent" for statement in statements], dtype=torch.bool)
    return LabelledSentences(statements, holds | same, fails & ~same, placed, reports)


def join_duplicates(sentences: LabelledSentences, embed: Embed, cosine: float) -> LabelledSentences:
    """Also count what says the same in the eyes of a sentence encoder (see `same_meaning`).

    Args:
        sentences: of one batch.
        embed: the encoder; called for the distinct texts of all reports.
        cosine: the least that joins.
    """
    same = _said_in(sentences.statements, sentences.reports, embed, cosine)
    return LabelledSentences(
        sentences.statements, sentences.positives | same, sentences.negatives & ~same, sentences.placed,
        sentences.reports,
    )  # fmt: skip


def _said_in(
    statements: Sequence[Statement], reports: Sequence[Sequence[Statement]], embed: Embed | None, cosine: float
) -> torch.Tensor:
    """`texts batch`: the report has a sentence of the same meaning."""
    flat = [*statements, *(s for report in reports for s in report)]
    labels = same_meaning(flat, embed, cosine)
    held, start = [], len(statements)
    for report in reports:
        held.append(set(labels[start : start + len(report)]))
        start += len(report)
    rows = [[label in meanings for meanings in held] for label in labels[: len(statements)]]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(statements), len(reports))


def _verdict(readings: Sequence[Reading], image: Sequence[Reading]) -> Verdict:
    """Whether all that a sentence states holds for the image of a report with these readings."""
    if not readings:
        return "fails"  # words that name no finding: its own report has them, see `_said_in`
    verdicts = {_reading_verdict(reading, image) for reading in readings}
    return "fails" if "fails" in verdicts else "unknown" if "unknown" in verdicts else "holds"


def presence_verdicts(concept: str, reports: Sequence[str]) -> list[Verdict]:
    """Whether each report says that a finding is there; an uncertain one is unknown, one not mentioned fails.

    Args:
        concept: a known finding.
        reports: whole texts.
    """
    reading: Reading = (Fact(concept), "present")
    read = [[r for statement in statements_of(report) for r in statement.readings] for report in reports]
    return [_reading_verdict(reading, image) for image in read]


def _reading_verdict(reading: Reading, image: Sequence[Reading]) -> Verdict:
    fact, assertion = reading
    present = [other for other, how in image if how == "present"]
    verdict = holds_for(fact, present)
    doubtful = any(other.concept == fact.concept for other, how in image if how == "uncertain")
    if assertion == "present":
        return "unknown" if verdict == "fails" and doubtful else verdict
    if assertion == "uncertain":
        return "fails" if verdict == "fails" and not doubtful else "unknown"
    if verdict == "holds":
        return "fails"
    denied = any(other.concept == fact.concept and other.side in (None, fact.side) for other, how in image
                 if how == "absent")  # fmt: skip
    return "holds" if denied and verdict == "fails" and not doubtful else "unknown"
