"""Findings as a DICOM Segmentation: one segment per query, in the geometry of the source series.

Every query is a segment with its label and description, also where nothing is marked, so that a reader can tell "asked
and not found" from "not asked". Frames without a marked pixel are left out; if no query marks anything, one empty frame
per segment is kept, since the object needs pixels.

highdicom makes the object, but from a stand-in of one pixel a frame: it would hold all segments of all slices as one
array, several times over. The frames are encoded here, one finding at a time, and put in afterwards.

Identifiers are made from the content and the time of writing: the same findings written with the same `created` give
the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
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
MAX_FRAME_BYTES = 2**30
"""Of all frames together, as they are encoded."""
BITS = 8
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
    frames = _encode(findings, kind)
    when = datetime.now() if created is None else created
    uid_of = uids(findings, source, "SEG", kind, when.isoformat(), frames.digest())
    positions = _plane_positions(source, frames.planes)
    for dataset in source.datasets:
        dataset.Rows = dataset.Columns = 1  # as the stand-in
    with refusals(findings):
        result = highdicom.seg.Segmentation(
            source_images=source.datasets,
            pixel_array=frames.stand_in(len(findings)),
            segmentation_type=kind,
            segment_descriptions=[_describe(findings, number) for number in range(1, len(findings) + 1)],
            series_instance_uid=uid_of("series"),
            series_number=series_number(source.first, SERIES_OFFSET),
            sop_instance_uid=uid_of("instance"),
            instance_number=1,
            max_fractional_value=MAX_FRACTION,
            plane_positions=positions,
            omit_empty_frames=bool(frames.encoded),
            content_label="FINDINGS",
            content_description="Answers of a research model; not for diagnosis",
            **equipment(findings),
        )
        _put_pixels(result, frames, _order(result, frames.planes, positions))
        set_time(result, when)
        _fix_dimension_uid(result, uid_of("dimension"))
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


@dataclass
class _Frames:
    """The frames that hold something.

    Attributes:
        kind: of the segmentation.
        shape: rows and columns.
        encoded: bytes of a frame by segment, from 1, and plane; the segment is 0 in a LABELMAP, whose segments share
            frames. In BINARY one bit a pixel, else run lengths.
        overlap: SegmentsOverlap.
    """

    kind: Kind
    shape: tuple[int, int]
    encoded: dict[tuple[int, int], bytes] = field(default_factory=dict)
    overlap: str = "NO"

    @property
    def planes(self) -> list[int]:
        """Planes with something on them; the first if there is none."""
        return sorted({plane for _, plane in self.encoded}) or [0]

    def add(self, segment: int, plane: int, frame: np.ndarray) -> None:
        """Encode and keep a frame."""
        self.encoded[segment, plane] = _pack(frame) if self.kind == "BINARY" else _run_lengths(frame)

    def digest(self) -> str:
        """A hash of all that is here."""
        found = hashlib.sha256()
        for key, content in self.encoded.items():
            found.update(repr((key, len(content))).encode())
            found.update(content)
        return found.hexdigest()

    def stand_in(self, count: int) -> np.ndarray:
        """One pixel for each plane and segment, 1 where there is a frame: `planes 1 1 segments`, `planes 1 1`."""
        place = {plane: index for index, plane in enumerate(self.planes)}
        found = np.zeros((len(place), 1, 1, 1 if self.kind == "LABELMAP" else count), np.uint8)
        for segment, plane in self.encoded:
            found[place[plane], 0, 0, max(segment - 1, 0)] = 1
        return found[..., 0] if self.kind == "LABELMAP" else found


def _encode(findings: Findings, kind: Kind) -> _Frames:
    """The frames of all findings, made one finding at a time.

    Raises:
        OutputError: masks that overlap as LABELMAP, or too many bytes.
    """
    shape, count, size = findings.image.shape[-2:], len(findings), 0
    frames = _Frames(kind, (int(shape[0]), int(shape[1])))
    if kind == "LABELMAP":
        for plane, labels in _labels(findings):
            frames.add(0, plane, labels)
        return frames
    frames.overlap = "UNDEFINED" if kind == "FRACTIONAL" and count > 1 else "NO"
    covered = np.zeros((findings.image.array.size // (shape[0] * shape[1]), *shape), bool)
    for segment, finding in enumerate(findings, start=1):
        for plane, frame in _marked_planes(finding, kind):
            frames.add(segment, plane, frame)
            size += len(frames.encoded[segment, plane])
            if kind == "BINARY" and frames.overlap == "NO":
                frames.overlap = "YES" if (covered[plane] & frame).any() else "NO"
                covered[plane] |= frame
        if size > MAX_FRAME_BYTES:
            raise OutputError(
                f"{findings.image.path}: the frames of {segment} of {count} segments are {size / 1e9:.1f} GB, too "
                "large to write at once; ask fewer queries at a time, or write a LABELMAP"
            )
    return frames


def _marked_planes(finding: Finding, kind: Kind) -> Iterator[tuple[int, np.ndarray]]:
    """Planes with something on them: index, and the mask (bool) or the probability (uint8 in steps of 1/255)."""
    if not finding.is_marked:
        return
    volume = finding.probability_bytes() if kind == "FRACTIONAL" else finding.mask()
    volume = volume.reshape(-1, *finding.image.shape[-2:])
    for plane in np.flatnonzero(volume.any(axis=(1, 2))):
        yield int(plane), volume[plane]


def _labels(findings: Findings) -> Iterator[tuple[int, np.ndarray]]:
    """Planes with something on them: index, and the number of the segment that each pixel belongs to."""
    dtype = np.uint8 if len(findings) < 256 else np.uint16
    labels = np.zeros(findings.image.shape, dtype).reshape(-1, *findings.image.shape[-2:])
    for segment, finding in enumerate(findings, start=1):
        for plane, frame in _marked_planes(finding, "LABELMAP"):
            shared = labels[plane][frame].max()
            if shared:
                names = f"{findings[int(shared) - 1].query!r} and {finding.query!r}"
                raise OutputError(
                    f"{findings.image.path}: the masks of {names} overlap, which a LABELMAP cannot hold; write BINARY"
                )
            labels[plane][frame] = segment
    for plane in np.flatnonzero(labels.any(axis=(1, 2))):
        yield int(plane), labels[plane]


def _pack(frame: np.ndarray) -> bytes:
    """One bit a pixel, the first pixel in the lowest bit; the last byte is filled up."""
    return np.packbits(frame, bitorder="little").tobytes()


def _run_lengths(frame: np.ndarray) -> bytes:
    """Run-length encoding. Not by highdicom, which may choose gdcm: that ends the process on frames of odd size."""
    bits = frame.dtype.itemsize * BITS
    return RLELosslessEncoder.encode(
        frame, encoding_plugin="pylibjpeg", rows=frame.shape[0], columns=frame.shape[1], number_of_frames=1,
        samples_per_pixel=1, bits_allocated=bits, bits_stored=bits, pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )  # fmt: skip


def _join_bits(frames: list[bytes], size_px: int) -> bytes:
    """Frames one after the other, in BINARY without a gap between them (PS3.5 section 8.1.1)."""
    if size_px % BITS == 0:
        return b"".join(frames)
    joined = []
    for start in range(0, len(frames), BITS):  # eight frames always end with a byte
        bits = [np.unpackbits(np.frombuffer(f, np.uint8), bitorder="little", count=size_px)
                for f in frames[start : start + BITS]]  # fmt: skip
        joined.append(_pack(np.concatenate(bits)))
    return b"".join(joined)


def _order(result: Dataset, planes: list[int], positions: list[Any] | None) -> list[tuple[int, int]]:
    """Segment and plane of each frame, as highdicom has put them in order."""
    by_place = {
        tuple(item[0].ImagePositionPatient): plane for plane, item in zip(planes, positions or (), strict=False)
    }
    shared = result.SharedFunctionalGroupsSequence[0]
    found = []
    for group in result.PerFrameFunctionalGroupsSequence:
        named = next((g for g in (group, shared) if "SegmentIdentificationSequence" in g), None)
        segment = 0 if named is None else int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        place = None if positions is None else tuple(group.PlanePositionSequence[0].ImagePositionPatient)
        found.append((segment, planes[0] if place is None else by_place[place]))
    return found


def _put_pixels(result: Dataset, frames: _Frames, order: list[tuple[int, int]]) -> None:
    """Put the frames in place of the stand-in."""
    blank = np.zeros(frames.shape, np.uint8 if result.BitsAllocated <= BITS else np.uint16)
    empty = _pack(blank) if frames.kind == "BINARY" else _run_lengths(blank)
    found = [frames.encoded.get(key, empty) for key in order]
    result.Rows, result.Columns = frames.shape
    result.SegmentsOverlap = frames.overlap
    if frames.kind == "BINARY":
        joined = _join_bits(found, frames.shape[0] * frames.shape[1])
        result.PixelData = joined + b"\0" * (len(joined) % 2)
        return
    result.file_meta.TransferSyntaxUID = RLELossless
    result.PixelData = encapsulate(found)
    result["PixelData"].VR = "OB"
    result["PixelData"].is_undefined_length = True


def _plane_positions(source: DicomSource, planes: list[int]) -> list[Any] | None:
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
