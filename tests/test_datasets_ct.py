"""Adapters of CT-RATE, RAD-ChestCT and ReXGroundingCT on small folders in the published layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import radglint
from dicom_files import phantom_hu
from radglint.datasets import ct_rate, rad_chestct, rexgroundingct
from radglint.datasets.ct_files import is_written, mask_box, nifti_grid, write_mask, write_volume
from radglint.errors import GeometryError, ImageError, InputError
from radglint.geometry import grid_gap_mm
from radglint.manifest import ManifestRow, Phrase

IPL, SPL = "IPL", "SPL"
SPACING_MM = (2.0, 0.75, 0.75)
POSITION_MM = (-10.0, -20.0, -30.0)
# (i, j, k) to RAS+ of an axial scan at POSITION_MM (LPS), slices toward the head.
AXIAL = np.array([[-0.75, 0, 0, 10], [0, -0.75, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1.0]])


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None) -> Path:
    """`data` in (i, j, k) order; without an affine the header knows neither spacing nor orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    if affine is None:
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
    nib.save(image, path)
    return path


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


# ------------------------------------------------------------------------------------------------ CT-RATE


def metadata(name: str, **changes: object) -> dict[str, object]:
    row = {
        "VolumeName": name,
        "Manufacturer": "made up",
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
        "ImagePositionPatient": str(list(POSITION_MM)),
        "XYSpacing": "[0.75, 0.75]",
        "ZSpacing": 2.0,
    }
    return row | changes


def report(name: str, **changes: object) -> dict[str, object]:
    row = {
        "VolumeName": name,
        "ClinicalInformation_EN": "Cough.",
        "Technique_EN": "Not given.",
        "Findings_EN": "A nodule, 4 mm, in the left upper lobe.",
        "Impressions_EN": "Nodule.",
    }
    return row | changes


def labels(name: str, *present: str, **changes: object) -> dict[str, object]:
    return {"VolumeName": name} | {own: int(own in present) for own in ct_rate.LABELS} | changes


def write_ct_rate(
    root: Path, release: str, names: list[str], *, hu: np.ndarray | None = None, intercept: float = -1024
) -> Path:
    """The tables, and every volume as release v1 (stored values, bare header) or v2 (HU)."""
    hu = phantom_hu() if hu is None else hu
    data = root / "dataset"
    for part, table in (("train", "train"), ("valid", "validation")):
        own = [name for name in names if name.startswith(part)]
        if not own:
            continue
        write_csv(data / f"radiology_text_reports/{table}_reports.csv", [report(name) for name in own])
        found = [labels(name, "Lung nodule", "Lung opacity") for name in own]
        write_csv(data / f"multi_abnormality_labels/{part}_predicted_labels.csv", found)
        write_csv(data / f"metadata/{table}_metadata.csv", [metadata(n, RescaleIntercept=intercept) for n in own])
        for name in own:
            patient, scan = "_".join(name.split("_")[:2]), "_".join(name.split("_")[:3])
            folder = data / (part if release == "v1" else f"{part}_fixed") / patient / scan
            stored = hu if release == "v2" else hu - int(intercept)
            write_nifti(folder / name, stored.transpose(2, 1, 0), AXIAL if release == "v2" else None)
    return root


NAMES = ["train_1_a_1.nii.gz", "train_1_a_2.nii.gz", "valid_7_b_1.nii.gz"]


@pytest.mark.parametrize("intercept", [-1024, -8192])
def test_a_v1_volume_and_its_v2_twin_give_the_same_hu_and_geometry(tmp_path, intercept):
    first = write_ct_rate(tmp_path / "one", "v1", NAMES[:1], intercept=intercept)
    second = write_ct_rate(tmp_path / "two", "v2", NAMES[:1], intercept=intercept)
    out = tmp_path / "out"
    (v1,), (v2,) = list(ct_rate.convert_v1(first, out)), list(ct_rate.convert_v2(second, out))
    one, two = radglint.read_image(out / v1.image), radglint.read_image(v2.image)
    np.testing.assert_array_equal(one.array, phantom_hu())
    np.testing.assert_array_equal(two.array, phantom_hu())
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-6)
    assert one.spacing_mm == two.spacing_mm == SPACING_MM
    assert one.orientation == two.orientation == SPL
    assert one.warnings == two.warnings == ()


def test_a_v1_file_itself_is_refused_by_the_reader(tmp_path):
    root = write_ct_rate(tmp_path, "v1", NAMES[:1])
    with pytest.raises(ImageError, match="rescale is missing"):
        radglint.read_image(root / "dataset/train/train_1/train_1_a" / NAMES[0])


def test_a_file_that_holds_hu_already_is_not_rescaled_as_v1(tmp_path):
    root = write_ct_rate(tmp_path, "v2", NAMES[:1])
    (root / "dataset/train_fixed").rename(root / "dataset/train")
    with pytest.raises(ImageError, match=r"applied twice.*convert it as ct-rate-v2"):
        list(ct_rate.convert_v1(root, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_rows_of_v1(tmp_path):
    root = write_ct_rate(tmp_path / "src", "v1", NAMES)
    out = tmp_path / "out"
    states = {label: "absent" for label in ct_rate.LABELS.values()} | {"nodule": "present", "lung opacity": "present"}
    common = {
        "modality": "CT",
        "dataset": "ct-rate-v1",
        "findings": "A nodule, 4 mm, in the left upper lobe.",
        "impression": "Nodule.",
        "labels": states,
        "extra": {"clinical_information": "Cough.", "technique": "", "geometry": "from metadata"},
    }
    assert list(ct_rate.convert_v1(root, out)) == [
        ManifestRow(
            id="train_1_a_1", image="images/train_1/train_1_a/train_1_a_1.nii.gz", patient="train_1",
            study="train_1_a", series="train_1_a_1", split="train", **common,
        ),
        ManifestRow(
            id="train_1_a_2", image="images/train_1/train_1_a/train_1_a_2.nii.gz", patient="train_1",
            study="train_1_a", series="train_1_a_2", split="train", **common,
        ),
        ManifestRow(
            id="valid_7_b_1", image="images/valid_7/valid_7_b/valid_7_b_1.nii.gz", patient="valid_7",
            study="valid_7_b", series="valid_7_b_1", split="val", **common,
        ),
    ]  # fmt: skip


def test_rows_of_v2_point_at_the_files_as_they_are(tmp_path):
    root = write_ct_rate(tmp_path / "src", "v2", NAMES[2:])
    (root / "dataset/metadata/no_chest_valid.txt").write_text("valid_7/valid_7_b/valid_7_b_1.nii.gz\n")
    (row,) = ct_rate.convert_v2(root / "dataset", tmp_path / "out")  # the folder dataset/ itself will do
    assert row.image == str(root / "dataset/valid_fixed/valid_7/valid_7_b/valid_7_b_1.nii.gz")
    assert row.dataset == "ct-rate-v2"
    assert row.extra == {"no_chest": True, "clinical_information": "Cough.", "technique": ""}
    assert not (tmp_path / "out").exists()


def test_a_blank_label_is_unlabelled_and_a_volume_without_labels_has_none(tmp_path):
    root = write_ct_rate(tmp_path, "v2", NAMES[:2])
    table = root / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    write_csv(table, [labels(NAMES[0], "Emphysema", **{"Hiatal hernia": ""})])
    one, two = ct_rate.convert_v2(root, tmp_path / "out")
    assert len(one.labels) == 17
    assert "hiatal hernia" not in one.labels
    assert one.labels["emphysema"] == "present"
    assert two.labels == {}


def test_v1_volumes_are_written_one_by_one_and_kept(tmp_path):
    root, out = write_ct_rate(tmp_path / "src", "v1", NAMES[:2]), tmp_path / "out"
    rows = ct_rate.convert_v1(root, out)
    first = next(rows)
    assert [path.name for path in out.rglob("*.nii.gz")] == [NAMES[0]]
    before = (out / first.image).stat().st_mtime_ns
    assert len(list(ct_rate.convert_v1(root, out))) == 2
    assert (out / first.image).stat().st_mtime_ns == before


def test_a_written_volume_of_another_geometry_is_written_again(tmp_path):
    root, out = write_ct_rate(tmp_path / "src", "v1", NAMES[:1]), tmp_path / "out"
    list(ct_rate.convert_v1(root, out))
    write_csv(root / "dataset/metadata/train_metadata.csv", [metadata(NAMES[0], ZSpacing=3)])
    (row,) = ct_rate.convert_v1(root, out)
    assert radglint.read_image(out / row.image).spacing_mm == (3.0, 0.75, 0.75)


def test_an_oblique_scan_and_a_slope_are_taken_from_the_table(tmp_path):
    root, out = write_ct_rate(tmp_path / "src", "v1", NAMES[:1]), tmp_path / "out"
    stored = ((phantom_hu() + 1024) / 2).astype(np.int16).transpose(2, 1, 0)
    write_nifti(root / "dataset/train/train_1/train_1_a" / NAMES[0], stored, None)
    cosines = "[1.0, 0.0, 0.0, 0.0, 0.8, 0.6]"
    changes = {"ImageOrientationPatient": cosines, "RescaleSlope": 2.0, "XYSpacing": "[0.5, 0.75]"}
    write_csv(root / "dataset/metadata/train_metadata.csv", [metadata(NAMES[0], **changes)])
    (row,) = ct_rate.convert_v1(root, out)
    image = radglint.read_image(out / row.image)
    expected = np.array([[0, 0, -0.5, 10], [1.2, -0.6, 0, 20], [1.6, 0.45, 0, -30], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.affine, expected, atol=1e-5)
    np.testing.assert_array_equal(image.array, 2 * ((phantom_hu() + 1024) // 2) - 1024)


def test_an_axial_scan_is_assumed_where_the_table_has_no_orientation(tmp_path):
    root, out = write_ct_rate(tmp_path / "src", "v1", NAMES[:1]), tmp_path / "out"
    row = metadata(NAMES[0])
    del row["ImageOrientationPatient"], row["ImagePositionPatient"]
    write_csv(root / "dataset/metadata/train_metadata.csv", [row])
    (found,) = ct_rate.convert_v1(root, out)
    assert found.extra["geometry"] == "axial, assumed"
    assert radglint.read_image(out / found.image).orientation == SPL


def _broken_ct_rate(root: Path, what: str) -> None:
    data = root / "dataset"
    volume = data / "train/train_1/train_1_a" / NAMES[0]
    table = {
        "reports": data / "radiology_text_reports/train_reports.csv",
        "labels": data / "multi_abnormality_labels/train_predicted_labels.csv",
        "metadata": data / "metadata/train_metadata.csv",
    }
    if what == "folders":
        (data / "train").rename(data / "training")
    elif what.startswith("no "):
        table[what[3:]].unlink()
    elif what == "label column":
        write_csv(table["labels"], [{"VolumeName": NAMES[0], "Lung nodule": 1}])
    elif what == "label value":
        write_csv(table["labels"], [labels(NAMES[0], Emphysema="yes")])
    elif what == "report column":
        write_csv(table["reports"], [{"VolumeName": NAMES[0], "Findings": "x"}])
    elif what == "name":
        write_csv(table["reports"], [report("train_1.nii.gz")])
    elif what == "volume":
        volume.unlink()
    elif what == "damaged":
        volume.write_bytes(volume.read_bytes()[:300])
    elif what == "metadata row":
        write_csv(table["metadata"], [metadata("train_2_a_1.nii.gz")])
    elif what == "spacing":
        write_csv(table["metadata"], [metadata(NAMES[0], XYSpacing="0.75")])
    elif what == "slope":
        write_csv(table["metadata"], [metadata(NAMES[0], RescaleSlope="")])
    elif what == "negative":
        write_csv(table["metadata"], [metadata(NAMES[0], ZSpacing=-1)])
    elif what == "range":
        write_csv(table["metadata"], [metadata(NAMES[0], RescaleSlope=1000)])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("folders", r"train/ or valid/ is missing; expected dataset/train/.*found .*training/"),
        ("no reports", r"radiology_text_reports: train_reports\.csv is missing"),
        ("no labels", r"multi_abnormality_labels: train_predicted_labels\.csv is missing"),
        ("no metadata", r"metadata: train_metadata\.csv is missing"),
        ("label column", r"train_predicted_labels\.csv: no column 'Medical material', 'Arterial wall calcification'"),
        ("label value", r"train_predicted_labels\.csv, line 2, column 'Emphysema': expected 0 or 1, got 'yes'"),
        ("report column", r"train_reports\.csv: no column 'ClinicalInformation_EN'"),
        ("name", r"line 2, column 'VolumeName': expected train_NUMBER_LETTER_NUMBER\.nii\.gz, got 'train_1\.nii\.gz'"),
        ("volume", r"1 of 1 listed images are missing.*first: train/train_1/train_1_a/train_1_a_1\.nii\.gz"),
        ("damaged", r"train_1_a_1\.nii\.gz: (truncated or damaged|expected a) NIfTI"),
        ("metadata row", r"train_1_a_1\.nii\.gz: no row 'train_1_a_1\.nii\.gz' in the metadata table"),
        ("spacing", r"line 2, column 'XYSpacing': expected 2 numbers in brackets, got '0\.75'"),
        ("slope", r"line 2, column 'RescaleSlope': expected a number, got ''"),
        ("negative", r"ZSpacing '-1', expected positive mm"),
        ("range", r"expected -32768 to 32767; is this the row of the volume\?"),
    ],
)
def test_a_wrong_ct_rate_folder_names_file_and_expectation(tmp_path, what, message):
    root = write_ct_rate(tmp_path / "src", "v1", NAMES[:1])
    _broken_ct_rate(root, what)
    with pytest.raises(InputError, match=message):
        list(ct_rate.convert_v1(root, tmp_path / "out"))


def test_the_label_maps_of_ct_rate_and_vlm3d():
    assert len(ct_rate.LABELS) == len(set(ct_rate.LABELS.values())) == 18
    assert len(ct_rate.VLM3D_TASK3) == 5
    assert set(ct_rate.VLM3D_TASK3.values()) <= set(ct_rate.LABELS.values())


# -------------------------------------------------------------------------------------------- RAD-ChestCT


def rad_labels(scan: str, *present: str) -> dict[str, object]:
    columns = [f"{own}*{place}" for own in rad_chestct.LABELS for place in ("left_lung", "right_lung", "other")]
    return {"NoteAcc_DEID": scan} | {column: int(column in present) for column in columns}


def write_rad_chestct(root: Path, *, metadata: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_csv(
        root / "imgtrain_Abnormality_and_Location_Labels.csv",
        [rad_labels("trn00001", "nodulegr1cm*left_lung", "stent*other", "pleural_effusion*left_lung",
                    "pleural_effusion*right_lung")],
    )  # fmt: skip
    write_csv(root / "imgtest_Abnormality_and_Location_Labels.csv", [rad_labels("tst00009")])
    if metadata:
        rows = [{"NoteAcc_DEID": scan, "MRN_DEID": f"mrn_{scan}", "final_spacing": 0.8} for scan in ("trn00001",)]
        write_csv(root / "CT_Scan_Metadata_Complete_35747.csv", rows)
    (root / "volumes").mkdir()
    for scan, hu in (("trn00001", phantom_hu()), ("tst00009", phantom_hu(10))):
        np.savez_compressed(root / f"volumes/{scan}.npz", ct=np.clip(hu, -1000, 1000)[::-1])
    return root


def test_rows_of_rad_chestct(tmp_path):
    root, out = write_rad_chestct(tmp_path / "src"), tmp_path / "out"
    one, two = rad_chestct.convert(root, out)
    present = {"nodule larger than 1 cm", "nodule", "stent", "medical material", "pleural effusion"}
    assert {name for name, state in one.labels.items() if state == "present"} == present
    assert set(one.labels) == set(rad_chestct.LABELS.values()) | set(rad_chestct.CT_CLIP_16)
    assert set(one.labels.values()) == {"present", "absent"}
    assert (one.id, one.patient, one.study, one.series, one.split) == (
        "trn00001", "mrn_trn00001", "trn00001", "trn00001", "train",
    )  # fmt: skip
    assert (one.image, one.modality, one.dataset, one.size_px) == (
        "images/trn00001.nii.gz", "CT", "rad-chestct", (12, 16, 20),
    )  # fmt: skip
    assert one.extra == {
        "locations": {
            "nodule larger than 1 cm": ["left_lung"],
            "stent": ["other"],
            "pleural effusion": ["left_lung", "right_lung"],
        }
    }
    assert (two.id, two.patient, two.split, two.size_px) == ("tst00009", "tst00009", "test", (10, 16, 20))
    assert set(two.labels.values()) == {"absent"}


def test_a_rad_chestct_volume_reads_as_it_is_with_spacing_and_orientation(tmp_path):
    root, out = write_rad_chestct(tmp_path / "src"), tmp_path / "out"
    row = next(rad_chestct.convert(root, out))
    image = radglint.read_image(out / row.image)
    np.testing.assert_array_equal(image.array, np.clip(phantom_hu(), -1000, 1000)[::-1])
    assert image.orientation == IPL
    np.testing.assert_allclose(image.spacing_mm, (0.8, 0.8, 0.8), rtol=1e-6)
    assert image.shape == row.size_px


def test_rad_chestct_goes_on_where_it_stopped(tmp_path):
    root, out = write_rad_chestct(tmp_path / "src", metadata=False), tmp_path / "out"
    row = next(rad_chestct.convert(root, out))
    assert row.patient == "trn00001"
    assert [path.name for path in out.rglob("*.nii.gz")] == ["trn00001.nii.gz"]
    before = (out / row.image).stat().st_mtime_ns
    assert len(list(rad_chestct.convert(root, out))) == 2
    assert (out / row.image).stat().st_mtime_ns == before


def _broken_rad(root: Path, what: str) -> None:
    table = root / "imgtrain_Abnormality_and_Location_Labels.csv"
    volume = root / "volumes/trn00001.npz"
    if what == "tables":
        for path in root.glob("img*.csv"):
            path.unlink()
    elif what == "key":
        write_csv(table, [{"Accession": "trn00001"}])
    elif what == "column":
        write_csv(table, [rad_labels("trn00001") | {"gallstone*other": 0}])
    elif what == "value":
        write_csv(table, [rad_labels("trn00001") | {"nodule*other": 2}])
    elif what == "fewer":
        row = {k: v for k, v in rad_labels("trn00001").items() if not k.startswith("mass*")}
        write_csv(table, [row])
    elif what == "volume":
        volume.unlink()
    elif what == "array":
        np.savez_compressed(volume, volume=phantom_hu())
    elif what == "type":
        np.savez_compressed(volume, ct=phantom_hu().astype(np.float32))
    elif what == "damaged":
        volume.write_bytes(volume.read_bytes()[:200])
    elif what == "stored":
        np.savez_compressed(volume, ct=phantom_hu() + np.int16(1024))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tables", r"imgtrain_Abnormality_and_Location_Labels\.csv or .* is missing; expected trnNNNNN\.npz"),
        ("key", r"imgtrain.*: no column 'NoteAcc_DEID'; the header has Accession"),
        ("column", r"line 2: column 'gallstone\*other', expected ABNORMALITY\*LOCATION of the 84"),
        ("value", r"line 2, column 'nodule\*other': expected 0 or 1, got '2'"),
        ("fewer", r"line 2: no column for mass \(1 of 84"),
        ("volume", r"1 of 2 listed images are missing.*first: trn00001\.npz"),
        ("array", r"trn00001\.npz: expected an npz with an array 'ct'"),
        ("type", r"trn00001\.npz: array 'ct' has shape \(12, 16, 20\) and type float32"),
        ("damaged", r"trn00001\.npz: expected an npz with an array 'ct'"),
        ("stored", r"trn00001\.npz: expected HU.*rescale is missing"),
    ],
)
def test_a_wrong_rad_chestct_folder_names_file_and_expectation(tmp_path, what, message):
    root = write_rad_chestct(tmp_path / "src")
    _broken_rad(root, what)
    with pytest.raises(InputError, match=message):
        list(rad_chestct.convert(root, tmp_path / "out"))


def test_the_label_maps_of_rad_chestct():
    assert len(rad_chestct.LABELS) == len(set(rad_chestct.LABELS.values())) == 84
    assert len(rad_chestct.CT_CLIP_16) == 16
    assert {own for members in rad_chestct.CT_CLIP_16.values() for own in members} <= set(rad_chestct.LABELS)
    shared = set(rad_chestct.CT_CLIP_16) & set(rad_chestct.LABELS.values())
    own = {name: label for label, name in rad_chestct.LABELS.items()}
    assert all(rad_chestct.CT_CLIP_16[name] == (own[name],) for name in shared)  # one name, one meaning


# ------------------------------------------------------------------------------------------ ReXGroundingCT


def rex_masks() -> np.ndarray:
    """(finding, i, j, k): two entities of the first finding, one voxel column of the second."""
    masks = np.zeros((2, 20, 16, 12), dtype=np.uint8)
    masks[0, 4:7, 4:8, 1:3] = 1
    masks[0, 13:15, 5:6, 8:9] = 2
    masks[1, 5, 6, 2:9] = 1
    return masks


def rex_entry(name: str, masks: np.ndarray) -> dict[str, object]:
    return {
        "name": name,
        "findings": {"0": "Ground-glass in the right lung", "1": "Nodule, 3 mm"},
        "entity_counts": {"0": 2, "1": 1},
        "shape": list(masks.shape[1:]),
        "pixels": {str(i): int((mask != 0).sum()) for i, mask in enumerate(masks)},
        "categories": {"0": "2c", "1": "2d"},
        "protocol": "protocol1",
    }


def write_rex(root: Path, *, flat: bool = True) -> Path:
    masks, names = rex_masks(), {"train": "valid_12_a_1.nii.gz", "test": "train_3_b_2.nii.gz"}
    document: dict[str, list[object]] = {split: [rex_entry(name, masks)] for split, name in names.items()}
    document["val"] = [rex_entry("train_99_a_1.nii.gz", masks)]  # no volume of this split is on the disk
    del document["test"][0]["pixels"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(document))
    write_nifti(root / "segmentations" / names["train"], masks, np.diag([1.0, 1, 1, 1]))  # as if not mirrored
    for name in names.values():
        part, patient, scan = name[:5], "_".join(name.split("_")[:2]), "_".join(name.split("_")[:3])
        folder = root / ("images_flat" if flat else f"dataset/{part}_fixed/{patient}/{scan}")
        write_nifti(folder / name, phantom_hu().transpose(2, 1, 0), AXIAL)
    return root


@pytest.mark.parametrize("flat", [True, False])
def test_rows_of_rexgroundingct(tmp_path, flat):
    root, out = write_rex(tmp_path / "src", flat=flat), tmp_path / "out"
    train, test = rexgroundingct.convert(root, out)
    folder = root / ("images_flat" if flat else "dataset/valid_fixed/valid_12/valid_12_a")
    assert train == ManifestRow(
        id="valid_12_a_1",
        image=str(folder / "valid_12_a_1.nii.gz"),
        modality="CT",
        dataset="rexgroundingct",
        patient="valid_12",
        study="valid_12_a",
        series="valid_12_a_1",
        split="train",
        labels={"ground-glass opacity": "present", "nodule or mass": "present"},
        phrases=(
            Phrase("Ground-glass in the right lung", "ground-glass opacity", ((1, 4, 4, 9, 8, 15),),
                   ("masks/valid_12_a_1/finding_00.nii.gz",)),
            Phrase("Nodule, 3 mm", "nodule or mass", ((2, 6, 5, 9, 7, 6),), ("masks/valid_12_a_1/finding_01.nii.gz",)),
        ),
        size_px=(12, 16, 20),
        extra={"entity_counts": {"0": 2, "1": 1}, "protocol": "protocol1"},
    )  # fmt: skip
    assert (test.id, test.split, test.patient) == ("train_3_b_2", "test", "train_3")
    assert [(phrase.text, phrase.masks, phrase.boxes) for phrase in test.phrases] == [
        ("Ground-glass in the right lung", (), ()),
        ("Nodule, 3 mm", (), ()),
    ]


def test_masks_of_rexgroundingct_lie_on_the_volume_voxel_by_voxel(tmp_path):
    root, out = write_rex(tmp_path / "src"), tmp_path / "out"
    row = next(rexgroundingct.convert(root, out))
    image = radglint.read_image(row.image)
    for finding, phrase in enumerate(row.phrases):
        mask = read_mask(out / phrase.masks[0])
        assert mask.shape == image.shape == row.size_px
        for d, h, w in np.ndindex(image.shape):
            assert mask[d, h, w] == (rex_masks()[finding, w, h, d] != 0)
        np.testing.assert_array_equal(nib.load(out / phrase.masks[0]).affine, nib.load(row.image).affine)


def test_the_challenge_splits_and_a_finding_without_voxels(tmp_path):
    root, out = write_rex(tmp_path / "src"), tmp_path / "out"
    masks = rex_masks()
    masks[1] = 0
    write_nifti(root / "segmentations/valid_12_a_1.nii.gz", masks, None)
    (root / "MICCAI_challenge_dataset.json").write_text(json.dumps({"val": [rex_entry("valid_12_a_1.nii.gz", masks)]}))
    (row,) = rexgroundingct.convert_miccai(root, out)
    assert row.split == "val"
    assert [len(phrase.masks) for phrase in row.phrases] == [1, 0]


def test_a_patient_in_two_splits_keeps_the_one_that_is_measured(tmp_path):
    root, out = write_rex(tmp_path / "src"), tmp_path / "out"
    document = json.loads((root / "dataset.json").read_text())
    name = "valid_12_a_2.nii.gz"  # the patient of the training scan
    write_nifti(root / "images_flat" / name, phantom_hu().transpose(2, 1, 0), AXIAL)
    document["test"] = [rex_entry(name, rex_masks())]
    (root / "dataset.json").write_text(json.dumps(document))
    train, test = rexgroundingct.convert(root, out)
    assert train.patient == test.patient == "valid_12"
    assert (train.split, train.extra["published_split"]) == ("", "train")
    assert (test.split, "published_split" in test.extra) == ("test", False)
    assert len(train.phrases[0].masks) == 1


def _broken_rex(root: Path, what: str) -> None:
    mask = root / "segmentations/valid_12_a_1.nii.gz"
    document = json.loads((root / "dataset.json").read_text())
    entry = document["train"][0]
    if what == "json":
        (root / "dataset.json").unlink()
        return
    if what == "splits":
        document = {"training": document["train"]}
    elif what == "name":
        del entry["name"]
    elif what == "findings":
        entry["findings"] = {"1": "one", "2": "two"}
    elif what == "category":
        entry["categories"]["0"] = "3a"
    elif what == "mask":
        mask.unlink()
    elif what == "grid":
        write_nifti(mask, rex_masks()[:, :-1], None)
    elif what == "order":
        write_nifti(mask, np.moveaxis(rex_masks(), 0, -1), None)
    elif what == "count":
        write_nifti(mask, rex_masks()[::-1], None)
    elif what == "volume":
        document["train"].append(rex_entry("train_5_a_1.nii.gz", rex_masks()))
    elif what == "volumes":
        for path in root.glob("images_flat/*"):
            path.unlink()
    (root / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("json", r"dataset\.json is missing; expected dataset\.json, segmentations/"),
        ("splits", r"dataset\.json: keys training, expected train, val or test"),
        ("name", r"dataset\.json, train\[0\]: no 'name'"),
        ("findings", r"train\[0\] \(valid_12_a_1\.nii\.gz\): 'findings' has keys 1, 2, expected 0, 1, 2"),
        ("category", r"categories 3a, expected 1a, 1b"),
        ("mask", r"no mask .*segmentations/valid_12_a_1\.nii\.gz"),
        ("grid", r"shape \(2, 19, 16, 12\), expected \(2, 20, 16, 12\): 2 findings on the volume"),
        ("order", r"shape \(20, 16, 12, 2\), expected \(2, 20, 16, 12\)"),
        ("count", r"finding 0 has 7 voxels, .* says 26 \(pixels\)"),
        ("volume", r"1 of 3 listed images are missing.*first: train/train_5_a_1\.nii\.gz"),
        ("volumes", r"3 of 3 listed images are missing"),
    ],
)
def test_a_wrong_rexgroundingct_folder_names_file_and_expectation(tmp_path, what, message):
    root = write_rex(tmp_path / "src")
    _broken_rex(root, what)
    with pytest.raises(InputError, match=message):
        list(rexgroundingct.convert(root, tmp_path / "out"))


# --------------------------------------------------------------------------------------------------- files


def test_a_volume_is_read_back_as_it_was_written(tmp_path):
    affine = np.array([[0, 0, -1.0, 5], [0, -1.5, 0, 6], [2, 0, 0, 7], [0, 0, 0, 1]])
    path = write_volume(tmp_path / "a/b.nii.gz", phantom_hu(), affine)
    image = radglint.read_image(path)
    np.testing.assert_array_equal(image.array, phantom_hu())
    np.testing.assert_allclose(image.affine, affine)
    grid = nifti_grid(path)
    assert (grid.shape, grid.orientation) == (image.shape, image.orientation)
    np.testing.assert_array_equal(grid.affine, image.affine)
    assert is_written(path, (12, 16, 20), affine)
    assert not is_written(path, (12, 16, 21), affine)
    assert not is_written(path, (12, 16, 20), affine @ np.diag([1, 1, 1.01, 1]))
    path.write_bytes(b"cut")
    assert not is_written(path, (12, 16, 20), affine)


def test_a_mask_of_another_shape_is_refused(tmp_path):
    grid = nifti_grid(write_volume(tmp_path / "a.nii.gz", phantom_hu(), np.eye(4)))
    with pytest.raises(GeometryError, match=r"shape \(2, 2, 2\) on an image of shape \(12, 16, 20\)"):
        write_mask(tmp_path / "m.nii.gz", np.ones((2, 2, 2), dtype=bool), grid)


def test_the_gap_of_two_grids_is_that_of_the_farthest_corner():
    moved = np.diag([1.0, 1.0, 1.1, 1.0])
    assert grid_gap_mm(np.eye(4), np.eye(4), (3, 4, 11)) == 0
    assert grid_gap_mm(np.eye(4), moved, (3, 4, 11)) == pytest.approx(1.0)


def test_the_box_of_a_mask_is_half_open():
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert mask_box(mask) == (1, 2, 3, 4, 3, 7)
