"""What a report sentence says: findings with side, zone and size, and whether each is present, absent or uncertain.

A sentence is cut into clauses where a negation begins or ends, and into pieces where doubt or an explanation begins;
the assertion of each piece is read by `radglint.query`. Place words are read clause by clause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from radglint.errors import QueryError
from radglint.query import MAX_QUERY_CHARACTERS, Assertion, parse_query
from radglint.report_concepts import Mention, find_mentions
from radglint.report_normal import find_exclusions
from radglint.simulation.entailment import spoken
from radglint.simulation.facts import Fact, Side, Size, Zone

Reading = tuple[Fact, Assertion]

NO_SIDE = frozenset({"cardiomegaly", "endotracheal tube", "hiatal hernia"})
"""Findings in the midline: words for a side near them belong to something else."""
_DEVICES = frozenset({"pacemaker", "central line", "endotracheal tube", "chest tube"})
_RANK: dict[Assertion, int] = {"absent": 0, "uncertain": 1, "present": 2}
_FLAGS = re.IGNORECASE

_HARD = re.compile(
    r";\s*|\.\s+|,?\s+(?=(?:but|however|although|though|whereas|while|except(?:ing)?|other\s+than|aside\s+from"
    r"|apart\s+from|otherwise)\b)|\s+(?=with\s+the\s+exception\b)|(?<=[a-z])\s*:\s+",
    _FLAGS,
)
_NEGATION = re.compile(
    r"(?:,\s*|\s+)?(?:\b(?:and|or|with|but)\s+)?(?<![\w-])(?<!near\s)(?<!partial\s)(?<!incomplete\s)"
    r"(?=(?:no(?!\.\s*\d)(?!-)(?!\s+longer)(?!\s+(?:significant\s+|interval\s+)*"
    r"change)|without|negative\s+for|free\s+(?:of|from)|clear\s+of|absence\s+of|resolution\s+of|clearing\s+of"
    r"|removal\s+of|nor|neither|not?\s+(?:see|identify|demonstrate))\b)",
    _FLAGS,
)
# A new statement after a negated list: "no effusion, there is a nodule", "no effusion and stable cardiomegaly".
_RESTART = re.compile(
    r",?\s+(?:and\s+)?(?=there\s+(?:is|are|has|remains?)\b)|,\s*(?:and\s+)?(?=(?:the|this|these|a|an|stable|stably|again|mild(?:ly)?"
    r"|unchanged|persistent|chronic|old|borderline|redemonstrat\w+|heart|cardiac|cardio\w+|status|prior|calcified)\b)"
    r"|\s+and\s+(?=(?:there|the\s+(?:heart|lungs?|cardiac)|stable|unchanged|mild(?:ly)?|old|calcified|heart|cardiac)\b)",
    _FLAGS,
)
_DOUBT_WORDS = (
    r"(?:may|might|could|possib(?:le|ly)|probabl[ey]|(?:most\s+|very\s+)?likely|perhaps|presum\w+|suspect\w*|suspicious"
    r"|suspicion|concern\w*\s+(?:for|of)|worrisome|suggest\w*|question(?:able|ed)?|equivocal|cannot\s+(?:entirely\s+)?(?:be\s+)?"
    r"(?:exclud\w+|rule)|(?:to\s+)?(?:exclude|ensure|rule\s+out)|potential(?:ly)?|differential|versus|vs\.?|favou?r\w*"
    r"|most\s+(?:consistent|compatible|xxxx)|would\s+have\s+to|if\s+there\s+is|raising|rather\s+than)"
)
_EXPLAINS = (
    r"(?:consistent\s+with|compatible\s+with|in\s+keeping\s+with|represent(?:s|ing|ative)?|reflect(?:s|ing)?|due\s+to"
    r"|secondary\s+to|related\s+to|indicat\w+|xxxx\s+(?:a\s+)?(?:xxxx\s+)?represent\w*|artifact\w*|corresponds?|(?<=,\s)(?:xxxx|_{2,}))"
)
_WEAK = rf"(?:{_DOUBT_WORDS}|{_EXPLAINS})(?:\b|(?<=\.))"
_PIECE = re.compile(rf"(?:,\s*)?(?:\b(?:which|that|and)\s+)?\b(?P<cut>{_WEAK}(?:\s+(?:\w+\s+)?{_WEAK})*)", _FLAGS)
_DOUBT = re.compile(rf"\b{_DOUBT_WORDS}(?:\b|(?<=\.))", _FLAGS)
_CAUSE = re.compile(
    r"\b(?:from|due|related|secondary|represent\w*|reflect\w*|be(?!\s+(?:\w+ly\s+)?(?:present|seen|there|identified|exclud|rule)))\b",
    _FLAGS,
)
_BESIDE = re.compile(r"\b(?:with|and|plus)\s+(?:an?\s+)?$", _FLAGS)
_EXPLAIN = re.compile(rf"\b(?:(?P<verb>may|might|could|represent\w*|reflect\w*|suggest\w*)\b|{_WEAK})", _FLAGS)
_ADVICE = re.compile(r"\b(?:ensure|make\s+sure|confirm\w*|document\w*|evaluat\w+\s+for|assess\w*\s+for)\b", _FLAGS)
_ALTERNATIVE_BEFORE = re.compile(r"(?:/|\b(?:or|versus|vs\.?)(?:\s+\w+){0,3}?)\s*$", _FLAGS)
_ALTERNATIVE_AFTER = re.compile(
    r"^\s*(?:/(?=\s?[a-z])|(?:,|and/)?\s*(?:or|versus|vs\.?)\b(?!\s+(?:right|left)\b))", _FLAGS
)
_ABSENT_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has|have)\s+)?(?:not|no\s+longer)\s+(?:\w+\s+){0,2}?(?:seen|identified|present|visuali[sz]ed"
    r"|evident|noted|appreciated|demonstrated|detected|visible|suspected|apparent)\b"
    r"|\b(?:has|have|is|are|now|since|been|interval(?:ly)?)\s+(?:\w+\s+){0,2}?(?:resolved|cleared|removed|disappeared)\b",
    _FLAGS,
)
_UNSURE_AFTER = re.compile(
    r"\bnot\s+(?:\w+\s+)?(?:excluded|(?:well|clearly|definitely)[\s-]+\w+)|\bcannot\s+(?:\w+\s+){0,3}?(?:excluded|ruled)"
    r"|\bdifficult\s+to\s+(?:exclude|rule)|\bunlikely\b|\(\s*\?\s*\)|\?",
    _FLAGS,
)
_UNFINISHED = re.compile(r"\b(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|mostly|not)\s+(?:\w+\s+)?"
                         r"(?:resol\w+|clear\w+)", _FLAGS)  # fmt: skip
_REMOVED = re.compile(r"^(?:interval\s+)?removal\s+of\b", _FLAGS)
_NOT_INCREASED = re.compile(r"^no\s+(?:\w+\s+)?(?:increased|decreased)\s+\w+", _FLAGS)  # a finding, not a change of one
_NO_CHANGE = re.compile(r"\bno\s+(?:significant\s+|interval\s+|xxxx\s+)*change", _FLAGS)
_NO_OTHER = re.compile(r"^no\s+(?:\w+\s+)?(?:other|additional|further)\b", _FLAGS)
_DENIED = re.compile(r"\bnot\s+(?:\w+\s+)?(?:enlarged|big|large|dilated)", _FLAGS)

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
        ("rul", "right upper"), ("rml", "right middle"), ("rll", "right lower"), ("lul", "left upper"),
        ("lll", "left lower"), (r"lingula\w*", "left mid"), (r"bi-?\s?basilar|bi-?\s?basal", "bilateral lower"),
        (r"bi-?\s?apical", "bilateral upper"), (r"mildly", "mild"), (r"slightly", "slight"), (r"minimally", "minimal"),
        (r"markedly", "marked"), (r"severely|massive(?:ly)?|huge", "severe"), (r"trace", "tiny"),
        (r"left-?sided", "left"), (r"right-?sided", "right"), (r"rt", "right"), (r"lt", "left"), (r"mid-?lungs?", "mid lung"),
    )
)  # fmt: skip
_ADVERB = re.compile(r"\b(?:mild|slight|minimal|moderate|marked|severe)ly\b|\bmoderate\b", _FLAGS)
_JOIN = re.compile(rf",|/|;|\b(?:and|or|with|without)\b|\b{_WEAK}", _FLAGS)
_SHARE = re.compile(r"^[\s,]*(?:,|/|and/or|and|or|versus|vs\.?|with)(?:[\s,]+[\w-]+){0,3}\s*$", _FLAGS)
_SIDED_LUNG = re.compile(
    r"\b(?:left|right)\s+(?:\w+\s+)?(?:lungs?|hemithorax|chest|side|base|apex|lobe)\b[^,;]*$", _FLAGS
)


@dataclass
class _Found:
    """A mention while it is being read."""

    mention: Mention
    assertion: Assertion
    clause: int
    place: Fact
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
    stated = [(f.place, f.assertion) for f in found if not f.is_dropped]
    return _settled([*stated, *_normal(sentence)])


def _read_mentions(sentence: str) -> list[_Found]:
    mentions = find_mentions(sentence)
    clauses = _clauses(sentence, mentions) if mentions else []
    found = []
    for number, (start, end) in enumerate(clauses):
        inside = [m for m in mentions if start <= m.start < end]
        for mention, assertion in _assertions(sentence, start, end, inside):
            found.append(_Found(mention, assertion, number, Fact(mention.concept)))
    _place(sentence, clauses, found)
    return found


def _clauses(sentence: str, mentions: Sequence[Mention]) -> list[tuple[int, int]]:
    """Stretches within which one negation holds; no cut goes through a mention."""
    cuts = {m.end() for m in _HARD.finditer(sentence)} | {m.end() for m in _NEGATION.finditer(sentence)}
    bounds = [0, *sorted(c for c in cuts if not _inside(c, mentions)), len(sentence)]
    clauses = []
    for start, end in pairwise(dict.fromkeys(bounds)):
        restart = _RESTART.search(sentence, start, end) if _NEGATION.match(sentence, start) else None
        while restart and (_inside(restart.end(), mentions) or _goes_on(sentence[restart.end() : end])):
            restart = _RESTART.search(sentence, restart.end(), end)
        clauses += [(start, restart.end()), (restart.end(), end)] if restart else [(start, end)]
    return clauses


def _inside(offset: int, mentions: Iterable[Mention]) -> bool:
    return any(m.start < offset < m.end for m in mentions)


def _goes_on(rest: str) -> bool:
    """Whether a list continues: "no consolidation, mild edema, or effusion"."""
    return re.match(r"(?!there\b)[^.;]*?,?\s+or\s", rest, _FLAGS) is not None


def _assertions(
    sentence: str, start: int, end: int, mentions: Sequence[Mention]
) -> Iterator[tuple[Mention, Assertion]]:
    """Each mention of a clause with its assertion, piece by piece."""
    bounds = [start, *_piece_cuts(sentence, start, end, mentions), end]
    for low, high in pairwise(bounds):
        inside = [m for m in mentions if low <= m.start < high and not _NO_OTHER.match(sentence[low:high])]
        general = _assertion(sentence[low:high]) if inside else "present"
        for mention in inside:
            yield mention, _own_assertion(sentence, mention, (low, high), general)


def _piece_cuts(sentence: str, start: int, end: int, mentions: Sequence[Mention]) -> list[int]:
    """Where doubt or an explanation begins; a negated clause is one piece, and a piece without a finding is none."""
    if _is_negated(sentence[start:end]):
        return []
    weak = [m for m in _PIECE.finditer(sentence, start, end) if not _inside(m.start("cut"), mentions)]
    cuts = {m.start("cut") for m in weak}
    causes = {m.start("cut") for m in weak if _is_aside(sentence, m)}
    cuts |= {
        c for c in _list_cuts(sentence, start, end) if not weak or c < min(cuts) or _RESTART.search(sentence, c - 6, c)
    }
    kept: list[int] = []
    for cut in sorted(cuts):
        following = min((c for c in cuts if c > cut), default=end)
        is_about = any(cut <= m.start < following for m in mentions) or cut in causes
        if is_about and any(m.start < cut for m in mentions) and not _inside(cut, mentions):
            kept.append(cut)
    return kept


def _is_aside(sentence: str, match: re.Match[str]) -> bool:
    """Doubt about the cause of a finding, or about something beside it, and not about the finding."""
    start = match.start("cut")
    return _CAUSE.search(sentence[start : match.end() + 12]) is not None or _BESIDE.search(sentence[:start]) is not None


def _list_cuts(sentence: str, start: int, end: int) -> list[int]:
    """Where one item of an affirmed list ends and the next begins; "or" ties the items together."""
    if re.search(r"\bor\b|/", sentence[start:end], _FLAGS):
        return []
    return [
        start + m.end()
        for m in re.finditer(r",\s+(?:and\s+)?|\s+(?:with|and\s+(?=there\b))\s*", sentence[start:end], _FLAGS)
    ]


def _is_negated(clause: str) -> bool:
    return _NEGATION.match(clause) is not None


def _assertion(piece: str) -> Assertion:
    """What the piece as a whole asserts, by the rules for queries."""
    if _NO_CHANGE.search(piece) or _UNFINISHED.search(piece):
        return "present"
    if _REMOVED.search(piece) or _NOT_INCREASED.search(piece):
        return "absent"
    if _UNSURE_AFTER.search(piece):
        return "uncertain"
    if _ABSENT_AFTER.search(piece):
        return "absent"
    try:
        asserted = parse_query(piece).assertion
    except QueryError:
        return "present"
    return "uncertain" if asserted == "present" and _DOUBT.search(piece) else asserted


def _own_assertion(sentence: str, mention: Mention, piece: tuple[int, int], general: Assertion) -> Assertion:
    """The piece's assertion, unless the mention's own words deny it or name an alternative to it."""
    words = sentence[mention.start : mention.end]
    if _ADVICE.search(sentence[: mention.start]):
        return "uncertain"
    if _DENIED.search(words):
        return "absent"
    if mention.concept == "cardiomegaly" and re.search(r"borderline", sentence[piece[0] : mention.end], _FLAGS):
        return "uncertain" if general == "present" else general
    before, after = sentence[piece[0] : mention.start], sentence[mention.end : mention.end + 20]
    alternative = not _NO_CHANGE.search(before) and (
        _ALTERNATIVE_BEFORE.search(before) or _ALTERNATIVE_AFTER.search(after)
    )
    return "uncertain" if general == "present" and alternative else general


def _explain(sentence: str, found: Sequence[_Found]) -> None:
    """Let a sign give way to its explanation further on in the sentence, which is at the same place."""
    for k, sign in enumerate(found):
        if not sign.mention.is_sign or sign.assertion == "absent":
            continue
        weak = _EXPLAIN.finditer(sentence, sign.mention.end)
        trigger = next((m for m in weak if m["verb"] or not _BESIDE.search(sentence[: m.start()])), None)
        named = [f for f in found[k + 1 :] if f.mention.concept == sign.mention.concept and not f.mention.is_sign]
        later = [
            f for f in found[k + 1 :] if f.assertion != "absent" and trigger and f.mention.start >= trigger.start()
        ]
        if named or later:
            sign.is_dropped = True
            _hand_on(sign.place, [f for f in found[k + 1 :] if f.assertion != "absent" or f in named])
        elif trigger and all(f.mention.start < trigger.start() for f in found[k + 1 :]):
            sign.assertion, sign.is_dropped = "uncertain", not _DOUBT.search(sentence, trigger.start())


def _hand_on(place: Fact, targets: Iterable[_Found]) -> None:
    for target in targets:
        if target.place.side is None and target.mention.concept not in _DEVICES:
            target.place = replace(target.place, side=place.side, zone=target.place.zone or place.zone)


def _place(sentence: str, clauses: Sequence[tuple[int, int]], found: Sequence[_Found]) -> None:
    """Give every mention its side, zone and size."""
    for number, (start, end) in enumerate(clauses):
        inside = [f for f in found if f.clause == number]
        for k, item in enumerate(inside):
            low = inside[k - 1].mention.end if k else _reach(sentence, clauses, number, found)
            high = inside[k + 1].mention.start if k + 1 < len(inside) else end
            item.place = _own_place(sentence, item.mention, (low, high), is_first=k == 0, is_last=k + 1 == len(inside))
        _share(sentence, inside)


def _reach(sentence: str, clauses: Sequence[tuple[int, int]], number: int, found: Sequence[_Found]) -> int:
    """Where the first mention's place may begin: "the left lung shows | no nodule" reaches back."""
    start = clauses[number][0]
    if number and not any(f.clause == number - 1 for f in found):
        before = _SIDED_LUNG.search(sentence, clauses[number - 1][0], start)
        return before.start() if before else start
    return start


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
    first, second = _words(f"{before} {words}"), _words(after)
    side, zone = _side(first) or _side(second), _zone(first) or _zone(second)
    return Fact(mention.concept, side, zone, _size(_words(f"{near} {adverbs}")))


def _words(text: str) -> str:
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    return text


def _side(text: str) -> Side | None:
    said = {side for side in ("left", "right", "bilateral") if spoken(Fact("nodule", side=side), text).side}
    return "bilateral" if "bilateral" in said or len(said) > 1 else next(iter(said), None)  # type: ignore[return-value]


def _zone(text: str) -> Zone | None:
    said = [zone for zone in ("upper", "mid", "lower") if spoken(Fact("nodule", zone=zone), text).zone]
    return said[0] if len(said) == 1 else None


def _size(text: str) -> Size | None:
    said = [size for size in ("small", "medium", "large") if spoken(Fact("nodule", size=size), text).size]
    return said[0] if len(said) == 1 else None


def _share(sentence: str, inside: Sequence[_Found]) -> None:
    """Side and zone that two findings have in common: "left basilar atelectasis and effusion"."""
    for (one, two), backward in [(p, False) for p in pairwise(inside)] + [(p, True) for p in [*pairwise(inside)][::-1]]:
        source, target = (two, one) if backward else (one, two)
        between = sentence[one.mention.end : two.mention.start]
        kinds = {one.mention.concept in _DEVICES, two.mention.concept in _DEVICES}
        if target.place.side or not source.place.side or len(kinds) > 1 or not _SHARE.match(between):
            continue
        zone = target.place.zone or source.place.zone
        target.place = replace(target.place, side=source.place.side, zone=zone)


def _normal(sentence: str) -> Iterator[Reading]:
    for exclusion in find_exclusions(sentence):
        side = _side(_words(exclusion.words)) if exclusion.concepts[0] not in NO_SIDE else None
        for concept in exclusion.concepts:
            yield Fact(concept, side), "uncertain" if exclusion.assertion == "uncertain" else "absent"


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
