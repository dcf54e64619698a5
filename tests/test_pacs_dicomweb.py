"""DICOMweb against a real Orthanc: search, retrieve, store; and what is said when it refuses."""

from __future__ import annotations

import http.server
import re
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydantic import ValidationError
from pydicom.uid import generate_uid

from dicom_files import phantom_hu
from orthanc import USER, Orthanc
from pacs_inputs import PLACEHOLDER, with_evil_name, write_chest, write_ct
from radglint.errors import ConfigError, PacsError, PacsUnreachableError
from radglint.pacs import dicomweb, session
from radglint.pacs.access import DicomWebConfig, open_session
from radglint.pacs.dicomweb import DicomWeb
from web_answers import MULTIPART, listing, part, redirect, reply, serving

INSTANCE = "00080018"


def client(orthanc: Orthanc, **changes: Any) -> DicomWeb:
    return DicomWeb(DicomWebConfig(**{"url": orthanc.web, "attempts": 2, "first_wait_s": 0.01, **changes}))


def uids_of(path: Path) -> tuple[str, str, str]:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID


def test_search_finds_what_is_there_and_keeps_names_out(orthanc: Orthanc, tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(4), StudyDescription="CT chest", BodyPartExamined="CHEST")
    chest = write_chest(tmp_path / "chest.dcm", StudyDate="20250101")
    orthanc.upload(*ct, chest)
    server = client(orthanc)
    assert {row["StudyInstanceUID"] for row in server.studies()} == {uids_of(ct[0])[0], uids_of(chest)[0]}
    (row,) = server.studies({"StudyDate": "20260101-"})
    assert row == {
        "StudyInstanceUID": uids_of(ct[0])[0], "StudyDate": "20260102", "StudyDescription": "CT chest",
        "ModalitiesInStudy": "CT", "NumberOfStudyRelatedSeries": "1", "NumberOfStudyRelatedInstances": "4",
    }  # fmt: skip
    (series,) = server.series(uids_of(ct[0])[0], {"Modality": "CT"})
    assert (series["Modality"], series["NumberOfSeriesRelatedInstances"]) == ("CT", "4")
    assert (series["SeriesDescription"], series["BodyPartExamined"]) == ("chest", "CHEST")
    assert not list(server.series(uids_of(ct[0])[0], {"Modality": "MR"}))
    assert server.has(*uids_of(chest))
    assert not server.has(*uids_of(chest)[:2], "1.2.3")
    assert not server.has("1.2.3", "1.2.4", "1.2.5")


def test_search_goes_on_page_after_page(
    orthanc: Orthanc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE_ROWS", 3)
    ct = write_ct(tmp_path / "ct", phantom_hu(7))
    orthanc.upload(*ct)
    study, series, _ = uids_of(ct[0])
    assert client(orthanc).instances(study, series) == sorted(uids_of(path)[2] for path in ct)


def test_header_has_all_tags_but_no_pixels(orthanc: Orthanc, tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm", ImageType=["DERIVED", "PRIMARY"], ViewPosition="PA")
    orthanc.upload(chest)
    header = client(orthanc).header(*uids_of(chest))
    assert (header.Modality, list(header.ImageType), header.ViewPosition) == ("DX", ["DERIVED", "PRIMARY"], "PA")
    assert not header.get("PixelData")


def test_fetched_files_are_the_stored_ones(orthanc: Orthanc, tmp_path: Path) -> None:
    """As they were stored, compressed ones too."""
    ct = write_ct(tmp_path / "ct", phantom_hu(4), syntax=pydicom.uid.RLELossless)
    orthanc.upload(*ct)
    study, series, _ = uids_of(ct[0])
    fetched = client(orthanc).fetch(study, series, tmp_path / "out")
    assert [path.stem for path in fetched] == sorted(uids_of(path)[2] for path in ct)
    for path in ct:
        before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "out" / f"{uids_of(path)[2]}.dcm")
        assert before == after
        assert after.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless


def test_a_fetch_goes_on_where_it_was_interrupted(
    orthanc: Orthanc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(6))
    orthanc.upload(*ct)
    study, series, _ = uids_of(ct[0])
    server, keep, kept = client(orthanc), dicomweb._keep, []

    def broken(*args: Any) -> int:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(args[0].SOPInstanceUID)
        return keep(*args)

    monkeypatch.setattr(dicomweb, "_keep", broken)
    with pytest.raises(KeyboardInterrupt):
        server.fetch(study, series, tmp_path / "out")
    (tmp_path / "out" / ".radglint-0").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.dcm")}
    assert len(before) == 3
    monkeypatch.setattr(dicomweb, "_keep", keep)
    assert len(server.fetch(study, series, tmp_path / "out")) == 6
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_store_twice_is_one_object(orthanc: Orthanc, tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm")
    server = client(orthanc)
    server.store(chest)
    server.store(chest)
    (found,) = orthanc.find("DX")
    assert found == pydicom.dcmread(chest)


def test_a_refused_instance_is_named_with_its_reason(orthanc: Orthanc, tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm", StudyInstanceUID=None)
    with pytest.raises(PacsError, match=r"chest\.dcm: .* refuses it with reason C000H \(cannot understand\)") as caught:
        client(orthanc).store(chest)
    assert not isinstance(caught.value, PacsUnreachableError)
    assert "Secret" not in str(caught.value)


def test_what_is_not_there_is_said(orthanc: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(PacsError, match="has no instance of series"):
        client(orthanc).fetch("1.2.3", "1.2.4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(PacsError, match="404"):
        list(client(orthanc, url=f"http://127.0.0.1:{orthanc.http_port}/nothing").studies())
    with pytest.raises(PacsError, match="StudyDat: is no DICOM keyword"):
        list(client(orthanc).studies({"StudyDat": "20260101-"}))


@pytest.mark.parametrize("uid", ["", "..", "1.2/3", "1..2", "../../etc", "1." * 32 + "1", "1.2 ", "1.2\n"])
def test_what_is_no_uid_goes_nowhere(uid: str, tmp_path: Path) -> None:
    server = DicomWeb(DicomWebConfig(url="http://127.0.0.1:9/none"))
    with pytest.raises(PacsError, match="expected digits and dots"):
        server.fetch("1.2.3", uid, tmp_path)


def test_wrong_and_missing_credentials_are_said_without_them(
    orthanc: Orthanc,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RADGLINT_DICOMWEB_PASSWORD", "guessed-secret")
    with pytest.raises(PacsError, match="401") as caught:
        list(client(orthanc).studies())
    assert "guessed-secret" not in repr(caught.value)
    monkeypatch.delenv("RADGLINT_DICOMWEB_PASSWORD")
    with pytest.raises(ConfigError, match="only one of the two"):
        list(client(orthanc).studies())


def test_two_servers_have_credentials_of_their_own(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADGLINT_DICOMWEB_PASSWORD", "of another server")
    monkeypatch.setenv("ARCHIVE_USER", USER)
    monkeypatch.setenv("ARCHIVE_PASSWORD", str(orthanc.password))
    assert list(client(orthanc, credentials_env="ARCHIVE").studies()) == []


def test_a_token_is_sent_and_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login someone password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[str | None] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        reply(handler, 200, b"[]")

    with serving(answer) as url:
        list(DicomWeb(DicomWebConfig(url=url)).studies())
        monkeypatch.setenv("RADGLINT_DICOMWEB_TOKEN", "abc")
        list(DicomWeb(DicomWebConfig(url=url)).studies())
    assert seen == [None, "Bearer abc"]


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"url": "http://pacs.example/x"}, {"USER": "a", "PASSWORD": "b"}, "over http"),
        ({"url": "http://pacs.example/x"}, {"TOKEN": "b"}, "over http"),
        ({"url": "https://pacs.example/x", "ca_file": "/nowhere.pem"}, {}, "no such file of certificates"),
        ({"url": "https://pacs.example/x", "ca_file": "/x", "verify_tls": False}, {}, "leave out one"),
        ({"url": "https://pacs.example/x"}, {"USER": "a", "PASSWORD": "b", "TOKEN": "c"}, "both set"),
    ],
)
def test_credentials_that_would_leak_or_contradict_are_refused(
    changes: dict[str, Any], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"RADGLINT_DICOMWEB_{name}", value)
    with pytest.raises(ConfigError, match=message):
        open_session(DicomWebConfig(**changes))


def test_tls_is_verified_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    (tmp_path / "ca.pem").write_text("")
    assert open_session(DicomWebConfig(url="https://a/b")).verify is True
    assert open_session(DicomWebConfig(url="https://a/b", ca_file=tmp_path / "ca.pem")).verify == str(
        tmp_path / "ca.pem"
    )
    assert open_session(DicomWebConfig(url="https://a/b", verify_tls=False)).verify is False


@pytest.mark.parametrize("url", ["ftp://a/b", "pacs", "http://", "https://user:word@a/b", "https://a/b?c=d"])
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DicomWebConfig(url=url)
    assert "word" not in caught.value.errors()[0]["msg"].replace("password", "")


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [503, 503, 200]

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        reply(handler, codes.pop(0), b"[]")

    with serving(answer) as url:
        assert list(DicomWeb(DicomWebConfig(url=url, attempts=3, first_wait_s=0.01)).studies()) == []
        codes.extend([503, 503])
        with pytest.raises(PacsUnreachableError, match="HTTP 503"):
            list(DicomWeb(DicomWebConfig(url=url, attempts=2, first_wait_s=0.01)).studies())
    assert not codes


@pytest.mark.parametrize("body", [b"<html>Jane Doe</html>", b"{", b'[{"0020000D": 5}]', b"7", b"null"])
def test_what_is_no_dicomweb_is_one_line_without_its_text(body: bytes) -> None:
    with serving(lambda handler: reply(handler, 200, body)) as url, pytest.raises(PacsError) as caught:
        list(DicomWeb(DicomWebConfig(url=url)).studies())
    assert re.search("no (DICOMweb|usable) answer", str(caught.value))
    assert "Jane" not in str(caught.value)


def test_another_instance_than_asked_for_is_not_written(tmp_path: Path) -> None:
    """A server that answers with a file of another name, or of another series, cannot write where it likes."""
    chest = with_evil_name(write_chest(tmp_path / "other.dcm", SOPInstanceUID=PLACEHOLDER))
    wanted = generate_uid()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if f"/instances/{wanted}" in handler.path:
            reply(handler, 200, part(chest.read_bytes()) + b"\r\n--x--\r\n", MULTIPART)
        else:
            reply(handler, 200, listing(INSTANCE, wanted))

    with serving(answer) as url, pytest.raises(PacsError, match="another instance"):
        DicomWeb(DicomWebConfig(url=url)).fetch("1.2.3", "1.2.4", tmp_path / "a" / "b" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*.dcm")) == ["other.dcm"]


def test_a_redirect_to_another_server_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It could lead to anything that this machine reaches, and would take the credentials along."""
    monkeypatch.setenv("RADGLINT_DICOMWEB_TOKEN", "abc")
    asked: list[str] = []

    def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, 200, listing(INSTANCE, "1.2.5"))

    with serving(elsewhere) as other:

        def lead_away(handler: http.server.BaseHTTPRequestHandler) -> None:
            is_search = handler.path.partition("?")[0].endswith("/instances")
            if is_search and "never" not in handler.path:
                reply(handler, 200, listing(INSTANCE, "1.2.5"))
            else:
                redirect(handler, other)

        with serving(lead_away) as url:
            server = DicomWeb(DicomWebConfig(url=url))
            with pytest.raises(PacsError, match=r"redirects to another server") as caught:
                list(server.studies())
            assert not isinstance(caught.value, PacsUnreachableError)
            with pytest.raises(PacsError, match="redirects to another server"):
                server.fetch("1.2.3", "1.2.4", tmp_path / "out")
    assert asked == []
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("target", "is_followed"),
    [("/dicom-web/there", True), ("//127.0.0.2/x", False), ("https:", False), ("file:///etc/passwd", False)],
)
def test_where_a_redirect_may_lead(target: str, is_followed: bool) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/dicom-web/there"):
            reply(handler, 200, b"[]")
        else:
            redirect(handler, target + (handler.headers["Host"] if target == "https:" else ""))

    with serving(answer) as url:
        server = DicomWeb(DicomWebConfig(url=url))
        if is_followed:
            assert list(server.studies()) == []
        else:
            with pytest.raises(PacsError, match="redirects to another server"):
                list(server.studies())


def test_a_series_that_is_too_large_is_refused(orthanc: Orthanc, tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(5))
    orthanc.upload(*ct)
    study, series, _ = uids_of(ct[0])
    with pytest.raises(PacsError, match="more than 4 instances"):
        client(orthanc, max_instances=4).fetch(study, series, tmp_path / "out")
    some = 3 * ct[0].stat().st_size
    with pytest.raises(PacsError, match=f"more than {some} bytes") as caught:
        client(orthanc, max_series_bytes=some).fetch(study, series, tmp_path / "out")
    assert not isinstance(caught.value, PacsUnreachableError)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < some + 2 * ct[0].stat().st_size
    assert len(client(orthanc, max_instances=5).fetch(study, series, tmp_path / "out")) == 5


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[int] = []

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "/instances?" in handler.path:
            return reply(handler, 200, listing(INSTANCE, "1.2.5"))
        is_part = "/instances/" in handler.path
        handler.send_response(200)
        handler.send_header("Content-Type", MULTIPART if is_part else "application/dicom+json")
        handler.end_headers()
        try:
            handler.wfile.write(part(b"") if is_part else b"[")
            for k in range(400):
                handler.wfile.write(b" " * 2**16)
                sent.append(k)
        except OSError:
            pass

    monkeypatch.setattr(session, "MAX_ANSWER_BYTES", 2**21)
    with serving(endless) as url:
        server = DicomWeb(DicomWebConfig(url=url, max_instance_bytes=2**22))
        with pytest.raises(PacsError, match=f"more than {2**21} bytes at once"):
            list(server.studies())
        with pytest.raises(PacsError, match=f"more than {2**22} bytes at once"):
            server.fetch("1.2.3", "1.2.4", tmp_path / "out")
    assert len(sent) < 400
