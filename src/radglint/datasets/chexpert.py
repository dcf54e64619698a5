"""CheXpert: Stanford's radiographs with labels of a text labeller (train) and of radiologists (validation and test).

Layout (columns and paths as in public code; the test labels' columns read in the published file):

    CheXpert-v1.0[-small]/train.csv, valid.csv     Path, Sex, Age, Frontal/Lateral, AP/PA and 14 labels
    CheXpert-v1.0[-small]/test_labels.csv          Path and 14 labels (one row per image), or
    CheXpert-v1.0[-small]/groundtruth.csv          Study and 14 labels (one row per study)
    CheXpert-v1.0[-small]/{train,valid,test}/patient00001/study1/view1_frontal.jpg

The full-size download in batches is read too: the tables lie in "CheXpert-v1.0 batch 1 (validate & csv)/", the
training images in "CheXpert-v1.0 batch N (train M)/patient00001/...". Each of the three parts may be missing, not all
of them.

Labels: 1 present, 0 absent, -1 uncertain, blank unlabelled. A label is for the study. In the test part the view is
known only as frontal or lateral, so a frontal image has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radglint.datasets import chexpert_labels
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, missing_file, optional_file, read_rows, view
from radglint.errors import InputError
from radglint.manifest import ManifestRow

NAME = "chexpert"
LABELS = chexpert_labels.LABELS

_PATH = re.compile(r"(train|valid|val|test)/(patient\d+)/(study\d+)(?:/(view\d+_(?:frontal|lateral)))?(?:\.\w+)?$")
_SPLITS: dict[str, Any] = {"train": "train", "valid": "val", "val": "val", "test": "test"}
_TABLES = (("train", "train.csv"), ("valid", "valid.csv"), ("test", "test_labels.csv"), ("test", "groundtruth.csv"))


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read CheXpert.

    Args:
        src: the folder of the tables, or the one above it.
        out: not used; nothing is written.

    Yields:
        One row per image: train, then val, then test.

    Raises:
        InputError: no table, a column is missing, a value is unknown, images are missing.
    """
    expects = DATASETS[NAME].expects
    root = _root(src)
    tables = {part: optional_file(root, name) for part, name in reversed(_TABLES) if optional_file(root, name)}
    if not tables:
        raise missing_file(root, expects, *(name for _, name in _TABLES))
    images = Images(root, expects)
    for part in ("train", "valid", "test"):
        path = tables.get(part)
        if path is not None:
            yield from (_by_study if path.name.startswith("groundtruth") else _by_image)(root, path, images)
    images.finish()


def _root(src: Path) -> Path:
    """The folder with the tables."""
    named = [src / "CheXpert-v1.0", src / "CheXpert-v1.0-small", *sorted(src.glob("CheXpert-v1.0 batch 1*"))]
    for folder in (src, *named):
        if any((folder / name).is_file() for _, name in _TABLES):
            return folder
    return src


def parse_path(where: str, path: str) -> tuple[str, str, str, str]:
    """Part, patient, study and view of a path of CheXpert; the view is empty for a study's path.

    Raises:
        InputError: no such path.
    """
    match = _PATH.search(path.replace("\\", "/"))
    if match is None:
        raise InputError(f"{where}: expected .../train|valid|test/patientN/studyN/viewN_frontal.jpg, got {path!r}")
    return match[1], match[2], match[3], match[4] or ""


def _by_image(root: Path, table: Path, images: Images) -> Iterator[ManifestRow]:
    folders = {part: list(_image_folders(root, part)) for part in _SPLITS}
    for where, row in read_rows(table, ("Path", *LABELS)):
        part, patient, study, name = parse_path(where, row["Path"])
        below = f"{patient}/{study}/{name}.jpg"
        path = images.find(f"{part}/{below}", *(folder / below for folder in folders[part]))
        if path is not None:
            yield _manifest_row(where, row, path, part)


def _by_study(root: Path, table: Path, images: Images) -> Iterator[ManifestRow]:
    """One row per image that is there; a study without any is missing."""
    for where, row in read_rows(table, ("Study", *LABELS)):
        part, patient, study, _ = parse_path(where, row["Study"])
        found = sorted((root / part / patient / study).glob("view*.jpg"))
        for image in found or [root / part / patient / study / "view1_frontal.jpg"]:
            path = images.find(f"{part}/{patient}/{study}/{image.name}", image)
            if path is not None:
                yield _manifest_row(where, row, path, part)


def _image_folders(root: Path, part: str) -> Iterator[Path]:
    yield root / part
    if part == "train":
        yield from sorted(root.parent.glob("CheXpert-v1.0 batch * (train *)"))


def _manifest_row(where: str, row: dict[str, str], path: Path, part: str) -> ManifestRow:
    patient, study, name = path.parts[-3], path.parts[-2], path.stem
    is_lateral = name.endswith("lateral")
    return ManifestRow(
        id=f"{patient}_{study}_{name}",
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=patient,
        study=f"{patient}_{study}",
        series=f"{patient}_{study}_{name}",
        split=_SPLITS[part],
        view="LATERAL" if is_lateral else view(row.get("AP/PA", "")),
        labels=chexpert_labels.states(where, row),
        extra={key.lower(): row[key] for key in ("Sex", "Age") if row.get(key)},
    )
