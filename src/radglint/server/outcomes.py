"""What becomes of a task: progress, answers and failures go to the data base, and whoever listens hears of it."""

from __future__ import annotations

from collections.abc import Callable

from radglint.server.database import Database, Row
from radglint.server.events import Hub
from radglint.server.folders import DataFolder, size_bytes
from radglint.server.in_work import InWork
from radglint.server.metrics import Metrics
from radglint.server.problems import Problem


class Outcomes:
    """See the module.

    Args:
        database: gets the outcomes.
        folders: where results lie.
        hub: told of all.
        metrics: counted.
        forget: called with a study, and the ids of its jobs, that was deleted while it was in work.
    """

    def __init__(
        self, database: Database, folders: DataFolder, hub: Hub, metrics: Metrics,
        forget: Callable[[str, list[str]], None],
    ) -> None:  # fmt: skip
        self._database, self._folders, self._hub, self._metrics = database, folders, hub, metrics
        self._forget = forget

    def progress(self, work: InWork, message: Row) -> None:
        """A study is on its way."""
        study_id = work.task["study"]
        if message.get("image") is not None:
            self._database.change_study(study_id, image=message["image"])
        self._hub.publish(study_id, **{k: message[k] for k in ("state", "progress") if k in message})

    def done(self, work: InWork, message: Row) -> None:
        """A task has ended well."""
        kind = work.task["kind"]
        if kind == "artifact":
            self._made(work, message["path"])
        elif kind == "prepare":
            self._prepared(work.task["study"], message["image"])
        else:
            for job_id, document in zip(work.jobs, message["documents"], strict=True):
                self._answered(work.task["study"], job_id, document)

    def failed(self, work: InWork, message: Row) -> None:
        """A task cannot be done."""
        problem = message["problem"]
        if work.waiting is not None:
            status = 409 if message["is_input"] else 500
            work.waiting.set_exception(Problem(status, "no-such-result" if status == 409 else "internal", problem))
        elif work.task["kind"] == "prepare":
            self.fail_study(work.task["study"], problem)
        else:
            self.fail_jobs(work.jobs, problem)

    def fail_study(self, study_id: str, problem: str) -> None:
        """A study cannot be used, nor can what waits for it be answered."""
        for job_id in self._database.fail_study(study_id, problem):
            self._metrics.jobs.labels("failed").inc()
            self._hub.settle(job_id)
        self._metrics.failed_studies.inc()
        self._hub.settle(study_id)

    def fail_jobs(self, job_ids: list[str], problem: str) -> None:
        """Jobs cannot be answered."""
        for job_id in job_ids:
            self._database.end_job(job_id, "failed", problem=problem)
            self._metrics.jobs.labels("failed").inc()
            self._hub.settle(job_id)

    def _made(self, work: InWork, path: str) -> None:
        if work.waiting is not None:
            work.waiting.set_result(path)
        study_id, job_id = work.task["study"], work.task["job"]
        self._database.weigh_job(job_id, size_bytes(self._folders.job(study_id, job_id)))

    def _prepared(self, study_id: str, image: Row) -> None:
        size = size_bytes(self._folders.study(study_id))
        is_there = self._database.change_study(study_id, state="ready", image=image, size_bytes=size)
        self._hub.settle(study_id)
        if not is_there:  # deleted meanwhile
            self._forget(study_id, [])
            self._folders.remove_study(study_id)

    def _answered(self, study_id: str, job_id: str, document: Row) -> None:
        size = size_bytes(self._folders.job(study_id, job_id))
        if not self._database.end_job(job_id, "done", document=document, size_bytes=size):
            self._folders.remove_job(study_id, job_id)
        self._metrics.jobs.labels("done").inc()
        self._hub.settle(job_id)
