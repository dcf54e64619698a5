"""What can be wrong with one box: half-open corners in native pixels, (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_CORNERS = {2: "[y0, x0, y1, x1]", 3: "[z0, y0, x0, z1, y1, x1]"}


def box_problem(box: Any, ndim: int, size: Sequence[int] | None) -> tuple[str, str] | None:
    """Kind and text of a box's problem; None if it is good.

    Args:
        box: what the manifest holds.
        ndim: 2 for a radiograph, 3 for a CT.
        size: native shape of the image in pixels, if known.

    Returns:
        For example ("box inside out", "expected ...").
    """
    if not isinstance(box, list | tuple):
        return "box of wrong length", f"expected {_CORNERS[ndim]}, got {box!r:.60}"
    if len(box) != 2 * ndim:
        return _wrong_length(box, ndim)
    if not all(type(n) is int for n in box):
        return "box not in whole pixels", f"expected whole numbers {_CORNERS[ndim]}, got {list(box)}; round outwards"
    low, high = box[:ndim], box[ndim:]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return "box inside out", _inside_out(box, ndim)
    if min(box) < 0:
        return "box outside the image", f"expected corners from 0 on, got {list(box)}; clip it to the image"
    if size is not None and not _fits(low, high, size):
        return _outside(box, ndim, size)
    return None


def _wrong_length(box: Sequence[Any], ndim: int) -> tuple[str, str]:
    text = f"expected {2 * ndim} numbers {_CORNERS[ndim]}, got {list(box)!r:.60}"
    if len(box) == 6 and ndim == 2:
        return "3D box on a radiograph", f"{text}; a radiograph has no depth: give y and x only, or modality CT"
    if len(box) == 4 and ndim == 3:
        return "2D box on a CT", f"{text}; a CT needs its slices z0 and z1 too"
    return "box of wrong length", text


def _inside_out(box: Sequence[int], ndim: int) -> str:
    text = f"expected {_CORNERS[ndim]} with each second corner beyond the first, got {list(box)}"
    if all(n > 0 for n in box[ndim:]):
        return f"{text}; is it corner and size? Then add the corner to the size"
    return f"{text}; swap the corners, and leave out a box of no size"


def _outside(box: Sequence[int], ndim: int, size: Sequence[int]) -> tuple[str, str]:
    low, high = list(box[:ndim]), list(box[ndim:])
    text = f"expected corners within the image of {' x '.join(map(str, size))} px, got {list(box)}"
    low[-2:], high[-2:] = low[:-3:-1], high[:-3:-1]
    if _fits(low, high, size):
        return "box with x and y swapped", f"{text}; with x and y swapped it fits: write {low + high}"
    return "box outside the image", f"{text}; clip it, and check for which size of the image it was drawn"


def _fits(low: Sequence[int], high: Sequence[int], size: Sequence[int]) -> bool:
    return all(0 <= a < b <= n for a, b, n in zip(low, high, size, strict=True))
