"""The CT simulator on a phantom: sides, HU, masks, determinism; and the anatomy on a real CT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from radglint.errors import GeometryError, ImageError, InputError
from radglint.image import MedicalImage
from radglint.simulation import sentences
from radglint.simulation.anatomy_ct import AIRWAY, HEART, LEFT_LUNG, RIGHT_LUNG, find_anatomy, zone_of_height
from radglint.simulation.ct import CT_CONCEPTS, CtBase, SimulatedVolume, draw_facts, make_base, make_slab, simulate
from radglint.simulation.ct_base import base_from_image, canonical_volume
from radglint.simulation.ct_findings import NODULE_DIAMETER_MM
from radglint.simulation.ct_real import make_lesion, paint_lesion, read_lesions
from radglint.simulation.ct_scene import Lesion, Scene
from radglint.simulation.facts import Fact

SPACING = (4.0, 2.0, 2.0)
OTHER = {"left": RIGHT_LUNG, "right": LEFT_LUNG}


def _ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    parts = zip(grid, centre, radii, strict=True)
    return sum(((g - c) / r) ** 2 for g, c, r in parts) <= 1  # type: ignore[return-value]


def phantom(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A chest of ellipsoids, 56 slices of 120x160 at 4x2x2 mm, with vessels and noise; and the true lung labels."""
    shape = (56, 120, 160)
    volume = np.full(shape, -1000.0)
    volume[_ellipsoid(shape, (28, 60, 80), (200, 50, 72))] = 40
    truth = np.zeros(shape, np.uint8)
    for label, column in ((RIGHT_LUNG, 49), (LEFT_LUNG, 111)):
        truth[_ellipsoid(shape, (28, 60, column), (25, 36, 24))] = label
    volume[truth > 0] = -860
    rng = np.random.default_rng(seed)
    for _ in range(60):
        k, row = rng.integers(8, 48), rng.integers(35, 85)
        column = rng.choice([rng.integers(35, 62), rng.integers(98, 124)])
        volume[k - 1 : k + 2, row : row + 2, column : column + 2] = 0
    volume[30:, 56:63, 77:84] = -990
    return (volume + rng.normal(0, 10, shape)).astype(np.float32), truth


@pytest.fixture(scope="module")
def base() -> CtBase:
    """The phantom as a base, its lowest ten slices left out."""
    excluded = np.zeros(56, bool)
    excluded[:10] = True
    return make_base(phantom()[0], SPACING, excluded=excluded, name="phantom")


def _paint(base: CtBase, fact: Fact, seed: int = 0) -> SimulatedVolume:
    return simulate(base.volume_hu, base.anatomy, [fact], np.random.default_rng(seed), noise=base.noise)


def test_anatomy_finds_lungs_by_side_and_the_trachea(base: CtBase) -> None:
    _, truth = phantom()
    for label in (RIGHT_LUNG, LEFT_LUNG):
        found, wanted = base.anatomy.labels == label, truth == label
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.93
    assert (base.anatomy.labels[40, 57:62, 78:83] == AIRWAY).all()
    assert [base.anatomy.zone(k) for k in (8, 28, 48)] == ["lower", "mid", "upper"]
    assert 6 < base.noise.std_hu < 14


def test_a_room_is_the_lung_and_two_pixels_around_in_its_slice(base: CtBase) -> None:
    """Whatever is lighter than -150 HU there and is no other lung; at the edges of the volume too."""
    labels = np.zeros((3, 9, 8), np.uint8)
    labels[1, 0, 0], labels[1, 5, 4], labels[1, 5, 6] = RIGHT_LUNG, RIGHT_LUNG, LEFT_LUNG
    hu = np.full(labels.shape, -800, np.float32)
    hu[1, 4, 4] = 40
    scene = Scene(hu, labels, np.zeros(3), (5.0, 2.0, 2.0), base.noise, np.random.default_rng(0))
    around = ndimage.binary_dilation(labels == RIGHT_LUNG, np.ones((1, 5, 5), bool))
    expected = around & (hu < -150) & (labels != LEFT_LUNG)
    np.testing.assert_array_equal(scene.room("right"), expected)
    assert expected.sum() == 9 + 25 - 1 - 1


def test_zone_of_height_cuts_at_the_thirds() -> None:
    zones = [zone_of_height(h) for h in (-0.1, 0.33, 0.34, 0.66, 0.67, 1.2)]
    assert zones == ["lower", "lower", "mid", "mid", "upper", "upper"]


def test_anatomy_refuses_a_volume_without_chest() -> None:
    with pytest.raises(ImageError, match="no body"):
        find_anatomy(np.full((8, 40, 40), -1000, np.float32), SPACING)
    with pytest.raises(ImageError, match="no lungs"):
        find_anatomy(np.full((8, 40, 40), 30, np.float32), SPACING)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("concept", [c for c in CT_CONCEPTS if c != "rib fracture"])  # this phantom has no ribs
def test_a_finding_stays_on_its_side_and_is_seen(base: CtBase, concept: str, side: str) -> None:
    made = _paint(base, Fact(concept, side, "mid", "medium"), seed=3)  # type: ignore[arg-type]
    (mask,) = made.masks
    change = np.abs(made.volume_hu - np.clip(base.volume_hu, -1024, 3071))
    assert made.facts[0].concept == concept
    assert mask.sum() > 8
    assert change[base.anatomy.labels == OTHER[side]].max() == 0
    assert change[mask].mean() > 5 * change[~mask].mean()
    lung = base.anatomy.lung(side)
    assert (mask & lung).sum() > 0.7 * mask.sum()


@pytest.mark.parametrize(
    ("concept", "low", "high"),
    [("pleural effusion", -15, 45), ("pneumothorax", -1024, -940), ("mass", -90, 90), ("calcified nodule", 120, 950)],
)
def test_tissue_has_the_hu_of_its_kind(base: CtBase, concept: str, low: float, high: float) -> None:
    for seed in range(4):
        made = _paint(base, Fact(concept, "left", None, "large"), seed)  # type: ignore[arg-type]
        assert low < np.median(made.volume_hu[made.masks[0]]) < high


def test_fluid_lies_behind_and_air_in_front(base: CtBase) -> None:
    rows = {}
    for concept in ("pleural effusion", "pneumothorax"):
        made = _paint(base, Fact(concept, "right", None, "medium"))
        rows[concept] = np.nonzero(made.masks[0])[1].mean()
    assert rows["pleural effusion"] > 75
    assert rows["pneumothorax"] < 45


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_nodule_volume_fits_its_size_word(base: CtBase, size: str) -> None:
    low, high = NODULE_DIAMETER_MM[size]
    volumes = []
    for seed in range(6):
        made = _paint(base, Fact("nodule", "left", "mid", size), seed)  # type: ignore[arg-type]
        volumes += [mask.sum() * np.prod(SPACING) for mask in made.masks]
    assert len(volumes) >= (2 if size == "small" else 4)
    assert np.pi / 6 * (0.7 * low) ** 3 < np.median(volumes) < np.pi / 6 * (1.4 * high) ** 3


def test_simulate_leaves_its_input_alone_and_skips_what_does_not_fit(base: CtBase) -> None:
    before = base.volume_hu.copy()
    _paint(base, Fact("mass", "left", "upper", "large"))
    assert (base.volume_hu == before).all()
    no_left = base.anatomy.labels.copy()
    no_left[no_left == LEFT_LUNG] = 1
    anatomy = type(base.anatomy)(no_left, SPACING, base.anatomy.lung_bottom, base.anatomy.lung_top)
    made = simulate(before, anatomy, [Fact("nodule", "left")], np.random.default_rng(0))
    assert made.facts == ()
    assert made.masks == ()


def test_a_later_fluid_cuts_the_earlier_mask(base: CtBase) -> None:
    facts = [Fact("pleural effusion", "left", None, "large"), Fact("consolidation", "left", "lower", "large")]
    made = simulate(base.volume_hu, base.anatomy, facts, np.random.default_rng(1))
    if len(made.masks) == 2:
        assert not (made.masks[0] & made.masks[1]).any()


def test_unknown_concept_is_refused(base: CtBase) -> None:
    with pytest.raises(InputError, match="cannot simulate 'pacemaker'"):
        _paint(base, Fact("pacemaker", "left"))


def test_slab_is_decided_by_its_seed(base: CtBase) -> None:
    first, again, other = (make_slab(base, np.random.default_rng(s), 6) for s in (5, 5, 6))
    assert (first.volume_hu == again.volume_hu).all()
    assert first.facts == again.facts
    assert all((a == b).all() for a, b in zip(first.masks, again.masks, strict=True))
    assert (first.volume_hu != other.volume_hu).any()


def test_slabs_are_sound_and_can_be_said(base: CtBase) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        made = make_slab(base, rng, 5)
        assert made.volume_hu.shape == made.labels.shape == (5, 120, 160)
        assert made.volume_hu.dtype == np.float32
        assert np.isfinite(made.volume_hu).all()
        assert made.volume_hu.min() >= -1024
        assert len(made.facts) == len(made.masks) <= 3
        assert all(m.dtype == bool and m.shape == made.volume_hu.shape and m.any() for m in made.masks)
        assert all(sentences.write(fact, rng) for fact in made.facts)


def test_excluded_slices_are_never_touched(base: CtBase) -> None:
    marked = base.volume_hu.copy()
    marked[base.excluded] = 3000
    spoiled = CtBase(marked, base.anatomy, base.noise, base.excluded, "spoiled")
    for seed in range(10):
        made = make_slab(spoiled, np.random.default_rng(seed), 4, facts=[])
        assert made.volume_hu.max() < 1000
    everything = CtBase(marked, base.anatomy, base.noise, np.ones(56, bool), "all out")
    with pytest.raises(InputError, match="all out: no 4 slices"):
        make_slab(everything, np.random.default_rng(0), 4)


def test_a_quarter_of_slabs_is_normal() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([len(draw_facts(rng, 0.5)) for _ in range(2000)])
    assert abs((counts == 0).mean() - 0.25) < 0.03
    assert counts.max() == 3


def test_exclusion_needs_one_value_per_slice() -> None:
    with pytest.raises(InputError, match="one value per slice"):
        make_base(phantom()[0], SPACING, excluded=np.zeros(3, bool))


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_canonical_volume_does_not_depend_on_the_stored_orientation(flips: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(6, 8, 10)).astype(np.float32)
    affine = np.array([[0, 0, -1.0, 5], [0, -1.0, 0, 7], [2.5, 0, 0, -40], [0, 0, 0, 1]])
    plain, z = canonical_volume(MedicalImage(array, "CT", "HU", (2.5, 1, 1), affine), shape_px=(8, 10))
    assert z == -40
    assert np.allclose(plain, array, atol=1e-5)
    turned = affine.copy()
    for axis, flip in enumerate(flips):
        if flip < 0:
            turned[:3, 3] += turned[:3, axis] * (array.shape[axis] - 1)
            turned[:3, axis] *= -1
    stored = np.ascontiguousarray(array[tuple(slice(None, None, f) for f in flips)].transpose(2, 0, 1))
    image = MedicalImage(stored, "CT", "HU", (1, 2.5, 1), turned[:, [2, 0, 1, 3]])
    again, z = canonical_volume(image, shape_px=(8, 10))
    assert z == -40
    assert np.allclose(again, plain, atol=1e-5)


def test_canonical_volume_refuses_oblique_slices() -> None:
    turn = np.deg2rad(35)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    image = MedicalImage(np.zeros((4, 4, 4), np.float32), "CT", "HU", (1, 1, 1), affine[:, [2, 1, 0, 3]])
    with pytest.raises(GeometryError, match="oblique"):
        canonical_volume(image)


def test_diseased_heights_become_excluded_slices() -> None:
    volume, _ = phantom()
    affine = np.array([[0, 0, -2.0, 160], [0, -2.0, 0, 0], [4.0, 0, 0, -100], [0, 0, 0, 1]])
    image = MedicalImage(volume, "CT", "HU", SPACING, affine, path="phantom")
    made = base_from_image(image, diseased_z_mm=[(-60, -40)], margin_mm=8, step_mm=4, shape_px=(240, 320))
    assert np.nonzero(made.excluded)[0].tolist() == list(range(8, 18))


def test_anatomy_of_a_real_ct(shared_data: Path) -> None:
    from radglint.reading import read_image

    image = read_image(shared_data / "ct_chest" / "lidc_0001" / "ct.nii.gz")
    volume, _ = canonical_volume(image, step_mm=5.0)
    anatomy = find_anatomy(volume, (5.0, 1.0, 1.0))
    litres = {k: (anatomy.labels == k).sum() * 5e-6 for k in (RIGHT_LUNG, LEFT_LUNG, HEART, AIRWAY)}
    assert 1.2 < litres[RIGHT_LUNG] < 3
    assert 1.0 < litres[LEFT_LUNG] < 3
    assert 0.2 < litres[HEART] < 1.2
    assert 0.01 < litres[AIRWAY] < 0.15
    assert np.nonzero(anatomy.labels == RIGHT_LUNG)[2].mean() < np.nonzero(anatomy.labels == LEFT_LUNG)[2].mean()


def test_twins_share_the_body_and_not_the_findings(base: CtBase) -> None:
    """Where neither is painted, two painters give the same slab."""
    first, second = (
        make_slab(base, np.random.default_rng(4), 4, facts=[fact], painter=np.random.default_rng(k))
        for k, fact in enumerate((Fact("mass", "left"), Fact("mass", "right")))
    )
    assert first.facts != second.facts
    touched = ndimage.binary_dilation(np.any([*first.masks, *second.masks], axis=0), iterations=25)
    assert (first.labels == second.labels).all()
    np.testing.assert_allclose(first.volume_hu[~touched], second.volume_hu[~touched], atol=1e-3)


def _lesion(diameter_mm: float = 12.0, hu: float = 60.0) -> Lesion:
    """A ball on a fine grid, brought to the phantom's spacing; its surroundings are lung of -600 HU."""
    fine = (1.0, 0.5, 0.5)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip((33, 65, 65), fine, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    inside = np.sqrt(sum(axis**2 for axis in grid)) <= diameter_mm / 2
    return make_lesion(np.where(inside, hu, -600.0), inside, fine, SPACING, diameter_mm, calcified=False)


def test_a_resampled_lesion_keeps_its_volume() -> None:
    lesion = _lesion(14.0)
    volume = lesion.inside.sum() * np.prod(SPACING)
    assert volume == pytest.approx(np.pi / 6 * 14**3, rel=0.2)
    assert lesion.share[lesion.inside].min() == 1
    assert lesion.share.min() == 0


def test_a_real_lesion_brings_its_hu_and_its_outline(base: CtBase) -> None:
    scene = Scene(
        base.volume_hu.copy(), base.anatomy.labels, np.linspace(0, 1, len(base.volume_hu)), SPACING, base.noise,
        np.random.default_rng(0),
    )  # fmt: skip
    centre = np.argwhere(scene.lung("left")).mean(axis=0)
    mask = paint_lesion(scene, _lesion(), centre, scene.room("left"))
    assert mask is not None
    assert np.abs(np.argwhere(mask).mean(axis=0) - centre).max() < 1.5
    assert np.median(scene.hu[mask]) == pytest.approx(60, abs=15)
    assert (scene.hu[~scene.room("left")] == base.volume_hu[~scene.room("left")]).all()
    assert paint_lesion(scene, _lesion(), np.array([-99.0, 0, 0]), scene.room("left")) is None


def test_slabs_take_real_lesions_of_the_right_size(base: CtBase) -> None:
    """Every second lesion or more is the given one: its HU of 300 is no made nodule's."""
    lesions = [_lesion(12.0, 300.0), _lesion(40.0, 900.0)]
    hits = 0
    for seed in range(12):
        facts = [Fact("nodule", "left", None, "medium")]
        made = make_slab(base, np.random.default_rng(seed), 5, facts=facts, lesions=lesions)
        hits += sum(float(np.median(made.volume_hu[mask])) > 200 for mask in made.masks)
    assert 4 <= hits <= 11


def test_slabs_off_the_lungs_come_from_anywhere(base: CtBase) -> None:
    """In a scan whose upper half has no lung, only slabs from anywhere show none."""
    labels = base.anatomy.labels.copy()
    labels[len(labels) // 2 :] = 1
    cut = replace(base, anatomy=replace(base.anatomy, labels=labels))
    shown = {True: [], False: []}
    for with_lung, found in shown.items():
        for seed in range(20):
            slab = make_slab(cut, np.random.default_rng(seed), 3, facts=[], with_lung=with_lung)
            found.append(bool((slab.labels == LEFT_LUNG).any()))
    assert all(shown[True])
    assert 0 < sum(shown[False]) < 20


def test_lidc_crops_are_read_with_their_axes(tmp_path: Path) -> None:
    """Stored x, y, slice; a bright column along the slices stays one."""
    hu = np.full((8, 9, 4), -800, np.int16)
    hu[2, 5, :] = 100
    np.savez(tmp_path / "lidc_nodules.npz", **{"a/ct": hu, "a/mask": (hu > 0).astype(np.uint8)})
    record = {"id": "a", "patient_id": "P1", "spacing": [1.0, 1.0, 2.0], "diameter_mm": 7.0, "calcification": "Solid"}
    (tmp_path / "records.json").write_text(json.dumps([record]))
    (lesion,) = read_lesions(tmp_path, (2.0, 1.0, 1.0))
    assert lesion.hu.shape == (4, 9, 8)
    assert lesion.calcified
    assert (lesion.hu[:, 5, 2] == 100).all()
    assert read_lesions(tmp_path, (2.0, 1.0, 1.0), frozenset({"P1"})) == []
    (tmp_path / "records.json").write_text(json.dumps([record | {"id": "b"}]))
    with pytest.raises(InputError, match="no lesions could be read"):
        read_lesions(tmp_path, (2.0, 1.0, 1.0))
    with pytest.raises(InputError, match="outline"):
        make_lesion(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool), SPACING, SPACING, 5.0, calcified=False)
