"""What a sentence really says, and for which images it holds: the positives of the contrastive loss.

Two sentences about the same thing in other words are found equal here by meaning, so that they never become
false negatives of each other; pairs that cannot be decided are left out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from radglint.place_words import SIDE_WORDS, SIZE_WORDS, ZONE_WORDS, said
from radglint.simulation.facts import Fact

Verdict = Literal["holds", "fails", "unknown"]

_LOOK_ALIKE = (
    frozenset({"nodule", "mass", "calcified nodule"}),
    frozenset({"consolidation", "ground-glass opacity", "atelectasis", "mass"}),
    frozenset({"interstitial pattern", "ground-glass opacity"}),
    frozenset({"atelectasis", "pleural effusion"}),
)


def spoken(fact: Fact, sentence: str) -> Fact:
    """Keep only what the sentence says of a fact: `write` may leave side, zone or size out.

    Args:
        fact: what the image shows.
        sentence: a sentence written for it.

    Returns:
        The fact with the unsaid attributes set to None.
    """
    return replace(
        fact,
        side=fact.side if fact.side in said(sentence, SIDE_WORDS) else None,
        zone=fact.zone if fact.zone in said(sentence, ZONE_WORDS) else None,
        size=fact.size if fact.size in said(sentence, SIZE_WORDS) else None,
    )


def holds_for(statement: Fact, facts: Sequence[Fact], hidden: Sequence[Fact] = ()) -> Verdict:
    """Tell whether a statement holds for an image with these facts.

    Args:
        statement: what a sentence says; None attributes are unsaid.
        facts: all findings of the image.
        hidden: findings that the patient has and this image does not show.

    Returns:
        "holds", "fails", or "unknown" when a look-alike finding, another size or an unknown side makes it undecided, or
        a hidden finding would decide it otherwise.
    """
    if hidden:
        found = holds_for(statement, facts)
        return found if holds_for(statement, [*facts, *hidden]) == found else "unknown"
    verdicts = {_compare(statement, fact) for fact in facts}
    if statement.side == "bilateral" and {f.side for f in facts if f.concept == statement.concept} >= {"left", "right"}:
        verdicts.add("unknown")
    for verdict in ("holds", "unknown"):
        if verdict in verdicts:
            return verdict
    return "fails"


def _compare(statement: Fact, fact: Fact) -> Verdict:
    if statement.concept != fact.concept:
        alike = any({statement.concept, fact.concept} <= group for group in _LOOK_ALIKE)
        return "unknown" if alike else "fails"
    side = _side_verdict(statement.side, fact.side)
    if side != "holds":
        return side
    if statement.zone is not None and statement.zone != fact.zone:
        return "fails" if {statement.zone, fact.zone} == {"upper", "lower"} else "unknown"
    return "holds" if statement.size in (None, fact.size) else "unknown"


def _side_verdict(said: str | None, true: str | None) -> Verdict:
    if said is None or said == true or (true == "bilateral" and said is not None):
        return "holds"
    return "unknown" if true is None or said == "bilateral" else "fails"
