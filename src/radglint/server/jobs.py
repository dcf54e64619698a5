"""The queue: gives the model process its next tasks, takes the answers, and picks up what falls when it dies.

One thread; everything reaches it through its inbox. What waits is in the data base. Jobs on the same study that wait
together are answered together. If the model process dies, it is started again; what it was at is then tried once more,
alone, so that a second death names the culprit.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from radglint.errors import CheckpointError, ConfigError
from radglint.server.config import ServerConfig
from radglint.server.database import Database, Row
from radglint.server.events import Hub
from radglint.server.folders import DataFolder, size_bytes
from radglint.server.metrics import Metrics
from radglint.server.model_process import ModelProcess
from radglint.server.problems import Problem
from radglint.server.worker import WorkerOptions

log = logging.getLogger("radglint.server")
QUERIES_AT_ONCE = 64
ASKS_AT_ONCE, ARTIFACTS_AT_ONCE = 4, 8
START_S = 300.0  # for loading the model
TICK_S = 1.0
ITEMS_AT_ONCE = 200
CLEAN_EVERY_S = 600.0
LAST_ATTEMPT = 2


@dataclass
class InWork:
    """A task at the model process.

    Attributes:
        task: as it was sent.
        jobs: ids of the jobs in it, for "ask".
        waiting: who waits for an artifact.
        started_s: when the model process began with it; None while it waits there.
    """

    task: Row
    jobs: list[str] = field(default_factory=list)
    waiting: Future[str] | None = None
    started_s: float | None = None


class Dispatcher:
    """See the module.

    Args:
        config: of the server.
        database: what waits.
        folders: where files lie.
        hub: told of all progress.
        metrics: counted.
    """

    def __init__(
        self, config: ServerConfig, database: Database, folders: DataFolder, hub: Hub, metrics: Metrics
    ) -> None:
        self.config, self.database, self.folders, self.hub, self.metrics = config, database, folders, hub, metrics
        self.model: Row = {}
        self.is_ready = False
        self._inbox: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._artifacts: list[InWork] = []
        self._in_work: dict[int, InWork] = {}
        self._numbers = count(1)
        self._process: ModelProcess | None = None
        self._generation = 0
        self._restart_at_s: float | None = None
        self._backoff_s = 1.0
        self._cleaned_s = 0.0
        self._ticked_s = 0.0
        self._stop_at_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="radglint-jobs", daemon=True)

    # For others, from any thread

    def start(self) -> None:
        """Start the model process and wait until the model is loaded.

        Raises:
            CheckpointError: the model cannot be used.
            ConfigError: the process ended by itself, or the device is not there.
        """
        self._start_process()
        deadline = time.monotonic() + START_S
        while not self.is_ready:
            try:
                _, _, message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ConfigError(f"the model was not loaded in {START_S:.0f} s; is the machine busy?") from None
            if message["event"] == "hello":
                self._hello(message)
            elif message["event"] == "unusable":
                error = CheckpointError if message["kind"] == "CheckpointError" else ConfigError
                raise error(message["problem"])
            elif message["event"] == "ended":
                raise ConfigError(f"the model process ended by itself (code {message['code']}); see the log above")
        self._thread.start()

    def wake(self) -> None:
        """Something new waits in the data base."""
        self._inbox.put(("wake",))

    def forget(self, study_id: str, job_ids: list[str]) -> None:
        """A study was deleted."""
        self._inbox.put(("forget", study_id, job_ids))

    def artifact(self, task: Row) -> Future[str]:
        """Have a result made; the future gives its path, or raises a Problem."""
        future: Future[str] = Future()
        self._inbox.put(("artifact", task, future))
        return future

    def stop(self) -> None:
        """Finish what is in work if `grace_s` allows, then end the model process."""
        if self._thread.is_alive():
            self._inbox.put(("stop",))
            self._thread.join(self.config.grace_s + 10)
        if self._process is not None:
            self._process.close()

    @property
    def pid(self) -> int | None:
        """Of the model process."""
        return None if self._process is None else self._process.pid

    # The thread

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._step()
            except Exception:  # the queue must go on, for instance after the data base was away
                log.exception("queue")
                time.sleep(0.2)
        for work in (*self._in_work.values(), *self._artifacts):
            _refuse(work, "the server is being stopped; ask again in a minute")

    def _is_over(self) -> bool:
        """Whether all is done that can be done before the end."""
        return self._stop_at_s is not None and (not self._in_work or time.monotonic() >= self._stop_at_s)

    def _step(self) -> None:
        """Take what has come, then see what is next."""
        is_news = False
        with suppress(queue.Empty):
            item = self._inbox.get(timeout=TICK_S if self._stop_at_s is None else 0.1)
            for _ in range(ITEMS_AT_ONCE):
                is_news |= self._handle(item)
                item = self._inbox.get_nowait()
        if time.monotonic() - self._ticked_s >= TICK_S:
            self._ticked_s, is_news = time.monotonic(), True
            self._tick()
        if is_news:
            self._dispatch()

    def _handle(self, item: tuple[Any, ...]) -> bool:
        """Take one item; whether there may be something new to do."""
        if item[0] == "message":
            _, generation, message = item
            if generation != self._generation:
                return False
            self._on_message(message)
            return message["event"] not in ("started", "progress")
        if item[0] == "stop":
            self._stop_at_s = time.monotonic() + self.config.grace_s
        elif item[0] == "artifact":
            self._artifacts.append(InWork(item[1], waiting=item[2]))
        elif item[0] == "forget":
            self._on_forget(item[1], item[2])
        return True

    def _on_message(self, message: Row) -> None:
        kind = message["event"]
        if "status" in message:
            self.metrics.model_status(message["status"])
        if kind == "hello":
            self._hello(message)
        elif kind == "ended":
            self._on_ended(message["code"])
        elif kind == "unusable":
            log.error("the model cannot be loaded: %s", message["problem"])
        elif (work := self._in_work.get(message["id"])) is None:
            return
        elif kind == "started":
            work.started_s = time.monotonic()
        elif kind == "progress":
            self._on_progress(work, message)
        else:
            del self._in_work[message["id"]]
            (self._on_done if kind == "done" else self._on_failed)(work, message)

    def _hello(self, message: Row) -> None:
        self.model, self.is_ready, self._backoff_s = message["model"], True, 1.0

    def _on_progress(self, work: InWork, message: Row) -> None:
        study_id = work.task["study"]
        if message.get("image") is not None:
            self.database.change_study(study_id, image=message["image"])
        self.hub.publish(study_id, **{k: message[k] for k in ("state", "progress") if k in message})

    def _on_done(self, work: InWork, message: Row) -> None:
        study_id = work.task["study"]
        if work.task["kind"] == "artifact" and work.waiting is not None:
            work.waiting.set_result(message["path"])
            self.database.weigh_job(work.task["job"], self._results_bytes(study_id, work.task["job"]))
        elif work.task["kind"] == "prepare":
            size = size_bytes(self.folders.study(study_id))
            there = self.database.change_study(study_id, state="ready", image=message["image"], size_bytes=size)
            self.hub.settle(study_id)
            if not there:  # deleted meanwhile
                self._on_forget(study_id, [])
                self.folders.remove_study(study_id)
        else:
            for job_id, document in zip(work.jobs, message["documents"], strict=True):
                size = self._results_bytes(study_id, job_id)
                if not self.database.end_job(job_id, "done", document=document, size_bytes=size):
                    self.folders.remove_job(study_id, job_id)
                self.metrics.jobs.labels("done").inc()
                self.hub.settle(job_id)

    def _results_bytes(self, study_id: str, job_id: str) -> int:
        return size_bytes(self.folders.job(study_id, job_id))

    def _on_failed(self, work: InWork, message: Row) -> None:
        problem = message["problem"]
        if work.task["kind"] == "artifact" and work.waiting is not None:
            status = 409 if message["is_input"] else 500
            work.waiting.set_exception(Problem(status, "no-such-result" if status == 409 else "internal", problem))
        elif work.task["kind"] == "prepare":
            self._fail_study(work.task["study"], problem)
        else:
            self._fail_jobs(work.jobs, problem)

    def _fail_study(self, study_id: str, problem: str) -> None:
        for job_id in self.database.fail_study(study_id, problem):
            self.metrics.jobs.labels("failed").inc()
            self.hub.settle(job_id)
        self.metrics.failed_studies.inc()
        self.hub.settle(study_id)

    def _fail_jobs(self, job_ids: list[str], problem: str) -> None:
        for job_id in job_ids:
            self.database.end_job(job_id, "failed", problem=problem)
            self.metrics.jobs.labels("failed").inc()
            self.hub.settle(job_id)

    def _on_forget(self, study_id: str, job_ids: list[str]) -> None:
        self.database.forget_deleted()
        if self._process is not None:
            self._process.send({"kind": "forget", "study": study_id})
        for item_id in (study_id, *job_ids):
            self.hub.settle(item_id)

    def _on_ended(self, code: int | None) -> None:
        """The model process is gone: count against what it was at, and start another."""
        log.error("the model process ended (code %s) with %d tasks; starting it again", code, len(self._in_work))
        self.metrics.restarts.inc()
        self.is_ready = False
        begun = [work for work in self._in_work.values() if work.started_s is not None]
        studies = [work.task["study"] for work in begun if work.task["kind"] == "prepare"]
        jobs = [job_id for work in begun for job_id in work.jobs]
        self.database.count_attempt(studies, jobs)
        for work in self._in_work.values():
            for item_id in (*work.jobs, work.task["study"]):
                self.hub.settle(item_id)
            if work.waiting is not None:
                _refuse(work, "the model process had to be started again; ask again in a minute")
        self._in_work.clear()
        self._restart_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(60.0, 2 * self._backoff_s)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._restart_at_s is not None and now >= self._restart_at_s and self._stop_at_s is None:
            self._restart_at_s = None
            self._start_process()
        late = [w for w in self._in_work.values() if w.started_s is not None and now - w.started_s > self.config.task_s]
        if late and self._process is not None:
            log.error("a %s took longer than %.0f s", late[0].task["kind"], self.config.task_s)
            self._process.kill()
        if self.config.keep_days is not None and now - self._cleaned_s > CLEAN_EVERY_S:
            self._cleaned_s = now
            self._clean(self.config.keep_days)

    def _clean(self, keep_days: float) -> None:
        """Delete what was kept long enough."""
        old = self.database.studies_before(time.time() - keep_days * 86400)
        for study_id in old:
            self._on_forget(study_id, self.database.delete_study(study_id) or [])
            self.folders.remove_study(study_id)
        if old:
            log.info("deleted %d studies older than %g days", len(old), keep_days)

    def _start_process(self) -> None:
        self._generation += 1
        config = self.config
        options = WorkerOptions(
            config.model, config.device, str(self.folders.studies), str(self.folders.temporary), config.cache_bytes
        )
        self._process = ModelProcess(options, self._generation, lambda g, m: self._inbox.put(("message", g, m)))

    # What is next

    def _dispatch(self) -> None:
        if not self.is_ready or self._stop_at_s is not None:
            return
        if any(work.task.get("alone") for work in self._in_work.values()):
            return
        studies, jobs = self.database.waiting_studies(), self.database.waiting_jobs()
        if self._end_culprits(studies, jobs):
            return self._dispatch()
        if any(row["attempts"] for row in (*studies, *jobs)):
            return self._send_alone(studies, jobs)
        self._send_artifacts()
        self._send_jobs(jobs)
        if studies and not any(work.task["kind"] == "prepare" for work in self._in_work.values()):
            self._send_study(studies[0])

    def _end_culprits(self, studies: list[Row], jobs: list[Row]) -> bool:
        """Give up what the model process died over twice."""
        problem = "the model process ended twice on it: too large for this machine, or a damaged file; it was given up"
        bad_studies = [row["id"] for row in studies if row["attempts"] >= LAST_ATTEMPT]
        bad_jobs = [row["id"] for row in jobs if row["attempts"] >= LAST_ATTEMPT]
        for study_id in bad_studies:
            self._fail_study(study_id, problem)
        self._fail_jobs(bad_jobs, problem)
        return bool(bad_studies or bad_jobs)

    def _send_alone(self, studies: list[Row], jobs: list[Row]) -> None:
        """A second attempt, with nothing beside it."""
        if self._in_work:
            return
        suspects = [row for row in jobs if row["attempts"]]
        if suspects:
            self._send_ask(suspects[:1], alone=True)
        else:
            self._send_study(next(row for row in studies if row["attempts"]), alone=True)

    def _send_study(self, study: Row, *, alone: bool = False) -> None:
        task = {
            "kind": "prepare", "study": study["id"], "name": study["name"], "source": self._source(study),
            "alone": alone,
        }  # fmt: skip
        self.hub.publish(study["id"], state="reading", progress=0.05)
        self._send(InWork(task))

    def _source(self, study: Row) -> Row:
        """Where a study comes from; of the PACS no more than there is room for."""
        pacs = self.config.pacs if study["source"]["kind"] == "dicomweb" else None
        if pacs is None:
            return study["source"]
        room = max(1, self.config.stored_bytes - self.database.counts()["stored_bytes"])
        told = {"max_series_bytes": min(room, pacs.max_series_bytes)}
        return study["source"] | {"pacs": pacs.model_dump(mode="json") | told}

    def _send_jobs(self, jobs: list[Row]) -> None:
        """The oldest jobs first, each with what else waits on its study; one task a study at a time."""
        busy = {work.task["study"] for work in self._in_work.values() if work.task["kind"] == "ask"}
        for job in jobs:
            if len(busy) >= ASKS_AT_ONCE:
                return
            if job["study_id"] not in busy:
                busy.add(job["study_id"])
                alike = [o for o in jobs if o["study_id"] == job["study_id"] and o["threshold"] == job["threshold"]]
                self._send_ask(_first_queries(alike))

    def _send_ask(self, jobs: list[Row], *, alone: bool = False) -> None:
        first = jobs[0]
        task = {
            "kind": "ask", "study": first["study_id"], "name": first["name"], "threshold": first["threshold"],
            "jobs": [{"id": job["id"], "queries": job["queries"]} for job in jobs], "alone": alone,
        }  # fmt: skip
        for job in jobs:
            self.hub.publish(job["id"], state="running", progress=0.5)
        self.metrics.batch.observe(sum(len(job["queries"]) for job in jobs))
        self._send(InWork(task, [job["id"] for job in jobs]))

    def _send_artifacts(self) -> None:
        """Of two that ask for the same result at once, the second finds the file of the first."""
        busy = [work for work in self._in_work.values() if work.task["kind"] == "artifact"]
        while self._artifacts and len(busy) < ARTIFACTS_AT_ONCE:
            work = self._artifacts.pop(0)
            if work.waiting is not None and work.waiting.set_running_or_notify_cancel():
                busy.append(work)
                self._send(work)

    def _send(self, work: InWork) -> None:
        number = next(self._numbers)
        self._in_work[number] = work
        if self._process is not None:
            self._process.send({**work.task, "id": number})


def _first_queries(jobs: list[Row]) -> list[Row]:
    """As many jobs from the front as fit into one question; at least one."""
    taken: list[Row] = []
    total = 0
    for job in jobs:
        total += len(job["queries"])
        if taken and total > QUERIES_AT_ONCE:
            break
        taken.append(job)
    return taken


def _refuse(work: InWork, why: str) -> None:
    if work.waiting is not None and not work.waiting.done():
        work.waiting.set_exception(Problem(503, "restarting", why, retry_s=10))
