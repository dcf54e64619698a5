"""Shared fixtures and guards: development data, no network, reproducible property tests."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread in every process, before any library starts its own: test processes share two cores, and what several
# processes compute is compared to the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from certificates import certificates  # noqa: F401 (fixture)
from orthanc import orthanc, orthanc_of_session  # noqa: F401 (fixtures)
from pacs_inputs import pacs_model  # noqa: F401 (fixture)

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("dev", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, max_examples=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# Files that take minutes begin first, so that none of them is left alone at the end (`make test` keeps this order).
LONGEST_FIRST = (
    "test_train_engine", "test_nano", "test_pacs_killed", "test_server_monai", "test_batch_ray", "test_simulate",
    "test_feature_cache", "test_server_lives", "test_viewer_rare", "test_evaluation_suite",
)  # fmt: skip

os.environ["HF_HUB_OFFLINE"] = "1"  # for code in subprocesses too, where the guard below does not reach


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    order = {name: k for k, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; a loud skip outside the team, a failure in CI."""
    data = Path(os.environ.get("RADGLINT_SHARED", SHARED)) / "data"
    if not data.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the development data is missing: expected {data}")
        pytest.skip(f"NO DEVELOPMENT DATA: {data} is missing, real-image tests are not run")
    return data


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A running `radglint serve` with nano and one API key, for all tests that leave it as they found it."""
    from server_process import KEY, ServerProcess

    limits = ("--rate", "2000", "--burst", "9000", "--max-upload-mb", "8", "--max-files", "40", "--grace-s", "5")
    running = ServerProcess(tmp_path_factory.mktemp("server"), *limits, key=KEY, RADGLINT_API_KEYS=KEY)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def studies(server, tmp_path_factory: pytest.TempPathFactory):
    """A radiograph and a CT on the server, gone again at the end."""
    import viewer_images

    files = {"film.png": viewer_images.film_png(), "chest.zip": viewer_images.series_zip(tmp_path_factory.mktemp("ct"))}
    made = [server.upload((name, content))["id"] for name, content in files.items()]
    yield
    for study in made:
        server.client.delete(f"/api/v1/studies/{study}").raise_for_status()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    from viewer_browser import launch

    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def open_viewer(browser, server, studies):
    """Opens viewers and, at the end, fails if one of them complained."""
    from server_process import KEY
    from viewer_browser import SIZES, Viewer

    viewers = []

    def start(size: str = "desk", key: str | None = KEY, touch: bool = False, url: str = server.url, **more) -> Viewer:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch, accept_downloads=True
        )
        viewers.append(Viewer(context, url, key, **more))
        return viewers[-1]

    yield start
    for viewer in viewers:
        viewer.close()


@pytest.fixture
def film(open_viewer):
    """A viewer with the radiograph."""
    viewer = open_viewer().started()
    viewer.open_known("film.png")
    return viewer


@pytest.fixture
def chest(open_viewer):
    """A viewer with the CT."""
    viewer = open_viewer().started()
    viewer.open_known("chest.zip")
    return viewer


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """A test that reaches for another machine fails, with the address it asked for."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
    patch.setattr(socket, "getaddrinfo", _local_names_only(socket.getaddrinfo))
    yield
    patch.undo()


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _local_only(connect):
    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            pytest.fail(f"tests run offline, but something connects to {address!r}")
        return connect(self, address)

    return guarded


def _local_names_only(getaddrinfo):
    def guarded(host, *args, **kwargs):
        if not _is_local(host):
            pytest.fail(f"tests run offline, but something looks up {host!r}")
        return getaddrinfo(host, *args, **kwargs)

    return guarded
