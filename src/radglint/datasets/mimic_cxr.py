"""MIMIC-CXR-JPG: radiographs with labels of two text labellers, and the reports of MIMIC-CXR.

Layout (file names as in public code that reads version 2.1.0; the reports' tree as in public code):

    files/p10/p10000032/s50414267/DICOM_ID.jpg
    mimic-cxr-2.0.0-metadata.csv[.gz]      dicom_id, subject_id, study_id, ViewPosition, Rows, Columns, ...
    mimic-cxr-2.0.0-split.csv[.gz]         dicom_id, study_id, subject_id, split (train, validate, test)
    mimic-cxr-2.0.0-chexpert.csv[.gz]      subject_id, study_id and 14 labels: 1, 0, -1 or blank
    mimic-cxr-2.0.0-negbio.csv[.gz]        the same from the other labeller (optional)
    mimic-cxr-2.1.0-test-set-labeled.csv   study_id and 14 labels by radiologists (optional)
    mimic-cxr-reports/files/p10/p10000032/s50414267.txt   (optional; also reports/files/ or files/)

Labels are those of the CheXpert labeller; where radiologists have labelled a study, theirs replace them.
`extra["label_source"]` says which, `extra["negbio"]` holds the other labeller's. A label is for the study, so a
lateral view carries it too. `size_px` is the original image's; a resized copy of the data has another size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radglint.datasets import chexpert_labels
from radglint.datasets.registry import DATASETS
from radglint.datasets.report_text import ReportParts, report_parts
from radglint.datasets.tables import Images, number, optional_file, read_rows, required_file, view
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow

NAME = "mimic-cxr-jpg"
LABELS = chexpert_labels.LABELS

_SPLITS: dict[str, Any] = {"train": "train", "validate": "val", "test": "test"}
_REPORTS = ("mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "reports", "files")
_StudyLabels = dict[str, dict[str, LabelState]]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read MIMIC-CXR-JPG.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image of the metadata file.

    Raises:
        InputError: a file or column is missing, a value is unknown, images are missing.
    """
    expects = DATASETS[NAME].expects
    metadata = required_file(src, expects, "mimic-cxr-2.0.0-metadata.csv")
    splits = _splits(required_file(src, expects, "mimic-cxr-2.0.0-split.csv"))
    automatic = _study_labels(required_file(src, expects, "mimic-cxr-2.0.0-chexpert.csv"))
    negbio = _study_labels(optional_file(src, "mimic-cxr-2.0.0-negbio.csv"))
    readers = _study_labels(optional_file(src, "mimic-cxr-2.1.0-test-set-labeled.csv"))
    images, reports = Images(src, expects), _Reports(src)
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    for where, row in read_rows(metadata, columns):
        folder = study_folder(row["subject_id"], row["study_id"])
        path = images.find(f"files/{folder}/{row['dicom_id']}.jpg", src / "files" / folder / f"{row['dicom_id']}.jpg")
        if path is None:
            continue
        if row["dicom_id"] not in splits:
            raise InputError(f"{where}: image {row['dicom_id']} is not in the split file; are both of one version?")
        study = row["study_id"]
        by_reader = study in readers
        text = reports.of(folder)
        yield ManifestRow(
            id=row["dicom_id"],
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=row["subject_id"],
            study=study,
            series=row["dicom_id"],
            split=splits[row["dicom_id"]],
            view=view(row["ViewPosition"]),
            findings=text.findings,
            impression=text.impression,
            report=text.report,
            labels=readers[study] if by_reader else automatic.get(study, {}),
            size_px=(int(number(where, row, "Rows")), int(number(where, row, "Columns"))),
            extra={
                "label_source": "radiologists" if by_reader else "chexpert labeller",
                "view_position": row["ViewPosition"],
            } | ({"negbio": negbio[study]} if study in negbio else {}),
        )  # fmt: skip
    images.finish()


def study_folder(subject: str, study: str) -> str:
    """Where a study lies below `files/`, for example p10/p10000032/s50414267."""
    return f"p{subject[:2]}/p{subject}/s{study}"


def _splits(path: Path) -> dict[str, Any]:
    """Image to split, in the manifest's words."""
    result = {}
    for where, row in read_rows(path, ("dicom_id", "split")):
        if row["split"] not in _SPLITS:
            raise InputError(f"{where}, column 'split': expected train, validate or test, got {row['split']!r}")
        result[row["dicom_id"]] = _SPLITS[row["split"]]
    return result


def _study_labels(path: Path | None) -> _StudyLabels:
    """Study to states; nothing for no file."""
    if path is None:
        return {}
    rows = read_rows(path, ("study_id", *(name for name in LABELS if name != "Lung Opacity")))
    return {row["study_id"]: chexpert_labels.states(where, row) for where, row in rows}


class _Reports:
    """Reports by study, the last one kept: the images of a study follow each other."""

    def __init__(self, src: Path):
        self._roots = [src / name for name in _REPORTS if (src / name).is_dir()]
        self._last: tuple[str, ReportParts] = ("", ReportParts())

    def of(self, folder: str) -> ReportParts:
        """The parts of a study's report; empty if there is none."""
        if folder != self._last[0]:
            self._last = (folder, self._read(folder))
        return self._last[1]

    def _read(self, folder: str) -> ReportParts:
        for root in self._roots:
            path = root / f"{folder}.txt"
            if path.is_file():
                return report_parts(path.read_text(encoding="utf-8", errors="replace"))
        return ReportParts()
