"""Fuzz everything in radglint that takes bytes from outside, and keep what crashes.

Command:  python fuzz/fuzz_readers.py --inputs 200000 --seed 0 --workers 1
Again:    the same command goes on where the last one stopped; --out names the folder (default fuzz_out)
One file: python fuzz/fuzz_readers.py --replay fuzz_out/findings/NAME.bin --targets raster
Time:     about 5 ms an input on one core, 20 minutes for 200,000
Expected: "0 kinds of finding"; exit code 1 if there is one

An input is refused with a `RadglintError` or read. A finding is anything else: another exception, a signal, more than
2 s of processor time, more than 1 GiB of memory, or an image that breaks a promise of its type. Input N of a seed is
always the same bytes. Needs Linux and the `dev` extra.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RUST_BACKTRACE"] = "0"  # a panic is an ordinary refusal here; its backtrace takes 20 ms
warnings.simplefilter("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

from sandbox import Finding, Limits, run_inputs  # noqa: E402
from targets import TARGETS, Target, mutant  # noqa: E402

GROUP = 1000
"""Inputs of one child."""
KEPT = 3
"""Files kept of each kind of finding."""
SHRINK_ROUNDS = 40


def input_of(seed: int, number: int, names: tuple[str, ...] = tuple(TARGETS)) -> tuple[str, bytes]:
    """Target and bytes of an input: the same for the same seed and number."""
    rng = Random(f"radglint {seed} {number}")
    name = rng.choices(names, [TARGETS[name].weight for name in names])[0]
    return name, mutant(TARGETS[name], rng)


def check_seeds(names: tuple[str, ...]) -> None:
    """Every valid file is read; this also loads what is loaded late, before any clock runs."""
    from tempfile import TemporaryDirectory

    for name in names:
        for file, data in TARGETS[name].seeds().items():
            with TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    TARGETS[name].read(data, Path(folder))
                except Exception as error:
                    raise SystemExit(f"{name}: the valid file {file} is not read: {error!r}") from error
    gc.collect()
    gc.freeze()  # the children neither look through nor copy what is loaded now


class Campaign:
    """One run over inputs, which goes on where it stopped.

    Args:
        out: its folder.
        seed: what the inputs are made from.
        names: targets.
        limits: of one input.
        share: (i, n): groups i, i + n, i + 2n ... are run.
    """

    def __init__(
        self, out: Path, seed: int, names: tuple[str, ...], limits: Limits, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.out, self.seed, self.names, self.limits, self.share = out, seed, names, limits, share
        self.log = out / f"progress_{seed}_{share[0]}_{share[1]}.jsonl"
        (out / "findings").mkdir(parents=True, exist_ok=True)
        self.kept: Counter[str] = Counter()

    def run(self, first: int, inputs: int) -> None:
        """Run the inputs from `first` on that have no line in the log."""
        over: set[int] = set()
        for line in self.lines():
            self.kept.update(found["key"] for found in line["findings"])
            over.update(range(line["first"], line["first"] + line["inputs"]))
        for block in range(first // GROUP, (first + inputs - 1) // GROUP + 1):
            ends = max(block * GROUP, first), min((block + 1) * GROUP, first + inputs)
            left = [number for number in range(*ends) if number not in over]
            if left and block % self.share[1] == self.share[0]:
                self._group(left)

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of the log."""
        if not self.log.exists():
            return []
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def _group(self, numbers: list[int]) -> None:
        began = time.perf_counter()
        found, counts = run_inputs(self._read, numbers, self.limits)
        keys = [{"key": self._keep(one), "number": one.number} for one in found]
        line = {"first": numbers[0], "inputs": len(numbers), **counts, "findings": keys}
        line["seconds"] = round(time.perf_counter() - began, 2)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _read(self, number: int, folder: Path) -> None:
        name, data = input_of(self.seed, number, self.names)
        TARGETS[name].read(data, folder)

    def _keep(self, finding: Finding) -> str:
        name, data = input_of(self.seed, finding.number, self.names)
        key = f"{name} {finding.kind} {finding.where}"
        self.kept[key] += 1
        if self.kept[key] <= KEPT:
            stem = f"{name}_{hashlib.sha256(key.encode()).hexdigest()[:8]}_{self.seed}_{finding.number}"
            (self.out / "findings" / f"{stem}.bin").write_bytes(data)
            about = {"target": name, "seed": self.seed, "number": finding.number, "kind": finding.kind,
                     "where": finding.where, "bytes": len(data), "detail": finding.detail}  # fmt: skip
            (self.out / "findings" / f"{stem}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        return key


def shrink_all(folder: Path, limits: Limits) -> None:
    """Beside each finding that has no small file yet, write one."""
    for path in sorted(folder.glob("*.json")):
        small = path.with_suffix(".small")
        about = json.loads(path.read_text(encoding="utf-8"))
        if not small.exists() and about["kind"] not in ("slow", "stuck"):
            finding = Finding(0, about["kind"], about["where"], "")
            small.write_bytes(shrink(TARGETS[about["target"]], path.with_suffix(".bin").read_bytes(), finding, limits))


def shrink(target: Target, data: bytes, finding: Finding, limits: Limits) -> bytes:
    """Leave out pieces as long as the same thing happens; all pieces of one size are tried in one child."""
    size, rounds = max(len(data) // 2, 1), 0
    while size and rounds < SHRINK_ROUNDS:
        rounds += 1
        smaller = [data[:at] + data[at + size :] for at in range(0, len(data), max(size, len(data) // 200))]
        found = run_inputs(lambda k, folder, d=smaller: target.read(d[k], folder), range(len(smaller)), limits)[0]
        same = [one.number for one in found if (one.kind, one.where) == (finding.kind, finding.where)]
        data = smaller[same[-1]] if same else data
        size = min(size, len(data)) if same else size // 2
    return data


def report(out: Path, seed: int) -> tuple[str, int]:
    """What all runs of a seed found, in words, and the number of kinds."""
    lines = [
        json.loads(text)
        for log in sorted(out.glob(f"progress_{seed}_*.jsonl"))
        for text in log.read_text(encoding="utf-8").splitlines()
        if text.endswith("}")
    ]
    total = {key: sum(line[key] for line in lines) for key in ("inputs", "read", "refused", "seconds")}
    kinds = Counter(found["key"] for line in lines for found in line["findings"])
    words = [f"{total['inputs']} inputs, {total['read']} read, {total['refused']} refused, {total['seconds']:.0f} s"]
    words += [f"{count:7d}  {key}" for key, count in kinds.most_common()]
    return "\n".join([*words, f"{len(kinds)} kinds of finding"]), len(kinds)


def _replay(path: Path, name: str, limits: Limits) -> int:
    data = path.read_bytes()
    found = run_inputs(lambda _, folder: TARGETS[name].read(data, folder), [0], limits)[0]
    print("\n".join(f"{one.kind} {one.where}\n{one.detail}" for one in found) or "read, or refused with a clear error")
    return int(bool(found))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS), metavar="TARGET")
    parser.add_argument("--out", type=Path, default=Path("fuzz_out"))
    parser.add_argument("--shrink", action="store_true", help="also write a small file beside each finding")
    parser.add_argument("--replay", type=Path, help="run one file on the first of --targets")
    given = parser.parse_args(arguments)
    names, limits = tuple(given.targets), Limits()
    check_seeds(names)
    if given.replay:
        return _replay(given.replay, names[0], limits)
    if given.workers > 1:
        own = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        parts = [
            subprocess.Popen([*own, "--workers", "1", "--share", f"{i}/{given.workers}"]) for i in range(given.workers)
        ]
        codes = [part.wait() for part in parts]
        return max(codes)
    part, parts_in_all = map(int, given.share.split("/"))
    Campaign(given.out, given.seed, names, limits, (part, parts_in_all)).run(given.first, given.inputs)
    if given.shrink:
        shrink_all(given.out / "findings", limits)
    words, kinds = report(given.out, given.seed)
    print(words)
    return int(kinds > 0)


if __name__ == "__main__":
    sys.exit(main())
