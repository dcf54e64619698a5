"""Comparison of two evaluations: same data or refused, paired by patient, corrected for many tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import made_up_results as made_up
from radglint.errors import InputError
from radglint.evaluation.compare import MEAN, Comparison, PairedDifference, compare
from radglint.evaluation.compare_page import comparison_text, render_comparison, write_comparison
from radglint.evaluation.paired_cases import pair_cases, read_answers
from radglint.evaluation.results import ModelFacts, ProtocolResult, Results

Line = dict[str, Any]
OTHER = ModelFacts(name="other <model>", fingerprint="ba9876543210", weights_sha256="ef" * 32)


def one_line(number: int, **answers: Any) -> Line:
    """An image whose only class is "edema"."""
    answer = {"class": "edema", "style": "ask", "truth": "present", "score": 0.5, "probability": 0.5} | answers
    return {"id": f"i{number}", "patient": f"p{number}", "split": "test", "answers": [answer]}


def lines(skill: float, seed: int, cases: int = 120) -> list[Line]:
    """Made-up answers on two classes; images 2k and 2k + 1 are of one patient."""
    truth = np.random.default_rng(1).random((cases, 2)) < 0.4
    noise = np.random.default_rng(seed).normal(size=(cases, 2))
    score = skill * truth + noise
    return [
        {
            "id": f"i{k}", "patient": f"p{k // 2}", "split": "test", "answers": [
                {
                    "class": name, "style": "ask", "truth": "present" if truth[k, c] else "absent",
                    "score": float(score[k, c]), "probability": float(1 / (1 + np.exp(-score[k, c]))), "prompt": name,
                    "place": {"dice": float(skill / 5)} if truth[k, c] else None,
                }
                for c, name in enumerate(("edema", "pneumonia"))
            ],
        }
        for k in range(cases)
    ]  # fmt: skip


def two() -> tuple[Results, Results]:
    better = made_up.classification().model_dump()
    better["means"]["honest"]["auroc"] |= {"value": 0.82, "low": 0.80, "high": 0.84}
    a = made_up.results((made_up.classification(), made_up.grounding()))
    return a, made_up.results((ProtocolResult(**better),), model=OTHER)


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(*two(), lines(0.5, 2), lines(2.5, 2), draws=800)


def row(found: Comparison, question: str, name: str) -> PairedDifference:
    return next(each for each in found.paired if (each.question, each.measure) == (question, name))


def test_other_data_is_refused_unless_asked_for() -> None:
    a, b = two()
    b = b.model_copy(update={"manifest": b.manifest.model_copy(update={"sha256": "12" * 32, "path": "nih.jsonl"})})
    with pytest.raises(InputError, match=r"chexpert\.jsonl \(cdcdcdcdcdcd\), B on nih\.jsonl .*add --across"):
        compare(a, b)
    across = compare(a, b, across=True)
    assert "The two manifests differ" in across.notes[0]
    assert across.paired == ()
    with pytest.raises(InputError, match="cannot be paired"):
        compare(a, b, lines(1, 1), lines(1, 2), across=True)


def test_answers_come_in_pairs() -> None:
    with pytest.raises(InputError, match="expected those of A and of B, or none"):
        compare(*two(), lines(1, 1), None)


def test_runs_without_a_common_protocol_are_refused() -> None:
    a, b = made_up.results((made_up.grounding(),)), made_up.results((made_up.classification(),))
    with pytest.raises(InputError, match="A ran sweep, B ran chexzero: no protocol in common"):
        compare(a, b)


def test_means_are_b_minus_a() -> None:
    found = compare(*two())
    auroc = next(each for each in found.means if (each.column, each.measure) == ("honest", "auroc"))
    assert auroc.difference == pytest.approx(0.82 - 0.787)
    assert len(found.means) == 10
    assert "Dice and mIoU sweep was run by A only." in found.notes
    assert "Without the answers of each image there are no paired intervals and no p values." in found.notes


def test_other_label_sets_are_not_compared() -> None:
    a = made_up.results()
    b = made_up.results((made_up.classification().model_copy(update={"label_set": "CheXpert 14"}), made_up.grounding()))
    found = compare(a, b)
    assert {each.protocol for each in found.means} == {"Dice and mIoU sweep"}
    assert "CheXzero pairs: A has the classes CheXpert 5, B CheXpert 14; not compared." in found.notes


def test_the_paired_values_are_those_of_scikit_learn(found: Comparison) -> None:
    for skill, side in ((0.5, "a"), (2.5, "b")):
        made = lines(skill, 2)
        truth = [each["answers"][0]["truth"] == "present" for each in made]
        expected = roc_auc_score(truth, [each["answers"][0]["score"] for each in made])
        assert getattr(row(found, "edema", "auroc"), side) == pytest.approx(expected, abs=1e-12)


def test_a_clearly_better_model_is_called_better(found: Comparison) -> None:
    for name in ("edema", "pneumonia", MEAN):
        for measure in ("auroc", "brier"):
            each = row(found, name, measure)
            assert each.verdict == "B better"
            assert each.p_holm is not None
            assert each.p is not None
            assert each.p_holm >= each.p
            assert each.low <= each.difference <= each.high
    assert row(found, "edema", "auroc").low > 0
    assert row(found, "edema", "brier").high < 0


def test_maps_are_compared_on_the_cases_that_have_one(found: Comparison) -> None:
    each = row(found, "edema", "dice")
    assert each.n == each.positives == sum(made["answers"][0]["truth"] == "present" for made in lines(1, 1))
    assert (each.a, each.b) == (pytest.approx(0.1), pytest.approx(0.5))


def test_a_model_does_not_differ_from_itself() -> None:
    found = compare(*two(), lines(1, 4), lines(1, 4), draws=200)
    assert {each.verdict for each in found.paired} == {"no difference shown"}
    assert {each.p for each in found.paired} == {1.0}
    assert {each.low for each in found.paired} == {each.high for each in found.paired} == {0.0}


def test_one_sided_truth_has_no_auroc_and_says_so() -> None:
    one = [one_line(k, score=k / 10) for k in range(4)]
    found = compare(*two(), one, one, draws=50)
    auroc = row(found, "edema", "auroc")
    assert auroc.p is None
    assert auroc.verdict == "not defined"
    assert "Not defined on these images, so not tested: AUROC of edema." in found.notes


def test_intervals_and_p_are_those_of_the_naive_loop() -> None:
    """Every draw of patients measured image by image, on squared errors of the probability."""
    a = [one_line(k, probability=p) for k, p in enumerate((0.9, 0.5, 0.1, 0.7, 0.3))]
    b = [one_line(k, probability=p) for k, p in enumerate((0.8, 0.9, 0.2, 0.9, 0.6))]
    for line, patient in zip(a + b, "xxyzzxxyzz", strict=True):
        line["patient"] = patient
    made = row(compare(*two(), a, b, draws=400, seed=7), "edema", "brier")
    error = [[(1 - line["answers"][0]["probability"]) ** 2 for line in side] for side in (a, b)]
    rng, differences = np.random.default_rng(7), []
    for picked in rng.integers(0, 3, (400, 3)):
        cases = [k for p in picked for k in ((0, 1), (2,), (3, 4))[p]]
        differences.append(np.mean([error[1][k] - error[0][k] for k in cases]))
    assert (made.low, made.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=1e-6)
    assert made.difference == pytest.approx(np.mean(error[1]) - np.mean(error[0]))
    fewer = min(sum(np.array(differences) <= 0), sum(np.array(differences) >= 0))
    assert made.p == pytest.approx(min(1, 2 * (1 + fewer) / 401))


def test_holm_counts_every_test(found: Comparison) -> None:
    p = sorted(each.p or 0 for each in found.paired)
    assert len(p) == 9
    assert min(each.p_holm or 0 for each in found.paired) == pytest.approx(9 * p[0])


def test_too_few_draws_for_so_many_tests_are_named(found: Comparison) -> None:
    """9 tests: 2 * 9 / (draws + 1) is below 0.05 from 360 draws on."""
    assert not any("too few" in note for note in found.notes)
    few = compare(*two(), lines(0.5, 2), lines(2.5, 2), draws=359)
    assert "359 draws are too few to show a difference among 9 tests; draw 361 or more." in few.notes


def test_the_mean_over_classes_is_that_of_the_rows(found: Comparison) -> None:
    rows = [row(found, name, "auroc") for name in ("edema", "pneumonia")]
    mean = row(found, MEAN, "auroc")
    assert mean.a == pytest.approx((rows[0].a + rows[1].a) / 2)
    assert mean.b == pytest.approx((rows[0].b + rows[1].b) / 2)


def test_delong_only_where_every_patient_has_one_image(found: Comparison) -> None:
    assert {each.p_delong for each in found.paired} == {None}
    a, b = lines(0.5, 2), lines(2.5, 2)
    for line in a + b:
        line["patient"] = line["id"]
    alone = compare(*two(), a, b, draws=100)
    shown = {each.question for each in alone.paired if each.p_delong is not None}
    assert shown == {"edema", "pneumonia"}
    assert (row(alone, "edema", "auroc").p_delong or 1) < 1e-6
    assert "(DeLong <0.001)" in comparison_text(alone)
    assert "<small>DeLong &lt;0.001</small>" in render_comparison(alone)


@pytest.mark.parametrize(
    ("measure", "difference", "p", "verdict"),
    [
        ("auroc", 0.1, 0.01, "B better"), ("auroc", -0.1, 0.01, "A better"), ("brier", -0.1, 0.01, "B better"),
        ("auroc", 0.1, 0.05, "no difference shown"), ("threshold", 0.1, 0.01, "B higher"),
        ("false_area, negatives", -0.1, 0.01, "B better"),
    ],
)  # fmt: skip
def test_verdicts(measure: str, difference: float, p: float, verdict: str) -> None:
    made = PairedDifference("x", measure, 9, 4, 0.5, 0.5 + difference, difference, -1, 1, p, p)
    assert made.verdict == verdict


def test_only_the_test_split_and_readable_images_count() -> None:
    a, b = [one_line(k) for k in range(3)], [one_line(k) for k in range(3)]
    a[0]["split"] = b[0]["split"] = "train"
    b[2] = {"id": "i2", "patient": "p2", "split": "test", "error": "cannot be read"}
    cases = pair_cases(a, b)
    assert cases.ids == ("i1",)
    assert cases.left_out == ("1 images that A or B could not read",)


def test_uncertain_and_unlabelled_are_neither_present_nor_absent() -> None:
    states = ("present", "absent", "uncertain", "unlabelled")
    cases = pair_cases(*[[one_line(k, truth=state) for k, state in enumerate(states)]] * 2)
    assert cases.known[:, 0].tolist() == [True, True, False, False]
    assert cases.positive[:, 0].tolist() == [True, False, False, False]


def test_an_answer_without_a_score_does_not_count() -> None:
    a, b = [one_line(0), one_line(1)], [one_line(0), one_line(1, score=None)]
    assert pair_cases(a, b).known[:, 0].tolist() == [True, False]


def test_questions_of_one_model_only_are_named() -> None:
    a, b = [one_line(0)], [one_line(0)]
    a[0]["answers"].append({"class": "mass", "style": "ask", "truth": "absent", "score": 0.1})
    cases = pair_cases(a, b)
    assert cases.questions == ("edema",)
    assert cases.left_out == ("mass, ask: asked of A only",)
    a[0]["answers"][0]["style"] = "plain"
    with pytest.raises(InputError, match="share no class and style"):
        pair_cases(a[:1], b)


def test_a_class_asked_in_two_styles_is_two_questions() -> None:
    one = one_line(0)
    one["answers"].append(one["answers"][0] | {"style": "plain"})
    assert pair_cases([one], [one]).questions == ("edema, ask", "edema, plain")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "i9"}, "2 images are in one file only, first 'i0' of A"),
        ({"patient": "p9"}, "'i0' is of patient 'p0' in A and of another in B"),
        ({"answers": one_line(0, truth="absent")["answers"]}, "'edema' of 'i0' is present in A and absent in B"),
    ],
)
def test_answers_that_do_not_belong_together(change: Line, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair_cases([one_line(0)], [one_line(0) | change])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        ("[]", "line 1: key 'id' is missing"),
        ('{"id": "a", "patient": "b"}', "line 1: key 'answers' is missing"),
        ('{"id": "a", "patient": "b", "answers": [{"class": "c", "truth": "present"}]}', "an answer has no 'score'"),
        ('{"id": "a", "patient": "b", "answers": [{"class": "c", "truth": "yes", "score": 1}]}', "got 'yes'"),
        ('{"id": "a", "patient": "b", "error": "x"}\n' * 2, "line 2: id 'a' came before"),
    ],
)
def test_wrong_answers_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "answers.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_answers(tmp_path / "answers.jsonl")


def test_answers_are_read_back(tmp_path: Path) -> None:
    made = lines(1, 1, 4)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made), encoding="utf-8")
    assert read_answers(tmp_path / "answers.jsonl") == made
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl")


def test_the_text_says_who_and_how(found: Comparison) -> None:
    text = comparison_text(found)
    assert "A: nano (0123456789ab) on chexpert.jsonl (cdcdcdcdcdcd), 500 images" in text
    assert "  AUROC                   0.787 [0.775, 0.797]  0.820 [0.800, 0.840]  +0.033" in text
    assert "the same 60 patients drawn 800 times" in text
    assert "Holm's correction over all 9 tests shown" in text
    edema = next(line for line in text.splitlines() if line.startswith("  edema"))
    assert edema.endswith("B better")


def test_the_page_is_the_same_each_time_and_escaped(found: Comparison, tmp_path: Path) -> None:
    page = render_comparison(found)
    assert write_comparison(found, tmp_path).read_text(encoding="utf-8") == page
    assert render_comparison(compare(*two(), lines(0.5, 2), lines(2.5, 2), draws=800)) == page
    assert "other &lt;model&gt;" in page
    assert "other <model>" not in page
    assert page.count("<script") == 1
    assert 'data-value="B better" class="better">B better</td>' in page
