"""Digitally reconstructed radiographs: a chest view computed from a chest CT, and masks in the same geometry.

Each plane of the CT parallel to the detector is scaled by its own magnification (point source on the far side of the
patient, detector on the near one) and the attenuation is summed; the display curve then makes it look like a chest
radiograph: bright = dense, head up.

PA has the detector in front of the patient, AP behind, so that the heart is magnified more in AP; both show the
patient's right on the picture's left. LL, the left lateral, has the detector at the patient's left and shows sternum
left, spine right: what the detector sees, and how most real laterals are hung (17 of 21 in the open COVID-19 set).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from radglint.errors import ConfigError, ImageError
from radglint.image import MedicalImage
from radglint.simulation.anatomy_ct import HEART, LEFT_LUNG, RIGHT_LUNG, body_mask
from radglint.simulation.anatomy_cxr import LungFields
from radglint.simulation.ct_base import to_canonical_axes

View = Literal["PA", "AP", "LL"]
VIEWS: tuple[View, ...] = ("PA", "AP", "LL")
MAX_TURN_DEG = 20.0

_DETECTOR = {"PA": "from back to front", "AP": "from front to back", "LL": "from right to left"}
_LATERAL_LUNG_PATH_MM = 30.0
_LUNG_PATH_MM, _HEART_PATH_MM = 90.0, 40.0  # a ray belongs to a lung field, or to the heart, from this length inside


@dataclass(frozen=True)
class DrrConfig:
    """Geometry and display of a reconstructed radiograph.

    Attributes:
        size_px: pixels along the longer side; the other side follows from the CT's extent.
        source_to_detector_mm: distance of the point source; None for parallel rays.
        gap_mm: distance of the CT's near border (in PA the front one) from the detector.
        remove_table: set everything outside the patient to air.
        water_per_mm: attenuation of water, 1/mm.
        local_contrast: strength of the large-scale contrast equalisation, 0 for none.
        view: "PA", "AP" or "LL" (left lateral).
        turn_deg: how far the patient is turned to his own left about the body's long axis, through the CT's middle;
            negative to his right, at most `MAX_TURN_DEG`. What turns out of the CT's borders is lost.
        depth_step_mm: planes that lie nearer together are averaged up to this thickness first, for speed; 0: none.
    """

    size_px: int = 768
    source_to_detector_mm: float | None = 1800.0
    gap_mm: float = 30.0
    remove_table: bool = True
    water_per_mm: float = 0.019
    local_contrast: float = 0.5
    view: View = "PA"
    turn_deg: float = 0.0
    depth_step_mm: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes, distances and views that cannot be drawn."""
        if self.size_px < 16:
            raise ConfigError(f"size_px: expected at least 16, got {self.size_px}")
        if self.source_to_detector_mm is not None and self.source_to_detector_mm < 800:
            raise ConfigError(
                f"source_to_detector_mm: expected at least 800 or None (parallel), got {self.source_to_detector_mm}"
            )
        if self.view not in VIEWS:
            raise ConfigError(f"view: expected one of {', '.join(VIEWS)}, got {self.view!r}")
        if not 0 <= self.depth_step_mm <= 50:
            raise ConfigError(f"depth_step_mm: expected 0 to 50, got {self.depth_step_mm:g}")
        if not -MAX_TURN_DEG <= self.turn_deg <= MAX_TURN_DEG:
            raise ConfigError(f"turn_deg: expected -{MAX_TURN_DEG:g} to {MAX_TURN_DEG:g}, got {self.turn_deg:g}")


def render_drr(image: MedicalImage, config: DrrConfig | None = None) -> MedicalImage:
    """Compute a chest radiograph from a chest CT.

    Args:
        image: a CT in HU whose axes are near the body's.
        config: geometry, view and display.

    Returns:
        A radiograph of modality "CXR" in [0, 1]; `spacing_mm` is the pixel size on the detector.

    Raises:
        ImageError: the image is not a CT, or shows nothing.
        GeometryError: the CT is too oblique.
    """
    settings = config or DrrConfig()
    line_integral, pixel = line_integrals(image, settings)
    if line_integral.max() <= 0.05:
        raise ImageError(f"{image.path}: nothing in this CT attenuates; expected HU, air about -1000, water 0")
    source = settings.source_to_detector_mm
    rays = "parallel rays" if source is None else f"point source at {source:g} mm from the detector"
    side = "left" if settings.turn_deg > 0 else "right"
    turned = (f"patient turned by {abs(settings.turn_deg):g} degrees to his {side}",) if settings.turn_deg else ()
    steps = (
        *image.steps,
        "axes reordered to slices feet to head, rows front to back, columns patient right to left",
        "set everything outside the patient to air" if settings.remove_table else "table kept",
        *turned,
        f"summed attenuation {settings.water_per_mm:g}/mm * (1 + HU/1000) {_DETECTOR[settings.view]}, {rays}",
        f"display curve between the body's 2nd and 99.7th percentile, local contrast {settings.local_contrast:g}",
    )
    return MedicalImage(
        display(line_integral, settings), "CXR", "display", (pixel, pixel), None, image.path, steps, image.warnings
    )


def line_integrals(image: MedicalImage, settings: DrrConfig) -> tuple[np.ndarray, float]:
    """Attenuation summed along each ray, `height width` of the radiograph, and its pixel size in mm.

    Args:
        image: a CT in HU.
        settings: geometry and view.

    Raises:
        ImageError: the image is not a CT.
        GeometryError: the CT is too oblique.
    """
    volume, spacing = _canonical(image)
    attenuation = np.clip(1 + volume / np.float32(1000), 0, None) * np.float32(settings.water_per_mm)
    if settings.remove_table:
        attenuation = attenuation * patient_mask(volume, spacing)
    posed, steps_mm = _posed(attenuation, spacing, settings)
    return _project(posed, steps_mm, settings), _pixel_mm(posed.shape, steps_mm, settings)


def project_values(values: np.ndarray, image: MedicalImage, config: DrrConfig | None = None) -> np.ndarray:
    """Sum values of the CT's grid along the rays of the radiograph that `render_drr` makes of it.

    Args:
        values: of the CT's native shape.
        image: the CT.
        config: the same as for the radiograph.

    Returns:
        Value times mm, float32 `height width`, the radiograph's shape.

    Raises:
        ImageError: the values' shape is not the CT's.
    """
    if values.shape != image.shape:
        raise ImageError(f"{image.path}: the values must have the CT's shape {image.shape}, got {values.shape}")
    settings = config or DrrConfig()
    volume, spacing = _canonical(replace(image, array=np.ascontiguousarray(values, np.float32)))
    return _project(*_posed(volume, spacing, settings), settings)


def project_mask(
    mask: np.ndarray, image: MedicalImage, config: DrrConfig | None = None, *, min_path_mm: float = 3.0
) -> np.ndarray:
    """Project a 3D mask onto the radiograph that `render_drr` makes of the same CT and config.

    Args:
        mask: bool, of the CT's native shape.
        image: the CT.
        config: the same as for the radiograph.
        min_path_mm: a pixel belongs to the mask if its ray runs at least this far inside.

    Returns:
        Bool `height width`, the radiograph's shape.

    Raises:
        ImageError: the mask's shape is not the CT's.
    """
    return project_values(mask, image, config) >= min_path_mm


def project_lungs(labels: np.ndarray, image: MedicalImage, config: DrrConfig | None = None) -> LungFields:
    """Lungs and heart as the radiograph of `render_drr` shows them: where a ray runs far enough inside.

    In a lateral the lungs lie one behind the other; what is in both counts as the right one.

    Args:
        labels: anatomy labels (`anatomy_ct`) of the CT's native shape.
        image: the CT.
        config: the same as for the radiograph.

    Raises:
        ImageError: the labels' shape is not the CT's.
    """
    path_mm = _LATERAL_LUNG_PATH_MM if config is not None and config.view == "LL" else _LUNG_PATH_MM
    left, right = (project_mask(labels == n, image, config, min_path_mm=path_mm) for n in (LEFT_LUNG, RIGHT_LUNG))
    heart = project_mask(labels == HEART, image, config, min_path_mm=_HEART_PATH_MM)
    return LungFields(left=left & ~right, right=right, heart=heart & ~left & ~right)


def _canonical(image: MedicalImage) -> tuple[np.ndarray, np.ndarray]:
    if image.modality != "CT":
        raise ImageError(f"{image.path}: a reconstructed radiograph needs a CT, got a {image.modality}")
    volume, spacing = to_canonical_axes(image)
    return np.ascontiguousarray(volume, np.float32), spacing


def patient_mask(volume: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Find the patient without the table, on a grid of about 2 mm.

    Args:
        volume: HU, slices feet to head, rows front to back, columns patient right to left.
        spacing: of slices, rows and columns, mm.

    Returns:
        Bool, of the volume's shape.
    """
    stride = max(1, round(2 / float(spacing[1])))
    smooth = ndimage.gaussian_filter(volume[:, ::stride, ::stride], (0, 0.7, 0.7))
    coarse = body_mask(smooth, (float(spacing[0]), float(spacing[1] * stride), float(spacing[2] * stride)))
    coarse = ndimage.binary_dilation(coarse, np.ones((1, 3, 3), bool))
    return coarse.repeat(stride, 1).repeat(stride, 2)[:, : volume.shape[1], : volume.shape[2]]


def _posed(volume: np.ndarray, spacing: np.ndarray, settings: DrrConfig) -> tuple[np.ndarray, np.ndarray]:
    """A canonical volume as the detector sees it, with its spacing: feet to head, depth from the detector, columns."""
    turned = _turned(volume, spacing, settings.turn_deg) if settings.turn_deg else volume
    if settings.view == "AP":
        turned = turned[:, ::-1]
    if settings.view == "LL":
        turned, spacing = turned[:, :, ::-1].transpose(0, 2, 1), spacing[[0, 2, 1]]
    return _thickened(np.ascontiguousarray(turned), spacing, settings.depth_step_mm)


def _thickened(volume: np.ndarray, spacing: np.ndarray, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring planes as their mean, so many as lie within the step, and the spacing then."""
    count = int(step_mm / float(spacing[1]))
    if count < 2:
        return volume, spacing
    slices, depth, columns = volume.shape
    padded = np.pad(volume, ((0, 0), (0, -depth % count), (0, 0)))
    return padded.reshape(slices, -1, count, columns).mean(axis=2), spacing * [1, count, 1]


def _turned(volume: np.ndarray, spacing: np.ndarray, degrees: float) -> np.ndarray:
    """The volume turned to the patient's left about its long axis, empty where nothing was."""
    rows, columns = volume.shape[1:]
    back, left = (np.arange(n) - (n - 1) / 2 for n in (rows, columns))
    back, left = np.meshgrid(back * float(spacing[1]), left * float(spacing[2]), indexing="ij")
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    from_left, from_back = cos * left + sin * back, cos * back - sin * left
    x, y = from_left * 2 / (columns * float(spacing[2])), from_back * 2 / (rows * float(spacing[1]))
    grid = torch.from_numpy(np.stack([x, y], axis=-1).astype(np.float32))[None]
    moved = functional.grid_sample(torch.from_numpy(volume)[None], grid, mode="bilinear", align_corners=False)
    return moved[0].numpy()


def _magnification(distance_mm: float, settings: DrrConfig) -> float:
    source = settings.source_to_detector_mm
    return 1.0 if source is None else source / max(source - distance_mm, 1.0)


def _pixel_mm(shape: tuple[int, ...], spacing: np.ndarray, settings: DrrConfig) -> float:
    """Detector pixel so that the CT's plane next to the detector, the least magnified one, just fills the picture."""
    extent = max(shape[0] * float(spacing[0]), shape[2] * float(spacing[2]))
    return extent * _magnification(settings.gap_mm, settings) / settings.size_px


def _project(volume: np.ndarray, spacing: np.ndarray, settings: DrrConfig) -> np.ndarray:
    """Line integrals (value times mm) `height width`, head up, of a volume as the detector sees it (`_posed`)."""
    slices, rows, columns = volume.shape
    pixel = _pixel_mm(volume.shape, spacing, settings)
    front = _magnification(settings.gap_mm, settings)
    height = max(1, round(slices * float(spacing[0]) * front / pixel))
    width = max(1, round(columns * float(spacing[2]) * front / pixel))
    y = (np.arange(height) - (height - 1) / 2) * pixel * 2 / (slices * float(spacing[0]))
    x = (np.arange(width) - (width - 1) / 2) * pixel * 2 / (columns * float(spacing[2]))
    flat = np.stack(np.broadcast_arrays(x[None, :], -y[:, None]), axis=-1).astype(np.float32)
    grid = torch.from_numpy(np.ascontiguousarray(flat))[None]
    planes = torch.from_numpy(np.ascontiguousarray(volume.transpose(1, 0, 2)))
    total = torch.zeros((1, 1, height, width))
    for row in range(rows):
        if not planes[row].any():
            continue
        scaled = grid / _magnification(settings.gap_mm + (row + 0.5) * float(spacing[1]), settings)
        total += functional.grid_sample(planes[row][None, None], scaled, mode="bilinear", align_corners=False)
    return total[0, 0].numpy() * np.float32(spacing[1])


def display(line_integral: np.ndarray, settings: DrrConfig) -> np.ndarray:
    """Log exposure to display brightness: body percentiles, gentle equalisation, S-shaped curve.

    Args:
        line_integral: from `line_integrals`.
        settings: the same.

    Returns:
        Gray values float32 in [0, 1], bright = dense.
    """
    body = line_integral > 0.25 * np.percentile(line_integral, 90)
    low, high = np.percentile(line_integral[body], [2, 99.7])
    value = (line_integral - low) / max(float(high - low), 1e-3)
    if settings.local_contrast > 0:
        wide = ndimage.gaussian_filter(np.clip(value, 0, 1), settings.size_px / 14)
        value = value + settings.local_contrast * (value - wide)
        low, high = np.percentile(value[body], [1, 99.5])
        value = (value - low) / max(float(high - low), 1e-3)
    curve = 1 / (1 + np.exp(-3.4 * (np.clip(value, 0, 1) ** 0.8 - 0.5)))
    end = 1 / (1 + np.exp(1.7))
    return np.clip((curve - end) / (1 - 2 * end), 0, 1).astype(np.float32)
