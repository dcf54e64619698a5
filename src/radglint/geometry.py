"""Affines: from an array index to world millimetres in RAS+, and what can be read off them.

An affine is a 4x4 matrix that maps a homogeneous array index (voxel centres at integers, zero-based) to world
millimetres in RAS+: +x to the patient's right, +y to the front, +z to the head. Its first three columns belong to the
array axes in their order, whatever that order is.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from radglint.errors import GeometryError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Flips x and y: DICOM and ITK point to the left and to the back, NIfTI to the right and to the front."""

SPACING_LIMITS_MM = (0.01, 200.0)
"""Of a CT's voxels; far outside what a scanner makes, so that only nonsense is refused."""
MAX_ORIGIN_MM = 1e5

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_MIN_VOLUME = 1e-3


def check_plausible(spacing_mm: np.ndarray, origin_mm: np.ndarray, name: str) -> None:
    """Refuse voxels that no scanner makes, before anything is resampled to or from them.

    Args:
        spacing_mm: of some or all axes.
        origin_mm: where the first voxel, or a slice, lies.
        name: what to call it in the message, for example the file.

    Raises:
        GeometryError: a spacing outside `SPACING_LIMITS_MM`, or an origin further away than `MAX_ORIGIN_MM`.
    """
    low, high = SPACING_LIMITS_MM
    if np.min(spacing_mm) < low or np.max(spacing_mm) > high or np.abs(origin_mm).max() > MAX_ORIGIN_MM:
        words = " x ".join(f"{s:.4g}" for s in spacing_mm)
        place = ", ".join(f"{x:.4g}" for x in origin_mm)
        raise GeometryError(
            f"{name}: voxels of {words} mm at ({place}) mm cannot be a chest; expected {low:g} to {high:g} mm and a "
            f"place within {MAX_ORIGIN_MM:g} mm; check the units"
        )


def as_affine(affine: np.ndarray, name: str = "affine") -> np.ndarray:
    """Return the affine as 4x4 float64 after checking that it can be inverted.

    Args:
        affine: 4x4 matrix from array index to mm.
        name: what to call it in the message, for example the file.

    Returns:
        A float64 copy.

    Raises:
        GeometryError: wrong shape, NaN or infinite, wrong last row, an axis of no length, or two axes that coincide.
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise GeometryError(f"{name}: expected a 4x4 affine, got shape {matrix.shape}; re-export the image")
    if not np.isfinite(matrix).all():
        raise GeometryError(f"{name}: the affine holds NaN or infinite values; re-export the image with its geometry")
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise GeometryError(f"{name}: the last row of the affine must be 0 0 0 1, got {matrix[3].tolist()}")
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    if (scale <= 0).any():
        raise GeometryError(f"{name}: the affine is singular, axis {int(scale.argmin())} has no length; re-export it")
    if abs(np.linalg.det(matrix[:3, :3] / scale)) < _MIN_VOLUME:
        raise GeometryError(f"{name}: the affine is singular, two axes point the same way; re-export the image")
    return matrix


def closest_world_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """Pair each array axis with a different world axis (0 right, 1 front, 2 head) so that they agree best.

    Args:
        affine: 4x4 from array index to RAS+ mm.

    Returns:
        The world axis of array axis 0, 1 and 2.
    """
    matrix = as_affine(affine)[:3, :3]
    cosines = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    best = max(permutations(range(3)), key=lambda world: sum(cosines[w, a] for a, w in enumerate(world)))
    return best[0], best[1], best[2]


def orientation_code(affine: np.ndarray) -> str:
    """Say where each array axis points, as three letters of R L A P S I.

    Args:
        affine: 4x4 from array index to RAS+ mm.

    Returns:
        One letter an axis: the side of the patient toward which its index grows. "SPL" is up, back, left.

    Raises:
        GeometryError: the affine is not a finite invertible 4x4 matrix.
    """
    matrix = as_affine(affine)
    world = closest_world_axes(matrix)
    return "".join(_LETTERS[w][int(matrix[w, axis] > 0)] for axis, w in enumerate(world))


def spacing_from_affine(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance in mm between neighbouring voxel centres along each array axis.

    Args:
        affine: 4x4 from array index to mm.

    Returns:
        The length of each of the first three columns.
    """
    lengths = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def voxel_volume_ml(affine: np.ndarray) -> float:
    """Volume of one voxel in millilitres; right for sheared axes too.

    Args:
        affine: 4x4 from array index to mm.
    """
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000.0


def shear_deg(affine: np.ndarray) -> float:
    """Largest departure, in degrees, of any two array axes from a right angle; 0 for an orthogonal grid.

    Args:
        affine: 4x4 from array index to mm.
    """
    matrix = as_affine(affine)[:3, :3]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    cosines = np.abs((unit.T @ unit)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def obliqueness_deg(affine: np.ndarray) -> float:
    """Largest angle, in degrees, between an array axis and the world axis it is nearest to.

    Args:
        affine: 4x4 from array index to RAS+ mm.
    """
    matrix = as_affine(affine)[:3, :3]
    unit = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    cosines = [unit[w, axis] for axis, w in enumerate(closest_world_axes(affine))]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0.0, 1.0))))


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points through a homogeneous matrix.

    Args:
        affine: (n+1, n+1) homogeneous matrix, n = 2 or 3.
        points: `... n` coordinates, for example array indices.

    Returns:
        float64 `... n`, for example RAS+ mm.

    Raises:
        GeometryError: the last axis of `points` does not fit the matrix.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    coordinates = np.asarray(points, dtype=np.float64)
    n = matrix.shape[0] - 1
    if coordinates.ndim == 0 or coordinates.shape[-1] != n:
        raise GeometryError(f"points need {n} coordinates on their last axis, got shape {coordinates.shape}")
    return coordinates @ matrix[:n, :n].T + matrix[:n, n]


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Change the world of an affine from LPS (DICOM, ITK) to RAS+ (NIfTI), or back: it is its own inverse.

    Args:
        affine: 4x4 from array index to mm.

    Returns:
        float64 4x4 with the x and y rows negated.
    """
    return LPS_TO_RAS @ np.asarray(affine, dtype=np.float64)


def grid_gap_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines place the corners of one volume apart, at most, in mm.

    Args:
        first: 4x4 from index to mm, in the axis order of `shape`.
        second: likewise.
        shape: number of voxels an axis.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    points = np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm(((np.asarray(first) - np.asarray(second)) @ points)[:3], axis=0).max())
