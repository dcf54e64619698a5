"""Findings: decisions, masks in the input's geometry, the JSON document and the folder of results."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from findings_phantom import (
    ORIENTATIONS,
    answer,
    collect,
    corner,
    ct_affine,
    ct_image,
    radiograph,
    unit_record,
    upper_right,
)
from radglint.errors import InputError, OutputError
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.writing import MAX_SLUG_CHARACTERS, slug

FINDING_KEYS = ["query", "assertion", "score", "probability", "present", "peak", "boxes", "mask"]


def source_header(affine_ijk: np.ndarray, shape: tuple[int, ...], codes: tuple[int, int]) -> nib.Nifti1Header:
    """A header as found in the wild: another qform than sform, a description, other units left at their default."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine_ijk, code=codes[1])
    turned = affine_ijk.copy()
    turned[:3, 3] += 0 if codes[1] == 0 else 1.25
    header.set_qform(turned, code=codes[0], strip_shears=True)
    header["descrip"] = b"PATIENT NAME"
    return header


def centroid_mm(nifti: Any) -> np.ndarray:
    index = np.argwhere(np.asarray(nifti.dataobj) > 0).mean(axis=0)
    return nifti.affine[:3, :3] @ index + nifti.affine[:3, 3]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4)])
def test_nifti_mask_has_the_sources_geometry(tmp_path: Path, order: Any, signs: Any, codes: tuple[int, int]) -> None:
    affine = ct_affine(order, signs, tilt_deg=7)
    source = source_header(affine[:, [2, 1, 0, 3]], (26, 22, 18), codes)
    image = ct_image(source.get_best_affine()[:, [2, 1, 0, 3]], source)
    mask = corner(image)
    written = nib.load(answer(image, mask).to_nifti(tmp_path / "m.nii.gz"))
    assert written.shape == (26, 22, 18)
    assert (written.affine == source.get_best_affine()).all()
    for name in ("get_qform", "get_sform"):
        mine, theirs = (getattr(h, name)(coded=True) for h in (written.header, source))
        assert mine[1] == theirs[1]
        assert mine[0] is None if theirs[0] is None else (mine[0] == theirs[0]).all()
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_xyzt_units()[0] == "mm"
    assert b"PATIENT" not in Path(tmp_path / "m.nii.gz").read_bytes()
    assert b"PATIENT" not in written.header.binaryblock
    assert (np.asarray(written.dataobj).transpose(2, 1, 0) == mask).all()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("shear", [0.0, 0.05])
def test_left_stays_left_in_a_nifti_of_a_dicom_series(tmp_path: Path, order: Any, signs: Any, shear: float) -> None:
    image = ct_image(ct_affine(order, signs, tilt_deg=12, shear=shear))
    written = nib.load(answer(image, corner(image)).to_nifti(tmp_path / "m.nii"))
    x, y, z = centroid_mm(written)
    assert x < -9
    assert y > 9
    assert z < -9
    sform, code = written.header.get_sform(coded=True)
    assert code == 1
    np.testing.assert_array_equal(sform, image.nifti_affine.astype(np.float32))  # type: ignore[union-attr]
    assert int(written.header["qform_code"]) == (0 if shear else 1)
    if not shear:
        np.testing.assert_allclose(written.header.get_qform(), image.nifti_affine, atol=1e-4)


def test_nifti2_source_keeps_its_precision(tmp_path: Path) -> None:
    affine = ct_affine((2, 1, 0), (1, -1, -1)) + np.eye(4, k=3) / 3
    header = nib.Nifti2Header()
    header.set_data_shape((26, 22, 18))
    header.set_sform(affine[:, [2, 1, 0, 3]], code=1)
    image = ct_image(header.get_best_affine()[:, [2, 1, 0, 3]], header)
    written = nib.load(answer(image, corner(image)).to_nifti(tmp_path / "m.nii.gz"))
    assert isinstance(written, nib.Nifti2Image)
    assert (written.affine == header.get_best_affine()).all()


def test_a_header_that_does_not_fit_the_image_is_not_used(tmp_path: Path) -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, 1, 1)), nib.Nifti1Header())
    written = nib.load(answer(image, corner(image)).to_nifti(tmp_path / "m.nii"))
    np.testing.assert_allclose(written.affine, image.nifti_affine, atol=1e-4)


def test_png_mask_is_of_the_original_size(tmp_path: Path) -> None:
    image = radiograph()
    with Image.open(answer(image, upper_right(image)).to_png(tmp_path / "m.png")) as picture:
        assert picture.size == (60, 40)
        pixels = np.asarray(picture)
    assert (pixels == upper_right(image) * 255).all()
    assert np.argwhere(pixels)[:, 1].min() >= 42


def test_each_dimension_has_its_own_mask_file(tmp_path: Path) -> None:
    flat, volume = radiograph(), ct_image(ct_affine((2, 1, 0), (1, 1, 1)))
    with pytest.raises(OutputError, match="to_png"):
        answer(flat, upper_right(flat)).to_nifti(tmp_path / "m.nii.gz")
    with pytest.raises(OutputError, match="to_nifti"):
        answer(volume, corner(volume)).to_png(tmp_path / "m.png")
    assert list(tmp_path.iterdir()) == []


def test_map_mask_planes_and_sizes_agree() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    finding = answer(image, corner(image), unseen=3)
    dense = finding.probability_map()
    assert dense.dtype == np.float32
    assert np.isnan(dense[-3:]).all()
    assert not np.isnan(dense[:-3]).any()
    assert (finding.mask() == (np.nan_to_num(dense) >= 0.5)).all()
    for axis, index in ((0, 4), (0, 17), (1, 3), (2, 20)):
        np.testing.assert_allclose(finding.probability_plane(axis, index), np.take(dense, index, axis), rtol=1e-5)
    count = int(finding.mask().sum())
    assert finding.volume_ml == pytest.approx(count * 15.0 / 1000)
    assert finding.area_px is None
    (box,) = finding.boxes
    assert finding.mask()[tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))].sum() == count


@pytest.mark.parametrize(
    ("query", "changes", "present", "words"),
    [
        ("no nodule", {}, True, "asked as absent"),
        ("nodule", {"in_scope": False}, False, "outside what this model"),
        ("nodule", {"in_scope": False, "note": "a lateral view"}, False, "a lateral view"),
        ("nodule", {"probability": 0.3}, False, "below the threshold"),
        ("nodule", {"threshold": 0.95}, False, "below the threshold"),
        ("nodule", {"probability": float("nan")}, False, "below"),
    ],
)
def test_nothing_is_marked_and_the_note_says_why(query: str, changes: Any, present: bool, words: str) -> None:
    image = radiograph()
    finding = answer(image, upper_right(image), query, **changes)
    assert finding.present is present
    assert not finding.mask().any()
    assert finding.mask().shape == image.shape
    assert (finding.peak, finding.boxes, finding.area_px) == (None, [], 0)
    assert words in finding.remark
    assert words in finding.to_dict()["note"]


def test_present_without_any_place_says_so() -> None:
    image = radiograph()
    finding = answer(image, np.zeros(image.shape, bool))
    assert finding.present
    assert not finding.mask().any()
    assert "no place on its own" in finding.remark


def test_the_decision_names_a_contradicted_query() -> None:
    image = radiograph()
    assert answer(image, upper_right(image), "no nodule").verdict == "present, against the query"
    assert answer(image, upper_right(image), "no nodule", probability=0.1).verdict == "not found, as the query says"
    assert answer(image, upper_right(image), "nodule", in_scope=False).verdict == "not asked"


def test_one_threshold_serves_decision_and_mask() -> None:
    image = radiograph()
    finding = answer(image, upper_right(image), probability=0.6)
    assert finding.mask(0.6).any()
    assert not finding.mask(0.61).any()
    assert answer(image, upper_right(image), probability=0.5).present
    with pytest.raises(InputError, match="from 0 to 1"):
        finding.mask(1.5)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    image = radiograph()
    record = unit_record((41, 60))
    with pytest.raises(InputError, match="record is of an image of shape"):
        Finding("x", "x", "present", 0.1, 0.9, 0.5, np.zeros(record.grid_shape, np.float32), image, record)
    with pytest.raises(InputError, match="threshold must be"):
        answer(image, upper_right(image), threshold=float("nan"))


def test_json_document_has_exactly_the_agreed_keys() -> None:
    for image, where, size in (
        (radiograph(), upper_right(radiograph()), "area_px"),
        (ct := ct_image(ct_affine((2, 1, 0), (1, 1, 1))), corner(ct), "volume_ml"),
    ):
        findings = collect(answer(image, where), answer(image, where, "no nodule", score=float("nan")), warnings=["w"])
        text = findings.to_json()
        document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert list(document) == ["image", "model", "findings", "warnings"]
        keys = ["path", "modality", "shape", "spacing_mm", "orientation", "value_unit", "steps"]
        assert list(document["image"]) == keys
        assert document["image"]["shape"] == list(image.shape)
        assert document["model"] == {"name": "tiny", "fingerprint": "abc123"}
        assert document["warnings"] == ["w"]
        for finding in document["findings"]:
            assert list(finding) == [*FINDING_KEYS, size, "threshold", "note"]
            assert finding["mask"] is None
        first, second = document["findings"]
        assert first["present"] is True
        assert set(first["peak"]) == {"index", "ras_mm", "probability"}
        assert (second["assertion"], second["score"], second["peak"], second["boxes"]) == ("absent", None, None, [])


def test_peak_in_world_mm() -> None:
    image = ct_image(ct_affine((0, 2, 1), (-1, 1, -1)))
    peak = answer(image, corner(image)).peak
    assert peak is not None
    assert corner(image)[peak.index]
    world = image.affine @ np.array([*peak.index, 1.0])  # type: ignore[operator]
    np.testing.assert_allclose(peak.world_mm, world[:3])


def test_findings_is_a_sequence_with_a_table() -> None:
    image = radiograph()
    findings = collect(
        answer(image, upper_right(image)), answer(image, upper_right(image), "no effusion", probability=0.1)
    )
    assert len(findings) == 2
    assert [f.query for f in findings] == ["nodule", "no effusion"]
    assert findings[1].assertion == "absent"
    assert findings[-1] is findings[1]
    lines = findings.to_table().splitlines()
    assert lines[0].split()[:2] == ["query", "asked"]
    assert re.search(r"^nodule\s+present\s+0\.90\s+present\s+peak at row \d+, column \d+, 120 px", lines[1])
    assert "not found, as the query says" in lines[2]
    assert "MedicalImage(CXR" in repr(findings)


def saved_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_save_writes_everything_and_names_it(tmp_path: Path) -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    findings = collect(answer(image, corner(image), "Small nodule?"), answer(image, corner(image), "no effusion"))
    paths = findings.save(tmp_path / "a" / "out")
    names = [
        *("01_small_nodule_mask.nii.gz", "01_small_nodule_overlay.png", "02_no_effusion_mask.nii.gz"),
        *("02_no_effusion_overlay.png", "findings.json", "index.html"),
    ]
    assert [path.name for path in paths] == names
    assert saved_names(tmp_path / "a" / "out") == sorted(names)
    stored = json.loads((tmp_path / "a" / "out" / "findings.json").read_text())
    assert [f["mask"] for f in stored["findings"]] == [names[0], names[2]]
    assert json.loads(findings.to_json())["findings"][0]["mask"] == str(paths[0])
    assert not np.asarray(nib.load(paths[2]).dataobj).any()


def test_a_second_run_replaces_the_first_and_keeps_other_files(tmp_path: Path) -> None:
    image = radiograph()
    collect(*(answer(image, upper_right(image), q) for q in ("nodule", "mass", "effusion"))).save(tmp_path)
    for name in ("notes.txt", "99_mine.png"):
        (tmp_path / name).write_text("mine")
    collect(answer(image, upper_right(image), "edema")).save(tmp_path)
    assert saved_names(tmp_path) == sorted(
        ["01_edema_mask.png", "01_edema_overlay.png", "99_mine.png", "findings.json", "index.html", "notes.txt"]
    )


def test_without_an_earlier_run_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "03_old_mask.png").write_text("not ours to judge")
    collect(answer(radiograph(), upper_right(radiograph()))).save(tmp_path)
    assert "03_old_mask.png" in saved_names(tmp_path)


@pytest.mark.parametrize("after", range(0, 9, 2))
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: Any, after: int) -> None:
    image = radiograph()
    real, count = os.replace, iter(range(1000))

    def replace(source: Any, target: Any) -> None:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    findings = collect(answer(image, upper_right(image)), answer(image, upper_right(image), "no effusion"))
    with pytest.raises(OutputError, match="no space left"):
        findings.save(tmp_path / "out")
    assert saved_names(tmp_path) == []
    assert json.loads(findings.to_json())["findings"][0]["mask"] is None


def test_below_a_file_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="in the way"):
        collect(answer(radiograph(), upper_right(radiograph()))).save(tmp_path / "file" / "out")
    assert saved_names(tmp_path) == ["file"]


def test_no_findings_is_still_a_document(tmp_path: Path) -> None:
    empty = Findings([], radiograph(), model_name="tiny", model_fingerprint="abc")
    assert json.loads(empty.to_json())["findings"] == []
    assert [path.name for path in empty.save(tmp_path)] == ["findings.json", "index.html"]


@given(st.text(max_size=300))
def test_slugs_are_safe_file_names(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z0-9_]+", name)
    assert len(name) <= MAX_SLUG_CHARACTERS
    assert not re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", name)


def test_slugs_of_hard_names() -> None:
    hard = {
        "CON": "con_query",
        "\u00c9panchement?": "epanchement",
        "../../etc": "etc",
        "\u80ba\u708e": "query",
        "LPT1.": "lpt1_query",
    }
    assert {text: slug(text) for text in hard} == hard


def test_equal_queries_get_files_of_their_own(tmp_path: Path) -> None:
    image = radiograph()
    names = collect(
        answer(image, upper_right(image), "nodule"), answer(image, upper_right(image), "Nodule!")
    ).mask_names
    assert names == ["01_nodule_mask.png", "02_nodule_mask.png"]
