"""Reconstructed radiographs: the physics of a block, sides and heights, masks in the same geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from radglint.errors import ConfigError, ImageError
from radglint.image import MedicalImage
from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG
from radglint.simulation.drr import DrrConfig, _project, project_lungs, project_mask, render_drr

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
