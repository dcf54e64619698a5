"""The part of the MONAI Label API that 3D Slicer's and OHIF's plug-ins use: info, data store, sessions, infer.

Written against MONAI Label 0.8.5, whose own package is not needed. Images are our studies, by id. Queries are given as
the parameter `label_prompt` (a list, or a text with one query between semicolons); without it every known finding is
asked. The answer is the parameters as JSON and one label volume, in which query k has the value k + 1.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from radglint.errors import QueryError
from radglint.query import parse_query
from radglint.server import uploads
from radglint.server.database import Row
from radglint.server.folders import ID_PATTERN, new_id
from radglint.server.problems import Problem, declared, not_found
from radglint.server.routes_images import image_file
from radglint.server.schemas import MAX_QUERIES, MAX_QUERY_CHARACTERS
from radglint.server.service import JOB_ENDS, STUDY_ENDS, Service, ServiceOf
from radglint.server.volumes import PACKED

router = APIRouter(tags=["MONAI Label"])
INFER_S = 600.0
LISTED = 500
ImageId = Annotated[str, Query(max_length=64, description="id of a study")]
_PARAMS = {"params": "JSON object; `label_prompt` holds the queries, `threshold` a probability"}
_MULTIPART = {200: {"description": "parameters and label volume", "content": {"multipart/form-data": {}}}}


@router.get("/info/", responses=declared())
def info(service: ServiceOf) -> dict[str, Any]:
    """What can be asked; in the form of MONAI Label."""
    facts, counts = service.dispatcher.model, service.database.counts()
    models = {}
    for modality, findings in facts["findings"].items():
        models[f"{facts['name']}-{modality.lower()}"] = {
            "type": "segmentation", "labels": {name: k for k, name in enumerate(findings, start=1)},
            "dimension": 3 if modality == "CT" else 2,
            "description": f"radglint {facts['name']} for {modality}: free text in `label_prompt`, research only",
            "config": {"label_prompt": "", "threshold": 0.0},
        }  # fmt: skip
    labels = list(dict.fromkeys(name for findings in facts["findings"].values() for name in findings))
    status = {"total": counts["studies"], "completed": 0, "label_tags": {}}
    empty: dict[str, Any] = {}
    return {
        "name": "radglint", "description": "free-text findings on chest CT and radiographs, research only",
        "version": "0.8.5", "labels": labels, "models": models, "trainers": empty, "strategies": empty,
        "scoring": empty, "train_stats": empty, "datastore": status,
    }  # fmt: skip


@router.get("/datastore/", responses=declared())
def datastore(service: ServiceOf, output: Literal["train", "stats", "all"] = "stats") -> Any:
    """The studies, as a MONAI Label data store."""
    if output == "stats":
        return {"total": service.database.counts()["studies"], "completed": 0, "label_tags": {}}
    rows = service.database.studies(LISTED, 0)
    if output == "train":
        return JSONResponse([])  # no label is kept here
    objects = {row["id"]: {"image": {"ext": "", "info": {"name": row["name"]}}, "labels": {}} for row in rows}
    return {"name": "radglint", "description": "", "objects": objects}


@router.put("/datastore/", responses=declared(409), openapi_extra=uploads.form_schema("file", _PARAMS))
async def add_image(request: Request, service: ServiceOf, image: ImageId = "") -> dict[str, str]:
    """Upload an image; the answer has the id that it is asked under, whatever `image` proposed."""
    study_id, _ = await uploads.accept(request, service)
    return {"image": study_id}


@router.delete("/datastore/", responses=declared(404))
def remove_image(service: ServiceOf, id: Annotated[str, Query(pattern=ID_PATTERN)]) -> dict[str, str]:
    """Delete a study."""
    service.delete_study(id)
    return {}


@router.get("/datastore/image", response_class=FileResponse,
            responses=declared(404, 409) | {200: {"content": {"application/gzip": {}}}})  # fmt: skip
def image(service: ServiceOf, image: Annotated[str, Query(pattern=ID_PATTERN)]) -> Any:
    """The image as NIfTI."""
    return image_file(service, image, PACKED, f"{image}.nii.gz")


@router.put("/session/", responses=declared(409), openapi_extra=uploads.form_schema("files"))
async def add_session(request: Request, service: ServiceOf) -> dict[str, Any]:
    """Upload an image for a session; a session is a study."""
    study_id, _ = await uploads.accept(request, service, "files")
    return {"session_id": study_id, "session_info": await run_in_threadpool(_session, service, study_id)}


@router.get("/session/{session_id}", responses=declared(404))
def session(session_id: str, service: ServiceOf) -> dict[str, Any]:
    """A session."""
    return _session(service, _known(session_id))


@router.delete("/session/{session_id}", responses=declared(404))
def remove_session(session_id: str, service: ServiceOf) -> dict[str, Any]:
    """Delete a session with its study."""
    about = _session(service, _known(session_id))
    service.delete_study(session_id)
    return about


@router.post(
    "/infer/{model}", responses=declared(404, 409, 503) | _MULTIPART,
    openapi_extra={"requestBody": {"required": False, "content": {"multipart/form-data": {"schema": {
        "type": "object", "properties": {
            "params": {"type": "string", "description": _PARAMS["params"]},
            "file": {"type": "string", "format": "binary", "description": "an image, in place of an id"},
        }}}}}},
)  # fmt: skip
async def infer(
    model: str, request: Request, service: ServiceOf, image: ImageId = "", session_id: ImageId = "",
    output: Literal["image", "json", "all", "dicom_seg"] | None = None,
) -> Response:  # fmt: skip
    """Ask an image by id, of a session, or uploaded here; such a one is deleted again after the answer."""
    study_id, params, is_ours = await _image_and_params(request, service, session_id or image)
    try:
        return await _answer(service, model, study_id, params, output)
    finally:
        if is_ours:
            await run_in_threadpool(service.delete_study, study_id)


async def _image_and_params(request: Request, service: Service, given: str) -> tuple[str, Row, bool]:
    """The study, the parameters, and whether the study is only for this request."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return _known(given), {}, False
    form = await request.form(max_files=4, max_fields=uploads.MAX_FIELDS, max_part_size=uploads.MAX_FIELD_BYTES)
    try:
        params = _object(form.get("params"))
        if given:
            return _known(given), params, False
        study_id, _ = await uploads.accept(request, service)  # the form is read once and kept by the request
    finally:
        await form.close()
    return study_id, params, True


def _object(text: Any) -> Row:
    try:
        found = json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(422, "bad-params", "params: expected a JSON object")
    return found


async def _answer(service: Service, model: str, study_id: str, params: Row, output: str | None) -> Response:
    study = await service.settled(study_id, service.study, STUDY_ENDS, INFER_S)
    if study["state"] == "failed":
        raise Problem(409, "study-failed", f"this image cannot be asked: {study['problem']}")
    if study["state"] != "ready":
        raise Problem(503, "busy", "the image is not encoded yet; try again", retry_s=30)
    known = _findings_of(service, model, study["image"]["modality"])
    queries = _queries(params.get("label_prompt"), known)
    job_id = await run_in_threadpool(service.add_job, study_id, queries, _threshold(params.get("threshold")))
    job = await service.settled(job_id, service.job, JOB_ENDS, INFER_S)
    if job["state"] != "done":
        status = 503 if job["state"] in ("queued", "running") else 409
        raise Problem(status, "not-answered", job["problem"] or "there is no answer")
    row = await run_in_threadpool(service.job_row, job_id)
    told = _told(job, study, queries)
    if output == "json":
        return JSONResponse({"params": told} | told)
    is_seg = output == "dicom_seg"
    if is_seg and not study["image"]["is_dicom"]:
        raise Problem(409, "no-such-result", "a DICOM segmentation needs an image that came as DICOM")
    content = Path(await service.result(row, "seg.dcm" if is_seg else "labels.nii.gz")).read_bytes()
    if output in ("image", "dicom_seg"):
        return Response(content, media_type="application/dicom" if is_seg else "application/gzip")
    return _multipart(told, content, f"{study_id}.nii.gz")


def _findings_of(service: Service, model: str, modality: str) -> list[str]:
    """What the model knows on this image.

    Raises:
        Problem: there is no such model, or it is for another kind of image.
    """
    facts = service.dispatcher.model
    if model not in (facts["name"], *(f"{facts['name']}-{m.lower()}" for m in facts["modalities"])):
        raise not_found("model")
    if model != facts["name"] and model != f"{facts['name']}-{modality.lower()}":
        raise Problem(409, "other-modality", f"{model} does not answer a {modality}")
    return facts["findings"][modality]


def _queries(prompt: Any, known: list[str]) -> list[str]:
    """The queries of a prompt: texts, or numbers of known findings from 1; all of these if there is none."""
    items = re.split(r"[;\n]", prompt) if isinstance(prompt, str) else prompt
    if items is None or items == [] or not isinstance(items, list):
        items = known if items is None or items == [] else [items]
    wanted = [known[k - 1] if isinstance(k, int) and 0 < k <= len(known) else k for k in items]
    texts = [text.strip() for text in wanted if isinstance(text, str) and text.strip()] or known
    if len(texts) > MAX_QUERIES or any(len(text) > MAX_QUERY_CHARACTERS for text in texts):
        raise Problem(422, "bad-params", f"params: label_prompt holds more than {MAX_QUERIES} queries, or a long one")
    try:
        for text in texts:
            text.encode()
            parse_query(text)
    except (QueryError, UnicodeEncodeError) as error:
        raise Problem(422, "bad-params", "params: label_prompt holds a text that is no query") from error
    return texts


def _threshold(value: Any) -> float | None:
    """A probability, or None for the model's own; 0 is what the plug-ins show where nothing was set."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < 1 else None


def _told(job: Row, study: Row, queries: list[str]) -> Row:
    """The JSON part of an answer."""
    names = dict.fromkeys(queries)
    labels = {name: queries.index(name) + 1 for name in names}
    keys = ("query", "assertion", "probability", "present", "peak", "note")
    found = [{key: finding[key] for key in keys} for finding in job["findings"]]
    return {"label_names": labels, "findings": found, "image": study["id"], "model": job["model"]}


def _multipart(params: Row, content: bytes, name: str) -> Response:
    """A form with the parameters and the label volume, as MONAI Label's own client reads it."""
    limit = new_id()
    head = (
        f'--{limit}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(params)}\r\n"
        f'--{limit}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/gzip\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{limit}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={limit}")


def _session(service: Service, session_id: str) -> Row:
    study = service.study(session_id)
    return {"name": session_id, "path": "", "image": study["name"], "meta": {}, "create_ts": 0, "last_access_ts": 0,
            "expiry": 0}  # fmt: skip


def _known(given: str) -> str:
    if not given:
        raise Problem(422, "no-image", "neither an image id, nor a session id, nor a file was given")
    if not re.fullmatch(ID_PATTERN, given):
        raise not_found("image")
    return given
