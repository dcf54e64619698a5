"""Affines: all 48 axis orientations, oblique and sheared ones, and every way to be wrong."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from radglint.errors import GeometryError
from radglint.geometry import (
    apply_affine,
    as_affine,
    closest_world_axes,
    lps_to_ras,
    obliqueness_deg,
    orientation_code,
    shear_deg,
    spacing_from_affine,
    voxel_volume_ml,
)

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def axis_affine(order, signs, spacing=(0.7, 0.8, 2.5), origin=(-10.0, 20.0, 30.0)) -> np.ndarray:
    """Array axis a runs along world axis order[a], in direction signs[a]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[world, axis] = sign * step
    affine[:3, 3] = origin
    return affine


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [k for k in range(3) if k != axis]
    matrix = np.eye(4)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def test_there_are_48_orientations():
    assert len({orientation_code(axis_affine(*o)) for o in ORIENTATIONS}) == 48


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_code_and_spacing_of_every_orientation(order, signs):
    affine = axis_affine(order, signs)
    expected = "".join(("RAS", "LPI")[sign < 0][world] for world, sign in zip(order, signs, strict=True))
    assert orientation_code(affine) == expected == "".join(aff2axcodes(affine))
    assert spacing_from_affine(affine) == pytest.approx((0.7, 0.8, 2.5))
    assert closest_world_axes(affine) == order


@given(st.sampled_from(ORIENTATIONS), st.floats(-40, 40), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_turn_below_45_degrees_keeps_the_code(orientation, degrees, axis):
    straight = axis_affine(*orientation)
    turned = turn(degrees, axis) @ straight
    assert orientation_code(turned) == orientation_code(straight)
    assert obliqueness_deg(turned) == pytest.approx(abs(degrees), abs=1e-4)
    assert shear_deg(turned) == pytest.approx(0, abs=1e-4)
    assert voxel_volume_ml(turned) == pytest.approx(0.7 * 0.8 * 2.5 / 1000)


def test_two_axes_near_the_same_world_axis_get_different_letters():
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (0.8, 0.6, 0), (0.75, -0.66, 0)
    assert orientation_code(affine) == "RPS"
    assert sorted(closest_world_axes(affine)) == [0, 1, 2]


def test_golden_point():
    affine = np.array([[0, 0, -0.5, 100], [0, -0.5, 0, 120], [2.5, 0, 0, -300], [0, 0, 0, 1.0]])
    assert orientation_code(affine) == "SPL"
    np.testing.assert_allclose(apply_affine(affine, np.array([2, 10, 20])), [90, 115, -295])
    np.testing.assert_allclose(apply_affine(affine, np.zeros((5, 4, 3))), np.broadcast_to([100, 120, -300], (5, 4, 3)))


def test_apply_affine_in_2d_and_its_inverse():
    affine = np.array([[2, 0, 1], [0, 3, -1], [0, 0, 1.0]])
    np.testing.assert_allclose(apply_affine(affine, [[1, 1]]), [[3, 2]])
    np.testing.assert_allclose(apply_affine(np.linalg.inv(affine), [[3, 2]]), [[1, 1]])


@pytest.mark.parametrize("points", [np.zeros(4), np.zeros((3, 2)), np.float64(1)])
def test_points_of_the_wrong_size_are_refused(points):
    with pytest.raises(GeometryError, match="3 coordinates"):
        apply_affine(np.eye(4), points)


def test_lps_to_ras_flips_x_and_y_and_is_its_own_inverse():
    affine = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(lps_to_ras(affine)[:2], -affine[:2])
    np.testing.assert_array_equal(lps_to_ras(affine)[2:], affine[2:])
    np.testing.assert_array_equal(lps_to_ras(lps_to_ras(affine)), affine)


def test_shear_is_the_gap_to_a_right_angle():
    affine = np.eye(4)
    affine[0, 2] = np.tan(np.radians(5))
    assert shear_deg(affine) == pytest.approx(5)
    assert voxel_volume_ml(affine) == pytest.approx(0.001)


def edited(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), "4x4"),
        (edited(0, 0, np.nan), "NaN"),
        (edited(1, 3, np.inf), "NaN or infinite"),
        (edited(3, 0, 1), "last row"),
        (edited(1, 1, 0), "axis 1 has no length"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "same way"),
    ],
)
def test_unusable_affines_are_refused(affine, words):
    with pytest.raises(GeometryError, match=words) as caught:
        as_affine(affine, "scan.nii")
    assert str(caught.value).startswith("scan.nii: ")


def test_as_affine_gives_a_copy():
    affine = np.eye(4)
    as_affine(affine)[0, 0] = 7
    assert affine[0, 0] == 1
