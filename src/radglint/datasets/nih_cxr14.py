"""NIH ChestX-ray14: 112,120 frontal radiographs with 14 text-mined labels, and boxes for 880 of them.

Layout (names and columns as in public code; the label "Infiltrate" of the box file from memory):

    Data_Entry_2017_v2020.csv or Data_Entry_2017.csv   Image Index, Finding Labels (a|b), Follow-up #, Patient ID,
                                                       Patient Age, Patient Gender, View Position, ...
    train_val_list.txt, test_list.txt                  one image name per line
    BBox_List_2017.csv (optional)                      image, label, x, y, w, h; its header is broken, read by position
    images_001/images/00000001_000.png to images_012/images/..., or images/...

The labels are what a program found in the reports, which are not public. A label that is not listed counts as absent,
as everywhere in the field; about one in ten is wrong. The official list does not divide train from validation: every
image of train_val_list.txt is `train`. Boxes were drawn on 1024 x 1024 pixels; they are scaled if the files were
resized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import (
    Images,
    box_px,
    listed_states,
    number,
    optional_file,
    raster_size_px,
    read_rows,
    required_file,
    view,
)
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow, Phrase

NAME = "nih-chestxray14"
LABELS: dict[str, str] = {
    "No Finding": "no finding",
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}

_ALIASES = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}
_DRAWN_ON_PX = (1024, 1024)
_BOX_COLUMNS = ("image", "label", "x", "y", "w", "h")
_Mark = tuple[str, str, tuple[float, float, float, float]]
_Marks = dict[str, list[_Mark]]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read ChestX-ray14.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image of the table; phrases for the images with boxes, one per label.

    Raises:
        InputError: a file or column is missing, a label is unknown, a box is impossible, images are missing.
    """
    expects = DATASETS[NAME].expects
    table = required_file(src, expects, "Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv")
    splits = _splits(src, expects)
    marks = _marks(optional_file(src, "BBox_List_2017.csv"))
    images, folders = Images(src, expects), image_folders(src)
    columns = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
    for where, row in read_rows(table, columns):
        name = row["Image Index"]
        path = images.find(name, *(folder / name for folder in folders))
        if path is None:
            continue
        if name not in splits:
            raise InputError(f"{where}: {name} is neither in train_val_list.txt nor in test_list.txt")
        size = raster_size_px(path) if name in marks else None
        patient = patient_of(name)
        phrases = _phrases(marks[name], size) if size else ()
        states = listed_states(LABELS, [_label(where, text) for text in row["Finding Labels"].split("|")])
        yield ManifestRow(
            id=name.rsplit(".", 1)[0],
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=patient,
            study=f"{patient}_{row['Follow-up #']}",
            series=name,
            split=splits[name],
            view=view(row["View Position"]),
            labels=_not_denied(states, phrases),
            phrases=phrases,
            size_px=size,
            extra={"age": row.get("Patient Age", ""), "sex": row.get("Patient Gender", row.get("Patient Sex", ""))},
        )
    images.finish()


def _not_denied(states: Mapping[str, LabelState], phrases: Sequence[Phrase]) -> dict[str, LabelState]:
    """A finding that a radiologist drew but the report's labels leave out is unlabelled, not absent."""
    drawn = {phrase.label for phrase in phrases}
    return {label: state for label, state in states.items() if state != "absent" or label not in drawn}


def patient_of(name: str) -> str:
    """The patient in an image's name: "00000013_005.png" is patient 13, as in the column Patient ID."""
    digits = name.split("_")[0]
    return str(int(digits)) if digits.isdecimal() else digits


def image_folders(src: Path) -> list[Path]:
    """Folders that may hold images, those of the published archives first."""
    return [*sorted(src.glob("images_0*/images")), *sorted(src.glob("images_0*")), src / "images", src]


def _label(where: str, text: str) -> str:
    own = _ALIASES.get(text.strip(), text.strip())
    if own not in LABELS:
        raise InputError(f"{where}: unknown label {text!r}; known are {', '.join(LABELS)}")
    return LABELS[own]


def _splits(src: Path, expects: str) -> dict[str, Any]:
    """Image to train or test."""
    result: dict[str, Any] = {}
    for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
        path = required_file(src, expects, name)
        result |= dict.fromkeys(path.read_text(encoding="utf-8").split(), split)
    return result


def _marks(path: Path | None) -> _Marks:
    """Image to (where, label, corners x0 y0 x1 y1 on 1024 pixels)."""
    result: _Marks = defaultdict(list)
    for where, row in read_rows(path, (), names=_BOX_COLUMNS) if path else ():
        x, y, w, h = (number(where, row, key) for key in ("x", "y", "w", "h"))
        result[row["image"]].append((where, _label(where, row["label"]), (x, y, x + w, y + h)))
    return dict(result)


def _phrases(marks: list[_Mark], size: tuple[int, int]) -> tuple[Phrase, ...]:
    boxes = defaultdict(list)
    for where, label, corners in marks:
        boxes[label].append(box_px(where, corners, size, _DRAWN_ON_PX))
    return tuple(Phrase(label, label, tuple(of_label)) for label, of_label in boxes.items())
