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


class BodyLimits:
    """ASGI middleware: refuses a body that is too large, too slow or that stalls, and a reader that stalls.

    Args:
        app: what is behind it.
        upload_bytes: for requests with files.
        body_s: for the whole body.
        stall_s: for any pause.
    """

    def __init__(self, app: App, *, upload_bytes: int, body_s: float, stall_s: float) -> None:
        self._app = app
        self._upload_bytes, self._body_s, self._stall_s = upload_bytes, body_s, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit = self._limit(scope)
        meter = _Meter(receive, send, limit, time.monotonic() + self._body_s, self._stall_s)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if announced.isdigit() and int(announced) > limit:
                meter.problem = too_large(limit)
                raise meter.problem
            await self._app(scope, meter.receive, meter.send)
        except Exception as error:
            if meter.problem is not None and not meter.has_begun:  # whatever the application made of it
                await meter.problem.response()(scope, receive, send)
            elif not (isinstance(error, TimeoutError) and meter.has_begun):
                raise  # after a reader's pause the connection is closed, as the answer is not complete

    def _limit(self, scope: Scope) -> int:
        is_form = dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/")
        return self._upload_bytes if is_form and scope["path"].startswith(FORM_PATHS) else JSON_BYTES


class _Meter:
    """Counts and times one request."""

    def __init__(self, receive: Receive, send: Send, limit: int, deadline_s: float, stall_s: float) -> None:
        self._receive, self._send = receive, send
        self._limit, self._deadline_s, self._stall_s = limit, deadline_s, stall_s
        self._size = 0
        self._is_whole = False
        self.problem: Problem | None = None
        self.has_begun = False

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
            self._size += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._size > self._limit:
                self.problem = too_large(self._limit)
                raise self.problem
        return message

    async def send(self, message: Message) -> None:
        if self.problem is not None and not self.has_begun:  # what reads bodies makes an answer of its own of this
            raise self.problem
        self.has_begun = True
        async with asyncio.timeout(self._stall_s):
            await self._send(message)


def too_large(limit: int) -> Problem:
    """A body above its limit."""
    return Problem(413, "too-large", f"the request is larger than {limit} bytes, which this server takes at most")
