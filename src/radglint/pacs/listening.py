"""A DICOM node that listens, with bounds that `pynetdicom` lacks: on connections, handshakes and PDUs.

`pynetdicom` announces how long a PDU may be and then reads whatever length the caller claims, without end. It counts a
connection that has not asked for an association as one, also for a while when it is gone. And it waits for a TLS
handshake where it accepts connections, so that one silent caller stops all others. Here a PDU has a length and a time,
connections have a number, what is gone is gone at once, and a handshake is a matter of its own thread.
"""

from __future__ import annotations

import socket
import ssl
import time
import weakref
from functools import partial
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

MAX_OTHER_PDU_BYTES = 2**18
"""Of a PDU that holds no data: a request that offers 128 contexts in many transfer syntaxes has some 200 kB."""
IDLE_S = 60.0
ASK_S = 10.0
"""A connection asks for its association within this time."""
AWAITING_REQUEST = "Sta2"  # PS3.8 section 9.2.1
MAX_WAITING = 8
"""Connections beyond the associations: to be rejected, or not yet asking."""


class BoundedNode(AE):
    """An application entity whose servers are `BoundedServer`."""

    def make_server(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base class."""
        return super().make_server(*args, **kwargs | {"server_class": BoundedServer})


class BoundedServer(ThreadedAssociationServer):
    """See the module; `ae` says how many associations, how long a PDU, and how long to wait."""

    daemon_threads = True

    def __init__(
        self, ae: AE, address: Any, ae_title: str, contexts: list[Any], ssl_context: ssl.SSLContext | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self._tls = ssl_context  # kept from the base class, which would shake hands while it accepts
        self._wires: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__(ae, address, ae_title, contexts, **kwargs)
        self.bind(evt.EVT_CONN_OPEN, self._bound)
        self.bind(evt.EVT_CONN_CLOSE, self._gone)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        is_room = sum(wire.fileno() != -1 for wire in self._wires) < self.ae.maximum_associations + MAX_WAITING
        if is_room:
            self._wires.add(request)
        return is_room

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands and begin; in a thread of its own."""
        if self._tls is not None:
            request.settimeout(self.ae.network_timeout)
            request = self._tls.wrap_socket(request, server_side=True)
            self._wires.add(request)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that fails ends without a word: the base class would print who it was."""

    def _bound(self, event: Any) -> None:
        """Let an association read through `_read`; called before it reads anything."""
        wire = event.assoc.dul.socket
        most = max(self.ae.maximum_pdu_size, MAX_OTHER_PDU_BYTES)
        wire.recv = partial(_read, wire, most_bytes=most, seconds=self.ae.network_timeout or IDLE_S)

    def _gone(self, event: Any) -> None:
        """Wake the thread of a connection that closed before it asked for an association."""
        dul = event.assoc.dul
        if dul.state_machine.current_state == AWAITING_REQUEST:
            dul.to_user_queue.put(None)


def _read(wire: Any, size: int, *, most_bytes: int, seconds: float) -> bytearray:
    """So many bytes, or fewer if the caller hangs up; in place of `AssociationSocket.recv`.

    Raises:
        OSError: it claims a longer PDU than it may send, or it takes too long; the connection is closed.
    """
    sock = wire.socket
    if sock is None or size > most_bytes:
        wire.close()
        raise ConnectionAbortedError("the caller is gone, or claims a longer PDU than it may send")
    content, end = bytearray(), time.monotonic() + seconds
    while len(content) < size:
        sock.settimeout(max(0.001, end - time.monotonic()))
        chunk = sock.recv(min(size - len(content), 2**16))
        if not chunk:
            break
        content += chunk
    sock.settimeout(seconds)  # for what is sent
    return content
