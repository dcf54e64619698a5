"""Decisions of a locally calibrated model, and that table, JSON, page, picture and DICOM say the same of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydantic import ValidationError

from dicom_files import write_radiograph
from dicom_results import content_items, measurement_groups
from findings_phantom import answer, collect, radiograph, upper_right
from radglint.checkpoint import ModalityCalibration
from radglint.decisions import Abstention, decide
from radglint.finding import Finding
from radglint.page import render_page
from radglint.pipeline import capped
from radglint.reading import read_image
from radglint.render import _caption_lines
from radglint.score_maps import LogisticMap

BOTH = Abstention(alpha=0.1, present_from=0.3, absent_to=0.6, num_present=40, num_absent=40)  # both kept in between
NONE = Abstention(alpha=0.1, present_from=0.6, absent_to=0.3, num_present=40, num_absent=40)  # none kept in between
SOURCE = "calibrated for sensitivity 0.9"


@pytest.mark.parametrize("sets", [BOTH, NONE])
@pytest.mark.parametrize(
    ("probability", "threshold", "wanted"),
    [
        (0.1, 0.5, "absent"),
        (0.45, 0.5, "uncertain"),
        (0.55, 0.5, "uncertain"),
        (0.9, 0.5, "present"),
        (0.2, 0.15, "uncertain"),  # the threshold says present, the sets absent
        (0.7, 0.8, "uncertain"),  # and the reverse
        (0.1, 0.15, "absent"),
        (0.9, 0.8, "present"),
    ],
)
def test_threshold_and_sets_must_agree(probability: float, threshold: float, wanted: str, sets: Abstention) -> None:
    assert decide(probability, threshold, sets) == wanted
    assert decide(probability, threshold) == ("present" if probability >= threshold else "absent")


def test_a_threshold_moves_to_the_nearest_end_of_the_undecided_range() -> None:
    assert [BOTH.nearest(t) for t in (0.1, 0.5, 0.9)] == [0.3, 0.5, 0.6]
    assert BOTH.undecided == NONE.undecided == (0.3, 0.6)


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"present_from": 1.0}, {"absent_to": float("nan")}])
def test_sets_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Abstention(**{**BOTH.model_dump(), **changes})


def finding(probability: float, query: str = "nodule", **changes: Any) -> Finding:
    image = radiograph()
    options = {"threshold": 0.4, "threshold_source": SOURCE, "mask_threshold": 0.5, "abstention": BOTH}
    return answer(image, upper_right(image), query, probability=probability, **{**options, **changes})


def test_an_uncertain_finding_shows_its_place_and_says_that_it_is_uncertain() -> None:
    doubt = finding(0.45)
    assert (doubt.decision, doubt.verdict, doubt.present, doubt.is_marked) == ("uncertain", "uncertain", False, True)
    assert (doubt.mask() == upper_right(doubt.image)).all()
    assert "uncertain, and so is what is marked: probability 0.450 lies between 0.3 and 0.6" in doubt.remark


def test_an_uncertain_finding_below_the_threshold_marks_nothing() -> None:
    doubt = finding(0.35)
    assert doubt.decision == "uncertain"
    assert not doubt.mask().any()
    assert "below the threshold 0.4" in doubt.remark


def test_a_contradiction_is_explained() -> None:
    doubt = finding(0.2, threshold=0.1)
    assert doubt.decision == "uncertain"
    assert "judged otherwise by the threshold 0.1 than by the range 0.3 to 0.6" in doubt.remark


def test_a_note_and_a_doubt_are_both_told() -> None:
    remark = finding(0.45, note="only the first statement is asked").remark
    assert "lies between" in remark
    assert "only the first statement is asked" in remark


def test_out_of_scope_stays_out_of_scope() -> None:
    outside = finding(0.45, in_scope=False)
    assert (outside.decision, outside.verdict, outside.is_marked) == ("out of scope", "not asked", False)


def test_the_mask_keeps_its_own_threshold() -> None:
    image = radiograph()
    low = finding(0.9, threshold=0.001)
    logits = np.where(upper_right(image), 5.0, -2.0).astype(np.float32)  # 0.12 elsewhere
    both = Finding(
        "nodule", "nodule", "present", 0.2, 0.9, 0.001, logits, low.image, low.record, threshold_source=SOURCE,
        mask_threshold=0.5,
    )  # fmt: skip
    assert (both.mask() == upper_right(image)).all()
    assert both.mask(0.001).all()  # one given threshold serves both


def test_all_outputs_agree_on_decision_and_threshold() -> None:
    findings = collect(finding(0.45), finding(0.9), finding(0.1), finding(0.45, "no nodule"))
    table = findings.to_table().splitlines()
    page = render_page(findings)
    assert table[0].split()[3:6] == ["probability", "threshold", "decision"]
    for found, row, document in zip(findings, table[1:], findings.to_dict()["findings"], strict=True):
        assert f"0.40 ({SOURCE})" in row
        assert found.verdict in row
        assert document["decision"] == found.decision
        assert document["present"] == (found.decision == "present")
        assert (document["threshold"], document["threshold_source"]) == (0.4, SOURCE)
        assert (document["mask_threshold"], document["undecided"]) == (0.5, [0.3, 0.6])
        assert f"threshold 0.40 ({SOURCE})" in _caption_lines(found)[0]
    assert page.count(f"threshold 0.40 ({SOURCE})") == 4
    assert page.count('<span class="decision">uncertain</span>') == 2
    assert page.count('<span class="decision yes">present</span>') == 1


def test_without_a_local_calibration_nothing_is_added() -> None:
    image = radiograph()
    findings = collect(answer(image, upper_right(image)))
    assert findings.to_table().splitlines()[0].split() == [
        "query", "asked", "as", "probability", "decision", "where", "note"
    ]  # fmt: skip
    assert not {"decision", "threshold_source", "mask_threshold", "undecided"} & set(findings.to_dict()["findings"][0])


def test_the_structured_report_says_equivocal_and_why(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (61, 83)).astype(np.uint16)
    image = read_image(write_radiograph(tmp_path / "x.dcm", pixels))
    where = np.zeros(image.shape, bool)
    where[2:6, 3:8] = True
    options = {"threshold": 0.4, "threshold_source": SOURCE, "mask_threshold": 0.5, "abstention": BOTH}
    findings = collect(*(answer(image, where, "nodule", probability=p, **options) for p in (0.45, 0.9, 0.1)))
    seg = findings.to_dicom_seg(tmp_path / "seg.dcm")
    report = pydicom.dcmread(findings.to_dicom_sr(tmp_path / "sr.dcm", seg=seg))
    groups = measurement_groups(report)
    codes = [("SCT", "42425007"), ("SCT", "52101004"), ("SCT", "272519000")]
    assert [group["Finding context"] for group in groups] == codes
    assert "Decision: uncertain" in groups[0]["Comment"]
    assert SOURCE in groups[0]["Comment"]
    words = [item.TextValue for item in content_items(report) if item.ValueType == "TEXT"]
    assert f"threshold source: {SOURCE}" in words
    assert "undecided: 0.3 to 0.6" in words


def test_slices_are_capped_by_the_presence_threshold_and_marked_from_one_half() -> None:
    """A slice just below the class's own threshold of 0.8 (logit 1.39) marks nothing at 0.5; one just above does."""
    shift = -np.log(4.0)
    tokens, slices = torch.full((2, 1, 1), 3.0), torch.tensor([1.3, 1.5])
    marked = capped(tokens, slices + shift, 0.0).flatten() >= 0.0
    assert marked.tolist() == [False, True]


def test_an_old_calibration_reads_as_it_was() -> None:
    line = {"slope": 1.0, "bias": 0.0}
    maps = ModalityCalibration.model_validate({"presence": {"nodule": line}, "presence_default": line, "pixel": line})
    assert maps.presence == {"nodule": LogisticMap(slope=1.0, bias=0.0)}
    assert (maps.thresholds, maps.abstention, maps.local) == ({}, {}, None)
