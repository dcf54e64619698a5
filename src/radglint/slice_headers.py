"""What a CT slice says about itself: one `SliceHeader` for each classic file or each frame of an enhanced file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from radglint.dicom_file import (
    SECONDARY_CAPTURE_UID,
    frame_shape,
    is_dicom,
    items,
    number,
    numbers,
    open_dicom,
    tag_name,
    text,
)
from radglint.errors import GeometryError, ImageError
from radglint.geometry import check_plausible

HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "ImageType",
    "BodyPartExamined",
    "AcquisitionNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOMDIR_UID = "1.2.840.10008.1.3.10"
LOCALIZER_WORDS = ("LOCALIZER", "SCOUT", "TOPOGRAM")
DERIVED_WORDS = ("MIP", "MINIP", "MAX_IP", "MIN_IP", "REFORMATTED", "MPR", "AVERAGE", "PROJECTION IMAGE")


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """One slice, without its pixels.

    Attributes:
        path: the file.
        frame: zero-based frame of an enhanced multi-frame file, or None for a classic file.
        modality: e.g. "CT".
        sop_instance_uid: SOPInstanceUID, "" if absent.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber as text, "" if absent.
        description: SeriesDescription.
        image_type: the values of ImageType (or FrameType), upper case.
        body_part: BodyPartExamined, upper case.
        acquisition: AcquisitionNumber as text.
        stack: StackID of an enhanced frame.
        shape: rows, columns.
        position_mm: ImagePositionPatient, LPS, or None.
        orientation: ImageOrientationPatient, or None.
        spacing_mm: PixelSpacing (between rows, between columns), or None.
        thickness_mm: SliceThickness, or None.
        slope: RescaleSlope, or None.
        intercept: RescaleIntercept, or None.
        rescale_type: RescaleType, upper case.
    """

    path: Path
    frame: int | None
    modality: str
    sop_instance_uid: str
    series_uid: str
    series_number: str
    description: str
    image_type: tuple[str, ...]
    body_part: str
    acquisition: str
    stack: str
    shape: tuple[int, int]
    position_mm: np.ndarray | None
    orientation: np.ndarray | None
    spacing_mm: np.ndarray | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str

    @property
    def label(self) -> str:
        """File name, with the frame number (from 1) for a multi-frame file."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"

    @property
    def is_localizer(self) -> bool:
        """A scout image, which is no part of the volume."""
        words = " ".join(self.image_type)
        return any(word in words for word in LOCALIZER_WORDS)

    @property
    def is_derived(self) -> bool:
        """A reformat or projection, second choice after axial originals."""
        return any(word in self.image_type for word in DERIVED_WORDS)

    def require_geometry(self) -> None:
        """Refuse a slice that cannot be placed in space or turned into HU.

        Raises:
            GeometryError: position, orientation or pixel spacing is missing or not positive.
            ImageError: the rescale is missing.
        """
        needed = {
            "ImagePositionPatient": self.position_mm,
            "ImageOrientationPatient": self.orientation,
            "PixelSpacing": self.spacing_mm,
        }
        where = self.path if self.frame is None else f"{self.path} frame {self.frame + 1}"
        for keyword, value in needed.items():
            if value is None:
                raise GeometryError(f"{where}: tag {tag_name(keyword)} is missing, so the slice has no place in space")
        if self.spacing_mm is not None and (self.spacing_mm <= 0).any():
            raise GeometryError(
                f"{where}: tag {tag_name('PixelSpacing')} must be positive, got {self.spacing_mm.tolist()}"
            )
        if self.spacing_mm is not None and self.position_mm is not None:
            check_plausible(self.spacing_mm, self.position_mm, str(where))
        for keyword, value in {"RescaleSlope": self.slope, "RescaleIntercept": self.intercept}.items():
            if value is None:
                raise ImageError(f"{where}: tag {tag_name(keyword)} is missing, so the values cannot be turned into HU")
        if self.slope == 0:
            raise ImageError(f"{where}: tag {tag_name('RescaleSlope')} is 0, which erases the image; re-export it")


def read_slice_headers(paths: list[Path]) -> tuple[list[SliceHeader], int]:
    """Read the headers of every image among the files; other DICOM objects and other files are left out.

    Args:
        paths: files of a folder or zip, in any order. Files without the DICM marker are passed over, unless their
            suffix says DICOM.

    Returns:
        One header for each slice or frame (sorted by file name), and how many files were passed over.

    Raises:
        ImageError: a file that should be DICOM is empty, cut off or damaged.
        GeometryError: a geometry tag holds no numbers.
    """
    headers: list[SliceHeader] = []
    skipped = 0
    for path in sorted(paths):
        if not is_dicom(path) and path.suffix.lower() not in DICOM_SUFFIXES:
            skipped += 1
            continue
        found = _headers_of_file(path)
        headers += found
        skipped += not found
    return headers, skipped


def _headers_of_file(path: Path) -> list[SliceHeader]:
    """Headers of one file; an empty list if it holds no image (structure set, report, directory)."""
    ds = open_dicom(path, stop_before_pixels=True, tags=HEADER_TAGS)
    meta = getattr(ds, "file_meta", None) or Dataset()
    if DICOMDIR_UID in (text(ds, "SOPClassUID"), text(meta, "MediaStorageSOPClassUID")):
        return []
    for keyword in ("Modality", "SeriesInstanceUID"):
        if not text(ds, keyword):
            raise ImageError(f"{path}: tag {tag_name(keyword)} is missing; the file is cut off or not an image")
    if "Rows" not in ds and text(ds, "Modality").upper() != "CT":
        return []
    if text(ds, "SOPClassUID").startswith(SECONDARY_CAPTURE_UID) and "ImagePositionPatient" not in ds:
        return []  # a screenshot or dose page
    frames = number(ds, "NumberOfFrames", path) or 1
    if frames == 1 and not items(ds, "PerFrameFunctionalGroupsSequence", path):
        return [_header(ds, [ds], path, None)]
    if text(ds, "Modality").upper() != "CT":
        return [_header(ds, [ds], path, None)]  # one is enough to say what the file is
    return _frame_headers(ds, path, int(frames))


def _frame_headers(ds: Dataset, path: Path, frames: int) -> list[SliceHeader]:
    """One header for each frame of an enhanced CT (functional groups, PS3.3 section C.7.6.16)."""
    per_frame = items(ds, "PerFrameFunctionalGroupsSequence", path)
    if len(per_frame) != frames:
        raise ImageError(
            f"{path}: {frames} frames but {len(per_frame)} items in {tag_name('PerFrameFunctionalGroupsSequence')}, so "
            "the frames have no place in space; export as enhanced CT or one file a slice"
        )
    shared = items(ds, "SharedFunctionalGroupsSequence", path)[:1]
    return [
        _header(ds, [*_macros(group, path), *[m for s in shared for m in _macros(s, path)], ds], path, i)
        for i, group in enumerate(per_frame)
    ]


def _macros(group: Dataset, path: Path) -> list[Dataset]:
    """The macro items of one functional group that hold the tags of a slice."""
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "CTImageFrameTypeSequence",
        "FrameContentSequence",
        "FrameAnatomySequence",
    )
    return [item for name in names for item in items(group, name, path)[:1]]


def _header(ds: Dataset, sources: list[Dataset], path: Path, frame: int | None) -> SliceHeader:
    """Collect the tags; `sources` are searched in order."""

    def source(keyword: str) -> Dataset:
        return next((item for item in sources if keyword in item), ds)

    def vector(keyword: str, count: int) -> np.ndarray | None:
        try:
            return numbers(source(keyword), keyword, path, count)
        except ImageError as exc:
            raise GeometryError(str(exc)) from exc

    image_type = text(source("FrameType"), "FrameType") or text(ds, "ImageType")
    is_ct = text(ds, "Modality").upper() == "CT"
    return SliceHeader(
        path=path,
        frame=frame,
        modality=text(ds, "Modality").upper(),
        sop_instance_uid=text(ds, "SOPInstanceUID"),
        series_uid=text(ds, "SeriesInstanceUID"),
        series_number=text(ds, "SeriesNumber"),
        description=text(ds, "SeriesDescription"),
        image_type=tuple(image_type.upper().split("\\")),
        body_part=text(ds, "BodyPartExamined").upper(),
        acquisition=text(ds, "AcquisitionNumber") or text(source("FrameAcquisitionNumber"), "FrameAcquisitionNumber"),
        stack=text(source("StackID"), "StackID"),
        shape=frame_shape(ds, path) if is_ct else (0, 0),
        position_mm=vector("ImagePositionPatient", 3) if is_ct else None,
        orientation=vector("ImageOrientationPatient", 6) if is_ct else None,
        spacing_mm=vector("PixelSpacing", 2) if is_ct else None,
        thickness_mm=number(source("SliceThickness"), "SliceThickness", path) if is_ct else None,
        slope=number(source("RescaleSlope"), "RescaleSlope", path) if is_ct else None,
        intercept=number(source("RescaleIntercept"), "RescaleIntercept", path) if is_ct else None,
        rescale_type=text(source("RescaleType"), "RescaleType").upper(),
    )
