"""A series out of a real Orthanc into the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_files import write_ct_series
from orthanc import USER, Orthanc, orthanc, orthanc_of_session  # noqa: F401 (fixtures)
from radglint.errors import ImageError
from radglint.server.dicomweb import fetch_series
from server_process import ServerProcess


@pytest.fixture
def stored(orthanc: Orthanc, tmp_path: Path) -> Orthanc:  # noqa: F811 (a fixture)
    hu = np.full((4, 40, 48), -1000, dtype=np.int16)
    hu[:, 8:32, 8:40] = 40
    tags = {"PixelSpacing": [8.0, 7.0], "SliceThickness": 8.0, "FrameOfReferenceUID": "1.2.3.4.9"}
    orthanc.upload(*write_ct_series(tmp_path / "ct", hu, step=(0.0, 0.0, 8.0), **tags))
    return orthanc


def test_a_series_comes_whole_or_not_at_all(stored: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study" / "source"
    folder.mkdir(parents=True)
    with pytest.raises(ImageError, match="PACS"):
        fetch_series(stored.web, "1.2.3.4", "9.9.9", folder)
    with monkeypatch.context() as patch:
        patch.setenv("RADGLINT_DICOMWEB_PASSWORD", "wrong")
        with pytest.raises(ImageError, match="PACS"):
            fetch_series(stored.web, "1.2.3.4", "1.2.3.4.1", folder)
    assert not list(folder.iterdir())
    assert fetch_series(stored.web, "1.2.3.4", "1.2.3.4.1", folder) == 4
    assert len(list(folder.iterdir())) == 4


@pytest.mark.slow
def test_the_server_asks_a_series_of_the_pacs(stored: Orthanc, tmp_path: Path) -> None:
    password = str(stored.password)
    server = ServerProcess(
        tmp_path / "data", "--dicomweb", stored.web, RADGLINT_DICOMWEB_USER=USER, RADGLINT_DICOMWEB_PASSWORD=password
    )
    try:
        assert server.client.get("/api/v1/model").json()["dicomweb"] is True
        wanted = {"study_uid": "1.2.3.4", "series_uid": "1.2.3.4.1"}
        found = server.client.post("/api/v1/studies/dicomweb", json=wanted)
        assert found.status_code == 202
        study = server.wait(f"/api/v1/studies/{found.json()['id']}", ("ready", "failed"))
        assert study["image"]["is_dicom"], study
        job = server.ask(study["id"], "emphysema")
        assert server.client.get(f"/api/v1/jobs/{job['id']}/seg.dcm").status_code == 200
        lacking = server.client.post("/api/v1/studies/dicomweb", json=wanted | {"series_uid": "9.9"}).json()["id"]
        failed = server.wait(f"/api/v1/studies/{lacking}", ("ready", "failed"))
        assert failed["state"] == "failed"
        assert "PACS" in failed["problem"]
        assert "127.0.0.1" not in failed["problem"]
    finally:
        assert server.stop() == 0
