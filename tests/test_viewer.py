"""The viewer in a real browser on a real server: look, ask, toggle, cut, save, and what goes wrong."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

import viewer_images
from server_process import KEY, ServerProcess
from viewer_browser import SIZES, Open, Viewer, pinch, saved, shrunk

FOUND, ABSENT, NEGATED, ODD = "mass", "cardiomegaly", "no pneumothorax", "broken left tibia"
FOUND_CT = "nodule"


def test_a_dropped_radiograph_is_shown_as_it_is_stored(open_viewer: Open) -> None:
    viewer = open_viewer().started()
    assert "research" in viewer.text("#notice").lower()
    viewer.open("film again.png", viewer_images.film_png())
    stored = np.asarray(Image.open(io.BytesIO(viewer_images.film_png()))).astype(int)
    viewer.page.keyboard.press("Escape")
    viewer.page.click("#cross")
    seen = viewer.picture()
    rows, columns = (np.linspace(0.1, 0.9, 9) * n for n in stored.shape)
    for row, column in [(16, 208), *((int(r), int(c)) for r in rows for c in columns)]:
        around = stored[row - 1 : row + 2, column - 1 : column + 2]
        value = seen[viewer.point((column, row, 0))]
        assert around.min() - 4 <= value[0] <= around.max() + 4, (row, column)
        assert len(set(value)) == 1, (row, column)
    down = viewer.point((10, 110, 0))[0] - viewer.point((10, 10, 0))[0]
    along = viewer.point((110, 10, 0))[1] - viewer.point((10, 10, 0))[1]
    assert down > 0
    assert abs(down - along) <= 2
    assert "film again.png" in viewer.text("#study-line")
    assert "Radiograph, 158 \u00d7 224" in viewer.text("#study-line")


def test_a_layer_lies_on_the_mask_and_follows_its_switches(film: Viewer, server: ServerProcess) -> None:
    film.page.click("#cross")
    before = film.picture()
    film.ask(FOUND)
    answer = film.layer(FOUND)
    card = film.text(film.card(FOUND))
    assert "present" in card
    assert f"{answer['finding']['probability']:.2f}" in card
    mask = np.asarray(Image.open(io.BytesIO(server.client.get(answer["finding"]["links"]["mask_png"]).content))) > 0
    assert answer["voxels"] == mask.sum() == answer["finding"]["area_px"] > 20
    shown = film.picture()
    changed = np.abs(shown - before).max(axis=2) > 6
    inside, outside = shrunk(mask), shrunk(~mask)
    for wanted, some in ((True, inside), (False, outside)):
        places = [film.point((int(column), int(row), 0)) for row, column in np.argwhere(some)[::37]]
        assert len(places) > 3
        assert all(changed[place] == wanted for place in places)
    film.page.click(f"{film.card(FOUND)} button.swatch")
    hidden = film.picture()[100:700, :900]
    assert np.abs(hidden - before[100:700, :900]).max() <= 2
    film.page.click(f"{film.card(FOUND)} button.swatch")
    assert np.abs(film.picture() - shown)[100:700, :900].max() <= 2


def test_the_threshold_cuts_the_map_in_the_page(film: Viewer, server: ServerProcess) -> None:
    film.ask(FOUND)
    finding = film.layer(FOUND)["finding"]
    answer = server.client.get(finding["links"]["probability"])
    values = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)
    asked: list[str] = []
    film.page.on("request", lambda request: asked.append(request.url))
    slider = film.page.locator(f"{film.card(FOUND)} input[aria-label^=Threshold]")
    for percent in (30, 62, 80):
        slider.fill(str(percent))
        marked = int((values >= percent / 100 * 255 - 1e-6).sum())
        assert film.text(f"{film.card(FOUND)} .size") == f"{marked:,} px"
    slider.fill("30")
    low = film.picture()
    slider.fill("99")  # above the finding's own probability: as `ask --threshold 0.99`, nothing is marked
    assert film.text(f"{film.card(FOUND)} .size").startswith("nothing")
    assert np.abs(low - film.picture())[100:700, :900].max() > 20
    film.page.click(f"{film.card(FOUND)} .sliders .link")
    assert film.text(f"{film.card(FOUND)} .size") == f"{finding['area_px']:,} px"
    assert asked == []


def test_what_is_not_found_gets_a_note_and_no_layer(film: Viewer) -> None:
    before = film.picture()[100:700, :900]
    for query, word in ((ABSENT, "not found"), (NEGATED, "not found, as the query says"), (ODD, "not asked")):
        film.ask(query)
        card = film.text(film.card(query))
        assert word in card
        assert film.layer(query)["finding"]["note"] in card
        assert film.page.locator(f"{film.card(query)} button.swatch").count() == 0
    assert np.abs(film.picture()[100:700, :900] - before).max() <= 2
    film.page.click(f"{film.card(ODD)} [data-do=remove]")
    assert film.page.locator(".finding").count() == 2


def test_several_layers_have_their_own_colours(film: Viewer) -> None:
    film.page.click("#cross")
    film.ask(FOUND)
    film.ask("large mass")
    colours = [film.layer(query)["colour"] for query in (FOUND, "large mass")]
    assert None not in colours
    assert len(set(colours)) == 2
    with_both = film.picture()[100:700, :900]
    film.page.locator(f"{film.card('large mass')} input[aria-label^=Opacity]").fill("20")
    assert np.abs(film.picture()[100:700, :900] - with_both).max() > 20
    film.page.click("#toggle-all")
    hidden = film.picture()[100:700, :900]
    assert np.abs(hidden[..., 0] - hidden[..., 2]).max() <= 2  # grey and nothing else
    film.page.click("#toggle-all")
    film.page.click(f"{film.card(FOUND)} [data-do=remove]")
    assert film.page.locator(".finding").count() == 1


def test_a_ct_has_millimetres_hu_and_planes_in_the_patient_s_sides(chest: Viewer, server: ServerProcess) -> None:
    chest.ask(FOUND_CT)
    finding = chest.layer(FOUND_CT)["finding"]
    assert [int(n) for n in chest.text("#voxel").split(",")] == finding["peak"]["index"]
    mm = [float(n.replace("\u2212", "-")) for n in chest.text("#mm").split(",")]
    np.testing.assert_allclose(mm, finding["peak"]["ras_mm"], atol=0.051)
    hu = viewer_images.chest_hu()
    assert int(chest.text("#value").replace("\u2212", "-")) == hu[tuple(finding["peak"]["index"])]
    assert mm[0] < 0  # the ball is on the patient's left ...
    chest.page.click("[data-view=axial]")
    chest.page.click("#cross")
    k, j, i = finding["peak"]["index"]
    row, column = chest.point((i, j, k))
    assert column > 456  # ... which is the right half of the picture
    back, front = chest.point((i, hu.shape[1] - 5, k)), chest.point((i, 5, k))
    assert front[0] < row < back[0]
    chest.page.click("[data-view=coronal]")
    assert chest.point((i, j, k + 2))[0] < chest.point((i, j, k))[0]  # head up


def test_clicks_wheel_and_window_of_a_ct(chest: Viewer) -> None:
    chest.page.click("[data-view=axial]")
    chest.page.click("#cross")
    row, column = chest.point((30, 40, 7))
    chest.page.mouse.click(column, row)
    assert chest.text("#voxel") == "7, 40, 30"
    chest.page.mouse.wheel(0, 120)
    chest.until("document.getElementById('voxel').textContent === '4, 40, 30'")
    hu = viewer_images.chest_hu()
    for name, low, high in (("lung", -1350, 150), ("mediastinum", -160, 240), ("bone", -500, 1300)):
        chest.page.click(f"[data-window={name}]")
        seen = chest.picture()
        for voxel in ((56, 48, 4), (30, 40, 4), (56, 73, 4)):
            i, j, k = voxel
            grey = np.clip((hu[k, j, i] - low) / (high - low), 0, 1) * 255
            assert abs(seen[chest.point(voxel)][0] - grey) <= 3, (name, voxel)
    chest.page.click("#invert")
    assert abs(255 - seen[row, column][0] - chest.picture()[row, column][0]) <= 2
    before = chest.text("#window-now")
    chest.page.mouse.move(column, row)
    chest.page.mouse.down(button="right")
    chest.page.mouse.move(column + 60, row + 40, steps=3)
    chest.page.mouse.up(button="right")
    assert chest.text("#window-now") != before
    assert chest.text("#voxel") == "4, 40, 30"
    chest.page.keyboard.press("r")
    chest.page.mouse.move(column, row)
    chest.page.keyboard.down("Control")
    chest.page.mouse.wheel(0, -400)
    chest.page.keyboard.up("Control")
    chest.until("radglint.page.stage.nv.scene.pan2Dxyzmm[3] > 1.5")
    chest.picture()
    assert np.abs(np.subtract(chest.point((30, 40, 4)), (row, column))).max() <= 6  # what is under the pointer stays
    for view in ("axial", "coronal", "sagittal"):
        chest.page.click(f"[data-view={view}]")
        chest.picture()
        row, column = chest.point((30, 40, 4))
        chest.page.mouse.move(450, 400)
        chest.page.keyboard.down("Shift")
        chest.page.mouse.down()
        chest.page.mouse.move(480, 380, steps=3)
        chest.page.mouse.up()
        chest.page.keyboard.up("Shift")
        chest.picture()
        assert np.abs(np.subtract(chest.point((30, 40, 4)), (row - 20, column + 30))).max() <= 2, view


def test_everything_can_be_saved(chest: Viewer, server: ServerProcess) -> None:
    chest.ask(FOUND_CT)
    chest.ask(NEGATED)
    chest.page.click(f"{chest.card(FOUND_CT)} .name")
    chest.page.click("#open-save")
    got = {name: saved(chest, name) for name in ("seg.dcm", "sr.dcm", "all.zip", "mask_nifti")}
    seg = pydicom.dcmread(io.BytesIO(got["seg.dcm"]))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [FOUND_CT, NEGATED]
    assert pydicom.dcmread(io.BytesIO(got["sr.dcm"])).Modality == "SR"
    names = zipfile.ZipFile(io.BytesIO(got["all.zip"])).namelist()
    assert any(name.endswith("findings.json") for name in names)
    mask = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(got["mask_nifti"])).dataobj)
    assert mask.sum() == chest.layer(FOUND_CT)["voxels"] > 0
    report = json.loads(saved(chest, "report.json"))
    assert [finding["query"] for finding in report["findings"]] == [FOUND_CT, NEGATED]
    assert b"<html" in saved(chest, "report.html")


def test_a_radiograph_saves_pictures_and_no_dicom(film: Viewer) -> None:
    film.ask(FOUND)
    film.page.keyboard.press("Escape")
    film.page.locator("#canvas").focus()
    film.page.keyboard.press("d")
    mask = Image.open(io.BytesIO(saved(film, "mask_png")))
    assert mask.size == (224, 158)
    assert np.count_nonzero(mask) == film.layer(FOUND)["voxels"]
    assert film.page.locator("[data-save='seg.dcm']").count() == 0
    assert film.page.is_visible("#save-dicom")


def test_a_broken_file_is_named_calmly(open_viewer: Open) -> None:
    viewer = open_viewer().started()
    viewer.page.set_input_files("#file-input", {"name": "torn.png", "mimeType": "image/png", "buffer": b"\x89PNG torn"})
    viewer.page.wait_for_selector("#desk[data-state=trouble]")
    assert "torn.png" in viewer.text("#trouble-text")
    viewer.page.click("#trouble-again")
    viewer.page.wait_for_selector("#desk[data-state=empty]")
    viewer.open_known("film.png")


def test_an_upload_that_is_too_large_is_refused_in_words(open_viewer: Open) -> None:
    viewer = open_viewer(errors=(413,)).started()
    large = np.random.default_rng(0).bytes(9 * 2**20)
    viewer.page.set_input_files("#file-input", {"name": "large.dcm", "mimeType": "application/dicom", "buffer": large})
    viewer.page.wait_for_selector("#desk[data-state=trouble]")
    assert viewer.page.get_attribute("#trouble", "data-status") == "413"
    assert "MB" in viewer.text("#trouble-text") or "large" in viewer.text("#trouble-text").lower()


def test_a_full_queue_and_a_lost_server_can_be_tried_again(open_viewer: Open) -> None:
    viewer = open_viewer(errors=(429,), lost=True).started()
    viewer.open_known("film.png")
    full = {"type": "urn:radglint:queue-full", "title": "Queue full", "status": 429, "detail": "the queue is full"}
    jobs, card = "**/api/v1/jobs?*", viewer.card(FOUND)
    viewer.page.route(jobs, lambda route: route.fulfill(status=429, json=full, headers={"Retry-After": "5"}))
    viewer.page.fill("#query", FOUND)
    viewer.page.keyboard.press("Enter")
    viewer.page.wait_for_selector(f"{card}[data-state=failed]")
    assert "the queue is full" in viewer.text(card)
    viewer.page.unroute(jobs)
    viewer.page.route(jobs, lambda route: route.abort())
    viewer.page.click(f"{card} .link")
    viewer.page.wait_for_selector(f"{card}:has-text('does not answer')")
    viewer.page.unroute(jobs)
    viewer.page.click(f"{card} .link")
    viewer.page.wait_for_selector(f"{card}[data-drawn=true]")


def test_a_key_is_asked_for_kept_for_the_tab_and_refused_in_words(open_viewer: Open) -> None:
    viewer = open_viewer(key=None, errors=(401,))
    viewer.page.fill("#key-input", "wrong")
    viewer.page.keyboard.press("Enter")
    viewer.page.wait_for_selector("#key-text:has-text('refused')")
    viewer.page.fill("#key-input", KEY)
    viewer.page.keyboard.press("Enter")
    viewer.started()
    viewer.open_known("film.png")
    assert viewer.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_the_keyboard_is_enough(film: Viewer) -> None:
    page = film.page
    page.locator("#canvas").focus()
    page.keyboard.press("/")
    page.keyboard.type(FOUND)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{film.card(FOUND)}[data-drawn=true]")
    page.keyboard.press("Tab")
    page.locator("#canvas").focus()
    page.keyboard.press("]")
    page.keyboard.press("]")
    assert film.layer(FOUND)["threshold"] == pytest.approx(film.layer(FOUND)["finding"]["mask_threshold"] + 0.02)
    page.keyboard.press("v")
    assert film.layer(FOUND)["visible"] is False
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    peak = film.layer(FOUND)["finding"]["peak"]["index"]
    assert film.text("#voxel") == f"{peak[0] + 1}, {peak[1] + 1}"
    page.keyboard.press("p")
    assert film.text("#voxel") == f"{peak[0]}, {peak[1]}"
    page.keyboard.press("w")
    assert page.get_attribute("[data-window=auto]", "aria-pressed") == "true"
    page.keyboard.press("?")
    assert page.is_visible("#help-dialog")
    assert page.locator("#keys div").count() >= 12
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    assert page.locator(".finding").count() == 0


def test_tab_reaches_every_control_and_each_has_a_name(film: Viewer) -> None:
    film.ask(FOUND)
    page = film.page
    visible = (
        "[...document.querySelectorAll('button, input, canvas')].filter((e) => e.checkVisibility() && !e.disabled)"
    )
    wanted = page.evaluate(f"{visible}.length")
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{visible}.indexOf(document.activeElement)"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    assert reached >= set(range(wanted))
    nameless = page.evaluate(
        f"{visible}.filter((e) => !(e.innerText?.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off_at_any_size(open_viewer: Open, size: str) -> None:
    viewer = open_viewer(size, touch=size != "desk").started()
    viewer.open_known("chest.zip")
    viewer.ask(FOUND_CT)
    width, height = SIZES[size]
    outside = viewer.page.evaluate(
        """([width, height]) =>
        [...document.querySelectorAll('.bar *, .tools *, .readout *, .ask > *, .foot *, canvas')]
        .filter((e) => e.checkVisibility()).map((e) => [e.getBoundingClientRect(), e])
        .filter(([box]) => box.width > 0 && (box.left < -1 || box.top < -1 || box.right > width + 1
          || box.bottom > height + 1)).map(([, e]) => e.outerHTML)""",
        [width, height],
    )
    assert outside == []
    box = viewer.page.locator("#canvas").bounding_box()
    assert box is not None
    assert box["width"] * box["height"] > 0.33 * width * height
    if size != "desk":
        row, column = viewer.point((30, 40, int(viewer.text("#voxel").split(",")[0])))
        viewer.page.touchscreen.tap(column, row)
        assert viewer.text("#voxel").endswith("40, 30")
        pinch(viewer, column, row)
        assert viewer.page.evaluate("radglint.page.stage.nv.scene.pan2Dxyzmm[3]") == pytest.approx(2, abs=0.3)
