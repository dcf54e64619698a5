"""Logs without patient data: our own lines only, and of an exception its kind and place, never its text."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

_FRAMES = 6


class _Formatter(logging.Formatter):
    """Time, level, logger, message; an exception as one line."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the name is the library's)
        """Kind and place; the text of an exception can hold a file's or a patient's name."""
        return f"{ei[0].__name__} at {place_of(ei[1])}" if ei[0] is not None else ""


def place_of(error: BaseException | None) -> str:
    """Where an exception was raised: the innermost lines, the deepest first."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:] if error is not None else []
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def set_up_logs() -> None:
    """Send the lines of radglint, and warnings of uvicorn, to stderr; silence all other libraries."""
    logging.disable(logging.NOTSET)
    warnings.simplefilter("ignore")
    logging.root.handlers[:] = [logging.NullHandler()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, level in (("radglint", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
