"""The sentences of a report's text, as spans: abbreviations, decimals, dates and list numbers do not end one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

Span = tuple[int, int]

_ABBREVIATIONS = frozenset(
    {
        *("dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "vs", "approx", "e.g", "i.e", "eg", "ca", "cf", "al"),
        *("fig", "ser", "im", "img", "incl", "resp", "max", "min", "no", "pt", "rt", "lt", "bilat", "a.m", "p.m"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "m.d", "d.o", "ph.d"),
    }
)
_ENDS_ALSO = frozenset(
    {"a.m", "p.m", "m.d", "d.o", "ph.d", "jr", "sr", "no", "min", "max", "al"}
)  # when a sentence follows
_PROTECTED = re.compile(r"\[\*\*.{0,80}?\*\*\]")  # de-identified: [**2101-1-1**], [**Last Name (NamePattern1)**]
_EDGE = re.compile(r"(?:[\s,;:.?!]+|(?:\(?\d{1,2}[.)](?!\d)|[-*\u2022\u00b7\u2013]+(?=\s)|\(?[a-hA-H]\)(?=\s))\s*)+")
_ITEM = re.compile(r"(?<=[\s.;:])\(?\d{1,2}[.)](?=\s*[A-Z][a-z]|\s+[A-Za-z])")  # "1. Nodule. 2.Effusion"
_STOP = re.compile(r"(?<![.?!])[.?!]++[\"')\]]*+(?=\s|$)|(?<=[a-z]{2})[.?!](?=[A-Z][a-z])|(?<=XXXX)\.(?=[A-Z][a-z])")
_LINE = re.compile(r"\n[ \t]*(?:(?=\n)|(?=(?:\(?\d{1,2}[.)]|[-*\u2022\u00b7\u2013])\s)|(?=[A-Z]))")
_SHORT_LINE = 60  # characters: a line broken by width is longer, a line that ends a statement often is not
_TOKEN = 40  # characters: as far as a stop looks for the word before it
_WORD = re.compile(r"[^\W\d_]{2,}")


def split_sentences(text: str) -> list[Span]:
    """Find the sentences of one section.

    Args:
        text: any text; list marks ("1.", "-") are left out, and so is what holds no word but marks of
            de-identification (XXXX, ____, [**...**]).

    Returns:
        `(start, end)` of each sentence, in order, not overlapping. Splitting a sentence again gives itself.
    """
    done: list[Span] = []
    todo = [(0, len(text))]
    while todo:
        start, end = todo.pop()
        pieces = list(_cut(text, start, end))
        if pieces == [(start, end)]:
            done.append((start, end))
        todo.extend(reversed(pieces) if pieces != [(start, end)] else ())
    return done


def _cut(text: str, start: int, end: int) -> Iterator[Span]:
    """One pass over a stretch, seen as if it were a text of its own."""
    part = text[start:end]
    bounds = sorted({0, len(part), *_ends(part)})
    for first, last in pairwise(bounds):
        span = _trimmed(part, first, last)
        if span is not None:
            yield start + span[0], start + span[1]


def _trimmed(part: str, first: int, last: int) -> Span | None:
    """Without edges and list marks; None if no word is left."""
    last = first + len(part[first:last].rstrip())
    match = _EDGE.match(part, first, last)
    while match and match.end() > first:
        first = match.end()
        match = _EDGE.match(part, first, last)
    return (first, last) if has_words(part[first:last]) else None


def has_words(text: str) -> bool:
    """Whether a text says anything besides numbers and marks of de-identification."""
    return any(word.strip("X") for word in _WORD.findall(_PROTECTED.sub(" ", text)))


def _ends(part: str) -> Iterator[int]:
    """Offsets at which a sentence ends; what is de-identified is masked, so that no stop is found in it."""
    part = _PROTECTED.sub(lambda match: "X" * len(match[0]), part)
    yield from (match.end() for match in _STOP.finditer(part) if _is_stop(part, match))
    yield from (match.start() for match in _ITEM.finditer(part) if _is_item(part, match.start()))
    yield from (match.start() for match in _LINE.finditer(part) if _is_line_end(part, match))


def _is_stop(part: str, match: re.Match[str]) -> bool:
    """Not after an abbreviation, an initial or a list number."""
    if match[0][0] != ".":
        return True
    token = re.split(r"[\s(]", part[max(0, match.start() - _TOKEN) : match.start()])[-1].lower()
    following = part[match.end() : match.end() + _TOKEN].lstrip()[:1]
    if re.fullmatch(r"\d{1,2}", token) and _is_item(part, match.start() - len(token)):
        return False
    if token in _ABBREVIATIONS:
        return token in _ENDS_ALSO and (following == "" or following.isupper())
    return not (re.fullmatch(r"[a-z]", token) and following.isalpha())  # the dot of "J. Smith" ends nothing


def _is_item(part: str, start: int) -> bool:
    """Whether a number stands where a list item may begin: first, or after a stop, colon or line break."""
    before = part[max(0, start - _TOKEN) : start].rstrip(" \t")
    return before == "" or before[-1] in ".;:?!\n"


def _is_line_end(part: str, match: re.Match[str]) -> bool:
    """An empty line, a list mark, or a short line before a capital; other line breaks come from wrapping."""
    following = part[match.end() : match.end() + 2]
    if not following[:1].isupper():
        return True
    before = part[max(0, match.start() - _SHORT_LINE) : match.start()]
    return following != "XX" and ("\n" in before or match.start() < _SHORT_LINE)
