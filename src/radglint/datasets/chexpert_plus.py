"""CheXpert Plus: the images of CheXpert with their reports.

Layout (file and column names as in public code that reads it):

    df_chexpert_plus_240401.csv    path_to_image, path_to_dcm, frontal_lateral, ap_pa, deid_patient_id, split, report,
                                   section_findings, section_impression, age, sex, ...
    PNG/train/patientN/studyN/viewN_frontal.png   (also PNG/PNG/, PNGs/, a CheXpert JPEG tree, or DICOM/)
    chexbert_labels/{impression,report,findings}_fixed.json   per line an object: path_to_image, 14 labels (optional)

Labels are taken from the first label file that is there, in the order above: the impression is what the labels of
CheXpert itself were made from. `extra["label_source"]` names the file. Where the sections are empty the whole report
is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from radglint.datasets import chexpert_labels
from radglint.datasets.chexpert import parse_path
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, optional_file, read_json_lines, read_rows, required_file, view
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow

NAME = "chexpert-plus"
LABELS = chexpert_labels.LABELS

_FOLDERS = ("PNG", "PNG/PNG", "PNGs", "", "CheXpert-v1.0", "CheXpert-v1.0-small", "DICOM", "DICOM/Uncompressed")
_SUFFIXES = (".png", ".jpg", ".dcm")
_LABEL_FILES = ("impression_fixed.json", "report_fixed.json", "findings_fixed.json")
_COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "split", "report", "section_findings", "section_impression")


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read CheXpert Plus.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image, train and val.

    Raises:
        InputError: a file or column is missing, a value is unknown, images are missing.
    """
    expects = DATASETS[NAME].expects
    table = required_file(src, expects, "df_chexpert_plus_*.csv")
    source, labels = _labels(src)
    images, tree = Images(src, expects), _Tree(src)
    for where, row in read_rows(table, _COLUMNS):
        if row["split"] not in ("train", "valid"):
            raise InputError(f"{where}, column 'split': expected train or valid, got {row['split']!r}")
        _, patient, study, name = parse_path(where, row["path_to_image"])
        path = images.find(row["path_to_image"], tree.first(row["path_to_image"]))
        if path is None:
            continue
        sections = row["section_findings"], row["section_impression"]
        yield ManifestRow(
            id=f"{patient}_{study}_{name}",
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=patient,
            study=f"{patient}_{study}",
            series=f"{patient}_{study}_{name}",
            split="val" if row["split"] == "valid" else "train",
            view="LATERAL" if row["frontal_lateral"].lower() == "lateral" else view(row["ap_pa"]),
            findings=sections[0],
            impression=sections[1],
            report="" if any(sections) else row["report"],
            labels=labels.get(row["path_to_image"], {}),
            extra={key: row[key] for key in ("age", "sex", "race") if row.get(key)} | {"label_source": source},
        )
    images.finish()


def _labels(src: Path) -> tuple[str, dict[str, dict[str, LabelState]]]:
    """The label file's name and the states by image; nothing if there is none."""
    patterns = [f"{folder}/{name}" for name in _LABEL_FILES for folder in ("chexbert_labels", "CheXpert_Labels", ".")]
    path = optional_file(src, *patterns)
    if path is None:
        return "", {}
    states = {}
    for where, entry in read_json_lines(path):
        if "path_to_image" not in entry:
            raise InputError(f"{where}: no key 'path_to_image'; expected it beside the labels")
        states[str(entry["path_to_image"])] = chexpert_labels.states(where, entry)
    return path.name, states


class _Tree:
    """Where the images lie: the place of the last one found is tried first."""

    def __init__(self, src: Path):
        self._src = src
        self._places = [(folder, suffix) for folder in _FOLDERS for suffix in _SUFFIXES if (src / folder).is_dir()]

    def first(self, listed: str) -> Path | None:
        """The image's file, or None."""
        stem = listed.rsplit(".", 1)[0]
        for place in tuple(self._places):
            path = self._src / place[0] / f"{stem}{place[1]}"
            if path.is_file():
                self._places.remove(place)
                self._places.insert(0, place)
                return path
        return None
