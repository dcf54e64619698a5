"""The application: routes, error documents, limits and the gate around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Security
from fastapi.security import APIKeyHeader
from starlette.middleware.cors import CORSMiddleware

from radglint.server import monai, problems, routes_images, routes_jobs, routes_service, routes_studies
from radglint.server.access import Gate
from radglint.server.limits import App, BodyLimits
from radglint.server.service import PREFIX, Service

DESCRIPTION = (
    "Ask a chest radiograph or a chest CT in plain words: upload an image or name a series of the PACS, ask it, get "
    "probabilities, decisions, masks and DICOM objects. " + routes_service.NOTICE
)


def create_app(service: Service, version: str) -> App:
    """The routes of a service with limits and gate around them.

    Args:
        service: with a started dispatcher.
        version: of radglint.
    """
    config = service.config
    limited = BodyLimits(
        create_routes(service, version), service.incoming, upload_bytes=config.upload_bytes, body_s=config.body_s,
        stall_s=config.stall_s,
    )  # fmt: skip
    return Gate(limited, config, service.metrics)


def create_routes(service: Service, version: str) -> FastAPI:
    """The application itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.hub.open()
        yield

    key = Security(APIKeyHeader(name="X-API-Key", auto_error=False, description="one of the server's API keys"))
    app = FastAPI(
        title="radglint", version=version, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json", redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    needed: list[Any] = [key] if service.config.keys else []
    for router in (routes_studies.router, routes_images.router, routes_jobs.router, monai.router):
        app.include_router(router, dependencies=needed)
    app.include_router(routes_service.router)
    app.include_router(monai.login_router)
    routes_service.add_viewer(app)
    problems.install(app)
    _declare_problems(app)
    if service.config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.config.cors), allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["X-API-Key", "Content-Type"], max_age=600,
        )  # fmt: skip
    return app


def _declare_problems(app: FastAPI) -> None:
    """Put the problem document into the components of the OpenAPI document, where the responses look for it."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDocument"] = problems.ProblemDocument.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
