"""Reports to statements: sections, sentences, readings, duplicates."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radglint.errors import ConfigError, ReportError
from radglint.query import MAX_QUERY_CHARACTERS
from radglint.report_normal import ACUTE, CHEST, LUNGS
from radglint.report_reading import NO_SIDE, read_sentence
from radglint.report_sections import split_sections
from radglint.report_sentences import split_sentences
from radglint.reports import Statement, read_report, same_meaning
from radglint.simulation.entailment import spoken
from radglint.simulation.sentences import CONCEPTS, HELD_OUT, NAMES, Fact, write

# --- sections


def names(report: str) -> list[str]:
    return [section.name for section in split_sections(report)]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("", []),
        ("Clear lungs. No effusion.", ["unlabelled"]),
        ("FINDINGS: Clear.\nIMPRESSION: Normal.", ["findings", "impression"]),
        ("findings: clear. impression: normal.", ["findings", "impression"]),
        ("Findings\nClear.\nImpression\nNormal.", ["findings", "impression"]),
        ("FINDINGS The lungs are clear.\nIMPRESSION Normal chest.", ["findings", "impression"]),
        ("Clinical history: cough. Comparison: None. Findings: Clear.", ["indication", "comparison", "findings"]),
        (
            "EXAM: CHEST PA\nTECHNIQUE: two views\nFINDINGS AND IMPRESSION: Clear.",
            ["examination", "technique", "findings"],
        ),
        ("INDICATION: cough.\nRECOMMENDATION: CT.", ["indication", "other"]),
        ("Findings are consistent with edema.", ["unlabelled"]),
        ("FINDINGS ARE CONSISTENT WITH EDEMA.", ["unlabelled"]),
        ("Chest film. IMPRESSION - No effusion.", ["unlabelled", "impression"]),
        ("**FINDINGS:** Clear.", ["findings"]),
        ("COMPARISON: None.\n\nLungs clear.\n\nIMPRESSION: ok", ["comparison", "unlabelled", "impression"]),
        ("COMPARISON: None.\n\nOf 2010.\n\nFINDINGS: Clear.", ["comparison", "findings"]),
        ("INDICATION: cough.\n\nRule out effusion.\n\nIMPRESSION: ok", ["indication", "impression"]),
    ],
)
def test_sections(report: str, expected: list[str]) -> None:
    assert names(report) == expected


@pytest.mark.parametrize("heading", ["INDICATION", "History", "clinical information", "Reason for exam", "COMPARISON"])
@pytest.mark.parametrize("mark", [": ", ":\n", "\n"])
def test_only_findings_and_impression_yield_statements(heading: str, mark: str) -> None:
    report = read_report(f"{heading}{mark}Rule out pneumothorax. Left effusion.\nFINDINGS: Clear lungs.\n")
    assert [(s.text, s.section) for s in report.statements] == [("Clear lungs.", "findings")]


# --- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No effusion. Heart normal", ["No effusion.", "Heart normal"]),
        ("A 1.2 cm nodule. A 3 x 2.5 cm mass.", ["A 1.2 cm nodule.", "A 3 x 2.5 cm mass."]),
        ("1. No effusion. 2. Nodule. 3.Edema", ["No effusion.", "Nodule.", "Edema"]),
        ("1) No effusion\n2) Nodule", ["No effusion", "Nodule"]),
        ("- No effusion\n- Nodule", ["No effusion", "Nodule"]),
        ("Discussed with Dr. Smith at 3 p.m. by phone. Ok then.",
         ["Discussed with Dr. Smith at 3 p.m. by phone.", "Ok then."]),
        ("Seen at 4 p.m. No change.", ["Seen at 4 p.m.", "No change."]),
        ("Compared to 3.5.2010 and Jan. 2012. Stable.", ["Compared to 3.5.2010 and Jan. 2012.", "Stable."]),
        ("Film of [**2101-1-1**] by [**Last. Name**] seen. Clear.",
         ["Film of [**2101-1-1**] by [**Last. Name**] seen.", "Clear."]),
        ("XXXX. ____. Clear XXXX. XXXX lungs.", ["Clear XXXX.", "XXXX lungs."]),
        ("Lungs clear.Heart normal.", ["Lungs clear.", "Heart normal."]),
        ("clear lungs. there is no effusion.", ["clear lungs.", "there is no effusion."]),
        ("No effusion\nNo nodule\n\nClear", ["No effusion", "No nodule", "Clear"]),
        ("The lungs are without any focal\nconsolidation.", ["The lungs are without any focal\nconsolidation."]),
        ("Is there a nodule? Yes! Really.", ["Is there a nodule?", "Yes!", "Really."]),
        ("Opacity, approx. 2 cm, vs. scar. Stable.", ["Opacity, approx. 2 cm, vs. scar.", "Stable."]),
        ("12. 5. ...", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in split_sentences(text)] == expected


# --- readings


def short(readings) -> set[str]:
    """In short: "+left pleural effusion"; + present, - absent, ? uncertain."""
    sign = {"present": "+", "absent": "-", "uncertain": "?"}
    return {
        sign[a] + " ".join(filter(None, (f.side, f.zone, f.size, f.concept))).replace("pleural effusion", "effusion")
        for f, a in readings
    }


SAID = [
    # presence, place and size
    ("There is a small left pleural effusion.", "+left small effusion"),
    ("Consolidated right lower lobe.", "+right lower consolidation"),
    ("The heart is enlarged.", "+cardiomegaly"),
    ("Cardiac silhouette remains mildly enlarged.", "+small cardiomegaly"),
    ("Opacities in both bases", "+bilateral lower consolidation"),
    ("Bibasilar atelectasis.", "+bilateral lower atelectasis"),
    ("Nodule in the RUL and large mass in the lingula.", "+right upper nodule; +left mid large mass"),
    ("In the left apex there is a pneumothorax.", "+left upper pneumothorax"),
    ("Right effusion and left lower lobe atelectasis.", "+right effusion; +left lower atelectasis"),
    ("Effusions, right greater than left.", "+bilateral effusion"),
    ("Blunting of the left costophrenic angle.", "+left effusion"),
    ("Old fractures of the left 5th and 6th ribs.", "+left rib fracture"),
    ("Right jugular catheter tip in the right atrium.", "+right central line"),
    ("Pacemaker leads in the right atrium and right ventricle.", "+pacemaker"),
    ("ET tube above the carina; chest tube on the left.", "+endotracheal tube; +left chest tube"),
    ("Increased reticular markings.", "+interstitial pattern"),
    ("Calcified granuloma in the left upper lobe.", "+left upper calcified nodule"),
    # absence
    ("No effusion or pneumothorax.", "-effusion; -pneumothorax"),
    ("No pneumothorax, pleural effusion, or focal consolidation.", "-pneumothorax; -effusion; -consolidation"),
    ("Negative for nodule. ", "-nodule"),
    ("The left lung is free of consolidation.", "-left consolidation"),
    ("No evidence of mass.", "-mass"),
    ("Without pneumothorax", "-pneumothorax"),
    ("A pneumothorax is not seen.", "-pneumothorax"),
    ("The left effusion has resolved.", "-left effusion"),
    ("Interval resolution of right pneumothorax.", "-right pneumothorax"),
    ("Interval removal of right chest tube without pneumothorax.", "-right chest tube; -pneumothorax"),
    ("The heart is not enlarged.", "-cardiomegaly"),
    ("No effusion on either side or bilaterally", "-effusion"),
    # scope
    ("No effusion, but there is a nodule.", "-effusion; +nodule"),
    ("No effusion, stable cardiomegaly.", "-effusion; +cardiomegaly"),
    ("Cardiomegaly without effusion.", "+cardiomegaly; -effusion"),
    ("No pneumothorax; small right effusion.", "-pneumothorax; +right small effusion"),
    ("Left effusion with no pneumothorax.", "+left effusion; -pneumothorax"),
    ("No change in the left effusion.", "+left effusion"),
    ("Near resolution of the right pneumothorax.", "+right pneumothorax"),
    ("No other nodule.", ""),
    # doubt
    ("Possible small left effusion.", "?left small effusion"),
    ("Pneumonia cannot be excluded.", "?consolidation"),
    ("Pneumothorax is unlikely.", "?pneumothorax"),
    ("Atelectasis or infiltrate in the left base.", "?left lower atelectasis; ?left lower consolidation"),
    ("Cardiomegaly with possible effusion.", "+cardiomegaly; ?effusion"),
    ("Bilateral effusions, possibly from heart failure.", "+bilateral effusion"),
    ("Borderline heart size.", "?cardiomegaly"),
    ("Heart size at the upper limits of normal.", "?cardiomegaly"),
    ("Recommend follow-up to ensure there is no mass.", "?mass"),
    # what is seen gives way to what it is
    ("Right basal opacity consistent with atelectasis.", "+right lower atelectasis"),
    ("Left basal opacity may represent pneumonia.", "?left lower consolidation"),
    ("Opacity in the right base, likely artifact.", "?right lower consolidation"),
    ("Nodular densities consistent with nipple shadows.", ""),
    ("Blunting of the right angle of the pleural space, likely scarring.", "?right effusion"),
    # normal
    ("Heart size and mediastinal contours are within normal limits.", "-cardiomegaly"),
    ("Bony structures are intact.", "-rib fracture"),
    ("The pleural spaces are clear.", "-effusion; -pneumothorax"),
    ("Costophrenic angles are sharp.", "-effusion"),
    ("No acute pulmonary process.", "-consolidation"),
    ("Lungs are otherwise clear.", ""),
    ("The lungs are clear of infiltrate.", "-consolidation"),
    ("No acute abdominal abnormality.", ""),
    # other organs, other things
    ("No pericardial effusion.", ""),
    ("Thyroid nodule.", ""),
    ("Calcified aorta and calcified lymph nodes.", ""),
    ("Cystic fibrosis.", ""),
    ("Subcutaneous emphysema.", ""),
    ("Compression fracture of the spine.", ""),
    ("ECG leads overlie the chest.", ""),
    ("Heart failure.", ""),
    ("Tortuous aorta.", ""),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "expected"), SAID)
def test_what_a_sentence_says(sentence: str, expected: str) -> None:
    assert short(read_sentence(sentence)) == {part for part in expected.split("; ") if part}


@pytest.mark.parametrize(
    ("sentence", "concepts"),
    [("The lungs are clear.", LUNGS), ("Normal chest.", CHEST), ("No acute cardiopulmonary abnormality.", ACUTE)],
)
def test_normal_statements_are_absences(sentence: str, concepts: tuple[str, ...]) -> None:
    assert set(read_sentence(sentence)) == {(Fact(concept), "absent") for concept in concepts}


def test_a_clear_left_lung_says_nothing_of_the_right() -> None:
    assert {(fact.side, assertion) for fact, assertion in read_sentence("Left lung clear.")} == {("left", "absent")}


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_name_is_known_alone_and_denied(concept: str) -> None:
    for name in (*NAMES[concept], *HELD_OUT[concept]):
        bare = name.removeprefix("~")
        assert [(f.concept, a) for f, a in read_sentence(f"There is {bare}.")] == [(concept, "present")], bare
        assert [(f.concept, a) for f, a in read_sentence(f"No evidence of {bare}.")] == [(concept, "absent")], bare


NEGATIONS = (
    "No {}.", "no {}", "There is no {}.", "No evidence of {}.", "Without {}.", "No {} is seen.", "Negative for {}.",
    "No {} identified.", "no sign of {}", "Absence of {}.", "No definite {}.",
)  # fmt: skip


@pytest.mark.parametrize("concept", CONCEPTS)
def test_sentences_of_the_simulator_are_read_as_they_were_meant(concept: str) -> None:
    """`write` and `spoken` know what they said; the reader must find it in the words alone."""
    rng = np.random.default_rng(7)
    sides = (None,) if concept in NO_SIDE else (None, "left", "right", "bilateral")
    options = itertools.product(sides, (None, "upper", "mid", "lower"), (None, "small", "medium", "large"))
    wrong = []
    for k, (side, zone, size) in enumerate(options):
        text = write(Fact(concept, side, zone, size), rng, held_out=k % 3 == 0)
        said = spoken(Fact(concept, side, zone, size), text)
        wrong += (
            [text]
            if [(f.concept, f.side, a) for f, a in read_sentence(text)] != [(concept, said.side, "present")]
            else []
        )
        name = NAMES[concept][k % len(NAMES[concept])].removeprefix("~")
        negative = NEGATIONS[k % len(NEGATIONS)].format(name)
        assert [(f.concept, a) for f, a in read_sentence(negative)] == [(concept, "absent")], negative
    assert wrong == []


def test_a_sentence_too_long_to_parse_is_kept_without_a_reading() -> None:
    text = "effusion " * (MAX_QUERY_CHARACTERS // 9 + 1)
    assert read_sentence(text) == ()
    assert len(read_report(text).statements) == 1


@pytest.mark.parametrize("value", [None, 3, b"FINDINGS: clear"])
def test_a_report_that_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(ReportError, match="must be text, got"):
        read_report(value)  # type: ignore[arg-type]


# --- properties

FRAGMENTS = st.sampled_from(
    [
        *("FINDINGS: ", "Impression\n", "HISTORY ", "No ", "effusion", " or ", ". ", "1. ", "2)", "\n", "\n\n", "- "),
        *("XXXX", "____", "[**2001-1-1**]", "1.2 cm", "Dr. ", "left ", "nodule", ", ", "but ", "may represent "),
        *("clear", "lungs ", "The ", "a.m. "),
    ]
)
TEXTS = st.one_of(st.text(max_size=120), st.lists(FRAGMENTS, max_size=30).map("".join))


@given(TEXTS)
def test_any_text_is_read_and_nothing_in_it_is_invented(text: str) -> None:
    report = read_report(text)
    assert "".join(text[s.start : s.end] for s in report.sections) == text
    assert [s.index for s in report.statements] == list(range(len(report.statements)))
    last = 0
    for statement in report.statements:
        assert statement.start >= last
        last = statement.start + len(statement.text)
        assert text[statement.start : last] == statement.text
        assert statement.section in ("unlabelled", "findings", "impression")


@given(TEXTS)
def test_splitting_a_sentence_again_changes_nothing(text: str) -> None:
    for start, end in split_sentences(text):
        assert split_sentences(text[start:end]) == [(0, end - start)]


@given(TEXTS)
def test_no_concept_and_side_is_read_twice(text: str) -> None:
    keys = [(fact.concept, fact.side) for fact, _ in read_sentence(text)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "piece", ["1. ", "a. ", "A\n", "[** ", "(1) ", " ", "X", "\n ", "FINDINGS: ", "- ", "No effusion, "]
)
def test_time_grows_with_length_only(piece: str) -> None:
    """A pattern that backtracks without bound would take minutes here."""
    start = time.process_time()
    read_report(piece * (60_000 // len(piece)))
    assert time.process_time() - start < 5


# --- duplicates


def statements(*texts: str) -> list[Statement]:
    return [Statement(text, "findings", k, 0, read_sentence(text)) for k, text in enumerate(texts)]


def angles(table: dict[str, float]):
    """An encoder that puts each text at an angle of the unit circle, in degrees."""
    return lambda texts: torch.tensor([[np.cos(np.deg2rad(table[t])), np.sin(np.deg2rad(table[t]))] for t in texts])


def test_the_same_reading_in_other_words_is_one_group() -> None:
    batch = statements(
        "No effusion.", "Left effusion.", "There is no pleural fluid.", "Effusion on the left.", "Effusion."
    )
    assert same_meaning(batch) == [0, 1, 0, 1, 2]


def test_without_readings_the_words_decide() -> None:
    assert same_meaning(statements("Tortuous aorta.", "tortuous  AORTA", "Unfolded aorta.")) == [0, 0, 1]


def test_no_statements_are_no_groups() -> None:
    assert same_meaning([]) == []
    assert same_meaning([], embed=angles({})) == []


def test_similar_texts_join() -> None:
    batch = statements("Tortuous aorta.", "Scoliosis.", "The aorta is tortuous.")
    table = {"Tortuous aorta.": 0.0, "Scoliosis.": 90.0, "The aorta is tortuous.": 10.0}
    assert same_meaning(batch, angles(table), threshold=0.9) == [0, 1, 0]
    assert same_meaning(batch, angles(table), threshold=0.99) == [0, 1, 2]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Left effusion.", "Right effusion."),
        ("Effusion.", "No effusion."),
        ("Effusion.", "Possible effusion."),
        ("Left upper lobe nodule.", "Left lower lobe nodule."),
        ("Nodule.", "Mass."),
        ("Left effusion.", "Bilateral effusions."),
        ("Effusion.", "Tortuous aorta."),
        ("Tortuous aorta.", "No tortuous aorta."),
        ("Left shoulder prosthesis.", "Right shoulder prosthesis."),
        ("Effusion and nodule.", "Effusion."),
    ],
)
def test_contradictions_never_join_however_similar(one: str, two: str) -> None:
    assert same_meaning(statements(one, two), angles({one: 0.0, two: 0.0}), threshold=0.5) == [0, 1]


def test_an_unsaid_side_joins_one_side_only() -> None:
    """A plain effusion may mean either side, but it must not make left and right the same."""
    batch = statements("Left effusion.", "Effusion.", "Right effusion.")
    labels = same_meaning(
        batch, angles({"Left effusion.": 0.0, "Effusion.": 4.0, "Right effusion.": 10.0}), threshold=0.9
    )
    assert labels == [0, 0, 1]


@given(st.lists(st.sampled_from([s for s, _ in SAID]), max_size=12), st.integers(0, 2**32 - 1))
def test_groups_are_numbered_in_order_and_no_group_holds_two_sides(texts: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = statements(*texts)
    labels = same_meaning(batch, lambda t: np.eye(3)[rng.integers(3, size=len(t))], threshold=0.5)
    assert list(dict.fromkeys(labels)) == list(range(len(set(labels))))
    for one, two in itertools.combinations(range(len(batch)), 2):
        if set(batch[one].readings) == set(batch[two].readings) != set():
            assert labels[one] == labels[two]
        if labels[one] == labels[two]:
            pairs = [(f.side, g.side) for f, _ in batch[one].readings for g, _ in batch[two].readings]
            assert len(pairs) != 1 or None in pairs[0] or pairs[0][0] == pairs[0][1]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        same_meaning([], threshold=threshold)


@pytest.mark.parametrize("rows", [np.eye(3), np.ones(2), 2 * np.eye(2), np.full((2, 2), np.nan)])
def test_embeddings_that_do_not_fit_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(ReportError, match="embed: expected"):
        same_meaning(statements("Effusion.", "Nodule."), lambda texts: rows)
