"""VinDr-CXR: 18,000 radiographs of Hanoi with boxes for 22 findings and 6 diagnoses, drawn by radiologists.

Layout (names, columns and the two spellings of "Other diseases" as in public code):

    annotations/image_labels_train.csv   image_id, rad_id, 28 labels of 0 or 1: one row per image and reader
    annotations/image_labels_test.csv    image_id, 28 labels: one row per image
    annotations/annotations_train.csv    image_id, rad_id, class_name, x_min, y_min, x_max, y_max
    annotations/annotations_test.csv     the same without rad_id
    train/IMAGE.dicom, test/IMAGE.dicom  (also .dcm)

Each training image was read by three radiologists on their own, each test image by five who agreed. Our choice for
the training part: a label has the state that most readers gave it, and is uncertain where they are split evenly; the
boxes of all readers are kept for a label that is present. Nothing is lost: `extra["votes"]` counts the readers who
said yes, `extra["readers"]` all of them, and `extra["other_boxes"]` holds the boxes of labels that were outvoted, so
another rule can be applied. The release has no patient numbers: each image counts as a patient. All images are PA;
the files' own headers are read for the size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, box_px, dicom_header, number, read_rows, required_file
from radglint.errors import InputError
from radglint.manifest import Box, LabelState, ManifestRow, Phrase

NAME = "vindr-cxr"
LABELS: dict[str, str] = {
    "No finding": "no finding",
    "Aortic enlargement": "aortic enlargement",
    "Atelectasis": "atelectasis",
    "Calcification": "calcification",
    "Cardiomegaly": "cardiomegaly",
    "Clavicle fracture": "clavicle fracture",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Emphysema": "emphysema",
    "Enlarged PA": "enlarged pulmonary artery",
    "ILD": "interstitial lung disease",
    "Infiltration": "infiltration",
    "Lung Opacity": "lung opacity",
    "Lung cavity": "lung cavity",
    "Lung cyst": "lung cyst",
    "Mediastinal shift": "mediastinal shift",
    "Nodule/Mass": "nodule or mass",
    "Pleural effusion": "pleural effusion",
    "Pleural thickening": "pleural thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary fibrosis": "pulmonary fibrosis",
    "Rib fracture": "rib fracture",
    "Other lesion": "other lesion",
    "COPD": "copd",
    "Lung tumor": "lung tumor",
    "Pneumonia": "pneumonia",
    "Tuberculosis": "tuberculosis",
    "Other diseases": "other diseases",
}

_ALIASES = {"Other disease": "Other diseases"}
_Corners = tuple[float, float, float, float]
_Marks = dict[str, list[tuple[str, str, _Corners]]]
_Part = Literal["train", "test"]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read VinDr-CXR.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image, train then test.

    Raises:
        InputError: a file or column is missing, a value is unknown, a box is impossible, images are missing.
    """
    expects = DATASETS[NAME].expects
    images = Images(src, expects)
    parts: tuple[_Part, ...] = ("train", "test")
    for part in parts:
        annotations = src / "annotations"
        answers = _answers(required_file(annotations, expects, f"image_labels_{part}.csv"))
        marks = _marks(required_file(annotations, expects, f"annotations_{part}.csv"))
        for name, votes in answers.items():
            candidates = (src / part / f"{name}{suffix}" for suffix in (".dicom", ".dcm"))
            path = images.find(f"{part}/{name}.dicom", *candidates)
            if path is not None:
                yield _row(part, name, path, votes, marks.get(name, []))
    images.finish()


def _answers(path: Path) -> dict[str, list[dict[str, str]]]:
    """Image to one row per reader (one row, if they agreed)."""
    result: dict[str, list[dict[str, str]]] = defaultdict(list)
    columns = ("image_id", *(name for name in LABELS if name != "Other diseases"))
    for where, row in read_rows(path, columns):
        for column, value in row.items():
            if _ALIASES.get(column, column) in LABELS and value not in ("0", "1", "0.0", "1.0", ""):
                raise InputError(f"{where}, column {column!r}: expected 0, 1 or nothing, got {value!r}")
        result[row["image_id"]].append({_ALIASES.get(column, column): value for column, value in row.items()})
    return result


def _marks(path: Path) -> _Marks:
    """Image to (where, manifest label, corners x0 y0 x1 y1); rows that say "No finding" have no box."""
    result: _Marks = defaultdict(list)
    sides = ("x_min", "y_min", "x_max", "y_max")
    for where, row in read_rows(path, ("image_id", "class_name", *sides)):
        own = _ALIASES.get(row["class_name"], row["class_name"])
        if own not in LABELS:
            raise InputError(f"{where}: unknown class {own!r}; known are {', '.join(LABELS)}")
        if row["x_min"]:
            x0, y0, x1, y1 = (number(where, row, side) for side in sides)
            result[row["image_id"]].append((where, LABELS[own], (x0, y0, x1, y1)))
    return result


def _row(part: _Part, name: str, path: Path, answers: list[dict[str, str]], marks: list[Any]) -> ManifestRow:
    size = dicom_header(path)["size_px"]
    states, votes = majority(answers)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for where, label, corners in marks:
        boxes[label].append(box_px(where, corners, size))
    outvoted = {label: of_label for label, of_label in boxes.items() if states.get(label) != "present"}
    return ManifestRow(
        id=name,
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=name,
        study=name,
        series=name,
        split=part,
        view="PA",
        labels=states,
        phrases=tuple(Phrase(label, label, tuple(b)) for label, b in boxes.items() if label not in outvoted),
        size_px=size,
        extra={"readers": len(answers), "votes": votes} | ({"other_boxes": outvoted} if outvoted else {}),
    )


def majority(answers: list[dict[str, str]]) -> tuple[dict[str, LabelState], dict[str, int]]:
    """The state that most readers gave a label (uncertain if they are split evenly), and who said yes.

    Args:
        answers: per reader, own label name to "0", "1" or nothing.

    Returns:
        States, and the count of readers who said yes for each label with any.
    """
    states: dict[str, LabelState] = {}
    votes: dict[str, int] = {}
    for own, label in LABELS.items():
        given = [float(answer[own]) for answer in answers if answer.get(own)]
        yes = sum(value == 1 for value in given)
        if given:
            states[label] = "uncertain" if 2 * yes == len(given) else "present" if 2 * yes > len(given) else "absent"
        if yes:
            votes[label] = yes
    return states, votes
