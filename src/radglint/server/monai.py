"""The part of the MONAI Label API that 3D Slicer's and OHIF's plug-ins use: login, info, data store, sessions, infer.

Written after MONAI Label 0.8.5 and tried with its clients (docs/bedside.md); its own package is not needed. Images are
our studies: by id, by the name that the client gave, or by the SeriesInstanceUID of a series in the archive. Queries
are given as the parameter `label_prompt` (a list, or a text with one query between semicolons); without it every known
finding is asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from radglint.server import uploads
from radglint.server.auth import KeyRing
from radglint.server.database import Row
from radglint.server.folders import ID_PATTERN
from radglint.server.monai_answer import Output, answer, params_of
from radglint.server.monai_images import image_name, next_image, study_of
from radglint.server.problems import Problem, declared
from radglint.server.routes_images import image_file
from radglint.server.service import Service, ServiceOf
from radglint.server.volumes import PACKED

router = APIRouter(tags=["MONAI Label"])
login_router = APIRouter(tags=["MONAI Label"])
"""What is asked before there is a key; see `access.OPEN_PATHS`."""
LISTED = 500
ImageId = Annotated[
    str, Query(max_length=uploads.MAX_NAME_CHARACTERS, description="id or name of a study, or a SeriesInstanceUID")
]
_PARAMS = {"params": "JSON object; `label_prompt` holds the queries, `threshold` a probability"}
_MULTIPART = {200: {"description": "parameters and label volume", "content": {"multipart/form-data": {}}}}
_NEXT = "newest"


@login_router.get("/auth/", responses=declared())
def login_needed(service: ServiceOf) -> dict[str, bool]:
    """Whether a key is needed; needs none itself."""
    return {"enabled": bool(service.config.keys)}


@login_router.post("/auth/token", responses=declared())
def login(service: ServiceOf, password: Annotated[str, Form(max_length=500)] = "") -> dict[str, str]:
    """What a plug-in's login dialog gives: any user, and one of the server's API keys as the password."""
    keys = KeyRing(service.config.keys)
    if keys and keys.number_of(password) is None:
        raise Problem(401, "no-key", "the password is not one of this server's API keys")
    return {"access_token": password if keys else "", "token_type": "bearer"}


@router.get("/auth/token/valid", responses=declared())
def login_valid() -> dict[str, str]:
    """Whether the key that was sent is right; a wrong one does not get here."""
    return {"username": "radglint"}


@router.get("/info", include_in_schema=False)  # as the plug-in for OHIF 2 asks
@router.get("/info/", responses=declared())
def info(service: ServiceOf) -> dict[str, Any]:
    """What can be asked; in the form of MONAI Label."""
    facts, counts = service.dispatcher.model, service.database.counts()
    models = {}
    for modality, findings in sorted(facts["findings"].items()):  # CT first: plug-ins offer the first one
        models[f"{facts['name']}-{modality.lower()}"] = {
            "type": "segmentation", "labels": {name: k for k, name in enumerate(findings, start=1)},
            "dimension": 3 if modality == "CT" else 2,
            "description": f"radglint {facts['name']} for {modality}: free text in `label_prompt`, research only",
            "config": {"label_prompt": "", "threshold": ""},  # OHIF makes whole numbers of numbers
        }  # fmt: skip
    labels = list(dict.fromkeys(name for findings in facts["findings"].values() for name in findings))
    status = {"total": counts["studies"], "completed": 0, "label_tags": {}}
    empty: dict[str, Any] = {}
    strategies = {_NEXT: {"description": "the newest study that nobody has asked"}}
    return {
        "name": "radglint", "description": "free-text findings on chest CT and radiographs, research only",
        "version": "0.8.5", "labels": labels, "models": models, "trainers": empty, "strategies": strategies,
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
    """Upload an image; it can be asked by the id in the answer, and by the name that `image` proposed."""
    study_id, _ = await uploads.accept(request, service)
    if name := image_name(image):
        await run_in_threadpool(service.database.change_study, study_id, name=name)
    return {"image": study_id}


@router.put("/datastore/label", include_in_schema=False)
def add_label() -> None:
    """What the plug-ins call to submit a corrected label."""
    raise Problem(409, "no-labels", "this server keeps no labels; save the segmentation where you made it")


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
    return _session(service, session_id)


@router.delete("/session/{session_id}", responses=declared(404))
def remove_session(session_id: str, service: ServiceOf) -> dict[str, Any]:
    """Delete a session with its study."""
    about = _session(service, session_id)
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
    output: Output | None = None,
) -> Response:  # fmt: skip
    """Ask an image by id, of a session, or uploaded here; such a one is deleted again after the answer."""
    study_id, params, is_ours = await _image_and_params(request, service, session_id or image)
    try:
        return await answer(service, model, study_id, params, output)
    finally:
        if is_ours:
            await run_in_threadpool(service.delete_study, study_id)


async def _image_and_params(request: Request, service: Service, given: str) -> tuple[str, Row, bool]:
    """The study, the parameters, and whether the study is only for this request."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await run_in_threadpool(study_of, service, given), {}, False
    form = await request.form(max_files=4, max_fields=uploads.MAX_FIELDS, max_part_size=uploads.MAX_FIELD_BYTES)
    try:
        params = params_of(form.get("params"))
        if given:
            return await run_in_threadpool(study_of, service, given), params, False
        study_id, _ = await uploads.accept(request, service)  # the form is read once and kept by the request
    finally:
        await form.close()
    return study_id, params, True


@router.post("/activelearning/{strategy}", responses=declared(404))
def next_sample(strategy: Literal["newest"], service: ServiceOf) -> dict[str, str]:
    """What to look at next, to be had from /datastore/image; empty where there is no study."""
    asked = {row["study_id"] for row in service.database.jobs(LISTED, 0)}
    row = next_image(service.database.studies(LISTED, 0), asked)
    return {} if row is None else {"id": row["id"], "name": f"{row['id']}.nii.gz"}


def _session(service: Service, session_id: str) -> Row:
    study = service.study(session_id)
    return {"name": session_id, "path": "", "image": study["name"], "meta": {}, "create_ts": 0, "last_access_ts": 0,
            "expiry": 0}  # fmt: skip
