"""Segmentations read along a second route: the bytes by dcmtk, the places from the frames, against nibabel's masks.

The library that wrote them, highdicom, has no part in the reading, and neither has pydicom in decoding. Each is
compared with the NIfTI mask of the same finding: pixel by pixel at the same place in the world, and by its centre.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from dicom_files import phantom_hu, write_enhanced_ct, write_radiograph
from dicom_results import (
    FRAME_OF_REFERENCE,
    ORIENTATIONS,
    ask_apart,
    centroid_of_nifti,
    read_with_dcmtk,
    seg_pixels,
    segment_of,
    segment_on_grid,
    world_of_frame,
    write_series,
)
from findings_phantom import answer, collect
from radglint.findings import Finding, Findings
from radglint.image import MedicalImage
from radglint.reading import read_image

SERIES: dict[str, dict[str, Any]] = {
    **{name: {"row": row, "column": column} for name, (row, column) in ORIENTATIONS.items()},
    "axial, from head to foot": {"row": (1, 0, 0), "column": (0, 1, 0), "hu": phantom_hu()[::-1]},
    "tilted gantry": {"tilt": 0.5},
    "a slice is missing": {"hu": phantom_hu(30), "skip": (4,)},
}


def weights(ds: Dataset, segment: int, frame: int, values: np.ndarray) -> np.ndarray:
    """How much of a segment each pixel of a frame holds."""
    if ds.SegmentationType == "LABELMAP":
        return values == segment
    return values if segment_of(ds, frame) == segment else np.zeros_like(values)


def centroid(ds: Dataset, segment: int) -> np.ndarray:
    """Centre of a segment in RAS+ mm, weighted with its values, from the frames alone."""
    total, mass = np.zeros(3), 0.0
    for frame, values in enumerate(seg_pixels(ds)):
        held = weights(ds, segment, frame, values).astype(np.float64)
        total += (world_of_frame(ds, frame) * held[..., None]).sum(axis=(0, 1))
        mass += held.sum()
    return total / mass


def fuzzy(image: MedicalImage) -> Findings:
    """Two findings with a probability that differs from voxel to voxel, and one that is absent."""
    rng = np.random.default_rng(7)
    found = [answer(image, np.zeros(image.shape, bool), query) for query in ("nodule", "no mass", "consolidation")]
    for finding in found:
        object.__setattr__(finding, "token_logits", rng.normal(0, 3, image.shape).astype(np.float32))
    return collect(*found)


def assert_same_mask(ds: Dataset, segment: int, finding: Finding, folder: Path) -> None:
    nifti = nib.load(finding.to_nifti(folder / f"{segment}.nii.gz"))
    expected = np.asanyarray(nifti.dataobj)
    np.testing.assert_array_equal(segment_on_grid(ds, segment, nifti), expected)
    assert expected.any() == finding.is_marked
    if finding.is_marked:
        np.testing.assert_allclose(centroid(ds, segment), centroid_of_nifti(nifti), atol=1e-3)


@pytest.mark.parametrize("name", SERIES)
def test_masks_of_a_ct(tmp_path: Path, name: str) -> None:
    findings = ask_apart(read_image(write_series(tmp_path / "series", **SERIES[name])))
    for kind in ("BINARY", "LABELMAP"):
        ds = read_with_dcmtk(findings.to_dicom_seg(tmp_path / f"{kind}.dcm", kind))  # type: ignore[arg-type]
        assert ds.SegmentationType == kind
        for segment, finding in enumerate(findings, start=1):
            assert_same_mask(ds, segment, finding, tmp_path)


@pytest.mark.parametrize("name", SERIES)
def test_probabilities_of_a_ct(tmp_path: Path, name: str) -> None:
    findings = fuzzy(read_image(write_series(tmp_path / "series", **SERIES[name])))
    ds = read_with_dcmtk(findings.to_dicom_seg(tmp_path / "seg.dcm", "FRACTIONAL"))
    assert (ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue) == (
        "FRACTIONAL", "PROBABILITY", 255
    )  # fmt: skip
    for segment in (1, 3):
        nifti = nib.load(findings[segment - 1].to_nifti(tmp_path / f"{segment}.nii.gz"))
        stored = segment_on_grid(ds, segment, nifti)
        expected = findings[segment - 1].probability_map().transpose(2, 1, 0)  # the grid of the NIfTI mask
        np.testing.assert_allclose(stored / 255, np.nan_to_num(expected), atol=0.5001 / 255)
        # The mask is where the probability reaches the threshold; where rounding cannot tell, either is right.
        mask, certain = np.asanyarray(nifti.dataobj) > 0, np.abs(stored - 127.5) > 1
        np.testing.assert_array_equal((stored > 127.5)[certain], mask[certain])
        where = np.argwhere(stored > 0)
        center = np.average(nib.affines.apply_affine(nifti.affine, where), axis=0, weights=stored[stored > 0])
        np.testing.assert_allclose(centroid(ds, segment), center, atol=1e-3)
    assert not any(segment_of(ds, frame) == 2 for frame in range(int(ds.NumberOfFrames)))  # negated: named, not drawn


def test_a_multi_frame_ct_with_shuffled_frames(tmp_path: Path) -> None:
    order = [int(n) for n in np.random.default_rng(3).permutation(12)]
    path = write_enhanced_ct(tmp_path / "multi.dcm", order=order, FrameOfReferenceUID=FRAME_OF_REFERENCE)
    findings = ask_apart(read_image(path))
    for kind in ("BINARY", "LABELMAP"):
        ds = read_with_dcmtk(findings.to_dicom_seg(tmp_path / f"{kind}.dcm", kind))  # type: ignore[arg-type]
        for segment, finding in enumerate(findings, start=1):
            assert_same_mask(ds, segment, finding, tmp_path)


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
def test_a_radiograph(tmp_path: Path, kind: str) -> None:
    """There is no world: pixel by pixel against the PNG mask, and the centre in pixels."""
    pixels = np.random.default_rng(0).integers(0, 4000, (61, 83)).astype(np.uint16)
    findings = ask_apart(read_image(write_radiograph(tmp_path / "x.dcm", pixels, kind=kind)))
    fractional = read_with_dcmtk(findings.to_dicom_seg(tmp_path / "f.dcm", "FRACTIONAL"))
    for name in ("BINARY", "LABELMAP"):
        ds = read_with_dcmtk(findings.to_dicom_seg(tmp_path / f"{name}.dcm", name))  # type: ignore[arg-type]
        stored = seg_pixels(ds)
        for segment in (1, 4):
            held = sum(weights(ds, segment, frame, values) for frame, values in enumerate(stored))
            expected = np.asarray(Image.open(findings[segment - 1].to_png(tmp_path / f"{segment}.png"))) > 0
            np.testing.assert_array_equal(held, expected)
            np.testing.assert_array_equal(np.argwhere(held).mean(axis=0), np.argwhere(expected).mean(axis=0))
    for frame, segment in enumerate((1, 4)):
        assert segment_of(fractional, frame) == segment
        expected = findings[segment - 1].probability_map()
        np.testing.assert_allclose(seg_pixels(fractional)[frame] / 255, expected, atol=0.5001 / 255)
