"""A real Chromium on a real server: pages that fail their test when the console or the network complains."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, Request

ARGUMENTS = (
    "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--disable-background-networking", "--no-first-run",
)  # fmt: skip
SIZES = {"desk": (1280, 800), "tablet": (1024, 768), "upright tablet": (820, 1180)}
PATIENCE_MS = 90_000  # of a loaded machine with one core; on a free one everything takes a second or two


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium with a graphics card in software."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "the viewer's tests need a Chromium: install it (on Debian: apt install chromium)"
    return playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))


Open = Callable[..., "Viewer"]  # the fixture `open_viewer`


class Viewer:
    """One open viewer.

    Args:
        context: of the browser.
        url: of the server.
        key: kept for the session before the page loads, as after the prompt; None lets the page ask.
        errors: statuses that the test expects the server to answer with; the browser logs each as an error.
        lost: whether the test cuts the connection.
    """

    def __init__(
        self, context: BrowserContext, url: str, key: str | None, errors: tuple[int, ...] = (), lost: bool = False
    ) -> None:
        self.context, self.errors, self.lost = context, errors, lost
        self.complaints: list[str] = []
        if key is not None:
            context.add_init_script(f"sessionStorage.setItem('radglint-key', {key!r})")
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._asked)
        self.url = url
        self.page.goto(url)

    def _console(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status}" in message.text for status in self.errors)
        if message.type in ("error", "warning") and not expected and not (self.lost and "ERR_" in message.text):
            self.complaints.append(f"{message.type}: {message.text}")

    def _failed(self, request: Request) -> None:
        if not self.lost and "ERR_ABORTED" not in str(request.failure):
            self.complaints.append(f"failed: {request.url} {request.failure}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.complaints.append(f"asked for {request.url}, which is not this server")

    def started(self) -> Viewer:
        """Waits until the page is ready."""
        self.page.wait_for_selector("html[data-ready=true]")
        return self

    def open(self, name: str, content: bytes) -> None:
        """Gives the page a file, waits until its picture stands and it is encoded."""
        self.page.set_input_files(
            "#file-input", {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        )
        self.shown()

    def open_known(self, name: str) -> None:
        """Opens a study of the list on the welcome page."""
        self.page.click(f"#recent-list .open:has-text('{name}')")
        self.shown()

    def shown(self) -> None:
        self.page.wait_for_selector("#desk[data-state=ready]")
        self.page.wait_for_selector("#encoding", state="hidden")

    def ask(self, query: str) -> None:
        """Types a question, waits for the answer and its layer."""
        self.page.fill("#query", query)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(f"{self.card(query)}[data-state=answered]")
        if self.layer(query)["marked"]:
            self.page.wait_for_selector(f"{self.card(query)}[data-drawn=true]")

    def until(self, condition: str) -> None:
        """Waits for a condition in JavaScript; the page's own policy forbids Playwright's way to wait for one."""
        for _ in range(PATIENCE_MS // 50):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {condition}")

    def card(self, query: str) -> str:
        return f'.finding[data-query="{query}"]'

    def layer(self, query: str) -> dict[str, Any]:
        """What the page keeps of a query."""
        return self.page.evaluate(
            """query => { const layer = radglint.page.findings.layers.find((each) => each.query === query);
            return {finding: layer.finding, marked: layer.isMarked, visible: layer.visible, size: layer.size,
                    voxels: layer.voxels, threshold: layer.threshold, colour: layer.colour?.hex ?? null}; }""", query,
        )  # fmt: skip

    def picture(self) -> np.ndarray:
        """The whole page as it is seen, RGB, once the next frame is drawn."""
        self.page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(int)

    def drawn(self) -> None:
        """Waits until the next frame is on the screen: a small part of it is taken as it is seen."""
        self.page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        self.page.screenshot(clip={"x": 0, "y": 0, "width": 16, "height": 16})

    def point(self, voxel: tuple[int, int, int]) -> tuple[int, int]:
        """Row and column on the page of voxel i, j, k."""
        x, y = self.page.evaluate("voxel => radglint.page.stage.pointOf(voxel)", list(voxel))
        return round(y - 0.5), round(x - 0.5)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector).strip()

    def save(self, act: Callable[[], None]) -> bytes:
        """What a click downloads."""
        with self.page.expect_download() as download:
            act()
        with open(download.value.path(), "rb") as file:
            return file.read()

    def close(self) -> None:
        """Ends the page; fails if anything complained."""
        self.context.close()
        assert not self.complaints, "\n".join(self.complaints)


def saved(viewer: Viewer, name: str) -> bytes:
    """A download of the dialog, by the server's name of it."""
    return viewer.save(lambda: viewer.page.click(f"[data-save='{name}']"))


def touch(viewer: Viewer, *moves: tuple[tuple[float, float], ...], at_s: float | None = None) -> None:
    """Fingers, each a place on the page: they come down at the first move, follow the others, and go up.

    The page is told that it happened at `at_s`, in seconds since 1970; now if None.
    """
    session = viewer.context.new_cdp_session(viewer.page)
    for kind, places in zip(("touchStart", *["touchMove"] * (len(moves) - 1), "touchEnd"), (*moves, ()), strict=True):
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        when = {} if at_s is None else {"timestamp": at_s}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points, **when})


def pinch(viewer: Viewer, x: int, y: int) -> None:
    """Two fingers that move apart to twice their distance."""
    touch(viewer, *(((x - apart, y), (x + apart, y)) for apart in (20, 30, 40)))


def drop(viewer: Viewer, folder: Path) -> None:
    """Drags a folder over the page and lets go."""
    session = viewer.context.new_cdp_session(viewer.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
        if kind == "dragOver":
            viewer.page.wait_for_selector("#drop-hint")


def shrunk(mask: np.ndarray) -> np.ndarray:
    """Pixels whose neighbours up to three away are all in the mask."""
    return np.logical_and.reduce([np.roll(mask, (a, b), (0, 1)) for a in range(-3, 4) for b in range(-3, 4)])
