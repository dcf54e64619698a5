"""Open-i, the Indiana University chest X-ray collection: 7,470 images of 3,955 reports, indexed with MeSH terms.

Two layouts are read (names, tags and columns as in public code and in published reports):

    ecgen-radiology/N.xml and NLMCXR_png/ (or images/)      as the library gives it out
        <uId id="CXR1"/>, <AbstractText Label="FINDINGS">, <MeSH><major>Opacity/lung/base/left</major>,
        <parentImage id="CXR1_1_IM-0001-3001">: the PNG's name
    indiana_reports.csv, indiana_projections.csv and images/images_normalized/   the copy on Kaggle
        uid, MeSH (a;b), findings, impression, ...; uid, filename, projection (Frontal, Lateral)

Human indexers coded each report: a term of `LABELS` that they did not give counts as absent. Terms are read up to
their first "/", so "Cardiomegaly/mild" is cardiomegaly; "Thickening/pleura" is pleural thickening. Reports marked "No
Indexing" or of unsatisfactory technical quality have no labels. All terms stand in `extra["mesh"]`. The XML files do
not say which image is lateral. The collection has no patient numbers: each report counts as a patient. There is no
official split.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, listed_states, missing_file, read_rows, required_file, required_folder
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow

NAME = "openi"
LABELS: dict[str, str] = {
    "normal": "no finding",
    "Airspace Disease": "airspace disease",
    "Atherosclerosis": "atherosclerosis",
    "Bronchiectasis": "bronchiectasis",
    "Calcified Granuloma": "calcified granuloma",
    "Cardiomegaly": "cardiomegaly",
    "Catheters, Indwelling": "indwelling catheter",
    "Cicatrix": "scar",
    "Consolidation": "consolidation",
    "Emphysema": "emphysema",
    "Pulmonary Emphysema": "emphysema",
    "Fractures, Bone": "fracture",
    "Granuloma": "granuloma",
    "Granulomatous Disease": "granulomatous disease",
    "Hernia, Hiatal": "hiatal hernia",
    "Implanted Medical Device": "implanted medical device",
    "Infiltrate": "infiltration",
    "Kyphosis": "kyphosis",
    "Lung Diseases, Interstitial": "interstitial lung disease",
    "Mass": "mass",
    "Nodule": "nodule",
    "Opacity": "lung opacity",
    "Osteophyte": "osteophyte",
    "Pleural Effusion": "pleural effusion",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Pulmonary Atelectasis": "atelectasis",
    "Pulmonary Congestion": "pulmonary congestion",
    "Pulmonary Disease, Chronic Obstructive": "copd",
    "Pulmonary Edema": "edema",
    "Pulmonary Fibrosis": "pulmonary fibrosis",
    "Scoliosis": "scoliosis",
    "Spondylosis": "spondylosis",
    "Thickening/pleura": "pleural thickening",
    "Tuberculosis": "tuberculosis",
    "Tube, Inserted": "inserted tube",
}

_NOT_INDEXED = ("no indexing", "technical quality of image unsatisfactory")


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read Open-i.

    Args:
        src: its folder, in one of the two layouts.
        out: not used; nothing is written.

    Yields:
        One row per image; the report is repeated for each of its images.

    Raises:
        InputError: neither layout is there, a report is damaged, images are missing.
    """
    if (src / "indiana_reports.csv").is_file():
        yield from _from_tables(src)
    elif (src / "ecgen-radiology").is_dir():
        yield from _from_xml(src)
    else:
        raise missing_file(src, DATASETS[NAME].expects, "ecgen-radiology/", "indiana_reports.csv")


def _from_xml(src: Path) -> Iterator[ManifestRow]:
    expects = DATASETS[NAME].expects
    images = Images(src, expects)
    reports = sorted((src / "ecgen-radiology").glob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    for report in reports:
        root = _parse(report)
        uid = next((node.get("id", "") for node in root.iter("uId")), "") or f"CXR{report.stem}"
        sections = defaultdict(str)
        for node in root.iter("AbstractText"):
            sections[(node.get("Label") or "").upper()] = " ".join("".join(node.itertext()).split())
        terms = [(node.text or "").strip() for node in root.iter("major")]
        for node in root.iter("parentImage"):
            name = node.get("id", "")
            places = (src / folder / f"{name}.png" for folder in ("NLMCXR_png", "images", "."))
            path = images.find(f"{name}.png", *places)
            if path is not None:
                yield _row(uid, name, path, terms, sections["FINDINGS"], sections["IMPRESSION"], "")
    images.finish()


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as XML ({error}); copy or download it again") from error


def _from_tables(src: Path) -> Iterator[ManifestRow]:
    expects = DATASETS[NAME].expects
    images = Images(src, expects)
    rows = read_rows(src / "indiana_reports.csv", ("uid", "MeSH", "findings", "impression"))
    reports = {row["uid"]: row for _, row in rows}
    folder = required_folder(src, expects, "images/images_normalized", "images_normalized", "images")
    projections = required_file(src, expects, "indiana_projections.csv")
    for where, row in read_rows(projections, ("uid", "filename", "projection")):
        report = reports.get(row["uid"])
        if report is None:
            raise InputError(f"{where}: no report {row['uid']!r} in indiana_reports.csv; are both of one version?")
        path = images.find(row["filename"], folder / row["filename"])
        if path is not None:
            name = row["filename"].removesuffix(".png").removesuffix(".dcm")
            terms = [term.strip() for term in report["MeSH"].split(";")]
            texts = report["findings"], report["impression"]
            yield _row(f"CXR{row['uid']}", f"CXR{name}", path, terms, *texts, row["projection"])
    images.finish()


def _row(
    uid: str, name: str, path: Path, terms: list[str], findings: str, impression: str, projection: str
) -> ManifestRow:
    return ManifestRow(
        id=name,
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=uid,
        study=uid,
        series=name,
        view="LATERAL" if projection.lower() == "lateral" else "",
        findings=findings,
        impression=impression,
        labels=_states(terms),
        extra={"mesh": terms} | ({"projection": projection} if projection else {}),
    )


def _states(terms: list[str]) -> dict[str, LabelState]:
    """Present for the terms given, absent for the others; nothing for a report that was not indexed."""
    plain = [term.strip().lower() for term in terms if term.strip()]
    if not plain or any(term.startswith(_NOT_INDEXED) for term in plain):
        return {}
    return listed_states(LABELS, [LABELS[own] for own in map(_own_name, terms) if own in LABELS])


def _own_name(term: str) -> str:
    head, *rest = (part.strip() for part in term.split("/"))
    return f"{head}/pleura" if head == "Thickening" and "pleura" in rest else head
