"""The sentences of a report's text, as spans: abbreviations, decimals, dates and list numbers do not end one."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
_PROTECTED = re.compile(r"\[\*\*.*?\*\*\]")  # de-identified: [**2101-1-1**], [**Last Name (NamePattern1)**]
_LIST_MARK = re.compile(r"(?:\(?\d{1,2}[.)](?![\d])|[-*\u2022\u00b7\u2013]+(?=\s)|\(?[a-hA-H]\)(?=\s))\s*")
_ITEM = re.compile(r"(?<=[\s.;:])\(?\d{1,2}[.)](?=\s*[A-Z][a-z]|\s+[A-Za-z])")  # "1. Nodule. 2.Effusion"
_STOP = re.compile(r"[.?!]+[\"')\]]*(?=\s|$)|(?<=[a-z]{2})[.?!](?=[A-Z][a-z])|(?<=XXXX)\.(?=[A-Z][a-z])")
_LINE = re.compile(r"\n[ \t]*(?:(?=\n)|(?=(?:\(?\d{1,2}[.)]|[-*\u2022\u00b7\u2013])\s)|(?=[A-Z]))")
_SHORT_LINE = 60  # characters: a line broken by width is longer, a line that ends a statement often is not
_WORD = re.compile(r"[^\W\d_]{2,}")
_EDGES = re.compile(r"^[\s,;:.?!]+|\s+$")


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
    for first, last in zip(bounds, bounds[1:], strict=False):
        span = _trimmed(part, first, last)
        if span is not None:
            yield start + span[0], start + span[1]


def _trimmed(part: str, first: int, last: int) -> Span | None:
    """Without edges and list marks; None if no word is left."""
    previous = None
    while previous != (first, last):
        previous = (first, last)
        piece = part[first:last]
        match = _LIST_MARK.match(piece) or _EDGES.match(piece)
        first += match.end() if match and match.start() == 0 else 0
        last = first + len(part[first:last].rstrip())
    return (first, last) if has_words(part[first:last]) else None


def has_words(text: str) -> bool:
    """Whether a text says anything besides numbers and marks of de-identification."""
    return any(word.strip("X") for word in _WORD.findall(_PROTECTED.sub(" ", text)))


def _ends(part: str) -> Iterator[int]:
    """Offsets at which a sentence ends."""
    kept = [match.span() for match in _PROTECTED.finditer(part)]

    def free(offset: int) -> bool:
        return not any(low < offset < high for low, high in kept)

    for match in _STOP.finditer(part):
        if free(match.end()) and _is_stop(part, match):
            yield match.end()
    for match in _ITEM.finditer(part):
        if free(match.start()) and _is_item(part[: match.start()]):
            yield match.start()
    for match in _LINE.finditer(part):
        if free(match.start()) and _is_line_end(part, match):
            yield match.start()


def _is_stop(part: str, match: re.Match[str]) -> bool:
    """Not after an abbreviation, an initial or a list number."""
    if match[0][0] != ".":
        return True
    word = re.search(r"[^\s(]*$", part[: match.start()])
    token = word[0].lower() if word else ""
    following = part[match.end() :].lstrip()[:1]
    if re.fullmatch(r"\d{1,2}", token) and _is_item(part[: match.start() - len(token)]):
        return False
    if token in _ABBREVIATIONS:
        return token in _ENDS_ALSO and (following == "" or following.isupper())
    return not (re.fullmatch(r"[a-z]", token) and following.isalpha())  # "J. Smith", "T. 12" stays one


def _is_item(before: str) -> bool:
    """Whether a number stands where a list item may begin: first, or after a stop, colon or line break."""
    bare = before.rstrip(" \t")
    return bare == "" or bare[-1] in ".;:?!\n"


def _is_line_end(part: str, match: re.Match[str]) -> bool:
    """An empty line, a list mark, or a short line before a capital; other line breaks come from wrapping."""
    rest = part[match.end() :]
    if not rest[:1].isupper():
        return True
    before = part[: match.start()].rsplit("\n", 1)[-1]
    return len(before) < _SHORT_LINE and not rest.startswith("XX")
