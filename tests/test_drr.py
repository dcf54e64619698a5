"""Reconstructed radiographs: the physics of a block, sides and heights, masks in the same geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radglint.errors import ConfigError, ImageError
from radglint.image import MedicalImage
from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG
from radglint.simulation.drr import DrrConfig, _project, project_lungs, project_mask, project_values, render_drr

AFFINE = np.array([[0, 0, -4.0, 120], [0, -4.0, 0, 80], [4.0, 0, 0, -100], [0, 0, 0, 1]])
SHAPE = (40, 40, 60)


def _ct(array: np.ndarray, affine: np.ndarray = AFFINE) -> MedicalImage:
    return MedicalImage(array.astype(np.float32), "CT", "HU", (4.0, 4.0, 4.0), affine, path="block")


def _block() -> np.ndarray:
    """Water 160 mm wide with two lungs of air, and a dense bead high in the patient's right lung."""
    array = np.full(SHAPE, -1000.0)
    array[:, 8:34, 6:54] = 0
    array[4:36, 12:30, 10:26] = -850
    array[4:36, 12:30, 34:50] = -850
    array[28:32, 18:24, 14:19] = 600
    return array


def _bead() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[28:32, 18:24, 14:19] = True
    return mask


def test_parallel_projection_is_the_sum_along_the_rays() -> None:
    volume = np.random.default_rng(0).random((20, 15, 30)).astype(np.float32)
    settings = DrrConfig(size_px=30, source_to_detector_mm=None, gap_mm=0)
    found = _project(volume, np.array([2.0, 3.0, 2.0]), settings)
    np.testing.assert_allclose(found, volume.sum(axis=1, dtype=np.float64)[::-1] * 3, rtol=1e-5)


def test_point_source_magnifies_what_is_far_from_the_detector() -> None:
    widths = []
    for row in (2, 37):
        volume = np.zeros(SHAPE, np.float32)
        volume[15:25, row, 20:40] = 1
        lit = _project(volume, np.array([4.0, 4.0, 4.0]), DrrConfig(size_px=480)) > 2
        widths.append(lit.any(axis=0).sum())
    near, far = (1800 / (1800 - 30 - (row + 0.5) * 4) for row in (2, 37))
    assert widths[1] / widths[0] == pytest.approx(far / near, rel=0.02)


def test_picture_shows_right_on_the_left_and_head_up() -> None:
    picture = render_drr(_ct(_block()), DrrConfig(size_px=240, local_contrast=0))
    bead = project_mask(_bead(), _ct(_block()), DrrConfig(size_px=240))
    rows, columns = np.nonzero(bead)
    assert picture.modality == "CXR"
    assert bead.shape == picture.shape
    assert rows.mean() < 0.35 * bead.shape[0]
    assert columns.mean() < 0.35 * bead.shape[1]
    mirrored = picture.array[:, ::-1]
    assert picture.array[bead].mean() > mirrored[bead].mean() + 0.05
    assert picture.array.min() >= 0
    assert picture.array.max() <= 1
    assert picture.spacing_mm is not None
    assert 0.8 < picture.spacing_mm[0] < 1.2
    assert any("1800 mm" in step for step in picture.steps)


def _box(*where: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[where] = True
    return mask


def _spot(mask: np.ndarray, **settings: Any) -> tuple[float, float, int]:
    """Row and column of a mask's shadow, as shares of the picture, and its area in pixels."""
    shadow = project_mask(mask, _ct(_block()), DrrConfig(size_px=480, **settings))
    row, column = np.argwhere(shadow).mean(axis=0) / shadow.shape
    return float(row), float(column), int(shadow.sum())


def test_what_lies_in_front_is_larger_in_ap_and_what_lies_behind_in_pa() -> None:
    front = _box(slice(15, 25), slice(9, 12), slice(20, 40))
    behind = _box(slice(15, 25), slice(30, 33), slice(20, 40))
    for mask, larger, smaller in ((front, "AP", "PA"), (behind, "PA", "AP")):
        growth = _spot(mask, view=larger)[2] / _spot(mask, view=smaller)[2]
        assert 1.04 < growth < 1.2


def test_both_frontal_views_show_right_on_the_left_and_head_up() -> None:
    for view in ("PA", "AP"):
        row, column, _ = _spot(_bead(), view=view)
        assert row < 0.35
        assert column < 0.35
        picture = render_drr(_ct(_block()), DrrConfig(size_px=240, local_contrast=0, view=view)).array
        bead = project_mask(_bead(), _ct(_block()), DrrConfig(size_px=240, view=view))
        assert picture[bead].mean() > picture[:, ::-1][bead].mean() + 0.05


def test_a_left_lateral_shows_the_front_on_the_left_and_head_up() -> None:
    high_in_front = _box(slice(30, 34), slice(9, 13), slice(28, 32))
    low_behind = _box(slice(6, 10), slice(29, 33), slice(28, 32))
    row, column, _ = _spot(high_in_front, view="LL")
    assert row < 0.3
    assert column < 0.35
    row, column, _ = _spot(low_behind, view="LL")
    assert row > 0.7
    assert column > 0.65
    picture = render_drr(_ct(_block()), DrrConfig(size_px=240, view="LL"))
    assert picture.shape == (240, 240)
    assert any("from right to left" in step for step in picture.steps)


def test_a_left_lateral_magnifies_the_right_side_more() -> None:
    areas = [_spot(_box(slice(15, 25), slice(15, 25), side), view="LL")[2] for side in (slice(8, 11), slice(49, 52))]
    assert areas[0] > 1.1 * areas[1]


def test_a_lateral_sums_along_its_own_rays() -> None:
    block = _box(slice(10, 30), slice(10, 20), slice(20, 50)).astype(np.float32)
    settings = DrrConfig(size_px=40, source_to_detector_mm=None, gap_mm=0, view="LL")
    np.testing.assert_allclose(project_values(block, _ct(_block()), settings), block.sum(axis=2)[::-1] * 4, atol=1e-3)


def test_planes_may_be_summed_before_they_are_projected() -> None:
    """77 planes of 2 mm, which no group divides, against the sum of each; the picture is the same but for its edges."""
    ct = MedicalImage(_block().repeat(2, 1)[:, :77].astype(np.float32), "CT", "HU", (4.0, 2.0, 4.0),
                      AFFINE @ np.diag([1, 0.5, 1, 1]), path="fine")  # fmt: skip
    for view in ("PA", "AP", "LL"):
        fine, thick = (DrrConfig(size_px=120, view=view, depth_step_mm=step) for step in (0.0, 8.0))
        one, two = (project_values(ct.array + 1000, ct, settings) for settings in (fine, thick))
        assert two.sum() == pytest.approx(one.sum(), rel=1e-3)
        assert np.abs(one - two).mean() < 0.01 * one.mean()


def test_a_patient_turned_to_his_left_moves_his_front_there() -> None:
    front = _box(slice(15, 25), slice(9, 12), slice(28, 32))
    for view in ("PA", "AP"):
        straight, turned, back = (_spot(front, view=view, turn_deg=turn)[1] for turn in (0.0, 15.0, -15.0))
        expected = 42 * np.sin(np.deg2rad(15)) / 240  # 42 mm before the middle of a picture 240 mm wide
        assert turned - straight == pytest.approx(expected, abs=0.015)
        assert straight - back == pytest.approx(expected, abs=0.015)
    assert project_values(_block() + 1000, _ct(_block()), DrrConfig(size_px=80, turn_deg=10.0)).sum() == pytest.approx(
        project_values(_block() + 1000, _ct(_block()), DrrConfig(size_px=80)).sum(), rel=0.03
    )


def test_stored_orientation_does_not_change_the_picture() -> None:
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, 2] * (SHAPE[2] - 1)
    affine[:3, 2] *= -1
    settings = DrrConfig(size_px=120)
    plain = render_drr(_ct(_block()), settings)
    mirrored = render_drr(_ct(_block()[:, :, ::-1].copy(), affine), settings)
    np.testing.assert_allclose(plain.array, mirrored.array, atol=1e-5)
    assert (project_mask(_bead(), _ct(_block()), settings)
            == project_mask(_bead()[:, :, ::-1], _ct(_block(), affine), settings)).all()  # fmt: skip


def test_table_is_removed() -> None:
    with_table = _block()
    with_table[:, 37:39, 4:56] = 300
    settings = DrrConfig(size_px=120)
    np.testing.assert_allclose(
        render_drr(_ct(with_table), settings).array, render_drr(_ct(_block()), settings).array, atol=0.02
    )


def test_refusals_name_the_problem() -> None:
    with pytest.raises(ConfigError, match="size_px"):
        DrrConfig(size_px=2)
    with pytest.raises(ConfigError, match="source_to_detector_mm"):
        DrrConfig(source_to_detector_mm=10)
    with pytest.raises(ConfigError, match="view: expected one of PA, AP, LL, got 'RL'"):
        DrrConfig(view="RL")  # type: ignore[arg-type]
    for turn in (-21.0, 20.5, float("nan")):
        with pytest.raises(ConfigError, match="turn_deg: expected -20 to 20"):
            DrrConfig(turn_deg=turn)
    for step in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="depth_step_mm: expected 0 to 50"):
            DrrConfig(depth_step_mm=step)
    with pytest.raises(ImageError, match="needs a CT"):
        render_drr(MedicalImage(np.zeros((8, 8), np.float32), "CXR", "display"))
    with pytest.raises(ImageError, match="CT's shape"):
        project_mask(np.zeros((2, 2, 2), bool), _ct(_block()))


def test_real_ct_looks_like_a_chest(shared_data: Path) -> None:
    from radglint.reading import read_image

    image = read_image(shared_data / "ct_chest" / "lidc_0001" / "ct.nii.gz")
    picture = render_drr(image, DrrConfig(size_px=256)).array
    rows, columns = picture.shape
    lungs = [picture[int(0.35 * rows), int(c * columns)] for c in (0.3, 0.7)]
    spine = picture[int(0.35 * rows), int(0.5 * columns)]
    assert max(lungs) < 0.5 < spine
    assert spine - max(lungs) > 0.25


def test_labels_become_lung_fields_on_their_sides() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:36, 8:34, 10:26], labels[4:36, 8:34, 34:50] = RIGHT_LUNG, LEFT_LUNG
    lungs = project_lungs(labels, _ct(_block()))
    right, left = (np.argwhere(lungs.lung(side))[:, 1].mean() for side in ("right", "left"))
    assert right < lungs.left.shape[1] / 2 < left
    assert not lungs.heart.any()
    with pytest.raises(ImageError, match="CT's shape"):
        project_lungs(labels[1:], _ct(_block()))
