"""Where is a finding of a sentence, and how large? Side, zone and size in the vocabulary of `Fact`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from radglint.report_assertion import WEAK, Span
from radglint.report_concepts import Mention
from radglint.simulation.entailment import spoken
from radglint.simulation.facts import Fact, Side, Size, Zone

DEVICES = frozenset({"pacemaker", "central line", "endotracheal tube", "chest tube"})
"""Things that are put in: they do not share their side with a disease named beside them."""
_FLAGS = re.IGNORECASE

# Words of place and size in the vocabulary that `spoken` knows; anatomy whose side is not that of a finding taken out.
_REWRITE = tuple(
    (re.compile(rf"\b(?:{pattern})\b", _FLAGS), words)
    for pattern, words in (
        (r"(?:left|right)\s+(?:atri\w+|ventric\w+|heart|main\s?stem|bronch(?:us|i|ial)|lateral\s+decub\w+|greater|side\s+down"
         r"|worse|more|of\s+midline)", " "),
        (r"(?:greater|more|worse)\s+(?:\w+\s+){0,3}?(?:left|right)(?:\s+(?:than|in|versus)\s+(?:the\s+)?(?:left|right))?",
         " bilateral "),
        (r"(?:than\s+)(?:on\s+)?(?:the\s+)?(?:left|right)", " bilateral "),
        (r"(?:upper|high)\s+(?:limits?|normal|svc|abdom\w+|extremit\w+)|(?:upper|mid|middle|lower)\s+(?:svc|thoracic|lumbar"
         r"|cervical|abdom\w+|extremit\w+|mediast\w+)|(?:upper|mid|lower)\s+(?:limits?)|(?:cardiac|heart)\s+apex", " "),
        (r"both\s+(?:the\s+)?(?:pa|ap|frontal|lateral|views?|projections?)", " "),
        ("rul", "right upper"), ("rml", "right middle"), ("rll", "right lower"), ("lul", "left upper"),
        ("lll", "left lower"), (r"lingula\w*", "left mid"), (r"bi-?\s?basilar|bi-?\s?basal", "bilateral lower"),
        (r"bi-?\s?apical", "bilateral upper"), (r"mildly", "mild"), (r"slightly", "slight"), (r"minimally", "minimal"),
        (r"markedly", "marked"), (r"severely|massive(?:ly)?|huge", "severe"), (r"trace", "tiny"),
        (r"left-?sided", "left"), (r"right-?sided", "right"), (r"rt", "right"), (r"lt", "left"),
        (r"mid-?lungs?", "mid lung"),
    )
)  # fmt: skip
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
    return Fact(mention.concept, side, zone, _size(f"{near} {adverbs}"))


def _words(text: str) -> str:
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    return text


def read_side(text: str) -> Side | None:
    """Read the side that a phrase names; "bilateral" where it names both."""
    text = _words(text)
    sides: tuple[Side, ...] = ("left", "right", "bilateral")
    said: set[Side] = {side for side in sides if spoken(Fact("nodule", side=side), text).side}
    return "bilateral" if "bilateral" in said or len(said) > 1 else next(iter(said), None)


def read_zone(text: str) -> Zone | None:
    """Read the height that a phrase names; None where it names several."""
    text = _words(text)
    zones: tuple[Zone, ...] = ("upper", "mid", "lower")
    said: list[Zone] = [zone for zone in zones if spoken(Fact("nodule", zone=zone), text).zone]
    return said[0] if len(said) == 1 else None


def _size(text: str) -> Size | None:
    text = _words(text)
    sizes: tuple[Size, ...] = ("small", "medium", "large")
    said: list[Size] = [size for size in sizes if spoken(Fact("nodule", size=size), text).size]
    return said[0] if len(said) == 1 else None


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
