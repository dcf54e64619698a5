"""What a caller can make our C-STORE receiver hold: a PDU of any length or without end, and connections."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from radglint.errors import PacsUnreachableError
from radglint.pacs.dimse import Caller, Peer, echo
from radglint.pacs.listening import MAX_OTHER_PDU_BYTES, MAX_WAITING
from radglint.pacs.receiver import Receiver, ReceiverConfig

ASSOCIATE, DATA, LONGEST = 0x01, 0x04, 2**32 - 1
# pynetdicom leaves a socket that could not connect to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def _no_socket_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


def receiving(folder: Path, **changes: Any) -> Receiver:
    return Receiver(folder, ReceiverConfig(**{"port": 0, "idle_timeout_s": 20.0, **changes}))


def peer_of(receiver: Receiver) -> Peer:
    return Peer("RADGLINT", "127.0.0.1", receiver.port)


def head(kind: int, length: int) -> bytes:
    """The first six bytes of a PDU (PS3.8 section 9.3.1)."""
    return struct.pack(">BBL", kind, 0, length)


def is_ended(wire: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection by then."""
    wire.settimeout(seconds)
    try:
        return wire.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def answers_within(receiver: Receiver, seconds: float) -> None:
    """Ask until there is room again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(PacsUnreachableError):
            return echo(peer_of(receiver), Caller(timeout_s=10.0))
        threading.Event().wait(0.1)
    raise AssertionError(f"no room for another connection after {seconds:g} s")


def pour(wire: socket.socket, size: int) -> int:
    """Send zeros until the other side has had enough; how many went out."""
    sent = 0
    wire.settimeout(5)
    with contextlib.suppress(OSError):
        while sent < size:
            sent += wire.send(bytes(2**16))
    return sent


def test_a_request_that_claims_4_gb_is_not_read(tmp_path: Path) -> None:
    with receiving(tmp_path / "in") as receiver:
        tracemalloc.start()
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(head(ASSOCIATE, LONGEST))
            sent = pour(wire, 2**26)
            assert sent < 2**26
            assert is_ended(wire, 5)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**24
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(head(ASSOCIATE, MAX_OTHER_PDU_BYTES + 1))
            assert is_ended(wire, 5)
        echo(peer_of(receiver), Caller(timeout_s=10.0))


def test_data_that_claims_4_gb_ends_the_association(tmp_path: Path) -> None:
    with receiving(tmp_path / "in") as receiver:
        association = AE().associate("127.0.0.1", receiver.port, contexts=[build_context(CTImageStorage)])
        assert association.is_established
        association.dul.socket.socket.sendall(head(DATA, LONGEST) + bytes(1000))
        end = time.monotonic() + 10
        while (association.is_established or receiver.associations) and time.monotonic() < end:
            threading.Event().wait(0.05)
        assert not association.is_established
        assert not receiver.associations
        echo(peer_of(receiver), Caller(timeout_s=10.0))


@pytest.mark.parametrize("start", [b"", head(ASSOCIATE, 100)[:3], head(ASSOCIATE, 100) + b"x"])
def test_a_pdu_that_does_not_come_is_not_waited_for(start: bytes, tmp_path: Path) -> None:
    with receiving(tmp_path / "in", idle_timeout_s=0.6) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(start)
            assert is_ended(wire, 10)
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as wire:
            wire.sendall(head(ASSOCIATE, 10_000))
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 15:  # a byte now and then does not help
                    wire.sendall(b"x")
                    threading.Event().wait(0.1)
            assert time.monotonic() - began < 15


def test_connections_are_limited(tmp_path: Path) -> None:
    most = 2 + MAX_WAITING
    with receiving(tmp_path / "in", max_associations=2) as receiver, contextlib.ExitStack() as open_ones:
        address = ("127.0.0.1", receiver.port)
        wires = [open_ones.enter_context(socket.create_connection(address, timeout=10)) for _ in range(most + 3)]
        assert not any(is_ended(wire, 0.05) for wire in wires[:most])
        assert all(is_ended(wire, 5.0) for wire in wires[most:])
        assert receiver.associations <= most
        open_ones.close()
        answers_within(receiver, 15.0)  # less than a silent connection may last
