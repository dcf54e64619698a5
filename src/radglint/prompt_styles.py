"""How a class becomes sentences: the prompt styles of the field, as templates with named fields.

A style is data (`data/prompts/styles.json`). A field in braces stands for words of the class; where a field has several
values, a template gives one sentence for each, and one for each combination where it has several such fields.

    {name} {name_lower}         the class in the words of its data set
    {positive} {negative}       the prompts of the bank
    {healthy} {synonym}         normal statements; other names
    {subtype}                   the first positive prompts
    {shape} {density} {location} {severity} {descriptor}    attributes; a descriptor is a shape or a density
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Any, Literal, get_args

from radglint.errors import InputError

Ensemble = Literal["none", "embeddings", "scores", "maximum", "log_probabilities"]
"""What to do with several prompts of one class.

none                one positive and one negative prompt
embeddings          the mean of the unit embeddings, brought to unit length again
scores              the mean of the scores
maximum             the highest score
log_probabilities   the mean of the log-probabilities of each positive and negative pair
"""

FIELDS = (
    "name", "name_lower", "positive", "negative", "healthy", "synonym", "subtype", "shape", "density", "location",
    "severity", "descriptor",
)  # fmt: skip
_KEYS = {"name", "title", "ensemble", "positive", "negative", "names", "negative_names", "source"}
_OPTIONAL_KEYS = {"names", "negative_names"}
EVERY_BANK = "*"

Spelling = Mapping[str, Mapping[str, str]]
"""Bank, or `EVERY_BANK`, to own name to the name that the published prompts use instead."""


@dataclass(frozen=True)
class Style:
    """One way of writing prompts.

    Attributes:
        name: what the command line takes.
        title: its name in print.
        ensemble: what to do with several prompts.
        positive: templates.
        negative: templates.
        source: where it was published, and where we differ.
        names: names that the published prompts spell in another way.
        negative_names: the same, for negative prompts only.
    """

    name: str
    title: str
    ensemble: Ensemble
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    source: str
    names: Spelling = field(default_factory=dict)
    negative_names: Spelling = field(default_factory=dict)


def list_styles() -> tuple[str, ...]:
    """Names of the styles; the first is the default."""
    return tuple(_styles())


def load_style(name: str) -> Style:
    """A style by name.

    Raises:
        InputError: no such style; the message lists all and the closest one.
    """
    if name in _styles():
        return _styles()[name]
    raise InputError(f"no prompt style {name!r}: {suggest(name, _styles())}")


def suggest(name: str, known: Collection[str]) -> str:
    """The end of a message: the closest known name, and all of them."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known are {', '.join(known)}"


def spell(spelling: Spelling, bank: str, own_name: str, default: str) -> str:
    """The name of a class in published prompts, where they differ from the data set's."""
    for key in (bank, EVERY_BANK):
        if own_name in spelling.get(key, {}):
            return spelling[key][own_name]
    return default


def lower_name(name: str) -> str:
    """Without capitals, but for abbreviations: "Pleural Effusion" -> "pleural effusion", "COPD signs" as it is."""
    return " ".join(word if sum(c.isupper() for c in word) > 1 else word.lower() for word in name.split(" "))


def expand(templates: Sequence[str], fields: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Every sentence that the templates give, in order, each once.

    Args:
        templates: with fields of `FIELDS`.
        fields: values of each field; a template with a field that has none gives nothing.

    Returns:
        Sentences with single spaces.

    Example:
        >>> expand(["{severity} {name}"], {"severity": ["", "mild"], "name": ["edema"]})
        ('edema', 'mild edema')
    """
    return tuple(dict.fromkeys(text for template in templates for text in _expand_one(template, fields)))


def _expand_one(template: str, fields: Mapping[str, Sequence[str]]) -> Iterator[str]:
    used = fields_of(template)
    for values in itertools.product(*(fields[name] for name in used)):
        yield " ".join(template.format_map(dict(zip(used, values, strict=True))).split())


def fields_of(template: str) -> list[str]:
    """Names of the fields of a template, each once, in order."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))


@cache
def _styles() -> dict[str, Style]:
    document = json.loads((files("radglint") / "data" / "prompts" / "styles.json").read_text(encoding="utf-8"))
    return parse_styles(document, "styles.json")


def parse_styles(document: Any, where: str) -> dict[str, Style]:
    """Styles from the content of a file.

    Args:
        document: `{"styles": [...]}`, as read from JSON.
        where: what to call it in an error.

    Raises:
        InputError: a key is unknown, missing or holds something else; it names the style and the key.
    """
    rows = document.get("styles") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where}: expected an object with the key 'styles', a list of styles")
    styles = [_parse_style(row, f"{where}, style {number}") for number, row in enumerate(rows, 1)]
    names = [style.name for style in styles]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: style {name!r} is there {names.count(name)} times; each name may occur once")
    return {style.name: style for style in styles}


def _parse_style(row: Any, where: str) -> Style:
    keys = set(row) if isinstance(row, dict) else set()
    wrong = sorted(keys - _KEYS) or sorted(_KEYS - _OPTIONAL_KEYS - keys)
    if wrong:
        state = "unknown" if wrong[0] in keys else "missing"
        raise InputError(f"{where}: key {wrong[0]!r} is {state}; a style has {', '.join(sorted(_KEYS))}")
    if row["ensemble"] not in get_args(Ensemble):
        raise InputError(f"{where}: ensemble: expected one of {', '.join(get_args(Ensemble))}, got {row['ensemble']!r}")
    for key in ("positive", "negative"):
        _check_templates(row[key], row["ensemble"] == "none", f"{where}, {key}")
    for key in sorted(_OPTIONAL_KEYS & keys):
        if not isinstance(row[key], dict) or not all(isinstance(names, dict) for names in row[key].values()):
            raise InputError(f"{where}, {key}: expected an object of banks, each an object of names, got {row[key]!r}")
    templates: dict[str, Any] = {key: tuple(row[key]) for key in ("positive", "negative")}
    return Style(**(row | templates))


def _check_templates(templates: Any, is_single: bool, where: str) -> None:
    if not isinstance(templates, list) or not templates or not all(isinstance(t, str) and t for t in templates):
        raise InputError(f"{where}: expected a list of templates such as 'There is {{name}}', got {templates!r}")
    if is_single and len(templates) > 1:
        raise InputError(f"{where}: ensemble 'none' takes one template, got {len(templates)}")
    for name in (name for template in templates for name in fields_of(template)):
        if name not in FIELDS:
            raise InputError(f"{where}: no field {name!r}: {suggest(name, FIELDS)}")
