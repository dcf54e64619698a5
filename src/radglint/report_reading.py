"""What a report sentence says: findings with side, zone and size, each present, absent or uncertain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from radglint.place_words import read_side
from radglint.query import MAX_QUERY_CHARACTERS, Assertion
from radglint.report_assertion import BESIDE, DOUBT, WEAK, assert_mentions, split_clauses
from radglint.report_concepts import Mention, find_mentions
from radglint.report_normal import find_exclusions
from radglint.report_place import DEVICES, at_place_of, place_mentions
from radglint.simulation.facts import Fact

Reading = tuple[Fact, Assertion]

NO_SIDE = frozenset({"cardiomegaly", "endotracheal tube", "hiatal hernia"})
"""Findings in the midline: words for a side near them belong to something else."""
_RANK: dict[Assertion, int] = {"absent": 0, "uncertain": 1, "present": 2}
_EXPLAIN = re.compile(rf"\b(?:(?P<verb>may|might|could|represent\w*|reflect\w*|suggest\w*)\b|{WEAK})", re.IGNORECASE)


@dataclass
class _Found:
    """A mention while it is being read."""

    mention: Mention
    assertion: Assertion
    fact: Fact
    is_dropped: bool = False


@lru_cache(maxsize=65536)
def read_sentence(sentence: str) -> tuple[Reading, ...]:
    """Read one sentence.

    Words for how a thing looks ("opacity", "blunting") give way to what the sentence says it is: "opacity consistent
    with atelectasis" reads as atelectasis alone, "opacity, may be artifact" as an uncertain opacity. Of readings that
    differ in assertion only, present outranks uncertain, and uncertain outranks absent.

    Args:
        sentence: one sentence; longer than 2,000 characters, nothing is read.

    Returns:
        Findings in the order of the text and then those that a normal statement excludes, with their assertion.
        An absence "on both sides" is stored without a side.
    """
    if len(sentence) > MAX_QUERY_CHARACTERS:
        return ()
    found = _read_mentions(sentence)
    _explain(sentence, found)
    stated: list[Reading] = [(f.fact, f.assertion) for f in found if not f.is_dropped]
    return _settled([*stated, *_normal(sentence)])


def _read_mentions(sentence: str) -> list[_Found]:
    mentions = find_mentions(sentence)
    clauses = split_clauses(sentence, mentions) if mentions else []
    asserted = [
        list(assert_mentions(sentence, (low, high), [m for m in mentions if low <= m.start < high]))
        for low, high in clauses
    ]
    facts = place_mentions(sentence, clauses, [[m for m, _ in clause] for clause in asserted])
    pairs = zip([a for clause in asserted for a in clause], [f for clause in facts for f in clause], strict=True)
    return [_Found(mention, assertion, fact) for (mention, assertion), fact in pairs]


def _explain(sentence: str, found: Sequence[_Found]) -> None:
    """Let a sign give way to its explanation further on in the sentence, which is at the same place."""
    for k, sign in enumerate(found):
        if not sign.mention.is_sign or sign.assertion == "absent":
            continue
        start = _explanation(sentence, sign.mention.end)
        after = [f for f in found[k + 1 :] if f.assertion != "absent"]
        named = [f for f in found[k + 1 :] if f.mention.concept == sign.mention.concept and not f.mention.is_sign]
        if named or any(f.mention.start >= start for f in after):
            sign.is_dropped = True
            _hand_on(sign.fact, [*named, *after])
        elif start < len(sentence) and all(f.mention.start < start for f in found[k + 1 :]):
            sign.assertion, sign.is_dropped = "uncertain", not DOUBT.search(sentence, start)


def _explanation(sentence: str, start: int) -> int:
    """Where the sentence begins to explain what was seen; its length if it does not."""
    weak = _EXPLAIN.finditer(sentence, start)
    return next((m.start() for m in weak if m["verb"] or not BESIDE.search(sentence[: m.start()])), len(sentence))


def _hand_on(place: Fact, targets: Iterable[_Found]) -> None:
    for target in targets:
        if target.mention.concept not in DEVICES:
            target.fact = at_place_of(target.fact, place)


def _normal(sentence: str) -> Iterator[Reading]:
    for exclusion in find_exclusions(sentence):
        side = read_side(exclusion.words) if exclusion.concepts[0] not in NO_SIDE else None
        for concept in exclusion.concepts:
            yield Fact(concept, side), exclusion.assertion


def _settled(stated: Iterable[Reading]) -> tuple[Reading, ...]:
    """One assertion per concept and side; an absence beside a presence of the same concept is of something else."""
    best: dict[tuple[str, str | None], Reading] = {}
    for raw, assertion in stated:
        fact = replace(raw, side=None) if raw.concept in NO_SIDE else raw
        fact = replace(fact, side=None) if assertion == "absent" and fact.side == "bilateral" else fact
        key = (fact.concept, fact.side)
        if key not in best or _RANK[assertion] > _RANK[best[key][1]]:
            best[key] = (fact, assertion)
    kept = [r for r in best.values() if not _is_said_better(r, best.values())]
    return tuple(kept)


def _is_said_better(reading: Reading, others: Iterable[Reading]) -> bool:
    """Without a side where the same is said with one, or absent where it is said to be present."""
    fact, assertion = reading
    ranks = [(_RANK[a], f.side is not None) for f, a in others if f.concept == fact.concept and (f, a) != reading]
    rank = _RANK[assertion]
    return fact.side is None and any(other > rank or (other == rank and sided) for other, sided in ranks)
