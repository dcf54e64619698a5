"""Prompt banks: for every label set of the field, what to ask for each class.

A bank is a JSON file in `data/prompts`, or a user's own. Its classes name the data set's own word, the label of the
manifest, and a wording: positive and negative prompts, normal statements, synonyms, attributes and look-alikes. A
wording is written once per modality (`wordings_cxr.json`, `wordings_ct.json`) and shared by the banks; a class may
replace any part of it, or bring all of its own. Nothing in a wording names a side.

`positive` is read as present by `radglint.query`, `negative` as absent; `healthy` ("the lungs are clear") names no
finding, so it can stand beside the negative prompts of a text encoder, but is no query.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from radglint.errors import InputError
from radglint.prompt_styles import Style, expand, list_styles, load_style, lower_name, spell, suggest

BankModality = Literal["CXR", "CT", "any"]

MAX_PROMPT_CHARACTERS = 300
SUBTYPES = 4  # how many positive prompts stand for the subtypes of a class where a style combines them
NO_FINDING = "no finding"  # the one class whose positive prompts are normal statements and whose negative ones are not

_SHARED = ("styles", "wordings_cxr", "wordings_ct")
_BANK_KEYS = {"name", "title", "modality", "source", "classes"}
_TEXT_LISTS = ("positive", "negative", "synonyms", "look_alikes", "healthy")
_WORDING_KEYS = {*_TEXT_LISTS, "attributes"}
_REQUIRED_LISTS = ("positive", "negative")
_CLASS_KEYS = {"own_name", "label", "wording", "spoken_name"} | _WORDING_KEYS
_SHOWN = 8  # problems in one message


@dataclass(frozen=True)
class Attributes:
    """How a finding looks, in words: the idea of K2Sight (attributes of an ontology as prompts).

    Attributes:
        shape: what follows "with": "meniscus-shaped upper border".
        density: what follows "with": "homogeneous fluid density".
        location: with its preposition: "in the pleural space".
        severity: adjectives that the finding can take, without the empty one.
    """

    shape: tuple[str, ...] = ()
    density: tuple[str, ...] = ()
    location: tuple[str, ...] = ()
    severity: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassPrompts:
    """What to ask for one class.

    Attributes:
        own_name: the class as its data set writes it.
        label: the label in a manifest.
        positive: prompts of a present finding, in a radiologist's words.
        negative: the same finding negated.
        synonyms: other names; none of them is a positive prompt.
        attributes: shape, density, location and severity.
        look_alikes: what it must not be confused with.
        healthy: normal statements that exclude it.
        spoken_name: what the styles write for `own_name`, where that is a code.
    """

    own_name: str
    label: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    attributes: Attributes = Attributes()
    look_alikes: tuple[str, ...] = ()
    healthy: tuple[str, ...] = ()
    spoken_name: str = ""

    @property
    def written_name(self) -> str:
        """The name that goes into templates: "Pleural_Thickening" -> "Pleural Thickening"."""
        return self.spoken_name or self.own_name.replace("_", " ")


@dataclass(frozen=True)
class PromptBank:
    """The classes of one label set.

    Attributes:
        name: what the command line takes.
        title: its name in print.
        modality: CXR, CT, or any.
        source: where the list of classes comes from.
        classes: in the order of the published list.
    """

    name: str
    title: str
    modality: BankModality
    source: str
    classes: tuple[ClassPrompts, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Manifest labels, in order."""
        return tuple(c.label for c in self.classes)

    def find(self, name: str) -> ClassPrompts:
        """A class by its own name or its label; case does not matter.

        Raises:
            InputError: no such class; the message lists all and the closest one.
        """
        for found in self.classes:
            if name.lower() in (found.own_name.lower(), found.label):
                return found
        raise InputError(f"bank {self.name!r} has no class {name!r}: {suggest(name, self.labels)}")


@dataclass(frozen=True)
class Prompts:
    """The sentences for one class in one style.

    Attributes:
        positive: at least one.
        negative: at least one.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def list_banks() -> tuple[str, ...]:
    """Names of the banks that ship with radglint, sorted."""
    names = (entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
    return tuple(sorted(name for name in names if name not in _SHARED))


def load_bank(name: str | os.PathLike[str]) -> PromptBank:
    """A bank by name, or from a JSON file of the user's own.

    Args:
        name: one of `list_banks`, or a path that ends in `.json`.

    Raises:
        InputError: no such bank or file, or the file is not a bank; it names class and key, all problems at once.
    """
    text = os.fspath(name)
    if text.endswith(".json"):
        return parse_bank(_read_file(Path(text)), text)
    if text not in list_banks():
        raise InputError(f"no prompt bank {text!r}: {suggest(text, list_banks())}; a file of your own ends in .json")
    return _shipped_bank(text)


def prompts_for(bank: PromptBank, cls: str | ClassPrompts, style: str | Style = "radglint") -> Prompts:
    """The prompts of a class in a style.

    Args:
        bank: where the class is from; published prompts of some label sets spell a few names in their own way.
        cls: the class, or its own name or label.
        style: the style or its name, see `radglint.prompt_styles`.

    Returns:
        Sentences in order, each once; `style.ensemble` says how to join them.

    Raises:
        InputError: no such class or style, or the class has no words for a field that the style needs.

    Example:
        >>> prompts_for(load_bank("chestxray14"), "Effusion", "carzero")
        Prompts(positive=('There is Pleural Effusion',), negative=('There is no Pleural Effusion',))
    """
    found = bank.find(cls) if isinstance(cls, str) else cls
    used = load_style(style) if isinstance(style, str) else style
    name = spell(used.names, bank.name, found.own_name, found.written_name)
    negative_name = spell(used.negative_names, bank.name, found.own_name, name)
    prompts = Prompts(expand(used.positive, _fields(found, name)), expand(used.negative, _fields(found, negative_name)))
    for side in ("positive", "negative"):
        if not getattr(prompts, side):
            raise InputError(
                f"bank {bank.name!r}, class {found.own_name!r}: style {used.name!r} has no {side} prompt, because the "
                f"class has no words for {', '.join(getattr(used, side))}; add them or choose another style of "
                f"{', '.join(list_styles())}"
            )
    return prompts


def _fields(found: ClassPrompts, name: str) -> dict[str, tuple[str, ...]]:
    """Values of every field of a template."""
    seen = found.attributes
    return {
        "name": (name,), "name_lower": (lower_name(name),), "positive": found.positive, "negative": found.negative,
        "healthy": found.healthy, "synonym": found.synonyms, "subtype": found.positive[:SUBTYPES],
        "shape": seen.shape, "density": seen.density, "location": seen.location, "severity": ("", *seen.severity),
        "descriptor": seen.shape + seen.density,
    }  # fmt: skip


def parse_bank(document: Any, where: str) -> PromptBank:
    """A bank from the content of a file.

    Args:
        document: as read from JSON.
        where: what to call it in an error.

    Raises:
        InputError: see `load_bank`.
    """
    problems = list(_bank_problems(document))
    if problems:
        raise _error(where, problems)
    wordings = _wordings(document["modality"])
    rows = [_with_wording(row, wordings) for row in document["classes"]]
    both = zip(rows, document["classes"], strict=True)
    problems = [problem for row, given in both for problem in _row_problems(row, given)]
    problems = problems or list(_double_problems(rows))
    if problems:
        raise _error(where, problems)
    return PromptBank(**(document | {"classes": tuple(_class(row) for row in rows)}))


def _error(where: str, problems: list[str]) -> InputError:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return InputError(f"{where}: not a prompt bank: {'; '.join(problems[:_SHOWN])}{more}")


def _bank_problems(document: Any) -> Iterable[str]:
    """What is wrong with a bank before its classes are looked into."""
    if not isinstance(document, dict):
        yield f"expected an object with {', '.join(sorted(_BANK_KEYS))}, got {type(document).__name__}"
        return
    yield from _key_problems("bank", document, _BANK_KEYS, _BANK_KEYS)
    for key in ("name", "title", "source"):
        if key in document and not _is_text(document[key]):
            yield f"{key}: expected text, got {document[key]!r}"
    if document.get("modality", "any") not in get_args(BankModality):
        yield f"modality: expected one of {', '.join(get_args(BankModality))}, got {document['modality']!r}"
    if "classes" in document:
        rows = document["classes"]
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            yield "classes: expected a list of objects, at least one"


def _key_problems(what: str, row: Mapping[str, Any], known: set[str], needed: set[str]) -> Iterable[str]:
    for key in sorted(set(row) - known):
        yield f"{what}: key {key!r} is unknown: {suggest(key, sorted(known))}"
    for key in sorted(needed - set(row)):
        yield f"{what}: key {key!r} is missing"


def _with_wording(row: Mapping[str, Any], wordings: Mapping[str, Any]) -> dict[str, Any]:
    """A class with the shared wording that it names, or that its label names; what it brings itself wins."""
    shared = wordings.get(row.get("wording", row.get("label")), {}) if _is_text(row.get("label")) else {}
    return {**shared, **row}


def _row_problems(row: Mapping[str, Any], given: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with one class."""
    what = f"class {row.get('own_name', row.get('label', '?'))!r}"
    yield from _key_problems(what, given, _CLASS_KEYS, {"own_name", "label"})
    for key in ("own_name", "label", "wording", "spoken_name"):
        if key in row and not _is_text(row[key]):
            yield f"{what}, {key}: expected text, got {row[key]!r}"
    if _is_text(row.get("label")) and row["label"] != row["label"].lower():
        yield f"{what}, label: expected lower case, got {row['label']!r}"
    missing = [key for key in _REQUIRED_LISTS if not row.get(key)]
    if missing and "wording" in given and "positive" not in row:
        yield f"{what}, wording: no wording {given['wording']!r} for this modality; name another or give 'positive'"
    elif missing:
        yield f"{what}: no {' and no '.join(missing)} prompts; give them, or name a shipped wording"
    for key in _TEXT_LISTS:
        yield from _list_problems(f"{what}, {key}", row.get(key, []))
    yield from _attribute_problems(what, row.get("attributes", {}))


def _attribute_problems(what: str, attributes: Any) -> Iterable[str]:
    if not isinstance(attributes, dict):
        yield f"{what}, attributes: expected an object, got {attributes!r}"
        return
    yield from _key_problems(f"{what}, attributes", attributes, {f.name for f in fields(Attributes)}, set())
    for key, texts in attributes.items():
        yield from _list_problems(f"{what}, attributes, {key}", texts)


def _list_problems(what: str, texts: Any) -> Iterable[str]:
    if not isinstance(texts, list):
        yield f"{what}: expected a list of texts, got {texts!r}"
        return
    for text in texts:
        if not _is_text(text):
            yield f"{what}: expected text, got {text!r}"
        elif len(text) > MAX_PROMPT_CHARACTERS:
            yield f"{what}: a text of {len(text)} characters is too long (at most {MAX_PROMPT_CHARACTERS})"


def _is_text(value: Any) -> bool:
    """Whether a value is text with a letter and without spaces at its ends."""
    return isinstance(value, str) and value == value.strip() and any(c.isalpha() for c in value)


def _double_problems(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Names, labels, and prompts that two classes, or one class twice, would share."""
    for key in ("own_name", "label"):
        yield from _doubles(key, ((row[key], row["own_name"]) for row in rows))
    for key in ("positive", "negative"):
        yield from _doubles(key, ((text, row["own_name"]) for row in rows for text in row[key]))
    for row in rows:
        names = ((text, row["own_name"]) for text in (*row["positive"], *row.get("synonyms", ())))
        yield from _doubles("synonyms", names)


def _doubles(key: str, pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    seen: dict[str, str] = {}
    for text, owner in pairs:
        if text.lower() in seen:
            yield f"{key}: {text!r} of class {owner!r} is already there, in class {seen[text.lower()]!r}"
        seen.setdefault(text.lower(), owner)


def _class(row: dict[str, Any]) -> ClassPrompts:
    attributes = Attributes(**{key: tuple(texts) for key, texts in row.get("attributes", {}).items()})
    lists = {key: tuple(row.get(key, ())) for key in _TEXT_LISTS}
    return ClassPrompts(
        row["own_name"], row["label"], attributes=attributes, spoken_name=row.get("spoken_name", ""), **lists
    )


@cache
def _shipped_bank(name: str) -> PromptBank:
    return parse_bank(_read_shared(name), f"{name}.json")


@cache
def _wordings(modality: BankModality) -> Mapping[str, Any]:
    """Shared wordings of a modality; none for banks of any modality."""
    return {} if modality == "any" else _read_shared(f"wordings_{modality.lower()}")["wordings"]


def _folder() -> Any:
    return files("radglint") / "data" / "prompts"


def _read_shared(name: str) -> Any:
    return _from_json((_folder() / f"{name}.json").read_text(encoding="utf-8"), f"{name}.json")


def _read_file(path: Path) -> Any:
    try:
        return _from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a JSON prompt bank") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; save the prompt bank as UTF-8 JSON") from error


def _from_json(text: str, where: str) -> Any:
    """JSON in which no object has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{where}: key {key!r} is there {keys.count(key)} times in one object; keep one")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested without end
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: not JSON that can be read ({error}); write the prompt bank again") from error
