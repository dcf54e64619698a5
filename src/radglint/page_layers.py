"""The pictures inside the page: grey base layers, mask and heat layers on top, as data URIs.

All layers of a view have the same picture size, so the browser only stacks them. Axial slices are shared by all queries
of a CT; the mask and heat layers of a query exist only for slices where there is something to see.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from radglint.display import (
    DISPLAY,
    LUNG,
    MASK_RGB,
    SOFT,
    View,
    Window,
    colour_scale,
    ct_view,
    radiograph_view,
    window_for,
)
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.render import contour, draw_cross, fit, grey_layer, hatch, mask_layer, overlay_views, view_mask
from radglint.writing import png_bytes

MAX_SLICES = 24
RADIOGRAPH_PX = 900
AXIAL_PX = 560
PLANE_PX = 300
JPEG_QUALITY = 80
# The heat map is smooth (one value per model token), so fewer pixels show the same.
HEAT_PX = 200


def study_layers(findings: Findings) -> dict[str, Any]:
    """Everything the page's script needs to show one image with its answers.

    Args:
        findings: the answers on one image.

    Returns:
        JSON-ready: window names, the shared stack of views (base pictures by window), and for each query its
        mask and heat layers, its own planes, and the slice and window to begin with.
    """
    image = findings.image
    windows = [DISPLAY] if image.affine is None else [LUNG, SOFT]
    views = stack_views(findings)
    size = fit(views[0], RADIOGRAPH_PX if image.affine is None else AXIAL_PX)
    record_probe = findings[0] if len(findings) else None
    return {
        "windows": [window.label for window in windows],
        "size": list(size),
        "stack": _base(findings, views, windows, size, record_probe),
        "queries": [_query(finding, views, windows, size) for finding in findings],
    }


def stack_views(findings: Findings) -> list[View]:
    """The radiograph, or up to 24 axial slices of a CT from the feet up: peaks, marked ones, then an even spread."""
    image = findings.image
    if image.affine is None:
        return [radiograph_view(image)]
    axis = ct_view(image, "axial").axis or 0
    indices = sorted(slice_indices(findings, axis, image.shape[axis]))
    if image.affine[2, axis] < 0:
        indices.reverse()
    return [ct_view(image, "axial", index) for index in indices]


def slice_indices(findings: Sequence[Finding], axis: int, count: int) -> set[int]:
    """Peaks first, then planes through the largest boxes in turn, then an even spread, until there are enough."""
    limit = min(MAX_SLICES, count)
    marked = [f for f in findings if f.peak is not None]
    wanted = [f.peak.index[axis] for f in marked if f.peak is not None]
    for part in (0.5, 0.25, 0.75, 0.0, 1.0):
        for finding in marked:
            for box in finding.boxes[:1]:
                start, last = box[axis], box[axis + 3] - 1
                wanted.append(round(start + part * (last - start)))
    chosen = set(list(dict.fromkeys(wanted))[: max(1, limit * 2 // 3)])
    chosen = chosen or {count // 2}
    while len(chosen) < limit:  # fill the widest hole first
        chosen.add(max((n for n in range(count) if n not in chosen), key=lambda n: min(abs(n - c) for c in chosen)))
    return chosen


def _base(
    findings: Findings, views: list[View], windows: list[Window], size: Any, probe: Finding | None
) -> dict[str, Any]:
    image = findings.image
    return {
        "base": [[_jpeg(grey_layer(view.grey(image, window), size)) for view in views] for window in windows],
        "unseen": ["" if probe is None else _unseen(view.probability(probe), size) for view in views],
        "position": [view.position for view in views],
    }


def _query(finding: Finding, views: list[View], windows: list[Window], size: Any) -> dict[str, Any]:
    planes = overlay_views(finding)[1:]
    names = [window.name for window in windows]
    own = window_for(finding.phrase, finding.image).name
    return {
        "stack": _layers(finding, views, size),
        "planes": [_plane(finding, view, windows) for view in planes],
        "window": names.index(own) if own in names else 0,
        "slice": _first_slice(finding, views),
    }


def _first_slice(finding: Finding, views: list[View]) -> int:
    """The slice of the peak, or the middle one."""
    if finding.peak is None or views[0].axis is None:
        return len(views) // 2
    at = finding.peak.index[views[0].axis]
    return min(range(len(views)), key=lambda n: abs(views[n].index - at))


def _plane(finding: Finding, view: View, windows: list[Window]) -> dict[str, Any]:
    size = fit(view, PLANE_PX)
    return {
        "base": [[_jpeg(grey_layer(view.grey(finding.image, window), size))] for window in windows],
        "unseen": [_unseen(view.probability(finding), size)],
        "position": [view.position],
        **_layers(finding, [view], size),
    }


def _layers(finding: Finding, views: list[View], size: Any) -> dict[str, list[str]]:
    masks, heats = [], []
    for view in views:
        probability = view.probability(finding)
        masks.append(_mask(view_mask(finding, probability), size, _shown_peak(finding, view, size)))
        heats.append(_heat(probability, size) if finding.in_scope else "")
    return {"mask": masks, "heat": heats}


def _shown_peak(finding: Finding, view: View, size: Any) -> tuple[float, float] | None:
    """The peak's (x, y) in the picture, if the view cuts it."""
    if finding.peak is None or (view.axis is not None and finding.peak.index[view.axis] != view.index):
        return None
    row, column = view.shown_position(finding.peak.index)
    return (column + 0.5) * size[0] / view.shape[1], (row + 0.5) * size[1] / view.shape[0]


def _mask(mask: np.ndarray, size: Any, peak: tuple[float, float] | None) -> str:
    """Fill and a stronger edge in the mask colour, and a cross at the peak; empty text if there is neither."""
    if peak is None and not mask.any():
        return ""
    layer = mask_layer(mask, size)
    index = layer.point([1 if v else 0 for v in range(256)])
    index.paste(2, mask=contour(layer))
    if peak is not None:
        draw_cross(ImageDraw.Draw(index), peak, (4, 3))
    colours = [(0, 0, 0), MASK_RGB, MASK_RGB, (255, 255, 255), (0, 0, 0)]
    return _uri("png", png_bytes(_palette(index, colours, bytes([0, 96, 255, 255, 255]))))


def _heat(probability: np.ndarray, size: Any) -> str:
    """The probability in colour, transparent where it is unseen."""
    scale = HEAT_PX / max(size)
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    unseen = np.isnan(probability)
    if unseen.all():
        return ""
    levels = np.where(unseen, 0.0, 1.0 + 254.0 * np.nan_to_num(probability)).astype(np.float32)
    shown = np.asarray(Image.fromarray(levels).resize(small, Image.Resampling.BILINEAR))
    # 32 steps are as many as the eye tells apart here, and they compress well.
    steps = np.where(shown < 1, 0, 1 + np.clip((shown - 1) // 8, 0, 31) * 8 + 4).astype(np.uint8)
    colours = [(0, 0, 0), *(tuple(int(v) for v in c) for c in colour_scale()[1:])]
    picture = _palette(Image.fromarray(steps), colours, bytes([0, *([255] * 255)]))
    return _uri("png", png_bytes(picture))


def _unseen(probability: np.ndarray, size: Any) -> str:
    """Hatching where the model saw nothing; empty text if it saw everything."""
    unseen = np.isnan(probability)
    if not unseen.any():
        return ""
    index = hatch(unseen, size).point([1 if v else 0 for v in range(256)])
    return _uri("png", png_bytes(_palette(index, [(0, 0, 0), (139, 148, 158)], bytes([0, 140]))))


def _palette(index: Image.Image, colours: Sequence[tuple[int, ...]], alpha: bytes) -> Image.Image:
    picture = index.copy()
    picture.putpalette([value for colour in colours for value in colour])
    picture.info["transparency"] = alpha
    return picture


def scale_uri() -> str:
    """The colour scale as a picture, 0 on the left."""
    return _uri("png", png_bytes(Image.fromarray(colour_scale()[None])))


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return _uri("jpeg", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
