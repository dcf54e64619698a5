"""Coarse chest anatomy of a CT by thresholds: lungs by side, large airways, body, heart, and lung height.

Good enough to know where a simulated finding may be put and what to call the place; not a segmentation product.
Volumes are on the canonical axial grid: slices feet to head, rows front to back, columns patient right to left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from radglint.errors import ImageError

OUTSIDE, BODY, RIGHT_LUNG, LEFT_LUNG, AIRWAY, HEART, BONE = range(7)
"""Labels of `ChestAnatomy.labels`."""

SIDE_LABELS = {"right": RIGHT_LUNG, "left": LEFT_LUNG}
"""Lung label of each side."""

_AIR_HU = -420.0
_AIRWAY_HU = -850.0
_BONE_HU = 180
_FULL_LUNG_HEIGHT_MM = 235.0


@dataclass(frozen=True, eq=False)
class ChestAnatomy:
    """Labels and lung extent of one chest CT.

    Attributes:
        labels: uint8 `slices height width`; one of OUTSIDE, BODY, RIGHT_LUNG, LEFT_LUNG, AIRWAY, HEART, BONE. The lungs
            include their vessels and small airways.
        spacing_mm: slice step, row step, column step.
        lung_bottom: slice coordinate of the lower end of the lungs; below 0 if the scan cuts the bases off.
        lung_top: slice coordinate of the upper end; beyond the last slice if the scan cuts the apices off.
    """

    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    lung_bottom: float
    lung_top: float

    def height_fraction(self, slice_index: float) -> float:
        """Height of a slice within the lungs: 0 at their lower end, 1 at the apex, may lie outside [0, 1]."""
        return (slice_index - self.lung_bottom) / (self.lung_top - self.lung_bottom)

    def zone(self, slice_index: float) -> str:
        """Zone of a slice by thirds of the lung height: "lower", "mid" or "upper"."""
        return zone_of_height(self.height_fraction(slice_index))

    def lung(self, side: str) -> np.ndarray:
        """Bool mask of one lung, `side` "left" or "right"."""
        return self.labels == SIDE_LABELS[side]


def zone_of_height(fraction: float) -> str:
    """Zone name of a height fraction (0 = base, 1 = apex): "lower", "mid" or "upper", by thirds."""
    return "lower" if fraction < 1 / 3 else "mid" if fraction < 2 / 3 else "upper"


def find_anatomy(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> ChestAnatomy:
    """Find lungs, airways, heart and body in a chest CT.

    Args:
        volume_hu: float `slices height width`, HU, feet to head, front to back, patient right to left.
        spacing_mm: step along each axis.

    Raises:
        ImageError: no lungs of at least 150 ml were found.
    """
    smooth, coarse_mm, stride = _coarse(volume_hu, spacing_mm)
    labels, extent = _coarse_labels(smooth, coarse_mm)
    return ChestAnatomy(_refine(labels, stride, volume_hu.shape[1:]), spacing_mm, *extent)


def anatomy_of_regions(
    volume_hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    right: np.ndarray,
    left: np.ndarray,
    heart: np.ndarray | None,
) -> ChestAnatomy:
    """Anatomy of a chest CT whose lungs, and perhaps heart, are known; only the rest is found here.

    Args:
        volume_hu: float `slices height width`, HU, feet to head, front to back, patient right to left.
        spacing_mm: step along each axis.
        right: bool of the same shape, at least one voxel.
        left: likewise.
        heart: likewise; found between the lungs if None.

    Raises:
        ImageError: nothing is denser than -350 HU.
    """
    smooth, coarse_mm, stride = _coarse(volume_hu, spacing_mm)
    body = body_mask(smooth, coarse_mm)
    labels = np.where(body, BODY, OUTSIDE).astype(np.uint8)
    airway = _track_airways(smooth, (smooth < _AIR_HU) & body, body, coarse_mm)
    labels[airway] = AIRWAY
    extent = _lung_extent(right | left, spacing_mm[0])
    if heart is None:
        lungs = labels.copy()
        lungs[right[:, ::stride, ::stride]], lungs[left[:, ::stride, ::stride]] = RIGHT_LUNG, LEFT_LUNG
        labels[_heart_mask(smooth, lungs, extent, coarse_mm)] = HEART
    labels[(labels == BODY) & (smooth > _BONE_HU)] = BONE
    fine = _refine(labels, stride, volume_hu.shape[1:])
    for region, label in ((heart, HEART), (right, RIGHT_LUNG), (left, LEFT_LUNG)):
        if region is not None:
            fine[region] = label
    return ChestAnatomy(fine, spacing_mm, *extent)


def _coarse(
    volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[float, float, float], int]:
    """A volume smoothed and thinned to pixels of about 2 mm, its spacing, and every how many pixels were kept."""
    stride = 2 if max(spacing_mm[1:]) < 1.3 else 1
    smooth = ndimage.gaussian_filter(volume_hu.astype(np.float32), (0.3, 0.7 * stride, 0.7 * stride))
    return smooth[:, ::stride, ::stride], (spacing_mm[0], spacing_mm[1] * stride, spacing_mm[2] * stride), stride


def _coarse_labels(
    smooth: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Label a volume of about 2 mm pixels; also the lung extent."""
    body = body_mask(smooth, spacing_mm)
    air = (smooth < _AIR_HU) & body
    airway = _track_airways(smooth, air, body, spacing_mm)
    right, left = _split_lungs(air & ~airway, spacing_mm)
    right, left = _close_lung(right, spacing_mm), _close_lung(left, spacing_mm)
    labels = np.where(body, BODY, OUTSIDE).astype(np.uint8)
    labels[right & body] = RIGHT_LUNG
    labels[left & body & ~right] = LEFT_LUNG
    labels[airway] = AIRWAY
    extent = _lung_extent((labels == RIGHT_LUNG) | (labels == LEFT_LUNG), spacing_mm[0])
    bone = (labels == BODY) & (smooth > _BONE_HU)
    labels[_heart_mask(smooth, labels, extent, spacing_mm)] = HEART
    labels[bone & (labels == BODY)] = BONE
    return labels, extent


def _refine(labels: np.ndarray, stride: int, shape_px: tuple[int, ...]) -> np.ndarray:
    """Bring labels of every `stride`-th pixel to the full pixel grid with smooth borders."""
    if stride == 1:
        return labels
    rows = np.minimum(np.arange(shape_px[0]) / stride, labels.shape[1] - 1)
    columns = np.minimum(np.arange(shape_px[1]) / stride, labels.shape[2] - 1)
    fine = np.zeros((labels.shape[0], *shape_px), np.uint8)
    best = np.full(fine.shape, -1.0, np.float32)
    for label in range(OUTSIDE, BONE + 1):
        share = _lerp(_lerp((labels == label).astype(np.float32), rows, 1), columns, 2)
        wins = share > best
        fine[wins], best[wins] = label, share[wins]
    return fine


def _lerp(array: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis."""
    low = np.floor(positions).astype(int)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    weight = (positions - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    return array.take(low, axis) * (1 - weight) + array.take(high, axis) * weight


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components and their count, with the types spelled out."""
    components = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, output=components)
    return components, int(count)  # type: ignore[arg-type]


def _disk(radius_px: float) -> np.ndarray:
    reach = int(np.ceil(radius_px))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return rows**2 + columns**2 <= radius_px**2 + 0.5


def body_mask(smooth: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The patient without the table: largest object, filled slice by slice.

    Args:
        smooth: HU `slices height width`, feet to head, front to back, patient right to left.
        spacing_mm: step along each axis; about 2 mm in the plane is fast and fine enough.

    Raises:
        ImageError: nothing is denser than -350 HU.
    """
    solid = smooth > -350
    opened = np.stack([ndimage.binary_opening(s, _disk(5 / spacing_mm[1])) for s in solid])
    components, count = _label(opened)
    if count == 0:
        raise ImageError("the CT shows no body: expected HU values of a chest, air about -1000 and soft tissue about 0")
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = components == sizes.argmax()
    return np.stack([_fill_slice(s, 6 / spacing_mm[1]) for s in largest])


def _fill_slice(mask: np.ndarray, radius_px: float) -> np.ndarray:
    """Close and fill one slice; the border is padded so that arms cut by the field of view do no harm."""
    pad = int(radius_px) + 1
    closed = ndimage.binary_closing(np.pad(mask, pad), _disk(radius_px))
    return np.asarray(ndimage.binary_fill_holes(closed), bool)[pad:-pad, pad:-pad]


def _track_airways(
    smooth: np.ndarray, air: np.ndarray, body: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Follow small air lumina near the midline from the top slice down; stops where they open into lung."""
    middle = np.nonzero(body.any(axis=(0, 1)))[0].mean()
    centre_columns = np.abs(np.arange(body.shape[2]) - middle) * spacing_mm[2] < 55
    pixel_mm2 = spacing_mm[1] * spacing_mm[2]
    dark = (smooth < _AIRWAY_HU) & air & centre_columns
    tracked = np.zeros_like(air)
    previous: np.ndarray | None = None
    for index in range(air.shape[0] - 1, -1, -1):
        components, _ = _label(dark[index])
        area = np.bincount(components.ravel()) * pixel_mm2
        keep = _continuing(components, area, previous, float(middle), spacing_mm)
        lumen = np.isin(components, keep)
        previous = lumen if keep else previous
        tracked[index] = ndimage.binary_dilation(lumen, _disk(2.5 / spacing_mm[1])) & body[index]
    return tracked


def _continuing(
    components: np.ndarray,
    area_mm2: np.ndarray,
    previous: np.ndarray | None,
    middle: float,
    spacing_mm: tuple[float, float, float],
) -> list[int]:
    """Components of one slice that carry an airway on; without a previous slice, the trachea-like ones."""
    usable = [i for i in range(1, len(area_mm2)) if 12 < area_mm2[i] < 750]
    if previous is not None and previous.any():
        reach = ndimage.binary_dilation(previous, _disk(3 / spacing_mm[1]))
        return [i for i in usable if (reach & (components == i)).any()]
    found = []
    for i in usable:
        rows, columns = np.nonzero(components == i)
        compact = area_mm2[i] / (np.ptp(rows) + 1) / (np.ptp(columns) + 1) / spacing_mm[1] / spacing_mm[2] > 0.5
        if compact and area_mm2[i] > 90 and abs(columns.mean() - middle) * spacing_mm[2] < 22:
            found.append(i)
    return found


def _split_lungs(air: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Separate right and left by eroding until the two largest parts stand apart, then nearest part."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for radius_mm in (0.0, 1.5, 3.0, 4.5, 6.0, 9.0):
        core = _erode(air, radius_mm, spacing_mm)
        components, count = _label(core)
        sizes = np.bincount(components.ravel(), minlength=count + 1) * voxel_ml
        sizes[0] = 0
        big = np.argsort(sizes)[::-1][:2]
        if len(big) == 2 and sizes[big[1]] > max(100.0, 0.15 * sizes[big[0]]):
            columns = [np.nonzero(components == b)[2].mean() for b in big]
            order = np.argsort(columns)
            if abs(columns[0] - columns[1]) * spacing_mm[2] > 60:
                return _nearest_of(air, components == big[order[0]], components == big[order[1]], spacing_mm)
    if air.sum() * voxel_ml < 150:
        raise ImageError("the CT shows no lungs (less than 150 ml of air inside the body): expected a chest CT in HU")
    middle = np.nonzero(air)[2].mean()
    on_right = np.arange(air.shape[2]) < middle
    return air & on_right, air & ~on_right


def _erode(mask: np.ndarray, radius_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    if radius_mm == 0:
        return mask
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm)) > radius_mm


def _nearest_of(
    air: np.ndarray, right: np.ndarray, left: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    to_right = np.asarray(ndimage.distance_transform_edt(~right, sampling=spacing_mm))
    to_left = np.asarray(ndimage.distance_transform_edt(~left, sampling=spacing_mm))
    near = np.minimum(to_right, to_left) < 14
    return air & near & (to_right <= to_left), air & near & (to_left < to_right)


def _close_lung(lung: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Take vessels and small airways into the lung, slice by slice; drop specks."""
    components, _ = _label(lung)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept = lung & np.isin(components, np.nonzero(sizes > 0.02 * max(sizes.sum(), 1))[0])
    return np.stack([_fill_slice(s, 5 / spacing_mm[1]) if s.any() else s for s in kept])


def _lung_extent(lungs: np.ndarray, step_mm: float) -> tuple[float, float]:
    """Lower and upper end in slice coordinates; a cut end is put where a lung of usual height would end."""
    area = lungs.sum(axis=(1, 2)).astype(np.float64)
    present = np.nonzero(area > 0.02 * area.max())[0]
    bottom, top = float(present[0]), float(present[-1]) + 1.0
    full = _FULL_LUNG_HEIGHT_MM / step_mm
    if present[0] <= 1 and area[present[0]] > 0.35 * area.max():
        bottom = min(bottom, top - full)
    if present[-1] >= len(area) - 2 and area[present[-1]] > 0.35 * area.max():
        top = max(top, bottom + full)
    return bottom, top


def _heart_mask(
    smooth: np.ndarray, labels: np.ndarray, extent: tuple[float, float], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Largest thick soft tissue between the lungs, in front of the spine, in the lower 60 % of the lungs."""
    wanted = np.zeros(labels.shape, bool)
    for index in range(labels.shape[0]):
        if not 0.05 < (index - extent[0]) / (extent[1] - extent[0]) < 0.62:
            continue
        right, left = np.nonzero(labels[index] == RIGHT_LUNG), np.nonzero(labels[index] == LEFT_LUNG)
        if min(right[0].size, left[0].size) * spacing_mm[1] * spacing_mm[2] < 2000:
            continue
        front = min(right[0].min(), left[0].min())
        back = front + 0.62 * (max(right[0].max(), left[0].max()) - front)
        from_column, to_column = int(right[1].mean()), int(left[1].mean())
        rows = slice(int(front), int(back))
        part = (smooth[index, rows, from_column:to_column] > -30) & (labels[index, rows, from_column:to_column] == BODY)
        wanted[index, rows, from_column:to_column] = ndimage.binary_opening(part, _disk(13 / spacing_mm[1]))
    components, count = _label(wanted)
    if count == 0:
        return wanted
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == sizes.argmax()
