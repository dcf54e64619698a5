"""COVID-19 radiographs: the image data collection of Cohen et al., and the opacity outlines of COVID-19 Rural.

"COVID-19 CXR" stands for several public sets. The collection of Cohen et al. is the one that most others (COVIDx
among them) were built from, and it has a licence for each image; COVID-19 Rural is the one that grounding studies use
(MedKLIP, MAVL). COVIDx itself is not read: its folders are copies of other sets, which have their own adapters.

`convert`: covid-chestxray-dataset (header and rows of the published file, and its severity table, were read)

    metadata.csv                             patientid, offset, sex, age, finding, view, modality, folder, filename,
                                             license, clinical_notes, ... (first versions: Patientid, no modality)
    images/FILENAME
    annotations/covid-severity-scores.csv    filename, geographic_mean, opacity_mean (optional)

`finding` is a path such as "Pneumonia/Viral/COVID-19" (first versions "COVID-19"). Labels not in it are absent;
"todo", "Unknown" and a blank give no labels. The notes are of the case, not of this one image, and so are no report:
they stand in `extra`, with the licence. CT images are left out.

`convert_rural`: opacity_segmentation_covid_chest_X_ray (folder and file names and the meaning of the masks read)

    covid_rural_annot/jpgs/COVID-19-AR-N_MM-DD-YYYY-XR.jpg
    covid_rural_annot/jpgs/jsons/....json    outlines of the lungs and opacities
    covid_rural_annot/pngs_masks/....png     0 outside, 1 in an opacity

An image with a mask has a lung opacity; one with outlines of the lungs only has none; the others are not labelled. All
patients have COVID-19. No split is official in either set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import (
    Images,
    listed_states,
    missing_file,
    number,
    optional_file,
    raster_size_px,
    read_rows,
    required_file,
    view,
)
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow, Phrase

NAME = "covid-19-cxr"
RURAL = "covid-19-rural"
LABELS: dict[str, str] = {
    "No Finding": "no finding",
    "Pneumonia": "pneumonia",
    "Viral": "viral pneumonia",
    "Bacterial": "bacterial pneumonia",
    "Fungal": "fungal pneumonia",
    "Lipoid": "lipoid pneumonia",
    "Aspiration": "aspiration pneumonia",
    "COVID-19": "covid-19",
    "SARS": "sars",
    "MERS-CoV": "mers",
    "ARDS": "acute respiratory distress syndrome",
    "Tuberculosis": "tuberculosis",
}
RURAL_LABELS: dict[str, str] = {"opacity": "lung opacity", "COVID-19": "covid-19"}

_UNKNOWN = ("", "todo", "unknown")
_PNEUMONIAS = ("COVID-19", "SARS", "MERS-CoV")
_RURAL_NAME = re.compile(r"(COVID-19-AR-\d+)_(\d\d-\d\d-\d{4})-\w+")


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read the image data collection.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per radiograph of the table.

    Raises:
        InputError: the table or a column is missing, images are missing.
    """
    expects = DATASETS[NAME].expects
    table = required_file(src, expects, "metadata.csv")
    severity = _severity(optional_file(src, "annotations/covid-severity-scores.csv"))
    images = Images(src, expects)
    for _, row in _lower_case(table):
        if not _is_radiograph(row):
            continue
        name = row["filename"]
        path = images.find(f"images/{name}", src / "images" / name)
        if path is None:
            continue
        known = {key: row[key] for key in ("sex", "age", "offset", "license", "doi", "url") if row.get(key)}
        notes = row.get("clinical_notes") or row.get("clinical notes") or row.get("notes") or ""
        yield ManifestRow(
            id=name.rsplit(".", 1)[0],
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=row["patientid"],
            study=f"{row['patientid']}_{row.get('offset', '')}",
            series=name,
            view=view(row["view"]),
            labels=_states(row["finding"]),
            extra=known | {"finding": row["finding"], "clinical_notes": notes} | severity.get(name, {}),
        )
    images.finish()


def _lower_case(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows with lower-case column names: the first versions write Patientid."""
    needed = {"patientid", "finding", "view", "filename"}
    for where, row in read_rows(table, ()):
        plain = {column.lower(): value for column, value in row.items()}
        if not needed <= plain.keys():
            lacking, header = ", ".join(sorted(needed - plain.keys())), ", ".join(row)
            raise InputError(f"{table}: no column {lacking}; the header has {header}; is it the file as published?")
        yield where, plain


def _is_radiograph(row: dict[str, str]) -> bool:
    if "modality" in row:
        return row["modality"].lower() == "x-ray" and row.get("folder", "images") == "images"
    return not row["view"].lower().startswith(("ct", "axial", "coronal"))


def _states(finding: str) -> dict[str, LabelState]:
    parts = [part.strip() for part in re.split(r"[/,]", finding)]
    if finding.strip().lower() in _UNKNOWN:
        return {}
    present = [LABELS[part] for part in parts if part in LABELS]
    if any(part in _PNEUMONIAS for part in parts):
        present += ["pneumonia", "viral pneumonia"]  # the first versions name only the virus
    return listed_states(LABELS, present)


def _severity(path: Path | None) -> dict[str, dict[str, Any]]:
    """Image to the mean of three readers: extent 0 to 8 and opacity 0 to 6."""
    columns = ("filename", "geographic_mean", "opacity_mean")
    rows = read_rows(path, columns, comment="#") if path else ()
    return {
        row["filename"]: {
            "extent_0_to_8": number(where, row, "geographic_mean"),
            "opacity_0_to_6": number(where, row, "opacity_mean"),
        }
        for where, row in rows
    }


def convert_rural(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read COVID-19 Rural with its outlines.

    Args:
        src: the repository's folder or its `covid_rural_annot`.
        out: not used; the masks stay where they are.

    Yields:
        One row per image.

    Raises:
        InputError: the folders are missing, a name is not of the expected form, a mask has another size.
    """
    expects = DATASETS[RURAL].expects
    root = src / "covid_rural_annot" if (src / "covid_rural_annot").is_dir() else src
    files = sorted((root / "jpgs").glob("*.jpg"))
    if not files or not (root / "pngs_masks").is_dir():
        raise missing_file(root, expects, "jpgs/*.jpg and pngs_masks/")
    for path in files:
        match = _RURAL_NAME.fullmatch(path.stem)
        if match is None:
            raise InputError(f"{path}: expected a name such as COVID-19-AR-16406488_01-15-2012-XR.jpg")
        yield _rural_row(root, path.absolute(), match[1], match[2])


def _rural_row(root: Path, path: Path, patient: str, date: str) -> ManifestRow:
    size, mask = raster_size_px(path), (root / "pngs_masks" / f"{path.stem}.png").absolute()
    has_mask = mask.is_file()
    if has_mask and raster_size_px(mask) != size:
        raise InputError(f"{mask}: the mask has {raster_size_px(mask)} pixels, the image {size}; download both again")
    labels: dict[str, LabelState] = {"covid-19": "present"}
    if has_mask:
        labels["lung opacity"] = "present"
    elif any((root / "jpgs" / folder / f"{path.stem}.json").is_file() for folder in ("jsons", ".")):
        labels["lung opacity"] = "absent"
    return ManifestRow(
        id=path.stem,
        image=str(path),
        modality="CXR",
        dataset=RURAL,
        patient=patient,
        study=f"{patient}_{date}",
        series=path.stem,
        labels=labels,
        phrases=(Phrase("lung opacity", "lung opacity", masks=(str(mask),)),) if has_mask else (),
        size_px=size,
    )
