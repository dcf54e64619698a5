"""Geometry for every orientation: what the model sees lies where the patient is, and what it says goes back there.

The references here are written from the definitions (world positions, float64) and share no code with the package.
"""

from __future__ import annotations

import json
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radglint import localize
from radglint.image import MedicalImage
from radglint.localize import peak, probability_map, threshold_mask
from radglint.preprocess import CtPreprocess, PreprocessRecord, ct_canvas, preprocess

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((-1, 1), repeat=3)]
SMALL_BLOCKS = {2: (5, 4), 3: (3, 5, 4)}
KINDS = ["plain", "oblique", "sheared"]
SMALL = CtPreprocess(height_px=84, width_px=112, mm_per_px=2.0, slice_step_mm=5.0, window_low_hu=-1000)


def rotation(degrees: float, axis: np.ndarray) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_affine(order, signs, kind: str, spacing, shape) -> np.ndarray:
    """An affine of the given orientation whose volume is centred near, not at, the world's origin."""
    linear = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        linear[world, axis] = sign * spacing[axis]
    if kind == "oblique":
        linear = rotation(17, np.array([0.4, -0.5, 0.77])) @ linear
    if kind == "sheared":
        linear = np.array([[1, 0, 0.05], [0, 1, 0.2], [0, 0, 1]]) @ linear
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([11.0, -7.0, 23.0]) - linear @ ((np.array(shape) - 1) / 2)
    return affine


def world_grid(affine: np.ndarray, shape) -> np.ndarray:
    """World position of every voxel, (3, *shape)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return np.einsum("ij,j...->i...", affine[:3, :3], index) + affine[:3, 3].reshape(3, 1, 1, 1)


def ct(array: np.ndarray, affine: np.ndarray) -> MedicalImage:
    """A CT in memory."""
    return MedicalImage(array.astype(np.float32), "CT", "HU", None, affine)


def shape_for(order, thin: int = 17) -> tuple[int, ...]:
    """Odd sizes such that the volume is about 130 mm, 95 mm and 68 mm along x, y, z for SPACING."""
    sizes = {0: 71, 1: 53, 2: thin}
    return tuple(sizes[world] for world in order)


def spacing_for(order) -> tuple[float, ...]:
    """Anisotropic spacing, thick along z."""
    sizes = {0: 1.9, 1: 1.7, 2: 4.1}
    return tuple(sizes[world] for world in order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_model_pixels_show_the_world_at_their_place(order, signs, kind) -> None:
    """HU that is linear in world x, y or z comes out with the value of the pixel's world position."""
    shape = shape_for(order)
    affine = make_affine(order, signs, kind, spacing_for(order), shape)
    world = world_grid(affine, shape)
    # Gradients of different size and sign per axis: a swapped or flipped axis cannot give the same picture.
    image = ct(-300 + 3.0 * world[0] - 2.0 * world[1] + 1.0 * world[2], affine)
    canvas, model_shape = ct_canvas(image, SMALL)
    pixels = preprocess(image, SMALL).pixels
    assert pixels.shape == model_shape
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    where = world_grid(canvas, model_shape)
    native = np.einsum("ij,j...->i...", np.linalg.inv(affine)[:3, :3], where - affine[:3, 3].reshape(3, 1, 1, 1))
    limit = np.array(shape).reshape(3, 1, 1, 1)
    deep = ((native >= 4) & (native <= limit - 5)).all(axis=0)
    assert deep.sum() > 500
    expected = np.clip((-300 + 3.0 * where[0] - 2.0 * where[1] + where[2] + 1000) / 1400, 0, 1)
    np.testing.assert_allclose(pixels[deep], expected[deep], atol=1e-3)
    outside = ((native < -0.51) | (native > limit - 0.49)).any(axis=0)
    assert outside.any()
    assert (pixels[outside] == 0).all()


def test_canvas_axes_are_feet_to_head_front_to_back_right_to_left() -> None:
    """The contract of the model's picture, independent of the scan."""
    order, signs = (1, 2, 0), (-1, 1, -1)
    shape = shape_for(order)
    image = ct(np.arange(np.prod(shape)).reshape(shape), make_affine(order, signs, "oblique", (2, 2, 2), shape))
    canvas, _ = ct_canvas(image, SMALL)
    np.testing.assert_array_equal(canvas[:3, :3], [[0, 0, -2.0], [0, -2.0, 0], [5.0, 0, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_marked_voxel_survives_the_round_trip(order, signs, kind) -> None:
    """Bright spot -> model picture -> hot token -> native peak and mask, within half a patch in mm."""
    shape = shape_for(order)
    affine = make_affine(order, signs, kind, spacing_for(order), shape)
    world = world_grid(affine, shape)
    target = np.array([11.0 + 31, -7.0 - 18, 23.0 + 12])
    marked = np.unravel_index(np.argmin(((world - target.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)), shape)
    position = affine[:3, :3] @ np.array(marked) + affine[:3, 3]
    # A wide soft spot, so that its top survives the blur; the box around it holds the body's centre.
    distance = np.sqrt(((world - position.reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
    image = ct(-400 + 700 * np.exp(-((distance / 9) ** 2)), affine)
    done = preprocess(image, SMALL)
    record = done.record
    depth, height, width = done.pixels.shape
    tokens = done.pixels.reshape(depth, height // 14, 14, width // 14, 14).max(axis=(2, 4))
    # 1. the picture is brightest in the token where the record says the voxel is
    hot = np.array(np.unravel_index(tokens.argmax(), tokens.shape))
    coordinate = record.native_to_grid_points(np.array(marked))
    assert (np.abs(coordinate - hot) <= 0.5 + np.array([0.3, 0.12, 0.12])).all()
    # 2. a map that is hot at that token comes back on the voxel
    logits = np.full(record.grid_shape, -6.0, dtype=np.float32)
    logits[tuple(hot)] = 6.0
    half_patch = np.array([14 * 2.0 / 2 + 2, 14 * 2.0 / 2 + 2, 5.0 / 2 + 2.5])
    found = peak(logits, record, image)
    assert found.world_mm is not None
    assert (np.abs(np.array(found.world_mm) - position) <= half_patch).all()
    np.testing.assert_allclose(found.world_mm, affine[:3, :3] @ np.array(found.index) + affine[:3, 3])
    mask = threshold_mask(logits, record, 0.5)
    assert mask.shape == shape
    assert mask.any()
    middle = world[:, mask].mean(axis=1)
    assert (np.abs(middle - position) <= half_patch).all()
    # 3. point to point, the record is exact
    np.testing.assert_allclose(record.grid_to_native(coordinate), marked, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_left_stays_left(kind) -> None:
    """An asymmetric phantom: heart on the patient's left and low, marker on the right and high."""
    order, signs = (2, 1, 0), (-1, -1, 1)
    shape = shape_for(order)
    affine = make_affine(order, signs, kind, spacing_for(order), shape)
    x, y, z = world_grid(affine, shape)
    body = ((x - 11) / 60) ** 2 + ((y + 7) / 42) ** 2 < 1
    heart = (x + 15) ** 2 + (y - 5) ** 2 + (z - 10) ** 2 < 15**2
    marker = (x - 40) ** 2 + (y + 15) ** 2 + (z - 40) ** 2 < 10**2
    image = ct(np.where(marker, 800, np.where(heart, 150, np.where(body, -450, -1000))), affine)
    pixels = preprocess(image, SMALL).pixels
    window = (np.array([150.0, 800.0]) + 1000) / 1400
    hearts = np.argwhere(np.abs(pixels - window[0]) < 0.03).mean(axis=0)
    markers = np.argwhere(pixels > 0.95).mean(axis=0)
    # Radiological convention: the patient's left is on the picture's right, front on top, head at the higher index.
    assert hearts[2] > markers[2] + 15
    assert hearts[1] < markers[1] - 3
    assert hearts[0] < markers[0] - 2


def naive_upsample(token_map: np.ndarray, record: PreprocessRecord) -> np.ndarray:
    """Multilinear interpolation by its definition, float64, one corner at a time."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in record.native_shape], indexing="ij"), axis=-1)
    matrix = record.native_to_grid
    coordinate = index @ matrix[:-1, :-1].T + matrix[:-1, -1]
    size = np.array(record.grid_shape)
    seen = ((coordinate >= -0.5) & (coordinate <= size - 0.5)).all(axis=-1)
    clamped = np.clip(coordinate, 0, size - 1)
    low = np.minimum(np.floor(clamped).astype(int), size - 1)
    total = np.zeros(record.native_shape)
    for corner in product((0, 1), repeat=len(size)):
        at = np.minimum(low + corner, size - 1)
        weight = np.where(np.array(corner) == 1, clamped - low, 1 - (clamped - low)).prod(axis=-1)
        total += weight * token_map.astype(np.float64)[tuple(np.moveaxis(at, -1, 0))]
    return np.where(seen, total, np.nan)


def off_border(record: PreprocessRecord) -> np.ndarray:
    """Voxels that are not within rounding (float32) of the border between seen and unseen."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in record.native_shape], indexing="ij"), axis=-1)
    coordinate = record.native_to_grid_points(index)
    distance = np.minimum(np.abs(coordinate + 0.5), np.abs(coordinate - (np.array(record.grid_shape) - 0.5)))
    return distance.min(axis=-1) > 2e-5


@st.composite
def records(draw, ndim: int = 3) -> PreprocessRecord:
    """A record with random sizes, scales, axis order and obliqueness; some voxels are unseen in most of them."""
    native = tuple(draw(st.integers(1, 19)) for _ in range(ndim))
    grid = tuple(draw(st.integers(1, 7)) for _ in range(ndim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    linear = np.zeros((ndim, ndim))
    for axis, target in enumerate(rng.permutation(ndim)):
        linear[target, axis] = rng.choice([-1, 1]) * rng.uniform(0.6, 1.4) * grid[target] / native[axis]
    if draw(st.booleans()):
        linear = linear + rng.uniform(-0.08, 0.08, size=linear.shape)
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] = linear
    middle = (np.array(native) - 1) / 2
    matrix[:-1, -1] = (np.array(grid) - 1) / 2 + rng.uniform(-0.7, 0.7, ndim) - linear @ middle
    return PreprocessRecord(native, grid, matrix)


any_record = st.one_of(records(2), records(3))
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(any_record, seeds)
def test_upsample_equals_the_definition(record, seed) -> None:
    """Values and the unseen part, aligned and oblique, 2D and 3D."""
    token_map = np.random.default_rng(seed).normal(size=record.grid_shape).astype(np.float32)
    out = record.upsample(token_map)
    assert out.dtype == np.float32
    assert out.shape == record.native_shape
    expected = naive_upsample(token_map, record)
    inner = off_border(record)
    np.testing.assert_array_equal(np.isnan(out)[inner], np.isnan(expected)[inner])
    np.testing.assert_allclose(out[inner], expected[inner], atol=2e-5)


@settings(max_examples=80, deadline=None)
@given(any_record, seeds)
def test_slabs_and_boxes_are_the_same_bits_as_the_whole(record, seed) -> None:
    """Streaming callers get what whole-volume callers get."""
    rng = np.random.default_rng(seed)
    token_map = rng.normal(size=record.grid_shape).astype(np.float32)
    whole = record.upsample(token_map)
    cuts = [0, *sorted(rng.integers(0, record.native_shape[0] + 1, size=2).tolist()), record.native_shape[0]]
    parts = [record.upsample(token_map, slice(a, b)) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    box = tuple((int(n) // 3, int(n)) for n in record.native_shape)
    np.testing.assert_array_equal(record.upsample_box(token_map, box), whole[tuple(slice(*b) for b in box)])


@settings(max_examples=80, deadline=None)
@given(any_record, st.floats(-5, 5, width=32))
def test_constant_map_stays_constant_where_seen(record, value) -> None:
    """Nothing leaks in from outside; unseen is NaN, not 0."""
    out = record.upsample(np.full(record.grid_shape, value, dtype=np.float32))
    seen = ~np.isnan(out)
    np.testing.assert_allclose(out[seen], value, rtol=1e-5, atol=1e-6)
    index = np.argwhere(np.ones(record.native_shape, dtype=bool))
    inner = off_border(record)
    np.testing.assert_array_equal(record.is_seen(index).reshape(record.native_shape)[inner], seen[inner])


@settings(max_examples=80, deadline=None)
@given(any_record, seeds)
def test_ramp_stays_a_ramp(record, seed) -> None:
    """A map that is linear in the token coordinate is that function at every voxel between token centres."""
    rng = np.random.default_rng(seed)
    slope = rng.uniform(-1, 1, len(record.grid_shape))
    tokens = np.stack(np.meshgrid(*[np.arange(n) for n in record.grid_shape], indexing="ij"), axis=-1)
    out = record.upsample((tokens @ slope).astype(np.float32))
    index = np.argwhere(np.ones(record.native_shape, dtype=bool))
    coordinate = record.native_to_grid_points(index)
    between = ((coordinate >= 0) & (coordinate <= np.array(record.grid_shape) - 1)).all(axis=1)
    np.testing.assert_allclose(out.ravel()[between], (coordinate @ slope)[between], atol=3e-5)


@settings(max_examples=150, deadline=None)
@given(any_record, seeds, st.floats(0, 1))
def test_mask_equals_the_thresholded_map(record, seed, threshold) -> None:
    """The shortcut that skips cold tokens never changes a voxel."""
    logits = np.random.default_rng(seed).normal(scale=3, size=record.grid_shape).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = probability_map(logits, record) >= threshold
    for blocks in SMALL_BLOCKS, localize.BLOCK_VOX:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(localize, "BLOCK_VOX", blocks)
            np.testing.assert_array_equal(threshold_mask(logits, record, threshold), expected)


@settings(max_examples=100, deadline=None)
@given(records(3), seeds)
def test_peak_is_the_highest_seen_voxel(record, seed) -> None:
    """Also when the highest token lies outside the native image."""
    logits = np.random.default_rng(seed).normal(scale=3, size=record.grid_shape).astype(np.float32)
    whole = probability_map(logits, record)
    if np.isnan(whole).all():
        return
    image = ct(np.zeros(record.native_shape), np.eye(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localize, "BLOCK_VOX", SMALL_BLOCKS)
        found = peak(logits, record, image)
    assert whole[found.index] == pytest.approx(np.nanmax(whole), abs=1e-6)
    assert found.probability == pytest.approx(np.nanmax(whole), abs=1e-6)
    assert found.world_mm == tuple(map(float, found.index))


@settings(max_examples=60, deadline=None)
@given(any_record)
def test_record_survives_json(record) -> None:
    """To the last bit."""
    back = PreprocessRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    assert (back.native_shape, back.grid_shape, back.steps) == (record.native_shape, record.grid_shape, record.steps)
    np.testing.assert_array_equal(back.native_to_grid, record.native_to_grid)


@settings(max_examples=60, deadline=None)
@given(any_record, seeds)
def test_points_go_there_and_back(record, seed) -> None:
    """`grid_to_native` inverts `native_to_grid_points` for any stack of points."""
    points = np.random.default_rng(seed).uniform(-5, 25, size=(2, 3, len(record.native_shape)))
    back = record.grid_to_native(record.native_to_grid_points(points))
    np.testing.assert_allclose(back, points, atol=1e-6)
