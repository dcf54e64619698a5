"""Who may come in, what the browser is told, and what the log keeps: one ASGI middleware around everything.

The log has method, route pattern, status and time: no paths, queries, file names or addresses.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from radglint.server.auth import KeyRing
from radglint.server.config import ServerConfig, is_loopback
from radglint.server.limits import App, Message, RateLimit, Receive, Scope, Send
from radglint.server.metrics import Metrics
from radglint.server.problems import Problem

log = logging.getLogger("radglint.access")
NO_ANSWER = 499  # the client left before there was one
OPEN_PATHS = ("/health", "/api/v1/openapi.json", "/auth/", "/auth/token")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Gate:
    """See the module.

    Args:
        app: what is behind it.
        config: of the server.
        metrics: every request is counted.
    """

    def __init__(self, app: App, config: ServerConfig, metrics: Metrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._keys = KeyRing(config.keys)
        self._rate = RateLimit(config.rate, config.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), NO_ANSWER

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(message, scope)
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, dressed)
        except Problem as problem:
            await problem.response()(scope, receive, dressed)
        except Exception:  # answered and logged already, see `problems`; uvicorn would log it with all its values
            if status == NO_ANSWER:
                await Problem(500, "internal", "radglint itself is at fault").response()(scope, receive, dressed)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _admit(self, scope: Scope) -> None:
        """Refuse a request by its head alone.

        Raises:
            Problem: wrong name or origin, too many requests, no or a wrong key.
        """
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._check_names(headers, scope["scheme"])
        client = scope.get("client")
        key = _given_key(headers)
        number = self._keys.number_of(key) if self._keys and key is not None else None
        who = f"key {number}" if number is not None else f"address {client[0] if client else ''}"
        wait = self._rate.wait_s(who)
        if wait > 0:
            raise Problem(429, "too-many-requests", f"too many requests; try again in {wait:.1f} s", retry_s=wait)
        is_preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        if self._keys and number is None and _needs_key(scope["path"]) and not is_preflight:
            raise Problem(401, "no-key", "an API key of this server is needed, in the header X-API-Key")

    def _check_names(self, headers: dict[bytes, str], scheme: str) -> None:
        """Without keys, a page elsewhere must reach this server neither under another name nor at all."""
        host = headers.get(b"host", "")
        name = urlsplit(f"//{host}").hostname if _is_host(host) else None
        if not self._keys and not (name and (is_loopback(name) or name in self._config.host_names)):
            raise Problem(403, "wrong-name", "this server is not asked under this name; see --host-name")
        origin = headers.get(b"origin")
        if origin is None or origin in (f"{scheme}://{host}", *self._config.cors):
            return
        raise Problem(403, "wrong-origin", "pages of other origins may not use this server; see --cors")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(method, route).observe(seconds)
        log.info("%s %s %d %.0f ms", method, route, status, 1000 * seconds)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _is_host(host: str) -> bool:
    try:
        urlsplit(f"//{host}").port  # noqa: B018 (raises for a port that is none)
    except ValueError:
        return False
    return bool(host) and not set(host) & set("/?#@\\ ")


def _given_key(headers: dict[bytes, str]) -> str | None:
    """From X-API-Key, or from Authorization as a bearer token, as Prometheus and MONAI Label clients send it."""
    kind, _, token = headers.get(b"authorization", "").partition(" ")
    return headers.get(b"x-api-key") or (token.strip() if kind.lower() == "bearer" else None)


def _needs_key(path: str) -> bool:
    """All but the health check, the API's description and the viewer's own files."""
    return not (path in OPEN_PATHS or path in ("/", "/favicon.ico") or path.startswith("/static/"))


def _dress(message: Message, scope: Scope) -> None:
    """Add the headers that keep a browser from doing harm; data of patients is not cached by anybody."""
    headers = list(message.get("headers", []))
    is_report = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
    policy = REPORT_POLICY if is_report and scope["path"] != "/" else PAGE_POLICY
    there = {name for name, _ in headers}
    extra = [*_HEADERS, (b"content-security-policy", policy.encode())]
    is_ours = scope["path"] == "/" or scope["path"].startswith("/static/")
    extra.append((b"cache-control", b"no-cache" if is_ours else b"no-store"))
    message["headers"] = headers + [item for item in extra if item[0] not in there]
