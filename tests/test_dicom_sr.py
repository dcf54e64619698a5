"""DICOM structured reports: what was asked, what was decided, how large, by which model, and where."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

import radglint
from dicom_files import write_radiograph
from dicom_results import (
    ORIENTATIONS,
    WHEN,
    ask,
    blob,
    centroid_of_nifti,
    centroid_of_segment,
    content_items,
    dciodvfy,
    dump,
    measurement_groups,
    seg_pixels,
    segment_of,
    segment_on_grid,
    write_series,
)
from findings_phantom import answer, collect
from radglint import cli
from radglint.checkpoint import save_checkpoint
from radglint.coded_concepts import CLINICAL_FINDING, PHYSICAL_OBJECT, code_finding
from radglint.errors import InputError, OutputError
from radglint.findings import DICOM_NAMES, Findings
from radglint.preprocess import PreprocessRecord
from radglint.reading import read_image
from tiny_models import PROVENANCE, tiny_calibration, tiny_model


def radiograph(folder: Path, **tags: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 4000, (61, 83)).astype(np.uint16)
    return read_image(write_radiograph(folder / "x.dcm", pixels, **tags))


def report(findings: Findings, folder: Path, **options: Any) -> tuple[pydicom.Dataset, pydicom.Dataset]:
    """The report and the segmentation that it refers to."""
    seg = findings.to_dicom_seg(folder / "seg.dcm")
    return dump(findings.to_dicom_sr(folder / "sr.dcm", seg=seg, **options)), dump(seg)


def test_groups_of_a_ct(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series", *ORIENTATIONS["oblique"])))
    sr, seg = report(findings, tmp_path)
    assert sr.SOPClassUID.name == "Comprehensive 3D SR Storage"
    groups = measurement_groups(sr)
    assert [group["Finding"] for group in groups] == [
        ("SCT", "60046008"), ("SCT", "36118008"), ("SCT", "27925004"), ("SCT", "14106009"), ("SCT", "404684003"),
    ]  # fmt: skip
    present, absent, unknown = ("SCT", "52101004"), ("SCT", "272519000"), ("SCT", "261665006")
    assert [group["Finding context"] for group in groups] == [present, present, absent, present, unknown]
    assert [group["Asked as"] for group in groups] == [present, absent, present, present, present]
    assert [group["Certainty of Finding"] for group in groups] == [(f.probability * 100, "%") for f in findings]
    assert groups[0]["Volume"] == (pytest.approx(findings[0].volume_ml, rel=1e-5), "ml")
    assert [number for number, group in enumerate(groups, 1) if "Volume" in group] == [1, 4]
    for number, group in enumerate(groups, 1):
        assert findings[number - 1].query in group["Tracking Identifier"]
        assert group["Tracking Unique Identifier"] == seg.SegmentSequence[number - 1].TrackingUID
        assert findings[number - 1].verdict in group["Comment"]
        assert ("Referenced Segment" in group) == (number in (1, 4))
    assert groups[3]["Referenced Segment"].ReferencedSegmentNumber == 4
    assert groups[3]["Referenced Segment"].ReferencedSOPInstanceUID == seg.SOPInstanceUID
    assert groups[3]["Source Series for Segmentation"] == seg.ReferencedSeriesSequence[0].SeriesInstanceUID


def test_groups_of_a_radiograph(tmp_path: Path) -> None:
    findings = ask(radiograph(tmp_path, PixelSpacing=[0.2, 0.3]))
    sr, seg = report(findings, tmp_path)
    assert sr.SOPClassUID.name == "Comprehensive SR Storage"
    groups = measurement_groups(sr)
    assert groups[0]["Area"] == (pytest.approx(findings[0].area_px * 0.06, rel=1e-5), "mm2")
    reference = groups[3]["Referenced Segmentation Frame"]
    assert segment_of(seg, reference.ReferencedFrameNumber - 1) == 4
    assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
    source = pydicom.dcmread(tmp_path / "x.dcm").SOPInstanceUID
    assert groups[0]["Source Image for Segmentation"].ReferencedSOPInstanceUID == source


def test_area_without_spacing_is_in_pixels(tmp_path: Path) -> None:
    findings = ask(radiograph(tmp_path))
    assert measurement_groups(report(findings, tmp_path)[0])[0]["Area"] == (findings[0].area_px, "{pixels}")


def test_radiograph_with_a_labelmap(tmp_path: Path) -> None:
    image = radiograph(tmp_path)
    findings = collect(answer(image, blob(image), "nodule"), answer(image, blob(image), "no mass"))
    seg = findings.to_dicom_seg(tmp_path / "seg.dcm", "LABELMAP")
    sr = dump(findings.to_dicom_sr(tmp_path / "sr.dcm", seg=seg))
    assert measurement_groups(sr)[0]["Referenced Segmentation Frame"].ReferencedSegmentNumber == 1


def test_only_segment_of_a_radiograph_is_found_in_the_shared_group(tmp_path: Path) -> None:
    image = radiograph(tmp_path)
    sr, _ = report(collect(answer(image, blob(image))), tmp_path)
    assert measurement_groups(sr)[0]["Referenced Segmentation Frame"].ReferencedFrameNumber == 1


def test_model_and_threshold_are_named(tmp_path: Path) -> None:
    sr, _ = report(ask(read_image(write_series(tmp_path / "series"))), tmp_path)
    words = [item.TextValue for item in content_items(sr) if item.ValueType == "TEXT"]
    assert {"radglint tiny", radglint.__version__, "model fingerprint: abc123", "threshold: 0.5"} <= set(words)
    assert (sr.ManufacturerModelName, sr.DeviceSerialNumber) == ("tiny", "abc123")
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert sr.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99RADGLINT"


def test_every_reference_is_listed_as_evidence_and_exists(tmp_path: Path) -> None:
    sr, seg = report(ask(read_image(write_series(tmp_path / "series"))), tmp_path)
    files = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "series").iterdir()} | {seg.SOPInstanceUID}
    evidence = {
        item.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }  # fmt: skip
    used = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in content_items(sr) if i.ValueType == "IMAGE"}
    assert used == evidence == files


def test_without_a_segmentation(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    groups = measurement_groups(dump(findings.to_dicom_sr(tmp_path / "sr.dcm")))
    assert len(groups) == 5
    assert not any("Referenced Segment" in group for group in groups)
    assert "Volume" in groups[0]


def test_same_content_and_time_give_the_same_bytes(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    seg = findings.to_dicom_seg(tmp_path / "seg.dcm", created=WHEN)
    one = findings.to_dicom_sr(tmp_path / "1.dcm", seg=seg, created=WHEN)
    two = findings.to_dicom_sr(tmp_path / "2.dcm", seg=seg, created=WHEN)
    later = findings.to_dicom_sr(tmp_path / "3.dcm", seg=seg, created=datetime(2027, 1, 1))
    assert one.read_bytes() == two.read_bytes()
    assert pydicom.dcmread(one).SOPInstanceUID != pydicom.dcmread(later).SOPInstanceUID


def test_patient_is_that_of_the_source(tmp_path: Path) -> None:
    write_series(
        tmp_path / "series", PatientName="M\u00fcller^J\u00f6rg", SpecificCharacterSet="ISO_IR 100", StudyID="7"
    )
    sr, _ = report(ask(read_image(tmp_path / "series")), tmp_path)
    assert (str(sr.PatientName), sr.PatientID, sr.StudyID) == ("M\u00fcller^J\u00f6rg", "SECRET-ID", "7")
    assert not [element.tag for element in sr.iterall() if element.tag.is_private]


def test_segmentation_of_other_findings(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    seg = collect(answer(image, blob(image), "mass")).to_dicom_seg(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="not of these findings"):
        collect(answer(image, blob(image), "nodule")).to_dicom_sr(tmp_path / "sr.dcm", seg=seg)
    assert not (tmp_path / "sr.dcm").exists()


def test_wrong_use(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    with pytest.raises(OutputError, match="no query was asked"):
        Findings([], image, model_name="tiny", model_fingerprint="abc").to_dicom_sr(tmp_path / "sr.dcm")
    with pytest.raises(OutputError, match=r"ends in \.dcm"):
        ask(image).to_dicom_sr(tmp_path / "sr")


@pytest.mark.parametrize("source", ["ct", "radiograph"])
def test_dicom3tools_finds_no_error(tmp_path: Path, source: str) -> None:
    image = radiograph(tmp_path) if source == "radiograph" else read_image(write_series(tmp_path / "series"))
    report(ask(image), tmp_path)
    assert dciodvfy(tmp_path / "sr.dcm") == []


@pytest.mark.parametrize(
    ("phrase", "code"),
    [
        ("Small LEFT pleural effusion", "60046008"),
        ("pericardial effusion", "373945007"),
        ("joint effusion", CLINICAL_FINDING.value),
        ("subcutaneous emphysema", CLINICAL_FINDING.value),
        ("centrilobular emphysema", "87433001"),
        ("ground\u2010glass opacities in both lungs", "112120"),
        ("4 mm pulmonary nodule", "786838002"),
        ("thyroid nodule", CLINICAL_FINDING.value),
        ("massive something", CLINICAL_FINDING.value),
        ("rib fracture", "33737001"),
        ("enlarged heart", "8186001"),
    ],
)
def test_codes_are_those_of_the_words(phrase: str, code: str) -> None:
    assert code_finding(phrase).type.value == code


def test_every_trained_concept_has_a_code_of_its_own() -> None:
    folder = Path(radglint.__file__).parent / "weights" / "nano"
    concepts = set(json.loads((folder / "prompts.json").read_text(encoding="utf-8"))) - {"outside"}
    uncoded = {concept for concept in concepts if not code_finding(concept).is_specific}
    assert uncoded == set()
    devices = {concept for concept in concepts if code_finding(concept).category == PHYSICAL_OBJECT}
    assert devices == {"pacemaker", "central line", "endotracheal tube", "chest tube"}


def test_save_writes_dicom_beside_the_rest(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    names = [path.name for path in findings.save(tmp_path / "out", dicom=True)]
    assert names[-4:] == [*DICOM_NAMES, "findings.json", "index.html"]
    seg, sr = (pydicom.dcmread(tmp_path / "out" / name) for name in DICOM_NAMES)
    assert measurement_groups(sr)[0]["Referenced Segment"].ReferencedSOPInstanceUID == seg.SOPInstanceUID
    findings.save(tmp_path / "out")  # a run without them leaves no stale ones
    assert not any((tmp_path / "out" / name).exists() for name in DICOM_NAMES)


def test_save_is_all_or_nothing(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series", FrameOfReferenceUID=None)))
    with pytest.raises(InputError, match="FrameOfReferenceUID"):
        findings.save(tmp_path / "out", dicom=True)
    assert not (tmp_path / "out").exists()


def test_command_line_needs_a_folder_and_dicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    picture = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(picture)
    assert cli.main(["ask", str(picture), "nodule", "--dicom"]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert cli.main(["ask", str(picture), "nodule", "--dicom", "--out", str(tmp_path / "out")]) == 2
    assert "read from png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_series(tmp_path: Path, shared_data: Path) -> None:
    """A real sagittal CT, JPEG lossless, de-identified: air in the chest stands for a finding."""
    folder = tmp_path / "series"
    folder.mkdir()
    for path in sorted((shared_data / "dicom_jpeg_lossless").glob("*.dcm"))[4:9]:
        shutil.copy(path, folder)
    image = read_image(folder)
    dark = np.where(image.array[:, 8::16, 8::16] < -970, 5.0, -5.0).astype(np.float32)
    record = PreprocessRecord(image.shape, dark.shape, np.diag([1, 1 / 16, 1 / 16, 1]), ("one token in 16 x 16 px",))
    asked = (answer(image, np.zeros(image.shape, bool), query) for query in ("emphysema", "no pacemaker"))
    findings = collect(*(dataclasses.replace(finding, token_logits=dark, record=record) for finding in asked))
    sr, seg = report(findings, tmp_path)
    nifti = nib.load(findings[0].to_nifti(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(segment_on_grid(seg, 1, nifti), np.asanyarray(nifti.dataobj))
    np.testing.assert_allclose(centroid_of_segment(seg, 1), centroid_of_nifti(nifti), atol=1e-3)
    assert measurement_groups(sr)[0]["Volume"] == (pytest.approx(findings[0].volume_ml, rel=1e-5), "ml")
    source = pydicom.dcmread(folder / "1-005.dcm")
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientSex", "StudyDate"):
        assert seg[keyword].value == sr.get(keyword, source[keyword].value) == source[keyword].value
    assert not [element.tag for ds in (seg, sr) for element in ds.iterall() if element.tag.is_private]
    assert dciodvfy(tmp_path / "seg.dcm") == dciodvfy(tmp_path / "sr.dcm") == []


def test_command_line_on_a_ct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibration = tiny_calibration().model_copy(update={"scope_threshold": -1.0})  # it may be asked anything
    prompts = {"nodule": ["a nodule in the lung"]}
    save_checkpoint(tmp_path / "tiny", tiny_model(), prompts=prompts, calibration=calibration, provenance=PROVENANCE)
    folder, out = write_series(tmp_path / "series", *ORIENTATIONS["coronal"]), tmp_path / "out"
    options = ["--out", str(out), "--dicom", "--json", "--threshold", "0.001", "--model", str(tmp_path / "tiny")]
    assert cli.main(["ask", str(folder), "nodule", "no effusion", *options]) == 0
    answers = json.loads(capsys.readouterr().out)["findings"]
    seg, sr = (dump(out / name) for name in DICOM_NAMES)
    assert answers[0]["volume_ml"] > 0
    for segment, found in enumerate(answers, start=1):
        nifti = nib.load(found["mask"])
        np.testing.assert_array_equal(segment_on_grid(seg, segment, nifti), np.asanyarray(nifti.dataobj))
    assert [group["Asked as"][1] for group in measurement_groups(sr)] == ["52101004", "272519000"]


def test_shipped_model_on_a_radiograph(tmp_path: Path) -> None:
    radiograph(tmp_path)
    findings = radglint.load(device="cpu").ask(str(tmp_path / "x.dcm"), ["cardiomegaly", "fractured femur"], 1e-4)
    assert findings[0].mask().any()
    sr, seg = report(findings, tmp_path)
    assert [group["Finding context"][1] for group in measurement_groups(sr)] == ["52101004", "261665006"]
    masks = seg_pixels(seg)
    assert [segment_of(seg, frame) for frame in range(len(masks))] == [1]
    np.testing.assert_array_equal(masks[0], findings[0].mask())
