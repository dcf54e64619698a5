"""Studies: in by upload or from the PACS, seen, and deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from radglint.server import uploads
from radglint.server.folders import new_id
from radglint.server.problems import Problem, declared
from radglint.server.schemas import DicomwebRequest, Study, StudyId, StudyList
from radglint.server.service import PREFIX, STUDY_ENDS, ServiceOf

router = APIRouter(prefix=f"{PREFIX}/studies", tags=["studies"])
Limit = Annotated[int, Query(ge=1, le=500)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
WaitS = Annotated[float, Query(ge=0, le=30, description="answer as soon as it is done, or after this many seconds")]
EVENTS = {200: {"description": "events `state` with the document as data", "content": {"text/event-stream": {}}}}


@router.post(
    "", status_code=202, response_model=Study, responses=declared(409), openapi_extra=uploads.form_schema("file")
)
async def upload(request: Request, service: ServiceOf) -> Any:
    """Upload one image: DICOM files of a series, a zip, a NIfTI, or a PNG, JPEG or TIFF."""
    study_id, _ = await uploads.accept(request, service)
    return await run_in_threadpool(service.study, study_id)


@router.post("/dicomweb", status_code=202, response_model=Study, responses=declared(409))
def from_pacs(asked: DicomwebRequest, service: ServiceOf) -> Any:
    """Fetch a series from the PACS that this server is set up for."""
    if service.config.dicomweb is None:
        raise Problem(409, "no-pacs", "this server has no PACS; it was started without --dicomweb")
    service.check_room()
    study_id = new_id()
    service.folders.source(study_id).mkdir(mode=0o700, parents=True)
    source = {"kind": "dicomweb", **asked.model_dump()}
    name = f"series {asked.series_uid}"
    service.database.add_study({"id": study_id, "name": name, "source": source, "size_bytes": 0})
    service.dispatcher.wake()
    return service.study(study_id)


@router.api_route("/dicomweb", methods=["GET", "DELETE"], include_in_schema=False)
def only_posted_to() -> None:
    """Else this would be taken for the id of a study."""
    raise HTTPException(405)


@router.get("", response_model=StudyList, responses=declared())
def listing(service: ServiceOf, limit: Limit = 100, offset: Offset = 0) -> Any:
    """The studies, the newest first."""
    return {"studies": [service.study_document(row) for row in service.database.studies(limit, offset)]}


@router.get("/{study_id}", response_model=Study, responses=declared(404))
async def one(study_id: StudyId, service: ServiceOf, wait_s: WaitS = 0.0) -> Any:
    """One study; `problem` says why it failed."""
    return await service.settled(study_id, service.study, STUDY_ENDS, wait_s)


@router.get("/{study_id}/events", response_class=StreamingResponse, responses=declared(404) | EVENTS)
async def events(study_id: StudyId, service: ServiceOf) -> Any:
    """Server-sent events until the study is ready or failed."""
    return await service.stream(study_id, service.study, STUDY_ENDS)


@router.delete("/{study_id}", status_code=204, responses=declared(404))
def delete(study_id: StudyId, service: ServiceOf) -> None:
    """Delete a study: its files, features, jobs and results."""
    service.delete_study(study_id)
