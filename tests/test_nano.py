"""The shipped weights on real images: the numbers of the model card, so that a changed number fails."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import radglint
from radglint.evaluation.suite import evaluate, named_suite
from radglint.reading import read_image
from radglint.registry import locate
from radglint.simulation.drr import DrrConfig, project_mask, render_drr

EXPECTED = json.loads((Path(__file__).parent / "nano_expected.json").read_text())
HEART_LABEL = 51  # of the segmented structures of that CT
RANKED = {"Effusion": "pleural effusion", "Pneumonia": "consolidation"}  # label and query
TOLERANCE = 0.03  # of an AUROC or a probability, across processors and between bfloat16 and float32


@pytest.fixture(scope="module")
def nano() -> radglint.Pipeline:
    return radglint.load("nano", device="cpu")


def test_the_weights_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in locate("nano").iterdir()) < 60e6


@pytest.fixture(scope="module")
def scored_films(nano: radglint.Pipeline, shared_data: Path) -> dict[str, list[dict[str, float]]]:
    """Up to 30 of each label and 40 normal ones, of patients that training never saw; each image is asked once."""
    folder = shared_data / "nih_cxr"
    records = json.loads((folder / "records.json").read_text())
    held_out = [r for r in records if zlib.crc32(r["patient"].encode()) % 10 < 4]
    chosen = {label: [r for r in held_out if label in r["labels"]][:30] for label in RANKED}
    chosen["No Finding"] = [r for r in held_out if r["labels"] == ["No Finding"]][:40]
    images = sorted({r["image"] for rows in chosen.values() for r in rows})
    scores = {image: {f.query: f.score for f in nano.ask(folder / image, list(RANKED.values()))} for image in images}
    return {label: [scores[r["image"]] for r in rows] for label, rows in chosen.items()}


@pytest.mark.parametrize(("label", "key"), [("Effusion", "effusion_auroc"), ("Pneumonia", "pneumonia_auroc")])
def test_held_out_radiographs_rank_as_expected(
    scored_films: dict[str, list[dict[str, float]]], label: str, key: str
) -> None:
    """A label against normal; far better than chance."""
    sick, well = (np.array([row[RANKED[label]] for row in scored_films[name]]) for name in (label, "No Finding"))
    auroc = (sick[:, None] > well[None, :]).mean()
    assert auroc == pytest.approx(EXPECTED[key], abs=TOLERANCE)
    assert auroc > 0.6


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
