"""Findings as a DICOM Segmentation: one segment per query, in the geometry of the source series.

Every query is a segment with its label and description, also where nothing is marked, so that a reader can tell "asked
and not found" from "not asked". Frames without a marked pixel are left out; if no query marks anything, one empty frame
per segment is kept, since the object needs pixels.

Identifiers are made from the content and the time of writing: the same findings written with the same `created` give
the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, RLELossless

from radglint.coded_concepts import code_finding
from radglint.dicom_result import (
    DESCRIPTION_CHARS,
    LABEL_CHARS,
    MANUFACTURER,
    describe_answer,
    equipment,
    import_highdicom,
    one_line,
    parameters,
    refusals,
    series_number,
    set_time,
    software_version,
    tracking,
    uids,
)
from radglint.dicom_source import DicomSource, read_source, require_dicom
from radglint.errors import OutputError

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.findings import Findings

Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]

MAX_FRACTION = 255
MAX_ARRAY_BYTES = 4 * 2**30
SERIES_OFFSET = 9000
"""Added to the number of the source series."""


def segmentation(findings: Findings, kind: Kind = "BINARY", *, created: datetime | None = None) -> Dataset:
    """Make a DICOM Segmentation of findings on a DICOM image.

    Args:
        findings: on an image that was read from DICOM.
        kind: "BINARY" (masks, may overlap), "LABELMAP" (masks that do not overlap) or "FRACTIONAL" (probability of
            every pixel of what is present, 255 = 1).
        created: date and time to write; now if None.

    Returns:
        A `highdicom.seg.Segmentation`: patient and study of the source, a new series, segment k for query k from 1.

    Raises:
        InputError: no query, the source is not DICOM, or its files are gone, changed or lack a needed tag.
        OutputError: unknown kind, overlapping masks as LABELMAP, too large, or highdicom is missing or refuses.
    """
    check_kind(kind)
    require_dicom(findings.image)
    if not len(findings):
        raise OutputError(f"{findings.image.path}: no query was asked, so there is nothing to write")
    highdicom = import_highdicom()
    source = read_source(findings.image)
    planes, pixels = _pixels(findings, kind)
    when = datetime.now() if created is None else created
    uid_of = uids(findings, source, "SEG", kind, when.isoformat(), hashlib.sha256(pixels.data).hexdigest())
    with refusals(findings):
        result = highdicom.seg.Segmentation(
            source_images=source.datasets,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=[_describe(findings, number) for number in range(1, len(findings) + 1)],
            series_instance_uid=uid_of("series"),
            series_number=series_number(source.first, SERIES_OFFSET),
            sop_instance_uid=uid_of("instance"),
            instance_number=1,
            max_fractional_value=MAX_FRACTION,
            plane_positions=_plane_positions(source, planes),
            omit_empty_frames=bool(pixels.any()),
            content_label="FINDINGS",
            content_description="Answers of a research model; not for diagnosis",
            **equipment(findings),
        )
        set_time(result, when)
        _fix_dimension_uid(result, uid_of("dimension"))
        if kind != "BINARY":
            _compress(result)
        result.ContentCreatorName = ""  # type 2 until 2023; nobody created the content by hand
        if source.positions_mm is None:  # required where no position says how the picture lies (C.7.6.1.1.1)
            result.PatientOrientation = source.first.get("PatientOrientation") or ""
    return result


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of segmentation.

    Raises:
        OutputError: it is none of BINARY, FRACTIONAL and LABELMAP.
    """
    if kind not in get_args(Kind):
        raise OutputError(f"kind {kind!r} of segmentation is unknown; use one of {', '.join(get_args(Kind))}")


def _pixels(findings: Findings, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the planes with marked pixels (the first if there is none), and their pixels.

    The masks are made one by one, and only planes with something on them are kept.
    """
    kept = [_marked_planes(finding, kind) for finding in findings]
    planes = np.unique(np.concatenate([[0] if not any(len(p) for p, _ in kept) else [], *(p for p, _ in kept)]))
    planes = planes.astype(np.intp)
    shape = (len(planes), *findings.image.shape[-2:], len(findings))
    dtype = np.dtype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if np.prod(shape, dtype=np.float64) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise OutputError(
            f"{findings.image.path}: {len(findings)} segments on {len(planes)} slices are too large to write at once; "
            "ask fewer queries at a time"
        )
    pixels = np.zeros(shape, dtype=dtype)
    for k, (where, values) in enumerate(kept):
        pixels[np.searchsorted(planes, where), ..., k] = values
    if kind == "LABELMAP":
        _refuse_overlap(findings, pixels)
    return planes, pixels


def _marked_planes(finding: Finding, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Which planes hold something, and those planes of the mask or of the probability."""
    if not finding.is_marked:
        return np.empty(0, np.intp), np.empty((0, *finding.image.shape[-2:]), np.uint8)
    volume = finding.mask() if kind != "FRACTIONAL" else _fraction(finding)
    volume = volume.reshape(-1, *finding.image.shape[-2:])
    planes = np.flatnonzero(volume.any(axis=(1, 2)))
    return planes, volume[planes]


def _fraction(finding: Finding) -> np.ndarray:
    """Probability in steps of 1/255; 0 where the model saw nothing."""
    return np.rint(np.nan_to_num(finding.probability_map(), nan=0.0) * MAX_FRACTION) / np.float32(MAX_FRACTION)


def _refuse_overlap(findings: Findings, pixels: np.ndarray) -> None:
    """Each pixel may belong to one segment; looked at plane by plane, all segments at once."""
    for plane in pixels:
        shared = np.argwhere(np.count_nonzero(plane, axis=-1) > 1)
        if len(shared):
            first, second = np.flatnonzero(plane[tuple(shared[0])])[:2]
            names = f"{findings[int(first)].query!r} and {findings[int(second)].query!r}"
            raise OutputError(
                f"{findings.image.path}: the masks of {names} overlap, which a LABELMAP cannot hold; write BINARY"
            )


def _compress(dataset: Dataset) -> None:
    """Run-length encoding. Not by highdicom, which may choose gdcm: that ends the process on frames of odd size."""
    dataset.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)


def _plane_positions(source: DicomSource, planes: np.ndarray) -> list[Any] | None:
    if source.positions_mm is None:
        return None
    highdicom = import_highdicom()
    return [highdicom.PlanePositionSequence("PATIENT", source.positions_mm[plane].tolist()) for plane in planes]


def _describe(findings: Findings, position: int) -> Any:
    """The description of one segment."""
    highdicom, finding = import_highdicom(), findings[position - 1]
    code, (identifier, uid) = code_finding(finding.phrase), tracking(findings, position)
    item = highdicom.seg.SegmentDescription(
        segment_number=position,
        segment_label=one_line(finding.query, LABEL_CHARS),
        segmented_property_category=code.category,
        segmented_property_type=code.type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"radglint {findings.model_name}"[:LABEL_CHARS],
            family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=software_version(),
            source=MANUFACTURER,
            parameters=parameters(findings, finding),
        ),
        tracking_id=identifier,
        tracking_uid=uid,
    )
    item.SegmentDescription = one_line(describe_answer(finding), DESCRIPTION_CHARS)
    return item


def _fix_dimension_uid(dataset: Dataset, uid: UID) -> None:
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
