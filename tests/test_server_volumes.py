"""Volumes for display, probability in steps of 1/255, labels, and features on disk."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from findings_phantom import answer, collect, corner, ct_affine, ct_image, radiograph, upper_right
from radglint.pipeline import EncodedImage
from radglint.server.artifacts import make
from radglint.server.features import FeatureCache, held_bytes, load_features, save_features
from radglint.server.volumes import PACKED, VOLUME, around_marks, display_file, display_volume, label_map, on_grid

TILTED = ct_affine((2, 1, 0), (1.0, -1.0, -1.0), tilt_deg=12)


@pytest.mark.parametrize("unseen", [0, 4])
def test_bytes_are_the_probability_map_in_steps(unseen: int) -> None:
    image = ct_image(TILTED)
    finding = answer(image, corner(image), unseen=unseen)
    expected = np.rint(np.nan_to_num(finding.probability_map(), nan=0.0) * 255)
    assert np.array_equal(finding.probability_bytes(), expected)
    assert finding.probability_bytes().max() > 200


@pytest.mark.parametrize("image", [ct_image(TILTED), radiograph()], ids=["ct", "radiograph"])
def test_the_part_around_the_marks_holds_all_and_lies_in_its_place(image) -> None:
    few = np.zeros(image.shape, np.uint8)
    few[tuple(n // 2 for n in image.shape)] = 7
    few[tuple(n // 2 + 1 for n in image.shape)] = 9
    for some in (few, np.ones(image.shape, np.uint8)):
        whole = on_grid(some, image)
        part = around_marks(whole)
        shift = np.linalg.inv(whole.header.get_best_affine()) @ part.affine
        corner = np.rint(shift[:3, 3]).astype(int)
        values = np.asarray(part.dataobj)
        placed = np.zeros_like(np.asarray(whole.dataobj))
        placed[tuple(slice(c, c + n) for c, n in zip(corner, values.shape, strict=True))] = values
        assert np.array_equal(placed, np.asarray(whole.dataobj))
        rim = values.copy()
        rim[tuple(slice(1, -1) if n > 2 else slice(None) for n in rim.shape)] = 0
        assert part.shape == whole.shape or not rim.any()
    assert around_marks(on_grid(np.zeros(image.shape, np.uint8), image)).shape == (1, 1, 1)


def test_the_displayed_image_is_packed_and_unpacked_when_asked_for(tmp_path: Path) -> None:
    content = display_volume(ct_image(TILTED)).to_bytes()
    assert not display_file(tmp_path, VOLUME).exists()
    (tmp_path / VOLUME).write_bytes(content)
    packed = display_file(tmp_path, PACKED)
    assert gzip.decompress(packed.read_bytes()) == content
    (tmp_path / VOLUME).unlink()
    assert display_file(tmp_path, VOLUME).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [VOLUME, PACKED]


def test_everything_of_a_ct_lies_on_its_grid() -> None:
    image = ct_image(TILTED)
    finding = answer(image, corner(image))
    shown, mask = display_volume(image), on_grid(finding.mask().view(np.uint8), image)
    assert np.allclose(shown.affine, image.nifti_affine, atol=1e-4)
    assert np.array_equal(np.asarray(shown.dataobj).transpose(2, 1, 0), np.rint(image.array))
    assert np.array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0) > 0, finding.mask())
    far = replace(image, array=np.clip(image.array, 0, None) + np.float32(50_000))
    assert np.asarray(display_volume(far).dataobj).min() == np.iinfo(np.int16).max  # held at the end, not wrapped


def test_a_radiograph_stands_upright_with_its_spacing() -> None:
    image = replace(radiograph(), spacing_mm=(0.2, 0.3))
    shown = nib.Nifti1Image.from_bytes(display_volume(image).to_bytes())
    assert nib.aff2axcodes(shown.affine) == ("L", "I", "P")
    assert np.allclose(shown.header.get_zooms()[:2], (0.3, 0.2))
    assert np.allclose(shown.get_fdata()[:, :, 0].T, np.clip(image.array, 0, 1), atol=1e-4)
    assert np.linalg.det(shown.affine[:3, :3]) > 0


def test_the_smaller_of_two_masks_wins_where_both_are() -> None:
    image = ct_image(TILTED)
    large, small = answer(image, np.ones(image.shape, dtype=bool)), answer(image, corner(image), query="mass")
    absent = answer(image, corner(image), query="no nodule")
    labels = label_map(collect(large, small, absent))
    assert np.array_equal(labels == 2, small.mask())
    assert set(np.unique(labels)) == {1, 2}


def test_a_result_is_made_once(tmp_path: Path) -> None:
    image = radiograph()
    findings = collect(answer(image, upper_right(image)))
    path = make(findings, "overlay.png", 0, tmp_path)
    path.write_bytes(b"kept")
    assert make(findings, "overlay.png", 0, tmp_path).read_bytes() == b"kept"
    assert make(findings, "mask.png", 0, tmp_path).name == "0_mask.png"


def encoded(seed: int = 0, width: int = 8) -> EncodedImage:
    image = ct_image(TILTED)
    record = answer(image, corner(image)).record
    torch.manual_seed(seed)
    return EncodedImage(image, record, torch.randn(1, 5, width), "model-1", torch.randn(1, 6, 5))


def test_features_come_back_from_disk_for_the_same_model_and_image(tmp_path: Path) -> None:
    path, one = tmp_path / "features.npz", encoded()
    assert load_features(path, one.image, "model-1", "cpu") is None
    save_features(path, one)
    again = load_features(path, one.image, "model-1", "cpu")
    assert again is not None
    assert again.places is not None
    assert torch.equal(again.tokens, one.tokens)
    assert torch.equal(again.places, one.places)  # type: ignore[arg-type]
    assert np.array_equal(again.record.native_to_grid, one.record.native_to_grid)
    assert (again.record.grid_shape, again.record.steps) == (one.record.grid_shape, one.record.steps)
    assert load_features(path, one.image, "model-2", "cpu") is None
    assert load_features(path, radiograph(), "model-1", "cpu") is None
    path.write_bytes(path.read_bytes()[:300])
    assert load_features(path, one.image, "model-1", "cpu") is None


def test_an_answer_stays_as_long_as_its_study() -> None:
    image = ct_image(TILTED)
    findings = collect(answer(image, corner(image)))
    cache = FeatureCache(1)
    cache.keep_answer("a", "0", findings)
    assert cache.answer("a", "0") is None
    cache.put("a", encoded(0))
    for job in range(20):
        cache.keep_answer("a", str(job), findings)
    assert cache.answer("a", "3") is None  # only the last few
    assert cache.answer("a", "19") is findings
    cache.put("b", encoded(1))
    assert cache.answer("a", "19") is None


def test_a_nifti_2_image_is_shown_as_nifti_1() -> None:
    affine = ct_image(TILTED).affine
    header = nib.Nifti2Image(np.zeros((2, 2, 2), np.int16), ct_image(TILTED).nifti_affine).header
    image = ct_image(affine, header)
    shown = nib.Nifti1Image.from_bytes(display_volume(image).to_bytes())
    assert np.array_equal(np.asarray(shown.dataobj).transpose(2, 1, 0), np.rint(image.array))
    assert np.allclose(shown.affine, image.nifti_affine, atol=1e-4)


def test_the_least_recently_used_leaves_memory() -> None:
    images = [encoded(k) for k in range(3)]
    cache = FeatureCache(2 * held_bytes(images[0]))
    cache.put("a", images[0])
    cache.put("b", images[1])
    assert cache.get("a") is images[0]
    cache.put("c", images[2])
    assert cache.get("b") is None
    assert cache.peek("a") is images[0]
    cache.forget("a")
    assert cache.status() == {
        "cache_bytes": held_bytes(images[2]), "cache_entries": 1, "cache_hits": 1, "cache_misses": 1,
    }  # fmt: skip
    assert held_bytes(replace(images[0], tokens=torch.zeros(1, 5, 16))) == held_bytes(images[0]) + 5 * 8 * 4
    tiny = FeatureCache(1)
    tiny.put("a", images[0])
    assert tiny.get("a") is images[0]  # the newest stays, however large
