"""Sentences say what the fact says, never something else."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radglint.simulation import sentences
from radglint.simulation.sentences import BANK, CONCEPTS, HELD_OUT, Fact, write

_FACTS = st.builds(
    Fact,
    st.sampled_from(CONCEPTS),
    st.sampled_from([None, "left", "right", "bilateral"]),
    st.sampled_from([None, "upper", "mid", "lower"]),
    st.sampled_from([None, "small", "medium", "large"]),
)
_SEEDS = st.integers(0, 2**32 - 1)


@given(_FACTS, _SEEDS, st.booleans())
def test_no_sentence_says_the_wrong_side(fact: Fact, seed: int, held_out: bool) -> None:
    """A left finding is never called right or bilateral, and so on."""
    words = set(re.findall(r"[a-z]+", write(fact, np.random.default_rng(seed), held_out=held_out).lower()))
    said = words & {"left", "right"} | ({"bilateral"} if words & {"bilateral", "bilaterally", "both"} else set())
    if fact.concept not in {"pleural effusion"} or fact.side is not None:
        assert said <= {fact.side}


@given(_FACTS, _SEEDS)
def test_no_sentence_says_the_wrong_height_or_size(fact: Fact, seed: int) -> None:
    """An upper nodule is never at the base, a small one never large."""
    text = write(fact, np.random.default_rng(seed)).lower()
    heights = {"upper": "upper lung|upper zone|upper lobe", "lower": "lower lung|lower zone|lower lobe|base"}
    for zone, pattern in heights.items():
        if fact.zone != zone:
            assert not re.search(pattern, text), text
    if fact.size == "small":
        assert not re.search(r"\b(extensive|marked|sizeable|severe)\b", text), text
    if fact.size == "large":
        assert not re.search(r"\b(tiny|minimal|mild|slight)\b", text), text


@given(_FACTS, _SEEDS)
def test_sentences_are_well_formed(fact: Fact, seed: int) -> None:
    """No marks of the generator, no double spaces, no wrong article."""
    text = write(fact, np.random.default_rng(seed))
    assert text == text.strip()
    assert "~" not in text
    assert "  " not in text
    assert ".." not in text
    assert "None" not in text
    assert not re.search(r"\ba [aeio]|\ban [^aeiouAEI]", text), text


def test_the_same_seed_writes_the_same() -> None:
    """Writing is a function of the generator's state."""
    fact = Fact("nodule", "left", "upper", "small")
    first, second = ([write(fact, np.random.default_rng(7)) for _ in range(3)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("concept", CONCEPTS)
def test_phrasings_are_many_and_some_are_long(concept: str) -> None:
    """Bare queries and report lines both occur."""
    rng = np.random.default_rng(0)
    texts = {write(Fact(concept, "left", "lower", "small"), rng) for _ in range(200)}
    lengths = [len(text.split()) for text in texts]
    assert len(texts) > 60
    assert min(lengths) <= 3
    assert max(lengths) >= 7


def test_held_out_names_are_never_written_in_training() -> None:
    """No training sentence contains a held-out phrasing of any concept."""
    rng = np.random.default_rng(0)
    assert set(HELD_OUT) == set(CONCEPTS)
    names = [name.removeprefix("~").lower() for name in itertools.chain(*HELD_OUT.values())]
    for concept in CONCEPTS:
        written = " | ".join(write(Fact(concept), rng) for _ in range(150)).lower()
        assert not [name for name in names if name in written]
        held = [write(Fact(concept), rng, held_out=True).lower() for _ in range(20)]
        own = [name.removeprefix("~").lower() for name in HELD_OUT[concept]]
        assert all(any(name in text for name in own) for text in held)


def test_no_name_belongs_to_two_concepts() -> None:
    """A phrase means one concept only, held-out phrasings included."""
    names = [*itertools.chain(*sentences.NAMES.values()), *itertools.chain(*HELD_OUT.values())]
    assert len({name.removeprefix("~").lower() for name in names}) == len(names)


def test_the_bank_names_every_concept() -> None:
    """Each concept has at least four prompts and the first is its name."""
    assert set(BANK) == set(CONCEPTS)
    assert all(prompts[0] == concept and len(prompts) >= 4 for concept, prompts in BANK.items())


def test_an_unknown_concept_is_refused() -> None:
    """The message names the concept."""
    with pytest.raises(ValueError, match="'unicorn'"):
        Fact("unicorn")
