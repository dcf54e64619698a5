"""Errors over HTTP: `application/problem+json` (RFC 9457) that says what to do and nothing of the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from radglint.server.logs import place_of

log = logging.getLogger("radglint.server")
MEDIA_TYPE = "application/problem+json"


class ProblemDocument(BaseModel):
    """The body of every answer of status 400 and above."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:radglint:not-found", "title": "Not Found", "status": 404,
                "detail": "there is no such study; GET /api/v1/studies lists them",
            }
        }
    )  # fmt: skip
    type: str
    title: str
    status: int
    detail: str


class Problem(Exception):  # noqa: N818 (it is a document of the answer, not a failure of ours)
    """An answer of status 400 or above.

    Args:
        status: the HTTP status.
        kind: short name; the last part of the document's `type`.
        detail: what is wrong and what to do.
        retry_s: seconds after which to try again, sent as Retry-After.
    """

    def __init__(self, status: int, kind: str, detail: str, *, retry_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.retry_s = status, kind, detail, retry_s

    def response(self) -> JSONResponse:
        """The answer to send."""
        document = {
            "type": f"urn:radglint:{self.kind}", "title": HTTPStatus(self.status).phrase, "status": self.status,
            "detail": self.detail,
        }  # fmt: skip
        headers = {} if self.retry_s is None else {"Retry-After": str(max(1, round(self.retry_s)))}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(document, self.status, headers, MEDIA_TYPE)


def not_found(what: str) -> Problem:
    """There is no such thing, or no more."""
    return Problem(404, "not-found", f"there is no such {what}, or it was deleted")


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses: what every route can answer, and these."""
    common = {400, 401, 403, 408, 413, 422, 429, 500} | set(statuses)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(common)}


def install(app: FastAPI) -> None:
    """Let every error of an app leave as a problem document."""
    app.add_exception_handler(Problem, lambda _, error: error.response())  # type: ignore[attr-defined]
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _internal)


def _http(request: Request, error: Exception) -> JSONResponse:
    """What Starlette itself refuses: an unknown path or method, a body that is no form."""
    status = getattr(error, "status_code", 500)
    if status == HTTPStatus.NOT_FOUND:
        return not_found("page").response()
    detail = "this method is not allowed here" if status == HTTPStatus.METHOD_NOT_ALLOWED else "not a valid request"
    response = Problem(status, HTTPStatus(status).phrase.lower().replace(" ", "-"), detail).response()
    response.headers.update(getattr(error, "headers", None) or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return response


def _methods_of(request: Request) -> set[str]:
    """The methods of a path as documented: those of the most literal pattern that it fits."""
    paths = request.app.openapi()["paths"]
    alike = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    literal = min(alike, key=lambda path: path.count("{"), default=None)
    return {method.upper() for method in paths[literal]} if literal else set()


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Arguments of the wrong form; names the place, never repeats the value."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    parts = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in found[:5]]
    return Problem(422, "invalid", _plain("; ".join(parts) or "the request has the wrong form")).response()


def _internal(_: Request, error: Exception) -> JSONResponse:
    """Our own fault: the log gets kind and place, the client neither."""
    log.error("internal error: %s at %s", type(error).__name__, place_of(error))
    return Problem(500, "internal", "radglint itself is at fault; the server's log has more").response()


def _plain(text: str) -> str:
    """A text that can be encoded whatever the client sent."""
    return text.encode("utf-8", "replace").decode()
