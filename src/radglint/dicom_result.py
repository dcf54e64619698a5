"""What every DICOM result of radglint shares: identifiers, equipment, time, tracking, and how refusals are worded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from radglint.dicom_file import items, number, quiet_pydicom
from radglint.dicom_source import DicomSource
from radglint.errors import OutputError
from radglint.writing import cut, whole_file

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.findings import Findings

MANUFACTURER = "radglint"
UTF_8 = "ISO_IR 192"
INSTALL_HINT = "`pip install 'radglint[dicom]'`"
LABEL_CHARS, DESCRIPTION_CHARS = 64, 1024  # VR LO and ST


def write(path: str | os.PathLike[str], make: Callable[[], Dataset]) -> Path:
    """Make a dataset and write it as a file, whole or not at all.

    Args:
        path: a name that ends in .dcm, which is checked before the work.
        make: returns the dataset.

    Returns:
        The path written.

    Raises:
        OutputError: another suffix, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".dcm":
        raise OutputError(f"{path}: a DICOM result needs a name that ends in .dcm; choose such a name")
    dataset = make()
    with whole_file(path) as file, quiet_pydicom():
        dataset.save_as(file, enforce_file_format=True)
    return Path(path)


def import_highdicom() -> Any:
    """The library that knows the DICOM objects, imported on first use.

    Raises:
        OutputError: it is not installed.
    """
    try:
        with quiet_pydicom():
            import highdicom
    except ImportError as error:
        raise OutputError(f"DICOM results need the package highdicom ({error}); {INSTALL_HINT}") from error
    return highdicom


def tracking(findings: Findings, position: int) -> tuple[str, str]:
    """Identifier and UID that a segment and its group in a report share.

    Args:
        findings: all findings.
        position: of one of them, from 1.
    """
    finding, frame = findings[position - 1], findings.image.source_frames[0]
    parts = (frame.sop_instance_uid, findings.model_fingerprint, finding.query, repr(finding.threshold), str(position))
    return f"query {position}: {finding.query}", generate_uid(entropy_srcs=["radglint tracking", *parts])


def uids(findings: Findings, source: DicomSource, *content: str) -> Callable[[str], UID]:
    """A function from a role, such as "series", to a UID that follows from the content alone."""
    answers = [f"{f.query}|{f.assertion}|{f.score!r}|{f.probability!r}|{f.threshold!r}|{f.in_scope}" for f in findings]
    answers += [f"{f.decision}|{f.mask_level!r}" for f in findings if f.is_calibrated]
    parts = ["radglint", software_version(), findings.model_name, findings.model_fingerprint, *answers, *content]
    parts += [dataset.SOPInstanceUID for dataset in source.datasets]
    return lambda role: generate_uid(entropy_srcs=[*parts, role])


def equipment(findings: Findings) -> dict[str, Any]:
    """What made the object, and how its series is called, as arguments of highdicom's classes."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": findings.model_name[:LABEL_CHARS],
        "software_versions": software_version(),
        "device_serial_number": findings.model_fingerprint[:LABEL_CHARS],
        "series_description": f"radglint {findings.model_name}"[:LABEL_CHARS],
        "specific_character_set": UTF_8,
    }


def software_version() -> str:
    """The version of radglint."""
    try:
        return version("radglint")
    except PackageNotFoundError:
        return "0+not.installed"


def parameters(findings: Findings, finding: Finding) -> dict[str, str]:
    """What the model was run with."""
    known = {"model fingerprint": findings.model_fingerprint, "threshold": f"{finding.threshold:g}"}
    if finding.threshold_source:
        known["threshold source"] = finding.threshold_source
    if finding.abstention is not None:
        known["undecided"] = "{:g} to {:g}".format(*finding.abstention.undecided)
    return known


def describe_answer(finding: Finding) -> str:
    """The answer to one query in a sentence."""
    remark = f"; {finding.remark}" if finding.remark else ""
    source = f" ({finding.threshold_source})" if finding.threshold_source else ""
    return (
        f"Query: {finding.query}. Asked as {finding.assertion}. Decision: {finding.verdict}, "
        f"probability {finding.probability:.3f}, threshold {finding.threshold:g}{source}{remark}."
    )


def series_number(first: Dataset, offset: int) -> int:
    """The number of a derived series, from that of its source."""
    return offset + int(number(first, "SeriesNumber", "") or 0) % (2**31 - 1 - offset)


def one_line(text: str, length: int) -> str:
    """One line of at most `length` characters without backslashes, which part values in DICOM."""
    return cut(" ".join(text.replace("\\", "/").split()), length)


def set_time(dataset: Dataset, when: datetime) -> None:
    """One time for the series, the content, the instance and the library that made it."""
    for part in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{part}Date", when.strftime("%Y%m%d"))
        setattr(dataset, f"{part}Time", when.strftime("%H%M%S.%f"))
    for item in items(dataset, "ContributingEquipmentSequence"):
        item.ContributionDateTime = when.strftime("%Y%m%d%H%M%S.%f")


@contextmanager
def refusals(findings: Findings) -> Iterator[None]:
    """Turn what highdicom raises on odd source headers into one clear line, without a value that names the patient."""
    try:
        with quiet_pydicom():
            yield
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        raise OutputError(
            f"{findings.image.path}: the headers of the source do not allow a DICOM result ({type(error).__name__} in "
            "highdicom); re-export the source, or write the masks as NIfTI or PNG"
        ) from error
