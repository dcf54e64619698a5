"""CT series in DICOM: order, geometry, gaps, tilt, doubles, choice of series, enhanced multi-frame, real data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from dicom_files import ct_dataset, phantom_hu, save, write_ct_series, write_enhanced_ct, write_radiograph
from radglint.dicom_series import list_series, read_dicom_ct
from radglint.errors import GeometryError
from radglint.geometry import apply_affine
from radglint.slice_stack import plan_stack, same_place_groups, slice_axes

Z = np.array([0.0, 0.0, 1.0])


def read(paths, series=None):
    return read_dicom_ct(list(paths), name="study", series=series)


def world_of_cube(image):
    """Mean RAS+ mm of the bright cube of the phantom, by the affine."""
    return apply_affine(image.affine, np.argwhere(image.array > 500)).mean(axis=0)


def test_values_order_and_affine_of_a_plain_series(tmp_path):
    image = read(write_ct_series(tmp_path))
    np.testing.assert_allclose(image.array, phantom_hu())
    expected = [[0, 0, -1, 10], [0, -1.5, 0, 20], [2, 0, 0, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)
    assert (image.orientation, image.spacing_mm) == ("SPL", (2.0, 1.5, 1.0))
    assert image.warnings == ()


def test_left_front_low_stays_left_front_low(tmp_path):
    x, y, z = world_of_cube(read(write_ct_series(tmp_path)))
    # the cube of the phantom: slices 1-2, rows 3-4, columns 15-16 of origin (-10, -20, -30) LPS
    np.testing.assert_allclose([x, y, z], [-5.5, 14.75, -27.0])


def test_file_order_and_names_do_not_matter(tmp_path):
    paths = write_ct_series(tmp_path)
    reference = read(paths)
    rng = np.random.default_rng(3)
    for i, new in enumerate(rng.permutation(len(paths))):
        paths[i] = paths[i].rename(tmp_path / f"{new:03d}.x.dcm")
    image = read(paths)
    np.testing.assert_array_equal(image.array, reference.array)
    np.testing.assert_array_equal(image.affine, reference.affine)


def test_reverse_acquisition_is_the_same_volume(tmp_path):
    hu = phantom_hu()
    image = read(write_ct_series(tmp_path, hu[::-1], step=(0, 0, -2), origin=(-10, -20, -8)))
    np.testing.assert_array_equal(image.array, hu)
    assert image.affine[2, 3] == -30


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes(tmp_path, syntax):
    np.testing.assert_array_equal(read(write_ct_series(tmp_path, syntax=syntax)).array, phantom_hu())


@settings(max_examples=8, deadline=None)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), origin=st.tuples(*[st.floats(-300, 300)] * 3))
def test_any_orientation_keeps_the_world_place_of_every_voxel(tmp_path_factory, angles, origin):
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    row, column, normal = turn.T
    hu = phantom_hu(4)
    cosines = [float(v) for v in np.concatenate([row, column]).round(9)]
    paths = write_ct_series(
        tmp_path_factory.mktemp("ct"), hu, step=tuple(normal * 2), origin=origin, ImageOrientationPatient=cosines
    )
    image = read(paths[::-1])
    np.testing.assert_array_equal(image.array, hu)
    d, h, w = 3, 7, 11
    lps = np.array(origin) + d * 2 * normal + h * 1.5 * column + w * 1.0 * row
    np.testing.assert_allclose(apply_affine(image.affine, [d, h, w]), lps * [-1, -1, 1], atol=1e-3)


def test_gantry_tilt_is_a_sheared_affine_with_the_angle_recorded(tmp_path):
    angle = np.radians(20)
    cosines = [1.0, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]
    image = read(write_ct_series(tmp_path, ImageOrientationPatient=cosines))
    np.testing.assert_array_equal(image.array, phantom_hu())
    np.testing.assert_allclose(image.affine[:3, 0], [0, 0, 2], atol=1e-6)
    np.testing.assert_allclose(image.affine[:3, 1], [0, -1.5 * np.cos(angle), 1.5 * np.sin(angle)], atol=1e-6)
    assert any("tilt: 20.00 degrees" in step for step in image.steps)


def test_one_missing_slice_is_interpolated_and_named(tmp_path):
    image = read(write_ct_series(tmp_path, skip=(5,)))
    hu = phantom_hu().astype(np.float32)
    assert image.shape == hu.shape
    np.testing.assert_allclose(image.array[[4, 6]], hu[[4, 6]], atol=1e-3)
    np.testing.assert_allclose(image.array[5], (hu[4] + hu[6]) / 2, atol=1e-3)
    assert "slice_004.dcm to slice_006.dcm 4.00 mm" in image.warnings[0]
    assert any("resampled linearly from 11 to 12" in step for step in image.steps)


def test_mildly_uneven_positions_are_resampled_onto_an_even_grid(tmp_path):
    hu = np.broadcast_to(phantom_hu()[6], (12, 16, 20)).copy()
    z = np.arange(12) * 2.0 + 0.3 * np.sin(np.arange(12)) ** 2
    hu += (10 * z).astype(np.int16)[:, None, None]
    places = {d: {"ImagePositionPatient": [0.0, 0.0, float(z[d])]} for d in range(12)}
    image = read(write_ct_series(tmp_path, hu, per_slice=places))
    depth = apply_affine(image.affine, [[d, 0, 0] for d in range(image.shape[0])])[:, 2]
    np.testing.assert_allclose(image.array[:, 8, 10] - image.array[0, 8, 10], 10 * (depth - depth[0]), atol=1.5)
    assert len(image.warnings) == 1


def test_rounding_of_positions_is_no_gap_and_no_tilt(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.004, 0.004, (12, 3))
    places = {d: {"ImagePositionPatient": [float(x) for x in noise[d] + (0, 0, 0.7 * d)]} for d in range(12)}
    image = read(write_ct_series(tmp_path, per_slice=places))
    assert image.warnings == ()
    assert not any("tilt" in step or "resampled" in step for step in image.steps)


def test_identical_copies_are_dropped_with_a_step(tmp_path):
    paths = write_ct_series(tmp_path)
    shutil.copy(paths[4], tmp_path / "copy.dcm")
    image = read([*paths, tmp_path / "copy.dcm"])
    np.testing.assert_array_equal(image.array, phantom_hu())
    assert any("dropped 1 identical copies: slice_004.dcm" in step for step in image.steps)


def test_each_slice_has_its_own_rescale(tmp_path):
    per_slice = {d: {"RescaleSlope": 0.5 + 0.25 * d, "RescaleIntercept": -1000 - 10 * d} for d in range(12)}
    image = read(write_ct_series(tmp_path, per_slice=per_slice))
    np.testing.assert_allclose(image.array, np.maximum(phantom_hu(), -1024), atol=2)
    assert any("12 different pairs" in step for step in image.steps)


def test_padding_is_air_even_when_it_lies_outside_the_stored_bits(tmp_path):
    hu = phantom_hu()
    for name, bits, value in (("a", 16, -2000), ("b", 12, -32768)):
        paths = []
        for d in range(4):
            ds = ct_dataset(hu[d], (0, 0, 2.0 * d), PixelPaddingValue=value, BitsStored=bits, HighBit=bits - 1)
            stored = np.clip(np.frombuffer(ds.PixelData, np.int16), -2048, 2047).reshape(16, 20).copy()
            stored[0] = value
            ds.PixelData = stored.tobytes()
            paths.append(save(ds, tmp_path / f"{name}{d}.dcm"))
        image = read(paths)
        assert (image.array[:, 0] == -1024).all()
        np.testing.assert_array_equal(image.array[:, 1:], hu[:4, 1:])


def test_localizers_and_other_objects_are_left_out(tmp_path):
    paths = write_ct_series(tmp_path)
    scout = write_ct_series(
        tmp_path, phantom_hu()[:1], prefix="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[1.0, 0, 0, 0, 0, -1],
    )  # fmt: skip
    note = tmp_path / "README.txt"
    note.write_text("not an image")
    dose = write_radiograph(tmp_path / "dose.dcm", np.eye(8, dtype=np.uint8), kind="OT", Modality="CT")
    image = read([*scout, note, dose, *paths])
    np.testing.assert_array_equal(image.array, phantom_hu())
    assert "1 localizers left out" in image.steps[0]
    assert "2 files" in image.steps[0]


def two_series(folder, slices=(12, 8), second=None):
    first = write_ct_series(folder, phantom_hu(slices[0]), prefix="a")
    tags = {"SeriesInstanceUID": "1.2.3.4.77", "SeriesNumber": 7, "SeriesDescription": "other"} | (second or {})
    return [*first, *write_ct_series(folder, phantom_hu(slices[1]), prefix="b", **tags)]


def test_the_larger_series_is_taken_and_the_other_is_told(tmp_path):
    image = read(two_series(tmp_path))
    assert image.shape[0] == 12
    assert "7 'other'" in image.warnings[0]


@pytest.mark.parametrize("wanted", ["7", "1.2.3.4.77", "4.77"])
def test_series_by_number_uid_or_its_end(tmp_path, wanted):
    assert read(two_series(tmp_path), wanted).shape[0] == 8


@pytest.mark.parametrize(
    "worse",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
        {"BodyPartExamined": "HEAD"},
        {"ImageOrientationPatient": [1.0, 0, 0, 0, 0, -1]},
    ],
)
def test_kind_of_series_goes_before_the_number_of_slices(tmp_path, worse):
    step = {"ImageOrientationPatient": (0.0, 2.0, 0.0)} if "ImageOrientationPatient" in worse else {}
    first = write_ct_series(tmp_path, phantom_hu(6), prefix="a")
    second = write_ct_series(
        tmp_path, prefix="b", SeriesInstanceUID="1.9", SeriesNumber=9, **worse,
        **({"step": step["ImageOrientationPatient"]} if step else {}),
    )  # fmt: skip
    assert read([*first, *second]).shape[0] == 6
    assert read([*first, *second], "9").shape[0] == 12


def test_two_passes_in_one_series_are_two_choices(tmp_path):
    first = write_ct_series(tmp_path, prefix="a", AcquisitionNumber=1)
    second = write_ct_series(tmp_path, phantom_hu() + 5, prefix="b", AcquisitionNumber=2)
    labels = [s.label for s in list_series([*first, *second])]
    assert labels == ["2:1", "2:2"]
    assert read([*first, *second], "2:2").array[0, 8, 10] == phantom_hu()[0, 8, 10] + 5


def test_list_series_describes_without_patient_data(tmp_path):
    words = "; ".join(s.describe() for s in list_series(two_series(tmp_path)))
    assert "2 'chest' (CT, 12 slices, axial, 16x20, 2 mm)" in words
    assert "SECRET" not in words.upper()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_enhanced_multi_frame_equals_the_classic_series(tmp_path, syntax):
    classic = read(write_ct_series(tmp_path / "classic"))
    order = [3, 0, 11, 1, 2, 4, 10, 9, 5, 6, 8, 7]
    image = read([write_enhanced_ct(tmp_path / "e.dcm", order=order, syntax=syntax)])
    np.testing.assert_array_equal(image.array, classic.array)
    np.testing.assert_array_equal(image.affine, classic.affine)
    assert "enhanced" in image.steps[0]


def test_enhanced_per_frame_rescale(tmp_path):
    intercepts = [-1024.0 + 3 * d for d in range(12)]
    path = write_enhanced_ct(tmp_path / "e.dcm", order=list(range(12))[::-1], intercepts=intercepts)
    np.testing.assert_array_equal(read([path]).array, phantom_hu())


# ---- the stack alone


@pytest.mark.parametrize("missing", [(10,), (10, 30)])
def test_missing_slices_up_to_five_per_cent_are_bridged(missing):
    z = np.delete(np.arange(60) * 1.5, missing)
    plan = plan_stack(z[:, None] * Z, Z, [str(i) for i in range(len(z))], "x")
    assert plan.num_slices == 60
    np.testing.assert_allclose(plan.step_mm, [0, 0, 1.5])
    places = np.interp(plan.grid, np.arange(len(z)), z)
    np.testing.assert_allclose(places, np.arange(60) * 1.5)


@pytest.mark.parametrize(
    ("z", "word"),
    [
        ([0, 1, 2, 3, 6, 7, 8], "3 to 4 3.00 mm (at 3.00 to 6.00)"),  # two neighbours missing
        ([0, 1, 2, 4, 5, 7, 8, 9], "2 to 3 2.00 mm"),  # two missing of ten
        ([0, 6, 12, 24, 30], "12.00 mm"),  # twice the median, but over 10 mm
        ([0, 1, 2, 3, 50], "47.00 mm"),  # a stray slice
    ],
)
def test_unsafe_gaps_are_refused_with_the_list(z, word):
    with pytest.raises(GeometryError, match="missing or uneven") as error:
        plan_stack(np.array(z, float)[:, None] * Z, Z, [str(i) for i in range(len(z))], "x")
    assert word in str(error.value)


def test_places_within_a_hundredth_of_a_millimetre_are_one():
    groups = same_place_groups(np.array([2.0, 0.0, 2.004, 1.0]))
    assert [sorted(g.tolist()) for g in groups] == [[1], [3], [0, 2]]


def test_slice_axes_are_orthonormal_after_rounding():
    row, column, normal = slice_axes(np.array([0.9999, 0.001, 0, 0, 1.0001, 0]), "x")
    frame = np.stack([row, column, normal])
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)


# ---- real data


def test_real_series_agrees_with_its_own_nifti(shared_data):
    import nibabel
    from scipy.ndimage import map_coordinates

    case = shared_data / "ct_chest" / "fourd_lung_113"
    image = read(sorted((case / "dicom").iterdir()))
    assert (image.shape, image.orientation) == ((99, 512, 512), "SPL")
    nifti = nibabel.load(case / "ct.nii.gz")
    data = np.asarray(nifti.dataobj)
    index = np.random.default_rng(0).integers(0, data.shape, (5000, 3))
    native = apply_affine(np.linalg.inv(image.affine), apply_affine(nifti.affine, index))
    ours = map_coordinates(image.array, native.T, order=1)
    theirs = data[tuple(index.T)]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999
    assert np.median(np.abs(ours - theirs)) < 10


def test_real_jpeg_lossless_folder_gives_the_sagittal_stack(shared_data):
    paths = sorted((shared_data / "dicom_jpeg_lossless").iterdir())
    image = read(paths)
    assert (image.shape, image.orientation) == ((19, 512, 512), "RIP")
    np.testing.assert_allclose(image.spacing_mm, (3, 0.703125, 0.703125))
    assert "coronal" in image.warnings[0]
    assert len(list_series(paths)) == 2
