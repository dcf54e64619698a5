"""Jobs: questions to a study, their progress, their answers and every form of these."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from radglint.server.folders import ID_PATTERN
from radglint.server.problems import Problem, declared
from radglint.server.routes_studies import EVENTS, Limit, Offset, WaitS
from radglint.server.schemas import Index, Job, JobId, JobList, JobRequest
from radglint.server.service import JOB_ENDS, PREFIX, Service, ServiceOf

router = APIRouter(prefix=f"{PREFIX}/jobs", tags=["jobs"])
OfFinding = Literal["probability.nii.gz", "probability_box.nii.gz", "mask.nii.gz", "mask.png", "overlay.png"]
OfJob = Literal["report.html", "seg.dcm", "sr.dcm", "all.zip", "labels.nii.gz"]
MEDIA = {
    ".gz": "application/gzip", ".png": "image/png", ".html": "text/html", ".dcm": "application/dicom",
    ".zip": "application/zip",
}  # fmt: skip


def _files(*suffixes: str) -> dict[int | str, Any]:
    return {200: {"description": "the file", "content": {MEDIA[suffix]: {} for suffix in suffixes}}}


@router.post("", status_code=202, response_model=Job, responses=declared(404, 409))
async def ask(asked: JobRequest, service: ServiceOf, wait_s: WaitS = 0.0) -> Any:
    """Ask a study; it may still be on its way. Answers are in `findings` when the state is done."""
    job_id = await run_in_threadpool(service.add_job, asked.study_id, asked.queries, asked.threshold)
    return await service.settled(job_id, service.job, JOB_ENDS, wait_s)


@router.get("", response_model=JobList, responses=declared())
def listing(
    service: ServiceOf, study_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None, limit: Limit = 100,
    offset: Offset = 0,
) -> Any:  # fmt: skip
    """The jobs, the newest first, of one study or of all; without findings."""
    rows = service.database.jobs(limit, offset, study_id)
    return {"jobs": [service.job_document(row, brief=True) for row in rows]}


@router.get("/{job_id}", response_model=Job, responses=declared(404))
async def one(job_id: JobId, service: ServiceOf, wait_s: WaitS = 0.0) -> Any:
    """One job with its findings."""
    return await service.settled(job_id, service.job, JOB_ENDS, wait_s)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=declared(404) | EVENTS)
async def events(job_id: JobId, service: ServiceOf) -> Any:
    """Server-sent events until the job has ended."""
    return await service.stream(job_id, service.job, JOB_ENDS)


@router.post("/{job_id}/cancel", response_model=Job, responses=declared(404))
def cancel(job_id: JobId, service: ServiceOf) -> Any:
    """Cancel a job that has not ended; one that has stays as it is."""
    service.job_row(job_id)
    if service.database.end_job(job_id, "cancelled"):
        service.metrics.jobs.labels("cancelled").inc()
        service.hub.settle(job_id)
    return service.job(job_id)


@router.get("/{job_id}/cancel", include_in_schema=False)
def only_posted_to(job_id: JobId) -> None:
    """Else this would be taken for a result."""
    raise HTTPException(405)


@router.delete("/{job_id}", status_code=204, responses=declared(404))
def delete(job_id: JobId, service: ServiceOf) -> None:
    """Cancel a job if it has not ended, and delete it with its results."""
    row = service.job_row(job_id)
    service.database.delete_job(job_id)
    service.folders.remove_job(row["study_id"], job_id)
    service.hub.settle(job_id)


@router.get("/{job_id}/report.json", responses=declared(404, 409))
def report(job_id: JobId, service: ServiceOf) -> dict[str, Any]:
    """The document of `ask --json`."""
    row = service.job_row(job_id)
    if row["document"] is None:
        raise Problem(409, "not-done", f"the job is {row['state']}, so it has no results")
    return JSONResponse(row["document"])  # type: ignore[return-value]


@router.get(
    "/{job_id}/findings/{index}/{result}", response_class=FileResponse,
    responses=declared(404, 409, 503) | _files(".gz", ".png"),
)  # fmt: skip
async def of_finding(job_id: JobId, index: Index, result: OfFinding, service: ServiceOf) -> Any:
    """A map or mask on the grid of `volume.nii.gz` (uint8; a probability of 1 is 255), a mask as PNG, or an overlay.

    `probability_box.nii.gz` is the part of the map around all that is above 0; its affine tells where it lies.
    """
    row = await run_in_threadpool(service.job_row, job_id)
    if result == "mask.png" and row["document"] and row["document"]["image"]["modality"] == "CT":
        raise Problem(409, "no-such-result", "the mask of a CT is a volume; get mask.nii.gz")
    return _file(service, await service.result(row, result, index), f"finding_{index}_{result}")


@router.get(
    "/{job_id}/{result}", response_class=FileResponse,
    responses=declared(404, 409, 503) | _files(".html", ".dcm", ".zip", ".gz"),
)  # fmt: skip
async def of_job(job_id: JobId, result: OfJob, service: ServiceOf) -> Any:
    """The page to look at, DICOM segmentation and report (of DICOM only), masks as labels, or all files as a zip."""
    row = await run_in_threadpool(service.job_row, job_id)
    is_dicom = row["document"] and row["document"]["image"]["source_format"] == "dicom"
    if result.endswith(".dcm") and row["document"] and not is_dicom:
        raise Problem(409, "no-such-result", "DICOM results need an image that came as DICOM")
    return _file(service, await service.result(row, result), f"radglint_{result}")


def _file(service: Service, path: str, name: str) -> FileResponse:
    return service.file(path, MEDIA[Path(path).suffix], name)
