"""The input doctor: facts are right, verdicts follow from what was planted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from radglint.image import MedicalImage
from radglint.inspection import inspect_image, judge_image, lung_volume_ml, polarity_gap


def body(shape=(60, 60, 60), spacing=(5.0, 6.0, 6.0), lung_rows=slice(5, 55)) -> MedicalImage:
    """A box of soft tissue in air with two lungs; depth runs to the head."""
    rng = np.random.default_rng(0)
    array = np.full(shape, -1000.0)
    array[:, 8:52, 5:55] = 40
    array[lung_rows, 15:45, 10:28] = -850
    array[lung_rows, 15:45, 32:50] = -850
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing[0], -spacing[1], -spacing[2], 1
    noisy = (array + rng.normal(0, 15, shape)).astype(np.float32)
    return MedicalImage(noisy, "CT", "HU", spacing, affine)


def radiograph(height=300, width=280) -> np.ndarray:
    """Dark border, bright mediastinum, two dark lungs."""
    rng = np.random.default_rng(1)
    array = np.full((height, width), 0.55)
    array[:, : width // 20] = array[:, -width // 20 :] = 0.05
    array[height // 5 : -height // 5, width // 8 : 3 * width // 8] = 0.2
    array[height // 5 : -height // 5, 5 * width // 8 : 7 * width // 8] = 0.2
    array[:, 2 * width // 5 : 3 * width // 5] = 0.85
    return np.clip(array + rng.normal(0, 0.03, array.shape), 0, 1).astype(np.float32)


def judged(array: np.ndarray):
    return judge_image(MedicalImage(np.ascontiguousarray(array, dtype=np.float32), "CXR", "display"))


def test_lung_volume_is_that_of_the_planted_boxes():
    image = body()
    expected = 2 * 50 * 30 * 18 * 5 * 6 * 6 / 1000
    volume, cut = lung_volume_ml(image)
    assert volume == pytest.approx(expected, rel=0.01)
    assert cut == []


def test_lung_volume_does_not_depend_on_the_axis_order():
    image = body()
    order = (2, 0, 1)
    turned = MedicalImage(
        np.ascontiguousarray(image.array.transpose(order)), "CT", "HU", None, image.affine[:, [*order, 3]]
    )
    assert lung_volume_ml(turned) == lung_volume_ml(image)


@pytest.mark.parametrize(("rows", "cut"), [(slice(0, 40), ["begins"]), (slice(20, 60), ["ends"])])
def test_cut_lungs_are_told_by_the_world_and_not_by_the_index(rows, cut):
    image = body(lung_rows=rows)
    assert lung_volume_ml(image)[1] == cut
    flipped = image.affine @ np.array([[-1, 0, 0, 59], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    mirrored = MedicalImage(np.ascontiguousarray(image.array[::-1]), "CT", "HU", None, flipped)
    assert lung_volume_ml(mirrored)[1] == cut


def test_good_ct_is_ok():
    inspection = judge_image(body())
    assert inspection.verdict == "ok"
    assert inspection.facts["orientation"] == "SPL"
    assert inspection.facts["coverage_mm"] == 300
    assert inspection.tissue_shares["lung"] == pytest.approx(2 * 50 * 30 * 18 / 60**3, abs=0.01)
    assert inspection.percentiles["p50"] == pytest.approx(np.median(body().array))


@pytest.mark.parametrize(
    ("image", "verdict", "words"),
    [
        (body(lung_rows=slice(0, 0)), "not usable", "no lung found"),
        (body(lung_rows=slice(25, 29)), "usable with care", "ml of lung in view"),
        (body(spacing=(2.0, 6.0, 6.0)), "usable with care", "covers 120 mm"),
        (body(spacing=(7.0, 6.0, 6.0)), "usable with care", "7.0 mm apart"),
        (body(spacing=(5.0, 16.0, 16.0)), "usable with care", "is the spacing right"),
        (body(lung_rows=slice(0, 60)), "usable with care", "begins and ends within the lungs"),
    ],
)
def test_odd_ct_is_told(image, verdict, words):
    inspection = judge_image(image)
    assert inspection.verdict == verdict
    assert any(words in reason for reason in inspection.reasons)


def test_good_radiograph_is_ok():
    inspection = judged(radiograph())
    assert inspection.verdict == "ok"
    assert inspection.reasons == ("looks like a chest radiograph, bright = dense",)
    assert inspection.tissue_shares == {}


@pytest.mark.parametrize(
    ("array", "verdict", "words"),
    [
        (1 - radiograph(), "usable with care", "perhaps inverted"),
        (radiograph() * 0.1, "not usable", "hardly any contrast"),
        (radiograph() * 0.2, "usable with care", "nearly black"),
        (radiograph() * 0.25 + 0.4, "usable with care", "low contrast"),
        (radiograph(300, 900), "usable with care", "unusual shape"),
        (radiograph(100, 100), "usable with care", "only 100 x 100 pixels"),
        ((radiograph() > 0.5), "not usable", "a mask"),
        (radiograph() + 0.45, "usable with care", "fully white"),
    ],
)
def test_odd_radiograph_is_told(array, verdict, words):
    inspection = judged(np.clip(array, 0, 1))
    assert inspection.verdict == verdict
    assert any(words in reason for reason in inspection.reasons)


def test_polarity_changes_sign_with_inversion():
    assert polarity_gap(radiograph()) == pytest.approx(-polarity_gap(1 - radiograph()), abs=1e-6)


def test_warnings_of_the_reader_are_reasons():
    image = MedicalImage(radiograph(), "CXR", "display", warnings=("10 pixels are coloured",))
    inspection = judge_image(image)
    assert (inspection.verdict, inspection.reasons) == ("usable with care", ("10 pixels are coloured",))


def test_text_and_dict_tell_the_same(tmp_path):
    Image.fromarray((radiograph() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    inspection = inspect_image(tmp_path / "a.png")
    told = json.loads(json.dumps(inspection.to_dict()))
    assert told["image"]["shape"] == [300, 280]
    assert told["verdict"] == "ok"
    text = inspection.to_text()
    for words in ("300 x 280", "spacing mm       unknown", "1. decoded PNG", "verdict: ok", "p99.5"):
        assert words in text


def test_ct_text_shows_tissue():
    text = judge_image(body()).to_text()
    assert "soft tissue" in text
    assert "5 x 6 x 6" in text


def test_unreadable_image_is_not_usable_with_the_error_as_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    inspection = inspect_image(tmp_path / "a.png")
    assert inspection.verdict == "not usable"
    assert "empty (0 bytes)" in inspection.reasons[0]
    assert "empty (0 bytes)" in inspection.to_text()
    assert inspection.to_dict()["image"] == {}


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("lidc_0001", "ok"), ("lungdx_a0001", "ok"), ("partial_lungfcp_01_0001", "usable with care")],
)
def test_real_ct(shared_data, case, verdict):
    inspection = inspect_image(shared_data / "ct_chest" / case / "ct.nii.gz")
    assert inspection.verdict == verdict
    assert 1000 < inspection.facts["lung_ml"] < 7000


def test_real_radiographs_are_ok_and_most_inverted_ones_are_caught(shared_data):
    paths = sorted((shared_data / "covid_cxr_notes" / "cc").glob("*.jpg"))[:20]
    inspections = [inspect_image(path) for path in paths]
    assert [i.verdict for i in inspections] == ["ok"] * 20
    assert sum(i.facts["polarity_gap"] < -0.1 for i in inspections) >= 12
