"""C-ECHO and C-STORE: our sender to Orthanc, our receiver from Orthanc, dcmtk, itself and what is hostile."""

from __future__ import annotations

import errno
import gc
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, DigitalXRayImageStorageForPresentation  # type: ignore[attr-defined]

from dicom_files import phantom_hu
from orthanc import Orthanc, free_port
from pacs_inputs import PLACEHOLDER, with_evil_name, write_chest, write_ct
from radglint.errors import ConfigError, ImageError, PacsError, PacsUnreachableError
from radglint.pacs import receiver as receiver_module
from radglint.pacs.dimse import Caller, Peer, echo, parse_peer, send
from radglint.pacs.receiver import Receiver, ReceiverConfig

DX = DigitalXRayImageStorageForPresentation
QUICK = Caller(timeout_s=20.0)
# pynetdicom leaves a socket that could not connect to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def _no_socket_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


@contextmanager
def receiving(folder: Path, on_quiet: Callable[..., object] = lambda *_: None, **changes: Any) -> Iterator[Receiver]:
    config = ReceiverConfig(**{"port": 0, "quiet_s": 0.3, **changes})
    with Receiver(folder, config, on_quiet) as receiver:
        yield receiver


def peer_of(receiver: Receiver) -> Peer:
    return Peer("RADGLINT", "127.0.0.1", receiver.port)


def stored_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def place_of(path: Path) -> str:
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    return f"{ds.StudyInstanceUID}/{ds.SeriesInstanceUID}/{ds.SOPInstanceUID}.dcm"


def test_orthanc_answers_and_takes_what_we_send(orthanc: Orthanc, tmp_path: Path) -> None:
    peer = parse_peer(orthanc.peer)
    echo(peer, QUICK)
    ct = write_ct(tmp_path / "ct", phantom_hu(2))
    packed = write_ct(tmp_path / "rle", phantom_hu(2), syntax=pydicom.uid.RLELossless)
    assert send([*ct, *packed, write_chest(tmp_path / "chest.dcm")], peer, QUICK) == 5
    found = {ds.SOPInstanceUID: ds for ds in orthanc.find("CT")}
    for path in (*ct, *packed):
        ds = pydicom.dcmread(path)
        assert found[ds.SOPInstanceUID] == ds
        assert found[ds.SOPInstanceUID].file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
    assert send(ct, peer, QUICK) == 2
    assert len(orthanc.find("CT")) == 4


def test_orthanc_sends_to_our_receiver(orthanc: Orthanc, tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "ct", phantom_hu(3))
    orthanc.upload(*ct)
    (study,) = json.loads(orthanc.rest("/studies"))
    quiet: list[tuple[str, str, Path]] = []
    with receiving(tmp_path / "in", lambda *series: quiet.append(series), allowed_callers=("ORTHANC",)) as receiver:
        node = {"AET": "RADGLINT", "Host": "127.0.0.1", "Port": receiver.port}
        orthanc.rest("/modalities/us", node, method="PUT")
        orthanc.rest("/modalities/us/store", {"Resources": [study]})
        assert wait_for(lambda: bool(quiet))
        assert (receiver.stored, receiver.refused) == (3, 0)
    assert stored_files(tmp_path / "in") == sorted(map(place_of, ct))
    for path in ct:
        assert pydicom.dcmread(tmp_path / "in" / place_of(path)) == pydicom.dcmread(path)
    first = pydicom.dcmread(ct[0])
    folder = tmp_path / "in" / first.StudyInstanceUID / first.SeriesInstanceUID
    assert quiet == [(first.StudyInstanceUID, first.SeriesInstanceUID, folder)]


def test_dcmtk_reads_what_we_received_and_sends_to_us(tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm")
    with receiving(tmp_path / "in") as receiver:
        port = str(receiver.port)
        subprocess.run(["echoscu", "127.0.0.1", port], check=True, timeout=20, capture_output=True)
        subprocess.run(["storescu", "127.0.0.1", port, str(chest)], check=True, timeout=20, capture_output=True)
    received = tmp_path / "in" / place_of(chest)
    dump = subprocess.run(["dcmdump", str(received)], check=True, timeout=20, capture_output=True, text=True).stdout
    assert "SECRET-ID" in dump


def test_a_duplicate_is_confirmed_and_the_first_copy_stays(tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm")
    with receiving(tmp_path / "in") as receiver:
        send([chest], peer_of(receiver), QUICK)
        kept = tmp_path / "in" / place_of(chest)
        before = kept.stat().st_mtime_ns
        send([chest], peer_of(receiver), QUICK)
        assert receiver.stored == 2
    assert kept.stat().st_mtime_ns == before
    assert stored_files(tmp_path / "in") == [place_of(chest)]


def test_release_ends_a_series_if_it_is_said_so(tmp_path: Path) -> None:
    quiet: list[object] = []
    with receiving(tmp_path / "in", lambda *s: quiet.append(s), quiet_s=600.0, on_release=True) as receiver:
        send([write_chest(tmp_path / "chest.dcm")], peer_of(receiver), QUICK)
        assert wait_for(lambda: bool(quiet))


def test_a_full_disk_is_said_to_the_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A700H, "out of resources": the sender keeps the instance and may try again."""
    chest = write_chest(tmp_path / "chest.dcm")
    with receiving(tmp_path / "in", min_free_bytes=2**60) as receiver:
        with pytest.raises(PacsError, match="out of resources"):
            send([chest], peer_of(receiver), QUICK)
        assert receiver.refused == 1

    @contextmanager
    def full(path: Path) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with receiving(tmp_path / "in", min_free_bytes=0) as receiver:
        monkeypatch.setattr(receiver_module, "whole_file", full)
        with pytest.raises(PacsError, match="A700H"):
            send([chest], peer_of(receiver), QUICK)
        monkeypatch.undo()
        send([chest], peer_of(receiver), QUICK)
    assert stored_files(tmp_path / "in") == [place_of(chest)]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_uid_that_is_a_path_writes_nothing(keyword: str, tmp_path: Path) -> None:
    evil = with_evil_name(write_chest(tmp_path / "evil.dcm", **{keyword: PLACEHOLDER}))
    with receiving(tmp_path / "a" / "b" / "c" / "in") as receiver:
        status = store_raw(receiver, pydicom.dcmread(evil), "1.2.3")
        assert status == 0x0117
        assert receiver.stored == 0
    assert stored_files(tmp_path) == ["evil.dcm"]


def test_what_is_no_data_set_or_of_another_name_is_refused(tmp_path: Path) -> None:
    chest = pydicom.dcmread(write_chest(tmp_path / "chest.dcm"))
    with receiving(tmp_path / "in") as receiver:
        assert store_raw(receiver, chest, instance="1.2.3") == 0xA900
        del chest.SeriesInstanceUID
        assert store_raw(receiver, chest) == 0x0117
        assert store_raw(receiver, chest, content=b"\xff" * 500) in (0x0117, 0xC000)
    assert stored_files(tmp_path / "in") == []


def test_only_those_who_are_allowed_may_send(tmp_path: Path) -> None:
    chest = write_chest(tmp_path / "chest.dcm")
    with receiving(tmp_path / "in", allowed_callers=("SCANNER",)) as receiver:
        with pytest.raises(PacsError, match="rejects the association"):
            send([chest], peer_of(receiver), QUICK)
        assert send([chest], peer_of(receiver), Caller("SCANNER", 5.0)) == 1
        with pytest.raises(PacsError, match="rejects the association"):
            echo(Peer("SOMEONE", "127.0.0.1", receiver.port), Caller("SCANNER", 5.0))


def test_associations_are_limited(tmp_path: Path) -> None:
    with receiving(tmp_path / "in", max_associations=1) as receiver:
        first = AE().associate("127.0.0.1", receiver.port, contexts=[build_context(CTImageStorage)])
        assert first.is_established
        second = AE().associate("127.0.0.1", receiver.port, contexts=[build_context(CTImageStorage)])
        assert not second.is_established
        first.release()
        assert wait_for(lambda: not receiver.associations)
        echo(peer_of(receiver), QUICK)


def test_an_idle_association_is_ended(tmp_path: Path) -> None:
    with receiving(tmp_path / "in", idle_timeout_s=0.5) as receiver:
        first = AE().associate("127.0.0.1", receiver.port, contexts=[build_context(CTImageStorage)])
        assert first.is_established
        assert wait_for(lambda: not first.is_established)


def test_an_endless_instance_ends_the_association(tmp_path: Path) -> None:
    big = write_ct(tmp_path / "ct", np.zeros((1, 512, 512), np.int16))
    with receiving(tmp_path / "in", max_instance_bytes=100_000, max_pdu_bytes=16384) as receiver:
        with pytest.raises(PacsUnreachableError, match="connection broke"):
            send(big, peer_of(receiver), QUICK)
        assert receiver.refused == 1
        assert send([write_chest(tmp_path / "chest.dcm")], peer_of(receiver), QUICK) == 1
    assert len(stored_files(tmp_path / "in")) == 1


def test_garbage_on_the_port_does_not_stop_the_receiver(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with receiving(tmp_path / "in", idle_timeout_s=0.5) as receiver:
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", receiver.port), timeout=2) as wire:
                wire.sendall(rng.bytes(int(rng.integers(1, 300))))
        assert wait_for(lambda: not receiver.associations)
        echo(peer_of(receiver), QUICK)


def test_a_used_port_is_said(tmp_path: Path) -> None:
    with receiving(tmp_path / "in") as receiver, pytest.raises(ConfigError, match="cannot listen"):
        Receiver(tmp_path / "other", ReceiverConfig(port=receiver.port)).__enter__()


def test_files_that_a_node_refuses_are_named(orthanc: Orthanc, tmp_path: Path) -> None:
    good = write_chest(tmp_path / "good.dcm")
    odd = write_chest(tmp_path / "odd.dcm", SOPClassUID="1.2.3.4.5.6")
    nameless = write_chest(tmp_path / "nameless.dcm", StudyInstanceUID=None)
    with pytest.raises(PacsError, match=r"2 of 3 files not stored: (?=.*nameless.*status)(?=.*odd\.dcm)") as caught:
        send([odd, good, nameless], parse_peer(orthanc.peer), QUICK)
    assert not isinstance(caught.value, PacsUnreachableError)
    assert len(orthanc.find("DX")) == 1


def test_nobody_there_and_no_dicom(tmp_path: Path) -> None:
    nobody = Peer("ANY", "127.0.0.1", free_port())
    with pytest.raises(PacsUnreachableError, match="does not answer"):
        echo(nobody, QUICK)
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ImageError, match=r"text\.dcm"):
        send([tmp_path / "text.dcm"], nobody, QUICK)


@pytest.mark.parametrize(
    "given", ["ORTHANC", "A@b", "A@b:0", "A@b:99999", "@b:1", "A@:1", "SEVENTEEN_LETTERS@b:1", "A B@c:1"]
)
def test_a_node_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="expected AE@host:port"):
        parse_peer(given)


def test_nodes_are_read() -> None:
    assert parse_peer("ORTHANC@127.0.0.1:4242") == Peer("ORTHANC", "127.0.0.1", 4242)
    assert parse_peer("A-1@[::1]:104") == Peer("A-1", "::1", 104)


def store_raw(
    receiver: Receiver, ds: pydicom.Dataset, instance: str | None = None, content: bytes | None = None
) -> int:
    """One C-STORE with any data set under any name; the status that comes back."""
    from io import BytesIO

    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset
    from pynetdicom.dimse_primitives import C_STORE

    if content is None:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_dataset(buffer, ds)
        content = buffer.getvalue()
    association = AE().associate("127.0.0.1", receiver.port, contexts=[build_context(DX, "1.2.840.10008.1.2.1")])
    assert association.is_established
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = DX
    named = str(ds.SOPInstanceUID) if instance is None else instance
    request.AffectedSOPInstanceUID = named
    request.DataSet = BytesIO(content)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(answer.Status)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        threading.Event().wait(0.05)
    return condition()


def test_a_deflated_data_set_is_not_taken(tmp_path: Path) -> None:
    """It would be unpacked in memory, to a thousand times its size, before anything of it can be checked."""
    taken = {str(syntax) for context in receiver_module._node(ReceiverConfig()).supported_contexts
             for syntax in context.transfer_syntax}  # fmt: skip
    assert "1.2.840.10008.1.2.4.90" in taken
    assert not taken & {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
