"""Readings of LIDC-IDRI as XML in the published schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom

Points = Sequence[tuple[int, int]]

RATINGS = {"subtlety": 5, "internalStructure": 1, "calcification": 6, "sphericity": 3, "margin": 4, "lobulation": 2,
           "spiculation": 1, "texture": 5, "malignancy": 3}  # fmt: skip


def ring(y0: int, x0: int, y1: int, x1: int) -> list[tuple[int, int]]:
    """The pixels around the rectangle of rows y0 to y1 - 1 and columns x0 to x1 - 1, in order."""
    top = [(y0 - 1, x) for x in range(x0 - 1, x1 + 1)]
    right = [(y, x1) for y in range(y0, y1)]
    bottom = [(y1, x) for x in range(x1, x0 - 2, -1)]
    left = [(y, x0 - 1) for y in range(y1 - 1, y0 - 1, -1)]
    return top + right + bottom + left


def roi_xml(z: float, uid: str, points: Points, inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for y, x in points)
    return (
        f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def nodule_xml(name: str, rois: Sequence[str], ratings: dict[str, int] | None = None) -> str:
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in (ratings or {}).items())
    block = f"<characteristics>{inner}</characteristics>" if ratings else "<characteristics />"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{block}{''.join(rois)}</unblindedReadNodule>"


def scan_xml(series: str, sessions: Sequence[str], *, kind: str = "LidcReadMessage", head: str = "") -> str:
    bodies = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>anonymous</servicingRadiologistID>{session}</readingSession>"
        for session in sessions
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<{kind} uid="1.2.3" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><ResponseHeader><Version>1.8.1</Version>'
        f"<StudyInstanceUID>1.2.3.4</StudyInstanceUID><SeriesInstanceUid>{series}</SeriesInstanceUid>"
        f"<DateService>2005-11-03</DateService></ResponseHeader>{bodies}</{kind}>"
    )


def slices_of(folder: Path) -> list[tuple[float, str]]:
    """Position and SOPInstanceUID, from feet to head."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
    return sorted((float(header.ImagePositionPatient[2]), str(header.SOPInstanceUID)) for header in headers)


def reader(places: Sequence[tuple[float, str]], rectangles: dict[int, tuple[int, int, int, int]], name: str) -> str:
    """A nodule as rectangles in slices counted from the feet."""
    rois = [roi_xml(*places[depth], ring(*rectangle)) for depth, rectangle in rectangles.items()]
    return nodule_xml(name, rois, RATINGS)
