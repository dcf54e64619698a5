"""A matplotlib figure as inline SVG for a page with a strict content security policy.

matplotlib writes style attributes, ids and a style block; a page that allows only its own hashed style would ignore or
refuse them. Here styles become presentation attributes, fixed colours become the page's variables, and ids are made
unique or dropped.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins: drawn in these colours, shown in those of the page.
TEXT, QUIET, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404")

_VARIABLES = {
    TEXT: "var(--text)", QUIET: "var(--quiet)", GRID: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}  # fmt: skip
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = {
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin",
    "opacity", "fill-opacity", "stroke-opacity", "text-anchor",
}  # fmt: skip
_DECIMALS = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def figure_to_svg(figure: Figure, title: str) -> str:
    """SVG of a figure.

    Args:
        figure: drawn in the stand-in colours; anything else keeps its colour.
        title: what it shows, for readers that cannot see it.

    Returns:
        One `<svg>` element without ids that clash, style attributes, scripts or references outside itself.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL))
    _drop(root, {"metadata", "style"})
    prefix = "f" + hashlib.sha256((title + buffer.getvalue()).encode()).hexdigest()[:10]
    names = {name: f"{prefix}-{n}" for n, name in enumerate(_referenced(root))}
    for element in root.iter():
        _rewrite(element, names)
    return _serialise(root, title)


def _drop(parent: ElementTree.Element, names: set[str]) -> None:
    for child in list(parent):
        if _name(child) in names:
            parent.remove(child)
        else:
            _drop(child, names)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _referenced(root: ElementTree.Element) -> list[str]:
    """Ids that something refers to, in the order of the document."""
    found: dict[str, None] = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            for name in [value[1:]] if key == _XLINK else _REFERENCE.findall(value):
                found[name] = None
    return list(found)


def _rewrite(element: ElementTree.Element, names: dict[str, str]) -> None:
    """Style to attributes, colours to variables, two decimals, and new ids, in place."""
    styles = [part.partition(":") for part in element.attrib.pop("style", "").split(";") if part.strip()]
    attributes = {**element.attrib, **{key.strip(): value.strip() for key, _, value in styles}}
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "id":
            if value in names:
                element.set("id", names[value])
        elif key == _XLINK:
            element.set("href", "#" + names[value[1:]])
        elif key in _KEPT or not _is_style(key, styles):
            value = _REFERENCE.sub(lambda match: f"url(#{names[match[1]]})", value)
            element.set(key, _VARIABLES.get(value, _DECIMALS.sub(_round, value) if key != "version" else value))
    if font := re.search(r"([\d.]+)(?:px)?", attributes.get("font-size", attributes.get("font", ""))):
        element.set("font-size", font[1])


def _is_style(key: str, styles: list[tuple[str, str, str]]) -> bool:
    return any(key == name.strip() for name, _, _ in styles)


def _round(match: re.Match[str]) -> str:
    text = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _serialise(root: ElementTree.Element, title: str) -> str:
    """The element without its prefix, size left to the page, and a title for screen readers."""
    for element in root.iter():
        element.tag = _name(element)
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
    box = root.get("viewBox", "0 0 1 1")
    width = float(box.split()[2])
    root.attrib.clear()
    root.attrib.update({"class": "plot", "viewBox": box, "width": f"{width:.0f}", "role": "img", "aria-label": title})
    return ElementTree.tostring(root, encoding="unicode")
