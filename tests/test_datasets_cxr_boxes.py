"""Adapters of the radiograph sets with boxes and masks, each on a small tree in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_trees import CHEXPERT_COLUMNS, by_id, chexpert_values, convert, write_csv, write_image, write_words
from dicom_files import write_radiograph
from radglint.errors import InputError
from radglint.manifest import ManifestRow, Phrase
from radglint.reading import read_image

PIXELS = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)


def dicom(path: Path, pixels: np.ndarray = PIXELS, **tags: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_radiograph(path, pixels, **tags)


def present(row: ManifestRow) -> set[str]:
    return {label for label, state in row.labels.items() if state == "present"}


# --- NIH ChestX-ray14

ENTRY = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
         "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", "")  # fmt: skip


def nih(root: Path, side: int = 1024) -> Path:
    lines = [
        ("00000001_000.png", "Cardiomegaly|Effusion", 0, 1, 57, "M", "PA"),
        ("00000013_005.png", "No Finding", 5, 13, 60, "F", "AP"),
        ("00030805_000.png", "Pleural_Thickening", 0, 30805, 27, "M", "PA"),
    ]
    write_csv(root / "Data_Entry_2017_v2020.csv", ENTRY, *[(*line, 2682, 2749, 0.143, 0.143, "") for line in lines])
    write_words(root / "train_val_list.txt", "00000001_000.png\n00000013_005.png\n")
    write_words(root / "test_list.txt", "00030805_000.png\n")
    write_words(
        root / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Cardiomegaly,100.5,200,300.25,400,,,\n"
        "00000001_000.png,Infiltrate,10,20,30,40,,,\n"
        "00000001_000.png,Cardiomegaly,500,600,100,100,,,\n",
    )
    write_image(root / "images_001" / "images" / "00000001_000.png", side, side)
    write_image(root / "images_001" / "images" / "00000013_005.png")
    write_image(root / "images_012" / "images" / "00030805_000.png")
    return root


def test_nih_rows(tmp_path):
    rows = by_id(convert("nih-chestxray14", nih(tmp_path / "src")))
    boxed = rows["00000001_000"]
    assert boxed.image == str(tmp_path / "src/images_001/images/00000001_000.png")
    assert (boxed.patient, boxed.study, boxed.split, boxed.view) == ("1", "1_0", "train", "PA")
    assert present(boxed) == {"cardiomegaly", "pleural effusion"}
    assert set(boxed.labels.values()) == {"present", "absent"}
    assert "infiltration" not in boxed.labels  # drawn, but not in the list: neither present nor absent
    assert len(boxed.labels) == 14
    assert boxed.phrases == (
        Phrase("cardiomegaly", "cardiomegaly", ((200, 100, 600, 401), (600, 500, 700, 600))),
        Phrase("infiltration", "infiltration", ((20, 10, 60, 40),)),
    )
    assert boxed.size_px == (1024, 1024)
    assert boxed.extra == {"age": "57", "sex": "M"}
    assert present(rows["00000013_005"]) == {"no finding"}
    assert (rows["00000013_005"].phrases, rows["00000013_005"].size_px) == ((), None)
    assert (rows["00030805_000"].split, rows["00030805_000"].patient) == ("test", "30805")
    assert present(rows["00030805_000"]) == {"pleural thickening"}


def test_nih_boxes_follow_resized_images(tmp_path):
    boxed = convert("nih-chestxray14", nih(tmp_path / "src", side=256))[0]
    assert boxed.phrases[1].boxes == ((5, 2, 15, 10),)
    assert boxed.size_px == (256, 256)


def test_nih_wrong_tables(tmp_path):
    src = nih(tmp_path / "src")
    write_words(src / "test_list.txt", "")
    with pytest.raises(InputError, match=r"line 4: 00030805_000\.png is neither in train_val_list\.txt nor in"):
        convert("nih-chestxray14", src)
    write_csv(
        src / "Data_Entry_2017_v2020.csv", ENTRY, ("00000001_000.png", "Cancer", 0, 1, 5, "M", "PA", 1, 1, 1, 1, "")
    )
    with pytest.raises(InputError, match=r"line 2: unknown label 'Cancer'; known are No Finding"):
        convert("nih-chestxray14", src)
    (src / "train_val_list.txt").unlink()
    with pytest.raises(InputError, match=r"train_val_list\.txt is missing; expected Data_Entry_2017"):
        convert("nih-chestxray14", src)


def test_nih_folder_that_was_not_downloaded(tmp_path):
    src = nih(tmp_path / "src")
    (src / "images_012" / "images" / "00030805_000.png").unlink()
    with pytest.raises(
        InputError, match=r"1 of 3 listed images are missing.*first: 00030805_000\.png; download the rest"
    ):
        convert("nih-chestxray14", src)


# --- VinDr-CXR

LOCAL = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
)  # fmt: skip


def vindr_values(*yes: str) -> list[int]:
    return [int(name in yes) for name in (*LOCAL, "Other diseases", "No finding")]


def vindr(root: Path) -> Path:
    notes = root / "annotations"
    write_csv(
        notes / "image_labels_train.csv", ("image_id", "rad_id", *LOCAL, "Other diseases", "No finding"),
        ("aaa", "R1", *vindr_values("Cardiomegaly", "Nodule/Mass")),
        ("aaa", "R2", *vindr_values("Cardiomegaly", "ILD")),
        ("aaa", "R3", *vindr_values("No finding")),
        ("bbb", "R1", *vindr_values("No finding")),
        ("bbb", "R2", *vindr_values("No finding")),
        ("bbb", "R3", *vindr_values("No finding")),
    )  # fmt: skip
    write_csv(
        notes / "image_labels_test.csv", ("image_id", *LOCAL, "Other disease", "No finding"),
        ("ccc", *vindr_values("Pneumothorax", "Other diseases")),
    )  # fmt: skip
    boxes = ("class_name", "x_min", "y_min", "x_max", "y_max")
    write_csv(
        notes / "annotations_train.csv", ("image_id", "rad_id", *boxes),
        ("aaa", "R1", "Cardiomegaly", "10.5", "20.2", "50.0", "60.0"),
        ("aaa", "R2", "Cardiomegaly", "12", "22", "52", "62"),
        ("aaa", "R1", "Nodule/Mass", "1", "2", "3", "4"),
        ("aaa", "R3", "No finding", "", "", "", ""),
        ("bbb", "R1", "No finding", "", "", "", ""),
    )  # fmt: skip
    write_csv(notes / "annotations_test.csv", ("image_id", *boxes), ("ccc", "Pneumothorax", 0, 0, 96.0, 64.0))
    for name in ("train/aaa", "train/bbb", "test/ccc"):
        dicom(root / f"{name}.dicom")
    return root


def test_vindr_takes_the_majority_and_keeps_the_votes(tmp_path):
    first, second, third = convert("vindr-cxr", vindr(tmp_path / "src"))
    assert (first.id, first.split, first.view, first.size_px) == ("aaa", "train", "PA", (64, 96))
    assert present(first) == {"cardiomegaly"}
    assert len(first.labels) == 28
    assert first.phrases == (Phrase("cardiomegaly", "cardiomegaly", ((20, 10, 60, 50), (22, 12, 62, 52))),)
    assert first.extra == {
        "readers": 3,
        "votes": {"no finding": 1, "cardiomegaly": 2, "interstitial lung disease": 1, "nodule or mass": 1},
        "other_boxes": {"nodule or mass": [(2, 1, 4, 3)]},
    }
    assert present(second) == {"no finding"}
    assert (third.split, present(third)) == ("test", {"pneumothorax", "other diseases"})
    assert third.phrases == (Phrase("pneumothorax", "pneumothorax", ((0, 0, 64, 96),)),)


def test_vindr_even_votes_are_uncertain(tmp_path):
    src = vindr(tmp_path / "src")
    write_csv(
        src / "annotations" / "image_labels_train.csv", ("image_id", "rad_id", *LOCAL, "Other diseases", "No finding"),
        ("aaa", "R1", *vindr_values("Cardiomegaly")), ("aaa", "R2", *vindr_values()),
    )  # fmt: skip
    first = convert("vindr-cxr", src)[0]
    assert first.labels["cardiomegaly"] == "uncertain"
    assert first.extra["other_boxes"]["cardiomegaly"] == [(20, 10, 60, 50), (22, 12, 62, 52)]


def test_vindr_image_is_read_on_the_grid_of_its_boxes(tmp_path):
    row = convert("vindr-cxr", vindr(tmp_path / "src"))[0]
    assert read_image(row.image).shape == row.size_px


def test_vindr_wrong_values(tmp_path):
    src = vindr(tmp_path / "src")
    table = src / "annotations" / "annotations_test.csv"
    header = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
    write_csv(table, header, ("ccc", "Pneumothorax", 40, 0, 10, 20))
    with pytest.raises(
        InputError, match=r"annotations_test\.csv, line 2: the box x 40 to 10, .* has its corners swapped"
    ):
        convert("vindr-cxr", src)
    write_csv(table, header, ("ccc", "Broken bone", 4, 0, 10, 20))
    with pytest.raises(InputError, match="line 2: unknown class 'Broken bone'"):
        convert("vindr-cxr", src)


# --- RSNA


def rsna(root: Path) -> Path:
    write_csv(
        root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"),
        ("p-1", "", "", "", "", 0), ("p-2", 10.0, 20.0, 30.0, 40.0, 1), ("p-2", 50.0, 2.0, 20.0, 30.0, 1),
        ("p-3", "", "", "", "", 0),
    )  # fmt: skip
    write_csv(
        root / "stage_2_detailed_class_info.csv", ("patientId", "class"),
        ("p-1", "No Lung Opacity / Not Normal"), ("p-2", "Lung Opacity"), ("p-2", "Lung Opacity"), ("p-3", "Normal"),
    )  # fmt: skip
    for name, view in (("p-1", "PA"), ("p-2", "AP"), ("p-3", None)):
        dicom(root / "stage_2_train_images" / f"{name}.dcm", ViewPosition=view, PatientID=name)
    return root


def test_rsna_rows(tmp_path):
    rows = by_id(convert("rsna-pneumonia", rsna(tmp_path / "src")))
    assert [dict(row.labels) for row in rows.values()] == [
        {"pneumonia": "absent", "no finding": "absent"},
        {"pneumonia": "present", "no finding": "absent"},
        {"pneumonia": "absent", "no finding": "present"},
    ]
    assert rows["p-2"].phrases == (Phrase("pneumonia", "pneumonia", ((20, 10, 60, 40), (2, 50, 32, 70))),)
    assert [row.view for row in rows.values()] == ["PA", "AP", ""]
    assert {(row.split, row.size_px) for row in rows.values()} == {("train", (64, 96))}
    assert rows["p-1"].patient == "p-1"
    assert rows["p-1"].extra == {"class": "No Lung Opacity / Not Normal"}


def test_rsna_patients_of_nih_where_the_mapping_is_there(tmp_path):
    src = rsna(tmp_path / "src")
    mapping = [{"img_id": "00000013_005.png", "subset_img_id": "p-2"}]
    write_words(src / "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping))
    rows = by_id(convert("rsna-pneumonia", src))
    assert (rows["p-2"].patient, rows["p-2"].extra["nih_image"]) == ("13", "00000013_005.png")
    assert rows["p-1"].patient == "p-1"


def test_rsna_wrong_tables(tmp_path):
    src = rsna(tmp_path / "src")
    write_csv(src / "stage_2_detailed_class_info.csv", ("patientId", "class"), ("p-1", "Ill"))
    with pytest.raises(InputError, match="line 2, column 'class': expected one of Lung Opacity"):
        convert("rsna-pneumonia", src)
    write_csv(src / "stage_2_detailed_class_info.csv", ("patientId", "class"), ("p-1", "Normal"))
    with pytest.raises(InputError, match="p-2 has labels but no line in stage_2_detailed_class_info"):
        convert("rsna-pneumonia", src)


# --- SIIM-ACR


def siim(root: Path) -> Path:
    write_csv(
        root / "train-rle.csv", ("ImageId", " EncodedPixels"),
        ("1.2.3", " -1"), ("1.2.4", " 65 2 62 3"), ("1.2.4", " 0 1"), ("1.2.5", "-1"),
    )  # fmt: skip
    for name in ("1.2.3", "1.2.4", "1.2.5", "1.2.6"):
        folder = root / "dicom-images-train" / f"1.9.{name[-1]}" / "1.9.9"
        dicom(folder / f"{name}.dcm", PatientID=f"patient-{name}", ViewPosition="PA")
    return root


def test_siim_rows_and_masks(tmp_path):
    src, out = siim(tmp_path / "src"), tmp_path / "out"
    rows = by_id(convert("siim-pneumothorax", src, out))
    assert list(rows) == ["1.2.3", "1.2.4", "1.2.5"]
    negative, positive = rows["1.2.3"], rows["1.2.4"]
    assert (negative.labels, negative.phrases) == ({"pneumothorax": "absent"}, ())
    assert positive.labels == {"pneumothorax": "present"}
    assert positive.phrases == (Phrase("pneumothorax", "pneumothorax", masks=("masks/siim-pneumothorax/1.2.4.png",)),)
    assert (positive.patient, positive.split, positive.view) == ("patient-1.2.4", "train", "PA")
    assert positive.size_px == (64, 96)
    mask = np.asarray(Image.open(out / positive.phrases[0].masks[0]))
    expected = np.zeros((64, 96), dtype=np.uint8)
    expected[[1, 2], 1] = expected[[1, 2, 3], 2] = expected[0, 0] = 255
    np.testing.assert_array_equal(mask, expected)
    assert mask.shape == read_image(positive.image).shape


def test_siim_mask_of_a_larger_image_is_refused(tmp_path):
    src = siim(tmp_path / "src")
    write_csv(src / "train-rle.csv", ("ImageId", " EncodedPixels"), ("1.2.4", "1000000 5"))
    with pytest.raises(InputError, match=r"train-rle\.csv, line 2: the mask ends at pixel 1000005 of 6144"):
        convert("siim-pneumothorax", src)


# --- MS-CXR

PATHS = ["files/p10/p10233088/s54276838/675d-a.jpg", "files/p11/p11000000/s50000000/aaaa-b.jpg"]
MS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height", "split")


def ms_lines() -> list[tuple[object, ...]]:
    return [
        ("675d-a", "Pneumonia", "left lower lobe opacity", PATHS[0], 10, 20, 30, 40, 320, 240, "train"),
        ("675d-a", "Pneumonia", "left lower lobe opacity", PATHS[0], 100, 20, 30, 40, 320, 240, "train"),
        ("675d-a", "Lung Opacity", "left lower lobe opacity", PATHS[0], 1, 2, 3, 4, 320, 240, "train"),
        ("aaaa-b", "Pneumothorax", "small apical pneumothorax", PATHS[1], 0, 0, 320, 120, 320, 240, "test"),
    ]


def ms_cxr(root: Path, height: int = 240, width: int = 320) -> Path:
    write_csv(root / "MS_CXR_Local_Alignment_v1.1.0.csv", MS, *ms_lines())
    for path in PATHS:
        write_image(root / path, height, width)
    return root


def test_ms_cxr_rows(tmp_path):
    first, second = convert("ms-cxr", ms_cxr(tmp_path / "src"))
    assert first == ManifestRow(
        id="675d-a",
        image=str(tmp_path / "src" / PATHS[0]),
        modality="CXR",
        dataset="ms-cxr",
        patient="10233088",
        study="54276838",
        series="675d-a",
        split="train",
        labels={"pneumonia": "present", "lung opacity": "present"},
        phrases=(
            Phrase("left lower lobe opacity", "pneumonia", ((20, 10, 60, 40), (20, 100, 60, 130))),
            Phrase("left lower lobe opacity", "lung opacity", ((2, 1, 6, 4),)),
        ),
        size_px=(240, 320),
    )
    assert (second.split, second.phrases[0].boxes) == ("test", ((0, 0, 120, 320),))


def test_ms_cxr_boxes_follow_resized_images(tmp_path):
    first, _ = convert("ms-cxr", ms_cxr(tmp_path / "src", 120, 160))
    assert first.phrases[0].boxes == ((10, 5, 30, 20), (10, 50, 30, 65))


def test_ms_cxr_json_says_the_same_as_the_table(tmp_path):
    src = ms_cxr(tmp_path / "src")
    from_table = convert("ms-cxr", src)
    (src / "MS_CXR_Local_Alignment_v1.1.0.csv").unlink()
    lines = ms_lines()
    names = sorted({str(line[1]) for line in lines})
    coco = {
        "images": [
            {"file_name": Path(path).name, "height": 240, "width": 320, "id": n, "path": path, "num_annotations": 1}
            for n, path in enumerate(PATHS)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": PATHS.index(str(line[3])), "category_id": names.index(str(line[1])),
             "bbox": list(line[4:8]), "label_text": line[2], "split": line[10]}
            for n, line in enumerate(lines)
        ],
    }  # fmt: skip
    path = write_words(src / "MS_CXR_Local_Alignment_v1.1.0.json", json.dumps(coco))
    assert convert("ms-cxr", src) == from_table
    del coco["categories"]
    path.write_text(json.dumps(coco))
    with pytest.raises(
        InputError, match=r"expected COCO images, annotations and categories \(KeyError\('categories'\)"
    ):
        convert("ms-cxr", src)


def test_ms_cxr_images_beside_it_and_no_split_column(tmp_path):
    src = tmp_path / "ms-cxr"
    write_csv(src / "MS_CXR_Local_Alignment_v1.0.0.csv", MS[:-1], *[line[:-1] for line in ms_lines()])
    for path in PATHS:
        write_image(tmp_path / "mimic-cxr-jpg" / path, 240, 320)
    assert [row.split for row in convert("ms-cxr", src)] == ["", ""]


def test_ms_cxr_wrong_rows(tmp_path):
    src = ms_cxr(tmp_path / "src")
    line = ("675d-a", "Broken", "x", PATHS[0], 1, 2, 3, 4, 320, 240, "train")
    write_csv(src / "MS_CXR_Local_Alignment_v1.1.0.csv", MS, line)
    with pytest.raises(InputError, match=r"v1\.1\.0\.csv, line 2: unknown category 'Broken'"):
        convert("ms-cxr", src)
    write_csv(src / "MS_CXR_Local_Alignment_v1.1.0.csv", MS, (line[0], "Edema", *line[2:9], 999, "train"))
    with pytest.raises(InputError, match="cropped or stretched; use the published images"):
        convert("ms-cxr", src)


# --- ChestX-Det10


def chestx_det(root: Path) -> Path:
    train = [
        {"file_name": "00000042_006.png", "syms": ["Fibrosis", "Effusion", "Fibrosis"],
         "boxes": [[632, 721, 909, 969], [0, 0, 10, 20], [129, 611, 474, 909]]},
        {"file_name": "00000050_000.png", "syms": [], "boxes": []},
    ]  # fmt: skip
    test = [{"file_name": "00000099_001.png", "syms": ["Nodule"], "boxes": [[4, 8, 12, 16]]}]
    write_words(root / "train.json", json.dumps(train))
    write_words(root / "test.json", json.dumps(test))
    write_image(root / "train_data" / "00000042_006.png", 1024, 1024)
    write_image(root / "train_data" / "train_data" / "00000050_000.png", 1024, 1024)
    write_image(root / "test_data" / "00000099_001.png", 512, 512)
    return root


def test_chestx_det_rows(tmp_path):
    rows = by_id(convert("chestx-det10", chestx_det(tmp_path / "src")))
    first = rows["00000042_006"]
    assert first.phrases == (
        Phrase("fibrosis", "fibrosis", ((721, 632, 969, 909), (611, 129, 909, 474))),
        Phrase("pleural effusion", "pleural effusion", ((0, 0, 20, 10),)),
    )
    assert (first.patient, first.split, first.size_px) == ("42", "train", (1024, 1024))
    assert present(first) == {"fibrosis", "pleural effusion"}
    assert len(first.labels) == 10
    assert set(rows["00000050_000"].labels.values()) == {"absent"}
    assert "no finding" not in rows["00000050_000"].labels
    assert (rows["00000099_001"].split, rows["00000099_001"].phrases[0].boxes) == ("test", ((4, 2, 8, 6),))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "a.png", "syms": ["Nodule"]}, "entry 0: expected the keys file_name, syms and boxes"),
        ({"file_name": "a.png", "syms": ["Tumour"], "boxes": [[0, 0, 1, 1]]}, "entry 0: unknown class 'Tumour'"),
        ({"file_name": "a.png", "syms": ["Nodule"], "boxes": []}, "entry 0: 1 classes for 0 boxes"),
    ],
)
def test_chestx_det_wrong_entries(entry, message, tmp_path):
    src = chestx_det(tmp_path / "src")
    write_words(src / "train.json", json.dumps([entry]))
    with pytest.raises(InputError, match=message):
        convert("chestx-det10", src)


# --- CheXlocalize

NAMES = ["patient64541_study1_view1_frontal", "patient64541_study1_view2_lateral", "patient64600_study1_view1_frontal"]


def empty_and(**findings: list[int]) -> dict[str, object]:
    """The ten findings of one image on 32 x 40 pixels; those not given are empty."""
    names = ("Airspace Opacity", "Cardiomegaly", "Edema", "Support Devices")
    runs = {name: findings.get(name.replace(" ", "_"), [32 * 40]) for name in names}
    return {name: {"size": [32, 40], "counts": counts} for name, counts in runs.items()}


def chexlocalize(root: Path, *, labels: bool = True) -> Path:
    outlines = {NAMES[0]: empty_and(Cardiomegaly=[33, 2, 30, 2, 1213], Airspace_Opacity=[0, 32, 1248])}
    write_words(root / "CheXlocalize" / "gt_segmentations_val.json", json.dumps(outlines))
    write_words(
        root / "CheXlocalize" / "gt_segmentations_test.json", json.dumps({NAMES[2]: empty_and(Edema=[5, 1, 1274])})
    )
    for name in NAMES:
        part = "test" if "64600" in name else "val"
        write_image(root / "CheXpert" / part / (name.replace("_", "/", 2) + ".jpg"))
    if labels:
        paths = [f"CheXpert-v1.0/valid/{name.replace('_', '/', 2)}.jpg" for name in NAMES[:2]]
        values = chexpert_values(Cardiomegaly="1.0", Lung_Opacity="1.0", Pneumonia="0.0"), chexpert_values(No_Finding=1)
        write_csv(
            root / "CheXpert" / "val_labels.csv", ("Path", *CHEXPERT_COLUMNS),
            *[(path, *row) for path, row in zip(paths, values, strict=True)],
        )  # fmt: skip
    return root


def test_chexlocalize_rows_and_masks(tmp_path):
    src, out = chexlocalize(tmp_path / "src"), tmp_path / "out"
    rows = by_id(convert("chexlocalize", src, out))
    assert list(rows) == NAMES
    first = rows[NAMES[0]]
    folder = f"masks/chexlocalize/{NAMES[0]}"
    assert first.phrases == (
        Phrase("lung opacity", "lung opacity", masks=(f"{folder}/lung_opacity.png",)),
        Phrase("cardiomegaly", "cardiomegaly", masks=(f"{folder}/cardiomegaly.png",)),
    )
    assert first.labels == {"cardiomegaly": "present", "lung opacity": "present", "pneumonia": "absent"}
    assert (first.patient, first.study, first.split, first.view) == ("patient64541", "patient64541_study1", "val", "")
    mask = np.asarray(Image.open(out / first.phrases[1].masks[0]))
    expected = np.zeros((32, 40), dtype=np.uint8)
    expected[[1, 2], 1] = expected[[1, 2], 2] = 255
    np.testing.assert_array_equal(mask, expected)
    assert mask.shape == read_image(first.image).shape == first.size_px
    opacity = np.asarray(Image.open(out / first.phrases[0].masks[0]))
    assert (opacity[:, 0] == 255).all()
    assert (opacity[:, 1:] == 0).all()
    assert (rows[NAMES[1]].phrases, rows[NAMES[1]].view) == ((), "LATERAL")
    assert rows[NAMES[1]].labels == {"no finding": "present"}


def test_chexlocalize_without_label_tables_takes_the_states_from_the_masks(tmp_path):
    rows = by_id(convert("chexlocalize", chexlocalize(tmp_path / "src", labels=False)))
    assert list(rows) == [NAMES[0], NAMES[2]]
    assert rows[NAMES[2]].labels == {
        "lung opacity": "absent", "cardiomegaly": "absent", "edema": "present", "support devices": "absent",
    }  # fmt: skip
    assert rows[NAMES[2]].split == "test"


def test_chexlocalize_on_resized_images_is_refused(tmp_path):
    src = chexlocalize(tmp_path / "src")
    write_image(src / "CheXpert" / "val" / (NAMES[0].replace("_", "/", 2) + ".jpg"), 16, 20)
    with pytest.raises(InputError, match=r"drawn on 32 x 40 pixels, but .* has 16 x 20; use the full-size images"):
        convert("chexlocalize", src)


def test_chexlocalize_damaged_mask(tmp_path):
    src = chexlocalize(tmp_path / "src")
    outlines = {NAMES[0]: {"Edema": {"size": [32, 40], "counts": [5, 5]}}}
    write_words(src / "CheXlocalize" / "gt_segmentations_val.json", json.dumps(outlines))
    with pytest.raises(InputError, match=rf"{NAMES[0]}, Edema: the runs of the mask cover 10 pixels"):
        convert("chexlocalize", src)
