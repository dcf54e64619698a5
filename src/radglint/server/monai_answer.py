"""Asking an image in MONAI Label's terms: parameters in, the parameters and one label volume out.

Beside its names (a form with both parts, for 3D Slicer) query k has the value k + 1. Alone (for OHIF) a volume has the
numbers of `/info/`, and what is not known there has higher ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from radglint.errors import QueryError
from radglint.query import parse_query
from radglint.server.database import Row
from radglint.server.folders import new_id
from radglint.server.nrrd import renumbered_nifti, rewritten
from radglint.server.problems import Problem, not_found
from radglint.server.schemas import MAX_QUERIES, MAX_QUERY_CHARACTERS
from radglint.server.service import JOB_ENDS, STUDY_ENDS, Service

Output = Literal["image", "json", "all", "dicom_seg"]
INFER_S = 600.0
EXTENSIONS = (".nrrd", ".nii.gz")
DTYPES = ("uint8", "uint16")
_MEDIA = {".nrrd": "application/octet-stream", ".nii.gz": "application/gzip"}


def params_of(text: Any) -> Row:
    """The field `params` of a form.

    Raises:
        Problem: it is no JSON object.
    """
    try:
        found = json.loads(text) if isinstance(text, str) and text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(422, "bad-params", "params: expected a JSON object")
    return found


async def answer(service: Service, model: str, study_id: str, params: Row, output: Output | None) -> Response:
    """Ask a study, as soon as it is encoded.

    Args:
        service: of the server.
        model: as `/info/` names it, or without the modality.
        study_id: the study.
        params: `label_prompt`, `threshold`, `result_extension`, `result_dtype`, `result_compress`; others are ignored.
        output: which part; None and "all" give both.

    Raises:
        Problem: the image or the parameters cannot be used, or it takes too long.
    """
    extension = _choice(params, "result_extension", EXTENSIONS, ".nii.gz")
    dtype = _choice(params, "result_dtype", DTYPES, "uint8")
    study = await service.settled(study_id, service.study, STUDY_ENDS, INFER_S)
    if study["state"] == "failed":
        raise Problem(409, "study-failed", f"this image cannot be asked: {study['problem']}")
    if study["state"] != "ready":
        raise Problem(503, "busy", "the image is not encoded yet; try again", retry_s=30)
    known = _findings_of(service, model, study["image"]["modality"])
    queries = _queries(params.get("label_prompt"), known)
    job = await _asked(service, study_id, queries, _threshold(params.get("threshold")))
    told = _told(job, study, queries, known)
    if output == "json":
        return JSONResponse({"params": told} | told)
    row = await run_in_threadpool(service.job_row, job["id"])
    if output == "dicom_seg":
        if not study["image"]["is_dicom"]:
            raise Problem(409, "no-such-result", "a DICOM segmentation needs an image that came as DICOM")
        path = await service.result(row, "seg.dcm")
        return Response(await run_in_threadpool(Path(path).read_bytes), media_type="application/dicom")
    path = Path(await service.result(row, f"labels{extension}"))
    numbers = _numbers(queries, known) if output == "image" else {}
    is_packed = params.get("result_compress") is not False
    content = await run_in_threadpool(_volume, path, numbers, dtype, is_packed)
    if output == "image":
        return Response(content, media_type=_MEDIA[extension])
    return _multipart(told, content, f"{study_id}{extension}", _MEDIA[extension])


async def _asked(service: Service, study_id: str, queries: list[str], threshold: float | None) -> Row:
    job_id = await run_in_threadpool(service.add_job, study_id, queries, threshold)
    job = await service.settled(job_id, service.job, JOB_ENDS, INFER_S)
    if job["state"] != "done":
        status = 503 if job["state"] in ("queued", "running") else 409
        raise Problem(status, "not-answered", job["problem"] or "there is no answer")
    return job


def _volume(path: Path, numbers: dict[int, int], dtype: Any, is_packed: bool) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".nrrd":
        return rewritten(content, numbers, dtype, is_packed=is_packed)
    return renumbered_nifti(content, numbers)


def _choice(params: Row, key: str, choices: tuple[str, ...], default: str) -> str:
    given = params.get(key) or default
    if given not in choices:
        raise Problem(422, "bad-params", f"params: {key}: expected one of {', '.join(choices)}")
    return given


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
    return list(dict.fromkeys(texts))


def _threshold(value: Any) -> float | None:
    """A probability, or None for the model's own; nothing or 0 is what the plug-ins send where nothing was set.

    Raises:
        Problem: it is something else.
    """
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < 1:
        raise Problem(422, "bad-params", "params: threshold: expected a probability between 0 and 1")
    return number or None


def _told(job: Row, study: Row, queries: list[str], known: list[str]) -> Row:
    """The JSON part of an answer."""
    labels = {name: k for k, name in enumerate(label_names(queries, known), start=1)}
    keys = ("query", "assertion", "probability", "present", "peak", "note")
    found = [{key: finding[key] for key in keys} for finding in job["findings"]]
    return {"label_names": labels, "findings": found, "image": study["id"], "model": job["model"]}


def label_names(queries: list[str], known: list[str]) -> list[str]:
    """What each query's mask is called.

    3D Slicer's plug-in draws only what `/info/` names. So a query that says more of one known finding ("small left
    pleural effusion") goes by that finding, unless another query does too; any other goes by its own words.
    """
    named = [_finding_in(query, known) for query in queries]
    return [
        name if name is not None and named.count(name) == 1 and name not in queries else query
        for query, name in zip(queries, named, strict=True)
    ]


def _finding_in(query: str, known: list[str]) -> str | None:
    """The known finding whose words a query holds, if it is one ("calcified nodule" is not "nodule" too)."""
    held = [name for name in known if re.search(rf"\b{re.escape(name)}(?:e?s)?\b", query, re.IGNORECASE)]
    whole = [name for name in held if not any(name in other and name != other for other in held)]
    return whole[0] if len(whole) == 1 else None


def _numbers(queries: list[str], known: list[str]) -> dict[int, int]:
    """Value in the label volume to the number of `/info/`; what is not known there follows after."""
    names = label_names(queries, known)
    others = [name for name in names if name not in known]
    return {k: ([*known, *others].index(name) + 1) for k, name in enumerate(names, start=1)}


def _multipart(params: Row, content: bytes, name: str, media_type: str) -> Response:
    """A form with the parameters and the label volume, as MONAI Label's own client reads it."""
    limit = new_id()
    head = (
        f'--{limit}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(params)}\r\n"
        f'--{limit}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{limit}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={limit}")
