"""Lungs and heart from label maps, in place of our own estimate.

A folder holds one map for each base, by the base's name: NAME.nii.gz or NAME.nii for a CT (NAME of a file or DICOM
folder up to its first dot), on the CT's grid in any axis order; SUB/NAME.png, .nii.gz or .nii for a radiograph
(SUB/NAME its path below BASES without the suffix), of the radiograph's size in pixels. Values are whole numbers, 0 is
nothing. Without more, they mean

* CT: TotalSegmentator v2, task "total": left lung 10, 11; right lung 12, 13, 14; heart 51; any other up to 118 is
  something else.
* radiograph: right lung 1, left lung 2, heart 3 (left and right are the patient's).

Other values are told by `labels.json` in the folder, with all of them; "heart" and "other" may be missing:

    {"left lung": [1], "right lung": [2], "heart": [3], "other": [4, 5]}

Where a map holds no heart, the heart is estimated between the map's lungs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radglint.errors import InputError
from radglint.image import MedicalImage
from radglint.simulation.anatomy_ct import ChestAnatomy, anatomy_of_regions
from radglint.simulation.anatomy_cxr import LungFields, heart_between
from radglint.simulation.ct_base import canonical_volume, is_same_grid

CODING_FILE = "labels.json"
LUNGS = ("left lung", "right lung")
KEYS = (*LUNGS, "heart", "other")
_LAST_TOTAL = 118
_LEAST_LUNG_ML, _LEAST_LUNG_SHARE = 50.0, 0.005
_MAX_VALUE = 65535


@dataclass(frozen=True)
class Coding:
    """Which values mean what.

    Attributes:
        values: per key of `KEYS`.
        source: for messages.
    """

    values: dict[str, tuple[int, ...]]
    source: str


_CT_PARTS = {"left lung": (10, 11), "right lung": (12, 13, 14), "heart": (51,)}
_NAMED = {value for values in _CT_PARTS.values() for value in values}
CT_CODING = Coding(
    {**_CT_PARTS, "other": tuple(v for v in range(1, _LAST_TOTAL + 1) if v not in _NAMED)},
    "TotalSegmentator v2, the default",
)
CXR_CODING = Coding({"right lung": (1,), "left lung": (2,), "heart": (3,), "other": ()}, "the default for radiographs")


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps.

    Attributes:
        folder: where they are.
        coding: what their values mean.
    """

    folder: Path
    coding: Coding

    def anatomy(
        self, name: str, image: MedicalImage, volume_hu: np.ndarray, step_mm: float
    ) -> tuple[ChestAnatomy, tuple[str, ...]]:
        """Anatomy of a CT whose lungs and heart are those of its map.

        Args:
            name: of the base.
            image: the CT as it was read.
            volume_hu: the same on the canonical grid, `slices height width`.
            step_mm: slice step of that grid, whose pixels are 1 mm.

        Returns:
            The anatomy, and which of "lungs" and "heart" the map gave.

        Raises:
            InputError: no map, another grid, an unknown value, or an empty lung.
            GeometryError: the map's axes are too oblique.
        """
        path = self._path(name, (".nii.gz", ".nii"))
        values, affine = _read(path)
        empty = np.broadcast_to(np.float32(0), values.shape)
        shown = MedicalImage(empty, "CT", "HU", affine=affine, path=str(path))
        if not is_same_grid(image, shown):
            raise InputError(
                f"{path}: lies on another grid than {image.path} (shape {values.shape} there, {image.shape} here, or "
                "another affine); resample the map to the CT"
            )
        self._check_values(path, values)
        parts = {key: self._placed(key, values, shown, step_mm) for key in KEYS[:3]}
        for lung in LUNGS:
            volume_ml = float(parts[lung].sum()) * step_mm / 1000
            self._check_lung(path, lung, volume_ml, _LEAST_LUNG_ML, "ml")
        self._check_sides(path, parts)
        heart = parts["heart"] if parts["heart"].any() else None
        spacing = (step_mm, 1.0, 1.0)
        return anatomy_of_regions(volume_hu, spacing, parts["right lung"], parts["left lung"], heart), _given(parts)

    def fields(
        self, name: str, native_px: Sequence[int], shape_px: Sequence[int]
    ) -> tuple[LungFields, tuple[str, ...]]:
        """Lungs and heart of a radiograph from its map.

        Args:
            name: path of the base below its folder, without the suffix.
            native_px: rows and columns of the radiograph as it was read: those of the map.
            shape_px: rows and columns of the result.

        Returns:
            The fields, and which of "lungs" and "heart" the map gave.

        Raises:
            InputError: no map, another shape, an unknown value, or an empty lung.
        """
        path = self._path(name, (".png", ".nii.gz", ".nii"))
        values = _read_png(path) if path.suffix == ".png" else _one_slice(_read(path)[0], path)
        if values.shape != tuple(native_px):
            raise InputError(
                f"{path}: {values.shape[0]} rows and {values.shape[1]} columns, expected those of its radiograph, "
                f"{native_px[0]} and {native_px[1]}; make the map on the same pixels"
            )
        self._check_values(path, values)
        rows, columns = ((np.arange(n) * m) // n for n, m in zip(shape_px, values.shape, strict=True))
        small = values[rows][:, columns]
        parts = {key: np.isin(small, self.coding.values[key]) for key in KEYS[:3]}
        for lung in LUNGS:
            self._check_lung(path, lung, 100 * float(parts[lung].mean()), 100 * _LEAST_LUNG_SHARE, "% of the picture")
        self._check_sides(path, parts)
        left, right = parts["left lung"], parts["right lung"]
        if not (left.any(axis=1) & right.any(axis=1)).any():
            raise InputError(
                f"{path}: left and right lung share no row; expected a frontal, upright radiograph's lungs"
            )
        heart = parts["heart"] if parts["heart"].any() else heart_between(left, right)
        return LungFields(left, right, heart), _given(parts)

    def _path(self, name: str, suffixes: Sequence[str]) -> Path:
        for suffix in suffixes:
            if (path := self.folder / f"{name}{suffix}").is_file():
                return path
        raise InputError(
            f"--labels: {self.folder / (name + suffixes[0])}: no such label map; add it, or leave its base out"
        )

    def _placed(self, key: str, values: np.ndarray, shown: MedicalImage, step_mm: float) -> np.ndarray:
        """A structure on the canonical grid."""
        part = np.isin(values, self.coding.values[key]).astype(np.float32)
        whole = MedicalImage(part, "CT", "HU", affine=shown.affine, path=shown.path)
        return canonical_volume(whole, step_mm=step_mm)[0] > 0.5

    def _check_values(self, path: Path, values: np.ndarray) -> None:
        known = {0}.union(*self.coding.values.values())
        unknown = [int(v) for v in np.flatnonzero(np.bincount(values.ravel())) if int(v) not in known]
        if unknown:
            raise InputError(
                f"{path}: value {unknown[0]} has no meaning ({self.coding.source}); give each value a key "
                f"({', '.join(KEYS)}) in {self.folder / CODING_FILE}"
            )

    def _check_lung(self, path: Path, lung: str, size: float, least: float, unit: str) -> None:
        if size < least:
            values = ", ".join(map(str, self.coding.values[lung]))
            raise InputError(
                f'{path}: "{lung}" (value {values}; {self.coding.source}) is {size:.3g} {unit}, expected at least '
                f"{least:g}; correct the map or {self.folder / CODING_FILE}"
            )

    def _check_sides(self, path: Path, parts: dict[str, np.ndarray]) -> None:
        """The patient's right is on the left of the picture, and of the canonical grid."""
        left, right = (float(np.nonzero(parts[lung])[-1].mean()) for lung in LUNGS)
        if left <= right:
            raise InputError(
                f'{path}: "left lung" lies to the patient\'s right of "right lung" ({self.coding.source}); swap them '
                f"in {self.folder / CODING_FILE}, or check that the image is not mirrored"
            )


def _given(parts: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    return ("lungs", "heart") if parts["heart"].any() else ("lungs",)


def read_label_maps(folder: Path, default: Coding) -> LabelMaps:
    """A folder of label maps with its coding.

    Args:
        folder: see the module.
        default: where it has no `labels.json`.

    Raises:
        InputError: no such folder, or `labels.json` is not as described.
    """
    if not folder.is_dir():
        raise InputError(f"--labels: {folder}: no such folder; give the folder of label maps")
    path = folder / CODING_FILE
    return LabelMaps(folder, _coding(path) if path.is_file() else default)


def _coding(path: Path) -> Coding:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no JSON ({error}); write {{key: [values]}} with the keys {', '.join(KEYS)}"
        ) from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected an object {{key: [values]}}, got {type(stored).__name__}")
    unknown = [key for key in stored if key not in KEYS]
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r} is no key; expected {', '.join(KEYS)}")
    coding = {key: _values(path, key, stored.get(key, [])) for key in KEYS}
    missing = [lung for lung in LUNGS if not coding[lung]]
    if missing:
        raise InputError(f'{path}: "{missing[0]}" has no value; list the values of each lung')
    listed = [(value, key) for key in KEYS for value in coding[key]]
    if len({value for value, _ in listed}) < len(listed):
        twice = next(v for v, k in listed if sum(v == other for other, _ in listed) > 1)
        raise InputError(f"{path}: value {twice} is listed twice; give it one key")
    return Coding(coding, str(path))


def _values(path: Path, key: str, values: Any) -> tuple[int, ...]:
    fits = isinstance(values, list) and all(type(v) is int and 0 < v <= _MAX_VALUE for v in values)
    if not fits:
        raise InputError(f'{path}: "{key}": expected a list of whole numbers from 1 to {_MAX_VALUE}, got {values!r}')
    return tuple(values)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values of a NIfTI map as whole numbers, its axes turned round to (k, j, i), and the affine in that order."""
    import nibabel

    try:
        nifti: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
        values = np.asanyarray(nifti.dataobj)
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise _unreadable(path, error) from error
    return _whole(values.transpose(), path), np.asarray(nifti.affine)[:, [2, 1, 0, 3]]


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: the label map cannot be read ({' '.join(str(error).split())[:120]}); write it again")


def _one_slice(values: np.ndarray, path: Path) -> np.ndarray:
    """Rows and columns of a NIfTI of one slice."""
    flat = values.reshape([n for n in values.shape if n > 1])
    if flat.ndim != 2:
        raise InputError(f"{path}: shape {values.shape[::-1]}, expected one slice: columns, rows (and 1)")
    return flat


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise _unreadable(path, error) from error
    if values.ndim != 2:
        raise InputError(f"{path}: a colour picture ({mode}), expected one value a pixel; write grey or palette values")
    return _whole(values, path)


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """The values as int32."""
    if values.dtype.kind not in "iubf" or not bool(((values >= 0) & (values <= _MAX_VALUE)).all()):
        raise InputError(f"{path}: expected whole numbers from 0 to {_MAX_VALUE}; write the map again")
    whole = np.ascontiguousarray(values, np.int32)
    if values.dtype.kind == "f" and not np.array_equal(whole, values):
        raise InputError(f"{path}: expected whole numbers, got fractions; resample label maps by nearest neighbour")
    return whole
