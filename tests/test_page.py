"""The HTML page: self-contained, escaped, and its embedded layers lie where the mask lies."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from findings_phantom import ORIENTATIONS, answer, collect, corner, ct_affine, ct_image, radiograph, upper_right
from radglint import page_layers
from radglint.page import render_page
from radglint.page_layers import stack_views, study_layers


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    VOID = ("meta", "img", "input", "rect", "br")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.open[-1] if self.open else ""] = self.text.get(self.open[-1] if self.open else "", "") + data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def picture(uri: str) -> Image.Image:
    head, content = uri.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def marked(uri: str) -> np.ndarray:
    """Where a layer is not transparent."""
    return np.asarray(picture(uri).convert("RGBA"))[..., 3] > 0


def place(where: np.ndarray) -> tuple[str, str]:
    row, column = np.argwhere(where).mean(axis=0)
    return "upper" if row < where.shape[0] / 2 else "lower", "left" if column < where.shape[1] / 2 else "right"


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::4])
def test_left_stays_left_in_the_page(order: Any, signs: Any) -> None:
    image = ct_image(ct_affine(order, signs, tilt_deg=6))
    page = render_page(collect(answer(image, corner(image))))
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)[0])
    query = data["queries"][0]
    assert place(marked(query["stack"]["mask"][query["slice"]])) == ("upper", "right")
    assert place(marked(query["planes"][0]["mask"][0])) == ("lower", "right")
    assert place(marked(query["planes"][1]["mask"][0])) == ("lower", "left")
    heat = np.asarray(picture(query["stack"]["heat"][query["slice"]]).convert("L")).astype(int)
    assert place(heat > 128) == ("upper", "right")
    letters = re.findall(r'class="tag (?:left|right|top|bottom)">(.)<', page)
    assert "".join(letters) == "RLAPRLSIAPSI"


def test_first_query_is_shown_without_the_script() -> None:
    image = radiograph()
    reader = read(render_page(collect(answer(image, upper_right(image)))))
    sources = {a["class"]: a.get("src") for t, a in reader.tags if t == "img" and a.get("class")}
    assert place(marked(str(sources["layer mask"]))) == ("upper", "right")
    assert picture(str(sources["base"])).size == (900, 600)
    assert sources["layer heat"] is None


def test_all_layers_of_a_view_have_one_size_or_its_aspect() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    data = study_layers(collect(answer(image, corner(image), unseen=3)))
    width, height = data["size"]
    stack, query = data["stack"], data["queries"][0]["stack"]
    assert len(stack["base"]) == len(data["windows"]) == 2
    for uri in (*stack["base"][0], *stack["base"][1], *filter(None, stack["unseen"]), *filter(None, query["mask"])):
        assert picture(uri).size == (width, height)
    shown = picture(query["heat"][0] or query["heat"][-1])
    assert shown.width / shown.height == pytest.approx(width / height, rel=0.02)


def test_unseen_slices_are_hatched_and_have_no_heat() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    data = study_layers(collect(answer(image, corner(image), unseen=3)))
    assert [bool(u) for u in data["stack"]["unseen"]] == [False] * 15 + [True] * 3
    assert [bool(h) for h in data["queries"][0]["stack"]["heat"]] == [True] * 15 + [False] * 3


@pytest.mark.parametrize("query", ["no nodule", "nodule"])
def test_an_empty_mask_has_no_layer(query: str) -> None:
    image = radiograph()
    finding = answer(image, upper_right(image), query, probability=0.9 if query.startswith("no ") else 0.2)
    data = study_layers(collect(finding))
    assert data["queries"][0]["stack"]["mask"] == [""]
    assert finding.remark in " ".join(read(render_page(collect(finding))).text.values())


def test_slices_run_from_feet_to_head_and_hold_the_peak() -> None:
    for sign in (1, -1):
        image = ct_image(ct_affine((2, 1, 0), (sign, 1, 1)))
        finding = answer(image, corner(image))
        views = stack_views(collect(finding))
        heights = [image.affine[2, 0] * v.index for v in views]  # type: ignore[index]
        assert heights == sorted(heights)
        assert finding.peak is not None
        assert finding.peak.index[0] in [v.index for v in views]


def test_at_most_24_slices_spread_over_the_volume() -> None:
    chosen = sorted(page_layers.slice_indices([], 0, 300))
    assert len(chosen) == page_layers.MAX_SLICES
    assert max(np.diff(chosen)) <= 40
    assert chosen[0] <= 20
    assert chosen[-1] >= 280
    assert page_layers.slice_indices([], 0, 7) == set(range(7))


def test_user_text_is_escaped_everywhere() -> None:
    image = radiograph()
    evil = "</script><script>alert(1)</script> & \"nodule\" 'x' <img src=x onerror=alert(1)>"
    findings = collect(answer(image, upper_right(image), evil, note=evil), model_name=evil, warnings=[evil])
    page = render_page(findings, title=evil, intro=[(evil, evil)])
    reader = read(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert not [a for _, a in reader.tags if any(name.startswith("on") for name in a)]
    assert evil in reader.text["h1"]
    assert evil in reader.text["button"]
    assert "chest <1>.png" in reader.text["h2"]


def test_nothing_is_loaded_and_only_our_script_may_run() -> None:
    image = radiograph()
    page = render_page(collect(answer(image, upper_right(image))))
    reader = read(page)
    for _, attributes in reader.tags:
        assert not {"href", "srcset", "action", "style"} & set(attributes)
        assert str(attributes.get("src") or "data:").startswith("data:image/") or attributes.get("src") is None
    assert not re.search(r"https?://|@import|url\(", page)
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    script = re.findall(r"<script>(.*?)</script>", page, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)


def test_the_page_states_what_a_reader_needs() -> None:
    image = ct_image(ct_affine((2, 1, 0), (1, -1, -1)))
    finding = answer(image, corner(image))
    text = " ".join(read(render_page(collect(finding, warnings=["mind the gap"]))).text.values())
    assert finding.peak is not None
    assert finding.peak.world_mm is not None
    x, y, z = finding.peak.world_mm
    for words in (
        f"({x:.1f}, {y:.1f}, {z:.1f}) mm", f"({-x:.1f}, {-y:.1f}, {z:.1f}) mm", f"{finding.volume_ml:.1f} ml", "SPR",
        "01_nodule_mask.nii.gz", "tiny", "abc123", "mind the gap", "read as it is", "one token a voxel", "0.90", "0.50",
        "Not a medical device", "3 x 2 x 2.5 mm", "lung window W 1500 L -600 HU",
    ):  # fmt: skip
        assert words in text, words


def test_several_images_on_one_page_and_none_at_all() -> None:
    flat, volume = radiograph(), ct_image(ct_affine((2, 1, 0), (1, 1, 1)))
    page = render_page([collect(answer(flat, upper_right(flat))), collect(answer(volume, corner(volume)))])
    assert page.count('<section class="study">') == 2
    read(render_page([]))
