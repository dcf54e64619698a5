"""Report sentences for findings whose place and size are known.

`write` says a `Fact` in one of many ways, from a bare query ("pleural effusion") to a full report line ("There is a
small left pleural effusion.").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radglint.simulation.facts import CONCEPTS, HELD_OUT, NAMES, Fact

__all__ = ["BANK", "CONCEPTS", "HELD_OUT", "Fact", "negated", "normal_sentences", "write", "write_report"]

_PLEURAL = frozenset({"pleural effusion", "pneumothorax", "chest tube"})
_DEVICE = frozenset({"pacemaker", "central line", "endotracheal tube"})
_SIZE_WORDS = {
    "small": ("small", "tiny", "minimal", "subtle", "minor"),
    "medium": ("moderate", "medium-sized", "moderately sized"),
    "large": ("large", "big", "extensive", "sizeable"),
}
_SPREAD_SIZE_WORDS = {
    "small": ("mild", "slight", "subtle", "minimal", "faint"),
    "medium": ("moderate",),
    "large": ("severe", "marked", "extensive"),
}
_SIZED_NAME_WORDS = frozenset({"small", "large", "big", "faint"})
_COUNTED = frozenset({"nodule", "mass", "pleural effusion", "pneumothorax", "calcified nodule", "hiatal hernia"})
_ZONE_WORDS = {
    "upper": ("upper lung", "upper zone", "upper lung zone", "upper lobe", "apex"),
    "mid": ("mid lung", "mid zone", "middle zone", "mid lung zone"),
    "lower": ("lower lung", "lower zone", "lower lung zone", "lower lobe", "base", "lung base"),
}
_BOTH_ZONE_WORDS = {
    "upper": ("upper lungs", "upper zones", "upper lobes", "apices"),
    "mid": ("mid lungs", "mid zones", "middle lung zones"),
    "lower": ("lower lungs", "lower zones", "lower lobes", "bases", "lung bases"),
}


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
    name = _pick((HELD_OUT if held_out else NAMES)[fact.concept], rng)
    if rng.random() < 0.22:
        return _finish(_bare(name), rng)
    sized = bool(fact.size) and not _SIZED_NAME_WORDS & set(name.split())
    size = _size_word(fact, rng) if sized and rng.random() < 0.5 else ""
    if rng.random() < 0.2:
        return _finish(_join(size, _bare(name)), rng)
    if fact.side and rng.random() < 0.4:
        return _finish(_adjective_form(fact, name, size, rng), rng)
    return _finish(_place_form(fact, name, size, rng), rng)


def write_report(facts: Sequence[Fact], rng: np.random.Generator) -> list[str]:
    """Write one sentence per fact, in order, or a normal sentence where there is none.

    Args:
        facts: The findings of one image.
        rng: Source of the choice of words.

    Returns:
        As many sentences as facts; one sentence for an image without findings.
    """
    if not facts:
        return [_pick(normal_sentences(), rng)]
    return [write(fact, rng) for fact in facts]


def negated(concept: str, rng: np.random.Generator) -> str:
    """Say that a concept is absent.

    Args:
        concept: A key of `BANK`.
        rng: Source of the choice of words.

    Returns:
        A sentence such as "No evidence of pneumothorax."
    """
    name = _bare(_pick(NAMES[concept], rng))
    template = _pick(
        ("No {}.", "no {}", "There is no {}.", "No evidence of {}.", "Without {}.", "No {} is seen.",
         "Negative for {}.", "No {} identified.", "no sign of {}", "Absence of {}.", "No definite {}."),
        rng,
    )  # fmt: skip
    return template.format(name)


def normal_sentences() -> tuple[str, ...]:
    """Return sentences that describe a normal chest, none of which names a concept of `BANK`."""
    return (
        "The lungs are clear.", "Clear lungs.", "Normal chest radiograph.", "No acute cardiopulmonary abnormality.",
        "No acute findings.", "Heart size is normal and the lungs are clear.", "Unremarkable chest.",
        "normal chest", "Normal study.", "The cardiomediastinal silhouette is normal.", "No finding.",
    )  # fmt: skip


def _adjective_form(fact: Fact, name: str, size: str, rng: np.random.Generator) -> str:
    """Put the side before the name: 'small left pleural effusion'."""
    sides = {"bilateral": ("bilateral",)}.get(fact.side or "", (str(fact.side), f"{fact.side}-sided"))
    side = _pick(sides, rng)
    lung_bound = fact.concept not in _PLEURAL | _DEVICE | {"rib fracture"}
    if fact.zone and lung_bound and fact.side != "bilateral" and rng.random() < 0.5:
        side = f"{fact.side} {_pick(_ZONE_WORDS[fact.zone][:3], rng)}"
    phrase = _join(size, side, _bare(name))
    if rng.random() < 0.5:
        return phrase
    mark = "~" if name.startswith("~") else ""
    return _statement(mark + phrase, "", rng)


def _place_form(fact: Fact, name: str, size: str, rng: np.random.Generator) -> str:
    """Put the place after the name: 'nodule in the left upper lobe'."""
    mark = "~" if name.startswith("~") else ""
    place = _place(fact, rng)
    phrase = mark + _join(size, _bare(name))
    if place and rng.random() < 0.4:
        return _bare(f"{phrase} {place}")
    return _statement(phrase, place, rng)


def _statement(phrase: str, place: str, rng: np.random.Generator) -> str:
    """Make a report line of a noun phrase and a place."""
    bare = _bare(phrase)
    verb = "are" if _plural(phrase) else "is"
    return _pick(
        (
            _join(_existential(phrase).rstrip("."), place) + ".",
            _join(bare, verb, _pick(("seen", "present", "noted", "visible"), rng), place) + ".",
            _join(_with_article(phrase), place) + ".",
            _join("Findings consistent with", _with_article(phrase), place) + ".",
            _join(bare, place) + ".",
        ),
        rng,
    )


def _place(fact: Fact, rng: np.random.Generator) -> str:
    """Say where a fact is, with its preposition, or the empty string where there is no place to say."""
    if fact.side is None:
        return f"in the {_pick(_BOTH_ZONE_WORDS[fact.zone], rng)}" if fact.zone else ""
    if fact.concept in _PLEURAL | _DEVICE:
        return _side_place(fact.side, rng)
    if fact.concept == "rib fracture":
        both = fact.side == "bilateral"
        return "on both sides" if both else _pick((f"on the {fact.side}", _side_place(fact.side, rng)), rng)
    if fact.side == "bilateral":
        both = ("in both lungs", "bilaterally", "on both sides")
        return f"in both {_pick(_BOTH_ZONE_WORDS[fact.zone], rng)}" if fact.zone else _pick(both, rng)
    if fact.zone and rng.random() < 0.75:
        zone = _pick(_ZONE_WORDS[fact.zone], rng)
        return f"{'at' if zone in {'apex', 'base'} else 'in'} the {fact.side} {zone}"
    return _pick((f"in the {fact.side} lung", f"on the {fact.side}", f"in the {fact.side} hemithorax"), rng)


def _side_place(side: str, rng: np.random.Generator) -> str:
    """Say the side of something that is not in the lung itself."""
    if side == "bilateral":
        return _pick(("bilaterally", "on both sides"), rng)
    return _pick((f"on the {side}", f"on the {side} side", f"in the {side} hemithorax", f"in the {side} chest"), rng)


def _size_word(fact: Fact, rng: np.random.Generator) -> str:
    """Choose a word for the size; diffuse findings are mild or severe, not small or big."""
    words = _SIZE_WORDS if fact.concept in _COUNTED else _SPREAD_SIZE_WORDS
    return _pick(words[fact.size], rng) if fact.size else ""


def _existential(phrase: str) -> str:
    """Make 'There is a ...' with the verb and the article that the phrase needs."""
    return f"There {'are' if _plural(phrase) else 'is'} {_with_article(phrase)}."


def _with_article(phrase: str) -> str:
    """Put 'a' or 'an' before a countable phrase."""
    if phrase.startswith("~"):
        return phrase[1:]
    return f"{'an' if phrase[0] in 'aeiouAEI' and not phrase.startswith('un') else 'a'} {phrase}"


def _plural(phrase: str) -> bool:
    """Tell a plural name by its last word."""
    last = phrase.split()[-1]
    return phrase.startswith("~") and (last in {"bullae"} or (last.endswith("s") and not last.endswith(("is", "ss"))))


def _bare(name: str) -> str:
    """Strip the article mark."""
    return name.removeprefix("~")


def _join(*words: str) -> str:
    """Join the words that are not empty."""
    return " ".join(word for word in words if word)


def _finish(text: str, rng: np.random.Generator) -> str:
    """Vary the capital letter and the full stop, as people who type queries do."""
    if rng.random() < 0.5 or text.endswith("."):
        text = text[0].upper() + text[1:]
    return text.rstrip(".") if rng.random() < 0.2 else text


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Choose one of several strings."""
    return options[int(rng.integers(len(options)))]


BANK: dict[str, tuple[str, ...]] = _bank()
"""Canonical prompts per concept, used at inference for scope and calibration."""
