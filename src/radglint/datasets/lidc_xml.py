"""The XML file with the readings of one LIDC-IDRI scan.

    LidcReadMessage                       namespace http://www.nih.gov; IdriReadMessage for radiographs, not read here
      ResponseHeader
        StudyInstanceUID, SeriesInstanceUid
      readingSession                      one for each of up to four readers
        servicingRadiologistID
        unblindedReadNodule               what this reader called a nodule
          noduleID
          characteristics                 only if 3 mm or more: subtlety ... malignancy, whole numbers
          roi                             one outline in one slice; a single point if the nodule is below 3 mm
            imageZposition, imageSOP_UID
            inclusion                     TRUE, or FALSE for a hole in the nodule
            edgeMap: xCoord, yCoord       column and row; the first pixel outside the nodule
        nonNodule                         a lesion of 3 mm or more that is no nodule: one point (locus)

Element names verified in several public parsers of these files. That the outline is "the first voxel just outside the
nodule" is LIDC's own documentation of the file, quoted in github.com/notmatthancock/pylidc/issues/15; pull request 16
there has the confirmation by an author of LIDC that outline pixels are not nodule, for holes as well. That coordinates
count from 0 is how public readers take them; no document was found that says it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from radglint.errors import InputError

MAX_XML_BYTES = 64 * 2**20
"""The largest file of the set is a few MB."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What a reader drew in one slice.

    Attributes:
        z_mm: ImagePositionPatient z of the slice.
        sop_uid: SOPInstanceUID of the slice, empty if not given.
        inclusion: False for a hole.
        points: int, n x 2, (row, column), in drawing order.
    """

    z_mm: float
    sop_uid: str
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class ReaderNodule:
    """One reader's nodule.

    Attributes:
        reader: number of the reading session, from 0.
        name: noduleID, unique for that reader only.
        ratings: characteristics by name; empty below 3 mm.
        outlines: in the order of the file.
    """

    reader: int
    name: str
    ratings: dict[str, int] = field(default_factory=dict)
    outlines: tuple[Outline, ...] = ()

    @property
    def is_small(self) -> bool:
        """Below 3 mm: marked with one point, without an extent."""
        return all(len(outline.points) < 2 for outline in self.outlines)


@dataclass(frozen=True, eq=False)
class ScanReading:
    """All readings of one scan.

    Attributes:
        path: the file.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID of the CT series that was read.
        readers: number of reading sessions.
        nodules: of all readers.
        non_nodules: number of marks for lesions that are no nodules.
    """

    path: Path
    study_uid: str
    series_uid: str
    readers: int
    nodules: tuple[ReaderNodule, ...]
    non_nodules: int


def read_lidc_xml(path: Path) -> ScanReading | None:
    """Read the readings of a CT scan.

    Args:
        path: the XML file.

    Returns:
        The readings; None if the file holds the reading of radiographs (IdriReadMessage).

    Raises:
        InputError: no XML, a document type (entities are never expanded), another root element, or a value that is
            missing or no number; the message names file and element.
    """
    root = parse_without_entities(path)
    kind = _local(root)
    if kind == "IdriReadMessage":
        return None
    if kind != "LidcReadMessage":
        raise InputError(f"{path}: root element {kind!r}, expected LidcReadMessage; give the XML files of LIDC-IDRI")
    header = _child(root, "ResponseHeader", path)
    sessions = _children(root, "readingSession")
    return ScanReading(
        path=path,
        study_uid=_text(header, "StudyInstanceUID", path, optional=True),
        series_uid=_text(header, "SeriesInstanceUid", path),
        readers=len(sessions),
        nodules=tuple(
            _nodule(node, reader, path)
            for reader, session in enumerate(sessions)
            for node in _children(session, "unblindedReadNodule")
        ),
        non_nodules=sum(len(_children(session, "nonNodule")) for session in sessions),
    )


def parse_without_entities(path: Path) -> Element:
    """Parse an XML file and refuse document types, so that no entity can be declared or expanded.

    Returns:
        The root element; names are `namespace}local`.

    Raises:
        InputError: unreadable, too large, not well-formed, or with a document type.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise InputError(f"{path}: the XML declares a document type, which LIDC files do not have; it is not read")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise InputError(f"{path}: more than {MAX_XML_BYTES} bytes; expected the readings of one scan")
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the name and the permission") from error
    except expat.ExpatError as error:
        raise InputError(f"{path}: not well-formed XML ({error}); download it again") from error


def _nodule(node: Element, reader: int, path: Path) -> ReaderNodule:
    ratings: dict[str, int] = {}
    for block in _children(node, "characteristics"):
        ratings = {_local(item): _integer(item, path) for item in block if (item.text or "").strip()}
    outlines = tuple(_outline(roi, path) for roi in _children(node, "roi"))
    return ReaderNodule(reader, _text(node, "noduleID", path), ratings, outlines)


def _outline(roi: Element, path: Path) -> Outline:
    z_text = _text(roi, "imageZposition", path)
    try:
        z_mm = float(z_text)
    except ValueError as error:
        raise InputError(f"{path}: imageZposition {z_text!r}, expected a number in mm; download it again") from error
    included = _text(roi, "inclusion", path, optional=True).upper() or "TRUE"
    if included not in ("TRUE", "FALSE"):
        raise InputError(f"{path}: inclusion {included!r}, expected TRUE or FALSE; download it again")
    points = [
        (_integer(_child(edge, "yCoord", path), path), _integer(_child(edge, "xCoord", path), path))
        for edge in _children(roi, "edgeMap")
    ]
    if not points:
        raise InputError(f"{path}: a roi at z {z_text} has no edgeMap, expected its outline; download it again")
    sop_uid = _text(roi, "imageSOP_UID", path, optional=True)
    return Outline(z_mm, sop_uid, included == "TRUE", np.array(points, dtype=np.int64))


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if _local(child) == name]


def _child(element: Element, name: str, path: Path) -> Element:
    found = _children(element, name)
    if not found:
        raise InputError(f"{path}: {_local(element)} has no {name}, expected one; give the XML files of LIDC-IDRI")
    return found[0]


def _text(element: Element, name: str, path: Path, *, optional: bool = False) -> str:
    if optional and not _children(element, name):
        return ""
    text = (_child(element, name, path).text or "").strip()
    if not text and not optional:
        raise InputError(f"{path}: {name} in {_local(element)} is empty, expected a value; download it again")
    return text


def _integer(element: Element, path: Path) -> int:
    text = (element.text or "").strip()
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{path}: {_local(element)} {text!r}, expected a whole number; download it again") from error
