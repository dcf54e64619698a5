"""The DICOM headers behind an image, read again when a DICOM result is written, and checked to be the same files.

The headers are copies in memory. Where a file lacks what must be present but may be empty (PS3.5, type 2), it is added
empty; nothing else about patient and study is changed, and nothing is invented.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import DA, TM, format_number_as_ds

from radglint.archive import extract_zip
from radglint.dicom_file import items, numbers, open_dicom, quiet_pydicom, tag_name, text
from radglint.errors import GeometryError, InputError
from radglint.geometry import apply_affine, lps_to_ras
from radglint.image import MedicalImage, SourceFrame

MAX_SHIFT_MM, MAX_SHIFT = 0.5, 0.1
"""A slice may lie this far (mm, plus share of a step) off the even grid of the image; see `slice_stack`."""

_NOT_EMPTY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_DATES_AND_TIMES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_SEXES = ("M", "F", "O")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PositionReferenceIndicator")


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The headers behind an image.

    Attributes:
        datasets: one for each file of the series, in the order of `depth`; one alone for a multi-frame file or a
            radiograph. Without pixels.
        positions_mm: place of the first voxel of each array slice, LPS, `depth 3`; None for a radiograph.
    """

    datasets: tuple[Dataset, ...]
    positions_mm: np.ndarray | None

    @property
    def first(self) -> Dataset:
        """The header that patient and study are copied from."""
        return self.datasets[0]


def require_dicom(image: MedicalImage) -> None:
    """Refuse an image that has no DICOM files behind it.

    Raises:
        InputError: it was read from another format; the message says what to do.
    """
    if not image.source_frames:
        raise InputError(
            f"{image.path}: a DICOM result refers to the DICOM files of its image, but this one was read from "
            f"{image.source_format}; ask the DICOM series itself, or write the masks as NIfTI or PNG"
        )


def read_source(image: MedicalImage) -> DicomSource:
    """Read the headers behind an image again.

    Args:
        image: read from DICOM: a folder, a file or a zip (which is unpacked again into a temporary folder).

    Returns:
        The headers, made ready for highdicom.

    Raises:
        InputError: the image is not from DICOM, a file is gone or changed, or a tag that must be there is missing.
    """
    require_dicom(image)
    datasets = _read_headers(image.source_frames)
    for dataset, frame in zip(datasets, image.source_frames, strict=False):
        _complete(dataset, frame.path)
    if image.affine is None:
        _drop(datasets[0], _PLACE)
        return DicomSource(tuple(datasets), None)
    positions = _positions(image, datasets)
    _harmonise(image, datasets, positions)
    return DicomSource(tuple(datasets), positions)


def _read_headers(frames: tuple[SourceFrame, ...]) -> list[Dataset]:
    """One header a file, in order; the files of a zip are unpacked for the moment."""
    if frames[0].archive is None:
        return _open_all(frames, Path())
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        extract_zip(frames[0].archive, folder)
        return _open_all(frames, Path(folder))


def _open_all(frames: tuple[SourceFrame, ...], folder: Path) -> list[Dataset]:
    uids = {folder / frame.path: frame.sop_instance_uid for frame in frames}
    datasets = []
    for path, uid in uids.items():
        if not path.is_file():
            raise InputError(f"{path}: the file is gone since the image was read; put it back or read the image again")
        dataset = open_dicom(path, stop_before_pixels=True)
        if text(dataset, "SOPInstanceUID") != uid:
            raise InputError(f"{path}: is another image now than when it was read; read the image again")
        datasets.append(dataset)
    if len(datasets) > 1 and frames[0].frame is not None:
        raise InputError(
            f"{frames[0].path}: the volume comes from {len(datasets)} multi-frame files, but a DICOM segmentation "
            "refers to one; write the masks as NIfTI"
        )
    return datasets


def _complete(dataset: Dataset, path: Path) -> None:
    """Require the identifiers; add what may be empty."""
    for keyword in _NOT_EMPTY:
        if not text(dataset, keyword):
            raise InputError(
                f"{path}: tag {tag_name(keyword)} is missing, so no DICOM result can refer to it; re-export it"
            )
    with quiet_pydicom():
        dataset.decode()  # results are written as UTF-8
        for keyword in _MAY_BE_EMPTY:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
    _check_values(dataset, path)


def _check_values(dataset: Dataset, path: Path) -> None:
    """Refuse what cannot be copied as it is; the value may identify the patient and is not quoted."""
    wrong = ["PatientSex"] if text(dataset, "PatientSex") not in ("", *_SEXES) else []
    for keyword, kind in _DATES_AND_TIMES.items():
        try:
            kind(text(dataset, keyword))
        except ValueError:
            wrong.append(keyword)
    if wrong:
        named = ", ".join(map(tag_name, wrong))
        raise InputError(f"{path}: not a valid value in {named}, which a DICOM result would repeat; correct it there")


def _drop(dataset: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        if keyword in dataset:
            del dataset[keyword]


def _positions(image: MedicalImage, datasets: list[Dataset]) -> np.ndarray:
    """Place of each array slice, LPS: that of its file, or that of the grid if depth was resampled."""
    if not text(datasets[0], "FrameOfReferenceUID"):
        raise GeometryError(
            f"{image.path}: tag {tag_name('FrameOfReferenceUID')} is missing, so a DICOM segmentation would have no "
            "place in space; re-export the series"
        )
    depth = image.shape[0]
    index = np.column_stack([np.arange(depth), np.zeros(depth), np.zeros(depth)])
    grid = apply_affine(lps_to_ras(np.asarray(image.affine)), index)
    if image.is_resampled:
        return grid
    found = np.array([_position(frame, datasets, k) for k, frame in enumerate(image.source_frames)])
    step = float(np.linalg.norm(np.asarray(image.affine)[:3, 0]))
    if found.shape != grid.shape or np.abs(found - grid).max() > MAX_SHIFT_MM + MAX_SHIFT * step:
        raise GeometryError(f"{image.path}: the slices lie elsewhere than when they were read; read the image again")
    return found


def _position(frame: SourceFrame, datasets: list[Dataset], number: int) -> np.ndarray:
    """ImagePositionPatient of one slice."""
    dataset = datasets[0] if frame.frame is not None else datasets[number]
    if frame.frame is not None:
        group = items(dataset, "PerFrameFunctionalGroupsSequence")[frame.frame]
        dataset = (items(group, "PlanePositionSequence") or [dataset])[0]
    position = numbers(dataset, "ImagePositionPatient", frame.path, 3)
    if position is None:
        raise GeometryError(f"{frame.path}: tag {tag_name('ImagePositionPatient')} is missing; read the image again")
    return position


def _harmonise(image: MedicalImage, datasets: list[Dataset], positions: np.ndarray) -> None:
    """One orientation and spacing for all slices, as the reader found them; highdicom compares them digit by digit."""
    affine = lps_to_ras(np.asarray(image.affine))
    spacing = [float(np.linalg.norm(affine[:3, axis])) for axis in (1, 2)]
    row, column = affine[:3, 2] / spacing[1], affine[:3, 1] / spacing[0]
    gap = float(abs((positions[-1] - positions[0]) @ np.cross(row, column))) / max(len(positions) - 1, 1)
    for dataset in datasets:
        multi_frame = items(dataset, "SharedFunctionalGroupsSequence")
        measures, orientation = (Dataset(), Dataset()) if multi_frame else (dataset, dataset)
        measures.PixelSpacing = [_decimal(value) for value in spacing]
        measures.SliceThickness = _decimal(_thickness(dataset) or gap)
        measures.SpacingBetweenSlices = _decimal(gap)
        orientation.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
        if multi_frame:
            multi_frame[0].PixelMeasuresSequence = Sequence([measures])
            multi_frame[0].PlaneOrientationSequence = Sequence([orientation])


def _thickness(dataset: Dataset) -> float | None:
    """SliceThickness of a header, from the first functional group that has one."""
    groups = [
        *items(dataset, "SharedFunctionalGroupsSequence"),
        *items(dataset, "PerFrameFunctionalGroupsSequence")[:1],
    ]
    places = [dataset, *(item for group in groups for item in items(group, "PixelMeasuresSequence"))]
    found = (numbers(place, "SliceThickness", "", None) for place in places)
    return next((float(value[0]) for value in found if value is not None and value[0] > 0), None)


def _decimal(value: float) -> str:
    """A number with ten digits, as a decimal string of at most 16 characters."""
    return format_number_as_ds(round(float(f"{value:.10g}"), 12) + 0.0)
