"""Run `radglint watch CONFIG --once` and kill this process with SIGKILL at one exact point: CONFIG POINT [RECORD].

The points lie inside and between the steps; see `POINTS`. RECORD, a file, gets a line for each instance fetched.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = (
    "seen",  # noted, nothing done
    "fetching",  # five instances of the series are there
    "fetched",
    "answering",  # the objects are on the disk, the ledger does not know
    "answered",
    "one stored",  # the first of two objects is in the PACS
    "both stored",  # the ledger does not know
    "stored",  # the files are still in the folder
)
FETCHED_BEFORE_KILL = 5


def die() -> None:
    """As kill -9 does: no handler, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Die after a call of `owner.name` for which `when(number of calls, *arguments)` is true."""
    inner, calls = getattr(owner, name), []

    def outer(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        calls.append(1)
        if when(len(calls), *args):
            die()
        return result

    setattr(owner, name, outer)


def set_trap(point: str) -> None:
    """Arrange for the end; whatever kind of target there is, it is asked to store."""
    from radglint.pacs import dicomweb, ledger, targets, watching

    store = targets.DimseStore if "dimse" in Path(sys.argv[1]).read_text() else targets.WebStore
    traps: dict[str, Callable[[], None]] = {
        "seen": lambda: after(ledger.Ledger, "note", lambda *_: True),
        "fetching": lambda: after(dicomweb, "_keep", lambda number, *_: number == FETCHED_BEFORE_KILL),
        "answering": lambda: after(watching, "answer_series", lambda *_: True),
        "one stored": lambda: after(store, "store", lambda number, *_: number == 1),
        "both stored": lambda: after(store, "store", second_is_stored(store)),
    }
    moved = lambda: after(ledger.Ledger, "move", lambda _number, _ledger, _entry, state: state == point)  # noqa: E731
    traps.get(point, moved)()


def second_is_stored(store: Any) -> Callable[..., bool]:
    """Whether a call was for the second object: by DICOMweb the first call, as the other object is there already."""
    from radglint.pacs import targets

    last = 2 if store is targets.DimseStore else 1
    return lambda number, *_: number == last


def record_fetches(path: Path) -> None:
    """Write down the name of each instance that is fetched."""
    from radglint.pacs import dicomweb

    keep = dicomweb._keep

    def outer(dataset: Any, series: str, targets: Any) -> int:
        size = keep(dataset, series, targets)
        with path.open("a") as file:
            file.write(f"{dataset.SOPInstanceUID}\n")
        return size

    dicomweb._keep = outer


if __name__ == "__main__":
    from radglint import cli

    if len(sys.argv) > 3:
        record_fetches(Path(sys.argv[3]))
    if sys.argv[2] != "never":
        set_trap(sys.argv[2])
    sys.exit(cli.main(["watch", sys.argv[1], "--once"]))
