"""DICOM segmentations: right place, right patient, every query, and the same bytes for the same content."""

from __future__ import annotations

import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dicom_files import phantom_hu, write_enhanced_ct, write_radiograph
from dicom_results import (
    FRAME_OF_REFERENCE,
    ORIENTATIONS,
    WHEN,
    ask,
    blob,
    centroid_of_nifti,
    centroid_of_segment,
    dciodvfy,
    dump,
    seg_pixels,
    segment_of,
    segment_on_grid,
    write_series,
)
from findings_phantom import answer, collect
from radglint.errors import GeometryError, InputError, OutputError
from radglint.findings import Findings
from radglint.reading import read_image


def assert_same_place(findings: Findings, folder: Path, marked: tuple[int, ...] = (1, 4)) -> pydicom.Dataset:
    """Voxel by voxel and centroid by centroid, the segmentation is where the NIfTI masks are."""
    ds = dump(findings.to_dicom_seg(folder / "seg.dcm"))
    for segment, finding in enumerate(findings, start=1):
        nifti = nib.load(finding.to_nifti(folder / f"{segment}.nii.gz"))
        expected = np.asanyarray(nifti.dataobj)
        assert expected.any() == (segment in marked)
        np.testing.assert_array_equal(segment_on_grid(ds, segment, nifti), expected)
        if segment in marked:
            np.testing.assert_allclose(centroid_of_segment(ds, segment), centroid_of_nifti(nifti), atol=1e-3)
    return ds


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_masks_lie_where_nifti_puts_them(tmp_path: Path, name: str) -> None:
    image = read_image(write_series(tmp_path / "series", *ORIENTATIONS[name]))
    ds = assert_same_place(ask(image), tmp_path)
    assert float(ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 2.5
    for group in ds.PerFrameFunctionalGroupsSequence:  # each frame names the slice that it lies on
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        source = next(p for p in map(pydicom.dcmread, (tmp_path / "series").iterdir())
                      if p.SOPInstanceUID == reference.ReferencedSOPInstanceUID)  # fmt: skip
        assert reference.SpatialLocationsPreserved == "YES"
        np.testing.assert_allclose(
            source.ImagePositionPatient, group.PlanePositionSequence[0].ImagePositionPatient, atol=1e-6
        )


def test_tilted_gantry(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series", tilt=0.5))
    assert "tilt" in " ".join(image.steps)
    assert_same_place(ask(image), tmp_path)


@settings(max_examples=8)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 3.0)] * 2),
    seed=st.integers(0, 2**16),
)
def test_any_rotation_and_spacing(tmp_path_factory: Any, angles: Any, spacing: Any, seed: int) -> None:
    from scipy.spatial.transform import Rotation

    folder = tmp_path_factory.mktemp("any")
    row, column = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:2].round(8)
    write_series(folder / "series", row, column, PixelSpacing=[round(s, 6) for s in spacing], hu=phantom_hu(5))
    image = read_image(folder / "series")
    where = np.random.default_rng(seed).random(image.shape) < 0.05
    assert_same_place(collect(answer(image, where), answer(image, np.roll(where, 1, 0))), folder, (1, 2))


def test_multi_frame_with_shuffled_frames(tmp_path: Path) -> None:
    order = [int(n) for n in np.random.default_rng(3).permutation(12)]
    path = write_enhanced_ct(tmp_path / "multi.dcm", order=order, FrameOfReferenceUID=FRAME_OF_REFERENCE)
    source = pydicom.dcmread(path)
    ds = assert_same_place(ask(read_image(path)), tmp_path)
    for group in ds.PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        theirs = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        assert theirs.PlanePositionSequence[0].ImagePositionPatient == (
            group.PlanePositionSequence[0].ImagePositionPatient
        )


def test_resampled_stack_keeps_the_grid_of_the_masks(tmp_path: Path) -> None:
    write_series(tmp_path / "series", hu=phantom_hu(30), skip=(4,))
    image = read_image(tmp_path / "series")
    assert image.is_resampled
    assert len(image.source_frames) == 29
    assert image.shape[0] == 30
    ds = assert_same_place(ask(image), tmp_path)
    assert len(ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 29


def test_slices_that_differ_in_the_last_digits_of_their_orientation(tmp_path: Path) -> None:
    tilted = {2: {"ImageOrientationPatient": [1, 0.000001, 0, 0, 1, 0], "SliceThickness": None}}
    image = read_image(write_series(tmp_path / "series", per_slice=tilted))
    assert_same_place(ask(image), tmp_path)


def test_zip_is_unpacked_again(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"study/{path.name}")
    zipped = ask(read_image(tmp_path / "series.zip"))
    assert_same_place(zipped, tmp_path)
    plain = ask(read_image(folder)).to_dicom_seg(tmp_path / "plain.dcm", created=WHEN)
    assert zipped.to_dicom_seg(tmp_path / "zipped.dcm", created=WHEN).read_bytes() == plain.read_bytes()


def test_frames_whose_pixels_fill_no_whole_bytes(tmp_path: Path) -> None:
    hu = np.pad(phantom_hu(11), ((0, 0), (0, 1), (0, 3)), mode="edge")  # 17 x 23 pixels
    image = read_image(write_series(tmp_path / "series", hu=hu))
    rng = np.random.default_rng(7)
    masks = [rng.random(image.shape) < share for share in (0.5, 0.1, 0.9)]
    findings = collect(*(answer(image, mask, f"nodule {k}") for k, mask in enumerate(masks)))
    ds = assert_same_place(findings, tmp_path, (1, 2, 3))
    assert len(ds.PixelData) == -(-33 * 17 * 23 // 16) * 2  # bits of 33 frames without gaps, to an even length


@pytest.mark.parametrize(
    ("kind", "moved", "said"),
    [("BINARY", 0, "YES"), ("BINARY", 9, "NO"), ("FRACTIONAL", 0, "UNDEFINED"), ("LABELMAP", 9, "NO")],
)
def test_whether_segments_overlap_is_said(tmp_path: Path, kind: Any, moved: int, said: str) -> None:
    image = read_image(write_series(tmp_path / "series"))
    where = np.zeros(image.shape, bool)
    where[2:8, 2:6, 3:8] = True
    findings = collect(answer(image, where), answer(image, np.roll(where, moved, axis=2), "mass"))
    ds = dump(findings.to_dicom_seg(tmp_path / "seg.dcm", kind))
    assert ds.SegmentsOverlap == said
    assert (ds.Rows, ds.Columns) == image.shape[1:]
    assert ds.NumberOfFrames == len(ds.PerFrameFunctionalGroupsSequence) == len(seg_pixels(ds))


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
def test_radiograph(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (61, 83)).astype(np.uint16)
    extra = {"FrameOfReferenceUID": "1.2.3", "PixelSpacing": [0.2, 0.2]} if kind == "CR" else {}
    findings = ask(read_image(write_radiograph(tmp_path / "x.dcm", pixels, kind=kind, **extra)))
    path = findings.to_dicom_seg(tmp_path / "seg.dcm")
    ds = dump(path)
    masks = seg_pixels(ds)
    assert [segment_of(ds, frame) for frame in range(len(masks))] == [1, 4]
    for segment, mask in zip((1, 4), masks, strict=True):
        picture = np.asarray(Image.open(findings[segment - 1].to_png(tmp_path / f"{segment}.png")))
        np.testing.assert_array_equal(mask * 255, picture)
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(tmp_path / "x.dcm").SOPInstanceUID
    assert dciodvfy(path) == []


def test_every_query_is_a_named_segment(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    ds = dump(findings.to_dicom_seg(tmp_path / "seg.dcm"))
    assert [s.SegmentLabel for s in ds.SegmentSequence] == [f.query for f in findings]
    assert [s.SegmentNumber for s in ds.SegmentSequence] == [1, 2, 3, 4, 5]
    types = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in ds.SegmentSequence]
    assert types == ["60046008", "36118008", "27925004", "14106009", "404684003"]
    assert ds.SegmentSequence[3].SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Physical object"
    assert "below the threshold" in ds.SegmentSequence[2].SegmentDescription
    assert "Asked as absent" in ds.SegmentSequence[1].SegmentDescription
    algorithm = ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "radglint tiny"
    assert "abc123" in algorithm.AlgorithmParameters
    assert len({s.TrackingUID for s in ds.SegmentSequence}) == 5


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_nothing_marked_at_all(tmp_path: Path, kind: Any) -> None:
    image = read_image(write_series(tmp_path / "series"))
    findings = collect(answer(image, blob(image), "no nodule"), answer(image, blob(image), probability=0.1))
    ds = dump(findings.to_dicom_seg(tmp_path / "seg.dcm", kind))
    assert not seg_pixels(ds).any()
    assert [s.SegmentLabel for s in ds.SegmentSequence if s.SegmentNumber] == ["no nodule", "nodule"]


def test_fractional_is_the_probability_in_steps_of_1_255(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series", *ORIENTATIONS["coronal"]))
    finding = answer(image, blob(image))
    object.__setattr__(finding, "token_logits", np.random.default_rng(1).normal(0, 3, image.shape).astype(np.float32))
    ds = dump(collect(finding).to_dicom_seg(tmp_path / "seg.dcm", "FRACTIONAL"))
    assert (ds.SegmentationFractionalType, ds.MaximumFractionalValue) == ("PROBABILITY", 255)
    on_grid = segment_on_grid(ds, 1, nib.load(finding.to_nifti(tmp_path / "mask.nii.gz")))
    np.testing.assert_allclose(on_grid.transpose(2, 1, 0) / 255, finding.probability_map(), atol=0.5001 / 255)


def test_labelmap(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    first, second = blob(image), np.zeros(image.shape, bool)
    second[8:, 10:, 14:] = True
    findings = collect(answer(image, first), answer(image, first, "no mass"), answer(image, second, "pacemaker"))
    ds = dump(findings.to_dicom_seg(tmp_path / "seg.dcm", "LABELMAP"))
    for segment, finding in enumerate(findings, start=1):
        nifti = nib.load(finding.to_nifti(tmp_path / f"{segment}.nii.gz"))
        np.testing.assert_array_equal(segment_on_grid(ds, segment, nifti), np.asanyarray(nifti.dataobj))


def test_overlap_is_kept_in_binary_and_refused_in_labelmap(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    findings = collect(answer(image, blob(image), "nodule"), answer(image, blob(image), "mass"))
    assert_same_place(findings, tmp_path, (1, 2))
    with pytest.raises(OutputError, match="'nodule' and 'mass' overlap"):
        findings.to_dicom_seg(tmp_path / "labels.dcm", "LABELMAP")
    assert not (tmp_path / "labels.dcm").exists()


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_dicom3tools_finds_no_error(tmp_path: Path, kind: Any) -> None:
    findings = ask(read_image(write_series(tmp_path / "series", *ORIENTATIONS["oblique"])))
    assert dciodvfy(findings.to_dicom_seg(tmp_path / "seg.dcm", kind)) == []


def test_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    tags = {
        "SpecificCharacterSet": "ISO_IR 100", "PatientName": "M\u00fcller^J\u00f6rg", "PatientBirthDate": "19500102",
        "PatientSex": "M", "PatientAge": "070Y", "StudyDate": "20200102", "StudyTime": "101112", "StudyID": "S1",
        "AccessionNumber": "A1", "StudyDescription": "CT chest", "ReferringPhysicianName": "Who^Dr",
    }  # fmt: skip
    write_series(tmp_path / "series", **tags)
    before = {p: p.read_bytes() for p in (tmp_path / "series").iterdir()}
    image = read_image(tmp_path / "series")
    ds = dump(collect(answer(image, blob(image), "Pleuraerguss \u80ba \\ links")).to_dicom_seg(tmp_path / "seg.dcm"))
    source = pydicom.dcmread(tmp_path / "series" / "slice_000.dcm")
    for keyword in tags.keys() - {"SpecificCharacterSet"} | {"PatientID", "StudyInstanceUID", "FrameOfReferenceUID"}:
        assert str(ds[keyword].value) == str(source[keyword].value), keyword
    assert ds.SegmentSequence[0].SegmentLabel == "Pleuraerguss \u80ba / links"
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert ds.Modality == "SEG"
    assert not [element.tag for element in ds.iterall() if element.tag.is_private]
    assert {p: p.read_bytes() for p in before} == before


def test_same_content_and_time_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    one = ask(read_image(folder)).to_dicom_seg(tmp_path / "1.dcm", created=WHEN)
    two = ask(read_image(folder)).to_dicom_seg(tmp_path / "2.dcm", created=WHEN)
    assert one.read_bytes() == two.read_bytes()
    assert pydicom.dcmread(one).ContentTime == "030405.000678"


def test_other_content_or_time_gives_other_identifiers(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    first = collect(answer(image, blob(image)))
    moved = collect(answer(image, blob(image, 2)))
    paths = [
        first.to_dicom_seg(tmp_path / "1.dcm", created=WHEN),
        first.to_dicom_seg(tmp_path / "2.dcm", created=WHEN.replace(year=2027)),
        first.to_dicom_seg(tmp_path / "3.dcm", "FRACTIONAL", created=WHEN),
        moved.to_dicom_seg(tmp_path / "4.dcm", created=WHEN),
    ]
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in paths}) == 4
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in paths}) == 4


def test_sources_that_are_not_dicom(tmp_path: Path) -> None:
    from findings_phantom import ORIENTATIONS as ANY
    from findings_phantom import corner, ct_affine, ct_image, radiograph, upper_right

    volume, picture = ct_image(ct_affine(*ANY[0])), radiograph()
    for image, where in ((volume, corner(volume)), (picture, upper_right(picture))):
        with pytest.raises(InputError, match=r"read from (array|png); ask the DICOM series itself"):
            collect(answer(image, where)).to_dicom_seg(tmp_path / "seg.dcm")


def test_source_that_is_gone_or_replaced(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    other = tmp_path / "series" / "slice_003.dcm"
    other.write_bytes((tmp_path / "series" / "slice_004.dcm").read_bytes())
    with pytest.raises(InputError, match=r"slice_003.*is another image now"):
        findings.to_dicom_seg(tmp_path / "seg.dcm")
    other.unlink()
    with pytest.raises(InputError, match=r"slice_003.*is gone"):
        findings.to_dicom_seg(tmp_path / "seg.dcm")


def test_slices_that_moved_since_they_were_read(tmp_path: Path) -> None:
    findings = ask(read_image(write_series(tmp_path / "series")))
    for path in (tmp_path / "series").iterdir():
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient[2] += 30
        ds.save_as(path)
    with pytest.raises(GeometryError, match="lie elsewhere"):
        findings.to_dicom_seg(tmp_path / "seg.dcm")


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID"])
def test_source_without_a_needed_identifier(tmp_path: Path, keyword: str) -> None:
    image = read_image(write_series(tmp_path / "series", **{keyword: None}))
    with pytest.raises(InputError, match=keyword):
        ask(image).to_dicom_seg(tmp_path / "seg.dcm")


@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientBirthDate", "yesterday"), ("StudyTime", "25:61"), ("PatientSex", "male")]
)
def test_source_with_an_impossible_value_does_not_quote_it(tmp_path: Path, keyword: str, value: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom sees it too
        image = read_image(write_series(tmp_path / "series", **{keyword: value}))
    with pytest.raises(InputError, match=f"not a valid value in {keyword}") as caught:
        ask(image).to_dicom_seg(tmp_path / "seg.dcm")
    assert value not in str(caught.value)


def test_what_highdicom_refuses_is_one_clear_line(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series", per_slice={3: {"StudyInstanceUID": "1.2.99"}}))
    with pytest.raises(OutputError, match=r"headers of the source.*ValueError in highdicom"):
        ask(image).to_dicom_seg(tmp_path / "seg.dcm")


def test_wrong_use(tmp_path: Path) -> None:
    image = read_image(write_series(tmp_path / "series"))
    findings = collect(answer(image, blob(image)))
    with pytest.raises(OutputError, match="'SURFACE' of segmentation is unknown; use one of BINARY"):
        findings.to_dicom_seg(tmp_path / "seg.dcm", "SURFACE")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"ends in \.dcm"):
        findings.to_dicom_seg(tmp_path / "seg.nii")
    with pytest.raises(OutputError, match="no query was asked"):
        Findings([], image, model_name="tiny", model_fingerprint="abc").to_dicom_seg(tmp_path / "seg.dcm")


def test_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radglint.dicom_seg.MAX_FRAME_BYTES", 100)
    findings = ask(read_image(write_series(tmp_path / "series")))
    for kind in ("BINARY", "FRACTIONAL"):
        with pytest.raises(OutputError, match=r"frames of 1 of 5 segments are 0.0 GB, too large.*write a LABELMAP"):
            findings.to_dicom_seg(tmp_path / "seg.dcm", kind)


def test_without_highdicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = read_image(write_series(tmp_path / "series"))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OutputError, match=r"radglint\[dicom\]"):
        ask(image).to_dicom_seg(tmp_path / "seg.dcm")


def test_volume_of_several_multi_frame_files(tmp_path: Path) -> None:
    hu, folder = phantom_hu(), tmp_path / "series"
    folder.mkdir()
    shared = {"FrameOfReferenceUID": FRAME_OF_REFERENCE}
    write_enhanced_ct(folder / "a.dcm", hu[:6], **shared)
    write_enhanced_ct(folder / "b.dcm", hu[6:], origin=(-10.0, -20.0, -18.0), **shared)
    with pytest.raises(InputError, match="2 multi-frame files"):
        ask(read_image(folder)).to_dicom_seg(tmp_path / "seg.dcm")
