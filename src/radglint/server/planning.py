"""What the model process does next. What waits is in the data base.

Jobs on the same study that wait together are answered together. What the model process died over once is tried again
alone, so that a second death names the culprit.
"""

from __future__ import annotations

from collections.abc import Callable

from radglint.server.config import ServerConfig
from radglint.server.database import Database, Row
from radglint.server.events import Hub
from radglint.server.in_work import InWork, Tasks
from radglint.server.metrics import Metrics
from radglint.server.outcomes import Outcomes

QUERIES_AT_ONCE = 64
ASKS_AT_ONCE = 4
LAST_ATTEMPT = 2


class Planner:
    """See the module.

    Args:
        config: of the server.
        database: what waits.
        hub: told of what begins.
        metrics: of the queries asked at once.
        tasks: in work.
        outcomes: of what is given up.
        send: takes a task to the model process.
    """

    def __init__(
        self, config: ServerConfig, database: Database, hub: Hub, metrics: Metrics, tasks: Tasks, outcomes: Outcomes,
        send: Callable[[InWork], None],
    ) -> None:  # fmt: skip
        self._config, self._database, self._hub, self._metrics = config, database, hub, metrics
        self._tasks, self._outcomes, self._send = tasks, outcomes, send

    def plan(self) -> None:
        """Send what can be worked on now."""
        if any(work.task.get("alone") for work in self._tasks):
            return
        studies, jobs = self._database.waiting_studies(), self._database.waiting_jobs()
        if self._end_culprits(studies, jobs):
            return self.plan()
        if any(row["attempts"] for row in (*studies, *jobs)):
            return self._send_alone(studies, jobs)
        for work in self._tasks.next_artifacts():
            self._send(work)
        self._send_jobs(jobs)
        if studies and not self._tasks.of_kind("prepare"):
            self._send_study(studies[0])

    def _end_culprits(self, studies: list[Row], jobs: list[Row]) -> bool:
        """Give up what the model process died over twice."""
        problem = "the model process ended twice on it: too large for this machine, or a damaged file; it was given up"
        bad_studies = [row["id"] for row in studies if row["attempts"] >= LAST_ATTEMPT]
        bad_jobs = [row["id"] for row in jobs if row["attempts"] >= LAST_ATTEMPT]
        for study_id in bad_studies:
            self._outcomes.fail_study(study_id, problem)
        self._outcomes.fail_jobs(bad_jobs, problem)
        return bool(bad_studies or bad_jobs)

    def _send_alone(self, studies: list[Row], jobs: list[Row]) -> None:
        """A second attempt, with nothing beside it."""
        if self._tasks:
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
        self._hub.publish(study["id"], state="reading", progress=0.05)
        self._send(InWork(task))

    def _source(self, study: Row) -> Row:
        """Where a study comes from; of the PACS no more than there is room for."""
        pacs = self._config.pacs if study["source"]["kind"] == "dicomweb" else None
        if pacs is None:
            return study["source"]
        room = max(1, self._config.stored_bytes - self._database.counts()["stored_bytes"])
        told = {"max_series_bytes": min(room, pacs.max_series_bytes)}
        return study["source"] | {"pacs": pacs.model_dump(mode="json") | told}

    def _send_jobs(self, jobs: list[Row]) -> None:
        """The oldest jobs first, each with what else waits on its study; one task a study at a time."""
        busy = {work.task["study"] for work in self._tasks.of_kind("ask")}
        for job in jobs:
            if len(busy) >= ASKS_AT_ONCE:
                return
            if job["study_id"] not in busy:
                busy.add(job["study_id"])
                alike = [o for o in jobs if o["study_id"] == job["study_id"] and o["threshold"] == job["threshold"]]
                self._send_ask(first_queries(alike))

    def _send_ask(self, jobs: list[Row], *, alone: bool = False) -> None:
        first = jobs[0]
        task = {
            "kind": "ask", "study": first["study_id"], "name": first["name"], "threshold": first["threshold"],
            "jobs": [{"id": job["id"], "queries": job["queries"]} for job in jobs], "alone": alone,
        }  # fmt: skip
        for job in jobs:
            self._hub.publish(job["id"], state="running", progress=0.5)
        self._metrics.batch.observe(sum(len(job["queries"]) for job in jobs))
        self._send(InWork(task, [job["id"] for job in jobs]))


def first_queries(jobs: list[Row]) -> list[Row]:
    """As many jobs from the front as fit into one question; at least one."""
    taken: list[Row] = []
    total = 0
    for job in jobs:
        total += len(job["queries"])
        if taken and total > QUERIES_AT_ONCE:
            break
        taken.append(job)
    return taken
