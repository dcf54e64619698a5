"""MedicalImage: one radiograph or one CT volume with its geometry and the record of how it was decoded.

Axes and units, used everywhere in radglint:

* 3D arrays are `depth height width`, 2D arrays `height width`. Nothing is flipped or resampled on reading
  (unless `steps` says so): a CT keeps its native voxels.
* `affine` (3D only) maps the array index (depth, height, width, 1), zero-based, at voxel centres, to world
  millimetres in RAS+: +x points to the patient's right, +y to the front, +z to the head.
* For NIfTI the array is the file's (i, j, k) data transposed to (k, j, i), so `array.transpose(2, 1, 0)` is the
  file's own order; `nifti_affine` is the affine in that order.
* A radiograph is display brightness in [0, 1], bright = dense. A CT is HU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from radglint.errors import GeometryError, ImageError
from radglint.geometry import check_plausible

Modality = Literal["CXR", "CT"]
ValueUnit = Literal["HU", "display"]


@dataclass(frozen=True)
class SourceFrame:
    """The DICOM file, or frame of one, behind a slice: what a DICOM result refers to.

    Attributes:
        path: the file; with an `archive`, only its name there after unpacking (see `archive.extract_zip`).
        sop_instance_uid: its SOPInstanceUID, which shows whether the file is still the one that was read.
        frame: zero-based frame of a multi-frame file, or None for a file of one image.
        archive: the zip that holds the file, or None.
    """

    path: Path
    sop_instance_uid: str
    frame: int | None = None
    archive: Path | None = None


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """A decoded image in its native grid.

    Attributes:
        array: float32, `height width` (CXR, in [0, 1]) or `depth height width` (CT, in HU).
        modality: "CXR" or "CT".
        value_unit: "display" for a radiograph, "HU" for CT.
        spacing_mm: distance of neighbouring pixel centres along each array axis, or None if unknown (2D only).
        affine: 4x4 float64 from array index (d, h, w, 1) to RAS+ mm; None in 2D.
        path: where it came from, for messages.
        steps: every decoding step that was applied, in order, in plain words.
        warnings: what the reader should know and could not be settled (never a wrong range).
        source_format: "png", "jpeg", "tiff", "dicom", "nifti" or "array".
        source_header: the nibabel header of a NIfTI input, kept so that masks carry its qform and sform.
        source_frames: the DICOM slices in the order of `depth` (one for a radiograph); empty for other formats.
        is_resampled: whether `depth` was resampled, so that array slices and `source_frames` do not match one to one.

    Raises:
        ImageError: wrong number of axes, empty, or not finite.
        GeometryError: the affine is missing, not finite or singular.
    """

    array: np.ndarray
    modality: Modality
    value_unit: ValueUnit
    spacing_mm: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    path: str = "<array>"
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source_format: str = "array"
    source_header: Any = field(default=None, repr=False)
    source_frames: tuple[SourceFrame, ...] = field(default=(), repr=False)
    is_resampled: bool = False

    def __post_init__(self) -> None:
        """Refuse an image that could not be used later."""
        ndim = 3 if self.modality == "CT" else 2
        if self.array.ndim != ndim or 0 in self.array.shape:
            raise ImageError(
                f"{self.path}: a {self.modality} needs {ndim} non-empty axes, got shape {self.array.shape}"
            )
        if self.array.dtype != np.float32:
            raise ImageError(f"{self.path}: array must be float32, got {self.array.dtype}")
        if not np.isfinite(self.array.sum(dtype=np.float64)):
            raise ImageError(f"{self.path}: the image holds NaN or infinite values; repair or re-export it")
        if ndim == 3:
            self._check_affine()

    def _check_affine(self) -> None:
        affine = self.affine
        if affine is None or np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"{self.path}: a CT needs a finite 4x4 affine, got {affine!r}")
        columns = affine[:3, :3]
        scale = np.linalg.norm(columns, axis=0)
        if (scale <= 0).any() or abs(np.linalg.det(columns / scale)) < 1e-3:
            raise GeometryError(f"{self.path}: the affine is singular (two axes coincide or one has no length)")
        check_plausible(scale, affine[:3, 3], self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Native shape, `depth height width` or `height width`."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def orientation(self) -> str | None:
        """Where each array axis points, e.g. "SPL" = up, back, left; None in 2D."""
        if self.affine is None:
            return None
        from radglint.geometry import orientation_code

        return orientation_code(self.affine)

    @property
    def nifti_affine(self) -> np.ndarray | None:
        """The affine for `array.transpose(2, 1, 0)`: columns in (width, height, depth) order."""
        return None if self.affine is None else self.affine[:, [2, 1, 0, 3]]

    def __repr__(self) -> str:
        """Shape, spacing, orientation and range, for fast debugging."""
        spacing = "unknown" if self.spacing_mm is None else "x".join(f"{s:.4g}" for s in self.spacing_mm)
        low, high = float(self.array.min()), float(self.array.max())
        where = f", orientation {self.orientation}" if self.affine is not None else ""
        return (
            f"MedicalImage({self.modality}, {'x'.join(map(str, self.shape))}, spacing {spacing} mm{where}, "
            f"{low:.4g} to {high:.4g} {self.value_unit}, from {self.path})"
        )
