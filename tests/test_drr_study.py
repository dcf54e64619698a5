"""Studies of several reconstructed radiographs: one body, one report, masks where the findings are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radglint import cli
from radglint.calibrate import labels_of
from radglint.errors import ImageError, InputError, OutputError
from radglint.evaluation.truth import with_simulated_truth
from radglint.manifest import read_manifest
from radglint.simulation import dataset
from radglint.simulation.case import Plan, SimulatedCase
from radglint.simulation.ct import make_slab
from radglint.simulation.drr import VIEWS, View
from radglint.simulation.drr_study import CONCEPTS, Body, Projection, StudySource, make_body, project
from radglint.simulation.facts import Fact
from simulation_bases import coarse_phantom, volumes

SEED, SIZE_PX = 4, 128


def source() -> StudySource:
    return StudySource(volumes(), ("PA", "AP", "LL"), size_px=SIZE_PX)


def plans(count: int) -> list[Plan]:
    return [Plan(f"drr_{index:06d}", SEED, index) for index in range(count)]


@cache
def studies() -> list[list[SimulatedCase]]:
    return [source().make_study(plan) for plan in plans(4)]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies")
    dataset.write_dataset(source(), out, plans(3), SEED)
    return out


def films_of(*facts: Fact, views: Sequence[View] = VIEWS) -> tuple[Body, dict[View, Projection]]:
    """A body with these findings, and its films by view."""
    base = coarse_phantom()
    made, bare = (
        make_slab(base, np.random.default_rng(9), None, facts=painted, painter=np.random.default_rng(1))
        for painted in (facts, ())
    )
    body = make_body(base, made, bare, np.random.default_rng(2))
    return body, {view: project(body, view, np.random.default_rng(3), SIZE_PX) for view in views}


def test_the_images_of_a_study_share_report_facts_and_patient() -> None:
    for study in studies():
        assert [case.view for case in study] == ["PA", "AP", "LL"]
        assert len({(case.report.text, case.facts, case.patient, case.base, case.distractors) for case in study}) == 1
        assert len({case.pixels.tobytes() for case in study}) == 3
        assert {fact.concept for fact in study[0].facts} <= set(CONCEPTS)
        for k in range(len(study[0].facts)):
            assert any(case.shown is not None and case.shown[k] for case in study)
        for case in study:
            assert case.shown is not None
            assert sum(case.shown) == len(case.masks) == len(case.subtlety)
            assert all(mask.any() and mask.shape == case.pixels.shape for mask in case.masks)
            assert max(case.pixels.shape) == SIZE_PX


def test_a_nodule_on_the_left_lies_on_the_right_of_both_frontal_pictures() -> None:
    for side in ("left", "right"):
        body, films = films_of(Fact("nodule", side, "mid", "large"), views=("PA", "AP"))
        assert len(body.made.facts) == 1
        for film in films.values():
            column = np.argwhere(film.masks[0])[:, 1].mean()
            assert (column > film.picture.shape[1] / 2) == (side == "left")


def test_masks_of_all_views_are_of_the_same_finding() -> None:
    """Height above the lungs' base agrees between the views, and depth in the lateral with the 3D mask."""
    for zone in ("upper", "lower"):
        body, films = films_of(Fact("mass", "right", zone, "medium"))
        slices, rows, _ = np.argwhere(body.made.masks[0]).mean(axis=0)
        shares = []
        for film in films.values():
            assert film.shown == (True,)
            shares.append(np.argwhere(film.masks[0])[:, 0].mean() / film.picture.shape[0])
        assert max(shares) - min(shares) < 0.05
        assert shares[0] == pytest.approx(1 - (slices + 0.5) / len(body.made.volume_hu), abs=0.05)
        lungs = np.flatnonzero(np.isin(body.made.labels, (2, 3)).any(axis=(0, 2)))
        lateral = films["LL"]
        seen = np.flatnonzero(lateral.lungs.both.any(axis=0))
        depth = (rows - lungs[0]) / (lungs[-1] - lungs[0])
        found = (np.argwhere(lateral.masks[0])[:, 1].mean() - seen[0]) / (seen[-1] - seen[0])
        assert found == pytest.approx(depth, abs=0.12)


def test_a_finding_changes_the_film_inside_its_mask() -> None:
    fact = Fact("consolidation", "left", "lower", "large")
    _, films = films_of(fact)
    _, bare = films_of()
    for view, film in films.items():
        change = np.abs(film.picture - bare[view].picture)
        assert film.picture.shape == bare[view].picture.shape
        assert film.contrasts[0] > 0.1
        assert change[film.masks[0]].mean() > 3 * change[~film.masks[0]].mean()


def test_a_view_that_does_not_show_a_finding_has_no_mask_of_it() -> None:
    _, films = films_of(Fact("nodule", "left", "mid", "large"), views=("PA",))
    film = films["PA"]
    assert film.shown == (True,)
    assert dataclasses.replace(film, contrasts=(0.001,)).shown == (False,)
    assert dataclasses.replace(film, masks=(np.zeros_like(film.masks[0]),)).shown == (False,)


def test_a_finding_that_no_view_shows_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = studies()
    number = next(k for k, study in enumerate(made) if study[0].facts)
    monkeypatch.setattr("radglint.simulation.drr_study.LEAST_CONTRAST", 9.0)
    empty = source().make_study(plans(6)[number])
    assert all(case.facts == () and case.masks == () for case in empty)
    assert not np.array_equal(empty[0].pixels, made[number][0].pixels)


def test_twins_share_the_body_and_not_the_findings() -> None:
    for first, second in zip(studies()[::2], studies()[1::2], strict=True):
        assert first[0].base == second[0].base
        assert [case.pixels.shape for case in first] == [case.pixels.shape for case in second]
        assert first[0].report.text != second[0].report.text
        for one, two in zip(first, second, strict=True):
            assert np.corrcoef(one.pixels.ravel(), two.pixels.ravel())[0, 1] > 0.8
    assert not np.array_equal(studies()[0][0].pixels, studies()[2][0].pixels)


def test_a_view_does_not_depend_on_the_others_where_all_findings_show_in_it() -> None:
    assert all(studies()[0][2].shown or ())
    alone = dataclasses.replace(source(), views=("LL",)).make_study(plans(1)[0])
    assert np.array_equal(alone[0].pixels, studies()[0][2].pixels)


def test_each_view_has_its_image_and_line(built: Path) -> None:
    rows = read_manifest(built / "manifest.jsonl")
    assert [row.id for row in rows[:3]] == ["drr_000000_PA", "drr_000000_AP", "drr_000000_LL"]
    assert [row.view for row in rows[:3]] == ["PA", "AP", "LATERAL"]
    assert [row.study for row in rows] == [f"drr_{k // 3:06d}" for k in range(9)]
    for row, case in zip(rows, [case for study in studies()[:3] for case in study], strict=True):
        assert row.image == f"images/{row.id}.png"
        with Image.open(built / row.image) as picture:
            assert np.array_equal(np.asarray(picture), case.pixels)
        with np.load(built / row.extra["masks"], allow_pickle=False) as arrays:
            masks = arrays["masks"]
        facts, hidden = row.extra["facts"], row.extra["hidden"]
        assert [fact["mask"] for fact in facts] == list(range(len(masks)))
        assert all(fact["subtlety"] is not None for fact in facts)
        assert len(facts) == sum(case.shown or ())
        assert len(facts) + len(hidden) == len(case.facts)
        assert all(fact["subtlety"] is None and fact["mask"] is None for fact in hidden)


def test_a_fact_without_a_mask_keeps_the_numbers_of_the_others() -> None:
    case = next(study[0] for study in studies() if study[0].facts)
    facts, mask = (case.facts[0],) * 3, case.masks[0] if case.masks else np.ones_like(case.pixels, bool)
    partly = dataclasses.replace(case, facts=facts, masks=(mask, mask), subtlety=(0.1, 0.2), shown=(True, False, True))
    assert dataset._mask_numbers(partly) == [0, None, 1]


def test_workers_and_stops_do_not_matter(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.write_dataset(source(), tmp_path / "two", plans(3), SEED, workers=2)
    assert contents(tmp_path / "two") == contents(built)
    calls, write = [], dataset.write_bytes

    def stopping(path: Path, content: bytes) -> Path:
        calls.append(path)
        if len(calls) == 10:  # within the second study
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_bytes", stopping)
        with pytest.raises(KeyboardInterrupt):
            dataset.write_dataset(source(), tmp_path / "one", plans(3), SEED)
    assert len(list((tmp_path / "one" / "cases").iterdir())) == 1
    dataset.write_dataset(source(), tmp_path / "one", plans(3), SEED)
    assert contents(tmp_path / "one") == contents(built)


def test_other_views_in_the_same_folder_are_refused(built: Path) -> None:
    with pytest.raises(OutputError, match="other --views, or none"):
        dataset.write_dataset(dataclasses.replace(source(), views=("PA",)), built, plans(3), SEED)
    with pytest.raises(OutputError, match="other --views, or none"):
        dataset.write_dataset(dataclasses.replace(volumes(), kind="drr"), built, plans(3), SEED)


def test_what_a_view_does_not_show_is_neither_there_nor_absent(built: Path) -> None:
    row = next(row for row in read_manifest(built / "manifest.jsonl") if row.extra["facts"])
    concept = row.extra["facts"][0]["concept"]
    assert labels_of(row)[concept] == "present"
    moved = {"facts": row.extra["facts"][1:], "hidden": [row.extra["facts"][0] | {"mask": None, "subtlety": None}]}
    without = dataclasses.replace(row, extra={**row.extra, **moved})
    others = {fact["concept"] for fact in moved["facts"]}
    assert concept not in others
    assert concept not in labels_of(without)
    assert concept not in with_simulated_truth(without).labels
    assert labels_of(without)["pacemaker"] == "absent"


def test_a_body_without_lungs_on_the_film_is_refused() -> None:
    base = coarse_phantom()
    flat = dataclasses.replace(
        base, anatomy=dataclasses.replace(base.anatomy, labels=np.zeros_like(base.anatomy.labels))
    )
    made = make_slab(base, np.random.default_rng(9), None, facts=())
    body = make_body(flat, dataclasses.replace(made, labels=np.zeros_like(made.labels)), made, np.random.default_rng(2))
    with pytest.raises(ImageError, match="its PA radiograph shows no lungs; expected a CT of a whole chest"):
        project(body, "PA", np.random.default_rng(3), SIZE_PX)


def test_excluded_slices_are_not_shown() -> None:
    base = dataclasses.replace(coarse_phantom(), excluded=np.arange(len(coarse_phantom().volume_hu)) == 3)
    with pytest.raises(InputError, match="has excluded slices"):
        make_slab(base, np.random.default_rng(0), None)


def test_the_command_makes_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "studies"
    arguments = ["drr", "--phantom", "1", "--slice-step", "20", "--count", "1", "--out", str(out)]
    assert cli.main(["simulate", *arguments, "--views", "LL", "PA"]) == 0
    assert capsys.readouterr().out == f"1 studies: {out / 'manifest.jsonl'}\n"
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["images/drr_000000_PA.png", "images/drr_000000_LL.png"]
    assert json.loads((out / "simulation.json").read_text())["views"] == ["PA", "LL"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cxr", "x", "--views", "PA"], "simulate cxr: --views goes with drr only"),
        (["ct", "x", "--views", "PA", "LL"], "simulate ct: --views goes with drr only"),
        (["drr", "x", "--views", "PA", "RL"], "--views: expected some of PA, AP, LL, each once, got PA RL"),
        (["drr", "x", "--views", "PA", "PA"], "each once, got PA PA"),
        (["--benchmark", "simfind-drr", "--views", "PA"], "takes no --labels, --lesions or --views"),
        (["drr", "x", "--lesions", "y"], "`simulate drr` with --views"),
        (["drr", "--views", "PA"], "give BASES or --phantom"),
    ],
)
def test_a_wrong_command_is_told_what_to_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", "--out", "cases", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
