"""A running server under attack, over raw sockets where a client library would be too polite.

Slow heads and bodies, readers that stall, wrong keys, other origins: see `test_server.py` and `test_server_parts.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import hmac
import json
import socket
import struct
import time
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from radglint import batch_memory
from radglint.errors import ImageError
from radglint.server import auth
from radglint.server.schemas import MAX_QUERIES, MAX_QUERY_CHARACTERS, JobRequest
from radglint.server.studies import check_memory
from server_process import KEY, ServerProcess, nifti, png

SOCKET_S = 60.0


def raw(server: ServerProcess, data: bytes) -> bytes:
    """Send bytes as they are; all that comes back until the server closes the connection."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=SOCKET_S) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.sendall(data)
        parts = []
        while True:
            try:
                part = connection.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts)


def head(server: ServerProcess, method: str, target: str, *lines: str, key: str | None = KEY) -> bytes:
    """The head of a request, without the empty line's check of anything."""
    given = [f"{method} {target} HTTP/1.1", f"Host: {urlsplit(server.url).netloc}", "Connection: close"]
    given += [f"X-API-Key: {key}"] if key else []
    return "\r\n".join([*given, *lines, "", ""]).encode("latin-1")


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def is_alive(server: ServerProcess) -> bool:
    return server.client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "target",
    [
        "/static/../server/auth.py", "/static/..%2fserver/auth.py", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static//etc/passwd", "/static/%00", "/api/v1/studies/..%2f..%2fx", "/api/v1/studies/%2e%2e/volume.nii.gz",
        "/api/v1/studies/" + "0" * 23 + "%0a", "/api/v1/studies/" + "A" * 24, "/session/../../etc/passwd",
        "/datastore/image?image=../../radglint.sqlite", "/api/v1/jobs/" + "0" * 24 + "/../../../report.json",
        "/api/v1/jobs/" + "0" * 24 + "/findings/0/..%2f..%2flogits.npy", "//evil.example/", "/api/v1/studies/\xff",
    ],
)  # fmt: skip
def test_no_path_leaves_its_place(server: ServerProcess, target: str) -> None:
    answer = raw(server, head(server, "GET", target))
    assert status_of(answer) in (400, 404, 422), answer[:300]
    for leaked in (b"import ", b"root:", b"SQLite", b"\x93NUMPY"):
        assert leaked not in answer


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "OPTIONS", "HEAD", "PATCH", "get", "BREW", "PUT"])
def test_odd_methods_do_nothing(server: ServerProcess, method: str) -> None:
    answer = raw(server, head(server, method, "/api/v1/studies", "X-Secret: echo-me"))
    assert status_of(answer) in (400, 405, 501), answer[:200]
    assert b"echo-me" not in answer
    assert KEY.encode() not in answer


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"), ("Content-Length: -1",), ("Content-Length: 1e3",),
        ("Content-Length: 99999999999999999999999",), ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: gzip",), ("Content-Type: multipart/form-data",), ("Bad Header: x",), ("X-A: a\x00b",),
        ("Content-Type: multipart/form-data; boundary=" + "b" * 5000, "Content-Length: 0"),
        ("X-Long: " + "a" * 200_000,),
        tuple(f"X-{k}: 1" for k in range(20_000)),
    ],
    ids=range(12),
)  # fmt: skip
def test_malformed_heads_are_refused(server: ServerProcess, lines: tuple[str, ...]) -> None:
    answer = raw(server, head(server, "POST", "/api/v1/studies", *lines) + b"hello")
    assert status_of(answer) in (0, 400, 411, 413, 422, 431, 501), answer[:300]
    assert is_alive(server)


def test_one_request_does_not_hide_another(server: ServerProcess) -> None:
    """Length and chunks contradict each other: whatever is read, what follows is no request of its own."""
    hidden = head(server, "DELETE", "/api/v1/studies/" + "0" * 24)
    both = ("Content-Length: 4", "Transfer-Encoding: chunked", "Content-Type: application/json")
    answer = raw(server, head(server, "POST", "/api/v1/jobs", *both) + b"0\r\n\r\n" + hidden)
    assert answer.count(b"HTTP/1.1 ") <= 1


def chunks(count: int, size: int) -> bytes:
    return (f"{size:x}\r\n".encode() + bytes(size) + b"\r\n") * count


def test_a_body_without_end_is_cut_off(server: ServerProcess) -> None:
    start = head(
        server, "POST", "/api/v1/studies", "Transfer-Encoding: chunked", "Content-Type: multipart/form-data; boundary=b"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    opened = f"{len(part):x}\r\n".encode() + part + b"\r\n"
    answer = raw(server, start + opened + chunks(150, 2**16))
    assert status_of(answer) in (0, 413)
    assert is_alive(server)


@pytest.mark.parametrize(
    "name",
    [
        'a"; filename="b',
        "a\\r\\nX-Evil: 1",
        "<img src=x onerror=alert(1)>.png",
        "../../x.png",
        "\u202egnp.exe",
        "a" * 5000,
    ],
)
def test_names_are_shown_and_never_used(server: ServerProcess, name: str) -> None:
    answer = server.client.post("/api/v1/studies", files={"file": (name, png())})
    assert answer.status_code in (202, 400), answer.text
    if answer.status_code == 400:
        return
    study = answer.json()
    assert "\n" not in study["name"]
    assert "/" not in study["name"] or "<" in study["name"]
    assert len(study["name"]) <= 120
    listed = server.client.get("/api/v1/studies")
    assert "x-evil" not in listed.headers
    assert server.client.delete(f"/api/v1/studies/{study['id']}").status_code == 204


def test_a_line_break_in_a_name_of_the_form_adds_no_header(server: ServerProcess) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a%0d%0aX-Evil: 1\r\n X-Evil: 2"\r\n\r\n'
        + png() + b"\r\n--b--\r\n"
    )  # fmt: skip
    lines = (f"Content-Length: {len(body)}", "Content-Type: multipart/form-data; boundary=b")
    answer = raw(server, head(server, "POST", "/api/v1/studies", *lines) + body)
    assert status_of(answer) in (202, 400, 422)
    assert b"\r\nx-evil" not in answer.lower().split(b"\r\n\r\n")[0]


def test_markup_in_queries_and_names_stays_text(server: ServerProcess) -> None:
    evil = "<script>alert(1)</script>"
    study = server.upload((f"{evil}.png", png()))
    job = server.ask(study["id"], f"nodule {evil}", 'mass "onmouseover=alert(2) x="')
    assert job["state"] == "done"
    page = server.client.get(f"/api/v1/jobs/{job['id']}/report.html")
    assert page.status_code == 200
    assert evil not in page.text
    assert '"onmouseover' not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "allow-same-origin" not in policy
    for path in ("/api/v1/studies", f"/api/v1/jobs/{job['id']}"):
        assert server.client.get(path).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 900_000, b'{"a":' * 150_000, b'{"study_id":"%s","queries":["nodule"],"threshold":NaN}' % (b"0" * 24),
        b'{"study_id":"%s","queries":["nodule"],"threshold":1e999}' % (b"0" * 24), b"9" * 900_000,
        b'{"study_id":"%s","queries":%s}' % (b"0" * 24, json.dumps(["nodule"] * (MAX_QUERIES + 1)).encode()),
        b'{"study_id":"%s","queries":["%s"]}' % (b"0" * 24, b"a" * 500_000), b'"' + b"\\u0000" * 100_000 + b'"',
    ],
    ids=range(8),
)  # fmt: skip
def test_json_bombs_are_refused_quickly(server: ServerProcess, body: bytes) -> None:
    answer = server.client.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422), answer.text[:300]
    assert len(answer.content) < 5_000
    assert is_alive(server)


def test_hostile_queries_do_not_hold_up_the_server(server: ServerProcess) -> None:
    """Rules over the words of a query run where everybody waits, so the longest ones together must cost little."""
    queries = [("isn't -- been are no " * 400)[: MAX_QUERY_CHARACTERS - k - 1] for k in range(MAX_QUERIES)]
    began = time.process_time()
    with pytest.raises(ValueError, match="not a query"):
        JobRequest.model_validate({"study_id": "0" * 24, "queries": queries})
    assert time.process_time() - began < 2
    answer = server.client.post("/api/v1/jobs", json={"study_id": "0" * 24, "queries": queries})
    assert answer.status_code == 422


def claimed(shape: tuple[int, int, int], packed_bytes: int) -> bytes:
    """A gzip NIfTI whose header claims a shape, with zeros that pack well behind it."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    data = bytearray(image.to_bytes())
    struct.pack_into("<8h", data, 40, 3, *shape, 1, 1, 1, 1)
    return gzip.compress(bytes(data) + bytes(packed_bytes), 1)


def test_a_header_that_claims_the_memory_of_the_machine_is_refused(server: ServerProcess) -> None:
    before = server.client.get("/metrics").text
    for shape in ((32767, 32767, 32767), (1024, 1024, 1024), (32767, 16384, 2)):
        study = server.upload(("ct.nii.gz", claimed(shape, 8_000_000)))
        assert study["state"] == "failed", shape
        assert "ended twice" not in study["problem"]
    restarts = [
        line for line in server.client.get("/metrics").text.splitlines() if "restart" in line and "#" not in line
    ]
    assert all(line in before for line in restarts)
    assert server.upload(("ct.nii.gz", gzip.compress(nifti())))["state"] == "ready"


def test_an_image_larger_than_memory_is_refused_by_its_header(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chest.png").write_bytes(png())
    check_memory(tmp_path / "chest.png", "chest.png")
    monkeypatch.setattr(batch_memory, "usable_bytes", lambda: 100_000)
    with pytest.raises(ImageError, match=r"^chest\.png: needs about"):
        check_memory(tmp_path / "chest.png", "chest.png")


def test_every_key_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        seen.append((one, other))
        return real(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", counted)
    keys = [f"a-key-for-tests-{k:03d}" for k in range(5)]
    ring = auth.KeyRing([auth.hash_key(key) for key in keys])
    for key, number in ((keys[0], 1), (keys[4], 5), ("x", None), ("", None), (keys[0][:-1], None)):
        seen.clear()
        assert ring.number_of(key) == number
        assert len(seen) == 5
        assert len({len(one) for one, _ in seen}) == 1  # hashes: the length of a key tells nothing
