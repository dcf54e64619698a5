"""The gate in front of the server, asked without a network."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from radglint.server.access import Gate
from radglint.server.auth import hash_key
from radglint.server.config import ServerConfig
from radglint.server.metrics import Metrics

KEY = "0123456789abcdef-key"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/broken":
        raise RuntimeError("of Anna Meier")
    headers = [(b"content-type", b"text/html"), (b"referrer-policy", b"origin")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


class Client:
    """Requests straight into a gate."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.metrics = Metrics()
        self.gate = Gate(_app, ServerConfig(folder, **settings), self.metrics)

    def get(self, path: str = "/api/v1/studies", method: str = "GET", **headers: str) -> tuple[int, dict, Any]:
        """Status, headers and document."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        pairs = {"host": "127.0.0.1:8420"} | {name.replace("_", "-"): value for name, value in headers.items()}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items()]
        scope = {
            "type": "http",
            "path": path,
            "method": method,
            "headers": raw,
            "scheme": "http",
            "client": ("1.2.3.4", 5),
        }
        asyncio.run(self.gate(scope, receive, send))
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, json.loads(sent[1]["body"])


def test_too_many_requests_are_told_when_to_come_again(tmp_path: Path) -> None:
    client = Client(tmp_path, keys=(hash_key(KEY),), rate=0.1, burst=2)
    assert [client.get(x_api_key=KEY)[0] for _ in range(3)] == [200, 200, 429]
    status, headers, document = client.get(x_api_key=KEY)
    assert (status, document["type"]) == (429, "urn:radglint:too-many-requests")
    assert 1 <= int(headers["retry-after"]) <= 10
    assert [client.get(x_api_key="x" * 20)[0] for _ in range(3)] == [401, 401, 429]  # guessing is bounded too


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil", "[::1", "a:b:c", "localhost."]
)
def test_a_server_without_keys_has_only_local_names(tmp_path: Path, host: str) -> None:
    assert Client(tmp_path).get(host=host)[0] == 403
    assert Client(tmp_path, keys=(hash_key(KEY),)).get(host=host, x_api_key=KEY)[0] == 200


def test_its_own_names_are_let_in(tmp_path: Path) -> None:
    client = Client(tmp_path, host_names=("ct-desk.local",))
    for host in ("localhost", "localhost:1", "[::1]:8420", "127.0.0.1", "ct-desk.local:80"):
        assert client.get(host=host)[0] == 200, host
    assert client.get(host="LOCALHOST")[0] == 200


def test_origins(tmp_path: Path) -> None:
    client = Client(tmp_path, cors=("https://ohif.example",), keys=(hash_key(KEY),))
    assert client.get(origin="https://ohif.example", x_api_key=KEY)[0] == 200
    assert client.get(origin="http://127.0.0.1:8420", x_api_key=KEY)[0] == 200
    for origin in ("null", "https://ohif.example.evil", "https://127.0.0.1:8420", ""):
        assert client.get(origin=origin, x_api_key=KEY)[0] == 403, origin
    preflight = {"origin": "https://ohif.example", "access_control_request_method": "POST"}
    assert client.get(method="OPTIONS", **preflight)[0] == 200  # a browser sends no key with this one
    assert client.get(method="OPTIONS", **(preflight | {"origin": "https://evil"}))[0] == 403
    assert client.get(method="GET", **preflight)[0] == 401


def test_what_a_browser_is_told(tmp_path: Path) -> None:
    client = Client(tmp_path)
    _, page, _ = client.get("/")
    _, report, _ = client.get("/api/v1/jobs/x/report.html")
    assert "script-src 'self'" in page["content-security-policy"]
    assert "sandbox" in report["content-security-policy"]
    assert (page["cache-control"], report["cache-control"]) == ("no-cache", "no-store")
    assert client.get("/static/app.js")[1]["cache-control"] == "no-cache"
    assert page["referrer-policy"] == "origin"  # what the application says stays


def test_a_defect_leaves_as_a_problem_without_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(tmp_path)
    status, headers, document = client.get("/broken")
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert "Meier" not in json.dumps(document) + caplog.text
    counts = {"studies": 1, "stored_bytes": 2, "waiting_jobs": 3, "waiting_studies": 4, "incoming_bytes": 5}
    assert b'radglint_http_requests_total{method="GET",route="other",status="500"} 1.0' in client.metrics.text(counts)


def test_methods_and_paths_do_not_become_labels(tmp_path: Path) -> None:
    client = Client(tmp_path)
    client.get("/patients/meier", method="BREW")
    counts = dict.fromkeys(("studies", "stored_bytes", "waiting_jobs", "waiting_studies", "incoming_bytes"), 0)
    text = client.metrics.text(counts).decode()
    assert "meier" not in text
    assert "BREW" not in text
