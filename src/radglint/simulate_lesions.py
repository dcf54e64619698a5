"""Real nodules and masses for `radglint simulate ct BASES --lesions FOLDER`: found in a folder, cut out, measured.

FOLDER holds one or both of:

* LIDC-IDRI as it is downloaded: CT series with their XML, see `datasets.lidc`. A lesion is a nodule of 3 mm or more,
  its outline what at least half of its readers drew; its patient is the PatientID.
* pairs NAME.nii.gz and NAME_mask.nii.gz (or .nii) in it or below: a CT in HU, whole or a part, and a mask on the same
  grid. Each connected part of the mask is a lesion. Its patient is NAME, or what `records.json` in the FOLDER says: a
  list of {"image": path in FOLDER, "patient": id}.

or the crops that `recipes/nano_features_ct.py` takes: `records.json` with `lidc_nodules.npz` beside it.

A lesion's diameter is that of the ball of its volume, which is how made ones are measured too (the longest extent in a
slice is about half as long again). Lesions of `LEAST_MM` to `MOST_MM` that are not calcified (at most a tenth of the
voxels above 250 HU) are taken. A nodule or mass is a real one in `simulation.ct_findings.REAL_SHARE` of the cases if
there is one whose diameter is in the range of the size that the sentence says.

A case's `group` in the manifest stays the patient of its base; whose lesion was blended in is `facts[].lesion.patient`.
To keep patients apart, split by both.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from radglint.datasets.lidc import Series, consensus_nodules, read_series
from radglint.datasets.lidc_xml import read_lidc_xml
from radglint.errors import InputError
from radglint.mask_files import read_mask_file
from radglint.reading import read_image
from radglint.simulation.base_names import patients_of
from radglint.simulation.ct_base import is_same_grid, to_canonical_axes
from radglint.simulation.ct_findings import MASS_DIAMETER_MM, NODULE_DIAMETER_MM
from radglint.simulation.ct_real import CROPS_FILE, make_lesion, read_crops
from radglint.simulation.ct_scene import Lesion, Spacing

LEAST_MM, MOST_MM = NODULE_DIAMETER_MM["small"][0], MASS_DIAMETER_MM["large"][1]
"""Diameters that some size word of a nodule or a mass stands for."""
MARGIN_MM = 6.0
"""Of surroundings that are cut out with a lesion."""
_CALCIUM_HU, _CALCIFIED_SHARE = 250, 0.1
_LEAST_VOXELS = 8  # fewer on the grid of the bases are not painted


@dataclass(frozen=True)
class Pair:
    """A CT and its mask.

    Attributes:
        image: NIfTI file.
        mask: NIfTI file on the same grid.
        patient: whose they are.
    """

    image: Path
    mask: Path
    patient: str


@dataclass(frozen=True)
class Scan:
    """A CT series of LIDC-IDRI and the file with its readings."""

    series: Series
    xml: Path


@dataclass(frozen=True, eq=False)
class Crop:
    """A lesion cut out of a scan, on the scan's own voxels in canonical axes.

    Attributes:
        name: of the lesion.
        patient: whose it is.
        hu: float32 `slices height width`.
        outline: bool of the same shape.
        spacing_mm: slice, row and column step.
    """

    name: str
    patient: str
    hu: np.ndarray
    outline: np.ndarray
    spacing_mm: Spacing


def read_real_lesions(folder: Path, to_mm: Spacing, workers: int = 1, *, show_progress: bool = False) -> list[Lesion]:
    """Every usable lesion of a folder, in order of its scans' paths.

    Args:
        folder: see the module.
        to_mm: slice, row and column step of the bases.
        workers: processes that read scans; the result does not depend on it.
        show_progress: draw a bar on stderr.

    Raises:
        InputError: no such folder, nothing usable in it, a file without its partner, or a mask on another grid.
        ImageError: a CT cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"--lesions: {folder}: no such folder; give LIDC-IDRI, or NAME.nii.gz with NAME_mask.nii.gz")
    crops = list(_published_crops(folder) if (folder / CROPS_FILE).is_file() else _cut(folder, workers, show_progress))
    usable = [lesion for crop in crops if (lesion := _lesion(crop, to_mm)) is not None]
    if not usable:
        found = f"{len(crops)} lesions, none of them usable: expected {LEAST_MM:g} to {MOST_MM:g} mm, not calcified"
        raise InputError(f"--lesions: {folder}: {found}; give LIDC-IDRI, or NAME.nii.gz with NAME_mask.nii.gz")
    return usable


def _lesion(crop: Crop, to_mm: Spacing) -> Lesion | None:
    """A crop measured and brought to the grid of the bases; None if no size word fits, or it is calcified."""
    volume_mm3 = float(crop.outline.sum() * np.prod(crop.spacing_mm))
    diameter = round((6 * volume_mm3 / np.pi) ** (1 / 3), 2)
    if not LEAST_MM <= diameter <= MOST_MM:
        return None
    if float((crop.hu[crop.outline] > _CALCIUM_HU).mean()) > _CALCIFIED_SHARE:
        return None
    lesion = make_lesion(crop.hu, crop.outline, crop.spacing_mm, to_mm, diameter)
    if lesion.inside.sum() < _LEAST_VOXELS:
        return None
    return replace(lesion, name=crop.name, patient=crop.patient)


def _published_crops(folder: Path) -> Iterator[Crop]:
    for record, hu, outline, spacing in read_crops(folder):
        yield Crop(record["id"], record["patient_id"], hu, outline, spacing)


def _cut(folder: Path, workers: int, show_progress: bool) -> Iterator[Crop]:
    """Crops of every scan of a folder, read here or in processes that are started afresh."""
    scans = [*find_pairs(folder), *(Scan(series, xml) for series, xml in read_series(folder))]
    if workers <= 1 or len(scans) < 2:
        yield from _flat(map(crops_of, scans), len(scans), show_progress)
        return
    with ProcessPoolExecutor(min(workers, len(scans)), multiprocessing.get_context("spawn")) as pool:
        yield from _flat(pool.map(crops_of, scans), len(scans), show_progress)


def _flat(found: Iterator[list[Crop]], total: int, show: bool) -> Iterator[Crop]:
    for crops in tqdm(found, "reading lesions", total, unit="scan", disable=not show):
        yield from crops


def find_pairs(folder: Path) -> list[Pair]:
    """Pairs of a folder and its subfolders, in order of their path.

    Raises:
        InputError: a CT without its mask, or a mask without its CT.
    """
    files = sorted(path for path in folder.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
    by_name = {(path.parent, path.name.removesuffix(".gz").removesuffix(".nii")): path for path in files}
    patients = patients_of(folder / "records.json") if files else {}
    pairs = []
    for (parent, name), path in by_name.items():
        bare = name.removesuffix("_mask")
        partner = by_name.get((parent, f"{name}_mask" if bare == name else bare))
        if partner is None:
            what = "NAME_mask.nii.gz" if bare == name else "NAME.nii.gz"
            raise InputError(
                f"--lesions: {path}: has no {what.replace('NAME', bare)} beside it; add it, or take it out"
            )
        if bare == name:
            pairs.append(Pair(path, partner, patients.get(path.relative_to(folder).as_posix(), name)))
    return pairs


def crops_of(scan: Pair | Scan) -> list[Crop]:
    """The lesions of one scan.

    Raises:
        InputError: the mask lies on another grid, or an outline belongs to no slice.
        ImageError: the CT cannot be read.
    """
    return _of_pair(scan) if isinstance(scan, Pair) else _of_series(scan)


def _of_pair(pair: Pair) -> list[Crop]:
    image, stored = read_image(pair.image), read_mask_file(pair.mask)
    if image.modality != "CT":
        raise InputError(f"--lesions: {pair.image}: is a radiograph; give a CT in HU")
    mask = replace(image, array=stored.masks[0].astype(np.float32), affine=stored.affine, path=str(pair.mask))
    if not is_same_grid(image, mask):
        raise InputError(
            f"--lesions: {pair.mask}: lies on another grid than {pair.image} (shape {mask.shape} there, {image.shape} "
            "here, or another affine); resample the mask to the CT"
        )
    axial, spacing = to_canonical_axes(image)
    outlines = to_canonical_axes(mask)[0] > 0
    parts = np.zeros(outlines.shape, np.int32)
    ndimage.label(outlines, np.ones((3, 3, 3), bool), output=parts)
    name, step = pair.image.name.split(".nii")[0], _steps(spacing)
    boxes = enumerate(ndimage.find_objects(parts), 1)
    return [_crop(f"{name}_{k:02d}", pair.patient, axial, parts == k, box, step) for k, box in boxes]


def _of_series(scan: Scan) -> list[Crop]:
    reading = read_lidc_xml(scan.xml)
    assert reading is not None  # it was chosen for its series
    image = read_image(scan.series.folder)
    axial, spacing = to_canonical_axes(image)
    crops = []
    for number, (mask, _) in enumerate(consensus_nodules(reading, image)[0], 1):
        whole = np.zeros(image.shape, np.float32)
        mask.add_to(whole)
        outline = to_canonical_axes(replace(image, array=whole))[0] > 0
        (box,) = ndimage.find_objects(outline.astype(np.int8))
        name = f"{scan.series.id}_{number:02d}"
        crops.append(_crop(name, scan.series.patient, axial, outline, box, _steps(spacing)))
    return crops


def _steps(spacing_mm: np.ndarray) -> Spacing:
    slices, rows, columns = (float(step) for step in spacing_mm)
    return slices, rows, columns


def _crop(
    name: str, patient: str, hu: np.ndarray, outline: np.ndarray, box: Sequence[slice], spacing_mm: Spacing
) -> Crop:
    """Cut out a lesion with a margin."""
    reach = [int(np.ceil(MARGIN_MM / step)) for step in spacing_mm]
    around = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(box, reach, strict=True))
    return Crop(name, patient, np.array(hu[around], np.float32), np.array(outline[around], bool), spacing_mm)


def check_owners(lesions: Sequence[Lesion], patients: Sequence[str]) -> None:
    """Refuse lesions that no base may take because all are its own patient's.

    Raises:
        InputError: there is no lesion of another patient for any base.
    """
    owners = {lesion.patient for lesion in lesions}
    if all(owners == {patient} for patient in patients):
        raise InputError(
            f"--lesions: all lesions are of patient {', '.join(owners)}, who is the base's patient too; give those "
            "of others"
        )
