"""Order slices in space: sort along the normal, find duplicates, gaps and tilt, decide what is safe. Pure numpy.

Everything here is in the world of the caller (DICOM: LPS mm). The position of a slice is the centre of its first
voxel (ImagePositionPatient); the normal is row direction x column direction (PS3.3 section C.7.6.2.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radglint.errors import GeometryError

SAME_PLACE_MM = 0.01  # two slices nearer than this along the normal are at one place
GAP_TOLERANCE_MM, GAP_TOLERANCE = 0.05, 0.01  # a gap this near to the median (mm, or share of it) is even
DRIFT_TOLERANCE = 0.1  # a slice may lie this share of a step away from its place on the even grid
MAX_GAP_RATIO, MAX_GAP_MM = 2.05, 10.0  # a gap larger than this (times the median, mm) is never bridged
MAX_MISSING = 0.05  # at most this share of slices (and always one) may be missing
STRAIGHT_MM = 0.05  # in-plane drift over the whole stack below this is rounding, not tilt
IN_PLANE_TOLERANCE_MM = 0.5  # a slice further than this off the straight line through the stack is misplaced
MAX_TILT_DEG = 45.0
COSINE_TOLERANCE = 1e-2  # lengths and right angle of the direction cosines
MAX_LISTED = 12


@dataclass(frozen=True, eq=False)
class StackPlan:
    """How to build an even stack from slices that are sorted along the normal.

    Attributes:
        depths_mm: where each slice lies along the normal, increasing, length n.
        origin_mm: position of the first slice of the result, 3.
        step_mm: vector from one slice of the result to the next, 3; not parallel to the normal if tilted.
        grid: for each slice of the result its place among the n slices (fractional: between two); None if the slices
            are the result as they are.
        tilt_deg: angle between the step and the normal.
        steps: what was found and done, in words.
        warnings: what the user should know.
    """

    depths_mm: np.ndarray
    origin_mm: np.ndarray
    step_mm: np.ndarray
    grid: np.ndarray | None
    tilt_deg: float
    steps: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def num_slices(self) -> int:
        """Slices of the result."""
        return len(self.depths_mm) if self.grid is None else len(self.grid)


def slice_axes(orientation: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row (column index grows), along a column (row index grows), and their normal.

    Args:
        orientation: the 6 numbers of ImageOrientationPatient.
        name: the file, for messages.

    Raises:
        GeometryError: not of unit length, or not at a right angle (tolerance 1e-2).
    """
    row, column = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE or abs(row @ column) > COSINE_TOLERANCE:
        raise GeometryError(
            f"{name}: ImageOrientationPatient (0020,0037) must hold two unit vectors at a right angle, "
            f"got {np.asarray(orientation).tolist()}; re-export the series"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return row, column, np.cross(row, column)


def same_place_groups(depths_mm: np.ndarray) -> list[np.ndarray]:
    """Indices of slices in order along the normal, those at one place together.

    Args:
        depths_mm: place of each slice along the normal.

    Returns:
        One array of indices for each distinct place, in increasing order.
    """
    order = np.argsort(depths_mm, kind="stable")
    cuts = np.flatnonzero(np.diff(np.asarray(depths_mm)[order]) > SAME_PLACE_MM) + 1
    return np.split(order, cuts)


def plan_stack(positions_mm: np.ndarray, normal: np.ndarray, labels: list[str], name: str) -> StackPlan:
    """Fit a line through the slice positions and decide whether the stack is even, can be resampled, or is refused.

    Args:
        positions_mm: n x 3, sorted along the normal, no two at one place.
        normal: unit vector.
        labels: a short name of each slice for messages, e.g. its file name.
        name: the series, for messages.

    Returns:
        The plan.

    Raises:
        GeometryError: fewer than two slices, slices shifted sideways, tilt over 45 degrees, or gaps that are too large
            or too many to bridge; the message lists the slices.
    """
    positions = np.asarray(positions_mm, dtype=np.float64)
    if len(positions) < 2:
        raise GeometryError(
            f"{name}: {len(positions)} slice, expected a CT series of at least 2; give the whole series"
        )
    depths = positions @ normal
    line, tilt = _stacking_line(positions, depths, normal, labels, name)
    gaps = np.diff(depths)
    median = float(np.median(gaps))
    even_step = (depths[-1] - depths[0]) / (len(depths) - 1)
    drift = np.abs(depths - depths[0] - even_step * np.arange(len(depths))).max()
    uneven = np.abs(gaps - median) > max(GAP_TOLERANCE_MM, GAP_TOLERANCE * median)
    steps = (f"gantry tilt: {tilt:.2f} degrees, kept as a sheared affine",) if tilt else ()
    warnings: tuple[str, ...] = ()
    grid = None
    if uneven.any() or drift > DRIFT_TOLERANCE * median:
        _refuse_unsafe_gaps(gaps, median, uneven, depths, labels, name)
        grid = _even_grid(depths, median)
        even_step = (depths[-1] - depths[0]) / (len(grid) - 1)
        where = _list_gaps(np.flatnonzero(uneven), gaps, labels)
        what = f"uneven slice gaps (median {median:.3f} mm): {where or 'slow drift'}"
        steps += (f"resampled linearly from {len(depths)} to {len(grid)} even slices of {even_step:.4g} mm",)
        warnings = (f"{what}; values there are interpolated",)
    return StackPlan(depths, positions[0], even_step * line, grid, tilt, steps, warnings)


def _stacking_line(
    positions: np.ndarray, depths: np.ndarray, normal: np.ndarray, labels: list[str], name: str
) -> tuple[np.ndarray, float]:
    """Movement of the slice origin per mm along the normal, and its angle to the normal (0 if it is rounding)."""
    half = len(depths) // 2
    moves = (positions[half:] - positions[:-half]) / (depths[half:] - depths[:-half])[:, None]
    sideways = np.median(moves, axis=0)  # not the mean: one misplaced slice must not tilt the line
    sideways = sideways - (sideways @ normal) * normal
    if _off_line(positions, depths, normal + sideways).max() < IN_PLANE_TOLERANCE_MM:
        centred = depths - depths.mean()
        sideways = (centred @ (positions - positions.mean(axis=0))) / (centred @ centred)
        sideways = sideways - (sideways @ normal) * normal
    if np.linalg.norm(sideways) * np.ptp(depths) < STRAIGHT_MM:
        sideways = np.zeros(3)
    off = _off_line(positions, depths, normal + sideways)
    if off.max() > IN_PLANE_TOLERANCE_MM:
        bad = [f"{labels[i]} ({off[i]:.2f} mm)" for i in np.flatnonzero(off > IN_PLANE_TOLERANCE_MM)]
        raise GeometryError(
            f"{name}: slices are shifted sideways against the others: {_shorten(bad)}; "
            "expected one straight stack, re-export the series or remove them"
        )
    tilt = float(np.degrees(np.arctan(np.linalg.norm(sideways))))
    if tilt > MAX_TILT_DEG:
        raise GeometryError(
            f"{name}: the slices are stacked {tilt:.1f} degrees off their normal, more than {MAX_TILT_DEG:.0f}; "
            "the positions are wrong, re-export the series"
        )
    return normal + sideways, tilt


def _off_line(positions: np.ndarray, depths: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Distance of each position from a line of this direction that passes near most of them."""
    residual = positions - np.outer(depths, line)
    return np.linalg.norm(residual - np.median(residual, axis=0), axis=1)


def _refuse_unsafe_gaps(
    gaps: np.ndarray, median: float, uneven: np.ndarray, depths: np.ndarray, labels: list[str], name: str
) -> None:
    """Raise if a gap is too large or too many slices are missing."""
    missing = int(np.maximum(np.rint(gaps / median) - 1, 0).sum())
    too_large = (gaps > MAX_GAP_RATIO * median) | (uneven & (gaps > MAX_GAP_MM))
    if not too_large.any() and missing <= max(1, MAX_MISSING * (len(gaps) + 1)):
        return
    listed = _list_gaps(np.flatnonzero(too_large if too_large.any() else gaps > 1.5 * median), gaps, labels, depths)
    raise GeometryError(
        f"{name}: slices are missing or uneven and cannot be resampled safely (median gap {median:.3f} mm, "
        f"{missing} missing): {listed}; give the complete series"
    )


def _even_grid(depths: np.ndarray, median: float) -> np.ndarray:
    """Fractional slice index of each place of an even grid over the same extent."""
    count = round((depths[-1] - depths[0]) / median) + 1
    return np.interp(np.linspace(depths[0], depths[-1], max(count, 2)), depths, np.arange(len(depths)))


def _list_gaps(where: np.ndarray, gaps: np.ndarray, labels: list[str], depths: np.ndarray | None = None) -> str:
    """Words like "a to b 6.00 mm" for each gap, with its position if asked for."""
    parts = [
        f"{labels[i]} to {labels[i + 1]} {gaps[i]:.2f} mm"
        + (f" (at {depths[i]:.2f} to {depths[i + 1]:.2f})" if depths is not None else "")
        for i in where
    ]
    return _shorten(parts)


def _shorten(parts: list[str]) -> str:
    more = f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return ", ".join(parts[:MAX_LISTED]) + more
