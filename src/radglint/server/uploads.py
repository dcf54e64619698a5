"""Files on their way in: a form becomes the source folder of a study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from radglint.server.folders import new_id
from radglint.server.problems import Problem
from radglint.server.service import Service

MAX_NAME_CHARACTERS = 120
MAX_FIELDS = 16
MAX_FIELD_BYTES = 2**18


async def accept(request: Request, service: Service, field: str = "file") -> tuple[str, dict[str, str]]:
    """Keep the files of a form as a new study.

    Args:
        request: multipart/form-data with one or more files.
        service: of the server.
        field: the name of the files in the form.

    Returns:
        The id of the study, and the texts of the form.

    Raises:
        Problem: no form, no file, too many, or no room.
    """
    await run_in_threadpool(service.check_room)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(422, "no-form", f"files are sent as multipart/form-data, in the field {field!r}")
    try:
        form = await request.form(
            max_files=service.config.upload_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
    except HTTPException as error:
        if "Too many" in str(error.detail):
            raise Problem(413, "too-many-files", f"at most {service.config.upload_files} files at once") from error
        raise Problem(400, "bad-form", "the form cannot be read; send multipart/form-data") from error
    try:
        files = [item for item in form.getlist(field) if isinstance(item, UploadFile)]
        if not files:
            raise Problem(422, "no-file", f"the form has no file in the field {field!r}")
        await run_in_threadpool(service.check_store)  # now that all of it is counted
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        return await run_in_threadpool(_keep, service, files), texts
    finally:
        await form.close()


def _keep(service: Service, files: list[UploadFile]) -> str:
    """Copy the files into a study's folder, then accept the study."""
    study_id = new_id()
    folder = service.folders.source(study_id)
    folder.mkdir(mode=0o700, parents=True)
    try:
        size = sum(_copy(file, folder / f"{number:05d}") for number, file in enumerate(files, start=1))
        study = {"id": study_id, "name": shown_name(files), "source": {"kind": "upload"}, "size_bytes": size}
        service.database.add_study(study)
    except BaseException:
        service.folders.remove_study(study_id)
        raise
    service.dispatcher.wake()
    return study_id


def _copy(file: UploadFile, path: Path) -> int:
    file.file.seek(0)
    with path.open("xb") as sink:
        shutil.copyfileobj(file.file, sink, 2**20)
        return sink.tell()


def shown_name(files: list[UploadFile]) -> str:
    """What a study is called in lists: the first file's name, and how many more there are."""
    last = re.split(r"[/\\]", files[0].filename or "")[-1]
    printable = "".join(c if c.isprintable() else "?" for c in last.encode("utf-8", "replace").decode())
    name = printable[:MAX_NAME_CHARACTERS].strip() or "image"
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"


def form_schema(field: str, texts: dict[str, str] | None = None) -> dict[str, object]:
    """The request body of `accept`, for OpenAPI."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    properties: dict[str, object] = {field: files}
    properties |= {name: {"type": "string", "description": about} for name, about in (texts or {}).items()}
    schema = {"type": "object", "properties": properties, "required": [field]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
