"""Real nodules to blend into CT slabs: small crops of real scans with the radiologists' outline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from radglint.errors import InputError
from radglint.simulation.ct_scene import Lesion, Scene, Spacing

CROPS_FILE = "lidc_nodules.npz"
"""Array file of a folder of crops."""
_BORDER_MM = 2.0  # of surrounding lung that comes along with a nodule
_BLUR_MM = 0.8


def make_lesion(
    hu: np.ndarray,
    outline: np.ndarray,
    spacing_mm: Spacing,
    to_mm: Spacing,
    diameter_mm: float,
    calcified: bool = False,
) -> Lesion:
    """Resample a crop and its outline to another spacing.

    Args:
        hu: `slices height width`, HU.
        outline: bool of the same shape, with at least one voxel.
        spacing_mm: of the crop.
        to_mm: of the result.
        diameter_mm: kept with the lesion.
        calcified: kept with the lesion.

    Raises:
        InputError: shapes differ, or the outline is empty.
    """
    if hu.shape != outline.shape or not outline.any():
        raise InputError(f"lesion: expected an outline of shape {hu.shape} with voxels, got {outline.shape}")
    zoom = [old / new for old, new in zip(spacing_mm, to_mm, strict=True)]
    image = np.asarray(ndimage.zoom(hu.astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True))
    solid = np.asarray(ndimage.zoom(outline.astype(np.float32), zoom, order=1, mode="nearest", grid_mode=True))
    outside_mm = np.asarray(ndimage.distance_transform_edt(solid < 0.5, sampling=to_mm))
    share = np.clip(1 - (outside_mm - _BLUR_MM) / _BORDER_MM, 0, 1).astype(np.float32)
    return Lesion(image, solid >= 0.5, share, diameter_mm, calcified)


def read_lesions(folder: Path, to_mm: Spacing, leave_out: frozenset[str] = frozenset()) -> list[Lesion]:
    """Lesions of a folder of crops, with their published diameters.

    Args:
        folder: where they are, see `read_crops`.
        to_mm: grid of the scans that they go into.
        leave_out: patients not to take.

    Raises:
        InputError: a file is missing or a key is not in it.
    """
    lesions = []
    for record, hu, outline, spacing in read_crops(folder):
        if record["patient_id"] not in leave_out:
            calcified = record["calcification"] in ("Solid", "Laminated")
            lesion = make_lesion(hu, outline, spacing, to_mm, record["diameter_mm"], calcified)
            lesions.append(replace(lesion, name=record["id"], patient=record["patient_id"]))
    return lesions


def read_crops(folder: Path) -> list[tuple[dict[str, Any], np.ndarray, np.ndarray, Spacing]]:
    """Crops of a folder with `records.json` and `lidc_nodules.npz` (keys `<id>/ct`, `<id>/mask`, axes x, y, slice).

    Returns:
        Per crop its record, HU and outline (bool) as `slices height width`, and its spacing in mm.

    Raises:
        InputError: a file is missing or a key is not in it.
    """
    try:
        records = json.loads((folder / "records.json").read_text())
        with np.load(folder / CROPS_FILE, allow_pickle=False) as arrays:
            crops = [(arrays[f"{r['id']}/ct"], arrays[f"{r['id']}/mask"]) for r in records]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{folder}: no lesions could be read ({error}); give the folder of LIDC crops") from error
    return [
        (record, hu.transpose(2, 1, 0), mask.transpose(2, 1, 0) > 0, (z, y, x))
        for record, (hu, mask) in zip(records, crops, strict=True)
        for x, y, z in (record["spacing"],)
    ]


def paint_lesion(scene: Scene, lesion: Lesion, centre: np.ndarray, room: np.ndarray) -> np.ndarray | None:
    """Blend a lesion, turned at random in the slice plane, into a scene.

    Args:
        scene: changed in place.
        lesion: on the scene's spacing.
        centre: voxel, `slice row column`.
        room: bool, what may be changed.

    Returns:
        The mask, or None if the lesion's middle lies outside the scene.
    """
    quarter, mirrored = int(scene.rng.integers(4)), bool(scene.rng.random() < 0.5)

    def turned(part: np.ndarray) -> np.ndarray:
        return np.rot90(part[:, :, ::-1] if mirrored else part, quarter, axes=(1, 2))

    hu, inside, share = (turned(part) for part in (lesion.hu, lesion.inside, lesion.share))
    middle = np.rint(np.argwhere(inside).mean(axis=0)).astype(int)
    first = np.rint(centre).astype(int) - middle
    low, high = np.maximum(first, 0), np.minimum(first + hu.shape, scene.hu.shape)
    if (high <= low).any():
        return None
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    here = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
    scene.hu[there] += share[here] * room[there] * (hu[here] - scene.hu[there])
    mask = np.zeros(scene.hu.shape, bool)
    mask[there] = inside[here] & room[there]
    return mask
