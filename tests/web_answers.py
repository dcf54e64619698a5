"""A web server on loopback that gives whatever answer a test needs: what no real PACS would send."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server that gives this answer to every GET."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/dicom-web"
        finally:
            server.shutdown()
            thread.join()


def reply(
    handler: http.server.BaseHTTPRequestHandler, code: int, body: bytes, kind: str = "application/dicom+json"
) -> None:
    """A whole answer."""
    handler.send_response(code)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def redirect(handler: http.server.BaseHTTPRequestHandler, target: str) -> None:
    """An answer that leads elsewhere."""
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def listing(keyword_tag: str, *uids: str) -> bytes:
    """A page of a search as DICOM JSON."""
    rows = [f'{{"{keyword_tag}": {{"vr": "UI", "Value": ["{uid}"]}}}}' for uid in uids]
    return f"[{', '.join(rows)}]".encode()


MULTIPART = 'multipart/related; type="application/dicom"; boundary=x'


def part(content: bytes) -> bytes:
    """One instance of an answer of type `MULTIPART`."""
    return b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + content
