"""A `requests` session that stays with one server and takes only so much from it.

A redirect leads anywhere inside a hospital's network, and an answer fills any memory: neither is followed or read
without bounds, whoever speaks for the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from radglint.errors import PacsError

MAX_ANSWER_BYTES = 2**26
"""Of an answer that is no instance: a page of a search, or the tags of an instance."""
PORTS = {"http": 80, "https": 443}


class BoundedSession(requests.Session):
    """See the module.

    Args:
        url: of the server, for messages.
        max_instance_bytes: that may come in a row without an instance being whole; see `restart`.
    """

    def __init__(self, url: str, max_instance_bytes: int) -> None:
        super().__init__()
        self.url = url
        self.max_instance_bytes = max_instance_bytes
        self._came_bytes = 0
        for prefix in ("http://", "https://"):
            self.mount(prefix, _Adapter(self))

    def restart(self) -> None:
        """An instance is whole: count anew."""
        self._came_bytes = 0

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where a redirect leads.

        Raises:
            PacsError: to another server, another port, or from https to http.
        """
        target = super().get_redirect_target(resp)
        if target is not None and _origin(urljoin(resp.url, target)) != _origin(resp.url):
            resp.close()
            raise PacsError(
                f"{self.url}: redirects to another server, which is not followed; if that is the right one, "
                "give its own address"
            )
        return target

    def bounded(self, request: Any, response: requests.Response) -> requests.Response:
        """The response, whose body ends with an error where it is too large."""
        is_instances = request.headers.get("Accept", "").startswith("multipart/")
        limit = self.max_instance_bytes if is_instances else MAX_ANSWER_BYTES
        read = response.iter_content

        def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self.restart()
            for chunk in read(*args, **kwargs):
                self._came_bytes += len(chunk)
                if self._came_bytes > limit:
                    response.close()
                    raise PacsError(f"{self.url}: sends more than {limit} bytes at once; too large")
                yield chunk

        response.iter_content = counted  # what `content` reads too
        return response


class _Adapter(HTTPAdapter):
    """Hands every response to its session first.

    Args:
        session: that sends.
    """

    def __init__(self, session: BoundedSession) -> None:
        super().__init__()
        self._session = session

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """See `BoundedSession.bounded`."""
        return self._session.bounded(req, super().build_response(req, resp))


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, as a browser compares them."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    try:
        port = parts.port or PORTS.get(scheme, 0)
    except ValueError:  # no number
        port = -1
    return scheme, (parts.hostname or "").lower(), port
