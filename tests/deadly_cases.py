"""A worker that dies at a case; in a module of its own, so that the processes of a cluster can import it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radglint.batch_cases import Case
from radglint.batch_worker import Outcome, Worker
from radglint.image import MedicalImage

DEADLY = "deadly.png"


class Deadly(Case):
    """Ends the worker that reads it with SIGKILL, as a system without memory does; the process of the tests never."""

    def read(self) -> MedicalImage:
        """Never returns."""
        assert Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"), "read outside a worker"
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class DeadlyWorker(Worker):
    """Dies while it reads the case that is named `DEADLY`; else a worker like any other."""

    def _ask(self, cases: Sequence[Case]) -> list[Outcome]:
        return super()._ask([self._armed(case) for case in cases])

    @staticmethod
    def _armed(case: Case) -> Case:
        fields: dict[str, Any] = vars(case)
        return Deadly(**fields) if case.id == DEADLY else case
