"""Findings as a DICOM structured report: TID 1500 "Measurement Report", one measurement group per query.

A group says what was found (coded), how the query asked for it, the decision, the probability ("Certainty of Finding",
DCM 111012), the size, and which model said so. It refers to the segment of a DICOM Segmentation if one is given and
something is marked there, else to the source images.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from radglint import coded_concepts as concepts
from radglint.dicom_file import items, quiet_pydicom
from radglint.dicom_result import (
    MANUFACTURER,
    describe_answer,
    equipment,
    import_highdicom,
    parameters,
    refusals,
    series_number,
    set_time,
    software_version,
    tracking,
    uids,
)
from radglint.dicom_source import DicomSource, read_source, require_dicom
from radglint.errors import InputError, OutputError

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.findings import Findings

SERIES_OFFSET = 9500
"""Added to the number of the source series."""
MILLILITRE = Code("ml", "UCUM", "ml")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
LABELMAP_UID = "1.2.840.10008.5.1.4.1.1.66.7"


def structured_report(findings: Findings, seg: Dataset | None = None, *, created: datetime | None = None) -> Dataset:
    """Make a structured report of findings on a DICOM image.

    Args:
        findings: on an image that was read from DICOM.
        seg: the segmentation of the same findings (`dicom_seg.segmentation`), to refer to its segments.
        created: date and time to write; now if None.

    Returns:
        Comprehensive 3D SR for CT, Comprehensive SR for a radiograph. Complete, not verified.

    Raises:
        InputError: the source is not DICOM, its files are gone, changed or lack a needed tag, or `seg` is of other
            findings.
        OutputError: no query, or highdicom is missing or refuses.
    """
    require_dicom(findings.image)
    if not len(findings):
        raise OutputError(f"{findings.image.path}: no query was asked, so there is nothing to write")
    highdicom = import_highdicom()
    if seg is not None:
        _check_same(findings, seg)
    source = read_source(findings.image)
    when = datetime.now() if created is None else created
    uid_of = uids(findings, source, "SR", when.isoformat(), "" if seg is None else seg.SOPInstanceUID)
    is_ct = findings.image.affine is not None
    kind = highdicom.sr.Comprehensive3DSR if is_ct else highdicom.sr.ComprehensiveSR
    with refusals(findings):
        result = kind(
            evidence=[*source.datasets, *([] if seg is None else [seg])],
            content=_report(findings, source, seg)[0],
            series_instance_uid=uid_of("series"),
            series_number=series_number(source.first, SERIES_OFFSET),
            sop_instance_uid=uid_of("instance"),
            instance_number=1,
            is_complete=True,
            is_verified=False,
            **equipment(findings),
        )
        set_time(result, when)
        result.CodingSchemeIdentificationSequence = [_local_scheme()]
    return result


def _check_same(findings: Findings, seg: Dataset) -> None:
    """Refuse a segmentation of other queries or another image."""
    segments = [item for item in items(seg, "SegmentSequence") if item.SegmentNumber > 0]
    wanted = [tracking(findings, position)[1] for position in range(1, len(findings) + 1)]
    if [item.get("TrackingUID") for item in segments] != wanted:
        raise InputError(
            f"{findings.image.path}: the segmentation given is not of these findings ({len(segments)} segments for "
            f"{len(findings)} queries, or another image or model); make it with to_dicom_seg of the same findings"
        )


def _report(findings: Findings, source: DicomSource, seg: Dataset | None) -> Any:
    """The content tree."""
    sr = import_highdicom().sr
    is_ct = findings.image.affine is not None
    report = sr.MeasurementReport(
        observation_context=_observer(findings),
        procedure_reported=concepts.CT_OF_CHEST if is_ct else concepts.PLAIN_CHEST_RADIOGRAPH,
        imaging_measurements=[_group(findings, n, source, seg) for n in range(1, len(findings) + 1)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content = report[0].ContentSequence
    last = next(k for k, item in enumerate(content) if item.name == codes.DCM.ImagingMeasurements)
    content.insert(last, _image_library(source))
    return report


def _observer(findings: Findings) -> Any:
    """The model as the device that observed."""
    sr = import_highdicom().sr
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["radglint device", software_version(), findings.model_fingerprint]),
        name=f"radglint {findings.model_name}",
        manufacturer_name=MANUFACTURER,
        model_name=findings.model_name,
        serial_number=findings.model_fingerprint,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _image_library(source: DicomSource) -> Any:
    """TID 1600 with the plain references; what else it could repeat stands in the images themselves."""
    sr = import_highdicom().sr
    contains = sr.RelationshipTypeValues.CONTAINS
    group = sr.ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=contains)
    group.ContentSequence = sr.ContentSequence(
        [
            sr.ImageContentItem(
                name=Code("260753009", "SCT", "Source"),
                referenced_sop_class_uid=dataset.SOPClassUID,
                referenced_sop_instance_uid=dataset.SOPInstanceUID,
                relationship_type=contains,
            )
            for dataset in source.datasets
        ]
    )
    library = sr.ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _group(findings: Findings, position: int, source: DicomSource, seg: Dataset | None) -> Any:
    """The measurement group of one query, with what it says also as a sentence."""
    sr = import_highdicom().sr
    finding, (identifier, uid) = findings[position - 1], tracking(findings, position)
    code = concepts.code_finding(finding.phrase)
    shared: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=uid, identifier=identifier),
        "finding_type": code.type,
        "finding_category": code.category,
        "algorithm_id": _algorithm(findings, finding),
        "measurements": _measurements(finding),
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(concepts.ASKED_AS, concepts.ASSERTIONS[finding.assertion]),
            sr.QualitativeEvaluation(concepts.FINDING_CONTEXT, _decision(finding)),
        ],
    }
    if seg is not None and finding.boxes:
        group = _segment_group(shared, position, source, seg)
    else:
        group = sr.MeasurementsAndQualitativeEvaluations(**shared)
    comment = sr.TextContentItem(
        name=codes.DCM.Comment, value=describe_answer(finding), relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    group[0].ContentSequence.append(comment)
    return group


def _segment_group(shared: dict[str, Any], position: int, source: DicomSource, seg: Dataset) -> Any:
    """A group on a segment: TID 1411 on a volume, TID 1410 on a radiograph."""
    sr = import_highdicom().sr
    if source.positions_mm is not None:
        segment = sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=position,
            source_series=sr.SourceSeriesForSegmentation(source.first.SeriesInstanceUID),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **shared)
    image = sr.SourceImageForSegmentation(source.first.SOPClassUID, source.first.SOPInstanceUID)
    frame = sr.ReferencedSegmentationFrame(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        frame_number=_frame_of(seg, position),
        segment_number=position,
        source_image=image,
    )
    # Frame and segment number shall not both be there (PS3.3 table 10-3); all frames of a LABELMAP hold all segments.
    extra = "ReferencedFrameNumber" if seg.SOPClassUID == LABELMAP_UID else "ReferencedSegmentNumber"
    del frame[0].ReferencedSOPSequence[0][extra]
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=frame, **shared)


def _frame_of(seg: Dataset, segment: int) -> int:
    """The frame, from 1, that holds a segment of a radiograph."""
    if seg.SOPClassUID == LABELMAP_UID:
        return 1
    for frame, group in enumerate(items(seg, "PerFrameFunctionalGroupsSequence"), start=1):
        places = (group, *items(seg, "SharedFunctionalGroupsSequence"))
        found = [i.ReferencedSegmentNumber for place in places for i in items(place, "SegmentIdentificationSequence")]
        if segment in found:
            return frame
    raise InputError(f"the segmentation has no frame for segment {segment}; make it again with to_dicom_seg")


def _algorithm(findings: Findings, finding: Finding) -> Any:
    """TID 4019 with model, version, fingerprint and threshold."""
    sr = import_highdicom().sr
    return sr.AlgorithmIdentification(
        name=f"radglint {findings.model_name}",
        version=software_version(),
        parameters=[f"{name}: {value}" for name, value in parameters(findings, finding).items()],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _measurements(finding: Finding) -> list[Any]:
    """Probability in percent, and the size of the mask where something is marked."""
    sr = import_highdicom().sr
    certainty = sr.Measurement(codes.DCM.CertaintyOfFinding, _decimal(100.0 * finding.probability), codes.UCUM.Percent)
    if not finding.boxes:
        return [certainty]
    if finding.volume_ml is not None:
        return [certainty, sr.Measurement(codes.SCT.Volume, _decimal(finding.volume_ml), MILLILITRE)]
    count, spacing = finding.area_px or 0, finding.image.spacing_mm
    if spacing is None:
        return [certainty, sr.Measurement(codes.SCT.Area, float(count), PIXELS)]
    area = count * spacing[0] * spacing[1]
    return [certainty, sr.Measurement(codes.SCT.Area, _decimal(area), codes.UCUM.SquareMillimeter)]


def _decision(finding: Finding) -> Code:
    """Present, absent, equivocal where the model abstains, or unknown where it cannot be asked."""
    return concepts.DECISIONS[finding.decision]


def _decimal(value: float) -> float:
    """Six significant digits: more is not known, and a decimal string has room for 16 characters."""
    return float(f"{value:.6g}")


def _local_scheme() -> Dataset:
    """Says whose codes those of `coded_concepts.LOCAL_SCHEME` are."""
    item = Dataset()
    with quiet_pydicom():
        item.CodingSchemeDesignator = concepts.LOCAL_SCHEME
        item.CodingSchemeName = "Codes of radglint"
        item.CodingSchemeResponsibleOrganization = "radglint"
    return item
