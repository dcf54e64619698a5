"""Overlay pictures: sides, aspect, windows, and that nothing is coloured where nothing is marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from findings_phantom import ORIENTATIONS, SHAPE, answer, corner, ct_affine, ct_image, radiograph, upper_right
from radglint import display, render
from radglint.errors import OutputError


def orange(picture: Image.Image) -> np.ndarray:
    """Rows and columns of pixels that are clearly coloured in the mask's hue."""
    rgb = np.asarray(picture.convert("RGB")).astype(int)
    return np.argwhere((rgb[..., 0] - rgb[..., 2] > 60) & (rgb[..., 0] > rgb[..., 1]))


def half(picture: Image.Image) -> tuple[str, str]:
    row, column = orange(picture).mean(axis=0)
    return "upper" if row < picture.height / 2 else "lower", "left" if column < picture.width / 2 else "right"


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_the_patients_left_is_on_the_right_in_every_orientation(order: Any, signs: Any) -> None:
    image = ct_image(ct_affine(order, signs, tilt_deg=6))
    finding = answer(image, corner(image))
    expected = {"axial": ("upper", "right"), "coronal": ("lower", "right"), "sagittal": ("lower", "left")}
    letters = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
    for view in render.overlay_views(finding):
        panel = render.render_panel(finding, view, display.LUNG, render.fit(view, 200))
        assert half(panel) == expected[view.name], view
        assert view.letters == letters[view.name]


def test_panels_keep_millimetres() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    views = [display.ct_view(image, name) for name in ("axial", "coronal", "sagittal")]
    depth, height, width = (n * mm for n, mm in zip(SHAPE, (3.0, 2.0, 2.5), strict=True))
    for view, extent in zip(views, ((width, height), (width, depth), (height, depth)), strict=True):
        size = render.panel_size(view, views)
        assert size[0] / size[1] == pytest.approx(extent[0] / extent[1], rel=0.02)
        assert size[0] / extent[0] == pytest.approx(render.PANEL_PX / width, rel=0.02)


def test_radiograph_overlay_marks_the_right_place(tmp_path: Path) -> None:
    image = radiograph()
    path = answer(image, upper_right(image)).save_overlay(tmp_path / "o.png")
    with Image.open(path) as picture:
        shown = picture.crop((render.MARGIN_PX, render.MARGIN_PX, render.MARGIN_PX + 900, render.MARGIN_PX + 600))
    rows, columns = orange(shown).T
    assert (rows.min() + rows.max()) / 2 / 600 == pytest.approx(9 / 40, abs=0.02)
    assert (columns.min() + columns.max()) / 2 / 900 == pytest.approx(48 / 60, abs=0.02)


@pytest.mark.parametrize("changes", [{"query": "no nodule"}, {"in_scope": False}, {"probability": 0.2}])
def test_nothing_is_coloured_when_nothing_is_marked(changes: Any) -> None:
    for image in (radiograph(), ct_image(ct_affine((2, 1, 0), (1, 1, 1)))):
        where = upper_right(image) if image.affine is None else corner(image)
        picture = render.render_overlay(answer(image, where, **changes))
        assert len(orange(picture)) == 0
        assert np.asarray(picture)[: picture.height // 2].std() > 5


def test_unseen_places_are_hatched_and_named() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, 1, 1)))
    where = np.zeros(image.shape, bool)
    seen, cut = answer(image, where), answer(image, where, unseen=4)
    view = display.ct_view(image, "coronal")
    panels = [np.asarray(render.render_panel(f, view, display.LUNG, (200, 200))).astype(int) for f in (seen, cut)]
    changed = np.argwhere((panels[0] != panels[1]).any(axis=-1))[:, 0]
    assert changed.size > 0
    assert changed.max() <= 200 * 4 / 18 + 1
    assert render.has_unseen(cut, [view])
    assert not render.has_unseen(seen, [view])


def test_views_without_a_peak_are_in_the_middle_and_with_one_through_it() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, 1, 1)))
    assert [v.index for v in render.overlay_views(answer(image, corner(image), probability=0.1))] == [9, 11, 13]
    finding = answer(image, corner(image))
    assert finding.peak is not None
    assert tuple(v.index for v in render.overlay_views(finding)) == finding.peak.index


def test_oblique_is_said_from_ten_degrees_on() -> None:
    tilted = {
        deg: display.is_oblique(ct_image(ct_affine((2, 1, 0), (1, 1, 1), tilt_deg=deg))) for deg in (0, 9.5, 10.5)
    }
    assert tilted == {0: False, 9.5: False, 10.5: True}


def test_windows_follow_the_words() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, 1, 1)))
    names = {p: display.window_for(p, image).name for p in ("nodule", "left pleural effusion", "rib fracture")}
    assert names == {"nodule": "lung", "left pleural effusion": "soft tissue", "rib fracture": "bone"}
    assert display.window_for("rib fracture", radiograph()) is display.DISPLAY
    grey = display.LUNG.to_grey(np.array([-2000.0, -1350.0, -600.0, 150.0, 3000.0]))
    assert grey.tolist() == [0, 0, 128, 255, 255]
    assert display.LUNG.label == "lung window W 1500 L -600 HU"


def test_boxes_and_peak_are_shown_where_the_mask_is() -> None:
    image = ct_image(ct_affine((1, 0, 2), (-1, 1, -1)))
    finding = answer(image, corner(image))
    for view in render.overlay_views(finding):
        mask = np.argwhere(render.view_mask(finding, view.probability(finding)))
        edges = view.shown_box(finding.boxes[0])
        assert edges is not None
        assert edges[:2] == tuple(mask.min(axis=0) - 0.5)
        assert edges[2:] == tuple(mask.max(axis=0) + 0.5)
        assert finding.peak is not None
        row, column = view.shown_position(finding.peak.index)
        assert [int(row), int(column)] in mask.tolist()
    elsewhere = display.ct_view(image, "axial", 0 if image.affine[2, 2] > 0 else SHAPE[2])  # type: ignore[index]
    assert elsewhere.shown_box((5, 5, 5, 6, 6, 6)) is None


def test_a_tiny_mask_does_not_vanish_in_a_small_picture() -> None:
    mask = np.zeros((2000, 1500), bool)
    mask[1000, 700] = True
    assert np.asarray(render.mask_layer(mask, (675, 900))).any()
    assert not np.asarray(render.mask_layer(np.zeros_like(mask), (675, 900))).any()


def test_contour_is_the_inner_edge() -> None:
    layer = Image.fromarray(np.pad(np.full((5, 5), 255, np.uint8), 3))
    expected = np.pad(np.pad(np.zeros((3, 3), int), 1, constant_values=255), 3)
    assert (np.asarray(render.contour(layer)) == expected).all()


def test_colour_scale_is_even_in_lightness_and_inside_srgb() -> None:
    scale = display.colour_scale()
    assert scale.shape == (256, 3)
    linear = np.where((c := scale / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_lms = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                       [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    lightness = np.cbrt(linear @ to_lms.T) @ np.array([0.2104542553, 0.7936177850, -0.0040720468])
    np.testing.assert_allclose(lightness, np.linspace(0.22, 0.95, 256), atol=0.006)


@pytest.mark.parametrize(
    "query", ["nodule", "x" * 1500, "\u80ba\u7ed3\u8282 \U0001fac1 nodule", "<b>nodule</b> \u0645"]
)
def test_any_query_fits_the_caption(query: str) -> None:
    image = radiograph(30, 900)
    picture = render.render_overlay(answer(image, np.zeros(image.shape, bool), query))
    assert picture.width <= 1000


def test_overlay_needs_a_png_name(tmp_path: Path) -> None:
    image = radiograph()
    with pytest.raises(OutputError, match=r"\.png"):
        answer(image, upper_right(image)).save_overlay(tmp_path / "o.jpg")
    assert list(tmp_path.iterdir()) == []
