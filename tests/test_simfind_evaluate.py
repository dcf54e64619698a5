"""The measures of `recipes/simfind_evaluate.py`, against naive forms and on cases made by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "simfind_evaluate.py"


def loaded():
    spec = importlib.util.spec_from_file_location("simfind_evaluate", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ev = loaded()


def fact(concept: str, side: str | None = None, mask: int | None = 0) -> dict:
    return {"concept": concept, "side": side, "zone": None, "size": None, "subtlety": 0.1, "mask": mask}


def line(*facts: dict, split: str = "test", index: int = 0) -> dict:
    return {"id": f"{split}_{index:04d}", "split": split, "index": index, "modality": "CXR", "facts": list(facts),
            "patient": str(index), "base": str(index)}  # fmt: skip


def row(number: int, *answers: dict, split: str = "test") -> dict:
    return {"id": f"{split}_{number:04d}", "split": split, "patient": f"p{number}", "base": f"b{number}",
            "model": "m", "answers": list(answers)}  # fmt: skip


def answer(verdict: str, score: float, wording: str = "plain", **more) -> dict:
    return {"concept": "nodule", "wording": wording, "verdict": verdict, "score": score, "in_scope": True,
            "marked": score > 0.5, **more}  # fmt: skip


def test_the_dice_curve_is_dice_at_each_level():
    rng = np.random.default_rng(0)
    values, truth = rng.random((30, 20)).astype(np.float32), rng.random((30, 20)) > 0.7
    values[3, 4], values[5, 6] = np.nan, 0.5
    naive = [ev.dice(np.nan_to_num(values, nan=-1) >= level, truth) for level in ev.LEVELS]
    np.testing.assert_allclose(ev.dice_curve(values, truth), naive)


def test_dice_by_hand():
    marked, truth = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert ev.dice(marked, truth) == 0.5
    assert ev.dice(marked & False, truth & False) == 0


def test_the_shipped_threshold_is_one_of_the_levels():
    assert ev.LEVELS[ev.HALF] == np.float32(0.5)


def test_pointing_passes_over_what_was_not_seen():
    values, truth = np.array([[np.nan, 0.2], [0.9, 0.1]]), np.array([[1, 0], [0, 0]], bool)
    assert not ev.points_inside(values, truth)
    assert ev.points_inside(values, truth[::-1])


def test_auroc_is_the_share_of_pairs_with_ties_as_half():
    rng = np.random.default_rng(1)
    scores, verdicts = rng.integers(0, 6, 40) / 5, rng.integers(0, 3, 40)
    positive, negative = np.where(verdicts == 0, scores, np.nan), np.where(verdicts == 1, scores, np.nan)
    pairs = [(p > n) + (p == n) / 2 for p in scores[verdicts == 0] for n in scores[verdicts == 1]]
    assert ev.weighted_auroc(positive, negative, np.ones((1, 40)))[0] == pytest.approx(np.mean(pairs))


def test_a_draw_is_the_same_as_repeating_cases():
    rng = np.random.default_rng(2)
    scores, there = rng.random(12), np.arange(12) % 3 == 0
    times = rng.integers(1, 4, 12)
    again = np.repeat(np.arange(12), times)
    columns = [np.where(part, scores, np.nan) for part in (there, ~there)]
    drawn = ev.weighted_auroc(*columns, times[None].astype(float))[0]
    assert drawn == pytest.approx(ev.weighted_auroc(*(c[again] for c in columns), np.ones((1, len(again))))[0])
    assert ev.weighted_mean(columns[0], times[None])[0] == pytest.approx(np.nanmean(columns[0][again]))


def test_patients_are_drawn_whole():
    weights = ev.draw_weights(["a", "a", "b", "c", "c"], draws=50)
    assert weights.shape == (51, 5)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_with_few_patients_bases_or_cases_are_drawn():
    rows = [row(k) for k in range(20)]
    assert ev.groups_of(rows)[0] == "patient"
    few = [{**r, "patient": "p"} for r in rows]
    assert ev.groups_of(few)[0] == "base"
    assert ev.groups_of([{**r, "base": "b"} for r in few]) == ("case", [r["id"] for r in rows])


def test_a_finding_of_one_side_is_asked_on_both():
    asked = ev.questions(line(fact("pleural effusion", "left"), fact("cardiomegaly"), fact("nodule", "bilateral")))
    sides = {q.wording: q.phrase for q in asked if q.wording.endswith("side")}
    assert sides == {"own side": "left pleural effusion", "other side": "right pleural effusion"}


def test_only_the_test_is_asked_in_unseen_words():
    for split, wordings in (("val", {"plain"}), ("test", {"plain", "unseen"})):
        asked = ev.questions(line(split=split, index=1))
        assert {q.wording for q in asked} == wordings
    unseen = {q.phrase for q in asked if q.wording == "unseen"}
    assert "nodular focus" in unseen
    assert not any(phrase.startswith("~") for phrase in unseen)


def test_a_true_mask_is_all_of_a_concept():
    masks = np.eye(3, dtype=bool)[:, None]
    case = line(fact("nodule", mask=0), fact("mass", mask=1), fact("nodule", mask=2))
    assert ev.true_mask(case, masks, "nodule").tolist() == [[True, False, True]]
    assert ev.true_mask(line(fact("nodule", mask=None)), masks, "nodule") is None


def finding(values: list[list[float]], *, present: bool):
    grid = np.array(values)
    return SimpleNamespace(
        score=0.7, probability=0.8, in_scope=True, probability_map=lambda: grid, mask=lambda: (grid >= 0.5) & present
    )


def test_what_is_kept_of_an_answer():
    case, masks = line(fact("nodule", "left")), np.array([[[1, 0], [0, 0]]], bool)
    ask = {q.wording if q.wording.endswith("side") else q.phrase: q for q in ev.questions(case)}
    kept = ev.judge(finding([[0.9, 0.6], [0, 0]], present=True), ask["nodule"], case, masks)
    assert (kept["verdict"], kept["pointing"], kept["marked"], kept["chance"]) == ("holds", True, True, 0.25)
    assert kept["dice_answer"] == pytest.approx(2 / 3, abs=1e-4)
    assert kept["curve"][ev.HALF] == kept["dice_answer"]
    hidden = ev.judge(finding([[0.9, 0.6], [0, 0]], present=False), ask["own side"], case, masks)
    assert (hidden["marked"], hidden["dice_answer"], hidden["curve"]) == (False, 0, kept["curve"])
    wrong = ev.judge(finding([[0.9, 0.6], [0, 0]], present=True), ask["other side"], case, masks)
    assert (wrong["verdict"], wrong["marked"]) == ("fails", True)
    assert "curve" not in wrong
    alike = ev.judge(finding([[0.9, 0.6], [0, 0]], present=True), ask["mass"], case, masks)
    assert alike["verdict"] == "unknown"
    assert "marked" not in alike


def measured_rows() -> list[dict]:
    """Ten cases: four have it (one of them scores low), four do not (one of them is marked), two are undecided."""
    there = {"chance": 0.1, "curve": [0.2] * len(ev.LEVELS), "dice_answer": 0.3}
    holds = [row(k, answer("holds", s, pointing=k < 3, **there)) for k, s in enumerate((0.9, 0.8, 0.7, 0.1))]
    fails = [row(k + 4, answer("fails", s)) for k, s in enumerate((0.6, 0.2, 0.3, 0.4))]
    return [*holds, *fails, row(8, answer("unknown", 0.99)), row(9, answer("unknown", 0.0))]


def test_numbers_of_a_concept_by_hand():
    found = ev.summary(measured_rows(), "plain", {"nodule": ev.HALF})
    numbers = found["concepts"]["nodule"]
    assert (numbers["n"], numbers["auroc"], numbers["found"], numbers["false_mask"]) == (4, 0.75, 0.75, 0.25)
    assert (numbers["pointing"], numbers["dice"], numbers["dice_answer"], numbers["chance"]) == (0.75, 0.2, 0.3, 0.1)
    value, low, high = found["mean"]["auroc"]
    assert value == 0.75
    assert low < value < high


def test_the_threshold_is_that_of_the_validation():
    curve = [0.1] * len(ev.LEVELS)
    curve[2] = 0.6
    rows = [row(0, answer("holds", 0.9, curve=curve), split="val")]
    assert ev.best_level(rows, "nodule") == 2
    assert ev.best_level(rows, "mass") == ev.HALF


def test_what_the_model_does_not_offer_is_listed_but_not_in_the_mean():
    rows = measured_rows()
    for case in rows:
        case["answers"] += [{**a, "concept": "mass", "in_scope": False, "score": 0.5} for a in case["answers"]]
    found = ev.summary(rows, "plain", {"nodule": ev.HALF, "mass": ev.HALF})
    mass = found["concepts"]["mass"]
    assert (mass["offered"], mass["auroc"], found["offered"]) == (False, 0.5, 1)
    assert found["mean"]["auroc"][0] == 0.75
    assert "- mass" in ev.table("test", found)


def test_too_few_cases_are_not_measured():
    assert ev.summary(measured_rows()[2:], "plain", {"nodule": ev.HALF})["concepts"] == {}


def test_wrong_sides_are_counted():
    rows = measured_rows()
    for case, score in zip(rows, (0.9, 0.1, 0.1, 0.1), strict=False):
        case["answers"] += [answer("fails", score, "other side"), answer("holds", 0.9, "own side", pointing=True)]
    numbers = ev.summary(rows, "plain", {"nodule": ev.HALF})["concepts"]["nodule"]
    assert (numbers["wrong_side"], numbers["own_side"]) == (0.25, 1.0)


class FakePipeline:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(fingerprint="m")
        self.encoded: list[Path] = []

    def encode_image(self, path: Path) -> Path:
        self.encoded.append(path)
        return path

    def ask(self, _: Path, queries: list[str]):
        answers = [finding([[0.9, 0.6], [0, 0]], present=True) for _ in queries]

        class Answers(list):
            model_fingerprint = "m"

        return Answers(answers)


def test_a_stopped_run_goes_on(tmp_path):
    lines = [line(fact("nodule", "left"), index=k) | {"image": f"{k}.png", "masks": "m.npz"} for k in range(3)]
    np.savez_compressed(tmp_path / "m.npz", masks=np.array([[[1, 0], [0, 0]]], np.uint8))
    path = tmp_path / "answers.jsonl"
    whole = ev.answer_all(FakePipeline(), tmp_path, lines, path)
    text = path.read_text()
    path.write_text("\n".join(text.splitlines()[:2]) + '\n{"id": "cut')
    again = FakePipeline()
    assert ev.answer_all(again, tmp_path, lines, path) == whole
    assert [p.name for p in again.encoded] == ["2.png"]
    assert path.read_text() == text
    assert [json.loads(t)["id"] for t in text.splitlines()] == [c["id"] for c in lines]


def test_answers_of_another_model_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row(0) | {"model": "another"}) + "\n")
    with pytest.raises(SystemExit, match="holds answers of another model"):
        ev.kept_rows(path, "m")
