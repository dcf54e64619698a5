"""HTTP/1.1 of uvicorn with two bounds that it lacks: time for a request's head, and connections at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(header_s: float, connections: int) -> type[H11Protocol]:
    """A protocol class for `uvicorn.Config(http=...)`.

    Args:
        header_s: a connection whose next request has begun, or that has sent nothing yet, is closed after this time.
        connections: more are closed at once.
    """

    class BoundedProtocol(H11Protocol):
        """See `bounded_protocol`."""

        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.abort()
                return
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self.conn.trailing_data[0] and self._head_timer is None:
                self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            self._head_timer = self.loop.call_later(header_s, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedProtocol
