"""RSNA Pneumonia Detection Challenge (2018): 26,684 images of NIH ChestX-ray14 with boxes around suspected pneumonia.

Layout (names and columns as in public code; the classes and the size of 1024 x 1024 likewise):

    stage_2_train_labels.csv          patientId, x, y, width, height, Target: one row per box, blank where Target is 0
    stage_2_detailed_class_info.csv   patientId, class: "Lung Opacity", "No Lung Opacity / Not Normal" or "Normal"
    stage_2_train_images/PATIENT.dcm
    pneumonia-challenge-dataset-mappings_2018.json (optional)   [{"subset_img_id": ..., "img_id": "00000013_005.png"}]

`pneumonia` is the Target, what the readers called an opacity suspicious for it. The class "Normal" alone is `no
finding`; all images that are not normal have `no finding` absent. With the mapping file, which RSNA gives out beside
the data, the patient is that of ChestX-ray14, so that leaks between the two can be found; without it each image is a
patient. Only the part with public answers is read: it is all `train`, and studies divide it in their own ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from radglint.datasets.nih_cxr14 import patient_of
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import (
    Images,
    box_px,
    dicom_header,
    number,
    optional_file,
    read_json,
    read_rows,
    required_file,
)
from radglint.errors import InputError
from radglint.manifest import ManifestRow, Phrase

NAME = "rsna-pneumonia"
LABELS: dict[str, str] = {"Pneumonia": "pneumonia", "Normal": "no finding"}

_CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
_Marks = dict[str, list[tuple[str, tuple[float, float, float, float]]]]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read the RSNA challenge.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image; positive ones with one phrase that holds all boxes.

    Raises:
        InputError: a file or column is missing, the tables contradict each other, images are missing.
    """
    expects = DATASETS[NAME].expects
    marks = _marks(required_file(src, expects, "stage_2_train_labels.csv"))
    classes = _classes(required_file(src, expects, "stage_2_detailed_class_info.csv"))
    origin = _origin(optional_file(src, "pneumonia-challenge-dataset-mappings_2018.json"))
    images = Images(src, expects)
    for name, boxes in marks.items():
        listed = f"stage_2_train_images/{name}.dcm"
        path = images.find(listed, src / listed)
        if path is None:
            continue
        if name not in classes:
            raise InputError(f"{src}: {name} has labels but no line in stage_2_detailed_class_info.csv")
        header, source = dicom_header(path), origin.get(name, "")
        drawn = tuple(box_px(where, corners, header["size_px"]) for where, corners in boxes)
        yield ManifestRow(
            id=name,
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=patient_of(source) if source else name,
            study=name,
            series=name,
            split="train",
            view=header["view"],
            labels={
                "pneumonia": "present" if drawn else "absent",
                "no finding": "present" if classes[name] == "Normal" else "absent",
            },
            phrases=(Phrase("pneumonia", "pneumonia", drawn),) if drawn else (),
            size_px=header["size_px"],
            extra={"class": classes[name]} | ({"nih_image": source} if source else {}),
        )
    images.finish()


def _marks(path: Path) -> _Marks:
    """Image to its boxes (where, corners x0 y0 x1 y1); an empty list for a negative one."""
    result: _Marks = defaultdict(list)
    for where, row in read_rows(path, ("patientId", "x", "y", "width", "height", "Target")):
        boxes = result[row["patientId"]]
        if row["Target"] == "1":
            x, y, w, h = (number(where, row, key) for key in ("x", "y", "width", "height"))
            boxes.append((where, (x, y, x + w, y + h)))
        elif row["Target"] != "0":
            raise InputError(f"{where}, column 'Target': expected 0 or 1, got {row['Target']!r}")
    return result


def _classes(path: Path) -> dict[str, str]:
    result = {}
    for where, row in read_rows(path, ("patientId", "class")):
        if row["class"] not in _CLASSES:
            raise InputError(f"{where}, column 'class': expected one of {', '.join(_CLASSES)}, got {row['class']!r}")
        result[row["patientId"]] = row["class"]
    return result


def _origin(path: Path | None) -> dict[str, str]:
    """Image to its name in ChestX-ray14."""
    entries = read_json(path, list) if path else []
    return {entry["subset_img_id"]: entry["img_id"] for entry in entries if "subset_img_id" in entry}
