"""Which sentence holds for which image: a table made by hand, and properties over thousands of written sentences."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radglint.simulation import sentences
from radglint.simulation.entailment import holds_for, spoken
from radglint.simulation.sentences import CONCEPTS, Fact, write

SIDES = (None, "left", "right", "bilateral")
ZONES = (None, "upper", "mid", "lower")
SIZES = (None, "small", "medium", "large")
FACTS = st.builds(Fact, *map(st.sampled_from, (CONCEPTS, SIDES, ZONES, SIZES)))
RANK = {"fails": 0, "unknown": 1, "holds": 2}


def fact(text: str) -> Fact:
    """In short: "nodule, left, upper, small"; words may be left out."""
    concept, *words = text.split(", ")

    def pick(options):
        return next((w for w in words if w in options), None)

    return Fact(concept, pick(SIDES), pick(ZONES), pick(SIZES))


TABLE = [
    # nothing there, the same thing, and unsaid details
    ("nodule", "", "fails"),
    ("nodule", "nodule", "holds"),
    ("nodule", "nodule, left, upper, small", "holds"),
    ("cardiomegaly", "cardiomegaly, large", "holds"),
    ("nodule, left", "nodule, left, lower, large", "holds"),
    ("nodule, upper", "nodule, right, upper", "holds"),
    ("nodule, large", "nodule, right, upper, large", "holds"),
    ("nodule, left, upper, small", "nodule, left, upper, small", "holds"),
    # sides
    ("nodule, left", "nodule, right", "fails"),
    ("pleural effusion, right", "pleural effusion, left, large", "fails"),
    ("nodule, left", "nodule", "unknown"),
    ("pleural effusion, left", "pleural effusion, bilateral", "holds"),
    ("pleural effusion, right", "pleural effusion, bilateral", "holds"),
    ("pleural effusion, bilateral", "pleural effusion, bilateral", "holds"),
    ("pleural effusion, bilateral", "pleural effusion, left", "unknown"),
    ("pleural effusion, bilateral", "pleural effusion", "unknown"),
    ("pleural effusion, bilateral", "pleural effusion, left; pleural effusion, right", "unknown"),
    ("pleural effusion, bilateral", "pneumothorax, bilateral", "fails"),
    # heights
    ("nodule, upper", "nodule, lower", "fails"),
    ("nodule, lower", "nodule, upper", "fails"),
    ("nodule, upper", "nodule, mid", "unknown"),
    ("nodule, mid", "nodule, lower", "unknown"),
    ("nodule, upper", "nodule", "unknown"),
    ("nodule, left, upper", "nodule, left, lower", "fails"),
    ("nodule, left, upper", "nodule, right, upper", "fails"),
    ("consolidation, lower", "consolidation, bilateral, lower", "holds"),
    ("consolidation, left, lower", "consolidation, bilateral, lower", "holds"),
    # sizes are a matter of opinion
    ("nodule, small", "nodule, large", "unknown"),
    ("nodule, small", "nodule, medium", "unknown"),
    ("nodule, small", "nodule", "unknown"),
    ("nodule, left, small", "nodule, right, small", "fails"),
    # look-alikes
    ("nodule", "mass", "unknown"),
    ("mass", "nodule, small", "unknown"),
    ("nodule", "calcified nodule", "unknown"),
    ("calcified nodule", "mass", "unknown"),
    ("consolidation", "ground-glass opacity", "unknown"),
    ("atelectasis", "consolidation", "unknown"),
    ("mass", "consolidation", "unknown"),
    ("interstitial pattern", "ground-glass opacity", "unknown"),
    ("pleural effusion", "atelectasis", "unknown"),
    # and things that do not look alike
    ("nodule", "consolidation", "fails"),
    ("interstitial pattern", "consolidation", "fails"),
    ("pleural effusion", "consolidation", "fails"),
    ("pneumothorax", "emphysema", "fails"),
    ("pacemaker", "central line", "fails"),
    ("chest tube", "endotracheal tube", "fails"),
    ("cardiomegaly", "pleural effusion, bilateral, large", "fails"),
    ("rib fracture", "chest tube", "fails"),
    # several findings: the best verdict counts
    ("nodule, left", "nodule, right; nodule, left", "holds"),
    ("nodule, left", "mass, left; nodule, left", "holds"),
    ("nodule, left", "nodule, right; mass, left", "unknown"),
    ("nodule, left", "nodule, right; pleural effusion, left", "fails"),
    ("nodule, left, small", "nodule, left, large; nodule, right, small", "unknown"),
    ("nodule, left, small", "nodule, left, large; nodule, left, small", "holds"),
    ("nodule, right, upper", "nodule, right, lower; nodule, left, upper", "fails"),
    ("pneumothorax, right", "chest tube, right; pneumothorax, right; cardiomegaly", "holds"),
]


@pytest.mark.parametrize(("statement", "image", "verdict"), TABLE)
def test_verdicts(statement: str, image: str, verdict: str) -> None:
    facts = [fact(text) for text in image.split("; ") if text]
    assert holds_for(fact(statement), facts) == verdict
    assert holds_for(fact(statement), facts[::-1]) == verdict


SAID = [
    ("nodule, left, upper, small", "There is a nodule.", "nodule"),
    ("nodule, left, upper, small", "small nodule in the LEFT upper lobe", "nodule, left, upper, small"),
    ("nodule, left, upper, small", "Left-sided nodule.", "nodule, left"),
    ("nodule, left, upper, small", "tiny nodule at the left apex", "nodule, left, upper, small"),
    ("consolidation, bilateral, lower", "Consolidation at the bases.", "consolidation, lower"),
    ("consolidation, bilateral, lower", "Consolidation is seen bilaterally.", "consolidation, bilateral"),
    ("consolidation, bilateral, lower", "consolidation in both lower lobes", "consolidation, bilateral, lower"),
    ("pleural effusion, right, medium", "moderately sized effusion, right side", "pleural effusion, right, medium"),
    ("pleural effusion, right, medium", "Medium-sized effusion", "pleural effusion, medium"),
    ("nodule, right, large", "small round opacity on the right", "nodule, right"),  # part of a name, not its size
    ("interstitial pattern, bilateral, large", "severe fibrosis", "interstitial pattern, large"),
    ("mass, mid", "mass in the middle zone", "mass, mid"),
]


@pytest.mark.parametrize(("true", "sentence", "said"), SAID)
def test_what_a_sentence_says(true: str, sentence: str, said: str) -> None:
    assert spoken(fact(true), sentence) == fact(said)


def said_in_words(text: str, true: Fact) -> tuple[bool, bool, bool]:
    """Whether side, zone and size of a fact are told in a sentence, from the tables that sentences are written from."""
    low = text.lower()

    def has(phrases) -> bool:
        return any(re.search(rf"\b{re.escape(p)}\b", low) for p in phrases)

    sides = {"left": ("left",), "right": ("right",), "bilateral": ("bilateral", "bilaterally", "both")}
    zones = sentences.ZONE_WORDS, sentences.BOTH_ZONE_WORDS
    sizes = sentences.SIZE_WORDS, sentences.SPREAD_SIZE_WORDS
    side = true.side is not None and has(sides[true.side])
    zone = true.zone is not None and has(itertools.chain(*(t[true.zone] for t in zones)))
    return side, zone, true.size is not None and has(itertools.chain(*(t[true.size] for t in sizes)))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_written_sentence_holds_for_its_image_and_keeps_what_it_says(concept: str) -> None:
    """All sides, zones and sizes, ten sentences each; about ten thousand over all concepts."""
    rng = np.random.default_rng(5)
    for k, (side, zone, size) in enumerate(itertools.product(SIDES, ZONES, SIZES)):
        true = Fact(concept, side, zone, size)  # type: ignore[arg-type]
        for n in range(10):
            text = write(true, rng, held_out=(k + n) % 4 == 0)
            said = spoken(true, text)
            told = said_in_words(text, true)
            for name, is_told in zip(("side", "zone", "size"), told, strict=True):
                assert getattr(said, name) in (None, getattr(true, name)), text
                if is_told:
                    assert getattr(said, name) == getattr(true, name), text
            words = set(re.findall(r"[a-z]+", text.lower()))
            if not words & {"left", "right", "bilateral", "bilaterally", "both"}:
                assert said.side is None, text
            assert said.concept == concept
            assert holds_for(said, [true]) == "holds"


@given(FACTS, st.lists(FACTS, max_size=4), st.integers(0, 2**32 - 1))
def test_a_sentence_holds_whatever_else_the_image_shows(true: Fact, others: list[Fact], seed: int) -> None:
    statement = spoken(true, write(true, np.random.default_rng(seed)))
    assert holds_for(statement, [*others, true]) == "holds"


@given(FACTS, st.lists(FACTS, max_size=4), FACTS)
def test_another_finding_never_makes_a_statement_less_true(statement: Fact, facts: list[Fact], extra: Fact) -> None:
    assert RANK[holds_for(statement, [*facts, extra])] >= RANK[holds_for(statement, facts)]


@given(FACTS, st.lists(FACTS, max_size=4), st.sampled_from(["side", "zone", "size"]))
def test_saying_less_is_never_less_true(statement: Fact, facts: list[Fact], name: str) -> None:
    assert RANK[holds_for(replace(statement, **{name: None}), facts)] >= RANK[holds_for(statement, facts)]


@given(FACTS, st.lists(FACTS, max_size=3), st.lists(FACTS, max_size=3))
def test_what_an_image_hides_leaves_undecided_what_it_would_decide(
    statement: Fact, facts: list[Fact], hidden: list[Fact]
) -> None:
    seen, known = holds_for(statement, facts), holds_for(statement, [*facts, *hidden])
    assert holds_for(statement, facts, hidden) == (seen if seen == known else "unknown")
    assert holds_for(statement, facts, ()) == seen
    assert holds_for(statement, [], [statement]) == "unknown"
