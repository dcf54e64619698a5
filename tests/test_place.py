"""Where a query wants its finding, and where a patch lies."""

import numpy as np
import pytest
import torch

from radglint.place import PLACES, Place, PlaceField, heart_logits, place_of, place_prior


@pytest.mark.parametrize(
    ("phrase", "side", "zone"),
    [
        ("nodule", None, None),
        ("mass in the left upper lobe", "left", "upper"),
        ("right-sided pleural effusion", "right", None),
        ("RLL consolidation", "right", "lower"),
        ("bibasilar atelectasis", "bilateral", "lower"),
        ("opacities in both lungs", "bilateral", None),
        ("left and right effusions", "bilateral", None),
        ("lingular opacity", "left", "mid"),
        ("enlarged left ventricle", None, None),
        ("upper and lower zone haze", None, None),
    ],
)
def test_a_phrase_names_its_place(phrase: str, side: str | None, zone: str | None) -> None:
    assert place_of(phrase, in_lungs=True) == Place(True, side, zone)  # type: ignore[arg-type]


def field_of(lung: np.ndarray, left: np.ndarray, depth: int = 1) -> torch.Tensor:
    """The field of tokens whose two channels are the logits of lung and of left: `places depth rows columns`."""
    rows, columns = lung.shape[-2:]
    tokens = torch.tensor(np.stack([lung, left], axis=-1), dtype=torch.float32).reshape(1, depth, rows * columns, 2)
    place = PlaceField(2)
    place.head.weight.zero_()
    place.head.bias.zero_()
    place.head.weight[0, 0] = place.head.weight[1, 1] = 1
    return place(tokens, (rows, columns))[0].reshape(len(PLACES), depth, rows, columns)


def two_lungs() -> tuple[np.ndarray, np.ndarray]:
    """Lungs on rows 6 to 23 of 30, the patient's left on the picture's right."""
    lung = np.full((30, 12), -20.0)
    lung[6:24, 1:5] = lung[6:24, 7:11] = 20.0
    left = np.where(np.arange(12) >= 6, 20.0, -20.0) * np.ones((30, 1))
    return lung, left


def test_a_radiograph_has_lungs_sides_and_thirds() -> None:
    places = dict(zip(PLACES, field_of(*two_lungs()).exp()[:, 0].numpy(), strict=True))
    assert places["lung"][10, 2] > 0.99 > 0.01 > places["lung"][2, 2]
    assert places["left"][10, 9] > 0.99 > 0.01 > places["left"][10, 2]
    np.testing.assert_allclose(places["left"] + places["right"], 1, atol=1e-6)
    for row, zone in ((8, "upper"), (14, "mid"), (21, "lower")):
        assert max(("upper", "mid", "lower"), key=lambda z: places[z][row, 2]) == zone
        assert places[zone][row, 2] > 0.8
    assert places["lower"][28, 2] > 0.99  # below the lungs is not above them


def test_the_heart_of_a_radiograph_lies_between_the_lungs_from_their_middle_down() -> None:
    field = field_of(*two_lungs())
    heart = torch.sigmoid(heart_logits(field.flatten(1)[None]))[0].reshape(30, 12).numpy()
    np.testing.assert_allclose(heart, field[PLACES.index("heart"), 0].exp().numpy(), atol=2e-6)
    expected = np.zeros((30, 12), dtype=bool)
    expected[14:24, 5:7] = True  # rows 6 to 23 are lung
    np.testing.assert_array_equal(heart > 0.5, expected)


def test_one_lung_alone_leaves_no_heart() -> None:
    lung, left = two_lungs()
    lung[:, 7:11] = -20.0  # opaque or not there
    assert field_of(lung, left)[PLACES.index("heart")].exp().max() < 1e-5


def test_the_thirds_of_a_volume_run_along_its_slices_from_the_feet_up() -> None:
    lung = np.full((30, 4, 6), -20.0)
    lung[6:24] = 20.0
    places = dict(zip(PLACES, field_of(lung, lung * 0, depth=30).exp().numpy(), strict=True))
    assert places["lower"][8].min() > 0.8
    assert places["mid"][15].min() > 0.8
    assert places["upper"][22].min() > 0.8


def test_the_prior_is_its_naive_form() -> None:
    field = torch.log(torch.rand(2, len(PLACES), 7, generator=torch.Generator().manual_seed(0)))
    places = [
        Place(),
        Place(True),
        Place(True, "left", "upper"),
        Place(False, "right", "lower"),
        Place(True, "bilateral"),
    ]
    wanted = [(), ("lung",), ("lung", "left", "upper"), ("right",), ("lung",)]
    prior = place_prior(field, places)
    assert prior.shape == (5, 2, 7)
    for row, names in zip(prior, wanted, strict=True):
        expected = sum((field[:, PLACES.index(name)] for name in names), torch.zeros(2, 7))
        torch.testing.assert_close(row, expected)


def test_another_grid_has_the_same_field() -> None:
    lung, left = two_lungs()
    fine = field_of(np.repeat(np.repeat(lung, 2, 0), 2, 1), np.repeat(np.repeat(left, 2, 0), 2, 1)).exp()
    coarse = field_of(lung, left).exp()
    np.testing.assert_allclose(fine[:3, :, ::2, ::2], coarse[:3], atol=1e-6)
    np.testing.assert_allclose(fine[3:, :, ::2, ::2], coarse[3:], atol=0.25)  # borders of thirds move by half a row


def test_the_field_is_not_trained_and_has_no_gradient() -> None:
    field = PlaceField(4)
    assert not any(p.requires_grad for p in field.parameters())
    assert not field(torch.randn(2, 1, 6, 4, requires_grad=True), (2, 3)).requires_grad
