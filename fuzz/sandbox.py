"""Run inputs in a forked child, so that an aborting decoder, an endless loop or a memory bomb ends the child only.

A child has `cpu_s` seconds of processor time for each input (not wall time: the machine may be busy) and
`memory_bytes` more address space than it started with. Linux.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from radglint.errors import RadglintError

Run = Callable[[int, Path], None]
"""Reads one input, by its number, with an empty folder for its files."""
_FAST = "/dev/shm"
WALL_S = 600.0
"""Without progress for so long, a child is ended: it waits for something that does not come."""


@dataclass(frozen=True)
class Finding:
    """One input that did what no input may do.

    Attributes:
        number: of the input.
        kind: "exception", "signal", "slow", "stuck", "memory" or "promise".
        where: what tells it from other findings: the error and the places in the code.
        detail: traceback, or what is known of it.
    """

    number: int
    kind: str
    where: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """What one input may use."""

    cpu_s: float = 2.0
    memory_bytes: int = 2**30


def run_inputs(run: Run, numbers: Sequence[int], limits: Limits) -> tuple[list[Finding], dict[str, int]]:
    """Run inputs, in as many children as it takes.

    Returns:
        The findings, and how many inputs were read ("read") and refused with a clear error ("refused").
    """
    findings: list[Finding] = []
    counts = {"read": 0, "refused": 0}
    left = list(numbers)
    while left:
        done, found, dead = _one_child(run, left, limits, counts)
        findings += found
        if dead is not None:
            findings.append(_culprit(run, left[:done], dead, limits))
        left = left[done:]
    return findings, counts


def _culprit(run: Run, suspects: list[int], dead: Finding, limits: Limits) -> Finding:
    """The input that ends a child alone; else the shortest end of the group that does, found by halving."""
    counts = {"read": 0, "refused": 0}
    first, last = 0, len(suspects) - 1
    while first < last:  # the largest start from which the group still ends the child
        middle = (first + last + 1) // 2
        again = _one_child(run, suspects[middle:], limits, counts)[2]
        first, last = (middle, last) if again is not None else (first, middle - 1)
    detail = dead.detail if first == len(suspects) - 1 else f"{dead.detail}\nonly together with {suspects[first:-1]}"
    return Finding(dead.number, dead.kind, dead.where, detail)


def _one_child(
    run: Run, numbers: Sequence[int], limits: Limits, counts: dict[str, int]
) -> tuple[int, list[Finding], Finding | None]:
    """How many inputs are over, what was found, and how the child died, if it did."""
    place = mmap.mmap(-1, 8)  # position of the input in work, shared with the child
    reader, writer = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="radglint-fuzz-", dir=_FAST if os.access(_FAST, os.W_OK) else None))
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(run, numbers, limits, place, writer, folder)
    os.close(writer)
    try:
        text, is_stuck = _listen(reader, place, child)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(reader)
        shutil.rmtree(folder, ignore_errors=True)
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    findings = [Finding(**line) for line in lines if "number" in line]
    for line in lines:
        for key in counts:
            counts[key] += line.get(key, 0)
    at = int.from_bytes(place[:8], "little")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return len(numbers), findings, None
    return at + 1, findings, _death(numbers[at], status, is_stuck)


def _listen(reader: int, place: mmap.mmap, child: int) -> tuple[str, bool]:
    """All that the child says, and whether it had to be ended because nothing moved."""
    parts: list[bytes] = []
    seen = bytes(place[:8])
    while True:
        ready, _, _ = select.select([reader], [], [], WALL_S)
        if ready:
            part = os.read(reader, 1 << 16)
            if not part:
                return b"".join(parts).decode("utf-8", "replace"), False
            parts.append(part)
        elif bytes(place[:8]) == seen:
            os.kill(child, signal.SIGKILL)
            return b"".join(parts).decode("utf-8", "replace"), True
        seen = bytes(place[:8])


def _death(number: int, status: int, is_stuck: bool) -> Finding:
    if is_stuck:
        return Finding(number, "stuck", "no progress", f"nothing moved for {WALL_S:g} s")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return Finding(number, "slow", "native code", "over its processor time, in code that Python cannot interrupt")
    name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    return Finding(number, "signal", name, f"the process ended with {name}")


class _OverTimeError(BaseException):
    """Raised by the timer, so that no `except Exception` of a reader swallows it."""


def _over_time(*_: object) -> None:
    # Should native code hold on, the next tick is fatal.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    raise _OverTimeError


def _in_child(run: Run, numbers: Sequence[int], limits: Limits, place: mmap.mmap, writer: int, folder: Path) -> None:
    status = 1
    try:
        _prepare(limits)
        tempfile.tempdir = str(folder)  # what the readers unpack goes with the child
        counts = {"read": 0, "refused": 0}
        with os.fdopen(writer, "w", buffering=1) as out:
            for position, number in enumerate(numbers):
                place[:8] = position.to_bytes(8, "little")
                said = _run_one(run, number, folder, limits)
                if isinstance(said, Finding):
                    out.write(json.dumps(asdict(said)) + "\n")
                else:
                    counts[said] += 1
            out.write(json.dumps(counts) + "\n")
        status = 0
    finally:
        os._exit(status)


def _prepare(limits: Limits) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _run_one(run: Run, number: int, folder: Path, limits: Limits) -> Finding | str:
    signal.signal(signal.SIGPROF, _over_time)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s, limits.cpu_s)
    try:
        run(number, folder)
        said: Finding | str = "read"
    except RadglintError as error:
        said = _refused(number, error)
    except _OverTimeError as error:
        said = Finding(number, "slow", place_of(error), _traceback(error))
    except MemoryError as error:
        said = Finding(number, "memory", place_of(error), _traceback(error))
    except BaseException as error:
        kind = "promise" if type(error).__name__ == "BrokenPromiseError" else "exception"
        said = Finding(number, kind, f"{type(error).__name__} {place_of(error)}", _traceback(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
    return said


def _refused(number: int, error: RadglintError) -> Finding | str:
    """A clear error is right, unless memory ran out first: the next machine has a little more and goes down."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return Finding(number, "memory", place_of(cause), _traceback(error))
        cause = cause.__cause__ or cause.__context__
    if not str(error).strip() or ("\n" in str(error).strip() and "problems" not in str(error)):
        return Finding(number, "promise", f"message {place_of(error)}", f"no clear line: {str(error)!r}")
    return "refused"


def place_of(error: BaseException) -> str:
    """The last place in radglint and the last place of all, without line numbers of other packages."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/radglint/" in f.filename]
    first = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}" if ours else "harness"
    last = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    return f"{first} > {last}"


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) < 6_000 else f"{text[:3_000]}\n...\n{text[-3_000:]}"
