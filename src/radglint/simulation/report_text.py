"""A whole report for an image whose facts are known: findings, impression, negations, doubt, and asides.

What it states of an image is true: every present or doubtful finding is a fact, everything negated or called normal is
absent and has no look-alike among the facts. Two kinds of doubt are written: of a subtle fact ("possible nodule"), and
of an absent finding that "cannot be excluded"; the latter are listed in `Report.doubted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radglint.simulation import sentences
from radglint.simulation.entailment import holds_for
from radglint.simulation.facts import HELD_OUT, NAMES, Fact

_LUNGS = ("nodule", "mass", "consolidation", "ground-glass opacity", "atelectasis", "interstitial pattern")
_ACUTE = ("consolidation", "pleural effusion", "pneumothorax")
_SUBTLE = 0.75
_HEDGE_CHANCE, _CANNOT_EXCLUDE_CHANCE = 0.4, 0.06
_EASY_TO_MISS = ("pleural effusion", "atelectasis", "consolidation", "nodule")

_PRESENT = (
    "There is {}.",
    "{} is seen.",
    "{} is present.",
    "{}.",
    "{} is noted.",
    "{} is visible.",
    "Findings show {}.",
)
_PRESENT_HELD_OUT = ("{} is demonstrated.", "The image shows {}.", "Note is made of {}.")
_DOUBTFUL = ("Possible {}.", "{} is possible.", "Probable {}.", "{} is suspected.", "There may be {}.")
_DOUBTFUL_HELD_OUT = ("Suspected {}.", "Questionable {}.")
_ABSENT = (
    "No {}.",
    "There is no {}.",
    "No evidence of {}.",
    "No {} is seen.",
    "No {} is identified.",
    "Negative for {}.",
)
_ABSENT_HELD_OUT = ("No sign of {}.", "{} is not seen.", "No visible {}.")
_NORMAL: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (_LUNGS, ("The lungs are clear.", "Both lungs are clear.", "Lungs are clear.")),
    (("cardiomegaly",), ("Heart size is normal.", "The cardiac silhouette is normal.", "The heart is normal in size.")),
    (("pleural effusion",), ("The costophrenic angles are sharp.", "Costophrenic angles are clear.")),
    (("rib fracture",), ("The bony thorax is intact.", "Osseous structures are unremarkable.", "The ribs are intact.")),
)
_ALL_NORMAL = ("No acute cardiopulmonary abnormality.", "No acute cardiopulmonary process.", "Normal chest.")
_BESIDE = (
    "Comparison: none.", "No prior study is available for comparison.", "Prior cholecystectomy.",
    "Degenerative changes of the spine.", "The patient is rotated.", "The aorta is tortuous.",
    "Status post cholecystectomy.", "Clinical correlation is advised.", "Follow-up as clinically indicated.",
    "The upper abdomen is not fully included.", "History of hypertension.", "Prior knee replacement.",
    "The study is compared with an outside examination.", "Mild scoliosis of the thoracic spine.",
)  # fmt: skip
_ALL_NAMES = frozenset(name.removeprefix("~") for names in NAMES.values() for name in names)


@dataclass(frozen=True)
class Report:
    """What a radiologist would write.

    Attributes:
        findings: several sentences.
        impression: one or a few sentences.
        doubted: absent concepts that the findings call not excluded.
    """

    findings: str
    impression: str
    doubted: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole report with its headings."""
        return f"FINDINGS: {self.findings}\nIMPRESSION: {self.impression}"


def write_full_report(
    facts: Sequence[Fact],
    rng: np.random.Generator,
    *,
    subtlety: Sequence[float] | None = None,
    concepts: Sequence[str] = tuple(NAMES),
    held_out: bool = False,
) -> Report:
    """Write a report about an image.

    Args:
        facts: everything that the image shows.
        rng: source of the choice of words.
        subtlety: of each fact, 0 easy to 1 hard (see `subtlety`); hard ones are sometimes put in doubt. 0 if None.
        concepts: what may be negated: the findings that this kind of image could show.
        held_out: use names and templates that are never written in training.

    Returns:
        The report.
    """
    hard = list(subtlety) if subtlety is not None else [0.0] * len(facts)
    hedged = [s > _SUBTLE and rng.random() < _HEDGE_CHANCE for s in hard]
    absent = [c for c in concepts if holds_for(Fact(c), facts) == "fails"]
    stated = [_fact_sentence(f, h, rng, held_out) for f, h in zip(facts, hedged, strict=True)]
    doubted = [c for c in _EASY_TO_MISS if c in absent and rng.random() < _CANNOT_EXCLUDE_CHANCE][:1]
    denied = [c for c in absent if c not in doubted]
    body = [*stated, *(f"{_capital(_noun(c, rng, held_out))} cannot be excluded." for c in doubted)]
    body += _normal_lines(denied, rng) + _denials(denied, rng, held_out)
    body += [sentences.pick(_BESIDE, rng)] if rng.random() < 0.35 else []
    order = rng.permutation(len(body))
    impression = _impression(facts, hedged, doubted, rng, held_out)
    return Report(" ".join(body[k] for k in order), impression, tuple(doubted))


def _fact_sentence(fact: Fact, is_hedged: bool, rng: np.random.Generator, held_out: bool) -> str:
    """One sentence with size, side and zone where they are known; some are left out now and then."""
    phrase = describe(fact, rng, held_out=held_out)
    if is_hedged:
        bare = phrase.removeprefix("a ").removeprefix("an ")
        template = sentences.pick(_DOUBTFUL_HELD_OUT if held_out else _DOUBTFUL, rng)
        return _capital(template.format(bare if template.endswith(" {}.") and "be {}" not in template else phrase))
    template = sentences.pick(_PRESENT_HELD_OUT if held_out else _PRESENT, rng)
    return _agree(_capital(template.format(phrase)), phrase)


def describe(fact: Fact, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """A noun phrase with its article: "a small nodule in the left upper lobe".

    Args:
        fact: what to say.
        rng: source of the choice of words.
        held_out: take the name from `HELD_OUT`.
    """
    marked = sentences.pick((HELD_OUT if held_out else NAMES)[fact.concept], rng)
    mark, name = ("~", marked[1:]) if marked.startswith("~") else ("", marked)
    sized = fact.size and not sentences.SIZED_NAME_WORDS & set(name.split()) and rng.random() < 0.7
    size = sentences.say_size(fact, rng) if sized else ""
    size = "" if f"{size} {name}" in _ALL_NAMES else size  # a large "rounded opacity" would be a mass
    if fact.side and not fact.zone and rng.random() < 0.5:
        return sentences.with_article(mark + sentences.join_words(size, fact.side, name))
    place = sentences.say_place(fact, rng)
    return sentences.join_words(sentences.with_article(mark + sentences.join_words(size, name)), place)


def _agree(sentence: str, phrase: str) -> str:
    """Plural verbs for plural names."""
    first = phrase.split(" in the ")[0].split(" on the ")[0].split(" at the ")[0].split(" in both ")[0]
    if first.startswith(("a ", "an ")) or not sentences.is_plural("~" + first):
        return sentence
    return sentence.replace(" is ", " are ").replace("There is", "There are")


def _normal_lines(absent: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Normal statements whose findings are all absent."""
    fitting = [lines for concepts, lines in _NORMAL if set(concepts) <= set(absent)]
    return [sentences.pick(lines, rng) for lines in fitting if rng.random() < 0.45]


def _denials(absent: Sequence[str], rng: np.random.Generator, held_out: bool) -> list[str]:
    """Up to two negated sentences, of one finding or of two."""
    lines = []
    for _ in range(int(rng.integers(0, 3))):
        count = min(1 if held_out else int(rng.integers(1, 3)), len(absent))
        if not count:
            break
        chosen = [str(c) for c in rng.choice(list(absent), count, replace=False)]
        names = " or ".join(_noun(c, rng, held_out) for c in chosen)
        lines.append(_capital(sentences.pick(_ABSENT_HELD_OUT if held_out else _ABSENT, rng).format(names)))
    return lines


def _impression(
    facts: Sequence[Fact], hedged: Sequence[bool], doubted: Sequence[str], rng: np.random.Generator, held_out: bool
) -> str:
    """The facts again in other words, or that there is nothing acute."""
    if facts:
        return " ".join(_fact_sentence(f, h, rng, held_out) for f, h in zip(facts, hedged, strict=True))
    if doubted:
        return f"{_capital(_noun(doubted[0], rng, held_out))} cannot be excluded."
    return sentences.pick(_ALL_NORMAL, rng)


def _noun(concept: str, rng: np.random.Generator, held_out: bool) -> str:
    """A name without its mark."""
    return sentences.pick((HELD_OUT if held_out else NAMES)[concept], rng).removeprefix("~")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
