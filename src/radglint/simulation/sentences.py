"""Report sentences for findings whose place and size are known.

`write` says a `Fact` in one of many ways, from a bare query ("pleural effusion") to a full report line ("There is a
small left pleural effusion.").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radglint.simulation.facts import CONCEPTS, HELD_OUT, NAMES, Fact

__all__ = ["BANK", "CONCEPTS", "HELD_OUT", "Fact", "write"]

_PLEURAL = frozenset({"pleural effusion", "pneumothorax", "chest tube"})
_DEVICE = frozenset({"pacemaker", "central line", "endotracheal tube"})
SIZE_WORDS = {
    "small": ("small", "tiny", "minimal", "subtle", "minor"),
    "medium": ("moderate", "medium-sized", "moderately sized"),
    "large": ("large", "big", "extensive", "sizeable"),
}
"""Words for the size of what can be counted."""
SPREAD_SIZE_WORDS = {
    "small": ("mild", "slight", "subtle", "minimal", "faint"),
    "medium": ("moderate",),
    "large": ("severe", "marked", "extensive"),
}
"""Words for the extent of what spreads."""
SIZED_NAME_WORDS = frozenset({"small", "large", "big", "faint"})
"""A name with one of these takes no other word of size."""
_COUNTED = frozenset({"nodule", "mass", "pleural effusion", "pneumothorax", "calcified nodule", "hiatal hernia"})
ZONE_WORDS = {
    "upper": ("upper lung", "upper zone", "upper lung zone", "upper lobe", "apex"),
    "mid": ("mid lung", "mid zone", "middle zone", "mid lung zone"),
    "lower": ("lower lung", "lower zone", "lower lung zone", "lower lobe", "base", "lung base"),
}
"""Names of a zone of one lung."""
BOTH_ZONE_WORDS = {
    "upper": ("upper lungs", "upper zones", "upper lobes", "apices"),
    "mid": ("mid lungs", "mid zones", "middle lung zones"),
    "lower": ("lower lungs", "lower zones", "lower lobes", "bases", "lung bases"),
}
"""Names of a zone of both lungs."""


def _bank() -> dict[str, tuple[str, ...]]:
    """Make the canonical prompts: three to five plain names, and two sentences of the first."""
    bank = {}
    for concept, names in NAMES.items():
        plain = [_bare(name) for name in names[:5]]
        bank[concept] = (*dict.fromkeys((concept, *plain)), _existential(names[0]))
    return bank


def write(fact: Fact, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """Say a fact in one sentence or short query.

    Args:
        fact: What to say.
        rng: Source of the choice of words.
        held_out: Take the name from `HELD_OUT` (evaluation) rather than from the training names.

    Returns:
        One phrase; words for side, zone and size are sometimes left out, never wrong.
    """
    name = pick((HELD_OUT if held_out else NAMES)[fact.concept], rng)
    if rng.random() < 0.22:
        return _finish(_bare(name), rng)
    sized = bool(fact.size) and not SIZED_NAME_WORDS & set(name.split())
    size = say_size(fact, rng) if sized and rng.random() < 0.5 else ""
    if rng.random() < 0.2:
        return _finish(join_words(size, _bare(name)), rng)
    if fact.side and rng.random() < 0.4:
        return _finish(_adjective_form(fact, name, size, rng), rng)
    return _finish(_place_form(fact, name, size, rng), rng)


def _adjective_form(fact: Fact, name: str, size: str, rng: np.random.Generator) -> str:
    """Put the side before the name: 'small left pleural effusion'."""
    sides = {"bilateral": ("bilateral",)}.get(fact.side or "", (str(fact.side), f"{fact.side}-sided"))
    side = pick(sides, rng)
    lung_bound = fact.concept not in _PLEURAL | _DEVICE | {"rib fracture"}
    if fact.zone and lung_bound and fact.side != "bilateral" and rng.random() < 0.5:
        side = f"{fact.side} {pick(ZONE_WORDS[fact.zone][:3], rng)}"
    phrase = join_words(size, side, _bare(name))
    if rng.random() < 0.5:
        return phrase
    mark = "~" if name.startswith("~") else ""
    return _statement(mark + phrase, "", rng)


def _place_form(fact: Fact, name: str, size: str, rng: np.random.Generator) -> str:
    """Put the place after the name: 'nodule in the left upper lobe'."""
    mark = "~" if name.startswith("~") else ""
    place = say_place(fact, rng)
    phrase = mark + join_words(size, _bare(name))
    if place and rng.random() < 0.4:
        return _bare(f"{phrase} {place}")
    return _statement(phrase, place, rng)


def _statement(phrase: str, place: str, rng: np.random.Generator) -> str:
    """Make a report line of a noun phrase and a place."""
    bare = _bare(phrase)
    verb = "are" if is_plural(phrase) else "is"
    return pick(
        (
            join_words(_existential(phrase).rstrip("."), place) + ".",
            join_words(bare, verb, pick(("seen", "present", "noted", "visible"), rng), place) + ".",
            join_words(with_article(phrase), place) + ".",
            join_words("Findings consistent with", with_article(phrase), place) + ".",
            join_words(bare, place) + ".",
        ),
        rng,
    )


def say_place(fact: Fact, rng: np.random.Generator) -> str:
    """Say where a fact is, with its preposition, or the empty string where there is no place to say."""
    if fact.side is None:
        return f"in the {pick(BOTH_ZONE_WORDS[fact.zone], rng)}" if fact.zone else ""
    if fact.concept in _PLEURAL | _DEVICE:
        return _side_place(fact.side, rng)
    if fact.concept == "rib fracture":
        both = fact.side == "bilateral"
        return "on both sides" if both else pick((f"on the {fact.side}", _side_place(fact.side, rng)), rng)
    if fact.side == "bilateral":
        both = ("in both lungs", "bilaterally", "on both sides")
        return f"in both {pick(BOTH_ZONE_WORDS[fact.zone], rng)}" if fact.zone else pick(both, rng)
    if fact.zone and rng.random() < 0.75:
        zone = pick(ZONE_WORDS[fact.zone], rng)
        return f"{'at' if zone in {'apex', 'base'} else 'in'} the {fact.side} {zone}"
    return pick((f"in the {fact.side} lung", f"on the {fact.side}", f"in the {fact.side} hemithorax"), rng)


def _side_place(side: str, rng: np.random.Generator) -> str:
    """Say the side of something that is not in the lung itself."""
    if side == "bilateral":
        return pick(("bilaterally", "on both sides"), rng)
    return pick((f"on the {side}", f"on the {side} side", f"in the {side} hemithorax", f"in the {side} chest"), rng)


def say_size(fact: Fact, rng: np.random.Generator) -> str:
    """Choose a word for the size; diffuse findings are mild or severe, not small or big."""
    words = SIZE_WORDS if fact.concept in _COUNTED else SPREAD_SIZE_WORDS
    return pick(words[fact.size], rng) if fact.size else ""


def _existential(phrase: str) -> str:
    """Make 'There is a ...' with the verb and the article that the phrase needs."""
    return f"There {'are' if is_plural(phrase) else 'is'} {with_article(phrase)}."


def with_article(phrase: str) -> str:
    """Put 'a' or 'an' before a countable phrase."""
    if phrase.startswith("~"):
        return phrase[1:]
    return f"{'an' if phrase[0] in 'aeiouAEI' and not phrase.startswith('un') else 'a'} {phrase}"


def is_plural(phrase: str) -> bool:
    """Tell a plural name by its last word."""
    last = phrase.split()[-1]
    return phrase.startswith("~") and (last in {"bullae"} or (last.endswith("s") and not last.endswith(("is", "ss"))))


def _bare(name: str) -> str:
    """Strip the article mark."""
    return name.removeprefix("~")


def join_words(*words: str) -> str:
    """Join the words that are not empty."""
    return " ".join(word for word in words if word)


def _finish(text: str, rng: np.random.Generator) -> str:
    """Vary the capital letter and the full stop, as people who type queries do."""
    if rng.random() < 0.5 or text.endswith("."):
        text = text[0].upper() + text[1:]
    return text.rstrip(".") if rng.random() < 0.2 else text


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Choose one of several strings."""
    return options[int(rng.integers(len(options)))]


BANK: dict[str, tuple[str, ...]] = _bank()
"""Canonical prompts per concept, used at inference for scope and calibration."""
