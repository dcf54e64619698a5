"""The model process seen from the server: start, send, hear, end."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

from radglint.server import worker

Deliver = Callable[[int, dict[str, Any]], None]


class ModelProcess:
    """One life of the model process; when it ends, another object is made.

    Args:
        options: for `worker.main`.
        generation: number of this life.
        deliver: gets the generation and every message, last {"event": "ended"}; called from a thread.
    """

    def __init__(self, options: worker.WorkerOptions, generation: int, deliver: Deliver) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.generation = generation
        self._deliver = deliver
        self._process = context.Process(target=worker.main, args=(theirs, options), name="radglint-model", daemon=True)
        self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, daemon=True, name="radglint-listen").start()

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    def send(self, task: dict[str, Any]) -> None:
        """Send a task; if the process is gone, "ended" is on its way."""
        try:
            self._pipe.send_bytes(json.dumps(task, allow_nan=False).encode())
        except (BrokenPipeError, ConnectionResetError, OSError):
            self.kill()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def close(self, wait_s: float = 5.0) -> None:
        """End it and wait until it is gone."""
        self._process.kill()
        self._process.join(wait_s)

    def _listen(self) -> None:
        while True:
            try:
                message = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError, ValueError):
                break
            self._deliver(self.generation, message)
        self._process.kill()
        self._process.join(10)
        self._deliver(self.generation, {"event": "ended", "code": self._process.exitcode})
