"""Preprocessing, the same for training and inference: an image becomes model pixels plus the record that inverts it.

A radiograph is stretched to [0, 1] and resized. A CT is resampled through its affine onto axial slices in patient
axes: slices feet to head, rows front to back, columns patient right to left, whatever the native orientation. The
`PreprocessRecord` maps native indices to the token grid and brings token maps back; native voxels that the model never
saw come back as NaN, not as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from radglint.errors import ConfigError, GeometryError, ImageError
from radglint.geometry import apply_affine, closest_world_axes
from radglint.image import MedicalImage
from radglint.resample import INSIDE_SLACK, Box, resample_volume, sample_box

AIR_HU = -1024.0
BODY_HU = -500.0
MAX_ASPECT = 3.0
MAX_EXTENT_MM = 2500.0
BODY_SAMPLE_MM = 4.0
PERCENTILE_PIXELS = 1 << 20


class CxrPreprocess(BaseModel):
    """How a chest radiograph becomes model pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Tells the two variants apart in a stored configuration.
    kind: Literal["CXR"] = "CXR"
    # Pixels along the longer side; the shorter side keeps the aspect to within half a patch.
    long_side_px: int = Field(default=392, ge=14, le=4096)
    # Side of a model patch; both sides of the result are multiples of it.
    patch_px: int = Field(default=14, ge=1, le=64)
    # Percentile of the brightness that becomes 0.
    low_percentile: float = Field(default=0.5, ge=0, lt=50)
    # Percentile of the brightness that becomes 1.
    high_percentile: float = Field(default=99.5, gt=50, le=100)

    @model_validator(mode="after")
    def _whole_patches(self) -> CxrPreprocess:
        if self.long_side_px % self.patch_px:
            raise ValueError(f"long_side_px must be a multiple of patch_px {self.patch_px}, got {self.long_side_px}")
        return self


class CtPreprocess(BaseModel):
    """How a chest CT becomes axial model slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Tells the two variants apart in a stored configuration.
    kind: Literal["CT"] = "CT"
    # In-plane size of a model pixel.
    mm_per_px: float = Field(default=1.0, gt=0, le=10)
    # Canvas height, front to back; a multiple of patch_px.
    height_px: int = Field(default=308, ge=14, le=4096)
    # Canvas width, patient right to left; a multiple of patch_px.
    width_px: int = Field(default=392, ge=14, le=4096)
    # Distance of model slices; native slices that are thicker keep their own distance (never made up in between).
    slice_step_mm: float = Field(default=2.5, gt=0, le=20)
    # HU that becomes 0.
    window_low_hu: float = -1000
    # HU that becomes 1.
    window_high_hu: float = 400
    # Side of a model patch in the slice.
    patch_px: int = Field(default=14, ge=1, le=64)

    @model_validator(mode="after")
    def _consistent(self) -> CtPreprocess:
        if self.height_px % self.patch_px or self.width_px % self.patch_px:
            raise ValueError(
                f"height_px and width_px must be multiples of patch_px {self.patch_px}, "
                f"got {self.height_px} and {self.width_px}"
            )
        if self.window_low_hu >= self.window_high_hu:
            raise ValueError(f"window_low_hu {self.window_low_hu} must be below window_high_hu {self.window_high_hu}")
        return self


PreprocessConfig = Annotated[CxrPreprocess | CtPreprocess, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class PreprocessRecord:
    """Where the token grid lies in the native image, and the way back.

    Attributes:
        native_shape: `depth height width` or `height width` of the native image.
        grid_shape: tokens per axis, (slices, rows, columns) or (rows, columns).
        native_to_grid: homogeneous float64 matrix from native index to token coordinate; an integer coordinate is the
            centre of a token. A native voxel is seen if -0.5 <= coordinate <= tokens - 0.5 on every axis.
        steps: what was done, in plain words.
    """

    native_shape: tuple[int, ...]
    grid_shape: tuple[int, ...]
    native_to_grid: np.ndarray
    steps: tuple[str, ...] = ()

    def upsample(self, token_map: np.ndarray, slab: slice | None = None) -> np.ndarray:
        """Bring a token map to the native grid by multilinear interpolation.

        Args:
            token_map: numbers of shape `grid_shape`, finite.
            slab: the part of the first native axis that is wanted (step 1); None for all.

        Returns:
            float32 on the native grid (or the slab of it), NaN where the model saw nothing.

        Raises:
            ValueError: wrong shape, not finite, or a slab with a step.
        """
        start, stop, step = (slab or slice(None)).indices(self.native_shape[0])
        if step != 1:
            raise ValueError(f"slab must have step 1, got {slab}")
        box = ((start, max(start, stop)), *((0, size) for size in self.native_shape[1:]))
        return self.upsample_box(token_map, box)

    def upsample_box(self, token_map: np.ndarray, box: Box) -> np.ndarray:
        """Like `upsample`, for one box only: (start, stop) per native axis; bitwise equal to that part of the whole."""
        return sample_box(self.checked(token_map), self.native_to_grid, self.native_shape, box)

    def checked(self, token_map: np.ndarray) -> np.ndarray:
        """The token map as float32, once it fits the grid and is finite; else ValueError."""
        values = np.ascontiguousarray(token_map, dtype=np.float32)
        if values.shape != self.grid_shape:
            raise ValueError(f"token_map must have shape {self.grid_shape}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("token_map holds NaN or infinite values")
        return values

    def native_to_grid_points(self, points: np.ndarray) -> np.ndarray:
        """Token coordinates of native indices: (..., axes) to (..., axes), float64."""
        return apply_affine(self.native_to_grid, points)

    def grid_to_native(self, points: np.ndarray) -> np.ndarray:
        """Native indices (not rounded) of token coordinates: (..., axes) to (..., axes), float64."""
        return apply_affine(np.linalg.inv(self.native_to_grid), points)

    def is_seen(self, points: np.ndarray) -> np.ndarray:
        """Whether the model saw the native indices (..., axes): bool (...)."""
        across = (2 * self.native_to_grid_points(points) + 1) / np.array(self.grid_shape) - 1
        return np.abs(across).max(axis=-1) <= 1 + INSIDE_SLACK

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` restores it exactly."""
        return {
            "native_shape": list(self.native_shape),
            "grid_shape": list(self.grid_shape),
            "native_to_grid": self.native_to_grid.tolist(),
            "steps": list(self.steps),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessRecord:
        """Restore a record.

        Raises:
            ConfigError: keys are missing or unknown, or the matrix has the wrong shape.
        """
        wanted = {"native_shape", "grid_shape", "native_to_grid", "steps"}
        if set(data) != wanted:
            raise ConfigError(f"preprocess record: expected the keys {sorted(wanted)}, got {sorted(data)}")
        native, grid = tuple(map(int, data["native_shape"])), tuple(map(int, data["grid_shape"]))
        matrix = np.array(data["native_to_grid"], dtype=np.float64)
        if len(native) != len(grid) or matrix.shape != (len(native) + 1,) * 2:
            raise ConfigError(
                f"preprocess record: native_to_grid of shape {matrix.shape} does not fit native_shape "
                f"{native} and grid_shape {grid}"
            )
        return cls(native, grid, matrix, tuple(map(str, data["steps"])))


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """Model pixels and the way back.

    Attributes:
        pixels: float32 in [0, 1]; (1, height, width) for a radiograph, (slices, height, width) for CT.
        record: maps token maps back onto the native image.
    """

    pixels: np.ndarray
    record: PreprocessRecord


def preprocess(image: MedicalImage, config: CxrPreprocess | CtPreprocess) -> Preprocessed:
    """Turn an image into model pixels.

    Args:
        image: a radiograph in [0, 1] or a CT in HU.
        config: the variant that belongs to the image's modality.

    Returns:
        Pixels in [0, 1] and the record that inverts the geometry.

    Raises:
        ConfigError: the variant does not belong to the image's modality.
        ImageError: the image is constant or its shape cannot be a chest image.
        GeometryError: the CT's extent in millimetres is impossible.
    """
    if config.kind != image.modality:
        raise ConfigError(f"{image.path}: a {image.modality} needs {image.modality} preprocessing, got {config.kind}")
    if float(image.array.max()) == float(image.array.min()):
        raise ImageError(f"{image.path}: every value is {float(image.array.flat[0]):g}; a constant image shows nothing")
    if isinstance(config, CxrPreprocess):
        return _preprocess_cxr(image, config)
    return _preprocess_ct(image, config)


def _cxr_size(image: MedicalImage, config: CxrPreprocess) -> tuple[int, int]:
    """Model size (height, width): the long side as configured, the short one rounded to whole patches."""
    long, short = max(image.shape), min(image.shape)
    if long > MAX_ASPECT * short:
        raise ImageError(
            f"{image.path}: a radiograph of {image.shape[1]}x{image.shape[0]} pixels is more than {MAX_ASPECT:g} times "
            "longer than wide; crop it to the chest"
        )
    patches = max(1, round(short * config.long_side_px / long / config.patch_px))
    sides = {long: config.long_side_px, short: patches * config.patch_px} if long != short else {}
    return sides.get(image.shape[0], config.long_side_px), sides.get(image.shape[1], config.long_side_px)


def _stretch(array: np.ndarray, low_percentile: float, high_percentile: float) -> np.ndarray:
    """Contrast stretch to [0, 1] between two percentiles, or between the extremes if the percentiles coincide."""
    stride = max(1, int(np.ceil(np.sqrt(array.size / PERCENTILE_PIXELS))))
    low, high = np.percentile(array[::stride, ::stride], [low_percentile, high_percentile])
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        low, high = float(array.min()), float(array.max())
    scaled = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0)


def _preprocess_cxr(image: MedicalImage, config: CxrPreprocess) -> Preprocessed:
    """Stretch, then resize with a triangle prefilter where the image shrinks; pixel centres at half integers."""
    size = _cxr_size(image, config)
    stretched = torch.from_numpy(_stretch(image.array, config.low_percentile, config.high_percentile))
    resized = torch.nn.functional.interpolate(
        stretched[None, None], size=size, mode="bilinear", antialias=True, align_corners=False
    )
    matrix = np.eye(3)
    for axis, (native, model) in enumerate(zip(image.shape, size, strict=True)):
        matrix[axis, axis] = model / native / config.patch_px
        matrix[axis, 2] = 0.5 * matrix[axis, axis] - 0.5
    grid = (size[0] // config.patch_px, size[1] // config.patch_px)
    steps = (f"resized to {size[1]}x{size[0]} pixels, percentiles {config.low_percentile:g} to "
             f"{config.high_percentile:g} stretched to 0..1",)  # fmt: skip
    return Preprocessed(resized[0].clamp(0.0, 1.0).numpy(), PreprocessRecord(image.shape, grid, matrix, steps))


def _facing_as_canvas(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume as a view whose axes run up, back and left, so that subsampling does not depend on its order."""
    affine = affine.copy()
    for axis, world in enumerate(closest_world_axes(affine)):
        if (affine[world, axis] > 0) != (world == 2):
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return array, affine


def _body_centre_mm(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World x and y of the middle of the body: the largest piece above -500 HU once thin things (table) are cut off."""
    array, affine = _facing_as_canvas(array, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stride = np.maximum(1, np.round(BODY_SAMPLE_MM / spacing)).astype(int)
    tissue = array[:: stride[0], :: stride[1], :: stride[2]] > BODY_HU
    opened = ndimage.binary_opening(tissue, np.ones([3 if n >= 3 else 1 for n in tissue.shape], dtype=bool))
    if not tissue.any():
        return apply_affine(affine, (np.array(array.shape) - 1) / 2)[:2]
    labels = np.zeros(tissue.shape, dtype=np.int32)
    ndimage.label(opened if opened.any() else tissue, output=labels)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    index = np.argwhere(labels == largest) * stride
    return np.percentile(apply_affine(affine, index)[:, :2], [1, 99], axis=0).mean(axis=0)


def _slice_positions(image: MedicalImage, affine: np.ndarray, step_mm: float) -> tuple[float, float, int]:
    """Lowest slice position (world z, mm), step (mm) and number of slices that cover the volume feet to head."""
    step = max(step_mm, abs(float(affine[2, closest_world_axes(affine).index(2)])))
    extent = float((np.abs(affine[2, :3]) * np.array(image.shape)).sum())
    if extent > MAX_EXTENT_MM:
        raise GeometryError(
            f"{image.path}: the volume is {extent:.0f} mm tall, expected at most {MAX_EXTENT_MM:.0f}; "
            "check the voxel spacing (millimetres?)"
        )
    count = max(1, int(np.ceil(extent / step - 1e-6)))
    middle = float(apply_affine(affine, (np.array(image.shape) - 1) / 2)[2])
    return middle - (count - 1) / 2 * step, step, count


def ct_canvas(image: MedicalImage, config: CtPreprocess) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The axial model grid of a CT, in true patient axes even if the scan is oblique.

    Args:
        image: a CT.
        config: canvas size, pixel size and slice step.

    Returns:
        4x4 matrix from model index (slice, row, column, 1) to RAS+ mm, and the model shape.

    Raises:
        GeometryError: the extent is impossible.
    """
    if image.affine is None:
        raise GeometryError(f"{image.path}: a CT needs an affine")
    affine = np.asarray(image.affine, dtype=np.float64)
    bottom, step, count = _slice_positions(image, affine, config.slice_step_mm)
    x, y = _body_centre_mm(image.array, affine)
    mm = config.mm_per_px
    canvas = np.array(
        [
            [0.0, 0.0, -mm, x + mm * (config.width_px - 1) / 2],
            [0.0, -mm, 0.0, y + mm * (config.height_px - 1) / 2],
            [step, 0.0, 0.0, bottom],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    return canvas, (count, config.height_px, config.width_px)


def _preprocess_ct(image: MedicalImage, config: CtPreprocess) -> Preprocessed:
    """Resample onto the axial canvas, window to [0, 1]; outside the volume is air."""
    canvas, shape = ct_canvas(image, config)
    world_to_native = np.linalg.inv(np.asarray(image.affine, dtype=np.float64))
    pixels = resample_volume(image.array, world_to_native @ canvas, shape, AIR_HU)
    pixels -= np.float32(config.window_low_hu)
    pixels /= np.float32(config.window_high_hu - config.window_low_hu)
    np.clip(pixels, 0.0, 1.0, out=pixels)
    patch = config.patch_px
    canvas_to_grid = np.diag([1.0, 1 / patch, 1 / patch, 1.0])
    canvas_to_grid[1:3, 3] = 0.5 / patch - 0.5
    matrix = canvas_to_grid @ np.linalg.inv(canvas) @ np.asarray(image.affine, dtype=np.float64)
    grid = (shape[0], shape[1] // patch, shape[2] // patch)
    steps = (f"resampled to {shape[0]} axial slices of {shape[2]}x{shape[1]} pixels, {config.mm_per_px:g} mm a pixel, "
             f"slice step {canvas[2, 0]:g} mm",)  # fmt: skip
    return Preprocessed(pixels, PreprocessRecord(image.shape, grid, matrix, steps))
