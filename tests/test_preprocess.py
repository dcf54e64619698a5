"""Preprocessing: contrast, sizes, the two resampling paths, the body's place on the canvas, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from radglint.errors import ConfigError, GeometryError, ImageError
from radglint.image import MedicalImage
from radglint.preprocess import CtPreprocess, CxrPreprocess, PreprocessConfig, PreprocessRecord, ct_canvas, preprocess
from radglint.resample import _sample_general, aligned_axes, blur, blur_sigmas, resample_volume, sample_box


def cxr(array: np.ndarray) -> MedicalImage:
    """A radiograph in memory."""
    return MedicalImage(array.astype(np.float32), "CXR", "display")


def ct(array: np.ndarray, affine: np.ndarray) -> MedicalImage:
    """A CT in memory."""
    return MedicalImage(array.astype(np.float32), "CT", "HU", None, affine)


def axial(spacing=(2.0, 1.0, 1.0)) -> np.ndarray:
    """The usual CT affine: slices up, rows to the back, columns to the left."""
    return np.array([[0, 0, -spacing[2], 0], [0, -spacing[1], 0, 0], [spacing[0], 0, 0, 0], [0, 0, 0, 1.0]])


def noise(*shape: int) -> np.ndarray:
    """Reproducible texture in [0, 1]."""
    return np.random.default_rng(0).random(shape)


@pytest.mark.parametrize(
    ("native", "model"),
    [
        ((512, 512), (392, 392)),
        ((2500, 2000), (392, 308)),
        ((2000, 2500), (308, 392)),
        ((301, 101), (392, 126)),
        ((37, 53), (280, 392)),
        ((392, 392), (392, 392)),
    ],
)
def test_cxr_sizes(native, model) -> None:
    pixels = preprocess(cxr(noise(*native)), CxrPreprocess()).pixels
    assert pixels.shape == (1, *model)
    assert pixels.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 120), st.integers(20, 120), st.integers(0, 2**32 - 1))
def test_cxr_pixels_and_record(height, width, seed) -> None:
    """Odd sizes: pixels in [0, 1], whole patches, everything seen, the record's corners on the image's corners."""
    config = CxrPreprocess(long_side_px=84)
    if max(height, width) > 3 * min(height, width):
        with pytest.raises(ImageError, match="crop"):
            preprocess(cxr(noise(height, width)), config)
        return
    done = preprocess(cxr(np.random.default_rng(seed).random((height, width))), config)
    assert done.pixels.min() >= 0
    assert done.pixels.max() <= 1
    rows, columns = done.record.grid_shape
    assert done.pixels.shape == (1, rows * 14, columns * 14)
    corners = done.record.native_to_grid_points(np.array([[-0.5, -0.5], [height - 0.5, width - 0.5]]))
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [rows - 0.5, columns - 0.5]], atol=1e-9)
    assert not np.isnan(done.record.upsample(np.zeros(done.record.grid_shape))).any()


def test_cxr_spot_lands_where_the_record_says() -> None:
    """A spot off both diagonals; half-pixel convention, so the centroid is exact."""
    y, x = np.mgrid[:601, :433]
    spot = np.exp(-((y - 130) ** 2 + (x - 301) ** 2) / (2 * 12**2))
    done = preprocess(cxr(spot), CxrPreprocess(low_percentile=0, high_percentile=100))
    pixels = done.pixels[0].astype(np.float64)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    centroid = np.array([(rows * pixels).sum(), (columns * pixels).sum()]) / pixels.sum()
    expected = (done.record.native_to_grid_points(np.array([130, 301])) + 0.5) * 14 - 0.5
    np.testing.assert_allclose(centroid, expected, atol=0.02)


def test_cxr_shrinking_does_not_alias() -> None:
    """Stripes finer than a model pixel become grey, not a moire pattern."""
    stripes = np.tile(np.arange(1600) % 2, (1600, 1))
    pixels = preprocess(cxr(stripes), CxrPreprocess()).pixels[0, 20:-20, 20:-20]
    np.testing.assert_allclose(pixels, 0.5, atol=0.05)


def test_cxr_stretch_ignores_a_few_extreme_pixels() -> None:
    """One dead and one burnt pixel do not change the contrast; order and gain are kept."""
    clean = np.linspace(0.3, 0.6, 400 * 400).reshape(400, 400)
    dirty = clean.copy()
    dirty[0, 0], dirty[-1, -1] = 0.0, 1.0
    config = CxrPreprocess(long_side_px=196)
    first, second = (preprocess(cxr(a), config).pixels for a in (clean, dirty))
    np.testing.assert_allclose(first[:, 2:-2], second[:, 2:-2], atol=1e-3)
    assert first.min() < 0.01
    assert first.max() > 0.99
    brighter = preprocess(cxr(clean * 0.5 + 0.2), config).pixels
    np.testing.assert_allclose(first, brighter, atol=1e-4)


def test_cxr_with_almost_nothing_on_black_is_stretched_between_extremes() -> None:
    """Percentiles coincide when 0.1 % of the pixels carry the picture."""
    array = np.zeros((400, 400))
    array[100:112, 100:112] = 0.2
    assert preprocess(cxr(array), CxrPreprocess(long_side_px=392)).pixels.max() == pytest.approx(1.0)


@pytest.mark.parametrize("image", [cxr(np.full((50, 50), 0.4)), ct(np.full((5, 50, 50), 40.0), axial())])
def test_constant_image_is_refused(image) -> None:
    config = CxrPreprocess() if image.modality == "CXR" else CtPreprocess()
    with pytest.raises(ImageError, match="constant"):
        preprocess(image, config)


@pytest.mark.parametrize(("image", "config"), [(cxr(noise(9, 9)), CtPreprocess()),
                                               (ct(noise(3, 9, 9), axial()), CxrPreprocess())])  # fmt: skip
def test_wrong_variant_is_refused(image, config) -> None:
    with pytest.raises(ConfigError, match=image.modality):
        preprocess(image, config)


def test_impossible_extent_is_refused() -> None:
    with pytest.raises(GeometryError, match="mm tall"):
        preprocess(ct(noise(30, 9, 9), axial((100.0, 1.0, 1.0))), CtPreprocess())


@pytest.mark.parametrize(
    ("native_mm", "slices", "step_mm", "count"),
    [(1.0, 40, 2.5, 16), (2.5, 17, 2.5, 17), (5.0, 9, 5.0, 9), (1.25, 33, 2.5, 17), (10.0, 1, 10.0, 1)],
)
def test_ct_slices(native_mm, slices, step_mm, count) -> None:
    """The step is never finer than the native slices; the slices cover the volume and share its centre."""
    image = ct(noise(slices, 30, 30) * 1000, axial((native_mm, 2.0, 2.0)))
    canvas, shape = ct_canvas(image, CtPreprocess())
    assert (canvas[2, 0], shape[0]) == (step_mm, count)
    bottom, top = canvas[2, 3] - step_mm / 2, canvas[2, 3] + (count - 0.5) * step_mm
    assert bottom <= -native_mm / 2 + 1e-9
    assert top >= (slices - 0.5) * native_mm - 1e-9
    assert (bottom + top) / 2 == pytest.approx((slices - 1) * native_mm / 2)
    done = preprocess(image, CtPreprocess())
    assert done.pixels.shape == (count, 308, 392)
    assert done.record.grid_shape == (count, 22, 28)
    assert f"{step_mm:g} mm" in done.record.steps[0]


def test_nothing_changes_when_there_is_nothing_to_resample() -> None:
    """The identity neither blurs nor shifts."""
    values = (noise(6, 20, 30) * 1000).astype(np.float32)
    np.testing.assert_allclose(resample_volume(values, np.eye(4), values.shape, -1024.0), values, atol=1e-3)


@pytest.mark.parametrize("shift_px", [0, 45, -60])
def test_body_is_centred_and_the_table_is_not(shift_px) -> None:
    """The canvas follows the body, not the field of view, and a table under it does not pull it."""
    rows, columns = np.mgrid[:400, :400]
    body = ((columns - 200 - shift_px) / 130) ** 2 + ((rows - 180) / 90) ** 2 < 1
    lungs = ((np.abs(columns - 200 - shift_px) - 60) / 40) ** 2 + ((rows - 180) / 60) ** 2 < 1
    table = (np.abs(rows - 330) < 3) & (np.abs(columns - 200) < 190)
    touching = (np.abs(rows - 270) < 2) & (np.abs(columns - 200) < 190)
    slice_hu = np.where(lungs, -850, np.where(body, 40, np.where(table | touching, 200, -1000)))
    image = ct(np.repeat(slice_hu[None], 8, axis=0), axial((2.5, 1.0, 1.0)))
    canvas, _ = ct_canvas(image, CtPreprocess())
    middle = canvas[:3, :3] @ [0, (308 - 1) / 2, (392 - 1) / 2] + canvas[:3, 3]
    assert middle[0] == pytest.approx(-(200 + shift_px), abs=8)
    assert middle[1] == pytest.approx(-180, abs=8)


def test_parts_beyond_the_canvas_are_unseen() -> None:
    """A wide volume: NaN beyond the canvas, numbers inside, and the seen part has the canvas's size."""
    array = np.full((4, 100, 600), -1000.0)
    array[:, 20:80, 250:350] = 40
    record = preprocess(ct(array, axial((2.5, 1.0, 1.0))), CtPreprocess()).record
    out = record.upsample(np.ones(record.grid_shape))
    seen = ~np.isnan(out[0, 50])
    assert abs(int(seen.sum()) - 392) <= 1
    assert not seen[:60].any()
    assert not seen[-60:].any()
    assert (out[0, 50, seen] == 1).all()


def oblique(kind: str) -> np.ndarray:
    """A matrix from output index to input coordinate."""
    matrix = np.array([[0, 1.3, 0, 2.2], [0, 0, -0.8, 25.0], [-2.6, 0, 0, 28.1], [0, 0, 0, 1.0]])
    if kind == "oblique":
        matrix[:3, :3] += 0.07
    return matrix


@pytest.mark.parametrize("kind", ["aligned", "oblique"])
def test_resample_volume_equals_the_definition(kind) -> None:
    """Blur, then linear interpolation in float64, then the fill; both paths."""
    from scipy import ndimage

    values = (noise(23, 27, 31) * 1000).astype(np.float32)
    matrix, shape = oblique(kind), (11, 17, 33)
    assert (aligned_axes(matrix, shape) is None) == (kind == "oblique")
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    where = np.einsum("ij,j...->i...", matrix[:3, :3], index) + matrix[:3, 3].reshape(3, 1, 1, 1)
    blurred = values.astype(np.float64)
    for axis, ratio in enumerate(np.abs(matrix[:3, :3]).max(axis=1)):
        sigma = 0.4 * np.sqrt(max(ratio**2 - 1, 0))
        if sigma >= 0.2:
            blurred = ndimage.gaussian_filter1d(blurred, sigma, axis=axis, mode="nearest", truncate=3.0)
    expected = ndimage.map_coordinates(blurred, where, order=1, mode="nearest")
    size = np.array(values.shape).reshape(3, 1, 1, 1)
    expected[((where < -0.5) | (where > size - 0.5)).any(axis=0)] = -1024
    before = values.copy()
    out = resample_volume(values, matrix, shape, -1024.0)
    np.testing.assert_allclose(out, expected, atol=0.05)
    assert (out == -1024).any()
    np.testing.assert_array_equal(values, before)


def test_fast_path_equals_general_path() -> None:
    """The two implementations agree on an aligned matrix, for volumes and for token maps."""
    values = (noise(23, 27, 31) * 1000).astype(np.float32)
    matrix, shape = oblique("aligned"), (11, 17, 33)
    box = tuple((0, n) for n in shape)
    general = _sample_general(blur(values, blur_sigmas(matrix)), matrix, box, -1024.0)
    np.testing.assert_allclose(resample_volume(values, matrix, shape, -1024.0), general, atol=0.05)
    general = _sample_general(values, matrix, box, np.nan)
    np.testing.assert_allclose(sample_box(values, matrix, shape, box), general, atol=0.05)


def test_tiny_obliqueness_still_takes_the_fast_path() -> None:
    """Rounded DICOM cosines: treated as aligned, wrong by less than a thousandth of a voxel."""
    values = noise(23, 27, 31).astype(np.float32)
    matrix = oblique("aligned")
    matrix[0, 0] = 2e-5
    shape = (11, 17, 33)
    assert aligned_axes(matrix, shape) is not None
    box = tuple((0, n) for n in shape)
    np.testing.assert_allclose(
        sample_box(values, matrix, shape, box), _sample_general(values, matrix, box, np.nan), atol=2e-3
    )


def test_blur_only_where_the_grid_gets_coarser() -> None:
    """Sigma is 0 up to ratio 1 and 0.4 * sqrt(r^2 - 1) beyond."""
    sigmas = blur_sigmas(np.diag([2.5, 1.0, 0.4, 1.0]))
    np.testing.assert_allclose(sigmas, [0.4 * np.sqrt(2.5**2 - 1), 0, 0])


def test_read_only_input_is_left_alone() -> None:
    """Memory-mapped arrays are not writable; both paths take them."""
    array = (noise(8, 20, 20) * 1000).astype(np.float32)
    array.flags.writeable = False
    affine = axial()
    assert preprocess(MedicalImage(array, "CT", "HU", None, affine), CtPreprocess()).pixels.max() > 0
    affine[0, 1] = 0.2
    assert preprocess(MedicalImage(array, "CT", "HU", None, affine), CtPreprocess()).pixels.max() > 0


def test_config_round_trip_and_strictness() -> None:
    """The stored form picks its variant by `kind` and refuses what it does not know."""
    adapter: TypeAdapter[CxrPreprocess | CtPreprocess] = TypeAdapter(PreprocessConfig)
    for config in (CxrPreprocess(long_side_px=280), CtPreprocess(slice_step_mm=3)):
        assert adapter.validate_json(config.model_dump_json()) == config
    for bad in (
        {"kind": "MR"},
        {"kind": "CXR", "mm_per_px": 1},
        {"kind": "CXR", "long_side_px": 390},
        {"kind": "CT", "height_px": 300},
        {"kind": "CT", "window_low_hu": 500},
        {"kind": "CT", "mm_per_px": 0},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


@pytest.mark.parametrize(
    "change",
    [{"grid_shape": [3]}, {"native_to_grid": [[1, 0], [0, 1]]}, {"extra": 1}],
)
def test_damaged_record_is_refused(change) -> None:
    data = preprocess(cxr(noise(20, 20)), CxrPreprocess(long_side_px=28)).record.to_dict()
    assert PreprocessRecord.from_dict(json.loads(json.dumps(data))).grid_shape == (2, 2)
    with pytest.raises(ConfigError, match="preprocess record"):
        PreprocessRecord.from_dict({**data, **change})


def test_bad_token_maps_and_slabs_are_refused() -> None:
    record = preprocess(cxr(noise(20, 20)), CxrPreprocess(long_side_px=28)).record
    with pytest.raises(ValueError, match="shape"):
        record.upsample(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="NaN"):
        record.upsample(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="step"):
        record.upsample(np.zeros((2, 2)), slice(0, 10, 2))
    assert record.upsample(np.zeros((2, 2)), slice(5, 5)).shape == (0, 20)


def test_real_ct(shared_data) -> None:
    """The real CT: spine behind (lower rows), lungs in the middle, the known mass is tissue at its world place."""
    import nibabel

    source = nibabel.Nifti1Image.from_filename(shared_data / "ct_chest" / "lidc_0001" / "ct.nii.gz")
    array = np.asarray(source.dataobj, dtype=np.float32).transpose(2, 1, 0)
    image = ct(array, np.asarray(source.affine)[:, [2, 1, 0, 3]])
    done = preprocess(image, CtPreprocess())
    bone = np.argwhere(done.pixels > 0.95)
    assert bone[:, 1].mean() > done.pixels.shape[1] / 2
    assert (done.pixels[len(done.pixels) // 2, 100:200, 60:332] < 0.25).mean() > 0.2
    canvas, _ = ct_canvas(image, CtPreprocess())
    depth, row, column = np.rint(np.linalg.inv(canvas) @ [-56, -86, -116, 1])[:3].astype(int)
    mass = done.pixels[depth - 1 : depth + 2, row - 3 : row + 4, column - 3 : column + 4]
    assert mass.mean() > (-200 + 1000) / 1400
    # Its mirror image, in the right lung, is air: left is not right.
    mirror = np.rint(np.linalg.inv(canvas) @ [56, -86, -116, 1])[2].astype(int)
    assert done.pixels[depth - 1 : depth + 2, row - 3 : row + 4, mirror - 3 : mirror + 4].mean() < (-600 + 1000) / 1400
