"""Is each finding of a sentence said to be present, absent or uncertain?

A sentence is cut into clauses where a negation begins or ends, and clauses into pieces where doubt or an explanation
begins; what a piece asserts is read by `radglint.query`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from radglint.errors import QueryError
from radglint.query import Assertion, parse_query
from radglint.report_concepts import Mention

Span = tuple[int, int]
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
WEAK = rf"(?:{_DOUBT_WORDS}|{_EXPLAINS})(?:\b|(?<=\.))"
_PIECE = re.compile(rf"(?:,\s*)?(?:\b(?:which|that|and)\s+)?\b(?P<cut>{WEAK}(?:\s+(?:\w+\s+)?{WEAK})*)", _FLAGS)
DOUBT = re.compile(rf"\b{_DOUBT_WORDS}(?:\b|(?<=\.))", _FLAGS)
_CAUSE = re.compile(
    r"\b(?:from|due|related|secondary|represent\w*|reflect\w*|be(?!\s+(?:\w+ly\s+)?(?:present|seen|there|identified|exclud|rule)))\b",
    _FLAGS,
)
BESIDE = re.compile(r"\b(?:with|and|plus)\s+(?:an?\s+)?$", _FLAGS)
_ADVICE = re.compile(r"\b(?:ensure|make\s+sure|confirm\w*|document\w*|evaluat\w+\s+for|assess\w*\s+for)\b", _FLAGS)
_ALTERNATIVE_BEFORE = re.compile(r"(?:/|\b(?:or|versus|vs\.?)(?:\s+\w+){0,3}?)\s*$", _FLAGS)
_ALTERNATIVE_AFTER = re.compile(
    r"^\s*(?:/(?=\s?[a-z])|(?:,|and/)?\s*(?:or|versus|vs\.?)\b(?!\s+(?:right|left)\b))", _FLAGS
)
_ABSENT_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has|have)\s+)?(?:not|no\s+longer)\s+(?:\w+\s+){0,2}?(?:seen|identified|present|visuali[sz]ed"
    r"|evident|noted|appreciated|demonstrated|detected|visible|suspected|apparent)\b"
    r"(?!\s+(?:on|in)\s+(?:the\s+)?(?:lateral|frontal|pa|ap|other|previous|prior)\b)"
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


def split_clauses(sentence: str, mentions: Sequence[Mention]) -> list[Span]:
    """Find the stretches within which one negation holds.

    Args:
        sentence: one sentence.
        mentions: its findings; no cut goes through one.

    Returns:
        `(start, end)` of each clause; together they cover the sentence.
    """
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


def assert_mentions(sentence: str, clause: Span, mentions: Sequence[Mention]) -> Iterator[tuple[Mention, Assertion]]:
    """Read what a clause asserts of each of its findings.

    Args:
        sentence: one sentence.
        clause: one of `split_clauses`.
        mentions: the findings named in the clause, in order.

    Yields:
        Each mention with its assertion; none for "no other nodule", which says nothing of the first one.
    """
    bounds = [clause[0], *_piece_cuts(sentence, *clause, mentions), clause[1]]
    for low, high in pairwise(bounds):
        inside = [m for m in mentions if low <= m.start < high and not _NO_OTHER.match(sentence[low:high])]
        general = _assertion(sentence[low:high]) if inside else "present"
        for mention in inside:
            yield mention, _own_assertion(sentence, mention, (low, high), general)


def _piece_cuts(sentence: str, start: int, end: int, mentions: Sequence[Mention]) -> list[int]:
    """Where doubt or an explanation begins; a negated clause is one piece, and a piece without a finding is none."""
    if _NEGATION.match(sentence[start:end]):
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
    return _CAUSE.search(sentence[start : match.end() + 12]) is not None or BESIDE.search(sentence[:start]) is not None


def _list_cuts(sentence: str, start: int, end: int) -> list[int]:
    """Where one item of an affirmed list ends and the next begins; "or" ties the items together."""
    if re.search(r"\bor\b|/", sentence[start:end], _FLAGS):
        return []
    return [
        start + m.end()
        for m in re.finditer(r",\s+(?:and\s+)?|\s+(?:with|and\s+(?=there\b))\s*", sentence[start:end], _FLAGS)
    ]


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
    return "uncertain" if asserted == "present" and DOUBT.search(piece) else asserted


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
