"""Parts of the server alone: configuration, keys, rate, bounds of a connection, the hub."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from radglint.cli import main
from radglint.errors import ConfigError
from radglint.server.auth import KeyRing, hash_key, read_keys
from radglint.server.config import ServerConfig, is_loopback
from radglint.server.events import Hub
from radglint.server.folders import DataFolder, new_id
from radglint.server.http_protocol import bounded_protocol
from radglint.server.limits import BodyLimits, Incoming, RateLimit
from radglint.server.planning import first_queries
from radglint.server.studies import public_message
from radglint.server.uploads import shown_name

KEY = "0123456789abcdef-key"


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--keys"):
        ServerConfig(tmp_path, host="0.0.0.0")
    assert ServerConfig(tmp_path, host="0.0.0.0", keys=(hash_key(KEY),)).keys
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert is_loopback(host)
        assert ServerConfig(tmp_path, host=host).host == host
    for host in ("10.0.0.1", "example.org", "::", ""):
        assert not is_loopback(host)


@pytest.mark.parametrize(
    "wrong", [{"dicomweb": "ftp://pacs"}, {"incoming_bytes": 5}, {"queue": 0}, {"rate": -1.0}, {"cache_bytes": 0}]
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(tmp_path, **wrong)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--data", str(tmp_path)]) == 2
    assert "--keys" in capsys.readouterr().err
    assert main(["serve", "--keys", str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["serve", "--database", "oracle://x", "--data", str(tmp_path), "--port", "0"]) == 2
    assert "--database" in capsys.readouterr().err


def test_an_address_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--data", str(tmp_path / "x"), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_keys_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the viewer\n{KEY}  # mine\n{hash_key('another-key-0123456789')}\n")
    path.chmod(0o600)
    monkeypatch.setenv("RADGLINT_API_KEYS", "third-key-0123456789, " + KEY)
    ring = KeyRing(read_keys(path))
    assert ring.number_of("third-key-0123456789") == 1
    assert ring.number_of(KEY) == 2
    assert ring.number_of("another-key-0123456789") == 3
    assert ring.number_of(hash_key(KEY)) is None  # a stolen hash opens nothing
    assert ring.number_of("") is None
    assert not KeyRing(())


@pytest.mark.parametrize(("text", "mode", "words"), [
    ("short", 0o600, "at least 16"), ("# nothing", 0o600, "no API key"), (KEY, 0o604, "chmod 600"),
    ("\udcff" * 20, 0o600, "not UTF-8"),
])  # fmt: skip
def test_bad_key_files_are_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        read_keys(path)


def test_a_bucket_fills_at_its_rate() -> None:
    limit = RateLimit(rate=2, burst=3)
    assert [limit.wait_s("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert limit.wait_s("a", 0.0) == pytest.approx(0.5)
    assert limit.wait_s("b", 0.0) == 0
    assert limit.wait_s("a", 0.6) == 0
    assert limit.wait_s("a", 0.6) > 0
    assert [limit.wait_s("a", 100.0) for _ in range(4)][:3] == [0, 0, 0]


async def _app(scope, receive, send) -> None:
    """Reads the body, then sends its length; or a lot, if asked."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/much":
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
    await send({"type": "http.response.body", "body": str(size).encode()})


@contextmanager
def running(header_s: float = 0.5, connections: int = 20, incoming_bytes: int = 10**8) -> Iterator[int]:
    """A small server with short bounds; yields its port."""
    app = BodyLimits(_app, Incoming(incoming_bytes), upload_bytes=10**7, body_s=1.0, stall_s=0.5)
    config = uvicorn.Config(
        app, http=bounded_protocol(header_s, connections), lifespan="off", log_config=None, ws="none",
        log_level="critical",
    )  # fmt: skip
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def answer_to(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts with pauses; everything that comes back until the connection is closed."""
    found = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as client:
        with suppress(OSError):  # the other side may have had enough
            for part in parts:
                client.sendall(part)
                time.sleep(pause_s)
            client.shutdown(socket.SHUT_WR)
        try:
            while chunk := client.recv(65536):
                found += chunk
        except ConnectionResetError:
            return found or b"reset"
    return found


def test_slow_heads_are_closed() -> None:
    with running() as port:
        began = time.monotonic()
        slow = answer_to(port, *(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" for _ in range(8)), pause_s=0.2)
        assert slow in (b"", b"reset")
        silent = socket.create_connection(("127.0.0.1", port), timeout=8)
        with closing(silent), suppress(ConnectionResetError):
            assert silent.recv(10) == b""
        assert time.monotonic() - began < 6
        assert b"200 OK" in answer_to(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")


def test_slow_and_large_bodies_are_refused() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with running() as port:
        assert b"408" in answer_to(port, head % 100, pause_s=0.7)
        assert b"408" in answer_to(port, head % 100, *(b"x" for _ in range(3)), pause_s=0.3)
        assert b"413" in answer_to(port, head % (2**20 + 1))
        chunked = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b"413" in answer_to(port, chunked, *(b"40000\r\n" + bytes(2**18) + b"\r\n" for _ in range(5)))
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * 50, trust_env=False).text == "50"


def test_uploads_on_their_way_are_bounded_together() -> None:
    """What one client has sent of its upload counts against the next, until the first is done or gone."""
    form = b"Host: a\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    head = b"POST /api/v1/studies HTTP/1.1\r\n" + form + b"Content-Length: %d\r\n\r\n"
    chunked = b"POST /api/v1/studies HTTP/1.1\r\n" + form + b"Transfer-Encoding: chunked\r\n\r\n"
    with running(incoming_bytes=10**6) as port:
        assert b"429" in answer_to(port, head % (10**6 + 1))  # refused by what it announces
        with closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as first:
            first.sendall(head % 800_000 + bytes(700_000))
            time.sleep(0.2)
            refused = answer_to(port, head % 400_000)
            assert b"429" in refused
            assert b"retry-after" in refused.lower()
            assert b"uploads-full" in answer_to(port, chunked, b"61a80\r\n" + bytes(400_000) + b"\r\n")
            assert httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * 50, trust_env=False).text == "50"
            first.sendall(bytes(100_000))
            assert b"200 OK" in first.recv(2**16)
        with closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as second:
            second.sendall(head % 900_000 + bytes(700_000))
        time.sleep(0.2)  # it is gone, and so is what it sent
        assert b"200 OK" in answer_to(port, head % 900_000, bytes(900_000))


def test_a_reader_that_stalls_is_left() -> None:
    with running() as port, closing(socket.create_connection(("127.0.0.1", port), timeout=8)) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(1.5)  # nothing is read; buffers fill, then the pause is too long
        size, whole = 0, 400 * 2**16
        with suppress(ConnectionResetError):
            while chunk := client.recv(2**20):
                size += len(chunk)
        assert size < whole


def test_connections_are_bounded() -> None:
    with running(header_s=5, connections=3) as port:
        clients = [socket.create_connection(("127.0.0.1", port), timeout=8) for _ in range(3)]
        time.sleep(0.2)
        assert answer_to(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") in (b"", b"reset")
        for client in clients:
            client.close()
        time.sleep(0.2)
        assert b"200" in answer_to(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")


def test_the_hub_wakes_listeners_from_other_threads() -> None:
    async def listen() -> dict:
        hub = Hub()
        hub.open()
        with hub.listening("a") as changed:
            threading.Thread(target=hub.publish, args=("a",), kwargs={"state": "reading"}).start()
            await asyncio.wait_for(changed.wait(), 5)
            changed.clear()
            hub.close()
            await asyncio.wait_for(changed.wait(), 5)
            assert hub.is_closing
        live = hub.live("a")
        hub.settle("a")
        assert hub.live("a") == {}
        return live

    assert asyncio.run(listen()) == {"state": "reading"}


def test_a_data_folder_has_one_server_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    with pytest.raises(ConfigError, match="another radglint server"):
        DataFolder(tmp_path / "data").claim()
    study, job = new_id(), new_id()
    (folder.job(study, job)).mkdir(parents=True)
    (folder.job(study, job) / "x").write_text("x")
    folder.remove_job(study, job)
    assert not folder.job(study, job).exists()
    folder.remove_study(study)
    folder.remove_study(study)
    folder.release()
    assert [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()] == ["lock"]
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    with pytest.raises(Exception, match="not an id"):
        folder.study("../../etc")


def test_names_and_messages_for_clients() -> None:
    from starlette.datastructures import UploadFile

    files = [UploadFile(file=None, filename=name) for name in ("..\\..\\a\x00b\ud800.dcm", "b")]  # type: ignore[arg-type]
    assert shown_name(files) == "a?b?.dcm and 1 more"
    assert shown_name(files[1:]) == "b"
    where = Path("/data/studies/abc/source")
    assert public_message(f"{where / '00001'}: broken", where / "00001", where, "x.png") == "x.png: broken"
    assert public_message(f"{where}: {where}/00002 is bad", where, where, "ct") == "ct: ct/00002 is bad"


def test_a_question_takes_as_many_jobs_as_fit() -> None:
    jobs = [{"queries": ["q"] * n} for n in (40, 20, 10, 1)]
    assert len(first_queries(jobs)) == 2
    assert len(first_queries([{"queries": ["q"] * 100}])) == 1
