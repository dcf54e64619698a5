"""MS-CXR: phrases of radiology reports with the boxes that radiologists drew for them, on images of MIMIC-CXR.

Layout (columns as in public code that reads versions 0.1 and 1.1.0, keys of the JSON form likewise):

    MS_CXR_Local_Alignment_v1.1.0.csv    dicom_id, category_name, label_text, path, x, y, w, h, image_width,
                                         image_height[, split]: one row per box
    MS_CXR_Local_Alignment_v1.0.0.json   the same in COCO form: images, annotations, categories
    the images of MIMIC-CXR-JPG by the column path (files/p10/...): here, in mimic-cxr-jpg/, or in the folder above

Of several versions the last is read, the CSV before the JSON. Rows of one image with the same words and category are
one phrase with several boxes. Only the categories of an image's phrases are labelled (present), nothing is absent.
`split` is that of the file, which differs from MIMIC-CXR's own: an image that is `train` there may be `test` here, so
check for leaks before training on MIMIC-CXR; without the column it is empty. Boxes are scaled if the images were
resized.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radglint.datasets import chexpert_labels
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import (
    Images,
    box_px,
    missing_file,
    number,
    optional_file,
    raster_size_px,
    read_json,
    read_rows,
)
from radglint.errors import InputError
from radglint.manifest import Box, ManifestRow, Phrase

NAME = "ms-cxr"
LABELS: dict[str, str] = {
    own: chexpert_labels.LABELS[own]
    for own in (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia",
        "Pneumothorax",
    )
}  # fmt: skip

_SPLITS: dict[str, Any] = {
    "": "", "train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test",
}  # fmt: skip
_COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
_Boxes = list[tuple[str, dict[str, str]]]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read MS-CXR.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image, with its phrases.

    Raises:
        InputError: no annotation file, a column or key is missing, a box is impossible, images are missing.
    """
    expects = DATASETS[NAME].expects
    by_image: dict[str, _Boxes] = {}
    for where, row in _rows(src, expects):
        by_image.setdefault(row["dicom_id"], []).append((where, row))
    images = Images(src, expects)
    roots = (src, src / "mimic-cxr-jpg", src.parent, src.parent / "mimic-cxr-jpg")
    for name, boxes in by_image.items():
        listed = boxes[0][1]["path"]
        path = images.find(listed, *(root / listed for root in roots), src / listed.removeprefix("files/"))
        if path is not None:
            yield _row(name, path, boxes)
    images.finish()


def _rows(src: Path, expects: str) -> Iterator[tuple[str, dict[str, str]]]:
    table = optional_file(src, "MS_CXR_Local_Alignment_v*.csv")
    if table is not None:
        yield from read_rows(table, _COLUMNS)
        return
    document = optional_file(src, "MS_CXR_Local_Alignment_v*.json")
    if document is None:
        raise missing_file(src, expects, "MS_CXR_Local_Alignment_v*.csv", "MS_CXR_Local_Alignment_v*.json")
    yield from _coco_rows(document)


def _coco_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The JSON form, as rows of the CSV form."""
    coco = read_json(path, dict)
    try:
        images = {image["id"]: image for image in coco["images"]}
        categories = {category["id"]: category["name"] for category in coco["categories"]}
        for index, mark in enumerate(coco["annotations"]):
            image = images[mark["image_id"]]
            values = (
                Path(image["path"]).stem, categories[mark["category_id"]], mark["label_text"], image["path"],
                *mark["bbox"], image["width"], image["height"],
            )  # fmt: skip
            row = dict(zip(_COLUMNS, map(str, values), strict=True))
            yield f"{path}, annotations[{index}]", row | {"split": str(mark.get("split", ""))}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected COCO images, annotations and categories ({error!r})") from error


def _row(name: str, path: Path, boxes: _Boxes) -> ManifestRow:
    size = raster_size_px(path)
    phrases: dict[tuple[str, str], list[Box]] = {}
    for where, row in boxes:
        if row["category_name"] not in LABELS:
            raise InputError(f"{where}: unknown category {row['category_name']!r}; known are {', '.join(LABELS)}")
        key = row["label_text"], LABELS[row["category_name"]]
        phrases.setdefault(key, []).append(_box(where, row, size))
    where, first = boxes[0]
    split = first.get("split", "").lower()
    if split not in _SPLITS:
        raise InputError(f"{where}, column 'split': expected train, val or test, got {split!r}")
    folders = Path(first["path"]).parts
    return ManifestRow(
        id=name,
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=folders[-3].removeprefix("p"),
        study=folders[-2].removeprefix("s"),
        series=name,
        split=_SPLITS[split],
        labels=dict.fromkeys((label for _, label in phrases), "present"),
        phrases=tuple(Phrase(text, label, tuple(marks)) for (text, label), marks in phrases.items()),
        size_px=size,
    )


def _box(where: str, row: dict[str, str], size: tuple[int, int]) -> Box:
    x, y, w, h = (number(where, row, key) for key in ("x", "y", "w", "h"))
    drawn_on = number(where, row, "image_height"), number(where, row, "image_width")
    return box_px(where, (x, y, x + w, y + h), size, drawn_on)
