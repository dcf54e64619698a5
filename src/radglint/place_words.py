"""Words of side, height and size, as a query or a report says them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "mid", "lower"]
Size = Literal["small", "medium", "large"]
Word = TypeVar("Word", bound=str)

SIDE_WORDS: dict[Side, tuple[str, ...]] = {
    "left": ("left",),
    "right": ("right",),
    "bilateral": ("bilateral", "bilaterally", "both"),
}
ZONE_WORDS: dict[Zone, tuple[str, ...]] = {
    "upper": ("upper", "apex", "apices", "apical"),
    "mid": ("mid", "middle"),
    "lower": ("lower", "base", "bases", "basal", "basilar"),
}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "tiny", "minimal", "subtle", "minor", "mild", "slight", "faint"),
    "medium": ("moderate", "medium", "moderately"),
    "large": ("large", "big", "extensive", "sizeable", "severe", "marked"),
}
_FLAGS = re.IGNORECASE

# Words of place and size in the vocabulary of the tables; anatomy whose side is not that of a finding taken out.
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


def said(text: str, table: Mapping[Word, tuple[str, ...]]) -> list[Word]:
    """Which entries of a table a text names, in the table's order."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return [name for name, options in table.items() if not words.isdisjoint(options)]


def plain_words(text: str) -> str:
    """A text with its words of place and size brought to those of the tables."""
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    return text


def read_side(text: str) -> Side | None:
    """Read the side that a phrase names; "bilateral" where it names both."""
    sides = said(plain_words(text), SIDE_WORDS)
    return "bilateral" if "bilateral" in sides or len(sides) > 1 else next(iter(sides), None)


def read_zone(text: str) -> Zone | None:
    """Read the height that a phrase names; None where it names several."""
    return _only(said(plain_words(text), ZONE_WORDS))


def read_size(text: str) -> Size | None:
    """Read the size that a phrase names; None where it names several."""
    return _only(said(plain_words(text), SIZE_WORDS))


def _only(found: list[Word]) -> Word | None:
    return found[0] if len(found) == 1 else None
