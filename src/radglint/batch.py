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
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from tqdm import tqdm

from radglint.batch_answers import describe_failure, is_memory_error, result_line, write_masks
from radglint.batch_cases import Case
from radglint.batch_files import (
    MASKS,
    BatchSummary,
    Line,
    RunFolder,
    describe_run,
    mask_folder,
    open_run,
    require_pyarrow,
)
from radglint.batch_memory import POLL_S, MemoryBudget, check_fits, estimate_bytes, usable_bytes
from radglint.batch_options import BatchOptions
from radglint.errors import OutputError
from radglint.findings import Findings
from radglint.image import MedicalImage
from radglint.pipeline import GlintAnswerer, Pipeline
from radglint.query import parse_query

AHEAD = 2
STOP_S = 30.0


class Sink(Protocol):
    """Where answers go: the folder of the run, or what carries them there."""

    folder: Path

    def add_result(self, line: Line) -> None:
        """Keep an answer."""
        ...

    def add_failure(self, case: Case, kind: str, message: str) -> None:
        """Keep why a case failed."""
        ...

    def masks_of(self, case: Case) -> AbstractContextManager[Path]:
        """A folder to write the masks of a case into, before its answer is kept."""
        ...


class Engine(Protocol):
    """Who does the work: this process, or others."""

    def __call__(
        self, pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], run: RunFolder, options: BatchOptions
    ) -> None:
        """Ask all these cases and keep the answers in the folder, each once and in any order."""
        ...


def run_batch(
    pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], out: Path,
    options: BatchOptions | None = None, engine: Engine | None = None,
) -> BatchSummary:  # fmt: skip
    """Ask every case, or go on with a run that was stopped.

    Args:
        pipeline: the model.
        cases: with unique ids, in the order that the results shall have.
        queries: asked of every case.
        out: the folder of results; see `batch_files`.
        options: see there.
        engine: who does the work; None = this process.

    Raises:
        InputError: the folder holds another run, pyarrow is wanted and missing, or a query cannot be asked.
        OutputError: the results cannot be written; what is written stays.
    """
    options = options or BatchOptions()
    if options.parquet:
        require_pyarrow()
    for query in queries:
        parse_query(query)
    about = describe_run(
        cases, queries, model=pipeline.model.name, fingerprint=pipeline.model.fingerprint, threshold=options.threshold,
        shard=options.shard, masks=options.masks, whole=options.whole,
    )  # fmt: skip
    with open_run(out, about, retry_failed=options.retry_failed) as run:
        run.note(cases, options.skipped, options.whole)
        todo = [case for case in cases if case.id not in run.done]
        if todo:
            (engine or work_here)(pipeline, todo, queries, run, options)
        run.finish(cases, parquet=options.parquet)
        return run.summary()


def work_here(
    pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], run: RunFolder, options: BatchOptions
) -> None:
    """The engine that is this process."""
    bar = progress_bar(len(run.done), len(cases), options)
    ask_all(pipeline, cases, queries, run, options, bar)


def progress_bar(done: int, todo: int, options: BatchOptions) -> tqdm[NoReturn]:
    """A bar on stderr with rate and remaining time."""
    disable = None if options.show_progress is None else not options.show_progress
    return tqdm(total=done + todo, initial=done, desc="asking", unit="case", disable=disable)


def ask_all(
    pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], sink: Sink, options: BatchOptions,
    bar: tqdm[NoReturn] | None = None,
) -> None:  # fmt: skip
    """Ask cases in this process, reading and writing overlapped with it.

    Args:
        pipeline: the model.
        cases: each gets one answer or one failure.
        queries: asked of every case.
        sink: where answers and failures go.
        options: see there.
        bar: ticked for each case; it is closed at the end.

    Raises:
        OutputError: an answer cannot be kept.
    """
    embed_queries(pipeline, queries)
    _Run(pipeline, list(queries), sink, options, bar).work(cases)


def embed_queries(pipeline: Pipeline, queries: Sequence[str]) -> None:
    """All in one go, so that no embedding depends on the order of cases."""
    if isinstance(pipeline.model, GlintAnswerer):
        pipeline.model.concepts_of([parse_query(query).phrase for query in queries])


class _Run:
    """One run at work: what the thread does that encodes."""

    def __init__(
        self, pipeline: Pipeline, queries: list[str], sink: Sink, options: BatchOptions, bar: tqdm[NoReturn] | None
    ) -> None:
        self.pipeline, self.queries, self.sink, self.options = pipeline, queries, sink, options
        self.memory = MemoryBudget(usable_bytes() if options.memory_bytes is None else options.memory_bytes)
        self.later: list[Case] = []
        self.at_end = False
        self.bar = tqdm(disable=True) if bar is None else bar
        self.num_failed = 0
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
        self.sink.add_failure(case, kind, message)
        self._tick(failed=1)

    def answered(self, case: Case, findings: Findings, needed: int) -> None:
        """Measure, write the masks, then the line (on the writer's thread)."""
        names: list[str | None] = [None] * len(findings)
        if self.options.masks:
            with self.sink.masks_of(case) as folder:
                write_masks(findings, folder)
            names = [f"{MASKS}/{mask_folder(case.id)}/{name}" for name in findings.mask_names]
        self.sink.add_result(result_line(case, findings, names))
        self.memory.give_back(needed)
        self._tick()

    def _tick(self, failed: int = 0) -> None:
        with self._guard:
            self.num_failed += failed
            self.bar.set_postfix(failed=self.num_failed, refresh=False)
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
        folder = self._run.sink.folder
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
