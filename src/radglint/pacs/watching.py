"""The loop of `radglint watch`: what the source has goes into the ledger, and each series step by step to the target.

A step ends with one transaction in the ledger, and can be made again if the process is killed inside it: fetching goes
on with what is there, answering gives objects with the same UIDs, and storing asks first whether an object is there.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from radglint import writing
from radglint.batch_queries import read_queries
from radglint.errors import CheckpointError, InputError, PacsError, PacsUnreachableError, RadglintError
from radglint.pacs.answering import Question, answer_series
from radglint.pacs.config import InboxSource, Rule, WatchConfig
from radglint.pacs.ledger import OPEN, Entry, Ledger, State
from radglint.pacs.sources import InboxFolder, Source, WebFolder
from radglint.pacs.targets import open_target
from radglint.pacs.uids import hide_uids, short_name

if TYPE_CHECKING:
    from radglint.pipeline import Pipeline

RESULTS, LOCK = "results", ".lock"
TURN_S = 0.5
"""Between two looks at what is due."""

Say = Callable[[str], object]


class Watcher:
    """A watcher on its folder. Use `open_watcher`.

    Args:
        config: what to watch.
        source: see `sources`.
        ledger: see `ledger`.
        say: takes the lines of the log; no line holds a UID, a name or an ID.
    """

    def __init__(self, config: WatchConfig, source: Source, ledger: Ledger, say: Say) -> None:
        self.config = config
        self.ledger = ledger
        self.source = source
        self._target = open_target(config.target)
        self._say = say
        self._results = config.folder.absolute() / RESULTS
        self._questions = {rule.name: _question(rule, config) for rule in config.rules}
        self._silent_looks = 0
        self._has_looked = False
        self._told: set[str] = set()
        self._patient = True

    def run(self, stop: threading.Event, *, once: bool = False) -> None:
        """Watch until told to stop.

        Args:
            stop: ends the loop after the step that is being taken.
            once: end as soon as no series is on its way any more.

        Raises:
            PacsError: the very first look is refused, or source or target does not answer and `once` is set.
            CheckpointError: the model cannot be loaded.
            OutputError: the ledger cannot be written.
        """
        self._patient, next_look = not once, 0.0
        self._sweep()
        while not stop.is_set():
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + self._look()
            for entry in self.ledger.due():
                self._advance(entry, stop)
                if stop.is_set() or time.monotonic() >= next_look:  # whether a series is quiet must not be old news
                    break
            self.source.clean(self.ledger)
            if once and not self.ledger.entries(*OPEN):
                return
            stop.wait(min(TURN_S, self.config.source.poll_s))

    def _sweep(self) -> None:
        """Remove results that a killed watcher left: stored already, or not yet in the ledger."""
        for folder in self._results.iterdir() if self._results.is_dir() else ():
            entry = self.ledger.entry(folder.name)
            if entry is None or entry.state == "stored" or not entry.objects:
                shutil.rmtree(folder, ignore_errors=True)

    def _look(self) -> float:
        """Note what the source has; seconds until the next look."""
        try:
            self._note()
        except PacsError as error:
            may_pass = isinstance(error, PacsUnreachableError) or self._has_looked
            if not (may_pass and self._patient):
                raise
            self._silent_looks += 1
            wait = max(self.config.source.poll_s, self._back_off(self._silent_looks))
            self._log(f"{error}; looking again in {wait:.0f} s")
            return wait
        for problem in sorted(self.source.problems - self._told):
            self._log(problem)
        self._told = set(self.source.problems)
        self._silent_looks, self._has_looked = 0, True
        return self.config.source.poll_s

    def _note(self) -> None:
        """Write down what the source has, and say which series has more than was asked."""
        grown = self.ledger.note(
            self.source.sightings(), first_look=self.source.first_look, is_rest=self.source.is_rest,
            ask_again=self.config.when_grown == "ask",
        )  # fmt: skip
        for entry, before in grown:
            what = "asking it again" if entry.state == "seen" else "they are not in its results"
            self._log(f"{entry.instances - before} more instances since it was answered; {what}", entry)

    def _advance(self, entry: Entry, stop: threading.Event) -> None:
        """Take as many steps with a series as can be taken now."""
        steps = {"seen": self._fetch, "fetched": self._ask, "answered": self._store}
        while entry.state in OPEN and not stop.is_set():
            try:
                after = steps[entry.state](entry)
            except CheckpointError:  # no series can be asked
                raise
            except Exception as error:  # whatever it is, it must not stop the other series
                self._trouble(entry, error)
                return
            if after is None:
                return
            entry = after

    def _fetch(self, entry: Entry) -> Entry | None:
        """From seen to fetched or passed; None while it is still coming in."""
        still = entry.changed_s + self.config.quiet_s - time.time()
        if still > 0:
            self.ledger.wait(entry, still)
            return None
        rule, reason = self.config.rule_for(self.source.header(entry), entry.instances)
        if rule is None:
            return self._move(entry, "passed", reason=reason, told=f"passed: {reason}")
        files = self.source.fetch(entry)
        if not self.source.is_whole(entry, files):
            self._log("more is coming in", entry)
            self.ledger.wait(entry, self.config.source.poll_s)
            return None
        return self._move(entry, "fetched", rule=rule.name, told=f"fetched {len(files)} instances for {rule.name!r}")

    def _ask(self, entry: Entry) -> Entry | None:
        """From fetched to answered, or passed where no image can be asked."""
        question = self._questions.get(entry.rule)
        if question is None:  # the rules are others than before
            return self.ledger.move(entry, "seen")
        files = self.source.fetch(entry)
        answer = answer_series(self._pipeline, files, question, self._results / entry.series_uid)
        left_out = "; ".join(answer.left_out)
        if not answer.results:
            return self._move(entry, "passed", reason=left_out, told=f"passed: {left_out}")
        told = f"answered with {len(answer.results)} objects" + (f", left out: {left_out}" if left_out else "")
        return self._move(entry, "answered", reason=left_out, objects=answer.results, told=told)

    def _store(self, entry: Entry) -> Entry | None:
        """From answered to stored."""
        if not all(result.path.is_file() for result in entry.objects):
            self._log("its results are gone from the folder; asking it again", entry)
            return self.ledger.move(entry, "seen", objects=())
        for result in entry.objects:
            if not self._target.has(result):
                self._target.store(result.path)
        after = self._move(entry, "stored", reason=entry.reason, told=f"stored {len(entry.objects)} objects")
        shutil.rmtree(self._results / entry.series_uid, ignore_errors=True)
        return after

    def _move(self, entry: Entry, state: State, *, told: str, **changes: object) -> Entry:
        after = self.ledger.move(entry, state, **changes)  # type: ignore[arg-type]
        self._log(told, entry)
        return after

    def _trouble(self, entry: Entry, error: Exception) -> None:
        """What to do about a step that failed: wait for a PACS or a disk, count a failure of the series."""
        if isinstance(error, PacsUnreachableError) or _is_full(error):
            if not self._patient:
                raise error
            self._put_off(entry, entry.state, str(error), counts=False)
        elif isinstance(error, RadglintError | OSError | MemoryError):
            self._failed(entry, str(error) or type(error).__name__)
        else:  # a defect of radglint; its text may quote anything
            if os.environ.get("RADGLINT_DEBUG", "") not in ("", "0"):
                traceback.print_exc()
            self._failed(entry, f"internal error ({type(error).__name__}); RADGLINT_DEBUG=1 shows it")

    def _failed(self, entry: Entry, reason: str) -> None:
        """Count a failure; try again later, or park the series."""
        back_to: State = entry.state
        if entry.state == "fetched":  # the fetch may be what was wrong
            self.source.forget(entry)
            back_to = "seen"
        entry = self._put_off(entry, back_to, reason, counts=True)
        if entry.attempts >= self.config.max_attempts:
            self.ledger.move(entry, "parked", reason=reason)
            self._log(f"parked after {entry.attempts} attempts", entry)

    def _put_off(self, entry: Entry, state: State, reason: str, *, counts: bool) -> Entry:
        wait = self._back_off(entry.waits + 1)
        after = self.ledger.put_off(entry, state, wait, reason, counts=counts)
        self._log(f"{reason}; again in {wait:.0f} s", entry)
        return after

    def _back_off(self, failures: int) -> float:
        return min(self.config.first_retry_s * 2.0 ** min(failures - 1, 30), self.config.longest_retry_s)

    def _log(self, line: str, entry: Entry | None = None) -> None:
        name = f"series {short_name(entry.series_uid)}: " if entry is not None else ""
        self._say(hide_uids(" ".join(f"{name}{line}".split())))

    @cached_property
    def _pipeline(self) -> Pipeline:
        """The model, loaded when the first series is asked."""
        from radglint.pipeline import load

        return load(self.config.model, device=self.config.device)


@contextmanager
def open_watcher(config: WatchConfig, say: Say) -> Iterator[Watcher]:
    """A watcher on its folder, with everything checked that can be before the first series.

    Args:
        config: what to watch.
        say: takes the lines of the log.

    Raises:
        InputError: another watcher uses the folder, or the model or a file of queries is missing or wrong.
        OutputError: the folder cannot be written.
    """
    from radglint import registry
    from radglint.dicom_result import import_highdicom

    registry.locate(config.model)
    import_highdicom()
    with writing.output_errors(config.folder):
        config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_locked(config.folder))
        ledger = stack.enter_context(Ledger(config.folder))
        folder = config.folder.absolute()
        source: Source
        if isinstance(config.source, InboxSource):
            source = stack.enter_context(InboxFolder(config.source, config.modalities, folder))
        else:
            source = WebFolder(config.source, config.modalities, folder)
        yield Watcher(config, source, ledger, say)


def say_to_stderr(line: str) -> None:
    """A line of the log, with the time in UTC."""
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", file=sys.stderr, flush=True)


def _is_full(error: Exception) -> bool:
    """Whether our own disk has no room."""
    return any(getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for cause in (error, error.__cause__))


def _question(rule: Rule, config: WatchConfig) -> Question:
    return Question(tuple(read_queries(rule.queries)), rule.threshold, config.segmentation)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One watcher a folder; the lock goes with the process, however it ends."""
    with writing.output_errors(folder / LOCK):
        file: IO[bytes] = open(folder / LOCK, "ab")  # noqa: SIM115 (closed below)
    with file:
        try:
            import fcntl
        except ImportError as error:  # Windows
            raise InputError("radglint watch needs file locks, which this system does not have; use Linux") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another watcher uses this folder; stop it, or give another folder") from error
        yield
