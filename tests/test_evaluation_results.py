"""Results of an evaluation: written and read back exactly, refused when altered, and shown in a terminal."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import made_up_results as made_up
from radglint.errors import InputError
from radglint.evaluation.measure_names import MEASURES, measure
from radglint.evaluation.results import (
    FORMAT,
    MAX_POINTS,
    Curves,
    Estimate,
    content_sha256,
    read_results,
    thin,
    write_results,
)
from radglint.evaluation.results_table import align, format_estimate, to_terminal_table


def stored(tmp_path: Path, **changes: Any) -> Path:
    """A results file with some keys changed and its checksum made to fit again; None drops a key."""
    path = write_results(tmp_path / "results.json", made_up.results())
    document = json.loads(path.read_text(encoding="utf-8")) | changes
    document = {key: value for key, value in document.items() if value is not None}
    document["content_sha256"] = content_sha256(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", made_up.results())
    assert read_results(path) == made_up.results()


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a.json", made_up.results()).read_bytes()
    assert write_results(tmp_path / "b.json", read_results(tmp_path / "a.json")).read_bytes() == first


def test_a_number_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", made_up.results())
    text = path.read_text(encoding="utf-8")
    assert text.count('"seed": 20') == 1
    path.write_text(text.replace('"seed": 20', '"seed": 21'), encoding="utf-8")
    with pytest.raises(InputError, match=r"results\.json: was altered after it was written"):
        read_results(path)


def test_key_order_and_layout_do_not_matter_to_the_checksum() -> None:
    assert content_sha256({"a": 1, "b": [0.5]}) == content_sha256({"content_sha256": "x", "b": [0.5], "a": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "something"}, "key kind: expected 'radglint evaluation', got 'something'"),
        ({"kind": None}, "key kind: expected 'radglint evaluation', got None"),
        ({"format": FORMAT + 1}, rf"has format {FORMAT + 1}, this radglint reads up to {FORMAT}; update radglint"),
        ({"format": "one"}, "key format: expected a whole number from 1, got 'one'"),
        ({"seed": None}, "seed: is missing"),
        ({"speed": 3}, "speed: unknown key"),
        ({"model": {"name": "n", "fingerprint": "f", "weights_sha256": "12"}}, "model.weights_sha256: .*got '12'"),
        ({"unit_of_analysis": 3}, "unit_of_analysis: .*got 3"),
    ],
)
def test_another_form_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_results(stored(tmp_path, **changes))


def test_files_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
        read_results(tmp_path / "none.json")
    whole = write_results(tmp_path / "cut.json", made_up.results()).read_text(encoding="utf-8")
    (tmp_path / "cut.json").write_text(whole[:500], encoding="utf-8")
    with pytest.raises(InputError, match=r"cut\.json: not whole JSON .*was it cut short"):
        read_results(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="key kind: expected 'radglint evaluation', got list"):
        read_results(tmp_path / "list.json")
    document = json.loads(whole)
    del document["content_sha256"]
    (tmp_path / "bare.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match="content_sha256: is missing"):
        read_results(tmp_path / "bare.json")


def test_a_value_that_is_not_defined_is_null_and_infinity_is_refused() -> None:
    assert Estimate(value=math.nan, n=4) == Estimate(value=None, n=4)
    with pytest.raises(ValidationError):
        Estimate(value=math.inf)


@pytest.mark.parametrize("ends", [{"low": 0.1}, {"high": 0.1}, {"low": 0.4, "high": 0.3}])
def test_an_interval_has_two_ends_in_order(ends: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="expected low"):
        Estimate(value=0.35, **ends)


def test_parts_of_a_protocol_fit_together() -> None:
    good = made_up.classification()
    for changes, said in (
        ({"how": {"published": "x"}}, "how: expected the columns"),
        ({"means": {"published": {}}}, "means: expected the columns"),
        ({"lead": "dice"}, "lead: 'dice' is none of the means"),
        ({"columns": ("published", "fixed")}, "expected the columns"),
        ({"classes": (*good.classes, good.classes[0])}, "classes: expected each name once, got Atelectasis"),
    ):
        with pytest.raises(ValidationError, match=said):
            type(good)(**{**good.model_dump(), **changes})
    with pytest.raises(ValidationError, match="protocols: expected each name once, got chexzero"):
        made_up.results((good, good))


def test_more_positives_than_cases_is_refused() -> None:
    one = made_up.one_class("Edema", 1)
    with pytest.raises(ValidationError, match="expected at most 3 positives, got 65"):
        type(one)(**{**one.model_dump(), "n": 3})


def test_a_curve_has_at_most_so_many_points() -> None:
    with pytest.raises(ValidationError, match="at most 200 items"):
        Curves(roc=tuple((0.0, 0.0) for _ in range(MAX_POINTS + 1)))


def test_the_leading_measure_comes_first() -> None:
    one = made_up.classification()
    assert one.measure_names() == ["auroc", "average_precision", "f1", "mcc", "brier"]
    led = type(one)(**{**one.model_dump(), "lead": "mcc"})
    assert led.measure_names() == ["mcc", "auroc", "average_precision", "f1", "brier"]
    assert led.class_measure_names()[0] == "mcc"


def test_thinning_keeps_the_ends_and_the_shape() -> None:
    points = [(x / 5000, (x / 5000) ** 0.1) for x in range(5001)]
    kept = thin(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(kept) <= MAX_POINTS
    assert set(kept) <= set(points)
    assert max(b[0] - a[0] for a, b in itertools.pairwise(kept)) <= 2 / 199 + 1 / 5000


def test_few_points_stay_as_they_are() -> None:
    assert thin([(0, 1), (0, 1), (1, 0)]) == [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]
    assert thin([(0.5, 0.5)] * 300) == [(0.5, 0.5)]


def test_known_measures_and_their_variants_have_titles() -> None:
    assert measure("auroc") is MEASURES["auroc"]
    assert measure("dice_oracle").title == "Dice (oracle)"
    assert measure("recall_at_10").title == "R@10"
    assert measure("brier_validation").better == "lower"
    assert measure("my_own").title == "my own"


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Estimate(value=0.8124, low=0.79, high=0.8333), "0.812 [0.790, 0.833]"),
        (Estimate(value=0.5), "0.500"),
        (Estimate(value=None), "-"),
        (None, "-"),
    ],
)
def test_an_estimate_in_words(one: Estimate | None, text: str) -> None:
    assert format_estimate(one) == text


def test_the_table_is_aligned() -> None:
    assert align(["class", "n"], [["a", "100"], ["longer", "7"]]) == ["  class     n", "  a       100", "  longer    7"]
    assert align(["c", "n"], [["\u80ba", "1"]]) == ["  c   n", "  \u80ba  1"]


def test_the_terminal_table_says_what_and_of_whom() -> None:
    lines = to_terminal_table(made_up.results()).splitlines()
    assert lines[0] == "cxr-zero-shot (made up): model nano (0123456789ab) on chexpert.jsonl"
    assert lines[1] == "500 images of 500 patients, manifest cdcdcdcdcdcd, unit study, seed 20"
    assert "  AUROC  0.800 [0.788, 0.810]  0.787 [0.775, 0.797]" in lines
    assert "  Edema             500       115  0.845 [0.807, 0.875]  0.832 [0.794, 0.862]" in lines
    assert "  left out: 37 images with an uncertain label: the published test set has none" in lines
    assert not any("Edema" in line for line in to_terminal_table(made_up.results(), classes=False).splitlines())


def test_a_hostile_name_cannot_steer_the_terminal() -> None:
    names = ("\x1b[31mred\nnext", *made_up.FINDINGS[1:])
    text = to_terminal_table(made_up.results((made_up.classification(names),)))
    assert "\x1b" not in text
    assert "red next" in text
