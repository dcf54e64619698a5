"""Layers without napari: no voxel lost, moved or copied, in any orientation; the reader; what the widget saves."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image as Picture

import radglint
from dicom_files import phantom_hu, write_ct_series
from findings_phantom import ORIENTATIONS, SHAPE, answer, corner, ct_affine, ct_image, radiograph, upper_right
from radglint.errors import ImageError, OutputError, QueryError
from radglint.geometry import apply_affine
from radglint.image import MedicalImage
from radglint.napari_widget import layers
from radglint.napari_widget.desk import save_masks, split_queries
from radglint.napari_widget.reader import get_reader, read_layers


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize(("tilt_deg", "shear"), [(0.0, 0.0), (17.0, 0.1)])
def test_a_layer_voxel_keeps_its_value_and_its_place(
    order: tuple[int, ...], signs: tuple[float, ...], tilt_deg: float, shear: float
) -> None:
    image = ct_image(ct_affine(order, signs, tilt_deg, shear))
    data, settings, kind = layers.image_layer(image)
    assert kind == "image"
    assert np.shares_memory(data, image.array)
    native = np.array([3, 17, 5])
    shown = native[list(layers.axis_order(image))]
    assert data[tuple(shown)] == image.array[tuple(native)]
    right, front, head = apply_affine(image.affine, native)  # type: ignore[arg-type]
    np.testing.assert_allclose(apply_affine(settings["affine"], shown), (head, -front, -right), atol=1e-9)
    assert np.abs(settings["affine"][:3, :3]).argmax(axis=0).tolist() == [0, 1, 2] or tilt_deg
    assert layers.to_native(data, image) is not data
    np.testing.assert_array_equal(layers.to_native(data, image), image.array)


def test_a_radiograph_is_in_mm_where_the_spacing_is_known_else_in_pixels() -> None:
    plain = radiograph()
    assert "units" not in layers.image_layer(plain)[1]
    np.testing.assert_array_equal(layers.world_affine(plain), np.eye(3))
    measured = MedicalImage(plain.array, "CXR", "display", (0.2, 0.15))
    assert layers.image_layer(measured)[1]["units"] == ("mm", "mm")
    np.testing.assert_array_equal(layers.world_affine(measured), np.diag([0.2, 0.15, 1.0]))


def test_only_a_tilted_scan_is_said_to_be_tilted() -> None:
    assert layers.tilt_note(ct_image(ct_affine((2, 0, 1), (1, -1, 1)))) == ""
    assert layers.tilt_note(radiograph()) == ""
    assert "17.0 degrees" in layers.tilt_note(ct_image(ct_affine((2, 1, 0), (1, 1, 1), tilt_deg=17)))


def test_the_reader_takes_what_radglint_reads_and_leaves_the_rest(tmp_path: Path) -> None:
    series, other = tmp_path / "series", tmp_path / "other"
    for folder in (series, other):
        folder.mkdir()
    write_ct_series(series)
    (other / "notes.txt").write_text("no image")
    assert get_reader(str(series)) is read_layers
    assert get_reader(str(other)) is None
    assert get_reader(str(other / "notes.txt")) is None
    assert get_reader([str(series)]) is None
    with pytest.raises(ImageError, match="2 paths at once"):
        read_layers([str(series), str(other)])


def test_a_dicom_series_comes_with_its_hu_and_its_affine(tmp_path: Path) -> None:
    write_ct_series(tmp_path)
    [(data, settings, _)] = read_layers(str(tmp_path))
    image = settings["metadata"][layers.IMAGE_KEY]
    np.testing.assert_array_equal(np.sort(data, axis=None), np.sort(phantom_hu().astype(np.float32), axis=None))
    np.testing.assert_array_equal(data, layers.to_layer(image.array, image))
    np.testing.assert_array_equal(settings["affine"], layers.world_affine(image))


def test_queries_are_lines() -> None:
    assert split_queries("\n  nodule \n# a remark\nno effusion\n") == ["nodule", "no effusion"]
    with pytest.raises(QueryError, match="no query given"):
        split_queries("# only a remark\n")
    with pytest.raises(QueryError, match="line 2"):
        split_queries("nodule\n???")


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_saved_masks_are_those_of_the_command_line(tmp_path: Path, order: tuple[int, ...]) -> None:
    image = ct_image(ct_affine(order, (-1, 1, -1), tilt_deg=9))
    finding = answer(image, corner(image))
    shown = layers.mask_layer(finding, finding.mask(), "#ff0000")[0]
    [path] = save_masks(tmp_path / "new", [("01_nodule_mask.nii.gz", layers.to_native(shown > 0, image))], image)
    assert path.read_bytes() == finding.to_nifti(tmp_path / "direct.nii.gz").read_bytes()
    saved = nib.Nifti1Image.from_filename(path)
    assert saved.shape == SHAPE[::-1]
    np.testing.assert_allclose(saved.affine, image.nifti_affine, atol=1e-5)


def test_the_mask_of_a_radiograph_is_a_picture_of_its_size(tmp_path: Path) -> None:
    image = radiograph()
    [path] = save_masks(tmp_path, [("01_nodule_mask.png", upper_right(image))], image)
    with Picture.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture) == 255, upper_right(image))


def test_masks_are_saved_together_or_not_at_all(tmp_path: Path) -> None:
    image = radiograph()
    mask = upper_right(image)
    with pytest.raises(OutputError):
        save_masks(tmp_path / "new", [("a.png", mask), ("b.txt", mask)], image)
    assert not (tmp_path / "new").exists()


def test_the_installed_package_tells_napari_where_the_manifest_is() -> None:
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    module, _, name = settings["project"]["entry-points"]["napari.manifest"]["radglint"].partition(":")
    manifest = Path(radglint.__file__).parent.joinpath(*module.split(".")[1:]) / name
    commands = yaml.safe_load(manifest.read_text())["contributions"]["commands"]
    for command in commands:
        home, _, function = command["python_name"].partition(":")
        source = Path(radglint.__file__).parent.joinpath(*home.split(".")[1:]).with_suffix(".py")
        assert re.search(rf"^(class|def) {function}\b", source.read_text(), re.MULTILINE)
    data = settings["tool"]["setuptools"]["package-data"]["radglint"]
    assert str(manifest.relative_to(Path(radglint.__file__).parent)) in data
