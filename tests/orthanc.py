"""A real Orthanc with its DICOMweb plug-in, on a loopback port, with its own storage folder, ended with the tests.

It is Debian's (`orthanc`, `orthanc-dicomweb`). Its REST interface is used here to look at what it holds by another way
than the code under test, and its answers are read with pydicom.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TITLE, USER = "ORTHANC", "radglint"
START_S = 10.0


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Orthanc:
    """One Orthanc in a folder.

    Args:
        folder: for its configuration, storage and log.
        password: of the user `USER`; None = everybody may ask.
        more: of its settings.
    """

    def __init__(self, folder: Path, password: str | None = None, **more: Any) -> None:
        self.folder = folder
        self.password = password
        self._more = more
        self.http_port, self.dicom_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def web(self) -> str:
        """Address of its DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def peer(self) -> str:
        """Its node, as AE@host:port."""
        return f"{TITLE}@127.0.0.1:{self.dicom_port}"

    @property
    def is_down(self) -> bool:
        """Whether it is not running."""
        return self._process is None

    def start(self) -> None:
        """Start it on its storage, and wait until it answers."""
        storage = self.folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(self._settings(storage)))
        command = [_program(), "--logfile=" + str(self.folder / "log"), str(config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.rest("/system")
                return
            except OSError:
                time.sleep(0.05)
        self.kill()
        pytest.fail(f"Orthanc did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _settings(self, storage: Path) -> dict[str, Any]:
        users = {} if self.password is None else {USER: self.password}
        return {
            "Name": "radglint tests", "StorageDirectory": str(storage), "IndexDirectory": str(storage),
            "Plugins": [str(PLUGIN)], "HttpPort": self.http_port, "DicomPort": self.dicom_port, "DicomAet": TITLE,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": bool(users), "RegisteredUsers": users,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False}, "ConcurrentJobs": 1,
            "OverwriteInstances": False, "StableAge": 1, **self._more,
        }  # fmt: skip

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def rest(self, path: str, body: Any = None, method: str | None = None) -> bytes:
        """One call of Orthanc's own interface; raises `OSError` where it refuses."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method=method)
        if self.password is not None:
            pair = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {pair}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def upload(self, *files: Path) -> None:
        """Put files into it, by its own interface."""
        for file in files:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.http_port}/instances", data=file.read_bytes(), method="POST"
            )
            if self.password is not None:
                pair = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
                request.add_header("Authorization", f"Basic {pair}")
            with urllib.request.urlopen(request, timeout=10):
                pass

    def find(self, modality: str) -> list[Dataset]:
        """All instances of a modality, as pydicom reads the stored files."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        names = json.loads(self.rest("/tools/find", query))
        return [pydicom.dcmread(io.BytesIO(self.rest(f"/instances/{name}/file"))) for name in names]

    def empty(self) -> None:
        """Remove everything it holds."""
        for name in json.loads(self.rest("/patients")):
            self.rest(f"/patients/{name}", method="DELETE")


def _program() -> str:
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if found is None or not PLUGIN.exists():
        pytest.fail("no Orthanc with DICOMweb: install Debian's packages orthanc and orthanc-dicomweb")
    return found


@pytest.fixture(scope="session")
def orthanc_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One Orthanc with a password, for all tests."""
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), password=secrets.token_urlsafe(12))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def orthanc(orthanc_of_session: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orthanc]:
    """That Orthanc, empty, with the credentials in the environment."""
    monkeypatch.setenv("RADGLINT_DICOMWEB_USER", USER)
    monkeypatch.setenv("RADGLINT_DICOMWEB_PASSWORD", str(orthanc_of_session.password))
    yield orthanc_of_session
    orthanc_of_session.empty()
