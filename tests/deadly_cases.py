"""Cases that kill; in a module of its own, so that the workers of a cluster can unpack them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from radglint.batch_cases import Case
from radglint.image import MedicalImage


@dataclass(frozen=True)
class Deadly(Case):
    """Ends the worker that reads it with SIGKILL, as a system without memory does; the process of the tests never."""

    def read(self) -> MedicalImage:
        """Never returns."""
        assert Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"), "read outside a worker"
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")
