"""DIMSE over TLS: to and from ourselves and a real Orthanc, and whom it keeps out."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certificates import Certificates
from dicom_files import phantom_hu
from orthanc import TITLE, Orthanc
from pacs_inputs import write_chest, write_ct
from radglint.cli import main
from radglint.errors import ConfigError, PacsUnreachableError
from radglint.pacs.config import DimseTarget
from radglint.pacs.dimse import Caller, Peer, echo, parse_peer, send
from radglint.pacs.receiver import Receiver, ReceiverConfig
from radglint.pacs.targets import open_target
from radglint.pacs.tls import TlsFiles

# pynetdicom leaves a socket that could not connect to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


@pytest.fixture(autouse=True)
def _no_socket_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


def receiving(folder: Path, **changes: Any) -> Receiver:
    return Receiver(folder, ReceiverConfig(**{"port": 0, "idle_timeout_s": 5.0, **changes}))


def peer_of(receiver: Receiver) -> Peer:
    return Peer("RADGLINT", "127.0.0.1", receiver.port)


def caller(files: dict[str, Any]) -> Caller:
    return Caller(timeout_s=10.0, tls=TlsFiles(**files))


def test_we_send_to_ourselves(certificates: Certificates, tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm")
    with receiving(tmp_path / "in", **certificates.files("node")) as receiver:
        echo(peer_of(receiver), caller(certificates.files("caller")))
        assert send([chest], peer_of(receiver), caller(certificates.files("caller"))) == 1
        assert receiver.stored == 1
        with pytest.raises(PacsUnreachableError, match="whether it takes our certificate"):
            echo(peer_of(receiver), caller(certificates.trust()))  # without a certificate
        with pytest.raises(PacsUnreachableError, match="whether it takes our certificate"):
            echo(peer_of(receiver), caller(certificates.files("stranger")))  # of an unknown authority
        with pytest.raises(PacsUnreachableError, match="does not answer"):
            echo(peer_of(receiver), Caller(timeout_s=5.0))  # without TLS
    with receiving(tmp_path / "in", **certificates.files("node", ca=None)) as receiver:
        echo(peer_of(receiver), caller(certificates.trust()))  # anybody, over TLS


def test_whom_we_do_not_call(certificates: Certificates, tmp_path: Path) -> None:
    with (
        receiving(tmp_path / "in", **certificates.files("node")) as receiver,
        pytest.raises(PacsUnreachableError, match=r"TLS handshake failed \(.*(issuer|self.signed)"),
    ):
        echo(peer_of(receiver), caller(certificates.files("caller", ca="stranger")))
    with (
        receiving(tmp_path / "in", **certificates.files("elsewhere")) as receiver,
        pytest.raises(PacsUnreachableError, match=r"TLS handshake failed \(ip address mismatch"),
    ):
        echo(peer_of(receiver), caller(certificates.files("caller")))
    with (
        receiving(tmp_path / "in") as receiver,
        pytest.raises(PacsUnreachableError, match=r"TLS handshake failed|does not answer"),
    ):
        echo(peer_of(receiver), Caller(timeout_s=2.0, tls=TlsFiles(**certificates.trust())))


def test_a_silent_caller_does_not_keep_others_waiting(certificates: Certificates, tmp_path: Path) -> None:
    with receiving(tmp_path / "in", **certificates.files("node")) as receiver:
        silent = [socket.create_connection(("127.0.0.1", receiver.port), timeout=20) for _ in range(3)]
        echo(peer_of(receiver), caller(certificates.files("caller")))
        for wire in silent:
            assert wire.recv(1) == b""  # it is given up
            wire.close()


@pytest.fixture(scope="module")
def secure(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that takes DICOM over TLS only, from callers with a certificate of the authority."""
    server = Orthanc(
        tmp_path_factory.mktemp("secure"), DicomTlsEnabled=True, DicomTlsRemoteCertificateRequired=True,
        DicomTlsCertificate=f"{certificates.folder}/node.pem", DicomTlsPrivateKey=f"{certificates.folder}/node.key",
        DicomTlsTrustedCertificates=f"{certificates.folder}/ca.pem",
    )  # fmt: skip
    server.start()
    yield server
    server.kill()


def test_orthanc_takes_what_we_send(secure: Orthanc, certificates: Certificates, tmp_path: Path) -> None:
    ct, peer = write_ct(tmp_path / "ct", phantom_hu(3)), parse_peer(secure.peer)
    echo(peer, caller(certificates.files("caller")))
    assert send(ct, peer, caller(certificates.files("caller"))) == 3
    assert len(secure.find("CT")) == 3
    target = open_target(DimseTarget(to=secure.peer, **certificates.files("caller")))
    target.store(write_chest(tmp_path / "chest.dcm"))
    assert len(secure.find("DX")) == 1
    for files in ({}, certificates.trust(), certificates.files("stranger")):
        with pytest.raises(PacsUnreachableError):
            echo(peer, Caller(timeout_s=5.0, tls=TlsFiles(**files)))


def test_orthanc_sends_to_our_receiver(secure: Orthanc, certificates: Certificates, tmp_path: Path) -> None:
    secure.upload(*write_ct(tmp_path / "ct", phantom_hu(3)))
    study = json.loads(secure.rest("/studies"))[-1]
    with receiving(tmp_path / "in", allowed_callers=(TITLE,), **certificates.files("node")) as receiver:
        node = {"AET": "RADGLINT", "Host": "127.0.0.1", "Port": receiver.port}
        secure.rest("/modalities/us", {**node, "UseDicomTls": True}, method="PUT")
        secure.rest("/modalities/us/store", {"Resources": [study]})
        assert receiver.stored > 0
        secure.rest("/modalities/us", {**node, "UseDicomTls": False}, method="PUT")
        with pytest.raises(OSError, match="HTTP Error"):
            secure.rest("/modalities/us/store", {"Resources": [study]})


def test_dcmtk_speaks_tls_with_us(certificates: Certificates, tmp_path: Path) -> None:
    folder = certificates.folder
    with receiving(tmp_path / "in", **certificates.files("node")) as receiver:
        where = ["127.0.0.1", str(receiver.port)]
        own = ["+tls", str(folder / "caller.key"), str(folder / "caller.pem")]
        command = ["echoscu", *own, "--add-cert-file", str(folder / "ca.pem"), *where]
        subprocess.run(command, check=True, timeout=20, capture_output=True)


def test_the_command_line(secure: Orthanc, certificates: Certificates, capsys: pytest.CaptureFixture[str]) -> None:
    files = certificates.files("caller")
    options = [word for key, path in files.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    assert main(["pacs", "echo", secure.peer, *options]) == 0
    assert "answers" in capsys.readouterr().out
    assert main(["pacs", "echo", secure.peer, "--tls-certificate", str(files["tls_certificate"])]) == 2
    assert "tls_ca: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"tls_ca": "none"}, "holds no certificates"), ({"tls_ca": "caller.key"}, "holds no certificates"),
        ({"tls_ca": "ca.pem", "tls_certificate": "caller.pem"}, "only one of the two"),
        ({"tls_ca": "ca.pem", "tls_certificate": "caller.pem", "tls_key": "node.key"}, "cannot be used"),
        ({"tls_ca": "ca.pem", "tls_certificate": "caller.pem", "tls_key": "locked.key"}, "without a password"),
        ({"tls_certificate": "caller.pem", "tls_key": "caller.key"}, "tls_ca: is missing"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_said_at_once(
    names: dict[str, str],
    message: str,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    locked = certificates.folder / "locked.key"
    if not locked.exists():
        command = ["openssl", "ec", "-in", "caller.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key"]
        subprocess.run(command, cwd=certificates.folder, check=True, timeout=20, capture_output=True)
    files = {key: certificates.folder / name for key, name in names.items()}
    with pytest.raises(ConfigError, match=message):
        open_target(DimseTarget(to="A@127.0.0.1:1", **files))
    if set(files) != {"tls_certificate", "tls_key"}:
        with pytest.raises(ConfigError, match=f"{message}|tls_certificate: is missing"):
            receiving(tmp_path / "in", **files).__enter__()
    assert threading.active_count() < 50
