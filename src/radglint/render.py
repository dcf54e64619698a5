"""Pictures to look at: one finding drawn on its image, a radiograph whole or a CT as three views through the peak."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from radglint.display import MASK_RGB, View, Window, ct_view, is_oblique, radiograph_view, window_for

if TYPE_CHECKING:
    from radglint.finding import Finding

LONG_SIDE_PX = 900
PANEL_PX = 440
MARGIN_PX = 12
FILL_OPACITY = 0.28
BACKGROUND = (13, 17, 23)
TEXT_RGB = (230, 237, 243)
QUIET_RGB = (139, 148, 158)
HATCH_STEP_PX = 9

Size = tuple[int, int]


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """PIL's own scalable font."""
    return ImageFont.load_default(size)


def render_overlay(finding: Finding) -> Image.Image:
    """The picture that `Finding.save_overlay` writes.

    Args:
        finding: on a radiograph or a CT.

    Returns:
        RGB: the image in grey with mask, contour, peak and boxes, sides where known, and a caption below.
    """
    window = window_for(finding.phrase, finding.image)
    views = overlay_views(finding)
    panels = [render_panel(finding, view, window, panel_size(view, views)) for view in views]
    width = sum(p.width for p in panels) + MARGIN_PX * (len(panels) + 1)
    height = max(p.height for p in panels) + 2 * MARGIN_PX
    lines = _caption_lines(finding)
    caption_height = 44 + 22 * len(lines)
    picture = Image.new("RGB", (max(width, 480), height + caption_height), BACKGROUND)
    x = (picture.width - width) // 2 + MARGIN_PX
    for panel in panels:
        picture.paste(panel, (x, MARGIN_PX + (height - 2 * MARGIN_PX - panel.height) // 2))
        x += panel.width + MARGIN_PX
    _draw_caption(picture, height, finding, lines, has_unseen(finding, views))
    return picture


def overlay_views(finding: Finding) -> list[View]:
    """The radiograph itself; of a CT the axial, coronal and sagittal plane through the peak, or through the middle."""
    image = finding.image
    if image.affine is None:
        return [radiograph_view(image)]
    views = []
    for name in ("axial", "coronal", "sagittal"):
        axis = ct_view(image, name).axis or 0
        views.append(ct_view(image, name, None if finding.peak is None else finding.peak.index[axis]))
    return views


def fit(view: View, long_side_px: int) -> Size:
    """Picture size (width, height) of a view with its millimetre aspect and the given longer side."""
    down, along = view.shape[0] * view.pixel_mm[0], view.shape[1] * view.pixel_mm[1]
    scale = long_side_px / max(down, along)
    return max(1, round(along * scale)), max(1, round(down * scale))


def grey_layer(grey: np.ndarray, size: Size) -> Image.Image:
    """A grey plane at picture size, mode L."""
    return Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def mask_layer(mask: np.ndarray, size: Size) -> Image.Image:
    """A mask at picture size, mode L with 0 and 255; a mask that is not empty stays visible however small it gets."""
    shown = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    soft = shown.resize(size, Image.Resampling.BILINEAR)
    level = 128 if np.asarray(soft).max() >= 128 else 1
    return soft.point([255 if value >= level else 0 for value in range(256)])


def contour(layer: Image.Image, width_px: int = 1) -> Image.Image:
    """The inner edge of a mask layer, mode L."""
    padded = Image.new("L", (layer.width + 2 * width_px, layer.height + 2 * width_px))
    padded.paste(layer, (width_px, width_px))
    inner = padded.filter(ImageFilter.MinFilter(2 * width_px + 1))
    return ImageChops.subtract(layer, inner.crop((width_px, width_px, width_px + layer.width, width_px + layer.height)))


def hatch(unseen: np.ndarray, size: Size) -> Image.Image:
    """Diagonal lines where the model saw nothing, mode L."""
    lines = Image.new("L", size)
    draw = ImageDraw.Draw(lines)
    for start in range(-size[1], size[0], HATCH_STEP_PX):
        draw.line((start, size[1], start + size[1], 0), fill=150)
    return ImageChops.multiply(lines, mask_layer(unseen, size))


def has_unseen(finding: Finding, views: list[View]) -> bool:
    """Whether any of the views holds a place that the model did not see."""
    return any(bool(np.isnan(view.probability(finding)).any()) for view in views)


def view_mask(finding: Finding, probability: np.ndarray) -> np.ndarray:
    """The mask in a view, from the probabilities there; empty where `Finding.mask` is."""
    if not finding.is_marked:
        return np.zeros(probability.shape, dtype=bool)
    return probability >= finding.mask_level


def panel_size(view: View, views: list[View]) -> Size:
    """One millimetre has the same length in all panels."""
    if len(views) == 1:
        return fit(view, LONG_SIDE_PX)
    longest = max(s * mm for v in views for s, mm in zip(v.shape, v.pixel_mm, strict=True))
    own = max(s * mm for s, mm in zip(view.shape, view.pixel_mm, strict=True))
    return fit(view, max(8, round(PANEL_PX * own / longest)))


def render_panel(finding: Finding, view: View, window: Window, size: Size) -> Image.Image:
    """One view with its layers and labels.

    Args:
        finding: what is drawn.
        view: which plane.
        window: how values become grey.
        size: (width, height) of the picture in pixels.
    """
    picture = grey_layer(view.grey(finding.image, window), size).convert("RGB")
    probability = view.probability(finding)
    unseen = np.isnan(probability)
    if unseen.any():
        picture.paste(Image.new("RGB", size, QUIET_RGB), mask=hatch(unseen, size))
    layer = mask_layer(view_mask(finding, probability), size)
    colour = Image.new("RGB", size, MASK_RGB)
    picture.paste(colour, mask=layer.point([round(v * FILL_OPACITY) for v in range(256)]))
    picture.paste(colour, mask=contour(layer))
    draw = ImageDraw.Draw(picture)
    _draw_marks(draw, finding, view, size)
    _draw_labels(draw, finding, view, window, size)
    return picture


def _draw_marks(draw: ImageDraw.ImageDraw, finding: Finding, view: View, size: Size) -> None:
    """Boxes as thin lines, the peak as an open cross."""
    scale_y, scale_x = size[1] / view.shape[0], size[0] / view.shape[1]
    for box in finding.boxes:
        edges = view.shown_box(box)
        if edges is not None:
            top, left, bottom, right = ((v + 0.5) * s for v, s in zip(edges, (scale_y, scale_x) * 2, strict=True))
            draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline=(*MASK_RGB, 255), width=1)
    if finding.peak is not None:
        row, column = view.shown_position(finding.peak.index)
        x, y = (column + 0.5) * scale_x, (row + 0.5) * scale_y
        draw_cross(draw, (x, y), ((0, 0, 0), (255, 255, 255)))


def draw_cross(draw: ImageDraw.ImageDraw, at: tuple[float, float], colours: tuple[Any, Any]) -> None:
    """An open cross around a place: outline colour first, then line colour."""
    x, y = at
    for colour, width in zip(colours, (5, 3), strict=True):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            draw.line((x + 6 * dx, y + 6 * dy, x + 14 * dx, y + 14 * dy), fill=colour, width=width)


def _draw_labels(draw: ImageDraw.ImageDraw, finding: Finding, view: View, window: Window, size: Size) -> None:
    """Patient sides at the edges, and what is shown in the corners."""
    width, height = size

    def write(at: tuple[float, float], text: str, anchor: str, points: int) -> None:
        draw.text(at, text, fill=TEXT_RGB, font=font(points), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))

    if view.letters is None:
        return
    left, right, top, bottom = view.letters
    write((6, height / 2), left, "lm", 18)
    write((width - 6, height / 2), right, "rm", 18)
    write((width / 2, 5), top, "mt", 18)
    write((width / 2, height - 5), bottom, "mb", 18)
    oblique = " (oblique)" if is_oblique(finding.image) else ""
    write((6, 5), f"{view.name}{oblique} {view.position}", "lt", 13)
    if view.name == "axial":
        write((6, height - 5), window.label, "lb", 13)


def _caption_lines(finding: Finding) -> list[str]:
    lines = [
        f"probability {finding.probability:.2f}   threshold {finding.threshold_words}   asked as {finding.assertion}"
    ]
    lines += [text for text in (finding.where, finding.remark) if text]
    if finding.image.affine is None:
        lines.append("sides as stored in the file: the pixels do not say which is left")
    return lines


def _draw_caption(picture: Image.Image, top: int, finding: Finding, lines: list[str], unseen: bool) -> None:
    draw = ImageDraw.Draw(picture)
    x, width = MARGIN_PX, picture.width - 2 * MARGIN_PX
    state = finding.verdict
    state_width = draw.textlength(state, font=font(19))
    draw.text((x, top), clip(draw, finding.query, font(19), width - state_width - 24), fill=TEXT_RGB, font=font(19))
    colour = MASK_RGB if finding.is_marked and finding.present else QUIET_RGB
    draw.text((x + width, top), state, fill=colour, font=font(19), anchor="ra")
    legend_width = _draw_legend(draw, x + width, top + 32, finding, unseen)
    for number, line in enumerate(lines):
        room = width - (legend_width + 16 if number == 0 else 0)
        draw.text((x, top + 30 + 22 * number), clip(draw, line, font(15), room), fill=QUIET_RGB, font=font(15))


def _draw_legend(draw: ImageDraw.ImageDraw, right: float, top: int, finding: Finding, unseen: bool) -> float:
    """Swatches from the right edge inwards; returns the width used."""
    x = right
    entries = [("mask", MASK_RGB)] if finding.is_marked else []
    entries += [("hatched: not seen by the model", None)] if unseen else []
    for text, colour in entries:
        x -= draw.textlength(text, font=font(14))
        draw.text((x, top), text, fill=QUIET_RGB, font=font(14))
        x -= 20
        draw.rectangle((x, top + 2, x + 13, top + 15), fill=colour, outline=colour or QUIET_RGB)
        for step in range(0, 13, 4) if colour is None else ():
            draw.line((x + step, top + 15, x + 13, top + 2 + step), fill=QUIET_RGB)
        x -= 16
    return right - x


def clip(draw: ImageDraw.ImageDraw, text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, shortened with an ellipsis until it fits a width in pixels."""
    if draw.textlength(text, font=face) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = draw.textlength(text[:middle] + "\u2026", font=face) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + "\u2026"
