"""Bounds on what a client may send and how slowly: rate per key, size and time of a body, pauses."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from radglint.server.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_BYTES = 2**20
FORM_PATHS = ("/api/v1/studies", "/infer/", "/datastore", "/session")
MAX_BUCKETS = 10_000


class RateLimit:
    """A token bucket for each client.

    Args:
        rate: requests per second on average.
        burst: requests at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, now_s: float | None = None) -> float:
        """Take a token: 0 if there was one, else the seconds until there is."""
        now = time.monotonic() if now_s is None else now_s
        tokens, then = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait


class Incoming:
    """Bytes of all uploads that are on their way; they lie in memory or below `data/tmp`. Used in the event loop only.

    Args:
        limit_bytes: of all together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.size_bytes = 0

    def check(self, more_bytes: int) -> None:
        """Refuse what would be too much.

        Raises:
            Problem: so.
        """
        if self.size_bytes + more_bytes > self._limit_bytes:
            raise Problem(
                429, "uploads-full", "too many uploads are on their way; try again in a few seconds", retry_s=10
            )


class BodyLimits:
    """ASGI middleware: refuses a body that is too large, too slow or that stalls, and a reader that stalls.

    Args:
        app: what is behind it.
        incoming: counts the bodies of requests with files.
        upload_bytes: for requests with files.
        body_s: for the whole body.
        stall_s: for any pause.
    """

    def __init__(self, app: App, incoming: Incoming, *, upload_bytes: int, body_s: float, stall_s: float) -> None:
        self._app, self._incoming = app, incoming
        self._upload_bytes, self._body_s, self._stall_s = upload_bytes, body_s, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_upload = self._is_upload(scope)
        limit = self._upload_bytes if is_upload else JSON_BYTES
        meter = _Meter(receive, send, limit, time.monotonic() + self._body_s, self._stall_s)
        meter.incoming = self._incoming if is_upload else None
        try:
            meter.check_head(dict(scope["headers"]).get(b"content-length", b"0"))
            await self._app(scope, meter.receive, meter.send)
        except Exception as error:
            if meter.problem is not None and not meter.has_begun:  # whatever the application made of it
                await meter.problem.response()(scope, receive, send)
            elif not (isinstance(error, TimeoutError) and meter.has_begun):
                raise  # after a reader's pause the connection is closed, as the answer is not complete
        finally:
            meter.leave()

    def _is_upload(self, scope: Scope) -> bool:
        is_form = dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/")
        return is_form and scope["path"].startswith(FORM_PATHS)


class _Meter:
    """Counts and times one request."""

    def __init__(self, receive: Receive, send: Send, limit: int, deadline_s: float, stall_s: float) -> None:
        self._receive, self._send = receive, send
        self._limit, self._deadline_s, self._stall_s = limit, deadline_s, stall_s
        self._size = 0
        self._is_whole = False
        self.incoming: Incoming | None = None  # where what came is counted too
        self.problem: Problem | None = None
        self.has_begun = False

    def check_head(self, announced: bytes) -> None:
        """Refuse a body by its announced length, before any of it is read."""
        length = int(announced) if announced.isdigit() else 0
        self._check(length, more_bytes=length)

    async def receive(self) -> Message:
        if self._is_whole:  # what comes now is only that the client leaves, and for that one may wait
            return await self._receive()
        left = self._deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(min(self._stall_s, left)):
                message = await self._receive()
        except TimeoutError:
            self.problem = Problem(408, "too-slow", "the request did not arrive in time; try again")
            raise self.problem from None
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        return message

    def _count(self, size: int) -> None:
        self._size += size
        if self.incoming is not None:
            self.incoming.size_bytes += size
        self._check(self._size, more_bytes=0)

    def _check(self, size: int, *, more_bytes: int) -> None:
        """Refuse a body of this size, or with so many more bytes on their way; keeps the problem for `send`."""
        try:
            if size > self._limit:
                raise too_large(self._limit)
            if self.incoming is not None:
                self.incoming.check(more_bytes)
        except Problem as problem:
            self.problem = problem
            raise

    def leave(self) -> None:
        """The request is over, and what it sent is stored or gone."""
        if self.incoming is not None:
            self.incoming.size_bytes -= self._size

    async def send(self, message: Message) -> None:
        if self.problem is not None and not self.has_begun:  # what reads bodies makes an answer of its own of this
            raise self.problem
        self.has_begun = True
        async with asyncio.timeout(self._stall_s):
            await self._send(message)


def too_large(limit: int) -> Problem:
    """A body above its limit."""
    return Problem(413, "too-large", f"the request is larger than {limit} bytes, which this server takes at most")
