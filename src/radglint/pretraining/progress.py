"""What a run tells: one JSON object a line in `log.jsonl`, and a bar on the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from radglint.writing import output_errors, write_text

LOG = "log.jsonl"
BAR_CHARACTERS = 24


class StepLog:
    """The file `log.jsonl` of a run.

    Args:
        out: the run's folder.
        first_step: records of this step and later ones are dropped: the run does them again.
    """

    def __init__(self, out: Path, first_step: int) -> None:
        self.path = out / LOG
        kept = [line for line in self._lines() if _step_of(line) < first_step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []

    def write(self, record: dict[str, Any]) -> None:
        """Add one record; numbers that are not finite become null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with output_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    """The step of a record; a line that was cut when the run was killed counts as later than all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Bar:
    """A line on a terminal that is drawn over; silent elsewhere.

    Args:
        title: what is counted.
        total: how many there are.
        done: how many were done before.
        stream: stderr by default.
    """

    def __init__(self, title: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.title = title
        self.total = total
        self.before = done
        self.stream = stream or sys.stderr
        self.shown = self.stream.isatty()
        self.begin = time.monotonic()

    def show(self, done: int, note: str = "") -> None:
        """Draw the bar after `done` of `total`."""
        if not self.shown:
            return
        full = BAR_CHARACTERS * done // max(self.total, 1)
        bar = "#" * full + "." * (BAR_CHARACTERS - full)
        self.stream.write(f"\r\x1b[K{self.title} [{bar}] {done}/{self.total}{self._left(done)}  {note}")
        self.stream.flush()

    def _left(self, done: int) -> str:
        if done <= self.before:
            return ""
        seconds = (time.monotonic() - self.begin) / (done - self.before)
        left = seconds * (self.total - done)
        return f"  {seconds:.2g} s each, {left / 60:.0f} min left" if left > 90 else f"  {left:.0f} s left"

    def close(self) -> None:
        """Wipe the line."""
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
