"""`radglint batch`: one sheet of queries, any number of cases, weights and text embeddings loaded once.

    read the next cases    threads, at most `AHEAD` of them and only what memory holds
    encode and answer      here
    measure and write      one thread: masks first, then the case's line

A case that fails gets a line in failures.jsonl, and the run goes on. One for which memory did not suffice is tried once
more at the end, alone and a slice at a time. Nothing waits for a thread without an end: a case that takes too long to
read is given up. What is on disk when the process dies is what the next run goes on from (see `batch_files`).
"""

from __future__ import annotations

import gc
import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from radglint.batch_cases import Case
from radglint.batch_files import DIGITS, MASKS, RunFolder, describe_run, mask_folder, open_run, require_pyarrow
from radglint.batch_memory import POLL_S, MemoryBudget, TooLargeError, check_fits, estimate_bytes, usable_bytes
from radglint.errors import ConfigError, GeometryError, ImageError, InputError, OutputError
from radglint.findings import Findings
from radglint.image import MedicalImage
from radglint.pipeline import GlintAnswerer, Pipeline
from radglint.query import parse_query

AHEAD = 2
TIMEOUT_S = 900.0
STOP_S = 30.0
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (TooLargeError, "too large"),
    (GeometryError, "bad geometry"),
    (ImageError, "unreadable image"),
    (ConfigError, "not answered by this model"),
    (InputError, "bad input"),
    (TimeoutError, "timeout"),
)
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class BatchOptions:
    """How a run goes.

    Attributes:
        threshold: as for `Pipeline.ask`.
        masks: write masks too.
        parquet: also write results.parquet at the end.
        retry_failed: try cases again that failed in an earlier run.
        shard: in words, which part of the cases this is; a run of another part is another run.
        memory_bytes: of all cases in work together; None = four fifths of what there is.
        timeout_s: seconds after which a case that cannot be read is given up.
        show_progress: a bar on stderr; None = if it is a terminal.
    """

    threshold: float | None = None
    masks: bool = False
    parquet: bool = False
    retry_failed: bool = False
    shard: str = "all"
    memory_bytes: int | None = None
    timeout_s: float = TIMEOUT_S
    show_progress: bool | None = None


@dataclass(frozen=True)
class BatchSummary:
    """What a run has come to.

    Attributes:
        folder: where the results are.
        answered: cases with an answer, those of earlier runs included.
        failed: cases that failed.
    """

    folder: Path
    answered: int
    failed: int


def run_batch(
    pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], out: Path, options: BatchOptions | None = None
) -> BatchSummary:
    """Ask every case, or go on with a run that was stopped.

    Args:
        pipeline: the model.
        cases: with unique ids, in the order that the results shall have.
        queries: asked of every case.
        out: the folder of results; see `batch_files`.
        options: see there.

    Raises:
        InputError: the folder holds another run, pyarrow is wanted and missing, or a query cannot be asked.
        OutputError: the results cannot be written; what is written stays.
    """
    options = options or BatchOptions()
    if options.parquet:
        require_pyarrow()
    phrases = [parse_query(query).phrase for query in queries]
    about = describe_run(
        cases, queries, model=pipeline.model.name, fingerprint=pipeline.model.fingerprint, threshold=options.threshold,
        shard=options.shard, masks=options.masks,
    )  # fmt: skip
    with open_run(out, about, retry_failed=options.retry_failed) as run:
        todo = [case for case in cases if case.id not in run.done]
        if todo and isinstance(pipeline.model, GlintAnswerer):
            pipeline.model.concepts_of(phrases)  # all in one go, so that no embedding depends on the order of cases
        _Run(pipeline, list(queries), run, options, len(cases)).work(todo)
        run.finish(cases, parquet=options.parquet)
        return BatchSummary(out, len(run.answered), len(run.failed))


class _Run:
    """One run at work: what the thread does that encodes."""

    def __init__(
        self, pipeline: Pipeline, queries: list[str], run: RunFolder, options: BatchOptions, num_cases: int
    ) -> None:
        self.pipeline, self.queries, self.run, self.options = pipeline, queries, run, options
        self.memory = MemoryBudget(usable_bytes() if options.memory_bytes is None else options.memory_bytes)
        self.later: list[Case] = []
        self.at_end = False
        disable = None if options.show_progress is None else not options.show_progress
        self.bar = tqdm(total=num_cases, initial=len(run.done), desc="asking", unit="case", disable=disable)
        self._tickets = itertools.count()
        self._guard = threading.Lock()
        self.writer = _Writer(self)

    def work(self, cases: Sequence[Case]) -> None:
        """All cases; then those that memory did not suffice for, alone."""
        self.writer.start()
        try:
            with self.bar:
                self._pass(cases, AHEAD)
                self.writer.drain()
                self._work_alone()
        finally:
            self.memory.close()
            self.writer.stop()

    def _work_alone(self) -> None:
        """Once more what memory did not suffice for: one case at a time, one slice at a time."""
        cases, self.later, self.at_end = self.later, [], True
        with _slice_by_slice(self.pipeline):
            for case in cases:
                gc.collect()
                self._pass([case], 1)
                self.writer.drain()

    def _pass(self, cases: Sequence[Case], ahead: int) -> None:
        todo, reading = deque(cases), deque[_Reading]()
        while todo or reading:
            while todo and len(reading) < ahead:
                reading.append(_Reading(todo.popleft(), next(self._tickets), self.memory))
                reading[-1].start()
            self._one(reading.popleft())

    def _one(self, reading: _Reading) -> None:
        """Wait for an image, ask it, hand the answer to the writer."""
        self._wait(reading)
        case, needed = reading.case, reading.taken
        try:
            findings = self.pipeline.ask(reading.image(), self.queries, threshold=self.options.threshold)
        except Exception as error:  # whatever one case does, the others are answered
            self.failed(case, error, needed)
            return
        self.writer.put((case, findings, needed), self.options.timeout_s)

    def _wait(self, reading: _Reading) -> None:
        """Until it has read, or for so long that it is given up."""
        for _ in range(max(1, round(self.options.timeout_s / POLL_S))):
            reading.join(POLL_S)
            self.writer.check()
            if not reading.is_alive():
                return
        reading.give_up(self.options.timeout_s)

    def failed(self, case: Case, error: Exception, needed: int) -> None:
        """Keep the reason, or keep the case for later if it is memory."""
        self.memory.give_back(needed)
        if is_memory_error(error) and not self.at_end:
            self.later.append(case)
            return
        kind, message = describe_failure(case, error)
        self.run.add_failure(case, kind, message)
        self._tick()

    def answered(self, case: Case, findings: Findings, needed: int) -> None:
        """Measure, write the masks, then the line (on the writer's thread)."""
        names: list[str | None] = [None] * len(findings)
        if self.options.masks:
            with self.run.masks_of(case) as folder:
                write_masks(findings, folder)
            names = [f"{MASKS}/{mask_folder(case.id)}/{name}" for name in findings.mask_names]
        self.run.add_result(result_line(case, findings, names))
        self.memory.give_back(needed)
        self._tick()

    def _tick(self) -> None:
        with self._guard:
            self.bar.set_postfix(failed=len(self.run.failed), refresh=False)
            self.bar.update()


class _Reading(threading.Thread):
    """Reads one case. It is a daemon: one that hangs is left behind and does not keep the process alive.

    Attributes:
        taken: bytes of the budget that it holds.
    """

    def __init__(self, case: Case, ticket: int, memory: MemoryBudget) -> None:
        super().__init__(name=f"reading {case.id}", daemon=True)
        self.case, self.taken = case, 0
        self._ticket, self._memory = ticket, memory
        self._image: MedicalImage | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Estimate from the header, wait for so much memory, read."""
        try:
            needed = estimate_bytes(self.case)
            check_fits(self.case, needed, self._memory.total)
            self._memory.take(self._ticket, needed)
            self.taken = needed
            self._image = self.case.read()
        except BaseException as error:  # it is raised again where it is waited for
            self._error = self._error or error
        finally:
            self._memory.leave(self._ticket)

    def give_up(self, timeout_s: float) -> None:
        """Let `image` raise TimeoutError, whatever the thread does from now on."""
        text = f"{self.case.path}: could not be read within {timeout_s:g} s; check the disk it is on"
        self._error = TimeoutError(text)
        self._memory.leave(self._ticket)

    def image(self) -> MedicalImage:
        """The image, handed out once.

        Raises:
            TimeoutError: it was given up.
            Exception: what reading raised.
        """
        image, self._image = self._image, None
        if self._error is not None:
            raise self._error
        if image is None:
            raise RuntimeError(f"{self.case.path}: reading gave nothing")
        return image


class _Writer(threading.Thread):
    """Measures and writes, one answer at a time, with one more waiting."""

    def __init__(self, run: _Run) -> None:
        super().__init__(name="writing", daemon=True)
        self._run = run
        self._queue: queue.Queue[tuple[Case, Findings, int] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None

    def run(self) -> None:
        """Write until told to stop; a result that cannot be written ends the run, a case that fails does not."""
        while (item := self._queue.get()) is not None:  # ended by `stop`, and a daemon anyway
            try:
                if self._error is None:
                    self._write(*item)
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
                del item

    def _write(self, case: Case, findings: Findings, needed: int) -> None:
        try:
            self._run.answered(case, findings, needed)
        except OutputError:
            raise
        except Exception as error:
            self._run.failed(case, error, needed)

    def put(self, item: tuple[Case, Findings, int], timeout_s: float) -> None:
        """Hand over an answer.

        Raises:
            OutputError: the results cannot be written, or the disk does not answer.
        """
        for _ in range(max(1, int(timeout_s / POLL_S))):
            self.check()
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return
        raise self._stuck(timeout_s)

    def drain(self) -> None:
        """Wait until all that was handed over is written."""
        timeout_s = self._run.options.timeout_s
        with self._queue.all_tasks_done:
            for _ in range(max(1, int(timeout_s / POLL_S))):
                if not self._queue.unfinished_tasks:
                    break
                self._queue.all_tasks_done.wait(POLL_S)
            else:
                raise self._stuck(timeout_s)
        self.check()

    def stop(self) -> None:
        """Let it finish what it has, for a while."""
        try:
            self._queue.put(None, timeout=STOP_S)
        except queue.Full:
            return
        self.join(STOP_S)

    def check(self) -> None:
        """Raise what kept it from writing, if anything did."""
        if self._error is not None:
            raise self._error

    def _stuck(self, timeout_s: float) -> OutputError:
        folder = self._run.run.folder
        return OutputError(f"{folder}: a result was not written within {timeout_s:g} s; check the disk, then run again")


@contextmanager
def _slice_by_slice(pipeline: Pipeline) -> Iterator[None]:
    """Let the model take one slice at a time, if it is one that can."""
    model = pipeline.model
    before = model.slices_at_once if isinstance(model, GlintAnswerer) else 0
    try:
        if isinstance(model, GlintAnswerer):
            model.slices_at_once = 1
        yield
    finally:
        if isinstance(model, GlintAnswerer):
            model.slices_at_once = before


def is_memory_error(error: BaseException | None) -> bool:
    """Whether memory did not suffice, on the processor or an accelerator, also as the cause of a reader's error."""
    if error is None:
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS):
        return True
    return is_memory_error(error.__cause__)


def describe_failure(case: Case, error: Exception) -> tuple[str, str]:
    """The kind of a failure, and one line about it."""
    if is_memory_error(error):
        return "memory", f"{case.path}: not enough memory, also alone; crop it or use a larger machine"
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return name, " ".join(str(error).split())
    text = f"{case.path}: {type(error).__name__}: {' '.join(str(error).split())}"
    return "internal error", f"{text}; please report it"


def write_masks(findings: Findings, folder: Path) -> None:
    """A mask for each finding, as `Findings.save` writes and names them."""
    for finding, name in zip(findings, findings.mask_names, strict=True):
        write = finding.to_png if findings.image.affine is None else finding.to_nifti
        write(folder / name)


def result_line(case: Case, findings: Findings, masks: Sequence[str | None]) -> dict[str, Any]:
    """The line of a case in results.jsonl: no time and no machine in it, so that two runs can be compared."""
    answers = []
    for finding, mask in zip(findings, masks, strict=True):
        answer: dict[str, Any] = finding.to_dict(mask) | {"decision": finding.decision}
        rounded = {name: round(answer[name], DIGITS) for name in ("score", "probability") if answer[name] is not None}
        answers.append(answer | rounded)
    return {
        "id": case.id, "path": case.path, "modality": findings.image.modality, "shape": list(findings.image.shape),
        "model": {"name": findings.model_name, "fingerprint": findings.model_fingerprint},
        "findings": answers, "warnings": list(findings.warnings),
    }  # fmt: skip
