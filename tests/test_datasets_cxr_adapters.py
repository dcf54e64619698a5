"""Adapters of the radiograph sets with reports or labels only, each on a small tree in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_trees import CHEXPERT_COLUMNS, by_id, chexpert_values, convert, write_csv, write_image, write_words
from radglint.datasets.tables import ALLOW_MISSING
from radglint.errors import InputError
from radglint.manifest import ManifestRow

# --- MIMIC-CXR-JPG

METADATA = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows",
            "Columns", "StudyDate", "StudyTime")  # fmt: skip
REPORT = "FINAL REPORT\n FINDINGS:\n Small left effusion.\n\n IMPRESSION:\n Effusion.\n"


def mimic(root: Path, *, labelled_test: bool = True) -> Path:
    images = [
        ("aa-1", "10000032", "50414267", "PA", "train"),
        ("aa-2", "10000032", "50414267", "LATERAL", "train"),
        ("bb-1", "11000033", "50414268", "LAO", "validate"),
        ("cc-1", "19000034", "50414269", "AP", "test"),
    ]
    write_csv(
        root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA,
        *[(i, p, s, "CHEST", v, 3056, 2544, 21800506, "213014.5") for i, p, s, v, _ in images],
    )  # fmt: skip
    write_csv(
        root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"),
        *[(i, s, p, split) for i, p, s, _, split in images],
    )  # fmt: skip
    header = ("subject_id", "study_id", *CHEXPERT_COLUMNS)
    write_csv(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz", header,
        ("10000032", "50414267", *chexpert_values(Pleural_Effusion="1.0", Pneumothorax="0.0", Edema="-1.0")),
        ("11000033", "50414268", *chexpert_values(No_Finding="1.0")),
        ("19000034", "50414269", *chexpert_values(Pneumonia="-1.0")),
    )  # fmt: skip
    write_csv(
        root / "mimic-cxr-2.0.0-negbio.csv.gz", header,
        ("10000032", "50414267", *chexpert_values(Pleural_Effusion="1.0", Edema="1.0")),
    )  # fmt: skip
    if labelled_test:
        names = [name.replace("Lung Opacity", "Airspace Opacity") for name in CHEXPERT_COLUMNS]
        write_csv(
            root / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *names),
            ("50414269", *chexpert_values(Pneumonia="1", Lung_Opacity="1", Fracture="0")),
        )  # fmt: skip
    for i, p, s, _, _ in images:
        write_image(root / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{i}.jpg")
    write_words(root / "mimic-cxr-reports" / "files" / "p10" / "p10000032" / "s50414267.txt", REPORT)
    return root


def test_mimic_row_in_full(tmp_path):
    rows = by_id(convert("mimic-cxr-jpg", mimic(tmp_path / "src")))
    assert rows["aa-1"] == ManifestRow(
        id="aa-1",
        image=str(tmp_path / "src/files/p10/p10000032/s50414267/aa-1.jpg"),
        modality="CXR",
        dataset="mimic-cxr-jpg",
        patient="10000032",
        study="50414267",
        series="aa-1",
        split="train",
        view="PA",
        findings="Small left effusion.",
        impression="Effusion.",
        labels={"edema": "uncertain", "pneumothorax": "absent", "pleural effusion": "present"},
        size_px=(3056, 2544),
        extra={
            "label_source": "chexpert labeller",
            "view_position": "PA",
            "negbio": {"edema": "present", "pleural effusion": "present"},
        },
    )


def test_mimic_views_splits_and_readers_labels(tmp_path):
    rows = by_id(convert("mimic-cxr-jpg", mimic(tmp_path / "src")))
    assert [row.view for row in rows.values()] == ["PA", "LATERAL", "", "AP"]
    assert [row.split for row in rows.values()] == ["train", "train", "val", "test"]
    assert rows["aa-2"].impression == "Effusion."
    assert rows["bb-1"].impression == ""
    assert rows["cc-1"].labels == {"pneumonia": "present", "lung opacity": "present", "fracture": "absent"}
    assert rows["cc-1"].extra["label_source"] == "radiologists"


def test_mimic_without_readers_labels_keeps_those_of_the_labeller(tmp_path):
    rows = by_id(convert("mimic-cxr-jpg", mimic(tmp_path / "src", labelled_test=False)))
    assert rows["cc-1"].labels == {"pneumonia": "uncertain"}


def test_mimic_of_two_versions_is_refused(tmp_path):
    src = mimic(tmp_path / "src")
    write_csv(src / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "split"), ("aa-1", "50414267", "train"))
    with pytest.raises(InputError, match=r"metadata\.csv\.gz, line 3: image aa-2 is not in the split file"):
        convert("mimic-cxr-jpg", src)
    write_csv(src / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "split"), ("aa-1", "50414267", "dev"))
    with pytest.raises(InputError, match="line 2, column 'split': expected train, validate or test, got 'dev'"):
        convert("mimic-cxr-jpg", src)


def test_mimic_with_a_missing_folder(tmp_path, monkeypatch):
    src = mimic(tmp_path / "src")
    (src / "files/p19/p19000034/s50414269/cc-1.jpg").unlink()
    with pytest.raises(InputError, match="1 of 4 listed images are missing"):
        convert("mimic-cxr-jpg", src)
    monkeypatch.setenv(ALLOW_MISSING, "1")
    with pytest.warns(UserWarning, match="left out"):
        assert len(convert("mimic-cxr-jpg", src)) == 3


# --- CheXpert

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_COLUMNS)


def chexpert(root: Path, test_table: str = "test_labels.csv") -> Path:
    top = "CheXpert-v1.0-small"
    write_csv(
        root / top / "train.csv", HEADER,
        (f"{top}/train/patient00001/study1/view1_frontal.jpg", "Female", 68, "Frontal", "AP",
         *chexpert_values(No_Finding="1.0", Pneumothorax="0.0", Support_Devices="1.0")),
        (f"{top}/train/patient00001/study1/view2_lateral.jpg", "Female", 68, "Lateral", "",
         *chexpert_values(Lung_Lesion="-1.0")),
    )  # fmt: skip
    write_csv(
        root / top / "valid.csv", HEADER,
        (f"{top}/valid/patient64541/study1/view1_frontal.jpg", "Male", 73, "Frontal", "PA",
         *chexpert_values(Cardiomegaly="1.0", Edema="0.0")),
    )  # fmt: skip
    values = chexpert_values(Cardiomegaly=1, Fracture=0)
    if test_table == "test_labels.csv":
        rows = [("test/patient64741/study1/view1_frontal.jpg", *values)]
        write_csv(root / top / test_table, ("Path", *CHEXPERT_COLUMNS), *rows)
    else:
        rows = [("CheXpert-v1.0/test/patient64741/study1", *values)]
        write_csv(root / top / test_table, ("Study", *CHEXPERT_COLUMNS), *rows)
        write_image(root / top / "test/patient64741/study1/view2_lateral.jpg")
    for part in ("train/patient00001/study1/view1_frontal", "train/patient00001/study1/view2_lateral",
                 "valid/patient64541/study1/view1_frontal", "test/patient64741/study1/view1_frontal"):  # fmt: skip
        write_image(root / top / f"{part}.jpg")
    return root


def test_chexpert_rows(tmp_path):
    rows = by_id(convert("chexpert", chexpert(tmp_path / "src")))
    assert rows["patient00001_study1_view1_frontal"] == ManifestRow(
        id="patient00001_study1_view1_frontal",
        image=str(tmp_path / "src/CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"),
        modality="CXR",
        dataset="chexpert",
        patient="patient00001",
        study="patient00001_study1",
        series="patient00001_study1_view1_frontal",
        split="train",
        view="AP",
        labels={"no finding": "present", "pneumothorax": "absent", "support devices": "present"},
        extra={"sex": "Female", "age": "68"},
    )
    assert [row.split for row in rows.values()] == ["train", "train", "val", "test"]
    assert [row.view for row in rows.values()] == ["AP", "LATERAL", "PA", ""]
    assert rows["patient00001_study1_view2_lateral"].labels == {"lung lesion": "uncertain"}
    assert rows["patient64741_study1_view1_frontal"].labels == {"cardiomegaly": "present", "fracture": "absent"}


def test_chexpert_labels_of_a_test_study_hold_for_each_of_its_images(tmp_path):
    rows = convert("chexpert", chexpert(tmp_path / "src", "groundtruth.csv") / "CheXpert-v1.0-small")
    test = [row for row in rows if row.split == "test"]
    assert [row.id for row in test] == ["patient64741_study1_view1_frontal", "patient64741_study1_view2_lateral"]
    assert test[0].labels == test[1].labels == {"cardiomegaly": "present", "fracture": "absent"}


def test_chexpert_in_batches(tmp_path):
    tables = tmp_path / "src" / "CheXpert-v1.0 batch 1 (validate & csv)"
    path = "CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg"
    write_csv(tables / "train.csv", HEADER, (path, "Male", 87, "Frontal", "AP", *chexpert_values(Edema=1)))
    image = write_image(tmp_path / "src" / "CheXpert-v1.0 batch 2 (train 1)" / "patient00002/study1/view1_frontal.jpg")
    (row,) = convert("chexpert", tmp_path / "src")
    assert (row.image, row.split, row.labels) == (str(image), "train", {"edema": "present"})


def test_chexpert_wrong_values_name_row_and_column(tmp_path):
    src = chexpert(tmp_path / "src") / "CheXpert-v1.0-small"
    table = write_csv(src / "valid.csv", HEADER, ("valid/patient64541/study1/view1_frontal.jpg", "Male", 73, "Frontal",
                                                  "PA", *chexpert_values(Edema="yes")))  # fmt: skip
    with pytest.raises(
        InputError, match=r"valid\.csv, line 2, column 'Edema': expected 1, 0, -1 or nothing, got 'yes'"
    ):
        convert("chexpert", src)
    write_csv(table, HEADER, ("elsewhere/1.jpg", "Male", 73, "Frontal", "PA", *chexpert_values()))
    with pytest.raises(InputError, match=r"line 2: expected \.\.\./train\|valid\|test/patientN/.*'elsewhere/1\.jpg'"):
        convert("chexpert", src)


# --- CheXpert Plus

PLUS = ("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order",
        "age", "sex", "race", "split", "report", "section_findings", "section_impression")  # fmt: skip


def chexpert_plus(root: Path, folder: str = "PNG", suffix: str = ".png") -> Path:
    stems = ["train/patient42142/study5/view1_frontal", "valid/patient64550/study1/view2_lateral"]
    write_csv(
        root / "df_chexpert_plus_240401.csv", PLUS,
        (f"{stems[0]}.jpg", f"{stems[0]}.dcm", "Frontal", "AP", "patient42142", 5, 59, "Male", "White", "train",
         "NARRATIVE: ... IMPRESSION: Edema.", "Wires.", "Edema."),
        (f"{stems[1]}.jpg", f"{stems[1]}.dcm", "Lateral", "", "patient64550", 1, 60, "Female", "", "valid",
         "Clear lungs.", "", ""),
    )  # fmt: skip
    for stem in stems:
        write_image(root / folder / f"{stem}{suffix}")
    lines = [{"path_to_image": f"{stems[0]}.jpg", "Edema": 1.0, "Fracture": None, "Pneumonia": -1.0}]
    write_words(root / "chexbert_labels" / "impression_fixed.json", "\n".join(map(json.dumps, lines)))
    write_words(root / "chexbert_labels" / "findings_fixed.json", json.dumps(lines[0] | {"Edema": 0.0}))
    return root


@pytest.mark.parametrize(("folder", "suffix"), [("PNG", ".png"), ("PNG/PNG", ".png"), (".", ".jpg")])
def test_chexpert_plus_rows(folder, suffix, tmp_path):
    first, second = convert("chexpert-plus", chexpert_plus(tmp_path / "src", folder, suffix))
    assert first == ManifestRow(
        id="patient42142_study5_view1_frontal",
        image=str(tmp_path / "src" / folder / f"train/patient42142/study5/view1_frontal{suffix}"),
        modality="CXR",
        dataset="chexpert-plus",
        patient="patient42142",
        study="patient42142_study5",
        series="patient42142_study5_view1_frontal",
        split="train",
        view="AP",
        findings="Wires.",
        impression="Edema.",
        labels={"edema": "present", "pneumonia": "uncertain"},
        extra={"age": "59", "sex": "Male", "race": "White", "label_source": "impression_fixed.json"},
    )
    assert (second.split, second.view, second.report, second.labels) == ("val", "LATERAL", "Clear lungs.", {})


def test_chexpert_plus_wrong_label_file(tmp_path):
    src = chexpert_plus(tmp_path / "src")
    write_words(src / "chexbert_labels" / "impression_fixed.json", '{"Edema": 1}')
    with pytest.raises(InputError, match=r"impression_fixed\.json, line 1: no key 'path_to_image'"):
        convert("chexpert-plus", src)


# --- PadChest

PADCHEST = ("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "Projection",
            "ReportID", "Report", "MethodLabel", "Labels")  # fmt: skip


def padchest(root: Path) -> Path:
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    write_csv(
        root / name, PADCHEST,
        (0, "1_a.png", 0, 20140915, "s1", "p1", 1930.0, "PA", 1, "sin hallazg", "Physician", "['normal']"),
        (1, "2_b.png", "54.0", 20140915, "s2", "p2", 1930.0, "AP_horizontal", 2, "derram pleural", "RNN_model",
         "['pleural effusion', ' pneumonia', '', 'cosmic dust']"),
        (2, "3_c.png", 1, 20140915, "s3", "p2", 1930.0, "L", 3, "sin cambi", "Physician", "['unchanged', 'NSG tube']"),
        (3, "4_d.png", 1, 20140915, "s4", "p3", 1930.0, "COSTAL", 4, "nan", "RNN_model", "nan"),
    )  # fmt: skip
    for image in ("0/1_a.png", "54/2_b.png", "images/1/3_c.png", "4_d.png"):
        write_image(root / image)
    return root


def test_padchest_rows(tmp_path):
    rows = by_id(convert("padchest", padchest(tmp_path / "src")))
    normal = rows["1_a"]
    assert normal.image == str(tmp_path / "src/0/1_a.png")
    assert (normal.patient, normal.study, normal.split, normal.view) == ("p1", "s1", "", "PA")
    assert (normal.report, normal.findings) == ("sin hallazg", "")
    assert normal.labels["no finding"] == "present"
    assert normal.labels["pleural effusion"] == "absent"
    assert len(normal.labels) == 190
    assert normal.extra == {"manual": True, "projection": "PA", "remarks": [], "unknown_labels": []}
    effusion = rows["2_b"]
    assert {label for label, state in effusion.labels.items() if state == "present"} == {
        "pleural effusion",
        "pneumonia",
    }
    assert effusion.view == "AP"
    assert (effusion.extra["manual"], effusion.extra["unknown_labels"]) == (False, ["cosmic dust"])


def test_padchest_images_that_were_not_read_in_full_have_no_absent_labels(tmp_path):
    rows = by_id(convert("padchest", padchest(tmp_path / "src")))
    assert rows["3_c"].labels == {"nsg tube": "present"}
    assert rows["3_c"].extra["remarks"] == ["unchanged"]
    assert rows["3_c"].view == "LATERAL"
    assert (rows["4_d"].labels, rows["4_d"].report, rows["4_d"].view) == ({}, "", "")


def test_padchest_damaged_list_names_the_row(tmp_path):
    src = padchest(tmp_path / "src")
    row = (0, "1_a.png", 0, 20140915, "s1", "p1", 1930.0, "PA", 1, "x", "Physician", "['normal'")
    write_csv(src / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", PADCHEST, row)
    with pytest.raises(InputError, match=r"line 2, column 'Labels': expected a list such as \['normal'\]"):
        convert("padchest", src)


# --- Open-i

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <meta type="rr"/>
  <uId id="CXR7"/>
  <MedlineCitation><Article><Abstract>
    <AbstractText Label="COMPARISON">None.</AbstractText>
    <AbstractText Label="INDICATION">Cough</AbstractText>
    <AbstractText Label="FINDINGS">Mild  cardiomegaly.
      Thick pleura.</AbstractText>
    <AbstractText Label="IMPRESSION">Cardiomegaly.</AbstractText>
  </Abstract></Article></MedlineCitation>
  <MeSH>
    <major>Cardiomegaly/mild</major>
    <major>Thickening/pleura/apex/left</major>
    <major>Markings/lung</major>
    <automatic>heart</automatic>
  </MeSH>
  <parentImage id="CXR7_IM-2263-1001"><caption>PA</caption></parentImage>
  <parentImage id="CXR7_IM-2263-2001"><caption>Lateral</caption></parentImage>
</eCitation>
"""


def openi_xml(root: Path) -> Path:
    write_words(root / "ecgen-radiology" / "7.xml", XML)
    bare = "<eCitation><uId id='CXR12'/><MeSH><major>No Indexing</major></MeSH>{}</eCitation>"
    write_words(root / "ecgen-radiology" / "12.xml", bare.format("<parentImage id='CXR12_IM-1-1001'/>"))
    write_words(root / "ecgen-radiology" / "100.xml", bare.format(""))
    for name in ("CXR7_IM-2263-1001", "CXR7_IM-2263-2001", "CXR12_IM-1-1001"):
        write_image(root / "NLMCXR_png" / f"{name}.png")
    return root


def test_openi_reports_as_published(tmp_path):
    first, second, third = convert("openi", openi_xml(tmp_path / "src"))
    assert (first.id, first.patient, first.study, first.view, first.split) == (
        "CXR7_IM-2263-1001",
        "CXR7",
        "CXR7",
        "",
        "",
    )
    assert first.image == str(tmp_path / "src/NLMCXR_png/CXR7_IM-2263-1001.png")
    assert (first.findings, first.impression) == ("Mild cardiomegaly. Thick pleura.", "Cardiomegaly.")
    present = {label for label, state in first.labels.items() if state == "present"}
    assert present == {"cardiomegaly", "pleural thickening"}
    assert first.labels["no finding"] == first.labels["pneumothorax"] == "absent"
    assert first.extra["mesh"] == ["Cardiomegaly/mild", "Thickening/pleura/apex/left", "Markings/lung"]
    assert second.findings == first.findings
    assert (third.id, third.labels) == ("CXR12_IM-1-1001", {})


def test_openi_tables(tmp_path):
    src = tmp_path / "src"
    header = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
    write_csv(
        src / "indiana_reports.csv", header,
        (1, "normal", "normal", "PA", "TB", "None.", "Clear.", "Normal."),
        (2, "Catheters, Indwelling/right;Pulmonary Emphysema", "x", "PA", "", "", "", "Emphysema."),
    )  # fmt: skip
    projections = [(1, "1_IM-0001-4001.dcm.png", "Frontal"), (1, "1_IM-0001-3001.dcm.png", "Lateral"),
                   (2, "2_IM-0652-1001.dcm.png", "Frontal")]  # fmt: skip
    write_csv(src / "indiana_projections.csv", ("uid", "filename", "projection"), *projections)
    for _, name, _ in projections:
        write_image(src / "images" / "images_normalized" / name)
    rows = by_id(convert("openi", src))
    assert list(rows) == ["CXR1_IM-0001-4001", "CXR1_IM-0001-3001", "CXR2_IM-0652-1001"]
    assert [row.view for row in rows.values()] == ["", "LATERAL", ""]
    assert rows["CXR1_IM-0001-4001"].labels["no finding"] == "present"
    second = rows["CXR2_IM-0652-1001"]
    assert (second.patient, second.findings, second.impression) == ("CXR2", "", "Emphysema.")
    assert {k for k, v in second.labels.items() if v == "present"} == {"indwelling catheter", "emphysema"}
    write_csv(src / "indiana_projections.csv", ("uid", "filename", "projection"), (9, "9.png", "Frontal"))
    with pytest.raises(InputError, match=r"line 2: no report '9' in indiana_reports\.csv"):
        convert("openi", src)


def test_openi_damaged_report(tmp_path):
    src = openi_xml(tmp_path / "src")
    write_words(src / "ecgen-radiology" / "7.xml", XML[:200])
    with pytest.raises(InputError, match=r"7\.xml: cannot be read as XML"):
        convert("openi", src)


# --- COVID-19

COVID = ("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "view", "modality", "date",
         "location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes", "")  # fmt: skip


def covid_line(patient: int, finding: str, view: str, modality: str, name: str) -> tuple[object, ...]:
    folder = "images" if modality == "X-ray" else "volumes"
    return (patient, 3, "M", 54, finding, "Y", "Y", view, modality, 2020, "Goyang", folder, name, "", "https://x.org",
            "CC BY-NC-SA", "Small consolidation.", "", "")  # fmt: skip


def test_covid_collection(tmp_path):
    src = tmp_path / "src"
    write_csv(
        src / "metadata.csv", COVID,
        covid_line(17, "Pneumonia/Viral/COVID-19", "AP", "X-ray", "a-1.jpg"),
        covid_line(17, "Pneumonia/Viral/COVID-19", "Axial", "CT", "a.nii.gz"),
        covid_line(18, "No Finding", "L", "X-ray", "b.png"),
        covid_line(19, "todo", "AP Supine", "X-ray", "c.png"),
        covid_line(20, "Pneumonia/Bacterial/Streptococcus", "PA", "X-ray", "d.png"),
    )  # fmt: skip
    for name in ("a-1.jpg", "b.png", "c.png", "d.png"):
        write_image(src / "images" / name)
    write_words(
        src / "annotations" / "covid-severity-scores.csv",
        "## License: CC BY-SA\n## extent, opacity\nfilename,geographic_mean,opacity_mean\na-1.jpg,6.0,4.3\n",
    )
    rows = by_id(convert("covid-19-cxr", src))
    assert list(rows) == ["a-1", "b", "c", "d"]
    covid = rows["a-1"]
    assert (covid.patient, covid.study, covid.view, covid.report) == ("17", "17_3", "AP", "")
    assert {k for k, v in covid.labels.items() if v == "present"} == {"covid-19", "viral pneumonia", "pneumonia"}
    assert covid.labels["bacterial pneumonia"] == "absent"
    assert (covid.extra["license"], covid.extra["clinical_notes"]) == ("CC BY-NC-SA", "Small consolidation.")
    assert (covid.extra["extent_0_to_8"], covid.extra["opacity_0_to_6"]) == (6.0, 4.3)
    assert {k for k, v in rows["b"].labels.items() if v == "present"} == {"no finding"}
    assert (rows["c"].labels, rows["c"].view) == ({}, "AP")
    assert {k for k, v in rows["d"].labels.items() if v == "present"} == {"pneumonia", "bacterial pneumonia"}


def test_covid_collection_in_its_first_form(tmp_path):
    src = tmp_path / "src"
    header = ("Patientid", "offset", "sex", "age", "finding", "survival", "view", "date", "location", "filename", "doi",
              " url", "license", "notes")  # fmt: skip
    write_csv(
        src / "metadata.csv", header,
        (2, 0, "M", 65, "COVID-19, ARDS", "Y", "PA", 2020, "", "x.jpeg", "", "https://x.org", "", "Opacities."),
        (2, 3, "M", 65, "COVID-19", "Y", "CT", 2020, "", "y.jpeg", "", "https://x.org", "", ""),
    )  # fmt: skip
    write_image(src / "images" / "x.jpeg")
    (row,) = convert("covid-19-cxr", src)
    present = {k for k, v in row.labels.items() if v == "present"}
    assert present == {"covid-19", "acute respiratory distress syndrome", "pneumonia", "viral pneumonia"}
    assert row.extra["clinical_notes"] == "Opacities."
    write_csv(src / "metadata.csv", ("id", "view"), (1, "PA"))
    with pytest.raises(InputError, match=r"metadata\.csv: no column filename, finding, patientid"):
        convert("covid-19-cxr", src)


def test_covid_rural(tmp_path):
    root = tmp_path / "src" / "covid_rural_annot"
    names = [f"COVID-19-AR-1640648{n}_01-15-2012-XR" for n in range(3)]
    for name in names:
        write_image(root / "jpgs" / f"{name}.jpg", 20, 30)
    for name in names[:2]:
        write_words(root / "jpgs" / "jsons" / f"{name}.json", "{}")
    mask = write_image(root / "pngs_masks" / f"{names[0]}.png", 20, 30)
    rows = convert("covid-19-rural", tmp_path / "src")
    assert [dict(row.labels).get("lung opacity") for row in rows] == ["present", "absent", None]
    assert {row.labels["covid-19"] for row in rows} == {"present"}
    assert (rows[0].patient, rows[0].study) == ("COVID-19-AR-16406480", "COVID-19-AR-16406480_01-15-2012")
    assert rows[0].size_px == (20, 30)
    assert [phrase.masks for phrase in rows[0].phrases] == [(str(mask),)]
    assert rows[1].phrases == ()
    write_image(mask, 10, 30)
    with pytest.raises(InputError, match=r"the mask has \(10, 30\) pixels, the image \(20, 30\)"):
        convert("covid-19-rural", root)
