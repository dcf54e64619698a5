"""Simulated radiographs: the masks are where the image changed, and the facts say where that is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from radglint.simulation.anatomy_cxr import LungFields, LungTokens, find_lungs, fit_lung_tokens, heart_between
from radglint.simulation.canvas import Canvas, curve, grow, shrink, smooth_noise, stroke
from radglint.simulation.facts import Fact, Side, Size, Zone
from radglint.simulation.radiograph import (
    CONCEPTS,
    FULL_WEIGHTS,
    make_image,
    sample_facts,
    simulate,
    vary_geometry,
)
from radglint.simulation.radiograph_distractors import HARD_DISTRACTORS

_SIDED = [name for name in CONCEPTS if name not in {"cardiomegaly", "endotracheal tube", "interstitial pattern"}]
_DEVICES = {"pacemaker", "central line", "endotracheal tube", "chest tube"}


def _lung(side: str) -> np.ndarray:
    """An egg-shaped lung of a 512 px radiograph."""
    rows, columns = np.mgrid[:512, :512]
    centre = 150 if side == "right" else 365
    return ((rows - 240) / 165) ** 2 + ((columns - centre) / (62 + 0.08 * (rows - 240))) ** 2 < 1


@pytest.fixture(scope="module")
def lungs() -> LungFields:
    """Two lungs and the heart between them."""
    left, right = _lung("left"), _lung("right")
    return LungFields(left=left, right=right, heart=heart_between(left, right))


@pytest.fixture(scope="module")
def radiograph(lungs: LungFields) -> np.ndarray:
    """A plain drawing of a chest with ribs and some grain."""
    rows, _ = np.mgrid[:512, :512]
    image = 0.75 - 0.45 * ndimage.gaussian_filter(lungs.both.astype(np.float32), 4)
    image += 0.04 * np.cos(rows / 7) * lungs.both + 0.01 * smooth_noise((512, 512), 3, np.random.default_rng(0))
    return image.clip(0, 1).astype(np.float32)


def _token_score(mask: np.ndarray) -> np.ndarray:
    """What a backbone with 16 px patches would say of a mask."""
    return 0.3 * (mask.reshape(32, 16, 32, 16).mean((1, 3)) * 2 - 1)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean absolute change, smoothed."""
    return ndimage.gaussian_filter(np.abs(after - before), 1.5)


@pytest.fixture
def no_distractors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep distractors out of the tests that measure change."""
    monkeypatch.setattr("radglint.simulation.radiograph_devices.add_distractors", lambda canvas, rng: None)


@pytest.mark.usefixtures("no_distractors")
@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_image_changes_where_the_mask_says(
    concept: str, seed: int, radiograph: np.ndarray, lungs: LungFields
) -> None:
    """Inside the mask the image changes much more than outside, and the input stays as it was."""
    before = radiograph.copy()
    fact = Fact(concept, "left", "mid", "medium")
    made = simulate(radiograph, lungs, np.random.default_rng(seed), [fact])
    assert made.facts == [fact]
    mask, change = made.masks[0], _changed(radiograph, made.image)
    near = grow(mask, 8)
    assert change[mask].mean() > 4 * change[~near].mean()
    np.testing.assert_array_equal(radiograph, before)
    assert made.image.dtype == np.float32
    assert 0 <= made.image.min() <= made.image.max() <= 1


@pytest.mark.parametrize("concept", _SIDED)
def test_a_left_finding_is_on_the_right_half_of_the_image(
    concept: str, radiograph: np.ndarray, lungs: LungFields
) -> None:
    """The patient's left is the image's right; tubes and leads may cross the midline."""
    sides: tuple[Side, ...] = ("left", "right", "left")
    for seed, side in enumerate(sides):
        fact = Fact(concept, side, "lower", "small")
        mask = simulate(radiograph, lungs, np.random.default_rng(seed), [fact]).masks[0]
        share = mask[:, 257:].mean() / mask.mean() / 2 if side == "left" else mask[:, :257].mean() / mask.mean() / 2
        if concept != "central line":
            assert share > (0.45 if concept in _DEVICES else 0.97), (concept, side)


@pytest.mark.parametrize("zone", ["upper", "mid", "lower"])
def test_a_nodule_lies_in_its_zone(zone: Zone, radiograph: np.ndarray, lungs: LungFields) -> None:
    """The centre of the mask is in the third of the lung that the fact names."""
    for seed in range(5):
        fact = Fact("nodule", "right", zone, "small")
        mask = simulate(radiograph, lungs, np.random.default_rng(seed), [fact]).masks[0]
        row, column = np.argwhere(mask).mean(0).round().astype(int)
        assert grow(lungs.zone("right", zone), 4)[row, column]


@pytest.mark.parametrize("concept", ["nodule", "mass", "consolidation", "pleural effusion", "pneumothorax"])
def test_larger_findings_have_larger_masks(concept: str, radiograph: np.ndarray, lungs: LungFields) -> None:
    """Small, medium and large are ordered on average."""

    def area(size: Size) -> float:
        fact = Fact(concept, "left", None, size)
        made = [simulate(radiograph, lungs, np.random.default_rng(seed), [fact]) for seed in range(4)]
        return float(np.mean([mask.sum() for one in made for mask in one.masks]))

    areas = (area("small"), area("medium"), area("large"))
    assert areas[0] < areas[1] < areas[2]


@pytest.mark.usefixtures("no_distractors")
def test_opacities_are_brighter_and_air_is_darker(radiograph: np.ndarray, lungs: LungFields) -> None:
    """Attenuation adds, a pneumothorax takes away."""
    for concept, sign in (("nodule", 1), ("consolidation", 1), ("pleural effusion", 1), ("pneumothorax", -1)):
        made = simulate(radiograph, lungs, np.random.default_rng(3), [Fact(concept, "left", None, "large")])
        inside = made.masks[0] & shrink(lungs.left, 6)
        assert sign * (made.image - radiograph)[inside].mean() > 0.01, concept


def test_an_enlarged_heart_is_wider(radiograph: np.ndarray, lungs: LungFields) -> None:
    """The warp moves heart and lungs together, and earlier masks too."""
    facts = [Fact("cardiomegaly", size="large")]
    made = simulate(radiograph, lungs, np.random.default_rng(0), facts)
    assert made.lungs.heart.sum(1).max() > 1.15 * lungs.heart.sum(1).max()
    assert made.lungs.left.sum() < lungs.left.sum()


def test_the_same_seed_makes_the_same_image(radiograph: np.ndarray, lungs: LungFields) -> None:
    """Everything random comes from the generator."""
    first, second = (make_image(radiograph, lungs, np.random.default_rng(11)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.facts == second.facts
    assert all((a == b).all() for a, b in zip(first.masks, second.masks, strict=True))


def test_many_images_are_sane(radiograph: np.ndarray, lungs: LungFields) -> None:
    """A mask per fact, none empty, values in range."""
    for seed in range(25):
        made = make_image(radiograph, lungs, np.random.default_rng(seed))
        assert len(made.masks) == len(made.facts) <= 3
        assert all(mask.any() and mask.shape == (512, 512) and mask.dtype == bool for mask in made.masks)
        assert np.isfinite(made.image).all()
        assert 0 <= made.image.min() <= made.image.max() <= 1


def test_no_facts_means_no_findings(radiograph: np.ndarray, lungs: LungFields) -> None:
    """Distractors alone leave facts and masks empty."""
    made = simulate(radiograph, lungs, np.random.default_rng(5), [])
    assert made.facts == []
    assert made.masks == []


def test_a_concept_that_cannot_be_drawn_is_refused(radiograph: np.ndarray, lungs: LungFields) -> None:
    """The message names the concept."""
    with pytest.raises(ValueError, match="emphysema"):
        simulate(radiograph, lungs, np.random.default_rng(0), [Fact("emphysema")])


def test_a_quarter_of_images_is_normal() -> None:
    """And every concept occurs that `nano` was trained on; with full weights, all do."""
    rng = np.random.default_rng(0)
    drawn = [sample_facts(rng) for _ in range(1500)]
    assert 0.2 < np.mean([not facts for facts in drawn]) < 0.3
    assert {fact.concept for facts in drawn for fact in facts} == set(CONCEPTS) - {"rib fracture"}
    full = [sample_facts(rng, FULL_WEIGHTS) for _ in range(1500)]
    assert {fact.concept for facts in full for fact in facts} == set(CONCEPTS)


def test_geometry_moves_image_and_lungs_together(radiograph: np.ndarray, lungs: LungFields) -> None:
    """After the move the lungs are still the dark regions, and left is still left."""
    for seed in range(3):
        image, moved = vary_geometry(radiograph, lungs, np.random.default_rng(seed))
        core = shrink(moved.both, 8)
        assert image[core].max() < 0.5
        assert np.nonzero(moved.left)[1].mean() > np.nonzero(moved.right)[1].mean() + 100


def test_lungs_are_found_from_tokens(radiograph: np.ndarray, lungs: LungFields) -> None:
    """A coarse score is refined to the edges of the image."""
    score = _token_score(lungs.both)
    found = find_lungs(radiograph, score)
    assert found is not None
    for mine, true in ((found.left, lungs.left), (found.right, lungs.right)):
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.93


def test_bad_lungs_are_refused(radiograph: np.ndarray, lungs: LungFields) -> None:
    """One lung, no lung and lungs in the wrong place give None."""
    for mask in (lungs.left, np.zeros_like(lungs.left), lungs.both.T):
        assert find_lungs(radiograph, _token_score(mask)) is None


def test_the_lung_cluster_is_the_one_where_lungs_lie(lungs: LungFields) -> None:
    """Clusters of made-up features: the one inside the lungs is chosen, and scores above 0 there."""
    rng = np.random.default_rng(0)
    kinds = lungs.both[::16, ::16].astype(int) + 2 * (np.arange(32) > 24)[:, None]
    features = np.eye(6)[kinds][None].repeat(4, 0) + rng.normal(0, 0.05, (4, 32, 32, 6))
    tokens = fit_lung_tokens(features.astype(np.float32), clusters=4)
    assert isinstance(tokens, LungTokens)
    inside = (kinds == 1)[None].repeat(4, 0)
    score = tokens.score(features)
    assert (score[inside] > 0).mean() > 0.9 or (score[inside].mean() > score[~inside].mean() + 0.2)


def test_zones_part_the_lung(lungs: LungFields) -> None:
    """The thirds are disjoint and make the whole; the angle is low and lateral."""
    thirds = [lungs.zone("left", zone) for zone in ("upper", "mid", "lower")]
    np.testing.assert_array_equal(np.sum(thirds, axis=0), lungs.left.astype(int))
    row, column = lungs.costophrenic_angle("left")
    assert row > 330
    assert column > 365
    assert abs(lungs.midline_px - 257) < 8


def test_a_curve_passes_through_its_points() -> None:
    """And a stroke covers it."""
    points = [(10.0, 10.0), (40.0, 60.0), (90.0, 30.0)]
    path = curve(points, count=201)
    for point in points:
        assert np.abs(path - point).sum(1).min() < 0.5
    assert stroke((100, 100), path, 3)[40, 60] > 0.9


def test_twins_share_the_body_and_not_the_findings(radiograph: np.ndarray, lungs: LungFields) -> None:
    """Another painter leaves geometry and exposure as they are: most of the picture is the same, to the bit."""
    first, second = (
        make_image(radiograph, lungs, np.random.default_rng(3), np.random.default_rng(painter)) for painter in (1, 2)
    )
    assert first.facts != second.facts
    assert (first.image == second.image).mean() > 0.3


def test_a_broken_rib_is_where_the_rib_is(radiograph: np.ndarray, lungs: LungFields) -> None:
    """One bright slanting band: the break lies on it, and steps it; nothing changes elsewhere."""
    rows, columns = np.mgrid[:512, :512]
    rib = np.exp(-(((rows - 200 - 0.4 * (columns - 365)) / 6) ** 2)).astype(np.float32)
    picture = (radiograph + 0.15 * rib * lungs.left).clip(0, 1)
    for seed in range(4):
        made = simulate(picture, lungs, np.random.default_rng(seed), [Fact("rib fracture", "left")])
        row, column = np.argwhere(made.masks[0]).mean(0)
        assert abs(row - 200 - 0.4 * (column - 365)) < 8
        assert made.contrasts[0] > 0.01


def test_hard_distractors_change_the_image_and_no_fact(radiograph: np.ndarray, lungs: LungFields) -> None:
    """They are named when drawn, and none is a finding."""
    for seed in range(6):
        plain, hard = (simulate(radiograph, lungs, np.random.default_rng(seed), [], hard=h) for h in (False, True))
        assert hard.facts == []
        assert plain.distractors == []
        assert bool(hard.distractors) == bool(np.abs(hard.image - plain.image).max() > 0.01)


@pytest.mark.parametrize("name", HARD_DISTRACTORS)
def test_a_hard_distractor_can_be_seen_where_it_belongs(name: str, radiograph: np.ndarray, lungs: LungFields) -> None:
    """Those that look like a nodule lie outside the lungs, or beside the hilum."""
    for seed in range(3):
        canvas = Canvas(radiograph.copy(), lungs)
        HARD_DISTRACTORS[name][1](canvas, np.random.default_rng(seed))
        changed = np.abs(canvas.image - radiograph) > 0.015
        assert changed.sum() > 10
        if "outside" in name:
            assert (changed & lungs.both).sum() < 0.3 * changed.sum()


def test_a_skin_fold_runs_out_of_the_lung_and_keeps_the_vessels(radiograph: np.ndarray, lungs: LungFields) -> None:
    """A pneumothorax line does neither."""
    canvas = Canvas(radiograph.copy(), lungs)
    HARD_DISTRACTORS["skin fold"][1](canvas, np.random.default_rng(2))
    change = np.abs(canvas.image - radiograph)
    below = np.flatnonzero(lungs.both.any(1))[-1] + 4
    assert change[below:].max() > 0.008
    fine = [image - ndimage.gaussian_filter(image, 3) for image in (radiograph, canvas.image)]
    inside = lungs.both & (change > 0.02)
    assert np.corrcoef(fine[0][inside], fine[1][inside])[0, 1] > 0.6
