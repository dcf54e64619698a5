"""The input doctor behind `radglint inspect`: what was understood of an image, and whether it is fit to be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from radglint.errors import ImageError
from radglint.geometry import closest_world_axes, obliqueness_deg, voxel_volume_ml
from radglint.hounsfield import sample_voxels, tissue_shares
from radglint.image import MedicalImage
from radglint.reading import read_image

Verdict = Literal["ok", "usable with care", "not usable"]

PERCENTILES = (0.5, 5, 25, 50, 75, 95, 99.5)
WORKING_SPACING_MM = 3.0
"""Lungs are measured on a grid thinned to about this spacing."""

_LUNG_HU = -400.0
_MIN_LUNG_ML, _WHOLE_LUNG_ML, _MAX_LUNG_ML = 100.0, 1000.0, 12000.0
_MIN_LUNG_SHARE = 0.05
_MIN_COVERAGE_MM, _MAX_SLICE_MM = 150.0, 5.5
_CUT_LUNG_SHARE = 0.02
_MIN_SPREAD, _LOW_SPREAD, _DARK = 0.1, 0.3, 0.2
_POLARITY_GAP = 0.1
"""Border minus mediastinum; 0 of 511 upright radiographs exceeded it, 3 of 4 inverted ones do."""
_ASPECT = (0.5, 2.0)
_MIN_GOOD_PX = 224
_MAX_SATURATED = 0.3


@dataclass(frozen=True)
class Inspection:
    """Facts, decoding steps and a verdict on one image.

    Attributes:
        path: what was inspected.
        verdict: "ok", "usable with care" or "not usable".
        reasons: why the verdict is not "ok", or what speaks for it.
        facts: modality, format, shape, spacing_mm, orientation, value_unit, lowest_value, highest_value, and
            for CT lung_ml, coverage_mm, oblique_deg, for a radiograph polarity_gap.
        percentiles: value at each of `PERCENTILES`, keyed "p0.5" to "p99.5".
        tissue_shares: CT only, share of voxels (0 to 1) in air, lung, fat, soft_tissue, bone.
        steps: decoding steps in order.
        warnings: what the reader warned about.
    """

    path: str
    verdict: Verdict
    reasons: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    tissue_shares: dict[str, float] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers, ready for JSON."""
        return {
            "path": self.path,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "image": {key: list(value) if isinstance(value, tuple) else value for key, value in self.facts.items()},
            "percentiles": dict(self.percentiles),
            "tissue_shares": dict(self.tissue_shares),
            "steps": list(self.steps),
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """The same for people, one fact a line."""
        lines = [self.path]
        lines += [f"  {name.replace('_', ' '):<16} {_show(value)}" for name, value in self.facts.items()]
        lines += _section("percentiles", [f"{name:<6} {value:.4g}" for name, value in self.percentiles.items()])
        shares = [f"{name.replace('_', ' '):<12} {100 * share:.1f} %" for name, share in self.tissue_shares.items()]
        lines += _section("tissue, share of voxels", shares)
        lines += _section("decoding steps", [f"{number}. {step}" for number, step in enumerate(self.steps, 1)])
        lines += _section("warnings", list(self.warnings))
        lines += _section(f"verdict: {self.verdict}", list(self.reasons))
        return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "unknown"
    return " x ".join(_show(item) for item in value) if isinstance(value, tuple) else str(value)


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"  {title}", *(f"    {line}" for line in lines)] if lines else []


def inspect_image(path: str | Path, *, series: str | None = None) -> Inspection:
    """Read an image and judge it; an image that cannot be read gives "not usable" with the error as the reason.

    Args:
        path: anything that `read_image` takes.
        series: which CT series of a folder or zip.

    Returns:
        The inspection; it never raises for a bad image.
    """
    try:
        image = read_image(path, series=series)
    except ImageError as error:
        return Inspection(path=str(path), verdict="not usable", reasons=(str(error),))
    return judge_image(image)


def judge_image(image: MedicalImage) -> Inspection:
    """Facts and verdict of an image that was read.

    Args:
        image: a CXR or a CT.
    """
    values = sample_voxels(image.array)
    facts = _common_facts(image)
    bad: list[str] = []
    care = list(image.warnings)
    if image.modality == "CT":
        facts |= _judge_ct(image, bad, care)
    else:
        facts |= _judge_radiograph(image, bad, care)
    verdict: Verdict = "not usable" if bad else "usable with care" if care else "ok"
    fine = "looks like a chest CT in HU" if image.modality == "CT" else "looks like a chest radiograph, bright = dense"
    return Inspection(
        path=image.path,
        verdict=verdict,
        reasons=(*bad, *care) or (fine,),
        facts=facts,
        percentiles={f"p{p:g}": float(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)},
        tissue_shares=tissue_shares(image.array) if image.modality == "CT" else {},
        steps=image.steps,
        warnings=image.warnings,
    )


def _common_facts(image: MedicalImage) -> dict[str, Any]:
    return {
        "modality": image.modality,
        "format": image.source_format,
        "shape": image.shape,
        "spacing_mm": image.spacing_mm,
        "orientation": image.orientation,
        "value_unit": image.value_unit,
        "lowest_value": float(image.array.min()),
        "highest_value": float(image.array.max()),
    }


def _judge_ct(image: MedicalImage, bad: list[str], care: list[str]) -> dict[str, Any]:
    """Lungs of a plausible size, whole, in slices that are thin enough."""
    affine = np.asarray(image.affine)
    vertical = closest_world_axes(affine).index(2)
    slice_mm = float(np.linalg.norm(affine[:3, vertical]))
    coverage_mm = slice_mm * image.shape[vertical]
    lung_ml, cut = lung_volume_ml(image)
    share = tissue_shares(image.array)["lung"]
    if lung_ml < _MIN_LUNG_ML and share < _MIN_LUNG_SHARE:
        bad.append(f"no lung found ({lung_ml:.0f} ml of air inside the body): not a chest, or not HU")
    elif lung_ml < _WHOLE_LUNG_ML:
        care.append(f"only {lung_ml:.0f} ml of lung in view: part of a chest, a small child, or a tight crop")
    elif lung_ml > _MAX_LUNG_ML:
        care.append(f"{lung_ml:.0f} ml of air inside the body is more than lungs hold: is the spacing right?")
    if cut:
        care.append(f"the scan {' and '.join(cut)} within the lungs")
    if coverage_mm < _MIN_COVERAGE_MM:
        care.append(f"the scan covers {coverage_mm:.0f} mm from feet to head, a chest needs about 300")
    if slice_mm > _MAX_SLICE_MM:
        care.append(f"slices are {slice_mm:.1f} mm apart: small findings are lost between them")
    oblique = obliqueness_deg(affine)
    return {"lung_ml": round(lung_ml, 1), "coverage_mm": round(coverage_mm, 1), "oblique_deg": round(oblique, 2)}


def lung_volume_ml(image: MedicalImage) -> tuple[float, list[str]]:
    """Volume of air inside the body (mostly lung), and at which ends of the scan it is cut.

    Args:
        image: a CT.

    Returns:
        ml of voxels below -400 HU that are not connected with a side face of the volume; and "begins" (feet end)
        or "ends" (head end) if such air covers more than 2 % of the last slice there.
    """
    affine = np.asarray(image.affine)
    vertical = closest_world_axes(affine).index(2)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, int(WORKING_SPACING_MM / length)) for length in lengths]
    air = image.array[tuple(slice(None, None, step) for step in steps)] < _LUNG_HU
    inside = _drop_outer_air(air, vertical)
    volume = voxel_volume_ml(affine) * float(np.prod(steps)) * int(inside.sum())
    ends = np.moveaxis(inside, vertical, 0)
    low, high = (0, -1) if affine[2, vertical] > 0 else (-1, 0)
    cut = [word for word, end in (("begins", low), ("ends", high)) if ends[end].mean() > _CUT_LUNG_SHARE]
    return volume, cut


def _drop_outer_air(air: np.ndarray, vertical: int) -> np.ndarray:
    labels = np.empty(air.shape, dtype=np.int32)
    ndimage.label(air, output=labels)
    outer = np.zeros(int(labels.max()) + 1, dtype=bool)
    for axis in range(3):
        if axis != vertical:
            faces = np.moveaxis(labels, axis, 0)
            outer[np.unique(faces[0])] = outer[np.unique(faces[-1])] = True
    outer[0] = True
    return ~outer[labels]


def _judge_radiograph(image: MedicalImage, bad: list[str], care: list[str]) -> dict[str, Any]:
    """Contrast, brightness, polarity, size and shape."""
    array = image.array
    height, width = array.shape
    dark, bright = (float(v) for v in np.percentile(array, (1, 99)))
    if len(np.unique(sample_voxels(array))) <= 2:
        bad.append("two grey values only: a mask, no radiograph")
    elif bright - dark < _MIN_SPREAD:
        bad.append(f"hardly any contrast: 98 % of the pixels lie between {dark:.3f} and {bright:.3f} of the scale")
    elif bright - dark < _LOW_SPREAD:
        care.append(f"low contrast: 98 % of the pixels lie between {dark:.2f} and {bright:.2f} of the scale")
    if dark < bright < _DARK:
        care.append(f"nearly black: 99 % of the pixels are below {bright:.2f}; is the bit range right?")
    saturated = float(np.mean(array >= 1))
    if saturated > _MAX_SATURATED:
        care.append(f"{100 * saturated:.0f} % of the pixels are fully white: over-exposed, or a page with a picture")
    gap = polarity_gap(array)
    if gap > _POLARITY_GAP:
        care.append("the border is brighter than the centre: perhaps inverted (bright = air); invert it and compare")
    if not _ASPECT[0] <= width / height <= _ASPECT[1]:
        care.append(f"{width} x {height} pixels is an unusual shape for a chest radiograph: cropped, or two views?")
    if min(height, width) < _MIN_GOOD_PX:
        care.append(f"only {width} x {height} pixels: small findings cannot be seen")
    return {"polarity_gap": round(gap, 3)}


def polarity_gap(array: np.ndarray) -> float:
    """Median brightness of the left and right border minus that of the mediastinum; positive hints at inversion.

    Args:
        array: `height width` in [0, 1].
    """
    height, width = array.shape
    margin = max(1, min(height, width) // 25)
    border = np.concatenate([array[:, :margin].ravel(), array[:, -margin:].ravel()])
    centre = array[int(0.3 * height) : int(0.9 * height), int(0.4 * width) : int(0.6 * width)]
    return float(np.median(border) - np.median(centre))
