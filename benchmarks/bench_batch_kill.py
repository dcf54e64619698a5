"""Batch: a run over mixed cases that is killed again and again ends as one that nothing stopped.

Command: python benchmarks/bench_batch_kill.py [--cases N] [--kills N] [--model NAME|PATH] [--seed S] [--keep DIR]
         (200 cases with nano: about 15 minutes on one core)
Target: the same results, failures and masks, byte for byte; every broken case named, nothing twice, at least one kill
in the middle; and the run that nothing stopped takes at most 1.15 times what the encoder alone takes.

Cases: nine of ten can be answered: radiographs (PNG, JPEG, DICOM) and small CT (NIfTI, DICOM series) cut from noise and
smooth shapes; every tenth is broken in one of ten ways. Each run is the command line in a process group of its own,
which is sent SIGKILL after a random time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmark_cases import BROKEN, make_cases
from radglint.batch_cases import find_cases
from radglint.batch_files import read_lines
from radglint.pipeline import load

TARGET = 1.15
TIMED = 60
QUERIES = ["pulmonary nodule", "left pleural effusion", "no pneumothorax", "consolidation"]
LIMIT_S = 3600


def main() -> None:
    """Make the cases, run, kill, compare and print; exit 1 if anything is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default=None, help="a folder to work in, which stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(0 if prove(Path(options.keep or temporary), options) else 1)


def prove(folder: Path, options: argparse.Namespace) -> bool:
    """Both runs and the comparison; whether all targets are met."""
    num_good, broken = make_cases(folder / "in", options.cases, options.seed)
    (folder / "queries.txt").write_text("\n".join(QUERIES) + "\n", encoding="utf-8")
    command = [sys.executable, "-c", "from radglint.cli import entry; entry()", "batch", str(folder / "in"), "--masks"]
    command += ["--queries", str(folder / "queries.txt"), "--model", options.model]
    print(f"{num_good} good and {len(broken)} broken cases of {len(BROKEN)} kinds", flush=True)
    start = time.perf_counter()
    start_s = run_until([*command, "--out", str(folder / "whole")], None)
    print(f"uninterrupted: {time.perf_counter() - start:.0f} s, {start_s}", flush=True)
    moments = killed_run([*command, "--out", str(folder / "killed")], folder / "killed", options)
    ok = compare(folder, num_good, broken, moments)
    return throughput(folder, options.model) and ok


def run_until(command: list[str], seconds: float | None) -> str:
    """Run a command; kill its whole process group after some seconds, if it is not done by then. What it said last."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ""
    if process.returncode != 0:
        raise SystemExit(f"the command ended with {process.returncode}: {said}")
    return said.strip().splitlines()[-1] if seconds is None else said.strip()


def killed_run(command: list[str], out: Path, options: argparse.Namespace) -> list[int]:
    """Kill the run at random moments, then let it end; how many cases were done at each kill."""
    rng = random.Random(options.seed)
    moments: list[int] = []
    while len(moments) < options.kills:
        before = done(out)
        wanted = before + rng.randint(1, max(1, (options.cases - before) // (options.kills + 1 - len(moments))))
        kill_when(command, out, wanted, rng)
        moments.append(done(out))
        print(f"kill {len(moments)}: {before} cases done at its start, {moments[-1]} at its end", flush=True)
    print(run_until(command, None), flush=True)
    return moments


def kill_when(command: list[str], out: Path, wanted: int, rng: random.Random) -> None:
    """Start the run, and kill its process group a random while after so many cases are done."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(20 * LIMIT_S):
            if done(out) >= wanted:
                break
            if process.poll() is not None:
                raise SystemExit(f"the command ended with {process.returncode} before it was killed")
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def done(out: Path) -> int:
    """Whole lines that a run has written."""
    return sum(1 for name in ("results.jsonl", "failures.jsonl") for _ in read_lines(out / name))


def compare(folder: Path, num_good: int, broken: dict[str, str], moments: list[int]) -> bool:
    """Whether both folders are the same, and hold what they should."""
    whole, killed = hashes(folder / "whole"), hashes(folder / "killed")
    differ = [name for name in sorted({*whole, *killed}) if whole.get(name) != killed.get(name)]
    answered = Counter(line["id"] for line in read_lines(folder / "killed" / "results.jsonl"))
    failed = Counter(line["id"] for line in read_lines(folder / "killed" / "failures.jsonl"))
    twice = [name for name, count in (answered + failed).items() if count > 1]
    wrong = sorted(set(failed) ^ set(broken))
    masks = sum(1 for name in killed if name.startswith("masks/"))
    print(
        f"{len(answered)} answered, {len(failed)} failed, {len(twice)} twice, {masks} masks, {len(differ)} files differ"
    )
    kinds = Counter(line["kind"] for line in read_lines(folder / "killed" / "failures.jsonl"))
    print("failures: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    ok = not (differ or twice or wrong) and len(answered) == num_good and moments[-1] > 0
    verdict = "ok" if ok else f"MISSED {differ[:5]} {twice[:5]} {wrong[:5]}"
    print(f"killed {len(moments)} times, after {moments} cases: {verdict}")
    return ok


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of results, by its path; what the search keeps for itself is left out."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def throughput(folder: Path, model: str) -> bool:
    """A run in this process against the encoder alone, on some of the good cases; by processor time."""
    from radglint.batch import BatchOptions, run_batch

    pipeline = load(model, device="cpu")
    good = {line["id"] for line in read_lines(folder / "whole" / "results.jsonl")}
    cases = [case for case in find_cases([str(folder / "in")]) if case.id in good][:TIMED]
    run_batch(pipeline, cases[:2], QUERIES, folder / "warm", BatchOptions(show_progress=False))
    wall, processor = time.perf_counter(), time.process_time()
    run_batch(pipeline, cases, QUERIES, folder / "timed", BatchOptions(show_progress=False))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    alone_wall = alone_processor = 0.0
    for case in cases:
        image = case.read()
        start = time.perf_counter(), time.process_time()
        pipeline.encode_image(image)
        alone_wall += time.perf_counter() - start[0]
        alone_processor += time.process_time() - start[1]
    ratio = processor / alone_processor
    verdict = "ok" if ratio <= TARGET else "MISSED"
    print(f"{len(cases)} cases: encoder alone {alone_wall:.1f} s, {alone_processor:.1f} s of the processor; "
          f"run {wall:.1f} s, {processor:.1f} s of the processor; {len(cases) / wall:.2f} cases/s, ratio {ratio:.2f}  "
          f"{verdict}")  # fmt: skip
    return ratio <= TARGET


if __name__ == "__main__":
    main()
