"""Findings on DICOM sources, and how to read DICOM results back by another way than they were written.

That way is pydicom, with places from ImagePositionPatient alone.
highdicom is not used here. Validators of other makers (dcmtk, dicom3tools) are called; `make test` installs them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_files import write_ct_series
from findings_phantom import answer, collect
from radglint.findings import Findings
from radglint.image import MedicalImage

FRAME_OF_REFERENCE = "1.2.3.4.9"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678)
AXIAL = ((1, 0, 0), (0, 1, 0))
ORIENTATIONS = {
    "axial": AXIAL,
    "axial, prone": ((-1, 0, 0), (0, -1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.8, 0.6, 0), (-0.48, 0.64, 0.6)),
}


def write_series(folder: Path, row: Any = AXIAL[0], column: Any = AXIAL[1], tilt: float = 0.0, **tags: Any) -> Path:
    """A series stacked along row x column, plus `tilt` mm along the column from slice to slice."""
    step = 2.5 * np.cross(row, column) + tilt * np.asarray(column, float)
    tags = {"FrameOfReferenceUID": FRAME_OF_REFERENCE, "ImageOrientationPatient": [*row, *column], **tags}
    write_ct_series(folder, tags.pop("hu", None), step=tuple(step), origin=(-40.5, 12.25, 7.0), **tags)
    return folder


def blob(image: MedicalImage, low: int = 1) -> np.ndarray:
    """An L-shaped piece near one corner: no symmetry hides a flip."""
    where = np.zeros(image.shape, bool)
    where[..., low + 1 : 9, 3:5] = True
    where[..., 7:9, 3:12] = True
    if where.ndim == 3:
        where[:low] = where[6:] = False
        where[low, 8:, :] = False
    return where


def ask(image: MedicalImage) -> Findings:
    """Present, negated, absent and out of scope."""
    where = blob(image)
    return collect(
        answer(image, where, "small left pleural effusion"),
        answer(image, where, "no pneumothorax"),
        answer(image, where, "nodule", probability=0.2),
        answer(image, np.flip(where, -1), "pacemaker"),
        answer(image, where, "fractured femur", in_scope=False, note="out of scope"),
    )


def ask_apart(image: MedicalImage) -> Findings:
    """The same kinds of answers, whose marks do not overlap: for any kind of segmentation."""
    where = blob(image)
    return collect(
        answer(image, where, "small left pleural effusion"),
        answer(image, where, "no pneumothorax"),
        answer(image, where, "nodule", probability=0.2),
        answer(image, np.flip(where, -1) & ~where, "pacemaker"),
        answer(image, where, "fractured femur", in_scope=False, note="out of scope"),
    )


def seg_pixels(ds: Dataset) -> np.ndarray:
    """Stored values, `frames rows columns`; bits are unpacked here (PS3.5 section 8.1.1: lowest bit first)."""
    shape = int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns)
    if ds.BitsAllocated == 1:
        bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
        return bits[: np.prod(shape)].reshape(shape)
    if not hasattr(ds, "file_meta"):  # from dcmtk, not compressed
        assert ds.BitsAllocated == 8
        return np.frombuffer(ds.PixelData, np.uint8)[: np.prod(shape)].reshape(shape)
    return ds.pixel_array.reshape(shape)


def segment_of(ds: Dataset, frame: int) -> int:
    """ReferencedSegmentNumber of a frame, its own or the shared one."""
    places = (ds.PerFrameFunctionalGroupsSequence[frame], ds.SharedFunctionalGroupsSequence[0])
    return next(
        int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for place in places
        if "SegmentIdentificationSequence" in place
    )


def world_of_frame(ds: Dataset, frame: int) -> np.ndarray:
    """RAS+ mm of every pixel of a frame, `rows columns 3`, by PS3.3 equation C.7.6.2.1-1."""
    shared, own = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence[frame]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    origin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
    r, c = np.indices((ds.Rows, ds.Columns))
    lps = origin + c[..., None] * between_columns * cosines[0] + r[..., None] * between_rows * cosines[1]
    return lps * (-1, -1, 1)


def segment_on_grid(ds: Dataset, segment: int, nifti: nib.Nifti1Image) -> np.ndarray:
    """The values of a segment on the (i, j, k) grid of a NIfTI image; fails where a pixel falls beside a voxel."""
    volume = np.zeros(nifti.shape, np.float64)
    inverse = np.linalg.inv(nifti.affine)
    labelmap = ds.SegmentationType == "LABELMAP"
    for frame, values in enumerate(seg_pixels(ds)):
        if not labelmap and segment_of(ds, frame) != segment:
            continue
        index = nib.affines.apply_affine(inverse, world_of_frame(ds, frame))
        nearest = np.rint(index).astype(int)
        assert np.abs(index - nearest).max() < 0.01, "a pixel of the segmentation lies beside every voxel"
        volume[tuple(np.moveaxis(nearest, -1, 0))] = values == segment if labelmap else values
    return volume


def centroid_of_segment(ds: Dataset, segment: int) -> np.ndarray:
    """Centre of a BINARY segment in RAS+ mm, from the frames alone."""
    points = [
        world_of_frame(ds, frame)[values > 0]
        for frame, values in enumerate(seg_pixels(ds))
        if segment_of(ds, frame) == segment
    ]
    return np.concatenate(points).mean(axis=0)


def centroid_of_nifti(nifti: nib.Nifti1Image) -> np.ndarray:
    """Centre of a mask in RAS+ mm, from the affine."""
    return nib.affines.apply_affine(nifti.affine, np.argwhere(np.asanyarray(nifti.dataobj) > 0)).mean(axis=0)


def content_items(ds: Dataset) -> Iterator[Dataset]:
    """Every item of a content tree, depth first."""
    for item in ds.get("ContentSequence", []):
        yield item
        yield from content_items(item)


def measurement_groups(ds: Dataset) -> list[dict[str, Any]]:
    """For each measurement group: meaning of the concept to its value in plain form."""
    return [
        {_name(item): _value(item) for item in group.ContentSequence}
        for group in content_items(ds)
        if group.ValueType == "CONTAINER" and _name(group) == "Measurement Group"
    ]


def _name(item: Dataset) -> str:
    return item.ConceptNameCodeSequence[0].CodeMeaning


def _value(item: Dataset) -> Any:
    if item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        return float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0].CodeValue
    if item.ValueType == "CODE":
        code = item.ConceptCodeSequence[0]
        return code.CodingSchemeDesignator, code.CodeValue
    if item.ValueType == "IMAGE":
        return item.ReferencedSOPSequence[0]
    return item.get("TextValue", item.get("UID"))


def tool(name: str, package: str) -> str:
    """The path of a command of another maker; a failure that says what to install where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: `make programs` installs it (the Debian package {package})")
    return found


def dciodvfy(path: Path, kind: str = "Error") -> list[str]:
    """What dicom3tools finds against the standard: lines that begin with "Error" or "Warning"."""
    run = subprocess.run(
        [tool("dciodvfy", "dicom3tools"), "-new", str(path)], capture_output=True, text=True, timeout=30
    )
    lines = (run.stdout + run.stderr).splitlines()
    assert {"Segmentation", "ComprehensiveSR", "Comprehensive3DSR"} & set(lines), lines  # it knows the object
    return [line for line in lines if line.startswith(kind)]


def dcmtk(name: str, *arguments: str | Path) -> str:
    """Run a tool of dcmtk and give what it prints; fails on an error, and on every warning but the one below."""
    command = [tool(name, "dcmtk"), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"{name}: {run.stderr}"
    complaints = [line for line in run.stderr.splitlines() if "VR checker does not support this Spec" not in line]
    assert complaints == [], f"{name}: {complaints}"
    return run.stdout


def read_with_dcmtk(path: Path) -> Dataset:
    """The file as dcmtk reads and decompresses it: no byte of it passes through the library that wrote it."""
    plain = path.with_suffix(".plain.dcm")
    dcmtk("dcmdrle", path, plain)
    return Dataset.from_json(dcmtk("dcm2json", plain))


def dump(path: Path) -> Dataset:
    """The file as pydicom reads it, all of it."""
    ds = pydicom.dcmread(path)
    ds.walk(lambda *_: None)
    return ds
