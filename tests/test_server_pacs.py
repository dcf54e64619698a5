"""A series out of a PACS into the server: a real Orthanc, and one that leads elsewhere."""

from __future__ import annotations

import http.server
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_files import write_ct_series
from orthanc import USER, Orthanc, orthanc, orthanc_of_session  # noqa: F401 (fixtures)
from radglint.cli import main
from radglint.errors import ConfigError, InputError, PacsError
from radglint.server.config import ServerConfig
from radglint.server.studies import fetch_series
from server_process import ServerProcess
from web_answers import listing, redirect, reply, serving

WANTED = {"study_uid": "1.2.3.4", "series_uid": "1.2.3.4.1"}


@pytest.fixture
def stored(orthanc: Orthanc, tmp_path: Path) -> Orthanc:  # noqa: F811 (a fixture)
    hu = np.full((4, 40, 48), -1000, dtype=np.int16)
    hu[:, 8:32, 8:40] = 40
    tags = {"PixelSpacing": [8.0, 7.0], "SliceThickness": 8.0, "FrameOfReferenceUID": "1.2.3.4.9"}
    orthanc.upload(*write_ct_series(tmp_path / "ct", hu, step=(0.0, 0.0, 8.0), **tags))
    return orthanc


def source(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    pacs = ServerConfig(folder, dicomweb=url).pacs
    assert pacs is not None
    return {**WANTED, "pacs": pacs.model_dump(mode="json") | more}


def test_a_series_comes_whole_or_not_at_all(stored: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study" / "source"
    folder.mkdir(parents=True)
    with pytest.raises(PacsError, match="the PACS: has no instance"):
        fetch_series(source(tmp_path, stored.web) | {"series_uid": "9.9.9"}, folder)
    with monkeypatch.context() as patch:
        patch.setenv("RADGLINT_DICOMWEB_PASSWORD", "wrong")
        with pytest.raises(PacsError, match=r"the PACS: .* 401"):
            fetch_series(source(tmp_path, stored.web), folder)
    with pytest.raises(PacsError, match="more than 9000 bytes"):
        fetch_series(source(tmp_path, stored.web, max_series_bytes=9_000, max_instances=9), folder)
    with pytest.raises(ConfigError, match="no PACS any more"):
        fetch_series(WANTED, folder)
    assert not list(folder.iterdir())
    fetch_series(source(tmp_path, stored.web), folder)
    assert len(list(folder.iterdir())) == 4
    assert [path.name for path in folder.parent.iterdir()] == ["source"]


def test_the_server_is_not_led_elsewhere(tmp_path: Path) -> None:
    asked: list[str] = []

    def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, 200, listing("00080018", "1.2.5"))

    folder = tmp_path / "study" / "source"
    folder.mkdir(parents=True)
    with serving(elsewhere) as other, serving(lambda handler: redirect(handler, other)) as url:
        with pytest.raises(PacsError, match=r"^the PACS: redirects to another server"):
            fetch_series(source(tmp_path, url), folder)
        with pytest.raises(PacsError, match=r"^the PACS: "):
            fetch_series(source(tmp_path, "http://127.0.0.1:9/dicom-web", attempts=1), folder)
    assert asked == []


def test_a_deleted_study_is_not_made_again(stored: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        fetch_series(source(tmp_path, stored.web), tmp_path / "gone" / "source")
    assert not (tmp_path / "gone").exists()


def test_credentials_that_would_leak_stop_the_server_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RADGLINT_DICOMWEB_TOKEN", "abc")
    assert main(["serve", "--data", str(tmp_path / "x"), "--dicomweb", "http://pacs.example/dicom-web"]) == 2
    assert "--plain-http" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="user or a password"):
        ServerConfig(tmp_path, dicomweb="https://me:secret@pacs.example/dicom-web")


def problem_of(server: ServerProcess, wanted: dict[str, str]) -> str:
    """Ask for a series that fails; the reason, as the study tells it and as a question to it is refused."""
    found = server.client.post("/api/v1/studies/dicomweb", json=wanted)
    assert found.status_code == 202
    failed = server.wait(f"/api/v1/studies/{found.json()['id']}", ("ready", "failed"))
    assert failed["state"] == "failed"
    asked = server.client.post("/api/v1/jobs", json={"study_id": failed["id"], "queries": ["nodule"]})
    assert asked.headers["content-type"] == "application/problem+json"
    assert (asked.status_code, asked.json()["type"]) == (409, "urn:radglint:study-failed")
    assert failed["problem"] in asked.json()["detail"]
    assert "127.0.0.1" not in failed["problem"]
    return failed["problem"]


@pytest.mark.slow
def test_the_server_asks_a_series_of_the_pacs(stored: Orthanc, tmp_path: Path) -> None:
    more = tmp_path / "more"
    stored.upload(*write_ct_series(more, np.zeros((5, 8, 8), np.int16), SeriesInstanceUID="1.2.3.4.2"))
    server = ServerProcess(
        tmp_path / "data", "--dicomweb", stored.web, "--max-files", "4", RADGLINT_DICOMWEB_USER=USER,
        RADGLINT_DICOMWEB_PASSWORD=str(stored.password),
    )  # fmt: skip
    try:
        assert server.client.get("/api/v1/model").json()["dicomweb"] is True
        found = server.client.post("/api/v1/studies/dicomweb", json=WANTED)
        assert found.status_code == 202
        study = server.wait(f"/api/v1/studies/{found.json()['id']}", ("ready", "failed"))
        assert study["image"]["is_dicom"], study
        job = server.ask(study["id"], "emphysema")
        assert server.client.get(f"/api/v1/jobs/{job['id']}/seg.dcm").status_code == 200
        assert "has no instance" in problem_of(server, WANTED | {"series_uid": "9.9"})
        assert "more than 4 instances" in problem_of(server, WANTED | {"series_uid": "1.2.3.4.2"})
    finally:
        assert server.stop() == 0
