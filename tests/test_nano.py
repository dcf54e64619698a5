"""The shipped weights on real images: the numbers of the model card, so that a changed number fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import radglint
from radglint.evaluation.suite import evaluate, named_suite
from radglint.reading import read_image
from radglint.registry import locate
from radglint.simulation.drr import DrrConfig, project_mask, render_drr
from record_nano_scores import RECORDED, ask_films, auroc, chosen_films

SCORES: dict[str, list[float]] = json.loads(RECORDED.read_text())
EXPECTED = json.loads((Path(__file__).parent / "nano_expected.json").read_text())
HEART_LABEL = 51  # of the segmented structures of that CT
TOLERANCE = 0.03  # of an AUROC or a probability, across processors and between bfloat16 and float32
SCORE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: TOLERANCE}  # of a score of one film, recorded in float32


@pytest.fixture(scope="module")
def nano() -> radglint.Pipeline:
    return radglint.load("nano", device="cpu")


def test_the_weights_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in locate("nano").iterdir()) < 60e6


@pytest.fixture(scope="module")
def films(shared_data: Path) -> dict[str, list[str]]:
    return chosen_films(shared_data / "nih_cxr")


@pytest.mark.parametrize(("label", "key"), [("Effusion", "effusion_auroc"), ("Pneumonia", "pneumonia_auroc")])
def test_held_out_radiographs_rank_as_expected(films: dict[str, list[str]], label: str, key: str) -> None:
    """A label against normal, by the scores recorded of every film; far better than chance."""
    assert set(SCORES) == set().union(*films.values())
    assert len(films[label]) > 15
    assert len(films["No Finding"]) == 40
    found = auroc(SCORES, films, label)
    assert found == pytest.approx(EXPECTED[key], abs=5.1e-4)  # written with three digits
    assert found > 0.6


def test_films_asked_today_score_as_recorded(
    nano: radglint.Pipeline, films: dict[str, list[str]], shared_data: Path
) -> None:
    """Every fourth film of each kind, sick and normal; if weights or reading changed, record_nano_scores.py first."""
    names = set().union(*(some[::4] for some in films.values()))
    today = ask_films(nano, shared_data / "nih_cxr", names)
    change = np.abs(np.array([today[name] for name in sorted(names)]) - [SCORES[name] for name in sorted(names)])
    assert len(names) * 4 >= len(SCORES)
    assert change.max() < SCORE_TOLERANCE[nano.model.dtype]


def test_cardiomegaly_is_marked_on_the_heart(nano: radglint.Pipeline, shared_data: Path) -> None:
    """A radiograph computed from a real CT, against the projection of its segmented heart."""
    folder, config = shared_data / "ct_chest/lidc_0001", DrrConfig(size_px=512)
    ct = read_image(str(folder / "ct.nii.gz"))
    structures = np.asarray(nib.load(folder / "labels.nii.gz").dataobj).transpose(2, 1, 0)
    heart = project_mask(structures == HEART_LABEL, ct, config)
    finding = nano.ask(render_drr(ct, config), ["cardiomegaly"])[0]
    mask, peak = finding.mask(), finding.peak
    assert 2 * (mask & heart).sum() / (mask.sum() + heart.sum()) > 0.65
    assert peak is not None
    assert heart[peak.index]


@pytest.fixture(scope="module")
def mass_findings(nano: radglint.Pipeline, shared_data: Path) -> radglint.Findings:
    """One CT, never trained on, asked once."""
    return nano.ask(shared_data / "ct_chest/lidc_0001/ct.nii.gz", ["lung mass", "no lung mass", "fractured femur"])


def test_a_real_mass_gets_the_answer_of_the_card(mass_findings: radglint.Findings, shared_data: Path) -> None:
    truth = nib.load(shared_data / "ct_chest/lidc_0001/mask_nodules_consensus.nii.gz")
    outline = np.asarray(truth.dataobj).transpose(2, 1, 0) > 0
    mass = mass_findings[0]
    mask = mass.mask()
    overlap = 2 * (mask & outline).sum() / (mask.sum() + outline.sum())
    assert mass.probability == pytest.approx(EXPECTED["mass_probability"], abs=TOLERANCE)
    assert overlap == pytest.approx(EXPECTED["mass_dice"], abs=0.05)
    hottest = np.unravel_index(np.nanargmax(mass.probability_map()), outline.shape)
    assert bool(outline[hottest]) is EXPECTED["mass_peak_inside"]


def test_negated_and_out_of_scope_queries_mark_nothing(mass_findings: radglint.Findings) -> None:
    mass, negated, femur = mass_findings
    assert negated.probability == mass.probability
    assert not negated.mask().any()
    assert not femur.in_scope
    assert not femur.mask(0.01).any()
    assert "outside" in femur.remark


def test_the_referee_gives_the_numbers_of_the_card(shared_data: Path, tmp_path: Path) -> None:
    """Forty held-out radiographs through manifest, suite and protocols; the card has all of them."""
    recipes = Path(__file__).resolve().parents[1] / "recipes"
    command = [sys.executable, str(recipes / "real_manifest.py"), str(shared_data), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    config = named_suite("chestxray14", tmp_path / "nih.jsonl", tmp_path / "out", limit=20).model_copy(
        update={"protocols": ("radglint", "trust", "calibration"), "draws": 20}
    )
    found = {p.name: p.means["honest"] for p in evaluate(config).protocols}
    numbers = {
        "radglint_auroc": found["radglint"]["auroc"].value,
        "ece_pooled": found["calibration"]["ece_pooled"].value,
        "negation_kept": found["trust"]["negation_kept"].value,
        "foreign_refused": found["trust"]["foreign_refused"].value,
    }
    assert numbers == {name: pytest.approx(EXPECTED[name], abs=TOLERANCE) for name in numbers}
