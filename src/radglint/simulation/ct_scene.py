"""The scene that CT findings are painted into: HU, lungs, heights, matched noise and the tools of painting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG, SIDE_LABELS, zone_of_height

Spacing = tuple[float, float, float]
"""Slice step, row step, column step in mm."""


@dataclass(frozen=True)
class NoiseModel:
    """Noise of a scan in soft tissue.

    Attributes:
        std_hu: standard deviation in HU.
        blur_px: sigma of the Gaussian that gives white noise the same neighbour correlation.
    """

    std_hu: float = 12.0
    blur_px: float = 0.8


@dataclass(frozen=True, eq=False)
class Lesion:
    """A real lesion on the grid of the scans that it goes into.

    Attributes:
        hu: float32 `slices height width`, HU.
        inside: bool, the outline.
        share: float32 in [0, 1], how much of the scan each voxel replaces: 1 inside, falling off around it.
        diameter_mm: of the outline, as published or measured.
        calcified: solid or laminated calcification.
        name: of the lesion, for manifests.
        patient: whose it is.
    """

    hu: np.ndarray
    inside: np.ndarray
    share: np.ndarray
    diameter_mm: float
    calcified: bool
    name: str = ""
    patient: str = ""


@dataclass(eq=False)
class Scene:
    """A stack of axial slices that findings are painted into.

    Attributes:
        hu: float32 `slices height width`, changed in place by painting.
        labels: uint8, labels of `anatomy_ct`.
        heights: height of each slice in the lungs, 0 base to 1 apex.
        spacing_mm: slice, row and column step.
        noise: noise of the scan.
        rng: source of everything random.
        lesions: real lesions to take instead of made ones, now and then.
        placed: the real lesion that the last painter put in; None if it made one.
    """

    hu: np.ndarray
    labels: np.ndarray
    heights: np.ndarray
    spacing_mm: Spacing
    noise: NoiseModel
    rng: np.random.Generator
    lesions: Sequence[Lesion] = ()
    placed: Lesion | None = None
    _rooms: dict[str, np.ndarray] = field(default_factory=dict)

    def lung(self, side: str) -> np.ndarray:
        """Bool mask of one lung ("left", "right") or of both ("bilateral")."""
        if side == "bilateral":
            return (self.labels == RIGHT_LUNG) | (self.labels == LEFT_LUNG)
        return self.labels == SIDE_LABELS[side]

    def room(self, side: str) -> np.ndarray:
        """The lung and the partial-volume voxels at its border: what a finding of this side may change."""
        if side not in self._rooms:
            lung = self.lung(side)
            rim = _widen(_widen(lung, 1, 2), 2, 2) & (self.hu < -150)
            self._rooms[side] = (lung | rim) & (self.labels != SIDE_LABELS.get(_OTHER.get(side, ""), 255))
        return self._rooms[side]

    @cached_property
    def noise_hu(self) -> np.ndarray:
        """One draw of noise like the scan's own, float32, zero mean."""
        white = self.rng.standard_normal(self.hu.shape, dtype=np.float32)
        sigma = self.noise.blur_px
        smooth = ndimage.gaussian_filter(white, (0.3, sigma, sigma), truncate=2.5)
        return smooth * np.float32(self.noise.std_hu / max(float(smooth.std()), 1e-6))

    def slices_in_zone(self, zone: str | None) -> np.ndarray:
        """Indices of the slices in a zone (all, if None or if the zone is not in the scene)."""
        if zone is None:
            return np.arange(len(self.heights))
        chosen = np.array([i for i, h in enumerate(self.heights) if zone_of_height(float(h)) == zone], int)
        return chosen if len(chosen) else np.arange(len(self.heights))

    def field(
        self, scale_mm: float, scale_z_mm: float | None = None, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Smooth random field of unit variance, float32, bumps of about `scale_mm`; `shape` of a part, if given."""
        size = shape or self.hu.shape
        scales = (scale_z_mm or scale_mm, scale_mm, scale_mm)
        knots = [s * n / scale * 3 + 7 for n, s, scale in zip(size, self.spacing_mm, scales, strict=True)]
        coarse = self.rng.standard_normal([int(k) for k in knots], dtype=np.float32)
        coarse = ndimage.gaussian_filter(coarse, 1.5, mode="wrap")
        coarse *= np.float32(_FIELD_GAIN)
        for axis, count in enumerate(size):
            step = self.spacing_mm[axis] / scales[axis] * 3
            coarse = _lerp(coarse, 2 + self.rng.random() + np.arange(count) * step, axis)
        return coarse

    def millimetres(self, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets in mm from a voxel position, along slices, rows and columns, ready to broadcast."""
        z, y, x = (
            (np.arange(n, dtype=np.float32) - np.float32(c)) * np.float32(s)
            for n, c, s in zip(self.hu.shape, centre, self.spacing_mm, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def fill(self, amount: np.ndarray, target_hu: float, where: tuple | None = None, *, replace: bool = False) -> None:
        """Blend towards a tissue: `hu += amount * (target + noise - hu)`.

        Args:
            amount: share of each voxel that is replaced, [0, 1], of the shape of `hu[where]`.
            target_hu: HU of the tissue that comes in.
            where: index of the part to change, or None for all.
            replace: also where the present HU is above the target (else denser structures stay).
        """
        index = where if where is not None else (slice(None),) * 3
        present = self.hu[index]
        change = amount * (np.float32(target_hu) + self.noise_hu[index] - present)
        if not replace:
            change = np.where(present < target_hu, change, 0)
        self.hu[index] = present + change


_FIELD_GAIN = (2 * np.sqrt(np.pi) * 1.5) ** 1.5
"""Brings white noise blurred with sigma 1.5 in 3D back to unit variance."""
_OTHER = {"left": "right", "right": "left"}


def soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """Smooth 0-to-1 step of `value` through 0: linear ramp of +-`width`, rounded."""
    ramp = np.clip(value / np.float32(2 * width) + np.float32(0.5), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def measure_noise(volume_hu: np.ndarray, soft_tissue: np.ndarray) -> NoiseModel:
    """Estimate the noise of a scan from the fine residue in soft tissue.

    Args:
        volume_hu: float `slices height width`.
        soft_tissue: bool mask of the same shape; voxels outside -50 to 120 HU are ignored.
    """
    picks = np.linspace(0, len(volume_hu) - 1, min(12, len(volume_hu))).astype(int)
    volume = volume_hu[picks].astype(np.float32)
    smooth = np.asarray(ndimage.gaussian_filter(volume, (0, 3, 3)))
    flat = soft_tissue[picks] & (smooth > -20) & (smooth < 100)
    flat = np.asarray(ndimage.binary_erosion(flat, np.ones((1, 9, 9), bool)), bool)
    residue = volume - smooth
    if flat.sum() < 500:
        return NoiseModel()
    std = 1.4826 * float(np.median(np.abs(residue[flat])))
    pair = flat[:, :, 1:] & flat[:, :, :-1]
    left, right = np.clip(residue[:, :, 1:][pair], -60, 60), np.clip(residue[:, :, :-1][pair], -60, 60)
    correlation = float(np.clip(np.corrcoef(left, right)[0, 1], 0.05, 0.95))
    return NoiseModel(float(np.clip(std, 2, 60)), float(np.clip(np.sqrt(-1 / (4 * np.log(correlation))), 0.3, 2.0)))


def _widen(mask: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """A bool mask and all within `reach` voxels of it along one axis."""
    wide = mask.copy()
    source, target = (np.moveaxis(part, axis, 0) for part in (mask, wide))
    for step in range(1, reach + 1):
        target[step:] |= source[:-step]
        target[:-step] |= source[step:]
    return wide


def _lerp(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, clamped at the ends."""
    low = np.clip(np.floor(positions).astype(int), 0, array.shape[axis] - 1)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
    weight = (positions - low).astype(np.float32).reshape(shape)
    below, above = array.take(low, axis), array.take(high, axis)
    below *= 1 - weight
    above *= weight
    below += above
    return below
