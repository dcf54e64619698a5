"""A series that was fetched, to the objects that are stored: a segmentation and a structured report for each image.

Their UIDs follow from the source images, the model, the queries and the kind of object alone. Whoever answers the same
series again, on another machine or after the ledger was lost, makes objects with the same UIDs, and finds them stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from radglint import dicom_result, writing
from radglint.dicom import LATERAL_VIEWS
from radglint.dicom_file import open_dicom, text
from radglint.errors import ImageError, InputError
from radglint.pacs.ledger import Result

if TYPE_CHECKING:
    from radglint.dicom_seg import Kind
    from radglint.findings import Findings
    from radglint.pipeline import Pipeline


@dataclass(frozen=True)
class Question:
    """What a series is asked.

    Attributes:
        queries: plain English.
        threshold: present from this probability on; None = the model's own.
        kind: of segmentation.
    """

    queries: tuple[str, ...]
    threshold: float | None = None
    kind: Kind = "BINARY"


@dataclass(frozen=True)
class Answer:
    """What came of a series.

    Attributes:
        results: the objects on the disk; empty if no image of the series can be asked.
        left_out: images that were not asked, each with its reason.
    """

    results: tuple[Result, ...]
    left_out: tuple[str, ...] = ()


def answer_series(pipeline: Pipeline, files: Sequence[Path], question: Question, out: Path) -> Answer:
    """Ask a series and write its objects, all or none.

    Args:
        pipeline: the model.
        files: all instances of one series.
        question: what to ask.
        out: the folder of its objects; what an earlier, interrupted answer left there is removed.

    Returns:
        Of a CT one segmentation and one report. Of a series of radiographs one pair for each frontal image; lateral
        ones are left out, as is an image that cannot be read beside others that can.

    Raises:
        ImageError: the images cannot be read.
        OutputError: the folder cannot be written, or the headers do not allow a DICOM result.
    """
    headers = {file: open_dicom(file, stop_before_pixels=True) for file in files}
    if any(text(header, "Modality").upper() == "CT" for header in headers.values()):
        sources, left_out = [_common_folder(files)], []
    else:
        sources, left_out = _frontal(headers)
    shutil.rmtree(out, ignore_errors=True)
    results: list[Result] = []
    failures: list[InputError] = []
    with writing.folder_transaction(out) as staging:
        for source in sources:
            try:
                findings = pipeline.ask(source, question.queries, question.threshold)
                results += _write(findings, question, staging, len(results))
            except ImageError as error:
                failures.append(error)
        if failures and not results:
            raise failures[0]
    final = tuple(Result(r.study_uid, r.series_uid, r.instance_uid, out / r.path.name) for r in results)
    return Answer(final, (*left_out, *map(str, failures)))


def _common_folder(files: Sequence[Path]) -> Path:
    folders = {file.parent for file in files}
    if len(folders) != 1:
        raise InputError(f"{files[0].parent}: the files of a series lie in {len(folders)} folders; expected one")
    return folders.pop()


def _frontal(headers: dict[Path, Dataset]) -> tuple[list[Path], list[str]]:
    """Radiographs to ask, and those that are left out."""
    lateral = [file for file, header in headers.items() if text(header, "ViewPosition").upper() in LATERAL_VIEWS]
    return [file for file in headers if file not in lateral], [f"{file.name}: a lateral view" for file in lateral]


def _write(findings: Findings, question: Question, folder: Path, number: int) -> list[Result]:
    """The segmentation and the report of one image, under their final UIDs."""
    from radglint.dicom_seg import segmentation
    from radglint.dicom_sr import structured_report

    seg = _name(segmentation(findings, question.kind), findings, question, "SEG")
    report = _name(structured_report(findings, seg), findings, question, "SR")
    made = []
    for dataset, role in ((seg, "seg"), (report, "sr")):
        path = dicom_result.write(folder / f"{number // 2 + 1:03d}_{role}.dcm", lambda dataset=dataset: dataset)
        made.append(Result(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID, path))
    return made


def _name(dataset: Any, findings: Findings, question: Question, role: str) -> Any:
    """Give an object the UIDs that it will always have."""
    dataset.SeriesInstanceUID = result_uid(findings, question, role, "series")
    dataset.SOPInstanceUID = result_uid(findings, question, role, "instance")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def result_uid(findings: Findings, question: Question, role: str, level: str) -> UID:
    """The UID of a result, from what was asked of what by whom."""
    frames = dict.fromkeys(frame.sop_instance_uid for frame in findings.image.source_frames)
    parts = ["radglint result", role, level, findings.model_fingerprint, question.kind, repr(question.threshold)]
    return generate_uid(entropy_srcs=[*parts, str(len(question.queries)), *question.queries, *frames])
