"""What the model process has in work, and what waits for it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count

from radglint.server.database import Row
from radglint.server.problems import Problem

ARTIFACTS_AT_ONCE = 8


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

    def refuse(self, why: str) -> None:
        """Tell who waits for an artifact that it does not come."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(Problem(503, "restarting", why, retry_s=10))


class Tasks:
    """All tasks at the model process by their numbers, and artifacts that wait their turn. Of one thread."""

    def __init__(self) -> None:
        self._in_work: dict[int, InWork] = {}
        self._artifacts: list[InWork] = []
        self._numbers = count(1)

    def __bool__(self) -> bool:
        """Whether any is in work."""
        return bool(self._in_work)

    def __iter__(self) -> Iterator[InWork]:
        """Those in work, the oldest first."""
        return iter(tuple(self._in_work.values()))

    def add(self, work: InWork) -> int:
        """Take a task in; returns its number."""
        number = next(self._numbers)
        self._in_work[number] = work
        return number

    def get(self, number: int) -> InWork | None:
        """The task of a number; None if it is not in work any more."""
        return self._in_work.get(number)

    def pop(self, number: int) -> InWork:
        """Take a task out, since it has ended."""
        return self._in_work.pop(number)

    def of_kind(self, kind: str) -> list[InWork]:
        """Those of a kind."""
        return [work for work in self if work.task["kind"] == kind]

    def put_artifact(self, task: Row, waiting: Future[str]) -> None:
        """A result that somebody waits for."""
        self._artifacts.append(InWork(task, waiting=waiting))

    def next_artifacts(self) -> Iterator[InWork]:
        """Results whose turn it is; of two alike at once, the second finds the file of the first."""
        while self._artifacts and len(self.of_kind("artifact")) < ARTIFACTS_AT_ONCE:
            work = self._artifacts.pop(0)
            if work.waiting is not None and work.waiting.set_running_or_notify_cancel():
                yield work

    def clear(self) -> list[InWork]:
        """Forget what is in work, as the process is gone; returns it."""
        ended = list(self)
        self._in_work.clear()
        return ended

    def refuse_all(self, why: str) -> None:
        """Tell everybody who waits for an artifact that it does not come."""
        for work in (*self, *self._artifacts):
            work.refuse(why)
