"""A worker of `radglint batch --engine ray`: what goes on in an actor, and what travels between it and the run."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radglint import writing
from radglint.batch import ask_all
from radglint.batch_cases import Case
from radglint.batch_files import Line
from radglint.batch_memory import usable_bytes
from radglint.batch_options import BatchOptions
from radglint.errors import InputError
from radglint.pipeline import Device, load

MAX_DEATHS = 2  # at one case: the first in a batch with it, the others with nothing else in hand


@dataclasses.dataclass
class Outcome:
    """What comes back of one case: a line and its masks, or why it failed.

    Attributes:
        line: of results.jsonl; None if it failed.
        masks: names and contents of its mask files.
        failure: kind and message; None if it was answered.
    """

    line: Line | None = None
    masks: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    failure: tuple[str, str] | None = None


class Worker:
    """One actor: a model, loaded once.

    Args:
        model: folder of the checkpoint.
        fingerprint: what the model must be.
        device: where it runs.
        queries: asked of every case.
        options: of the run.
        at: the folder that relative paths are meant from.
        share: how many workers share the memory of this machine.
        deaths: the handle of `Deaths`.

    Raises:
        InputError: the folder is not there, or the model is another one.
    """

    def __init__(
        self, *, model: str, fingerprint: str, device: Device, queries: list[str], options: BatchOptions, at: str,
        share: int, deaths: Any,
    ) -> None:  # fmt: skip
        try:
            os.chdir(at)
        except OSError as error:
            raise InputError(
                f"{at}: not on every machine of the cluster ({error.strerror}); use a shared disk"
            ) from None
        self.pipeline = load(model, device=device)
        if self.pipeline.model.fingerprint != fingerprint:
            raise InputError(f"{model}: is another model on a machine of the cluster; use a shared disk")
        memory = usable_bytes() // share if options.memory_bytes is None else options.memory_bytes
        self.queries, self.options = queries, dataclasses.replace(options, memory_bytes=memory)
        self.deaths = deaths

    def __call__(self, batch: Any) -> Any:
        """Answer a batch: a table of places and packed cases to one of places and packed outcomes."""
        import pyarrow

        places = batch["place"].to_pylist()
        cases = [unpack_case(packed) for packed in batch["case"].to_pylist()]
        outcomes = [pack_outcome(outcome) for outcome in self._together(cases)]
        return pyarrow.table({"place": places, "outcome": pyarrow.array(outcomes, pyarrow.large_binary())})

    def _together(self, cases: Sequence[Case]) -> list[Outcome]:
        """All of them, reading ahead; if a worker died at that, one at a time."""
        name = f"batch of {cases[0].id}"
        if self._call("begin", name):
            return [self._alone(case) for case in cases]
        outcomes = self._ask(cases)
        self._call("end", name)
        return outcomes

    def _alone(self, case: Case) -> Outcome:
        died = self._call("begin", case.id) + 1  # and one in the batch
        if died >= MAX_DEATHS:
            text = f"{case.path}: {died} workers died at it; the system may have ended them for want of memory"
            outcome = Outcome(failure=("worker died", text))
        else:
            (outcome,) = self._ask([case])
        self._call("end", case.id)
        return outcome

    def _ask(self, cases: Sequence[Case]) -> list[Outcome]:
        with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
            box = Outbox(Path(folder))
            ask_all(self.pipeline, cases, self.queries, box, self.options)
        return [box.outcomes[case.id] for case in cases]

    def _call(self, name: str, key: str) -> Any:
        import ray

        return ray.get(getattr(self.deaths, name).remote(key))


class Outbox:
    """Gathers answers to send them home; stands for the folder of the run (see `batch.Sink`).

    Args:
        folder: for masks on their way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self._masks: dict[str, list[tuple[str, bytes]]] = {}

    def add_result(self, line: Line) -> None:
        """Keep an answer, with the masks that were written before."""
        self.outcomes[line["id"]] = Outcome(line, self._masks.pop(line["id"], []))

    def add_failure(self, case: Case, kind: str, message: str) -> None:
        """Keep why a case failed."""
        self.outcomes[case.id] = Outcome(failure=(kind, message))

    @contextmanager
    def masks_of(self, case: Case) -> Iterator[Path]:
        """A folder to write masks into."""
        with writing.output_errors(self.folder), tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)
            self._masks[case.id] = [(path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir())]


class Deaths:
    """An actor that outlives the workers: what was begun and never ended, a worker died at."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._died: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """Note a beginning; how many earlier ones had no end."""
        if key in self._open:
            self._died[key] = self._died.get(key, 0) + 1
        self._open.add(key)
        return self._died.get(key, 0)

    def end(self, key: str) -> None:
        """Note an end."""
        self._open.discard(key)


def pack_case(case: Case) -> bytes:
    """A case as packed JSON: paths of a series hardly differ, so they shrink to little."""
    return _pack(dataclasses.asdict(case) | {"files": [str(file) for file in case.files]})


def unpack_case(packed: bytes) -> Case:
    """What `pack_case` made."""
    fields = _unpack(packed)
    fields["files"] = tuple(Path(file) for file in fields["files"])
    return Case(**fields)


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome as packed JSON, masks in base 64."""
    masks = [(name, base64.b64encode(content).decode("ascii")) for name, content in outcome.masks]
    return _pack({"line": outcome.line, "masks": masks, "failure": outcome.failure})


def unpack_outcome(packed: bytes) -> Outcome:
    """What `pack_outcome` made."""
    fields = _unpack(packed)
    masks = [(name, base64.b64decode(content)) for name, content in fields["masks"]]
    return Outcome(fields["line"], masks, None if fields["failure"] is None else tuple(fields["failure"]))


def _pack(fields: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(fields).encode("ascii"), 1)


def _unpack(packed: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(packed))
