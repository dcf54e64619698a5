"""What happens to a viewer now and then: a dropped folder, a lost graphics card, a tablet, a study of the archive."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import viewer_images
from orthanc import USER, Orthanc, orthanc, orthanc_of_session  # noqa: F401 (fixtures)
from server_process import ServerProcess
from viewer_browser import Open, Viewer, drop, pinch, touch

FOUND = "nodule"
LOSE = "globalThis.taken = radglint.page.stage.gl.getExtension('WEBGL_lose_context'); taken.loseContext()"


def test_a_dropped_folder_is_one_study(open_viewer: Open, server: ServerProcess, tmp_path: Path) -> None:
    viewer_images.series_zip(tmp_path / "ct")
    for n, file in enumerate(sorted((tmp_path / "ct").iterdir())):  # one name in two folders below
        half = tmp_path / "dropped" / f"half {n % 2}"
        half.mkdir(parents=True, exist_ok=True)
        file.rename(half / f"{n // 2}.dcm")
    viewer = open_viewer().started()
    drop(viewer, tmp_path / "dropped")
    viewer.shown()
    assert "CT, 14 \u00d7 96 \u00d7 112" in viewer.text("#study-line")
    assert not viewer.page.is_visible("#drop-hint")
    server.client.delete(f"/api/v1/studies/{viewer.page.evaluate('radglint.page.study.id')}").raise_for_status()


def test_a_lost_graphics_card_comes_back(chest: Viewer) -> None:
    chest.ask(FOUND)
    chest.page.click("[data-view=coronal]")
    chest.page.click("[data-window=mediastinum]")
    before = chest.picture()
    chest.page.evaluate(LOSE)
    chest.page.wait_for_selector("#desk[data-state=busy]")
    assert "graphics card" in chest.text("#progress-text")
    assert chest.page.is_disabled(f"{chest.card(FOUND)} button.swatch")
    chest.page.evaluate("taken.restoreContext()")
    chest.page.wait_for_selector("#desk[data-state=ready]")
    assert np.abs(chest.picture() - before)[100:700, :900].max() <= 2
    chest.page.click(f"{chest.card(FOUND)} button.swatch")
    assert np.abs(chest.picture() - before)[100:700, :900].max() > 20
    chest.page.click("#open-studies")
    chest.page.click("#study-list .open:has-text('film.png')")
    chest.shown()
    assert chest.picture()[100:700, :900].max() > 200


def test_a_map_is_the_server_s_wherever_it_is_above_0(chest: Viewer, server: ServerProcess) -> None:
    chest.ask(FOUND)
    links = chest.layer(FOUND)["finding"]["links"]
    whole = np.asarray(
        nib.Nifti1Image.from_bytes(gzip.decompress(server.client.get(links["probability"]).content)).dataobj
    )
    part = nib.Nifti1Image.from_bytes(gzip.decompress(server.client.get(links["probability_box"]).content))
    assert part.shape != whole.shape
    places = [tuple(int(n) for n in place) for place in np.argwhere(whole >= 0)[::997]]
    places += [tuple(int(n) for n in place) for place in np.argwhere(whole)[::7]]
    at = f"places => places.map((place) => radglint.page.findings.layers.find((l) => l.query === '{FOUND}').at(place))"
    seen = np.array(chest.page.evaluate(at, [list(place) for place in places]))
    np.testing.assert_allclose(seen * 255, [whole[place] for place in places], atol=1e-9)
    assert chest.layer(FOUND)["voxels"] == (whole >= np.ceil(255 * chest.layer(FOUND)["threshold"])).sum()


def test_fingers_do_all_on_a_tablet(open_viewer: Open) -> None:
    viewer = open_viewer("tablet", touch=True).started()
    viewer.page.tap("#recent-list .open:has-text('chest.zip')")
    viewer.shown()
    viewer.page.tap(f"#chips button:text-is('{FOUND}')")
    viewer.page.wait_for_selector(f"{viewer.card(FOUND)}[data-drawn=true]")
    viewer.page.tap("[data-view=axial]")
    (row, column), (row_2, column_2) = viewer.point((30, 40, 7)), viewer.point((50, 60, 7))
    touch(viewer, ((column, row),), ((column_2, row_2),))
    assert viewer.text("#voxel") == "7, 60, 50"
    for slider, share in ((f"{viewer.card(FOUND)} input[aria-label^=Threshold]", 0.8), ("#slice", 0.9)):
        box = viewer.page.locator(slider).bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        touch(viewer, *(((box["x"] + box["width"] * (part / 10), y),) for part in range(5, round(10 * share) + 1)))
    assert viewer.layer(FOUND)["threshold"] == pytest.approx(0.8, abs=0.06)
    viewer.until("Number(document.getElementById('voxel').textContent.split(',')[0]) >= 11")
    zoom = "radglint.page.stage.nv.scene.pan2Dxyzmm"
    pinch(viewer, 300, 400)
    viewer.until(f"Math.abs({zoom}[3] - 2) < 0.3")
    pan = viewer.page.evaluate(f"[...{zoom}]")
    touch(viewer, *(((280 + 10 * n, 400), (340 + 10 * n, 400)) for n in range(5)))
    viewer.until(f"Math.abs({zoom}[0] - {pan[0]}) > 5")
    now_s = time.time()
    for pause_s in (0, 0.1):
        touch(viewer, ((300, 400),), at_s=now_s + pause_s)
    viewer.until(f"{zoom}[3] === 1")
    assert viewer.page.evaluate("[scrollX, scrollY, visualViewport.scale]") == [0, 0, 1]
    small = viewer.page.evaluate(
        """[...document.querySelectorAll('button, input')].filter((e) => e.checkVisibility() && !e.disabled)
        .filter((e) => { const box = e.getBoundingClientRect(); return box.width < 34 || box.height < 34; })
        .map((e) => e.outerHTML)"""
    )
    assert small == []


@pytest.mark.slow
def test_a_series_of_the_archive_is_opened(open_viewer: Open, orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811
    viewer_images.series_zip(tmp_path / "ct")
    orthanc.upload(*sorted((tmp_path / "ct").iterdir()))
    study, series = (
        json.loads(orthanc.rest(f"/{level}?expand"))[0]["MainDicomTags"] for level in ("studies", "series")
    )
    access = {"RADGLINT_DICOMWEB_USER": USER, "RADGLINT_DICOMWEB_PASSWORD": str(orthanc.password)}
    server = ServerProcess(tmp_path / "data", "--dicomweb", orthanc.web, **access)
    try:
        viewer = open_viewer(url=server.url, key=None).started()
        for uid in (series["SeriesInstanceUID"], "9.9.9"):
            viewer.page.click("#open-studies")
            viewer.page.fill("#study-uid", study["StudyInstanceUID"])
            viewer.page.fill("#series-uid", uid)
            viewer.page.click("#pacs button")
            viewer.page.wait_for_selector(f"#desk[data-state={'trouble' if uid == '9.9.9' else 'ready'}]")
        assert "14 \u00d7 96 \u00d7 112" in viewer.text("#study-line")
        assert "PACS" in viewer.text("#trouble-text")
    finally:
        server.stop()
