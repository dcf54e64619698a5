"""What every route works with, and how rows of the data base become documents."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from radglint.server.config import ServerConfig
from radglint.server.database import Database, Row
from radglint.server.events import Hub
from radglint.server.folders import DataFolder, new_id
from radglint.server.jobs import Dispatcher
from radglint.server.limits import Incoming
from radglint.server.metrics import Metrics
from radglint.server.problems import Problem, not_found

HEARTBEAT_S = 15.0
ARTIFACT_S = 120.0
CHUNK_BYTES = 1 << 20  # of a file at a time; the usual 64 KiB cost five times the processor time, here and in a browser
STUDY_ENDS, JOB_ENDS = ("ready", "failed"), ("done", "failed", "cancelled")
PREFIX = "/api/v1"


@dataclass(frozen=True)
class Service:
    """The parts of a running server."""

    config: ServerConfig
    database: Database
    folders: DataFolder
    hub: Hub
    metrics: Metrics
    dispatcher: Dispatcher
    incoming: Incoming

    def study(self, study_id: str) -> Row:
        """A study's document.

        Raises:
            Problem: there is none.
        """
        row = self.database.study(study_id)
        if row is None:
            raise not_found("study")
        return self.study_document(row)

    def study_document(self, row: Row) -> Row:
        """See `schemas.Study`."""
        live = self.hub.live(row["id"]) if row["state"] == "queued" else {}
        done = 1.0 if row["state"] in STUDY_ENDS else 0.0
        state, progress = live.get("state", row["state"]), live.get("progress", done)
        common = {key: row[key] for key in ("id", "name", "image", "problem")}
        return {**common, "state": state, "progress": progress, "created": _iso(row["created_s"])}

    def job(self, job_id: str) -> Row:
        """A job's document.

        Raises:
            Problem: there is none.
        """
        return self.job_document(self.job_row(job_id))

    def job_row(self, job_id: str) -> Row:
        """A job as it is stored.

        Raises:
            Problem: there is none.
        """
        row = self.database.job(job_id)
        if row is None:
            raise not_found("job")
        return row

    def job_document(self, row: Row, *, brief: bool = False) -> Row:
        """See `schemas.Job`; brief leaves the findings out."""
        live = self.hub.live(row["id"]) if row["state"] == "queued" else {}
        state = live.get("state", row["state"])
        progress = 1.0 if state in JOB_ENDS else self._progress(row["study_id"], live)
        common = {key: row[key] for key in ("id", "study_id", "queries", "threshold", "problem")}
        document = row["document"] or {}
        found = None if brief or not document else _with_links(row["id"], document)
        answer = {"findings": found, "model": document.get("model"), "warnings": document.get("warnings", [])}
        return {**common, **answer, "state": state, "progress": progress, "created": _iso(row["created_s"])}

    def _progress(self, study_id: str, live: Row) -> float:
        """A job on a study that is being read is as far as that."""
        return live["progress"] if "progress" in live else 0.9 * self.hub.live(study_id).get("progress", 0.0)

    def add_job(self, study_id: str, queries: list[str], threshold: float | None) -> str:
        """Accept a job; returns its id.

        Raises:
            Problem: no such study, it cannot be used, or too much waits already.
        """
        study = self.database.study(study_id)
        if study is None:
            raise not_found("study")
        if study["state"] == "failed":
            raise Problem(409, "study-failed", f"this study cannot be asked: {study['problem']}")
        self.check_store()
        self.check_queue()
        if self.database.jobs_of(study_id) >= self.config.jobs_per_study:
            raise Problem(409, "too-many-jobs", "this study has too many jobs; delete some of them")
        job = {"id": new_id(), "study_id": study_id, "queries": queries, "threshold": threshold}
        if not self.database.add_job(job):
            raise not_found("study")
        self.dispatcher.wake()
        return job["id"]

    def counts(self) -> dict[str, int]:
        """What is stored, what waits, and the bytes of uploads on their way."""
        return {**self.database.counts(), "incoming_bytes": self.incoming.size_bytes}

    def check_queue(self) -> None:
        """Refuse new work where too much waits.

        Raises:
            Problem: so.
        """
        counts = self.database.counts()
        if counts["waiting_jobs"] + counts["waiting_studies"] >= self.config.queue:
            raise Problem(429, "queue-full", "too much waits to be done; try again in a few seconds", retry_s=5)

    def check_room(self) -> None:
        """Refuse a new study where there are too many, or too much waits.

        Raises:
            Problem: so.
        """
        if self.database.counts()["studies"] >= self.config.studies:
            raise Problem(409, "store-full", "this server keeps no more studies; delete some of them")
        self.check_store()
        self.check_queue()

    def check_store(self) -> None:
        """Refuse to keep more where studies, results and uploads on their way take all the room there is.

        Raises:
            Problem: so.
        """
        counts = self.counts()
        if counts["stored_bytes"] + counts["incoming_bytes"] >= self.config.stored_bytes:
            raise Problem(409, "store-full", "this server has no more room; delete studies or jobs")

    def delete_study(self, study_id: str) -> None:
        """Delete a study and all that came of it.

        Raises:
            Problem: there is none.
        """
        jobs = self.database.delete_study(study_id)
        if jobs is None:
            raise not_found("study")
        self.dispatcher.forget(study_id, jobs)
        self.folders.remove_study(study_id)

    async def result(self, row: Row, result: str, index: int | None = None) -> str:
        """The path of a result of a job, or of one of its findings, made now if it was not before.

        Raises:
            Problem: the job is not done, there is no such result, or no room for one more.
        """
        document = row["document"]
        if row["state"] != "done" or document is None:
            raise Problem(409, "not-done", f"the job is {row['state']}, so it has no results")
        if index is not None and index >= len(document["findings"]):
            raise not_found("finding")
        if document["model"]["fingerprint"] != self.dispatcher.model["fingerprint"]:
            raise Problem(409, "other-model", "another model answered this, so no more results are made; ask again")
        study = await run_in_threadpool(self.database.study, row["study_id"])
        if study is None:
            raise not_found("study")
        name = result if index is None else f"{index}_{result}"
        if not (self.folders.job(row["study_id"], row["id"]) / name).is_file():
            await run_in_threadpool(self.check_store)
        values = [(finding["score"], finding["probability"]) for finding in document["findings"]]
        task = {
            "kind": "artifact", "result": result, "index": index or 0, "study": row["study_id"], "job": row["id"],
            "name": study["name"], "queries": row["queries"], "threshold": row["threshold"], "values": values,
        }  # fmt: skip
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.dispatcher.artifact(task)), ARTIFACT_S)
        except TimeoutError:
            raise Problem(503, "busy", "this result was not made in time; try again", retry_s=10) from None
        except Problem:
            await run_in_threadpool(self.job_row, row["id"])  # it may have failed because all was deleted meanwhile
            raise

    def file(self, path: str | Path, media_type: str, name: str | None = None) -> FileResponse:
        """A file as an answer, with a name for those who keep it.

        Raises:
            Problem: it was deleted meanwhile.
        """
        try:
            found = os.stat(path)
        except FileNotFoundError:
            raise not_found("file") from None
        answer = FileResponse(
            path, media_type=media_type, filename=name, stat_result=found, content_disposition_type="inline"
        )
        answer.chunk_size = CHUNK_BYTES
        return answer

    async def settled(self, item_id: str, load: Callable[[str], Row], ends: tuple[str, ...], wait_s: float) -> Row:
        """A document, as soon as its state is one of `ends`, or what it is after `wait_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        with self.hub.listening(item_id) as changed:
            while True:
                changed.clear()
                document = await run_in_threadpool(load, item_id)
                left = deadline_s - loop.time()
                if document["state"] in ends or left <= 0 or self.hub.is_closing:
                    return document
                try:
                    await asyncio.wait_for(changed.wait(), left)
                except TimeoutError:
                    deadline_s = 0.0

    async def stream(self, item_id: str, load: Callable[[str], Row], ends: tuple[str, ...]) -> StreamingResponse:
        """Server-sent events: a document whenever it has changed, until its end.

        Raises:
            Problem: there is no such item.
        """
        await run_in_threadpool(load, item_id)
        return StreamingResponse(self._events(item_id, load, ends), media_type="text/event-stream")

    async def _events(self, item_id: str, load: Callable[[str], Row], ends: tuple[str, ...]) -> AsyncIterator[str]:
        last: Row | None = None
        with self.hub.listening(item_id) as changed:
            while not self.hub.is_closing:
                changed.clear()
                try:
                    document = await run_in_threadpool(load, item_id)
                except Problem:
                    yield "event: deleted\ndata: {}\n\n"
                    return
                if document != last:
                    last = document
                    yield f"event: state\ndata: {json.dumps(document)}\n\n"
                if document["state"] in ends:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield ": still here\n\n"


def _with_links(job_id: str, document: Row) -> list[Row]:
    """Findings with links to their results in place of paths."""
    is_ct = document["image"]["modality"] == "CT"
    found = []
    for k, finding in enumerate(document["findings"]):
        base = f"{PREFIX}/jobs/{job_id}/findings/{k}"
        links = {
            "probability": f"{base}/probability.nii.gz", "probability_box": f"{base}/probability_box.nii.gz",
            "mask_nifti": f"{base}/mask.nii.gz", "mask_png": None if is_ct else f"{base}/mask.png",
            "overlay": f"{base}/overlay.png",
        }  # fmt: skip
        found.append({key: value for key, value in finding.items() if key != "mask"} | {"links": links})
    return found


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _service(request: Request) -> Any:
    return request.app.state.service


ServiceOf = Annotated[Service, Depends(_service)]
