"""The page of an evaluation: one file, the same bytes each time, nothing from outside, all text escaped."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import made_up_results as made_up
from radglint.errors import InputError
from radglint.evaluation.figures import (
    forest_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
    styles_figure,
    sweep_figure,
)
from radglint.evaluation.page import render_page, write_page
from radglint.evaluation.page_tables import classes_of, estimate_cell, summary_table
from radglint.evaluation.results import CaseResult, ClassResult, Curves, Estimate, ProtocolResult, Results

HOSTILE = '<script>alert("1")</script> & \' $\\frac{1 &amp; <b>'


def png() -> bytes:
    """A 1 x 1 PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


OVERLAYS = {f"overlays/{rank}_{n}.png": png() for rank in ("best", "worst") for n in range(4)}


class Reader(HTMLParser):
    """Tags with attributes, and text; checks that what is opened is closed in order."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags for key, value in attrs.items() if key == name and value is not None]


def small(**changes: Any) -> Results:
    """Made-up results with two classes, to draw less."""
    return made_up.results((made_up.classification(made_up.FINDINGS[:2]), made_up.grounding()), **changes)


def with_cases(*cases: CaseResult) -> Results:
    """Results with some cases and nothing to draw."""
    return made_up.results((made_up.grounding().model_copy(update={"cases": cases}),))


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(small(), OVERLAYS)


def hostile() -> ProtocolResult:
    """A protocol with the same hostile text wherever text is taken."""
    base = made_up.classification((HOSTILE,)).model_dump()
    case = made_up.case("best", 0, HOSTILE).model_dump() | {
        "id": HOSTILE, "query": HOSTILE, "class_name": HOSTILE, "note": HOSTILE, "measures": {HOSTILE: 0.5},
    }  # fmt: skip
    measures = {HOSTILE: made_up.estimate(0.5)}
    one = base["classes"][0] | {"label": HOSTILE + "2", "measures": {HOSTILE: measures}}
    one["curves"] = one["curves"] | {"thresholds": {HOSTILE: 0.5}}
    return ProtocolResult(**base | {
        "title": HOSTILE, "citation": HOSTILE, "label_set": HOSTILE, "columns": (HOSTILE,), "how": {HOSTILE: HOSTILE},
        "lead": HOSTILE, "means": {HOSTILE: measures}, "classes": (one,), "average": HOSTILE, "cases": (case,),
        "styles": ({"name": HOSTILE, "example": HOSTILE, "measures": measures},), "notes": (HOSTILE,),
        "left_out": ({"what": HOSTILE, "why": HOSTILE},),
    })  # fmt: skip


def test_the_page_is_well_formed_and_says_where_it_comes_from(page: str) -> None:
    text = " ".join(Reader(page).text)
    for part in (
        "do not use it to diagnose", "0123456789ab", "cd" * 32, "ab" * 32, "study", "2026-11-24T19:00:00+00:00",
        "numpy 2.4.0, python 3.13.5, torch 2.12.1", "500 of 500 patients (668 rows)", "Stanford research use agreement",
        "radglint evaluate --suite cxr-zero-shot", "1000 bootstrap samples of patients",
        "168 lateral views: the model knows frontal views only",
        "37 images with an uncertain label: the published test set has none",
        "Calcification: no positive image in this manifest",
    ):  # fmt: skip
        assert part in text


def test_the_same_results_give_the_same_bytes(page: str, tmp_path: Path) -> None:
    path = write_page(small(), tmp_path, OVERLAYS)
    assert path == tmp_path / "index.html"
    assert path.read_text(encoding="utf-8") == page
    assert write_page(with_cases(), tmp_path / "other.html").name == "other.html"


def test_nothing_is_loaded_from_outside(page: str) -> None:
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags} & {"link", "iframe", "object", "embed", "base", "form"} == set()
    assert all(source.startswith("data:image/png;base64,") for source in reader.attributes("src"))
    assert all(target.startswith("#") for target in reader.attributes("href"))
    assert reader.attributes("style") == []
    assert not [key for _, attrs in reader.tags for key in attrs if key.startswith("on")]


def test_the_policy_names_the_pages_own_style_and_script(page: str) -> None:
    policy = Reader(page).attributes("content")[0]
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_link_has_its_target(page: str) -> None:
    reader = Reader(page)
    ids = reader.attributes("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in reader.attributes("href")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_published_and_honest_stand_side_by_side() -> None:
    cells = re.findall(r'<td data-value="([^"]*)">|<td></td>', summary_table(made_up.results()))
    assert cells == ["0.8", "0.787", "", "", "", "0.212", "", "0.243", "0.198", "0.187"]


@pytest.mark.parametrize(
    ("one", "cell"),
    [
        (
            Estimate(value=0.8124, low=0.79, high=0.8333),
            '<td data-value="0.8124">0.812<small>0.790\u20130.833</small></td>',
        ),
        (Estimate(value=-0.1, low=-0.2, high=0), '<td data-value="-0.1">-0.100<small>-0.200 to 0.000</small></td>'),
        (Estimate(value=0.5), '<td data-value="0.5">0.500</td>'),
        (None, '<td data-value="">-</td>'),
    ],
)
def test_a_cell_shows_its_interval(one: Estimate | None, cell: str) -> None:
    assert estimate_cell(one) == cell


def test_a_number_of_classes_is_said_once() -> None:
    assert classes_of(made_up.classification()) == "CheXpert 5"
    assert classes_of(made_up.grounding()) == "ChestX-Det10 (10 classes)"


def test_hostile_text_stays_text() -> None:
    page = render_page(made_up.results((hostile(),), suite=HOSTILE, command=HOSTILE, notes=(HOSTILE,)))
    reader = Reader(page)
    assert page.count("<script") == 1
    assert "alert" not in page.split("<script>")[1]
    assert "b" not in {tag for tag, attrs in reader.tags if attrs} or 'alert("1")' in "".join(reader.text)
    assert sum(text.count('<script>alert("1")</script>') for text in reader.text) >= 25


def test_pictures_are_embedded_and_missing_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "best_0.png").write_bytes(png())
    page = render_page(with_cases(*made_up.classification().cases), tmp_path)
    assert page.count(base64.b64encode(png()).decode()) == 1
    assert page.count("picture not found: ") == 7
    assert "picture not found: overlays/worst_3.png" in page


def test_a_picture_outside_the_folder_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "text.png").write_text("no picture")
    for name, said in (("../secret.png", "expected a file below"), ("text.png", "expected a PNG or JPEG")):
        with pytest.raises(InputError, match=said):
            render_page(with_cases(made_up.case("best", 0, name)), folder)


def test_a_data_uri_is_taken_as_it_is() -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert f'src="{uri}"' in render_page(with_cases(made_up.case("worst", 0, uri)))


def test_a_protocol_without_classes_has_no_empty_parts() -> None:
    page = render_page(made_up.results((made_up.grounding(),), notes=(), left_out=()))
    for head in ("Classes", "Curves", "Best cases", "Notes", "About this run", "Ways of asking"):
        assert f">{head}<" not in page


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_plots_have_labelled_axes_and_reference_lines() -> None:
    one, protocol = made_up.one_class("Edema", 3), made_up.classification()
    assert {"1 - specificity", "sensitivity", "chance", "115 of 500 positive"} <= set(texts(roc_figure(one)))
    assert {"recall (sensitivity)", "precision", "share of positives 0.23"} <= set(texts(pr_figure(one)))
    assert {"predicted probability", "observed frequency", "answers"} <= set(texts(reliability_figure(one)))
    assert {"threshold", "Dice", "validation 0.44", "fixed 0.5", "oracle 0.39"} <= set(texts(sweep_figure(one)))
    assert {"AUROC with interval", "chance", "attributes"} <= set(texts(styles_figure(protocol, "auroc")))
    assert {"published", "honest", "mean", *made_up.FINDINGS} <= set(texts(forest_figure(protocol, "auroc")))


def test_prompt_styles_are_ranked() -> None:
    found = [text for text in texts(styles_figure(made_up.classification(), "auroc")) if text in made_up.STYLES]
    assert found == list(reversed(made_up.STYLES))


def test_plots_use_the_pages_colours_only() -> None:
    svg = sweep_figure(made_up.one_class("Edema", 3)) + forest_figure(made_up.classification(), "auroc")
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg))
    assert colours <= {"none", *(f"var(--{n})" for n in ("text", "quiet", "line", "series-1", "series-2", "series-3"))}
    assert {"var(--series-1)", "var(--series-2)", "var(--series-3)"} <= colours


def test_the_users_own_plot_settings_change_nothing() -> None:
    import matplotlib

    one = made_up.one_class("Edema", 3)
    before = roc_figure(one)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert roc_figure(one) == before


def test_a_roc_point_lies_where_it_should() -> None:
    """The chance line ends in the corners, so the curve's own corner can be placed against it."""
    one = ClassResult(name="x", n=4, positives=2, measures={}, curves=Curves(roc=((0, 0), (0, 0.5), (1, 1))))
    paths = [
        e.get("d", "") for e in ElementTree.fromstring(roc_figure(one)).iter("path") if e.get("stroke-width") == "1.8"
    ]
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", paths[0])]
    (x0, y0), (x1, y1), (x2, y2) = zip(numbers[::2], numbers[1::2], strict=True)
    assert x1 == x0
    assert x2 > x0
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.02)
    assert y2 < y0


def test_nothing_to_draw_gives_nothing() -> None:
    bare = ClassResult(name="x", n=0, positives=0, measures={})
    assert [draw(bare) for draw in (roc_figure, pr_figure, reliability_figure, sweep_figure)] == [""] * 4
    assert forest_figure(made_up.grounding(), "dice") == styles_figure(made_up.grounding(), "dice") == ""
