"""The queue: gives the model process its next tasks, takes the answers, and picks up what falls when it dies.

One thread; everything reaches it through its inbox. `planning` says what is next, `in_work` holds what was sent, and
`outcomes` takes what comes back. If the model process dies, it is started again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from radglint.errors import CheckpointError, ConfigError
from radglint.server.config import ServerConfig
from radglint.server.database import Database, Row
from radglint.server.events import Hub
from radglint.server.folders import DataFolder
from radglint.server.in_work import InWork, Tasks
from radglint.server.metrics import Metrics
from radglint.server.model_process import ModelProcess
from radglint.server.outcomes import Outcomes
from radglint.server.planning import Planner
from radglint.server.worker import WorkerOptions

log = logging.getLogger("radglint.server")
START_S = 300.0  # for loading the model
TICK_S = 1.0
ITEMS_AT_ONCE = 200
CLEAN_EVERY_S = 600.0


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
        self._tasks = Tasks()
        self._outcomes = Outcomes(database, folders, hub, metrics, self._on_forget)
        self._planner = Planner(config, database, hub, metrics, self._tasks, self._outcomes, self._send)
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
        self._tasks.refuse_all("the server is being stopped; ask again in a minute")

    def _is_over(self) -> bool:
        """Whether all is done that can be done before the end."""
        return self._stop_at_s is not None and (not self._tasks or time.monotonic() >= self._stop_at_s)

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
        if is_news and self.is_ready and self._stop_at_s is None:
            self._planner.plan()

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
            self._tasks.put_artifact(item[1], item[2])
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
        elif (work := self._tasks.get(message["id"])) is None:
            return
        elif kind == "started":
            work.started_s = time.monotonic()
        elif kind == "progress":
            self._outcomes.progress(work, message)
        else:
            self._tasks.pop(message["id"])
            (self._outcomes.done if kind == "done" else self._outcomes.failed)(work, message)

    def _hello(self, message: Row) -> None:
        self.model, self.is_ready, self._backoff_s = message["model"], True, 1.0

    def _on_forget(self, study_id: str, job_ids: list[str]) -> None:
        self.database.forget_deleted()
        if self._process is not None:
            self._process.send({"kind": "forget", "study": study_id})
        for item_id in (study_id, *job_ids):
            self.hub.settle(item_id)

    def _on_ended(self, code: int | None) -> None:
        """The model process is gone: count against what it was at, and start another."""
        ended = self._tasks.clear()
        log.error("the model process ended (code %s) with %d tasks; starting it again", code, len(ended))
        self.is_ready = False
        begun = [work for work in ended if work.started_s is not None]
        studies = [work.task["study"] for work in begun if work.task["kind"] == "prepare"]
        jobs = [job_id for work in begun for job_id in work.jobs]
        self.database.count_attempt(studies, jobs)
        for work in ended:
            for item_id in (*work.jobs, work.task["study"]):
                self.hub.settle(item_id)
            work.refuse("the model process had to be started again; ask again in a minute")
        self._restart_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(60.0, 2 * self._backoff_s)
        self.metrics.restarts.inc()  # last: whoever sees the count finds nothing in work any more

    def _tick(self) -> None:
        now = time.monotonic()
        if self._restart_at_s is not None and now >= self._restart_at_s and self._stop_at_s is None:
            self._restart_at_s = None
            self._start_process()
        late = [w for w in self._tasks if w.started_s is not None and now - w.started_s > self.config.task_s]
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

    def _send(self, work: InWork) -> None:
        number = self._tasks.add(work)
        if self._process is not None:
            self._process.send({**work.task, "id": number})
