"""RAD-ChestCT: 3,630 public chest CT of Duke with 84 abnormalities, each with the locations it was found in.

Layout (Zenodo record 6406114; file names, columns and the 84 abnormalities verified in public code that reads them):

    trnNNNNN.npz, valNNNNN.npz, tstNNNNN.npz    here or in any folder below; one array, key `ct`
    img{train,valid,test}_Abnormality_and_Location_Labels.csv    NoteAcc_DEID, then ABNORMALITY*LOCATION columns of 0, 1
    CT_Scan_Metadata_Complete_35747.csv         optional: NoteAcc_DEID, MRN_DEID (patient), final_spacing (mm)

Each of the three label tables may be missing, not all of them. Only scans that a table lists are read.

Volumes: int16 HU, rounded and clipped to -1000 to 1000 by the owners, resampled to 0.8 mm in all directions
(`final_spacing` where the metadata have it). The owners' preprocessing was read: axis 0 runs over slices from the
highest position down, axes 1 and 2 are rows and columns of an axial scan; and the columns of their lung-box table,
sup_axis0min, inf_axis0max, ant_axis1min, pos_axis1max, rig_axis2min, lef_axis2max, say the same: index grows toward the
feet, the back and the patient's left. A third party reports to have checked it by eye. It was not checked here on a
scan. There is no position, so the origin is 0. An npz cannot be read by `read_image`, so each is written as NIfTI below
`out`/images when its row is asked for; no voxel is moved or changed.

Labels come from the report by rules (SARLE), per scan: a label is present if any of its locations is 1, else absent.
extra.locations lists the locations of what is present. `CT_CLIP_16` gives the 16 classes of CT-RATE that CT-CLIP
evaluates on here, as one or more abnormalities each; rows hold them too. That table was read in third-party code (the
owners of CT-CLIP give labels, not the rule): "Medical material" in particular is one reading of it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from radglint.datasets.ct_files import is_written, write_volume
from radglint.datasets.tables import Images, missing_file, number, optional_file, read_rows
from radglint.errors import InputError
from radglint.geometry import lps_to_ras
from radglint.hounsfield import check_hu
from radglint.manifest import LabelState, ManifestRow

LABELS: dict[str, str] = {
    "air_trapping": "air trapping",
    "airspace_disease": "airspace disease",
    "aneurysm": "aneurysm",
    "arthritis": "arthritis",
    "aspiration": "aspiration",
    "atelectasis": "atelectasis",
    "atherosclerosis": "atherosclerosis",
    "bandlike_or_linear": "bandlike or linear opacity",
    "breast_implant": "breast implant",
    "breast_surgery": "breast surgery",
    "bronchial_wall_thickening": "bronchial wall thickening",
    "bronchiectasis": "bronchiectasis",
    "bronchiolectasis": "bronchiolectasis",
    "bronchiolitis": "bronchiolitis",
    "bronchitis": "bronchitis",
    "cabg": "coronary artery bypass graft",
    "calcification": "calcification",
    "cancer": "cancer",
    "cardiomegaly": "cardiomegaly",
    "catheter_or_port": "catheter or port",
    "cavitation": "cavitation",
    "chest_tube": "chest tube",
    "clip": "clip",
    "congestion": "congestion",
    "consolidation": "consolidation",
    "coronary_artery_disease": "coronary artery disease",
    "cyst": "cyst",
    "debris": "debris",
    "deformity": "deformity",
    "density": "density",
    "dilation_or_ectasia": "dilation or ectasia",
    "distention": "distention",
    "emphysema": "emphysema",
    "fibrosis": "fibrosis",
    "fracture": "fracture",
    "gi_tube": "gastrointestinal tube",
    "granuloma": "granuloma",
    "groundglass": "ground-glass opacity",
    "hardware": "hardware",
    "heart_failure": "heart failure",
    "heart_valve_replacement": "heart valve replacement",
    "hemothorax": "hemothorax",
    "hernia": "hernia",
    "honeycombing": "honeycombing",
    "infection": "infection",
    "infiltrate": "infiltrate",
    "inflammation": "inflammation",
    "interstitial_lung_disease": "interstitial lung disease",
    "lesion": "lesion",
    "lucency": "lucency",
    "lung_resection": "lung resection",
    "lymphadenopathy": "lymphadenopathy",
    "mass": "mass",
    "mucous_plugging": "mucous plugging",
    "nodule": "nodule of any organ",
    "nodulegr1cm": "nodule larger than 1 cm",
    "opacity": "opacity",
    "other_path": "other pathology",
    "pacemaker_or_defib": "pacemaker",
    "pericardial_effusion": "pericardial effusion",
    "pericardial_thickening": "pericardial thickening",
    "plaque": "plaque",
    "pleural_effusion": "pleural effusion",
    "pleural_thickening": "pleural thickening",
    "pneumonia": "pneumonia",
    "pneumonitis": "pneumonitis",
    "pneumothorax": "pneumothorax",
    "postsurgical": "postsurgical change",
    "pulmonary_edema": "pulmonary edema",
    "reticulation": "reticulation",
    "scarring": "scarring",
    "scattered_calc": "scattered calcifications",
    "scattered_nod": "scattered nodules",
    "secretion": "secretion",
    "septal_thickening": "septal thickening",
    "soft_tissue": "soft tissue",
    "staple": "staple",
    "stent": "stent",
    "sternotomy": "sternotomy",
    "suture": "suture",
    "tracheal_tube": "tracheal tube",
    "transplant": "transplant",
    "tree_in_bud": "tree in bud",
    "tuberculosis": "tuberculosis",
}
"""The 84 abnormalities: own name to manifest name."""

CT_CLIP_16: dict[str, tuple[str, ...]] = {
    "medical material": (
        "catheter_or_port", "chest_tube", "clip", "gi_tube", "hardware", "pacemaker_or_defib", "stent", "tracheal_tube",
    ),
    "calcification": ("calcification",),
    "cardiomegaly": ("cardiomegaly",),
    "pericardial effusion": ("pericardial_effusion",),
    "hiatal hernia": ("hernia",),
    "lymphadenopathy": ("lymphadenopathy",),
    "emphysema": ("emphysema",),
    "atelectasis": ("atelectasis",),
    "nodule": ("nodule", "nodulegr1cm"),
    "lung opacity": ("opacity",),
    "pulmonary fibrotic sequela": ("fibrosis",),
    "pleural effusion": ("pleural_effusion",),
    "peribronchial thickening": ("bronchial_wall_thickening",),
    "consolidation": ("consolidation",),
    "bronchiectasis": ("bronchiectasis",),
    "interlobular septal thickening": ("septal_thickening",),
}  # fmt: skip
"""The 16 classes of the CT-CLIP evaluation: manifest name to the abnormalities of which any one counts."""

EXPECTS = "trnNNNNN.npz, valNNNNN.npz, tstNNNNN.npz with imgtrain/imgvalid/imgtest_Abnormality_and_Location_Labels.csv"
SPACING_MM = 0.8

_KEY = "NoteAcc_DEID"
Split = Literal["train", "val", "test"]
_PARTS: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
_TABLES: dict[str, Split] = {f"img{part}_Abnormality_and_Location_Labels.csv": split for part, split in _PARTS.items()}
_STATES = {"0": False, "0.0": False, "1": True, "1.0": True}


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """One row for each scan; its volume is written to `out`/images, unless an earlier run did.

    Args:
        src: the folder of the tables; the volumes lie there or below.
        out: where the manifest will lie.

    Raises:
        InputError: no table, a column is missing or unknown, a value is not 0 or 1, a volume is missing or damaged.
        ImageError: a volume is not HU.
    """
    src, out = Path(src), Path(out)
    tables: list[tuple[Path, Split]] = []
    for name, split in _TABLES.items():
        path = optional_file(src, name)
        if path is not None:
            tables.append((path, split))
    if not tables:
        raise missing_file(src, EXPECTS, *_TABLES)
    metadata = _metadata(src)
    volumes = {path.stem: path for path in sorted(src.rglob("*.npz"))}
    images = Images(src, EXPECTS)
    for table, split in tables:
        for where, row in read_rows(table, (_KEY,)):
            path = images.find(f"{row[_KEY]}.npz", volumes.get(row[_KEY].removesuffix(".npz")))
            if path is not None:
                yield _row(where, row, path, split, metadata, out)
    images.finish()


def _row(where: str, row: dict[str, str], path: Path, split: Split, metadata: Any, out: Path) -> ManifestRow:
    scan = path.stem
    patient, spacing_mm = metadata.get(scan, (scan, SPACING_MM))
    locations = read_labels(where, row)
    image = f"images/{scan}.nii.gz"
    shape = write_nifti_of(path, out / image, spacing_mm)
    return ManifestRow(
        id=scan,
        image=image,
        modality="CT",
        dataset="rad-chestct",
        patient=patient,
        study=scan,
        series=scan,
        split=split,
        labels=states(locations),
        size_px=shape,
        extra={"locations": {LABELS[own]: places for own, places in locations.items() if places}},
    )


def read_labels(where: str, row: dict[str, str]) -> dict[str, list[str]]:
    """Locations of each abnormality: an empty list where it is absent.

    Raises:
        InputError: a column is not ABNORMALITY*LOCATION of the 84, one is missing, or a value is not 0 or 1.
    """
    found: dict[str, list[str]] = {}
    for column, value in row.items():
        if column == _KEY or not column:
            continue
        own, star, place = column.partition("*")
        if not star or own not in LABELS:
            raise InputError(f"{where}: column {column!r}, expected ABNORMALITY*LOCATION of the 84 published names")
        if value not in _STATES:
            raise InputError(f"{where}, column {column!r}: expected 0 or 1, got {value!r}")
        found.setdefault(own, []).extend([place] if _STATES[value] else [])
    missing = sorted(set(LABELS) - set(found))
    if missing:
        raise InputError(f"{where}: no column for {', '.join(missing[:5])} ({len(missing)} of 84 abnormalities)")
    return found


def states(locations: dict[str, list[str]]) -> dict[str, LabelState]:
    """States of the 84 abnormalities and of the 16 classes of `CT_CLIP_16`.

    Args:
        locations: of every abnormality, by its own name.
    """
    found: dict[str, LabelState] = {LABELS[own]: "present" if places else "absent" for own, places in locations.items()}
    for name, members in CT_CLIP_16.items():
        found[name] = "present" if any(locations[own] for own in members) else "absent"
    return found


def _metadata(src: Path) -> dict[str, tuple[str, float]]:
    """Patient and spacing in mm by scan; empty without the table."""
    path = optional_file(src, "CT_Scan_Metadata_Complete_35747.csv")
    if path is None:
        return {}
    found = {}
    for where, row in read_rows(path, (_KEY, "MRN_DEID")):
        stated = row.get("final_spacing", "")
        spacing_mm = number(where, row, "final_spacing") if stated else SPACING_MM
        if spacing_mm <= 0:
            raise InputError(f"{where}, column 'final_spacing': expected positive mm, got {stated!r}")
        found[row[_KEY]] = (row["MRN_DEID"], spacing_mm)
    return found


def write_nifti_of(path: Path, target: Path, spacing_mm: float) -> tuple[int, ...]:
    """Write one npz volume as NIfTI, unless it is there already.

    Args:
        path: the npz file.
        target: the file to write.
        spacing_mm: of all three axes.

    Returns:
        Its shape, `depth height width`: the axes of the npz as they are.

    Raises:
        InputError: no npz, no array `ct`, not three axes, or no whole numbers.
        ImageError: not HU.
    """
    affine = lps_to_ras(np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]]) @ _scale(spacing_mm))
    shape = _shape_of(path)
    if not is_written(target, shape, affine):
        hu = _read_npz(path)
        check_hu(hu, str(path))
        write_volume(target, hu, affine)
    return shape


def _scale(spacing_mm: float) -> np.ndarray:
    return np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])


def _shape_of(path: Path) -> tuple[int, ...]:
    """Shape of the array `ct` from its header, without unpacking it."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("ct.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected an npz with an array 'ct' ({error}); download it again") from error
    if len(shape) != 3 or dtype != np.int16:
        raise InputError(f"{path}: array 'ct' has shape {shape} and type {dtype}, expected three axes of int16 HU")
    return shape


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["ct"]
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({error}); download it again") from error
