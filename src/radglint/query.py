"""A query in plain English: what finding is meant, and is it asserted present, absent or uncertain?

A sentence encoder puts "effusion" and "no effusion" close together, so negation is read by rules here and the
model only ever sees the positive phrase. English only; one statement per query.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from radglint.errors import QueryError

Assertion = Literal["present", "absent", "uncertain"]

MAX_QUERY_CHARACTERS = 2000
MAX_PASSES = 12
"""Of the rules over one query. Real ones need up to four; without a bound a hostile one goes on for seconds."""

_FLAGS = re.IGNORECASE
_SEEN = (
    r"(?:seen|present|identified|visuali[sz]ed|detected|demonstrated|evident|found|visible|noted|observed|appreciated"
    r"|apparent|shown|suspected|there)"
)
_BE = r"(?:is|are|was|were|has|have|had|been|be|being|appears?|appeared|seems?|remains?|does|do|did|which|that)"
_SIZE = r"(?:significant|substantial|appreciable|definite|interval|further|major|marked|obvious|real)"
_ORGAN = (
    r"(?:heart|cardiac|cardiomediastinal|silhouette|mediasti\w+|aort\w+|hil(?:um|a|ar)|lungs?|lobes?|diaphragms?"
    r"|hemidiaphragms?|trachea\w*|airways?|bronch(?:us|i)|vessels?|vascul\w+|arter(?:y|ies)|veins?|bones?|ribs?"
    r"|spine|vertebra\w*|pleura|pleural\s+(?:spaces?|cavit(?:y|ies))|angles?|thyroid|nodes?|esophagus|liver|spleen"
    r"|kidneys?|adrenals?|ventricles?|atri(?:um|a)|apex|apices|bases?|zones?|fields?|thorax|hemithorax|chest\s+wall)"
)
_STUDY = (
    r"(?:patient|study|image|scan|exam|examination|radiograph|film|view|chest|x-?rays?|cxr|ct|findings?|impression"
    r"|he|she|it|we|i|you|one)"
)

# Openers that carry no meaning: "there is", "the chest x-ray shows", "please find", "is there any".
_OPENER = re.compile(
    rf"^(?:(?:please|can you|could you|do you|show me|tell me)\s+)*"
    rf"(?:(?:there|here)(?:'s|\s+(?:is|are|was|were|has been|have been|remains?|appears to be|seems to be))\b"
    rf"|(?:where\s+)?(?:is|are|was|were)\s+(?:there\b)?|there(?=\s)|(?:please\s+)?(?:look|search|evaluate|assess|check)\s+for\b|(?:find|locate|see)\b"
    rf"|(?:evidence|signs?|presence|findings)\s+of\b|(?:the\s+)?(?:{_STUDY}\s+)+(?:shows?|demonstrates?|reveals?|has"
    rf"|have|see|with|is|are)\b|(?:{_STUDY}\s+)(?=(?:do|does|did|cannot|could|fails?|failed|unable)\b)|(?:some|any|a|an|the|of|for|that|and|or|but|in|is|are|be)(?=\s))\s*",
    _FLAGS,
)
_TAIL = re.compile(
    rf"[\s,:-]++(?:(?:{_BE}\s+){{0,6}}(?:{_BE}|{_SEEN})|of|for|and|or|but|with|the|a|an|not)$|[\s,;:.!=-]+$", _FLAGS
)
_ARTICLE = re.compile(r"\b(?i:the|an)\s+|(?<=\b(?:in|of|at|on|by))\s+a(?=\s+\w)|(?<=\b(?:with|near|from))\s+a(?=\s+\w)")
_CONTRACTION = (
    (re.compile(r"\bcan(?:'t|\s+not|\s*not)\b", _FLAGS), "cannot"),
    (re.compile(r"\bwon't\b", _FLAGS), "will not"),
    (re.compile(r"(?<=[a-z])n't\b", _FLAGS), " not"),
    (re.compile(r"\bnor\b", _FLAGS), "or"),
    (re.compile(r"\b(\w+)/o\b", _FLAGS), r"\1/o"),
)

# 1. Two negations, or an excluded exclusion. These outrank everything below.
_NOT_EXCLUDED = re.compile(
    rf"\b(?:cannot|could not|not|does not|do not|unable to|difficult to|hard to|not possible to)\s+"
    rf"(?:(?:entirely|completely|fully|definitely|definitively|be|been|to)\s+){{0,6}}"
    rf"(?:excluded?|rul(?:e|ed)[\s-]+out|r/o)\b|\bnot\s+(?:certain|sure|clear|necessarily)\b(?:\s+(?:if|whether))?"
    rf"|\bnot\s+(?:well|clearly|fully|definitely)\s+{_SEEN}",
    _FLAGS,
)
_STILL_THERE = re.compile(
    rf"\b(?:no|without)\s+(?:{_SIZE}\s+){{0,6}}(?:interval\s+){{0,6}}(?:change|increase|decrease|difference"
    rf"|growth|improvement"
    rf"|worsening|progression|resolution|clearing|absence|lack)(?:\s+(?:in|of)(?:\s+(?:size|extent|appearance)\s+of)?)?\b"
    rf"|\bnot?\s+(?:(?:yet|fully|completely|entirely|{_SIZE})\s+){{0,6}}(?:resolved|cleared|disappeared|gone|absent"
    rf"|without|free\s+of|negative\s+for|missing|only|just|merely)\b"
    rf"|\bnot\s+(?:(?:yet|fully|completely|entirely|{_SIZE})\s+){{0,6}}(?:changed|improved|worsened|increased"
    rf"|decreased)\b"
    rf"|\b(?:partial(?:ly)?|near(?:ly)?|incomplete(?:ly)?|almost|mostly)\s+(?:resolved|cleared|resolution\s+of)\b"
    rf"|\bno\s+doubt\b|\bwith\s+or\s+without\b.*|\b(?:without|no)\s+(?:iv\s+|intravenous\s+)?contrast\b",
    _FLAGS,
)
_NOT_NORMAL = re.compile(r"\b(?:not|no longer)\s+(?:entirely\s+)?(?:normal|unremarkable)\b", _FLAGS)

# 2. Absence said after the finding: "effusion is not seen", "effusion has resolved", "pneumothorax: none".
_ABSENT_AFTER = re.compile(
    rf"^(?P<head>.+?)[\s,:=-]++(?:(?:{_BE}|now|since|completely|fully|entirely)\s+){{0,6}}"
    rf"(?:(?:not|no longer|cannot be|could not be|never)\s+(?:(?:{_BE}|any|longer|currently|definitely)\s+){{0,6}}"
    rf"{_SEEN}"
    rf"|absent|resolved|cleared|disappeared|gone|removed|ruled[\s-]+out|excluded|none|negative|no|nil"
    rf"|not\s+there)(?:\s+(?:anymore|any more|any longer|now|today|completely|fully|entirely))*$",
    _FLAGS,
)
_ORGAN_NOT = re.compile(
    rf"^(?P<head>(?:[\w-]+\s+)*?{_ORGAN}(?:\s+(?:size|contours?|silhouette|shadow|spaces?))?)\s+"
    rf"(?:{_BE}\s+)*(?:not|no longer|neither)\s+(?P<state>(?:{_SIZE}\s+)?[\w-]+(?:\s+or\s+[\w-]+)?)$",
    _FLAGS,
)
_FREE_OF = r"(?:free\s+(?:of|from)|negative\s+for|clear\s+of|devoid\s+of|without|with\s+no|lacks?|lacking)"
_ORGAN_FREE = re.compile(
    rf"^(?P<head>(?:(?:normal|clear)\s+)*(?:[\w-]+\s+)*?(?:{_ORGAN}|{_STUDY}))\s+(?:{_BE}\s+)*(?:has\s+no|have\s+no"
    rf"|shows?\s+no|with\s+no|no|{_FREE_OF})\s+(?:(?:evidence|signs?|suspicion)\s+of\s+)?(?P<what>.+)$",
    _FLAGS,
)

# 3. Absence said before the finding.
_ABSENT_BEFORE = re.compile(
    rf"^(?:no(?!\.\s*\d)(?!-)(?:\s+longer)?|not|without|with\s+no|absence\s+of|absent|free\s+(?:of|from)|negative\s+for"
    rf"|clear\s+of|lack\s+of|lacks?|lacking|denies|neither|never|nothing(?:\s+to\s+suggest)?|none|nil|resolved|cleared"
    rf"|(?:resolution|clearing|disappearance|exclusion)\s+of|ruled[\s-]+out|excluded"
    rf"|(?:cannot|unable\s+to|fails?\s+to|failed\s+to|(?:do|does|did|could|will)\s+not)\s+"
    rf"(?:see|find|show|identify|detect|demonstrate|reveal|visuali[sz]e|appreciate|have|suggest|observe)(?:\s+any)?)\b"
    rf"(?:\s+(?:(?:{_SIZE}|convincing|clear|radiographic|radiologic(?:al)?|ct|imaging|visible|discernible|strong)\s+)*"
    rf"(?:evidence|signs?|suspicion|indications?|features?|findings?|suggestion)\s+(?:of|for)\b)?"
    rf"(?:\s+(?:any|definite|suspicious\s+for|suggestive\s+of|of|{_SEEN}))*(?=\s|$)[\s:,]*",
    _FLAGS,
)

# 4. Words of doubt, wherever they stand.
_DOUBT = re.compile(
    r"\b(?:possib(?:le|ly)|possibility\s+of|probab(?:le|ly)|(?:un)?likely|(?:may|might|could|would)\s+(?:well\s+)?"
    r"(?:be|represent|reflect|indicate|suggest|have)|may|might|maybe|perhaps|presumed|presumably|suspected|suspect"
    r"|suspicious\s+(?:for|of)|suspicion\s+(?:of|for)|suggestive\s+of|suggest(?:s|ing)|suggestion\s+of|questionable"
    r"|questioned|question(?:\s+of)?|query|equivocal|concerning\s+for|concern\s+for|worrisome\s+for|doubtful"
    r"|uncertain|unclear|rul(?:e|ing)[\s-]+out|r/o|exclude|to\s+be\s+excluded|potential(?:ly)?|cannot\s+tell)"
    r"(?=\W|$)|^\s*\?+|\(\s*\?\s*\)|\?+\s*$",
    _FLAGS,
)
_QUESTION = re.compile(
    r"^\s*(?:is|are|was|were|do|does|did|can|could|any|where|what|which|has|have|show|find|locate)\b.*\?\s*$", _FLAGS
)
# 5. A second statement, or a negated modifier, after a finding: only what stands before it is asked.
_SECOND = re.compile(
    rf"(?:\s*[,;.]\s*|\s+)(?:(?:and|but|although|though|however)\s+)?(?:{_BE}\s+){{0,6}}(?:no(?!\.\s*\d)(?!-)|not"
    rf"|without"
    r"|with\s+no|negative\s+for|free\s+of|nor|absence\s+of|lacking|absent|neither|nothing|never|cannot)(?=\s|$).*$",
    _FLAGS,
)
_CLAUSE = re.compile(r"\s*(?:[;.]\s+|,?\s+but\s+|,\s*(?:although|however|though)\s+).*$", _FLAGS)


@dataclass(frozen=True)
class Query:
    """One parsed query.

    Attributes:
        text: what the user typed, in Unicode NFC with single spaces.
        phrase: the finding in positive words, what the model is asked ("no left effusion" -> "left effusion").
        assertion: "present", "absent" or "uncertain", as the user's words state it.
        note: what was left out of the phrase, else empty.
    """

    text: str
    phrase: str
    assertion: Assertion
    note: str = ""


def parse_query(text: str) -> Query:
    """Read one query: its finding and how it is asserted.

    Args:
        text: English words, 1 to 2,000 characters, at least one letter.

    Returns:
        The query; parsing its `phrase` again gives the same phrase, asserted present.

    Raises:
        QueryError: not text, empty, too long, without a letter, or made of assertion words only ("no").

    Example:
        >>> parse_query("No left effusion.")
        Query(text='No left effusion.', phrase='left effusion', assertion='absent', note='')
    """
    clean = _clean(text)
    phrase, assertion, note = _reduce(clean)
    for _ in range(MAX_PASSES):
        again, _, _ = _reduce(phrase)
        if again == phrase:
            break
        phrase = again
    else:
        raise _too_nested(clean)
    if not any(c.isalpha() for c in phrase):
        raise QueryError(f"query {_shorten(clean)!r} names no finding; write what to look for, e.g. 'pleural effusion'")
    return Query(clean, phrase, assertion, note)


def _clean(text: object) -> str:
    """Unicode NFC, no control characters, single spaces; refuse what cannot be a query."""
    if not isinstance(text, str):
        raise QueryError(f"a query must be text, got {type(text).__name__}; write the finding in words")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(
            f"query of {len(text)} characters is too long (at most {MAX_QUERY_CHARACTERS}); ask one finding per query"
        )
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") else c for c in text)
    plain = unicodedata.normalize("NFC", " ".join(plain.split()))
    if not plain:
        raise QueryError("the query is empty; write the finding in words, e.g. 'pleural effusion'")
    if not any(c.isalpha() for c in plain):
        raise QueryError(f"query {_shorten(plain)!r} holds no letter; write the finding in words")
    return plain


def _too_nested(text: str) -> QueryError:
    return QueryError(
        f"query {_shorten(text)!r} says and unsays its finding more than {MAX_PASSES} times; ask one finding per query"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _reduce(text: str) -> tuple[str, Assertion, str]:
    """One pass over the rules: (shorter phrase, assertion, note)."""
    body = _open(_expand(_drop_question_mark(text)))
    doubt_before = _DOUBT.match(body)
    if _NOT_EXCLUDED.search(body):
        return _strip(_NOT_EXCLUDED.sub(" ", body)), "uncertain", ""
    body = _open(_STILL_THERE.sub(" ", _NOT_NORMAL.sub("abnormal", body)))
    if doubt_before is not None:
        return _strip(_DOUBT.sub(" ", body, count=1)), "uncertain", ""
    for rule in (_absent_after, _absent_organ, _absent_before):
        found = rule(body)
        if found is not None:
            return found
    kept = _strip(_SECOND.sub("", body))
    note = "" if kept == body else f"only {_shorten(kept)!r} is asked: the rest of the query is a negated detail"
    if _DOUBT.search(kept):
        return _strip(_DOUBT.sub(" ", kept)), "uncertain", note
    return kept, "present", note


def _drop_question_mark(text: str) -> str:
    """A full question ("is there an effusion?") asks for presence; "effusion?" states a doubt."""
    text = text.rstrip(" .!")
    return text.rstrip("? ") if _QUESTION.match(text) else text


def _expand(text: str) -> str:
    text = text.replace("\u2019", "'").replace("\u2018", "'")
    for pattern, replacement in _CONTRACTION:
        text = pattern.sub(replacement, text)
    return text


def _open(text: str) -> str:
    """Without openers, articles and double spaces, to a fixed point."""
    previous, start = None, text
    for _ in range(MAX_PASSES):
        if text == previous:
            return unicodedata.normalize("NFC", text)
        previous = text
        text = " ".join(_ARTICLE.sub(" ", text).split()).strip(" ,;:.!=-\u2013\u2014")
        text = _OPENER.sub("", text, count=1) or text
    raise _too_nested(start)


def _strip(text: str) -> str:
    """As `_open`, and without closing words that a cut left behind ("effusion is")."""
    previous, start = None, text
    for _ in range(MAX_PASSES):
        if text == previous:
            return text
        previous = text
        text = _open(_TAIL.sub("", text))
    raise _too_nested(start)


def _absent_after(body: str) -> tuple[str, Assertion, str] | None:
    match = _ABSENT_AFTER.match(body)
    if match is None or _ABSENT_BEFORE.match(body):
        return None
    head = _strip(match["head"])
    if re.fullmatch(rf"(?:[\w-]+\s+)?{_ORGAN}", head, _FLAGS) and re.search(r"cleared$|negative$", body, _FLAGS):
        return body, "present", ""  # "lungs have cleared" speaks of normal lungs, not of missing ones
    return head, "absent", ""


def _absent_organ(body: str) -> tuple[str, Assertion, str] | None:
    """Absence said of an organ: "heart is not enlarged" -> "enlarged heart"; "lungs without nodule" turns likewise."""
    match = _ORGAN_NOT.match(body)
    if match is not None:
        return _strip(f"{match['state']} {match['head']}"), "absent", ""
    match = _ORGAN_FREE.match(body)
    if match is None or _ABSENT_BEFORE.match(body):
        return None
    site = _strip(re.sub(r"^(?:(?:normal|clear)\s+)+", "", match["head"], flags=_FLAGS))
    if re.fullmatch(rf"(?:{_STUDY}\s*)+", site, _FLAGS):
        return _strip(match["what"]), "absent", ""
    return _strip(f"{match['what']} in {site}"), "absent", ""


def _absent_before(body: str) -> tuple[str, Assertion, str] | None:
    match = _ABSENT_BEFORE.match(body)
    if match is None:
        return None
    rest = _strip(body[match.end() :])
    kept = _strip(_CLAUSE.sub("", rest))
    note = "" if kept == rest else f"only 'no {_shorten(kept)}' is asked: put the other statement in its own query"
    return kept, "absent", note
