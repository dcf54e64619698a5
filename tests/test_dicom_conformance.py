"""DICOM results before validators of other makers: dicom-validator, dciodvfy of dicom3tools, and the tools of dcmtk."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_files import write_enhanced_ct, write_radiograph
from dicom_results import (
    FRAME_OF_REFERENCE,
    ORIENTATIONS,
    ask_apart,
    content_items,
    dciodvfy,
    dcmtk,
    dump,
    read_with_dcmtk,
    seg_pixels,
    segment_of,
    write_series,
)
from dicom_standard import LABELMAP, SEGMENTATION, dicom_validator_errors
from radglint.findings import Findings
from radglint.reading import read_image

STUDY = {"StudyDate": "20260102", "StudyTime": "101112", "StudyID": "S1", "AccessionNumber": "A1"}
PIXELS = np.random.default_rng(0).integers(0, 4000, (61, 83)).astype(np.uint16)
SOURCES: dict[str, Callable[[Path], Path]] = {
    "axial": lambda folder: write_series(folder / "series", **STUDY),
    "oblique": lambda folder: write_series(folder / "series", *ORIENTATIONS["oblique"], **STUDY),
    "multi-frame": lambda folder: write_enhanced_ct(folder / "ct.dcm", FrameOfReferenceUID=FRAME_OF_REFERENCE, **STUDY),
    "CR": lambda folder: write_radiograph(folder / "x.dcm", PIXELS, kind="CR", PixelSpacing=[0.2, 0.3], **STUDY),
    "DX": lambda folder: write_radiograph(folder / "x.dcm", PIXELS, kind="DX", **STUDY),
}
KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path, Findings]]:
    """Segmentation, report and findings of a source and kind, written once."""
    made: dict[tuple[str, str], tuple[Path, Path, Findings]] = {}
    asked: dict[str, Findings] = {}

    def result(source: str, kind: str) -> tuple[Path, Path, Findings]:
        if source not in asked:
            asked[source] = ask_apart(read_image(SOURCES[source](tmp_path_factory.mktemp("source"))))
        if (source, kind) not in made:
            folder, findings = tmp_path_factory.mktemp("results"), asked[source]
            seg = findings.to_dicom_seg(folder / "seg.dcm", kind)  # type: ignore[arg-type]
            made[source, kind] = seg, findings.to_dicom_sr(folder / "sr.dcm", seg=seg), findings
        return made[source, kind]

    return result


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_validator_finds_an_error(results: Any, source: str, kind: str) -> None:
    seg, sr, _ = results(source, kind)
    assert dicom_validator_errors(seg, "new") == []
    assert dicom_validator_errors(sr) == []
    if kind == "LABELMAP":  # which is younger than both tables of rules
        unknown = "ReferencedSegmentNumber(0062,000b)> - Shall not be present for Referenced SOP Class that is not segm"
        assert [line for line in dciodvfy(sr) if unknown not in line] == []
    else:
        assert dicom_validator_errors(seg) == []
        assert dciodvfy(seg) == []
        assert dciodvfy(sr) == []


@pytest.mark.parametrize("source", ["axial", "CR"])
def test_the_only_warning_is_about_the_code_of_our_own(results: Any, source: str) -> None:
    seg, sr, _ = results(source, "BINARY")
    assert dciodvfy(seg, "Warning") == []
    warnings = dciodvfy(sr, "Warning")
    assert warnings
    assert [line for line in warnings if "99RADGLINT" not in line] == []


@pytest.mark.parametrize("source", ["axial", "DX"])
def test_what_dciodvfy_does_not_know_of_a_labelmap_is_all_it_finds(results: Any, source: str, tmp_path: Path) -> None:
    """It is of 2022; LABELMAP came in 2024. Shown as a Segmentation, what a LABELMAP does otherwise is an error."""
    ds = pydicom.dcmread(results(source, "LABELMAP")[0])
    assert ds.SOPClassUID == LABELMAP
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(SEGMENTATION)
    ds.save_as(tmp_path / "as_segmentation.dcm")
    expected = (
        "SegmentNumber not monotonically increasing from one by one",  # 0 is the background
        "SegmentNumber(0062,0004)[1]> - Value is zero",
        "Unrecognized enumerated value = <LABELMAP>",
        "Missing attribute for Type 1 Required - Module=<SegmentationMacro>",  # a frame holds all segments
    )
    lines = dciodvfy(tmp_path / "as_segmentation.dcm")
    assert all(any(part in line for line in lines) for part in expected)
    assert [line for line in lines if not any(part in line for part in expected)] == []


def broken(path: Path, folder: Path, change: Callable[[Dataset], object]) -> Path:
    """A copy of a file after a change."""
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(folder / "broken.dcm")
    return folder / "broken.dcm"


def first(ds: Dataset, value_type: str) -> Dataset:
    return next(item for item in content_items(ds) if item.ValueType == value_type)


def without(ds: Dataset, keyword: str) -> None:
    del ds[keyword]


ONLY_2020 = ("Enum", "000E", "0020,9222")
"""What the newer tables cannot show: enumerations and conditions; dimensions are conditional in them."""
SEG_FAULTS: list[tuple[Callable[[Dataset], object], str]] = [
    (lambda ds: without(ds.SegmentSequence[2], "SegmentLabel"), "(0062,0005): TagMissing"),
    (lambda ds: without(ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0], "CodeMeaning"),
     "(0008,0104): TagMissing"),
    (lambda ds: without(ds, "MaximumFractionalValue"), "(0062,000E): TagMissing"),  # required if FRACTIONAL
    (lambda ds: setattr(ds, "SegmentationType", "MASK"), "(0062,0001): EnumValueNotAllowed"),
    (lambda ds: setattr(ds.SegmentSequence[1], "SegmentAlgorithmType", "MAGIC"), "(0062,0008): EnumValueNotAllowed"),
    (lambda ds: setattr(ds, "EchoTime", 3.0), "(0018,0081): TagUnexpected"),
    (lambda ds: setattr(ds, "ContentLabel", ""), "(0070,0080): TagEmpty"),
    (lambda ds: without(ds, "DimensionIndexSequence"), "(0020,9222): TagMissing"),
    (lambda ds: [without(group, "FrameContentSequence") for group in ds.PerFrameFunctionalGroupsSequence],
     "(0020,9111): TagMissing"),
    (lambda ds: without(ds, "DeviceSerialNumber"), "(0018,1000): TagMissing"),
]  # fmt: skip
SR_FAULTS: list[tuple[Callable[[Dataset], object], str]] = [
    (lambda ds: without(first(ds, "CODE"), "ConceptCodeSequence"), "(0040,A168): TagMissing"),
    (lambda ds: without(first(ds, "NUM").MeasuredValueSequence[0], "MeasurementUnitsCodeSequence"),
     "(0040,08EA): TagMissing"),
    (lambda ds: without(first(ds, "IMAGE").ReferencedSOPSequence[0], "ReferencedSOPInstanceUID"),
     "(0008,1155): TagMissing"),
    (lambda ds: without(first(ds, "TEXT"), "TextValue"), "(0040,A160): TagMissing"),
    (lambda ds: without(first(ds, "CONTAINER"), "ContinuityOfContent"), "(0040,A050): TagMissing"),
    (lambda ds: without(first(ds, "NUM"), "RelationshipType"), "(0040,A010): TagMissing"),
    (lambda ds: setattr(ds, "CompletionFlag", "DONE"), "(0040,A491): EnumValueNotAllowed"),
    (lambda ds: without(ds, "PerformedProcedureCodeSequence"), "(0040,A372): TagMissing"),
]  # fmt: skip


@pytest.mark.parametrize("fault", range(len(SEG_FAULTS)))
def test_dicom_validator_sees_faults_of_a_segmentation(results: Any, fault: int, tmp_path: Path) -> None:
    change, expected = SEG_FAULTS[fault]
    path = broken(results("axial", "FRACTIONAL")[0], tmp_path, change)
    found = dicom_validator_errors(path)
    assert any(expected.lower() in line.lower() for line in found), found
    if not any(part in expected for part in ONLY_2020):
        assert any(expected.lower() in line.lower() for line in dicom_validator_errors(path, "new"))


@pytest.mark.parametrize("fault", range(len(SR_FAULTS)))
def test_dicom_validator_sees_faults_of_a_report(results: Any, fault: int, tmp_path: Path) -> None:
    change, expected = SR_FAULTS[fault]
    found = dicom_validator_errors(broken(results("axial", "BINARY")[1], tmp_path, change))
    assert any(expected.lower() in line.lower() for line in found), found


def rounded(ds: Dataset) -> Any:
    """All of a dataset, with numbers to the twelve digits that dcmtk prints rightly."""
    return json.loads(ds.to_json(), parse_float=lambda digits: round(float(digits), 12))


@pytest.mark.parametrize("source", ["oblique", "DX"])
@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_reads_every_element(results: Any, source: str, kind: str) -> None:
    for path in results(source, kind)[:2]:
        theirs, ours = read_with_dcmtk(path), pydicom.dcmread(path)
        assert theirs.keys() | {0x7FE00010} == ours.keys() | {0x7FE00010}
        if "PixelData" in ours:
            del ours.PixelData, theirs.PixelData
        assert rounded(theirs) == rounded(ours)
        assert dcmtk("dcmftest", path).startswith("yes")


@pytest.mark.parametrize("source", ["axial", "CR"])
def test_dcmtk_reads_the_report(results: Any, source: str) -> None:
    _, sr, findings = results(source, "BINARY")
    tree = dcmtk("dsrdump", sr)
    assert 'CODE:(,,"Finding")=(60046008,SCT,"Pleural effusion")' in tree
    assert tree.count('"Measurement Group"') == len(findings)
    report = ElementTree.fromstring(dcmtk("dsr2xml", sr))
    values = [float(number.findtext("value", "")) for number in report.iter("num")]
    certainties = [finding.probability * 100 for finding in findings]
    assert [value for value in values if value in certainties] == certainties


@pytest.mark.parametrize("source", ["oblique", "multi-frame", "CR"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_of_a_report_resolves(results: Any, source: str, kind: str) -> None:
    """Each image named is the source or the segmentation, and each segment or frame named is there, and is marked."""
    seg_path, sr_path, findings = results(source, kind)
    seg, sr = dump(seg_path), dump(sr_path)
    pixels, numbers = seg_pixels(seg), [item.SegmentNumber for item in seg.SegmentSequence]
    source_uids = {frame.sop_instance_uid for frame in findings.image.source_frames}
    references = [item.ReferencedSOPSequence[0] for item in content_items(sr) if item.ValueType == "IMAGE"]
    to_segments = [ref for ref in references if ref.ReferencedSOPInstanceUID == seg.SOPInstanceUID]
    assert {ref.ReferencedSOPInstanceUID for ref in references} == source_uids | {seg.SOPInstanceUID}
    assert len(to_segments) == sum(finding.is_marked for finding in findings) == 2
    for ref in to_segments:
        assert ref.ReferencedSOPClassUID == seg.SOPClassUID
        if "ReferencedFrameNumber" in ref:
            assert pixels[ref.ReferencedFrameNumber - 1].any()
            assert segment_of(seg, ref.ReferencedFrameNumber - 1) in (1, 4)
        else:
            assert ref.ReferencedSegmentNumber in numbers
            held = pixels == ref.ReferencedSegmentNumber if kind == "LABELMAP" else pixels[
                [segment_of(seg, frame) == ref.ReferencedSegmentNumber for frame in range(len(pixels))]
            ]  # fmt: skip
            assert held.any()


@pytest.mark.parametrize("source", ["oblique", "CR"])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_findings_stay_as_named_segments(results: Any, source: str, kind: str) -> None:
    seg_path, _, findings = results(source, kind)
    seg = read_with_dcmtk(seg_path)
    named = {int(item.SegmentNumber): item.SegmentLabel for item in seg.SegmentSequence}
    assert [named[k] for k in range(1, 6)] == [finding.query for finding in findings]
    assert named.keys() - {0} == {1, 2, 3, 4, 5}
    held = set(np.unique(seg_pixels(seg))) - {0} if kind == "LABELMAP" else {
        segment_of(seg, frame) for frame in range(int(seg.NumberOfFrames))
    }  # fmt: skip
    assert held == {1, 4}


def test_a_validator_that_is_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=r"dciodvfy is missing: `make programs`.*dicom3tools"):
        dciodvfy(tmp_path / "seg.dcm")


def test_dciodvfy_sees_a_fault(results: Any, tmp_path: Path) -> None:
    path = broken(results("axial", "BINARY")[0], tmp_path, lambda ds: without(ds.SegmentSequence[0], "SegmentLabel"))
    assert any("SegmentLabel" in line for line in dciodvfy(path))
