"""NIfTI: voxels, affine and header of all 48 orientations come back exactly."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from radglint.errors import GeometryError, ImageError
from radglint.geometry import apply_affine, orientation_code
from radglint.nifti import read_nifti
from test_geometry import ORIENTATIONS, axis_affine, turn


def chest(shape=(14, 12, 10), seed=0) -> np.ndarray:
    """Half air, half soft tissue, one bright voxel off every axis of symmetry; int16 HU in (i, j, k)."""
    values = np.random.default_rng(seed).normal(0, 20, shape)
    values[: shape[0] // 2] -= 950
    values[2, 3, 4] = 1200
    return values.round().clip(-1024).astype(np.int16)


def write(folder, values, affine=None, name="ct.nii.gz", edit=None):
    image = nib.Nifti1Image(values, np.diag([1.5, 1.5, 3, 1.0]) if affine is None else affine)
    if edit is not None:
        edit(image.header)
    nib.save(image, folder / name)
    return folder / name


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_keeps_voxels_and_places(tmp_path, order, signs):
    values, affine = chest(), axis_affine(order, signs)
    image = read_nifti(write(tmp_path, values, affine, "ct.nii"))
    np.testing.assert_array_equal(image.array.transpose(2, 1, 0), values)
    np.testing.assert_allclose(image.nifti_affine, affine, atol=1e-6)
    assert image.orientation == orientation_code(affine)[::-1]
    marked = np.argwhere(image.array == 1200)
    np.testing.assert_array_equal(marked, [[4, 3, 2]])
    np.testing.assert_allclose(apply_affine(image.affine, marked)[0], apply_affine(affine, [2, 3, 4]), atol=1e-4)
    assert image.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert image.array.flags.c_contiguous


@pytest.mark.parametrize("degrees", [3.0, 20.0, 44.0])
def test_oblique_affine_is_kept(tmp_path, degrees):
    affine = turn(degrees, 0) @ axis_affine((0, 1, 2), (-1, 1, 1))
    image = read_nifti(write(tmp_path, chest(), affine))
    np.testing.assert_allclose(image.nifti_affine, affine, atol=1e-5)
    assert image.warnings == ()


def test_sheared_affine_is_kept_with_a_warning(tmp_path):
    affine = np.diag([1.0, 1, 2, 1])
    affine[1, 2] = 0.2
    image = read_nifti(write(tmp_path, chest(), affine))
    np.testing.assert_allclose(image.nifti_affine, affine, atol=1e-6)
    assert any("sheared by 5.7 degrees" in note for note in image.warnings)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_wrong_suffix_does_not_matter(tmp_path, name):
    path = write(tmp_path, chest(), name=name)
    renamed = path.rename(tmp_path / "scan.dat")
    np.testing.assert_array_equal(read_nifti(renamed).array, read_nifti(write(tmp_path, chest())).array)


def test_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(chest(), np.eye(4)), tmp_path / "two.nii.gz")
    assert read_nifti(tmp_path / "two.nii.gz").steps[0] == "decoded Nifti2, int16"


def test_big_endian(tmp_path):
    image = nib.Nifti1Image(chest(), np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "be.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "be.nii").array.transpose(2, 1, 0), chest())


def test_scaling_of_the_header_is_applied_once(tmp_path):
    stored = nib.Nifti1Image((chest() + 1024).astype(np.uint16), np.eye(4))
    stored.header.set_slope_inter(1, -1024)
    stored.to_filename(tmp_path / "scaled.nii")
    # nibabel rescales on writing; force the raw header instead
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    raw[352:] = (chest() + 1024).astype("<u2").tobytes(order="F")
    (tmp_path / "scaled.nii").write_bytes(raw)
    image = read_nifti(tmp_path / "scaled.nii")
    np.testing.assert_array_equal(image.array.transpose(2, 1, 0), chest())
    assert "scaled by the header: value * 1 + -1024" in image.steps


def test_4d_with_one_volume_is_accepted(tmp_path):
    image = read_nifti(write(tmp_path, chest()[..., None]))
    np.testing.assert_array_equal(image.array.transpose(2, 1, 0), chest())
    assert any("trailing axes" in step for step in image.steps)


def test_header_is_kept_for_masks(tmp_path):
    image = read_nifti(write(tmp_path, chest(), edit=lambda h: h.set_qform(np.diag([1.5, 1.5, 3, 1]), code=2)))
    assert int(image.source_header["qform_code"]) == 2
    assert image.source_header.get_data_shape() == (14, 12, 10)


def test_qform_is_used_where_there_is_no_sform(tmp_path):
    affine = axis_affine((1, 0, 2), (1, -1, 1))

    def only_qform(header):
        header.set_qform(affine, code=1)
        header.set_sform(None, code=0)

    image = nib.Nifti1Image(chest(), None)
    only_qform(image.header)
    nib.save(image, tmp_path / "q.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "q.nii").nifti_affine, affine, atol=1e-5)


def test_no_form_codes_use_the_spacing_with_a_warning(tmp_path):
    image = nib.Nifti1Image(chest(), None)
    image.header.set_zooms((0.8, 0.9, 2.0))
    nib.save(image, tmp_path / "none.nii")
    read = read_nifti(tmp_path / "none.nii")
    assert read.spacing_mm == pytest.approx((2.0, 0.9, 0.8))
    assert any("qform_code and sform_code are 0" in note for note in read.warnings)


def test_disagreeing_forms_are_warned_about(tmp_path):
    def edit(header):
        header.set_sform(np.diag([1.5, 1.5, 3, 1]), code=1)
        header.set_qform(np.diag([-1.5, 1.5, 3, 1]), code=1)

    image = read_nifti(write(tmp_path, chest(), edit=edit))
    assert any("disagree by up to 39.0 mm" in note for note in image.warnings)
    assert image.nifti_affine[0, 0] == 1.5


@pytest.mark.parametrize(("unit", "error"), [("micron", False), ("meter", False), ("mm", False), ("unknown", False)])
def test_units_that_cannot_be_true_are_read_as_mm(tmp_path, unit, error):
    image = read_nifti(write(tmp_path, chest(), edit=lambda h: h.set_xyzt_units(unit)))
    assert image.spacing_mm == pytest.approx((3, 1.5, 1.5))
    assert bool(image.warnings) == (unit in ("micron", "meter"))


def test_metres_are_refused(tmp_path):
    affine = np.diag([0.0015, 0.0015, 0.003, 1])
    with pytest.raises(GeometryError, match="expected mm"):
        read_nifti(write(tmp_path, chest(), affine, edit=lambda h: h.set_xyzt_units("meter")))


def test_padding_is_clamped_and_recorded(tmp_path):
    values = chest()
    values[:, :2] = -3024
    image = read_nifti(write(tmp_path, values))
    assert image.array.min() == -1024
    assert any("lowest -3024" in step for step in image.steps)
    np.testing.assert_array_equal(image.array.transpose(2, 1, 0)[:, 2:], values[:, 2:])


def test_a_header_of_huge_dimensions_allocates_nothing(tmp_path):
    path = write(tmp_path, chest(), name="huge.nii")
    raw = bytearray(path.read_bytes())
    raw[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="27000000000000 voxels"):
        read_nifti(path)


def test_real_ct(shared_data):
    path = shared_data / "ct_chest" / "lidc_0314" / "ct.nii.gz"
    image, reference = read_nifti(path), nib.load(path)
    np.testing.assert_array_equal(image.array.transpose(2, 1, 0), np.asarray(reference.dataobj, dtype=np.float32))
    np.testing.assert_array_equal(image.nifti_affine, reference.affine)
    assert image.orientation == "SPL"
    assert image.warnings == ()
