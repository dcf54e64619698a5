"""`check_manifest`: each thing that spoils a manifest, on real small files; resume; the report."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dicom_files import phantom_hu, write_ct_series, write_radiograph
from manifest_data import AFFINE, cxr_manifest, cxr_row, png_mask, radiograph, volume
from radglint import seen_files
from radglint.errors import ConfigError, InputError, OutputError
from radglint.manifest import ManifestRow, Phrase, write_manifest
from radglint.manifest_check import CheckReport, check_manifest
from radglint.manifest_leaks import plain_patient, relation
from radglint.mask_files import read_mask_file
from radglint.seen_files import SeenFiles, pixel_digest

FAMILIES = {"ms-cxr": ("mimic-cxr-jpg",), "mimic-cxr-jpg": ("ms-cxr",), "padchest": ()}


def check(path: Path, **options: Any) -> CheckReport:
    return check_manifest(path, families=FAMILIES, **options)


def found(report: CheckReport) -> list[tuple[str, int, str, str]]:
    """Severity, row, column and kind of all that is not merely said of the look of an image of noise."""
    return [
        (i.severity, i.problem.row, i.problem.column, i.problem.kind)
        for i in report.issues
        if i.problem.kind != "image usable with care"
    ]


def text_of(report: CheckReport, kind: str) -> str:
    (text,) = [i.problem.text for i in report.issues if i.problem.kind == kind]
    return text


def test_a_good_manifest_has_no_issue(tmp_path: Path) -> None:
    png_mask(tmp_path, "masks/a.png", np.eye(40, 60))
    phrase = Phrase("nodule", "nodule", ((1, 2, 30, 60),), ("masks/a.png",))
    rows = [cxr_row("a", size_px=(40, 60), phrases=(phrase,), labels={"nodule": "present"}), cxr_row("b")]
    report = check(cxr_manifest(tmp_path, *rows))
    assert found(report) == []
    assert (report.num_rows, report.num_files) == (2, 3)


def test_a_good_ct_folder_and_file_have_no_error(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "series", phantom_hu(24, 32, 40))
    volume(tmp_path, "v.nii.gz", phantom_hu(20, 32, 40))
    rows = [ManifestRow(name, name, "CT", findings="Clear.") for name in ("series", "v.nii.gz")]
    assert found(check(write_manifest(tmp_path / "m.csv", rows))) == []


def test_missing_and_unreadable_images(tmp_path: Path) -> None:
    path = cxr_manifest(tmp_path, *(cxr_row(name) for name in "abc"), cxr_row("d", image=str(tmp_path / "d.png")))
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:300])
    (tmp_path / "d.png").unlink()
    report = check(path)
    assert found(report) == [
        ("error", 1, "image", "missing image"), ("error", 2, "image", "unreadable image"),
        ("error", 3, "image", "unreadable image"), ("error", 4, "image", "missing image"),
    ]  # fmt: skip
    assert "the absolute path is gone, was the disk moved?" in report.issues[3].problem.text


def test_the_same_pixels_in_another_file(tmp_path: Path) -> None:
    radiograph(tmp_path, "a.png", seed=5)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.tif")
    rows = [cxr_row("a", patient="1"), cxr_row("b", image="b.tif", patient="2"), cxr_row("c")]
    report = check(cxr_manifest(tmp_path, *rows))
    assert found(report) == [("warning", 2, "image", "same image under two ids")]
    assert "same pixels as row 1 (id 'a', a.png), but patient 2 instead of 1" in text_of(
        report, "same image under two ids"
    )


def test_the_same_pixels_in_two_splits(tmp_path: Path) -> None:
    radiograph(tmp_path, "a.png", seed=5)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    rows = [cxr_row("a", split="train"), cxr_row("b", split="test")]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [("error", 2, "image", "same image in two splits")]


def test_structure_problems_and_file_problems_come_together(tmp_path: Path) -> None:
    radiograph(tmp_path, "a.png")
    lines = [
        {"id": "a", "image": "a.png", "modality": "CXR", "report": "x", "patient": "7", "split": "train"},
        {"id": "b", "image": "a.png", "modality": "CXR", "report": "x", "patient": "7", "split": "val"},
        {"id": "c", "image": "none.png", "modality": "CXR", "report": "x"},
        {"id": "d", "image": "a.png", "modality": "XR"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = {(row, kind) for _, row, _, kind in found(check(path))}
    assert {(2, "patient in two splits"), (3, "missing image"), (4, "bad modality")} <= kinds
    assert (2, "same image in two splits") in kinds


def stored(hu: np.ndarray) -> np.ndarray:
    """As the first release of CT-RATE stores it: 1024 added, and nothing in the header that takes it off."""
    return hu + 1024


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (stored, "stored values, the rescale is missing"),
        (lambda hu: hu - 1024, "the rescale was applied twice"),
        (lambda hu: np.clip(hu, -160, 240) + 160, "no value is negative|8 bits|a mask|8-bit"),
    ],
)
def test_a_ct_that_is_not_in_hu(tmp_path: Path, change: Any, words: str) -> None:
    volume(tmp_path, "v.nii.gz", change(phantom_hu(24, 32, 40)))
    rows = [ManifestRow("v", "v.nii.gz", "CT", findings="Clear.")]
    report = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert found(report) == [("error", 1, "image", "values are no HU")]
    assert any(word in report.issues[0].problem.text for word in words.split("|"))


def test_the_first_release_of_ct_rate_is_named(tmp_path: Path) -> None:
    volume(tmp_path, "v.nii.gz", stored(phantom_hu(24, 32, 40)))
    rows = [ManifestRow("v", "v.nii.gz", "CT", dataset="ct-rate-v2", findings="Clear.")]
    report = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert "`radglint data convert ct-rate-v1` writes them as HU" in text_of(report, "values are no HU")


def test_a_ct_whose_air_is_not_near_1000(tmp_path: Path) -> None:
    volume(tmp_path, "v.nii.gz", phantom_hu(24, 32, 40) + 100)
    rows = [ManifestRow("v", "v.nii.gz", "CT", findings="Clear.")]
    report = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert any("no air near -1000 HU" in issue.problem.text for issue in report.issues)
    assert report.count("error") == 0


def test_a_modality_that_the_pixels_are_not(tmp_path: Path) -> None:
    radiograph(tmp_path, "a.png")
    volume(tmp_path, "v.nii.gz")
    write_radiograph(tmp_path / "r.dcm", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    rows = [ManifestRow(name, name, "CT") for name in ("a.png", "r.dcm")] + [ManifestRow("v", "v.nii.gz", "CXR")]
    report = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert [issue for issue in found(report) if issue[0] == "error"] == [
        ("error", row, "modality", "modality is not that of the pixels") for row in (1, 2, 3)
    ]


def test_sizes_and_boxes_against_the_decoded_image(tmp_path: Path) -> None:
    phrase = Phrase("x", boxes=((0, 0, 40, 60), (0, 0, 41, 60), (0, 0, 60, 40)))
    rows = [cxr_row("a", phrases=(phrase,)), cxr_row("b", size_px=(60, 40))]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [
        ("error", 1, "phrases[0].boxes[1]", "box outside the image"),
        ("error", 1, "phrases[0].boxes[2]", "box with x and y swapped"),
        ("error", 2, "size_px", "size is not that of the pixels"),
    ]


def test_masks(tmp_path: Path) -> None:
    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 3, 3] = 1
    np.savez_compressed(tmp_path / "m.npz", masks=masks)
    np.savez_compressed(tmp_path / "other.npz", mask=masks)
    np.savez_compressed(tmp_path / "flat.npz", masks=masks[0])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:40])
    png_mask(tmp_path, "small.png", np.ones((20, 30)))
    (tmp_path / "bad.png").write_bytes(b"x")
    names = [
        "m.npz#0",
        "m.npz#1",
        "m.npz#2",
        "other.npz#0",
        "flat.npz#0",
        "cut.npz#0",
        "small.png",
        "bad.png",
        "no.png",
    ]
    rows = [cxr_row("a", phrases=(Phrase("x", masks=tuple(names)),))]
    report = check(cxr_manifest(tmp_path, *rows))
    assert sorted((column[-2], severity, kind) for severity, _, column, kind in found(report)) == [
        ("1", "warning", "empty mask"), ("2", "error", "no such row of masks"), ("3", "error", "unreadable mask"),
        ("4", "error", "unreadable mask"), ("5", "error", "unreadable mask"), ("6", "error", "mask of another shape"),
        ("7", "error", "unreadable mask"), ("8", "error", "missing mask"),
    ]  # fmt: skip
    assert "expected a row below 2, as many masks m.npz holds" in text_of(report, "no such row of masks")


def test_masks_of_a_ct_lie_on_its_voxels(tmp_path: Path) -> None:
    volume(tmp_path, "v.nii.gz")
    mask = np.zeros((24, 32, 40))
    mask[2, 3, 4] = 1
    moved = AFFINE.copy()
    moved[0, 3] = 5
    for name, array, affine in (("good", mask, AFFINE), ("moved", mask, moved), ("axes", mask.T, AFFINE)):
        volume(tmp_path, f"{name}.nii.gz", array, affine)
    masks = tuple(f"{name}.nii.gz" for name in ("good", "moved", "axes"))
    rows = [ManifestRow("v", "v.nii.gz", "CT", phrases=(Phrase("x", masks=masks),))]
    report = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert [issue for issue in found(report) if issue[0] != "note"] == [
        ("error", 1, "phrases[0].masks[1]", "mask in another geometry"),
        ("error", 1, "phrases[0].masks[2]", "mask of another shape"),
    ]


def test_masks_of_a_simulated_case_are_checked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", masks=np.ones((1, 40, 60), np.uint8))
    extra = {"masks": "m.npz", "facts": [{"concept": "nodule", "mask": k} for k in (0, 1, None)]}
    report = check(cxr_manifest(tmp_path, cxr_row("a", extra=extra)))
    assert found(report) == [("error", 1, "masks", "no such row of masks")]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda path, m: Image.fromarray((m * 7).astype(np.uint8)).save(path)),
        ("b.png", lambda path, m: Image.fromarray((m * 255).astype(np.uint8)).convert("RGBA").save(path)),
        ("c.nii.gz", lambda path, m: nib.save(nib.Nifti1Image(m.T[..., None].astype(np.uint8), np.eye(4)), path)),
        ("d.npz", lambda path, m: np.savez(path, masks=m[None])),
    ],
)
def test_a_mask_is_what_is_above_zero(tmp_path: Path, name: str, make: Any) -> None:
    mask = np.zeros((6, 9), bool)
    mask[1, 2:5] = True
    make(tmp_path / name, mask)
    assert np.array_equal(read_mask_file(tmp_path / name).masks.reshape(6, 9), mask)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (("ms-cxr", "p10", "test"), ("mimic-cxr-jpg", "10", "train"), [("error", "patient leak")]),
        (("padchest", "10", "test"), ("padchest", "10", "train"), [("error", "patient leak")]),
        (("", "10", "train"), ("", "10", "val"), [("error", "patient leak")]),
        (("padchest", "10", "test"), ("padchest", "10", "val"), [("warning", "patient shared")]),
        (("padchest", "10", ""), ("padchest", "10", "train"), [("warning", "patient shared")]),
        (("", "10", "test"), ("padchest", "10", "train"), [("warning", "patient shared")]),
        (("padchest", "10", "train"), ("padchest", "10", "train"), [("note", "patients shared without harm")]),
        (("padchest", "10", "test"), ("mimic-cxr-jpg", "10", "train"), []),
        (("ms-cxr", "10", "test"), ("mimic-cxr-jpg", "11", "train"), [("note", "related, but ids differ")]),
    ],
)
def test_patients_shared_with_another_manifest(tmp_path: Path, mine: tuple, theirs: tuple, expected: list) -> None:
    paths = []
    for name, (dataset, patient, split) in (("a", mine), ("b", theirs)):
        row = cxr_row(name, dataset=dataset, patient=patient, split=split)
        paths.append(cxr_manifest(tmp_path, row, name=f"{name}.jsonl"))
    report = check(paths[0], against=[paths[1]])
    got = [(severity, kind) for severity, _, _, kind in found(report) if kind != "related data sets"]
    assert got == expected


def test_related_sets_within_one_manifest(tmp_path: Path) -> None:
    rows = [
        cxr_row("a", dataset="ms-cxr", patient="10", split="test"),
        cxr_row("b", dataset="mimic-cxr-jpg", patient="p010", split="train"),
        cxr_row("c", dataset="padchest", patient="10", split="train"),
    ]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [("error", 2, "patient", "patient leak")]


def test_a_related_set_that_was_not_compared_is_named(tmp_path: Path) -> None:
    report = check(cxr_manifest(tmp_path, cxr_row("a", dataset="ms-cxr", patient="1")))
    assert found(report) == [("note", 0, "dataset", "related data sets")]
    assert "ms-cxr shares patients with mimic-cxr-jpg; compare them with --against" in text_of(
        report, "related data sets"
    )


def test_problems_of_the_other_manifest_are_said(tmp_path: Path) -> None:
    other = tmp_path / "o.csv"
    other.write_text("image,modality,view\na.png,CXR,front\n")
    report = check(cxr_manifest(tmp_path, cxr_row("a")), against=[other])
    assert found(report) == [("warning", 0, "", "other manifest has problems")]
    with pytest.raises(ConfigError, match=r"none.csv: the manifest cannot be read"):
        check(cxr_manifest(tmp_path, cxr_row("a")), against=[tmp_path / "none.csv"])


def test_plain_patient_and_relation() -> None:
    assert {plain_patient(name) for name in ("p0010", "patient10", "00010", "Subject_10", " 10")} == {"10"}
    assert plain_patient("valid_10") == "valid_10"
    assert relation("a", "a", {}) == "same"
    assert relation("a", "b", {"b": ("a",)}) == relation("b", "a", {"b": ("a",)}) == "related"
    assert relation("a", "b", {}) == "other"
    assert relation("", "b", {}) == "unknown"


def test_reports_that_say_nothing(tmp_path: Path) -> None:
    texts = ("Clear.", "", " ___ ", "N/A", "nan")
    rows = [cxr_row(str(k), report=text) for k, text in enumerate(texts)]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [
        ("warning", row, "report", "empty report") for row in (2, 3, 4, 5)
    ]
    rows = [cxr_row(str(k), report="") for k in range(2)]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [("note", 0, "report", "no reports")]


def test_labels_that_cannot_all_be_true(tmp_path: Path) -> None:
    radiograph(tmp_path, "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    rows = [
        cxr_row("a", study="s", patient="1", labels={"no finding": "present", "edema": "present"}),
        cxr_row("b", patient="1", labels={"edema": "absent"}),
        cxr_row("c", study="s", patient="1", labels={"edema": "absent", "mass": "uncertain"}),
        cxr_row("d", study="s", patient="2", labels={"edema": "absent"}),
        cxr_row("e", labels={"no finding": "present", "support devices": "present", "mass": "absent"}),
    ]
    assert found(check(cxr_manifest(tmp_path, *rows))) == [
        ("error", 1, "labels", "finding beside no finding"),
        ("error", 2, "labels['edema']", "same image, other label"),
        ("warning", 2, "image", "same image under two ids"),
        ("warning", 3, "labels['edema']", "same study, other label"),
    ]


def test_a_stopped_check_goes_on_and_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: Any) -> None:
    path = cxr_manifest(tmp_path, *(cxr_row(name) for name in "abcd"))
    looked: list[str] = []
    read = seen_files.look_at

    def look(task: Any) -> Any:
        looked.append(task[1].name)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return read(task)

    monkeypatch.setattr(seen_files, "look_at", look)
    with pytest.raises(KeyboardInterrupt):
        check(path)
    side = tmp_path / "m.jsonl.checked"
    with side.open("a") as file:
        file.write('{"key": "cut o')  # as a kill in the middle of a write leaves it
    assert check(path).num_files == 4
    assert looked == ["a.png", "b.png", "c.png", "c.png", "d.png"]
    radiograph(tmp_path, "a.png", seed=99)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    check(path)
    assert looked[5:] == ["a.png"]


def test_a_folder_that_cannot_be_written_only_costs_the_resume(tmp_path: Path) -> None:
    seen = SeenFiles(tmp_path / "none" / "m.checked")
    seen.add("k", {"x": 1})
    assert (seen.get("k"), seen.side) == ({"x": 1}, None)


def test_processes_find_the_same(tmp_path: Path) -> None:
    path = cxr_manifest(tmp_path, *(cxr_row(name) for name in "abc"))
    (tmp_path / "b.png").write_bytes(b"x")
    alone = check(path)
    (tmp_path / "m.jsonl.checked").unlink()
    assert check(path, workers=2) == alone


def test_the_report_is_written_as_json_and_text(tmp_path: Path) -> None:
    rows = [cxr_row(str(k), image=f"no{k}.png") for k in range(12)]
    report = check(write_manifest(tmp_path / "m.jsonl", rows), report=tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert (document["errors"], document["rows"], len(document["issues"])) == (12, 12, 12)
    assert document["kinds"] == [{"severity": "error", "kind": "missing image", "count": 12}]
    assert document["issues"][3] == {
        "severity": "error", "kind": "missing image", "row": 4, "id": "3", "column": "image",
        "text": "no3.png: no such file or folder; restore it",
    }  # fmt: skip
    text = (tmp_path / "r.txt").read_text()
    assert text == report.to_text() + "\n"
    assert "error     missing image  12     1, 2, 3, 4, 5, 6, 7, 8, ..." in text
    assert "  row 1 (id '0'), column image: no0.png: no such file or folder; restore it" in text
    assert "  and 7 more" in text
    with pytest.raises(OutputError, match=r"ends in .json"):
        check(tmp_path / "m.jsonl", report=tmp_path / "r.txt")


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(seen_files, "look_at", os._exit)  # what a decoder that crashes does to its process
    with pytest.raises(InputError, match="a process died while decoding"):
        list(seen_files._look([3, 4], workers=2))  # pyright: ignore[reportArgumentType]


def test_digest_is_of_pixels_and_shape() -> None:
    array = np.arange(12, dtype=np.float32)
    assert pixel_digest(array.reshape(3, 4)) != pixel_digest(array.reshape(4, 3))
    assert pixel_digest(array.reshape(4, 3).T) == pixel_digest(np.ascontiguousarray(array.reshape(4, 3).T))
    assert len(pixel_digest(array)) == 32


def test_rows_are_unchanged_by_a_check(tmp_path: Path) -> None:
    row = cxr_row("a")
    path = cxr_manifest(tmp_path, row)
    before = path.read_bytes()
    check(path)
    assert path.read_bytes() == before
    assert replace(row) == row
