"""ChestX-Det10: 3,543 radiographs of NIH ChestX-ray14 with boxes of ten findings, drawn by three radiologists.

Layout (keys, classes and the sample from the publisher's own page; the folder names as in public code):

    train.json, test.json       [{"file_name": "00000042_006.png", "syms": ["Fibrosis"], "boxes": [[x1, y1, x2, y2]]}]
    train_data/, test_data/     the images (also train/ and test/, one folder deeper, or the folders of ChestX-ray14)

`syms[i]` is the class of `boxes[i]`. Every image was read for all ten classes, so one that is not listed is absent;
no class says that an image is normal. The right and lower side of a box are taken as its end (not part of it). The
patient is that of ChestX-ray14. Boxes are drawn on 1024 x 1024 pixels; they are scaled if the files were resized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from radglint.datasets.nih_cxr14 import image_folders, patient_of
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, box_px, listed_states, raster_size_px, read_json, required_file
from radglint.errors import InputError
from radglint.manifest import Box, ManifestRow, Phrase

NAME = "chestx-det10"
LABELS: dict[str, str] = {
    "Atelectasis": "atelectasis",
    "Calcification": "calcification",
    "Consolidation": "consolidation",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Fracture": "fracture",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pneumothorax": "pneumothorax",
}

_DRAWN_ON_PX = (1024, 1024)
_Part = Literal["train", "test"]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read ChestX-Det10.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image, train then test; one phrase per class, with all its boxes.

    Raises:
        InputError: a file or key is missing, a class is unknown, a box is impossible, images are missing.
    """
    expects = DATASETS[NAME].expects
    images = Images(src, expects)
    parts: tuple[_Part, ...] = ("train", "test")
    for part in parts:
        document = required_file(src, expects, f"{part}.json")
        folders = [*_folders(src, part), *image_folders(src)]
        for index, entry in enumerate(read_json(document, list)):
            where = f"{document}, entry {index}"
            name, marks = _entry(where, entry)
            path = images.find(f"{part}_data/{name}", *(folder / name for folder in folders))
            if path is not None:
                yield _row(where, part, name, path, marks)
    images.finish()


def _folders(src: Path, part: str) -> list[Path]:
    return [src / name for name in (f"{part}_data", f"{part}_data/{part}_data", f"{part}_data/{part}", part)]


def _entry(where: str, entry: Any) -> tuple[str, list[tuple[str, list[float]]]]:
    """File name and (manifest label, corners) of each mark."""
    if not isinstance(entry, dict) or not {"file_name", "syms", "boxes"} <= entry.keys():
        raise InputError(f"{where}: expected the keys file_name, syms and boxes")
    syms, boxes = entry["syms"], entry["boxes"]
    unknown = [name for name in syms if name not in LABELS]
    if unknown:
        raise InputError(f"{where}: unknown class {unknown[0]!r}; known are {', '.join(LABELS)}")
    if len(syms) != len(boxes) or any(len(box) != 4 for box in boxes):
        raise InputError(f"{where}: {len(syms)} classes for {len(boxes)} boxes; expected one box of 4 numbers each")
    return entry["file_name"], [(LABELS[name], box) for name, box in zip(syms, boxes, strict=True)]


def _row(where: str, part: _Part, name: str, path: Path, marks: list[tuple[str, list[float]]]) -> ManifestRow:
    size = raster_size_px(path)
    boxes: dict[str, list[Box]] = defaultdict(list)
    for label, corners in marks:
        boxes[label].append(box_px(where, corners, size, _DRAWN_ON_PX))
    return ManifestRow(
        id=name.rsplit(".", 1)[0],
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=patient_of(name),
        study=name.rsplit(".", 1)[0],
        series=name,
        split=part,
        labels=listed_states(LABELS, boxes),
        phrases=tuple(Phrase(label, label, tuple(of_label)) for label, of_label in boxes.items()),
        size_px=size,
    )
