"""The server itself: health, metrics, the model, and the viewer's files."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles

from radglint.server.problems import declared, not_found
from radglint.server.schemas import Health, ModelFacts
from radglint.server.service import PREFIX, ServiceOf

router = APIRouter(tags=["server"])
NOTICE = "For research only: not a medical device, not for diagnosis, triage or treatment."
VIEWER = Path(__file__).resolve().parent.parent / "viewer"


@router.get("/health", response_model=Health, responses=declared(503))
def health(service: ServiceOf, response: Response) -> Any:
    """Whether questions can be answered; needs no key."""
    if not service.database.is_alive():
        response.status_code = 503
        return {"status": "degraded"}
    return {"status": "ok" if service.dispatcher.is_ready else "starting"}


@router.get(
    "/metrics", response_class=PlainTextResponse,
    responses=declared() | {200: {"description": "Prometheus text format", "content": {"text/plain": {}}}},
)  # fmt: skip
def metrics(service: ServiceOf) -> Any:
    """For Prometheus; where there are keys, with one as a bearer token."""
    return PlainTextResponse(service.metrics.text(service.counts()))


@router.get(f"{PREFIX}/model", response_model=ModelFacts, responses=declared())
def model(service: ServiceOf) -> Any:
    """The model that answers, and what it knows."""
    return {**service.dispatcher.model, "notice": NOTICE, "dicomweb": service.config.dicomweb is not None}


def add_viewer(app: FastAPI, folder: Path = VIEWER) -> None:
    """Serve the viewer at / and its files at /static, if it is installed."""
    page = folder / "index.html"

    @app.get("/", include_in_schema=False)
    def viewer() -> FileResponse:
        if not page.is_file():
            raise not_found("page: this installation has no viewer")
        return FileResponse(page, media_type="text/html")

    mimetypes.add_type("text/javascript", ".js")  # where the system's own table says otherwise
    if folder.is_dir():
        app.mount("/static", StaticFiles(directory=folder), name="viewer")
