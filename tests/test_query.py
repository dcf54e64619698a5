"""The assertion parser: a hand-made table, then properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radglint.errors import QueryError
from radglint.query import MAX_QUERY_CHARACTERS, parse_query

PRESENT = """
pleural effusion | pleural effusion
There is a small left pleural effusion. | small left pleural effusion
the heart | heart
is there a pleural effusion? | pleural effusion
Are there any nodules? | nodules
no change in effusion | effusion
no significant interval change in the left effusion | left effusion
not only effusion | effusion
non-calcified nodule | non-calcified nodule
noncalcified nodule | noncalcified nodule
non calcified nodule | non calcified nodule
nodule without calcification | nodule
nodule with no calcification | nodule
normal heart | normal heart
unremarkable mediastinum | unremarkable mediastinum
lungs are clear | lungs are clear
consolidation, no effusion | consolidation
consolidation but no effusion | consolidation
effusion has not resolved | effusion
unresolved pneumonia | unresolved pneumonia
partially resolved effusion | effusion
not without effusion | effusion
resolving pneumonia | resolving pneumonia
suspicious nodule | suspicious nodule
indeterminate nodule | indeterminate nodule
nodule is not calcified | nodule
nodule that is not calcified | nodule
effusion is not large | effusion
heart is not normal | heart is abnormal
nodule with or without calcification | nodule
Stanford type A aortic dissection | Stanford type A aortic dissection
effusion in the left lung | effusion in left lung
No. 3 rib fracture | No. 3 rib fracture
gram negative pneumonia | gram negative pneumonia
pulmonary nodule | pulmonary nodule
left lower lobe mass | left lower lobe mass
unchanged left effusion | unchanged left effusion
mass in the left lower lobe | mass in left lower lobe
small nodule in a segment | small nodule in segment
not normal heart | abnormal heart
A nodule | nodule
evidence of edema | edema
no doubt pneumonia | pneumonia
find the effusion | effusion
where is the nodule? | nodule
épanchement pleural gauche | épanchement pleural gauche
cardiomegaly | cardiomegaly
no improvement in edema | edema
effusion not increased | effusion
no lack of effusion | effusion
"""

ABSENT = """
no left pleural effusion | left pleural effusion
No effusion | effusion
without pneumothorax | pneumothorax
there is no evidence of pneumonia | pneumonia
no radiographic evidence of acute disease | acute disease
absence of consolidation | consolidation
free of nodules | nodules
negative for pulmonary embolism | pulmonary embolism
resolved effusion | effusion
pneumonia has resolved | pneumonia
effusion is absent | effusion
pneumothorax is not seen | pneumothorax
pneumothorax not identified | pneumothorax
the effusion has cleared | effusion
heart is not enlarged | enlarged heart
the cardiac silhouette is not enlarged | enlarged cardiac silhouette
not enlarged heart | enlarged heart
effusion is no longer seen | effusion
no longer visible nodule | nodule
effusion no longer present | effusion
no acute abnormality | acute abnormality
lungs are free of consolidation | consolidation in lungs
left lung without nodule | nodule in left lung
chest x-ray shows no pneumothorax | pneumothorax
there isn't a nodule | nodule
there is not any effusion | effusion
no effusion or pneumothorax | effusion or pneumothorax
neither effusion nor pneumothorax | effusion or pneumothorax
no effusion but consolidation | effusion
pneumothorax: none | pneumothorax
effusion - absent | effusion
pneumonia ruled out | pneumonia
no suspicious nodule | suspicious nodule
lack of vascular markings | vascular markings
I do not see a nodule | nodule
does not show consolidation | consolidation
no definite pneumothorax | pneumothorax
no focal consolidation, effusion or pneumothorax | focal consolidation, effusion or pneumothorax
normal chest without effusion | effusion
clear lungs without effusion | effusion in lungs
no new consolidation | new consolidation
no pneumonia seen | pneumonia
no enlarged lymph nodes | enlarged lymph nodes
no increased density | increased density
no increased interstitial markings | increased interstitial markings
lymph nodes are not enlarged | enlarged lymph nodes
absent left lung | left lung
patient has no effusion | effusion
not suspicious for malignancy | malignancy
mediastinum is not widened | widened mediastinum
pneumothorax has not been identified | pneumothorax
nothing abnormal | abnormal
endotracheal tube not visualized | endotracheal tube
no cardiomegaly, no effusion | cardiomegaly
without any pleural effusion | pleural effusion
the scan is negative for emphysema | emphysema
"""

UNCERTAIN = """
rule out pneumonia | pneumonia
r/o PE | PE
possible pneumonia | pneumonia
possibly a nodule | nodule
may be consolidation | consolidation
there may be a small effusion | small effusion
cannot exclude pneumothorax | pneumothorax
can't exclude pneumothorax | pneumothorax
pneumothorax cannot be excluded | pneumothorax
pneumonia is not excluded | pneumonia
suspicious for malignancy | malignancy
likely atelectasis | atelectasis
questionable nodule | nodule
probable edema | edema
? pneumonia | pneumonia
?effusion | effusion
pneumonia? | pneumonia
probably no effusion | effusion
pneumonia unlikely | pneumonia
pneumonia is unlikely | pneumonia
opacity may represent pneumonia | opacity pneumonia
does not exclude pneumonia | pneumonia
pneumothorax not well seen | pneumothorax
concerning for metastasis | metastasis
suspected tuberculosis | tuberculosis
(?) nodule | nodule
Pneumothorax not well seen | Pneumothorax
we cannot rule out a small pneumothorax | small pneumothorax
"""


def rows(table: str, assertion: str) -> list[tuple[str, str, str]]:
    pairs = [line.split(" | ") for line in table.strip().splitlines()]
    return [(query, phrase, assertion) for query, phrase in pairs]


TABLE = rows(PRESENT, "present") + rows(ABSENT, "absent") + rows(UNCERTAIN, "uncertain")
VOCABULARY = """
no not without effusion nodule heart is enlarged of seen cleared resolved possible cannot exclude lungs
free the a left change in evidence may be ? , . but and or for negative rule out longer normal never absent none
there"""
WORDS = st.sampled_from(VOCABULARY.split())


def test_the_table_is_large() -> None:
    assert len({query for query, _, _ in TABLE}) >= 120


@pytest.mark.parametrize(("text", "phrase", "assertion"), TABLE)
def test_table(text: str, phrase: str, assertion: str) -> None:
    query = parse_query(text)
    assert (query.assertion, query.phrase) == (assertion, phrase)


@pytest.mark.parametrize(("text", "phrase", "assertion"), TABLE)
def test_case_stops_and_spaces_change_nothing(text: str, phrase: str, assertion: str) -> None:
    assert parse_query(text.upper()).assertion == assertion
    for variant in (text[0].upper() + text[1:], f"  {text} .", text.replace(" ", "\u00a0 \t")):
        query = parse_query(variant)
        assert (query.assertion, query.phrase.lower()) == (assertion, phrase.lower()), variant


@pytest.mark.parametrize(
    "text", ["", "  \n", "\x00\x1b\u200b", "???", "12 / 5", "no", "there is no", "not without", "?\u0301"]
)
def test_nothing_asked_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="write"):
        parse_query(text)


@pytest.mark.parametrize("value", [None, 3, b"effusion", ["effusion"], float("nan")])
def test_not_text_is_refused(value: object) -> None:
    with pytest.raises(QueryError, match="must be text, got"):
        parse_query(value)  # type: ignore[arg-type]


def test_length_limit_from_both_sides() -> None:
    assert parse_query("e" * MAX_QUERY_CHARACTERS).assertion == "present"
    with pytest.raises(QueryError, match="2001 characters"):
        parse_query("e" * (MAX_QUERY_CHARACTERS + 1))


def test_text_is_composed() -> None:
    assert parse_query("e\u0301panchement").phrase == "\u00e9panchement"


def test_a_left_out_statement_is_noted() -> None:
    assert "own query" in parse_query("no effusion but a large nodule").note
    assert "'nodule' is asked" in parse_query("nodule without calcification").note
    assert parse_query("no effusion").note == ""


@pytest.mark.parametrize("word", ["no ", "not seen ", "is ", "a-a ", "heart ", "lungs are not ", "no longer ", "- "])
def test_the_longest_queries_end(word: str) -> None:
    """A regular expression that backtracks without bound would hang here."""
    text = (word * MAX_QUERY_CHARACTERS)[: MAX_QUERY_CHARACTERS - 9] + " effusion"
    if word not in ("no ", "not seen ", "is ", "no longer "):
        assert parse_query(text).phrase
        return
    with pytest.raises(QueryError, match="says and unsays its finding"):
        parse_query(text)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(WORDS, min_size=1, max_size=9).map(" ".join)))
def test_any_text_is_parsed_or_refused_and_its_phrase_is_present(text: str) -> None:
    try:
        query = parse_query(text)
    except QueryError:
        return
    again = parse_query(query.phrase)
    assert (again.phrase, again.assertion) == (query.phrase, "present")
