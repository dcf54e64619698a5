"""CheXlocalize: outlines by radiologists of ten findings on the validation and test images of CheXpert.

Layout (names, keys and forms as in the publisher's repository and public code that reads the release):

    CheXlocalize/gt_segmentations_val.json, gt_segmentations_test.json
        {"patient64622_study1_view1_frontal": {"Cardiomegaly": {"size": [h, w], "counts": "..."}, ...}}
    CheXpert/val_labels.csv, test_labels.csv      Path and 14 labels (optional)
    CheXpert/val/, CheXpert/test/                 patientN/studyN/viewN_frontal.jpg

The JSON files may also lie in the folder itself. One part may be missing. The masks are COCO run lengths, see
`rle.decode_coco`; each mask that is not empty is written below `masks/chexlocalize/`. The JSON lists only images with
at least one finding; with the label tables, the others are rows too. Without them, a finding with an empty mask is
absent. `Airspace Opacity` is `lung opacity`. Masks belong to the full-size images: a resized copy is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from radglint.datasets import chexpert_labels
from radglint.datasets.chexpert import parse_path
from radglint.datasets.registry import DATASETS
from radglint.datasets.rle import decode_coco
from radglint.datasets.tables import (
    Images,
    missing_file,
    optional_file,
    raster_size_px,
    read_json,
    read_rows,
    write_mask,
)
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow, Phrase
from radglint.writing import slug

NAME = "chexlocalize"
LABELS: dict[str, str] = {
    own: chexpert_labels.LABELS[chexpert_labels.ALIASES.get(own, own)]
    for own in (
        "Airspace Opacity", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
        "Lung Lesion", "Lung Opacity", "Pleural Effusion", "Pneumothorax", "Support Devices",
    )
}  # fmt: skip

_Part = Literal["val", "test"]
_States = dict[str, LabelState]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read CheXlocalize.

    Args:
        src: its folder, see above.
        out: masks are written to `masks/chexlocalize/` below it.

    Yields:
        One row per image, val then test; one phrase per finding with a mask.

    Raises:
        InputError: no segmentation file, a mask is damaged or of another size, images are missing.
        OutputError: a mask cannot be written.
    """
    expects = DATASETS[NAME].expects
    images = Images(src, expects)
    parts: tuple[_Part, ...] = ("val", "test")
    patterns = {part: [f"{folder}gt_segmentations_{part}.json" for folder in ("CheXlocalize/", "")] for part in parts}
    found = {part: optional_file(src, *patterns[part]) for part in parts}
    if not any(found.values()):
        raise missing_file(src, expects, *(name for names in patterns.values() for name in names[:1]))
    for part in parts:
        path = found[part]
        if path is None:
            continue
        outlines, labels = read_json(path, dict), _labels(src, part)
        for name in dict.fromkeys([*labels, *outlines]):
            folders = name.replace("_", "/", 2) + ".jpg"
            image = images.find(f"{part}/{folders}", *(root / folders for root in _roots(src, part)))
            if image is not None:
                where = f"{path}, {name}"
                masks = _masks(where, outlines.get(name, {}), image, name, out)
                yield _row(part, name, image, labels.get(name), outlines.get(name, {}), masks)
    images.finish()


def _roots(src: Path, part: str) -> list[Path]:
    names = ("val", "valid") if part == "val" else ("test",)
    return [src / folder / name for folder in ("CheXpert", "CheXpert-v1.0", ".") for name in names]


def _labels(src: Path, part: str) -> dict[str, _States]:
    """Image (as the outlines name it) to states; nothing without a table."""
    names = ("val_labels.csv", "valid.csv") if part == "val" else ("test_labels.csv",)
    table = optional_file(src, *(f"{folder}/{name}" for folder in ("CheXpert", "CheXpert-v1.0", ".") for name in names))
    result = {}
    for where, row in read_rows(table, ("Path",)) if table else ():
        _, patient, study, name = parse_path(where, row["Path"])
        result[f"{patient}_{study}_{name}"] = chexpert_labels.states(where, row)
    return result


def _masks(where: str, outlines: dict[str, Any], image: Path, name: str, out: Path) -> dict[str, str]:
    """Manifest label to the mask written; only those that are not empty."""
    written: dict[str, str] = {}
    native = raster_size_px(image) if outlines else (0, 0)
    for own, coded in outlines.items():
        if own not in LABELS:
            raise InputError(f"{where}: unknown finding {own!r}; known are {', '.join(LABELS)}")
        if not isinstance(coded, dict) or not {"size", "counts"} <= coded.keys():
            raise InputError(f"{where}, {own}: expected size and counts")
        size = int(coded["size"][0]), int(coded["size"][1])
        if size != native:
            raise InputError(
                f"{where}, {own}: drawn on {size[0]} x {size[1]} pixels, but {image} has {native[0]} x {native[1]}; "
                "use the full-size images of the release"
            )
        mask = decode_coco(coded["counts"], size, f"{where}, {own}")
        if mask.any():
            label = LABELS[own]
            written[label] = write_mask(out, f"masks/{NAME}/{name}/{slug(label)}.png", mask)
    return written


def _row(
    part: _Part, name: str, image: Path, labels: _States | None, outlines: dict[str, Any], masks: dict[str, str]
) -> ManifestRow:
    patient, study, _ = name.split("_", 2)
    drawn: _States = {LABELS[own]: "present" if LABELS[own] in masks else "absent" for own in outlines}
    return ManifestRow(
        id=name,
        image=str(image),
        modality="CXR",
        dataset=NAME,
        patient=patient,
        study=f"{patient}_{study}",
        series=name,
        split=part,
        view="LATERAL" if name.endswith("lateral") else "",
        labels=drawn if labels is None else labels,
        phrases=tuple(Phrase(label, label, masks=(mask,)) for label, mask in masks.items()),
        size_px=raster_size_px(image),
    )
