"""LIDC-IDRI: 1018 CT scans of 1010 patients, nodules outlined by up to four readers each.

Layout (TCIA download): LIDC-IDRI/LIDC-IDRI-NNNN/STUDY/SERIES/*.dcm with the readings as an XML file in the folder of
the CT series; or the XML files apart, for example tcia-lidc-xml/NNN/*.xml, which are matched by SeriesInstanceUID. The
radiographs of the collection are passed over.

One row is one CT series. One phrase is one nodule of 3 mm or more: readers' nodules that share a voxel are the same
nodule, and its mask holds the voxels that at least half of the readers who outlined it drew. (pylidc joins by distance
instead; the two differ only for nodules that touch or that readers saw at different places.) An outline lies just
outside the nodule, so its own pixels are not part of it; see `lidc_xml`. The text is "nodule, N mm", N being the
longest extent of the mask within one slice.

Masks lie on the series' own grid as `read_image` gives it. Slices are found by SOPInstanceUID, else by
position. Where the reader had to resample uneven slices, each new slice takes the outline of the nearest old one.

label nodule: present if some reader outlined one; absent if no reader marked any, not even below 3 mm; else unlabelled.
extra.nodules has, per phrase, the number of readers, the diameter and each reader's ratings (subtlety 1-5,
internalStructure 1-4, calcification 1-6, sphericity, margin, lobulation, spiculation, texture and malignancy 1-5).
No split is published.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radglint.datasets.contours import (
    BoxedMask,
    agreement,
    boxed,
    drawn_pixels,
    enclosed_pixels,
    longest_in_plane_mm,
    overlap_groups,
    union,
)
from radglint.datasets.ct_files import mask_box, write_mask
from radglint.datasets.lidc_xml import Outline, ReaderNodule, ScanReading, read_lidc_xml
from radglint.dicom_file import open_dicom, text
from radglint.errors import InputError
from radglint.geometry import spacing_from_affine
from radglint.image import MedicalImage
from radglint.manifest import LabelState, ManifestRow, Phrase
from radglint.reading import read_image
from radglint.slice_headers import read_slice_headers
from radglint.writing import folder_transaction, write_json

LABELS: dict[str, str] = {"nodule": "nodule"}

CONSENSUS = 0.5
"""Share of the readers who outlined a nodule that must hold a voxel."""
RECORD = "nodules.json"
_FORMAT = 1
_HEADER_TAGS = ["Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True)
class Series:
    """A CT series on disk."""

    folder: Path
    patient: str
    study: str
    uid: str

    @property
    def id(self) -> str:
        """Patient and series: a patient can have several."""
        return f"{self.patient}_{self.uid}"


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """One row for each CT series; masks go to `out`/masks. A series that was done before is not read again.

    Args:
        src: the folder that holds LIDC-IDRI-NNNN/, or a folder above it.
        out: where the manifest will lie.

    Raises:
        InputError: no CT series, a series without its XML, or an XML that does not fit its series.
        ImageError: a series cannot be read.
    """
    src, out = Path(src), Path(out)
    is_empty = True
    for one, xml in read_series(src):
        yield _row(one, _record(one, xml, out))
        is_empty = False
    if is_empty:
        raise InputError(f"{src}: no CT series found, expected LIDC-IDRI-NNNN/STUDY/SERIES/*.dcm; give that folder")


def read_series(src: Path) -> Iterator[tuple[Series, Path]]:
    """The CT series below a folder and the XML file with the readings of each.

    Raises:
        InputError: a series without its XML, or an XML that does not fit its series.
    """
    apart: dict[str, Path] | None = None
    for one in find_series(src):
        found = _xml_beside(one)
        if found is None:
            apart = xml_by_series(src) if apart is None else apart
            found = apart.get(one.uid)
        if found is None:
            raise InputError(
                f"{one.folder}: no readings of series {one.uid}; expected a LIDC XML file in this folder or elsewhere "
                f"below {src}; download the collection's annotations"
            )
        yield one, found


def find_series(src: Path) -> Iterator[Series]:
    """The CT series below a folder, in order of their path; a folder of .dcm files is one series."""
    for where, folders, names in os.walk(src):
        folders.sort()
        dicoms = sorted(name for name in names if name.lower().endswith(".dcm"))
        if not dicoms:
            continue
        first = Path(where, dicoms[0])
        header = open_dicom(first, stop_before_pixels=True, tags=_HEADER_TAGS)
        if text(header, "Modality") != "CT":
            continue
        ids = [text(header, keyword) for keyword in _HEADER_TAGS[1:]]
        if not all(ids):
            raise InputError(f"{first}: {', '.join(_HEADER_TAGS[1:])} expected, got {ids}; download it again")
        yield Series(Path(where).absolute(), *ids)


def xml_by_series(src: Path) -> dict[str, Path]:
    """Every CT reading below a folder by the SeriesInstanceUID it names; the later path wins."""
    found: dict[str, Path] = {}
    for path in sorted(src.rglob("*.xml")):
        reading = read_lidc_xml(path)
        if reading is not None:
            found[reading.series_uid] = path
    return found


def _xml_beside(series: Series) -> Path | None:
    paths = sorted(series.folder.glob("*.xml"))
    if not paths:
        return None
    uids = [reading.series_uid for path in paths if (reading := read_lidc_xml(path)) is not None]
    for path in paths:
        reading = read_lidc_xml(path)
        if reading is not None and reading.series_uid == series.uid:
            return path
    raise InputError(f"{paths[0]}: readings of series {', '.join(uids)}, expected {series.uid} as in the DICOM files")


def _record(series: Series, xml: Path, out: Path) -> dict[str, Any]:
    """What is known of a series: read back if it was written before from the same XML, else worked out and written."""
    folder = out / "masks" / series.id
    digest = hashlib.sha256(xml.read_bytes()).hexdigest()
    done = folder / RECORD
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        if (record["format"], record["xml_sha256"]) == (_FORMAT, digest):
            return record
    reading = read_lidc_xml(xml)
    assert reading is not None  # it was chosen for its series
    image = read_image(series.folder)
    with folder_transaction(folder) as staging:
        record = {"format": _FORMAT, "xml_sha256": digest, **_describe(reading, image, staging)}
        write_json(staging / RECORD, record)
    return record


def _describe(reading: ScanReading, image: MedicalImage, folder: Path) -> dict[str, Any]:
    """Build and write every nodule of a scan."""
    large = [nodule for nodule in reading.nodules if not nodule.is_small]
    nodules, number_drawn = consensus_nodules(reading, image)
    _, row_mm, column_mm = spacing_from_affine(np.asarray(image.affine))
    entries = []
    for number, (mask, readers) in enumerate(nodules, 1):
        whole = np.zeros(image.shape, dtype=bool)
        mask.add_to(whole)
        name = f"nodule_{number:02d}.nii.gz"
        write_mask(folder / name, whole, image)
        entries.append(
            {
                "mask": name,
                "box": list(mask_box(whole)),
                "diameter_mm": round(longest_in_plane_mm(mask, (row_mm, column_mm)), 2),
                "readers": len({reader.reader for reader in readers}),
                "ratings": [{"reader": reader.reader, **reader.ratings} for reader in readers],
            }
        )
    return {
        "size_px": list(image.shape),
        "readers": reading.readers,
        "nodules": entries,
        "without_voxels": len(large) - number_drawn,
        "small_nodules": len(reading.nodules) - len(large),
        "non_nodules": reading.non_nodules,
    }


def consensus_nodules(
    reading: ScanReading, image: MedicalImage
) -> tuple[list[tuple[BoxedMask, list[ReaderNodule]]], int]:
    """The nodules of 3 mm or more of a scan.

    Args:
        reading: of this scan.
        image: the scan as `read_image` gives it.

    Returns:
        Per nodule its consensus mask on the image's grid and what the readers called it, in order of place; and how
        many readers' nodules of 3 mm or more enclose a voxel.

    Raises:
        InputError: an outline belongs to no slice of the series.
    """
    slices = SlicePlaces(image, reading.path)
    large = [nodule for nodule in reading.nodules if not nodule.is_small]
    drawn = [(nodule, mask) for nodule in large if (mask := nodule_mask(nodule, slices)) is not None]
    groups = overlap_groups([mask for _, mask in drawn])
    nodules = [_consensus([drawn[i] for i in group]) for group in groups]
    return sorted(nodules, key=lambda item: mask_box_in(item[0])), len(drawn)


def _consensus(drawn: list[tuple[ReaderNodule, BoxedMask]]) -> tuple[BoxedMask, list[ReaderNodule]]:
    """One nodule: a reader who drew several parts of it counts once."""
    by_reader: dict[int, list[BoxedMask]] = {}
    for nodule, mask in drawn:
        by_reader.setdefault(nodule.reader, []).append(mask)
    return agreement([union(masks) for masks in by_reader.values()], CONSENSUS), [nodule for nodule, _ in drawn]


def mask_box_in(mask: BoxedMask) -> tuple[int, ...]:
    """The half-open box of a boxed mask's voxels in the volume, for ordering."""
    z, y, x, *end = mask_box(mask.voxels)
    return tuple(n + o for n, o in zip((z, y, x, *end), mask.origin * 2, strict=True))


def nodule_mask(nodule: ReaderNodule, slices: SlicePlaces) -> BoxedMask | None:
    """What one reader called nodule: inside the outlines, without the outlines, the holes and their outlines.

    Returns:
        The mask; None if no pixel centre is enclosed.

    Raises:
        InputError: an outline belongs to no slice of the series.
    """
    planes: dict[int, np.ndarray] = {}
    for outline in sorted(nodule.outlines, key=lambda outline: not outline.inclusion):
        inside = enclosed_pixels(outline.points, slices.shape)
        for depth in slices.of(outline):
            plane = planes.setdefault(depth, np.zeros(slices.shape, dtype=bool))
            if outline.inclusion:
                plane |= inside
            else:
                plane &= ~(inside | drawn_pixels(outline.points, slices.shape))
    return boxed(planes)


class SlicePlaces:
    """Which slices of the array an outline belongs to.

    Args:
        image: a DICOM series as `read_image` gives it.
        xml: the readings, for messages.
    """

    def __init__(self, image: MedicalImage, xml: Path) -> None:
        self.shape = (image.shape[1], image.shape[2])
        self._xml, self._series = xml, image.path
        affine = np.asarray(image.affine)
        z_array = affine[2, 0] * np.arange(image.shape[0]) + affine[2, 3]
        if image.is_resampled:
            headers, _ = read_slice_headers([frame.path for frame in image.source_frames])
            z_of = {h.sop_instance_uid: float(h.position_mm[2]) for h in headers if h.position_mm is not None}
            self._z = np.array([z_of[frame.sop_instance_uid] for frame in image.source_frames])
            nearest = np.abs(z_array[:, None] - self._z[None, :]).argmin(axis=1)
            self._depths = [np.flatnonzero(nearest == i).tolist() for i in range(len(self._z))]
        else:
            self._z = z_array
            self._depths = [[depth] for depth in range(len(z_array))]
        self._by_uid = {frame.sop_instance_uid: i for i, frame in enumerate(image.source_frames)}
        self._step_mm = float(np.abs(np.diff(self._z)).min())

    def of(self, outline: Outline) -> list[int]:
        """Depth indices, one unless the series was resampled.

        Raises:
            InputError: no slice has this UID, nor lies at this position (within half a slice).
        """
        source = self._by_uid.get(outline.sop_uid)
        if source is None:
            source = int(np.abs(self._z - outline.z_mm).argmin())
            if abs(self._z[source] - outline.z_mm) > self._step_mm / 2:
                raise InputError(
                    f"{self._xml}: an outline at z {outline.z_mm:g} mm, slice {outline.sop_uid or 'without UID'}, but "
                    f"{self._series} has no such slice ({self._z.min():g} to {self._z.max():g} mm); are files missing?"
                )
        return self._depths[source]


def _row(series: Series, record: dict[str, Any]) -> ManifestRow:
    nodules = record["nodules"]
    folder = f"masks/{series.id}"
    marked = bool(record["small_nodules"] or record["without_voxels"])
    labels: dict[str, LabelState] = {"nodule": "present"} if nodules else {} if marked else {"nodule": "absent"}
    return ManifestRow(
        id=series.id,
        image=str(series.folder),
        modality="CT",
        dataset="lidc-idri",
        patient=series.patient,
        study=series.study,
        series=series.uid,
        labels=labels,
        phrases=tuple(
            Phrase(
                text=f"nodule, {max(1, round(nodule['diameter_mm']))} mm",
                label="nodule",
                boxes=(tuple(nodule["box"]),),
                masks=(f"{folder}/{nodule['mask']}",),
            )
            for nodule in nodules
        ),
        size_px=tuple(record["size_px"]),
        extra={
            "readers": record["readers"],
            "nodules": [{key: nodule[key] for key in ("diameter_mm", "readers", "ratings")} for nodule in nodules],
            "small_nodules": record["small_nodules"],
            "non_nodules": record["non_nodules"],
        },
    )
