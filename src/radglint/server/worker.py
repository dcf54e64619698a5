"""The model process: everything that decodes a file or runs the model happens here, away from the HTTP server.

Tasks come as JSON over a pipe. What takes long (reading, encoding) has one thread, what is quick (questions on an
encoded study, results of an answer) another, so that nobody waits for a stranger's CT. A question on a study that is
not in memory goes to the slow one. When the pipe closes, the server is gone and so are we.
"""

from __future__ import annotations

import logging
import os
import queue
import resource
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from radglint.server.logs import place_of, set_up_logs

Task = dict[str, Any]
log = logging.getLogger("radglint.server.worker")


@dataclass(frozen=True)
class WorkerOptions:
    """What the model process is started with; the fields are those of `ServerConfig`."""

    model: str
    device: str
    studies: str
    temporary: str
    cache_bytes: int


def main(pipe: Connection, options: WorkerOptions) -> None:
    """Load the model, say hello, work until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when we stop
        signal.signal(number, signal.SIG_IGN)
    set_up_logs()
    tempfile.tempdir = options.temporary
    os.environ["TMPDIR"] = options.temporary
    work = _Work(pipe)
    try:
        work.load(options)
    except Exception as error:
        work.send({"event": "unusable", "problem": " ".join(str(error).split()), "kind": type(error).__name__})
        return
    try:
        while True:
            work.take(_task(pipe.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)  # whatever a thread is at is worth nothing any more


def _task(line: bytes) -> Task:
    import json

    return json.loads(line)


class _Work:
    """The two threads and what they do.

    Args:
        pipe: to the server.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._quick: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._ended: dict[str, Callable[[Task], dict[str, Any]]] = {
            "prepare": self._prepare, "ask": self._ask, "artifact": self._artifact,
        }  # fmt: skip

    def load(self, options: WorkerOptions) -> None:
        """Load the model and embed what it knows, then start the threads."""
        import radglint
        from radglint.server.features import FeatureCache
        from radglint.server.studies import Studies, model_facts

        pipeline = radglint.load(options.model, device=options.device)  # pyright: ignore[reportArgumentType]
        pipeline.model.concepts_of(["nodule"])  # type: ignore[attr-defined]
        self.studies = Studies(pipeline, Path(options.studies), FeatureCache(options.cache_bytes))
        for lane in (self._quick, self._slow):
            threading.Thread(target=self._run, args=(lane,), daemon=True).start()
        self.send({"event": "hello", "model": model_facts(pipeline), **self._status()})

    def take(self, task: Task) -> None:
        """Give a task to the thread that suits it."""
        if task["kind"] == "forget":
            self.studies.forget(task["study"])
        elif task["kind"] == "prepare" or self.studies.cache.peek(task["study"]) is None:
            self._slow.put(task)
        else:
            self._quick.put(task)

    def send(self, message: dict[str, Any]) -> None:
        """To the server."""
        from radglint.server.studies import to_line

        with self._sending:
            self._pipe.send_bytes(to_line(message))

    def _run(self, lane: queue.SimpleQueue[Task]) -> None:
        while True:
            task = lane.get()
            try:
                self.send({"event": "started", "id": task["id"]})
                answer = self._ended[task["kind"]](task)
                self.send({"event": "done", "id": task["id"], **answer, **self._status()})
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)
            except Exception as error:
                self._failed(task, error)

    def _failed(self, task: Task, error: Exception) -> None:
        from radglint.errors import InputError
        from radglint.server.studies import explain

        is_input = isinstance(error, InputError)
        if not is_input:  # our own fault: kind and place, never values
            log.error("%s failed: %s at %s", task["kind"], type(error).__name__, place_of(error))
        told = {"problem": explain(error), "is_input": is_input}
        self.send({"event": "failed", "id": task["id"], **told, **self._status()})

    def _prepare(self, task: Task) -> dict[str, Any]:
        def report(what: dict[str, Any]) -> None:
            self.send({"event": "progress", "id": task["id"], **what})

        return {"image": self.studies.prepare(task["study"], task["name"], task["source"], report)}

    def _ask(self, task: Task) -> dict[str, Any]:
        return {"documents": self.studies.ask(task["study"], task["name"], task["jobs"], task["threshold"])}

    def _artifact(self, task: Task) -> dict[str, Any]:
        return {"path": self.studies.artifact(task)}

    def _status(self) -> dict[str, Any]:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"status": {**self.studies.cache.status(), "peak_rss_bytes": peak_kib * 1024}}
