"""Where is a finding of a sentence, and how large? Side, zone and size in the vocabulary of `Fact`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from radglint.place_words import read_side, read_size, read_zone
from radglint.report_assertion import WEAK, Span
from radglint.report_concepts import Mention
from radglint.simulation.facts import Fact

DEVICES = frozenset({"pacemaker", "central line", "endotracheal tube", "chest tube"})
"""Things that are put in: they do not share their side with a disease named beside them."""
_FLAGS = re.IGNORECASE

_ADVERB = re.compile(r"\b(?:mild|slight|minimal|moderate|marked|severe)ly\b|\bmoderate\b", _FLAGS)
_JOIN = re.compile(rf",|/|;|\b(?:and|or|with|without)\b|\b{WEAK}", _FLAGS)
_SHARE = re.compile(r"^[\s,]*(?:,|/|and/or|and|or|versus|vs\.?|with)(?:[\s,]+[\w-]+){0,3}\s*$", _FLAGS)
_SIDED_LUNG = re.compile(
    r"\b(?:left|right)\s+(?:\w+\s+)?(?:lungs?|hemithorax|chest|side|base|apex|lobe)\b[^,;]*$", _FLAGS
)


def place_mentions(sentence: str, clauses: Sequence[Span], mentions: Sequence[Sequence[Mention]]) -> list[list[Fact]]:
    """Give every finding its side, zone and size.

    Args:
        sentence: one sentence.
        clauses: its clauses.
        mentions: the findings of each clause, in order.

    Returns:
        One fact per mention, clause by clause; None attributes are unsaid.
    """
    placed = []
    for number, (_, end) in enumerate(clauses):
        inside, facts = mentions[number], []
        for k, item in enumerate(inside):
            low = inside[k - 1].end if k else _reach(sentence, clauses, mentions, number)
            high = inside[k + 1].start if k + 1 < len(inside) else end
            facts.append(_own_place(sentence, item, (low, high), is_first=k == 0, is_last=k + 1 == len(inside)))
        placed.append(_shared(sentence, inside, facts))
    return placed


def _reach(sentence: str, clauses: Sequence[Span], mentions: Sequence[Sequence[Mention]], number: int) -> int:
    """Where the first mention's place may begin: "the left lung shows | no nodule" reaches back."""
    start = clauses[number][0]
    before = (
        _SIDED_LUNG.search(sentence, clauses[number - 1][0], start) if number and not mentions[number - 1] else None
    )
    return before.start() if before else start


def _own_place(sentence: str, mention: Mention, reach: tuple[int, int], *, is_first: bool, is_last: bool) -> Fact:
    """Side and zone from the words before a mention, within it, or else after it."""
    before, after = sentence[reach[0] : mention.start], sentence[mention.end : reach[1]]
    if not is_first:
        joins = list(_JOIN.finditer(before))
        before = before[joins[-1].end() :] if joins else " ".join(before.split()[-3:])
    if not is_last:
        joins = list(_JOIN.finditer(after))
        after = after[: joins[-1].start()] if joins else after
    words = sentence[mention.start : mention.end]
    near = " ".join(before.split()[-5:])
    adverbs = " ".join(_ADVERB.findall(words))
    first = f"{before} {words}"
    side, zone = read_side(first) or read_side(after), read_zone(first) or read_zone(after)
    return Fact(mention.concept, side, zone, read_size(f"{near} {adverbs}"))


def _shared(sentence: str, mentions: Sequence[Mention], facts: list[Fact]) -> list[Fact]:
    """Side and zone that neighbours have in common: "left basilar atelectasis and effusion"."""
    pairs = list(pairwise(range(len(facts))))
    for source, target in [*pairs, *((b, a) for a, b in reversed(pairs))]:
        one, two = sorted((mentions[source], mentions[target]), key=lambda m: m.start)
        kinds = {one.concept in DEVICES, two.concept in DEVICES}
        if len(kinds) == 1 and _SHARE.match(sentence[one.end : two.start]):
            facts[target] = at_place_of(facts[target], facts[source])
    return facts


def at_place_of(fact: Fact, other: Fact) -> Fact:
    """Put a fact without a side where another one is.

    Args:
        fact: what may lack a side.
        other: where it then is.

    Returns:
        The fact with the other's side, and with its zone unless it has one; unchanged if it has a side.
    """
    return fact if fact.side else replace(fact, side=other.side, zone=fact.zone or (other.zone if other.side else None))
