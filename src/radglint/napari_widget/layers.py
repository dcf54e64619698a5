"""Images and masks as napari layers, and back, without a voxel lost or moved. Knows neither napari nor Qt.

napari slices a volume along its array axes and cannot show one whose axes are far from its world axes (a coronal
series, say). A layer is therefore a view of the array with its axes in the order head, back, left: transposed, never
flipped or resampled; flips and spacing are in the affine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from radglint.display import DISPLAY, LUNG
from radglint.geometry import closest_world_axes, obliqueness_deg
from radglint.image import MedicalImage

if TYPE_CHECKING:
    from radglint.finding import Finding

LayerData = tuple[np.ndarray, dict[str, Any], str]

IMAGE_KEY = "radglint_image"
RAS_TO_WORLD = np.array([[0, 0, 1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
"""From RAS+ mm to the world of the layers: to the head, to the back, to the patient's left, in mm."""
TILTED_DEG = 0.05
"""From this angle on napari's 2D view, which knows no tilt, is said to be inexact."""
MASK_OPACITY = 0.5


def axis_order(image: MedicalImage) -> tuple[int, ...]:
    """Which native axis each layer axis is: the one nearest to head, back and left; a radiograph as it is."""
    if image.affine is None:
        return (0, 1)
    world = closest_world_axes(image.affine)
    return world.index(2), world.index(1), world.index(0)


def to_layer(array: np.ndarray, image: MedicalImage) -> np.ndarray:
    """An array on the native grid as a view in the axis order of the layers."""
    return array.transpose(axis_order(image))


def to_native(data: np.ndarray, image: MedicalImage) -> np.ndarray:
    """The inverse of `to_layer`."""
    return data.transpose(np.argsort(axis_order(image)))


def world_affine(image: MedicalImage) -> np.ndarray:
    """From a layer index to the layers' world.

    Returns:
        4x4 float64, mm. For a radiograph 3x3: mm if the pixel spacing is known, else pixels.
    """
    if image.affine is None:
        return np.diag([*(image.spacing_mm or (1.0, 1.0)), 1.0])
    return RAS_TO_WORLD @ image.affine[:, [*axis_order(image), 3]]


def image_layer(image: MedicalImage) -> LayerData:
    """The image as layer data, in the form that napari's readers return.

    Returns:
        The array as a view, the layer's settings, and "image". The image itself travels in the metadata, so that the
        widget asks exactly what was read.
    """
    window = DISPLAY if image.affine is None else LUNG
    settings = {
        "name": _short_name(image.path),
        "colormap": "gray",
        "contrast_limits": (window.low, window.high),
        "metadata": {IMAGE_KEY: image},
        **_geometry(image),
    }
    return to_layer(image.array, image), settings, "image"


def mask_layer(finding: Finding, mask: np.ndarray, colour: str) -> LayerData:
    """A mask as layer data; where it lies in the world is that of the image's layer, see `same_place`.

    Args:
        finding: what it is the mask of.
        mask: bool on the native grid.
        colour: "#rrggbb".
    """
    settings = {
        "name": f"{finding.query} ({finding.probability:.2f})",
        "colormap": {0: "transparent", 1: colour, None: colour},
        "opacity": MASK_OPACITY,
    }
    return to_layer(mask.astype(np.uint8), finding.image), settings, "labels"


def same_place(layer: Any) -> dict[str, Any]:
    """The settings that put another layer of the same grid exactly onto an image layer, also onto one moved by hand."""
    return {name: getattr(layer, name) for name in ("affine", "scale", "translate", "rotate", "shear", "units")}


def affine_of(layer: Any) -> np.ndarray:
    """From a layer's index to the world, whatever transforms napari has put together for it."""
    ndim = layer.ndim
    origin = np.array(layer.data_to_world((0,) * ndim))
    columns = [np.array(layer.data_to_world(tuple(unit))) - origin for unit in np.eye(ndim)]
    affine = np.eye(ndim + 1)
    affine[:ndim] = np.column_stack([*columns, origin])
    return affine


def tilt_note(image: MedicalImage) -> str:
    """What the user should know of a scan whose axes are not those of the patient; else empty."""
    if image.affine is None:
        return ""
    angle = obliqueness_deg(image.affine)
    if angle < TILTED_DEG:
        return ""
    return f"this scan is tilted by {angle:.1f} degrees: napari's 2D view leaves that out, its 3D view does not"


def _geometry(image: MedicalImage) -> dict[str, Any]:
    known_mm = image.affine is not None or image.spacing_mm is not None
    return {"affine": world_affine(image), **({"units": ("mm",) * image.array.ndim} if known_mm else {})}


def _short_name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path
