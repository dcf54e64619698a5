"""CT-RATE: chest CT with reports and 18 labels, in two releases that must be read in different ways.

Layout (paths and columns verified in public code that reads the data, among it TorchIO's and CT-CLIP's):

    dataset/train/train_1/train_1_a/train_1_a_1.nii.gz            first release (v1), dataset/valid/ likewise
    dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz      second release (v2), dataset/valid_fixed/ likewise
    dataset/radiology_text_reports/{train,validation}_reports.csv        VolumeName, ClinicalInformation_EN,
                                                                         Technique_EN, Findings_EN, Impressions_EN
    dataset/multi_abnormality_labels/{train,valid}_predicted_labels.csv  VolumeName and 18 columns of 0 and 1
    dataset/metadata/{train,validation}_metadata.csv    VolumeName, RescaleSlope, RescaleIntercept, XYSpacing "[x, y]",
                                                        ZSpacing, ImagePositionPatient, ImageOrientationPatient
    dataset/metadata/no_chest_{train,valid}.txt         scans of another body part, kept and marked extra.no_chest

HU: a v1 file holds stored values and neither HU nor spacing nor orientation in its header; the metadata table has
them. A v2 file (`*_fixed`) holds HU and its geometry. Official scripts rescale v2 again, which shifts everything by
the intercept. So v2 files are taken as they are; v1 files are written anew below `out`/images as HU (int16) with the
geometry of the table, as the data set's own fix_metadata.py does (TorchIO's copy of it was read): voxel (i, j, k) lies
at ImagePositionPatient + i * x spacing * row direction + j * y spacing * column direction + k * ZSpacing * normal.
(That script hands the direction cosines over transposed, which is the same for axial scans; those of ReXGroundingCT all
are.) Where position or orientation is not in the table, an axial scan at the origin is assumed, and extra.geometry
says so.
Both releases are checked: v1 on conversion, v2 by `read_image`, which refuses stored values and a double rescale.

Units: train_PATIENT_SCAN_RECONSTRUCTION. patient = train_1, study = train_1_a (one scan, one report), series = one
reconstruction. Patients are numbered anew in each part. The published evaluation set `valid` (here: val) has 1304
patients, 1564 scans and 3039 reconstructions; reconstructions of one scan share report and labels and are not
independent. Its labels come from a text classifier, not from readers of the images.

VLM3D challenge, task 3, segments five findings on these scans: pericardial effusion, pleural effusion, consolidation,
ground-glass opacity and nodule. `VLM3D_TASK3` maps them to the labels here; ground-glass opacity has none of its own
among the 18, the wider "Lung opacity" is the nearest. The challenge's masks are not part of the layout above.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from radglint.datasets.ct_files import is_written, load_nifti, voxels, write_volume
from radglint.datasets.tables import Images, missing_file, number, optional_file, read_rows, required_file
from radglint.errors import ImageError, InputError
from radglint.geometry import lps_to_ras
from radglint.hounsfield import check_hu
from radglint.manifest import LabelState, ManifestRow

LABELS: dict[str, str] = {
    "Medical material": "medical material",
    "Arterial wall calcification": "arterial wall calcification",
    "Cardiomegaly": "cardiomegaly",
    "Pericardial effusion": "pericardial effusion",
    "Coronary artery wall calcification": "coronary artery wall calcification",
    "Hiatal hernia": "hiatal hernia",
    "Lymphadenopathy": "lymphadenopathy",
    "Emphysema": "emphysema",
    "Atelectasis": "atelectasis",
    "Lung nodule": "nodule",
    "Lung opacity": "lung opacity",
    "Pulmonary fibrotic sequela": "pulmonary fibrotic sequela",
    "Pleural effusion": "pleural effusion",
    "Mosaic attenuation pattern": "mosaic attenuation pattern",
    "Peribronchial thickening": "peribronchial thickening",
    "Consolidation": "consolidation",
    "Bronchiectasis": "bronchiectasis",
    "Interlobular septal thickening": "interlobular septal thickening",
}
"""The 18 labels in the order of the files: own name to manifest name."""

VLM3D_TASK3: dict[str, str] = {
    "pericardial effusion": "pericardial effusion",
    "pleural effusion": "pleural effusion",
    "consolidation": "consolidation",
    "ground-glass opacity": "lung opacity",
    "nodule": "nodule",
}
"""Finding of the challenge to the manifest label that is nearest to it."""

EXPECTS = {
    "v1": "dataset/train/ or dataset/valid/ with radiology_text_reports/, multi_abnormality_labels/ and metadata/",
    "v2": "dataset/train_fixed/ or dataset/valid_fixed/ with radiology_text_reports/ and multi_abnormality_labels/",
}
PARTS = {"train": "train", "valid": "validation"}
"""Part as in file names, and as some tables write it."""

_SPLITS: dict[str, Literal["train", "val"]] = {"train": "train", "valid": "val"}
_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
_REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
_SCALE_COLUMNS = ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")
_PLACE_COLUMNS = ("ImagePositionPatient", "ImageOrientationPatient")
_STATES: dict[str, LabelState] = {"0": "absent", "0.0": "absent", "1": "present", "1.0": "present"}
_NOT_GIVEN = {"not given.", "not given", "nan"}


def convert_v1(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Rows of the first release; each volume is written as HU to `out`/images when its row is asked for.

    A volume that an earlier run wrote is kept, so a stopped conversion goes on where it was.

    Args:
        src: the folder that holds dataset/, or dataset/ itself.
        out: where the manifest will lie.

    Raises:
        InputError: a table, a column or a volume is missing, or a value cannot be used; names file and row.
        ImageError: a volume is not stored values (already rescaled, or damaged).
    """
    return _convert(Path(src), Path(out), "v1")


def convert_v2(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Rows of the second release; nothing is written.

    Args:
        src: the folder that holds dataset/, or dataset/ itself.
        out: not used.

    Raises:
        InputError: a table, a column or a volume is missing, or a value cannot be used; names file and row.
    """
    return _convert(Path(src), Path(out), "v2")


convert = convert_v2


def _convert(src: Path, out: Path, release: Literal["v1", "v2"]) -> Iterator[ManifestRow]:
    root = src / "dataset" if (src / "dataset").is_dir() else src
    folders = {part: root / (part if release == "v1" else f"{part}_fixed") for part in PARTS}
    present = [part for part, folder in folders.items() if folder.is_dir()]
    if not present:
        raise missing_file(root, EXPECTS[release], *(f"{folder.name}/" for folder in folders.values()))
    images = Images(src, EXPECTS[release])
    for part in present:
        yield from _part(root, part, folders[part], out, release, images)
    images.finish()


def _part(
    root: Path, part: str, folder: Path, out: Path, release: Literal["v1", "v2"], images: Images
) -> Iterator[ManifestRow]:
    expects = EXPECTS[release]
    reports = required_file(root / "radiology_text_reports", expects, f"{PARTS[part]}_reports.csv")
    labels = _labels(required_file(root / "multi_abnormality_labels", expects, f"{part}_predicted_labels.csv"))
    scales = {}
    if release == "v1":
        scales = _scales(required_file(root / "metadata", expects, f"{PARTS[part]}_metadata.csv"))
    no_chest = _no_chest(root / "metadata", part)
    for where, row in read_rows(reports, _REPORT_COLUMNS):
        name = row["VolumeName"]
        patient, study = parse_name(where, name, part)
        relative = Path(patient, study, name)
        path = images.find(f"{folder.name}/{relative.as_posix()}", folder / relative)
        if path is None:
            continue
        extra: dict[str, Any] = {"no_chest": True} if name in no_chest else {}
        extra |= {"clinical_information": _given(row["ClinicalInformation_EN"])}
        extra |= {"technique": _given(row["Technique_EN"])}
        image = str(path)
        if release == "v1":
            image = f"images/{relative.as_posix()}"
            extra["geometry"] = write_fixed(path, out / image, name, scales)
        yield ManifestRow(
            id=name.removesuffix(".nii.gz"),
            image=image,
            modality="CT",
            dataset=f"ct-rate-{release}",
            patient=patient,
            study=study,
            series=name.removesuffix(".nii.gz"),
            split=_SPLITS[part],
            findings=_given(row["Findings_EN"]),
            impression=_given(row["Impressions_EN"]),
            labels=labels.get(name, {}),
            extra=extra,
        )


def parse_name(where: str, name: str, part: str) -> tuple[str, str]:
    """Patient and study of a volume's name.

    Raises:
        InputError: not PART_PATIENT_SCAN_RECONSTRUCTION.nii.gz, or of another part.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[2] != part:
        raise InputError(f"{where}, column 'VolumeName': expected {part}_NUMBER_LETTER_NUMBER.nii.gz, got {name!r}")
    return match[1], f"{match[1]}_{match[3]}"


def _given(text: str) -> str:
    """A report section; empty where the data set says that there is none."""
    return "" if text.lower() in _NOT_GIVEN else text


def _labels(path: Path) -> dict[str, dict[str, LabelState]]:
    """States by volume; a blank cell is unlabelled."""
    found: dict[str, dict[str, LabelState]] = {}
    for where, row in read_rows(path, ("VolumeName", *LABELS)):
        states: dict[str, LabelState] = {}
        for own, label in LABELS.items():
            if row[own] and row[own] not in _STATES:
                raise InputError(f"{where}, column {own!r}: expected 0 or 1, got {row[own]!r}")
            if row[own]:
                states[label] = _STATES[row[own]]
        found[row["VolumeName"]] = states
    return found


def _no_chest(folder: Path, part: str) -> set[str]:
    """Names of volumes that the data set lists as another body part; the list may be missing."""
    path = optional_file(folder, f"no_chest_{part}.txt")
    if path is None:
        return set()
    names = (line.strip().rpartition("/")[2] for line in path.read_text(encoding="utf-8").splitlines())
    return {name if name.endswith(".nii.gz") else f"{name}.nii.gz" for name in names if name}


def _scales(path: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Where a volume's metadata stand, and the columns that are needed."""
    wanted = (*_SCALE_COLUMNS, *_PLACE_COLUMNS)
    return {
        row["VolumeName"]: (where, {name: row[name] for name in wanted if name in row})
        for where, row in read_rows(path, _SCALE_COLUMNS)
    }


def write_fixed(path: Path, target: Path, name: str, scales: dict[str, tuple[str, dict[str, str]]]) -> str:
    """Write a v1 volume as HU with its geometry, unless it is there already.

    Args:
        path: the v1 file.
        target: the file to write.
        name: VolumeName.
        scales: metadata by VolumeName.

    Returns:
        "from metadata" or "axial, assumed": where the orientation comes from.

    Raises:
        InputError: no metadata, or values that cannot be used.
        ImageError: what comes out is not HU, so the file did not hold stored values.
    """
    if name not in scales:
        raise InputError(f"{path}: no row {name!r} in the metadata table, which has the rescale; download the table")
    where, row = scales[name]
    affine, origin = _affine(where, row)
    slope, intercept = number(where, row, "RescaleSlope"), number(where, row, "RescaleIntercept")
    nifti = load_nifti(path)
    if len(nifti.shape) != 3:
        raise InputError(f"{path}: shape {tuple(nifti.shape)}, expected a volume with three axes")
    if not is_written(target, nifti.shape[::-1], affine):
        hu = rescaled(voxels(nifti, path).transpose(2, 1, 0), slope, intercept, where)
        try:
            check_hu(hu, str(path))
        except ImageError as error:
            raise ImageError(
                f"{error} (after slope {slope:g} and intercept {intercept:g} of {where}; a file that held HU before "
                "is of the second release: convert it as ct-rate-v2)"
            ) from error
        write_volume(target, hu, affine)
    return origin


def rescaled(stored: np.ndarray, slope: float, intercept: float, where: str) -> np.ndarray:
    """HU of stored values, slice by slice so that no second volume of floats is held.

    Args:
        stored: numbers, `depth height width`.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        where: for messages.

    Returns:
        int16, rounded.

    Raises:
        InputError: a value does not fit into int16.
    """
    hu = np.empty(stored.shape, dtype=np.int16)
    limits = np.iinfo(np.int16)
    for out, plane in zip(hu, stored, strict=True):
        values = np.rint(plane.astype(np.float64) * slope + intercept)
        if not (values.min() >= limits.min and values.max() <= limits.max):
            raise InputError(
                f"{where}: HU from {values.min():g} to {values.max():g} with slope {slope:g} and intercept "
                f"{intercept:g}, expected {limits.min} to {limits.max}; is this the row of the volume?"
            )
        out[...] = values
    return hu


def _affine(where: str, row: dict[str, str]) -> tuple[np.ndarray, str]:
    """Index (depth, height, width, 1) to RAS+ mm, and where the orientation comes from."""
    x_mm, y_mm = _numbers(where, row, "XYSpacing", 2)
    slice_mm = number(where, row, "ZSpacing")
    if min(x_mm, y_mm, slice_mm) <= 0:
        raise InputError(f"{where}: XYSpacing {row['XYSpacing']!r}, ZSpacing {row['ZSpacing']!r}, expected positive mm")
    known = all(row.get(column, "").lower() not in ("", "nan") for column in _PLACE_COLUMNS)
    position = _numbers(where, row, _PLACE_COLUMNS[0], 3) if known else (0.0, 0.0, 0.0)
    directions = _numbers(where, row, _PLACE_COLUMNS[1], 6) if known else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    along_row, along_column = np.array(directions[:3]), np.array(directions[3:])
    affine = np.eye(4)
    affine[:3, 0] = np.cross(along_row, along_column) * slice_mm
    affine[:3, 1] = along_column * y_mm
    affine[:3, 2] = along_row * x_mm
    affine[:3, 3] = position
    return lps_to_ras(affine), "from metadata" if known else "axial, assumed"


def _numbers(where: str, row: dict[str, str], column: str, count: int) -> tuple[float, ...]:
    """A list of numbers in brackets.

    Raises:
        InputError: names row, column and what stands there.
    """
    try:
        values = tuple(float(value) for value in ast.literal_eval(row[column]))
    except (ValueError, SyntaxError, TypeError):
        values = ()
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{where}, column {column!r}: expected {count} numbers in brackets, got {row[column]!r}")
    return values
