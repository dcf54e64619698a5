"""SimFind: frozen lists of simulated cases, rebuilt from bases and seeds and compared with what was frozen.

`data/simfind_NAME.json` holds the bases with a digest of their pixels, and per case its base, its split and what came
out when it was frozen:

* `text`: SHA-256 of report and facts; must be equal.
* `pixels`, `masks`: SHA-256 of the decoded image and masks, at 8 bits (a CT in steps of 16 HU). Equal on the machine
  that froze them, and wherever arithmetic rounds the same.
* `coarse`, `sizes`: means of 8 x 8 blocks of the image (4 x 8 x 8 of a CT) in 255 steps, and the voxels of each mask.
  Where a hash differs, these must agree to 2 steps and to 3 % and 12 voxels: processors round the last bit of an
  exponential differently, which moves the odd value over a rounding edge but leaves the case what it is.

Validation cases are written in the words of training, test cases in words that training never reads, of other patients.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from radglint.errors import InputError
from radglint.simulation.case import Kind, Plan

BENCHMARKS: dict[str, Kind] = {"simfind-cxr": "cxr", "simfind-ct": "ct", "simfind-drr": "drr"}
"""Every benchmark and the kind of its images."""

COARSE_STEPS, SIZE_SHARE, SIZE_VOXELS = 2, 0.03, 12


@dataclass(frozen=True)
class Base:
    """A base of a benchmark.

    Attributes:
        name: path in the folder that the user gives.
        patient: for the split.
        digest: of the decoded pixels, see `native_digest`.
        lesions: path of a mask of real lesions that are covered first, or "".
    """

    name: str
    patient: str
    digest: str = ""
    lesions: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """What a case was when it was frozen; see the module."""

    text: str
    pixels: str
    masks: str
    coarse: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Benchmark:
    """A frozen list.

    Attributes:
        name: a key of `BENCHMARKS`.
        seed: of all cases.
        bases: those that the cases name by number.
        cases: what to make.
        frozen: what came out, by name of the case.
    """

    name: str
    seed: int
    bases: tuple[Base, ...]
    cases: tuple[Plan, ...]
    frozen: Mapping[str, Fingerprint] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line per base and per case."""
        bases = ",\n".join(json.dumps(asdict(base)) for base in self.bases)
        rows = [
            {"name": p.name, "index": p.index, "base": p.base, "split": p.split, **asdict(self.frozen[p.name])}
            for p in self.cases
        ]
        cases = ",\n".join(json.dumps(row) for row in rows)
        head = f'"name": {json.dumps(self.name)}, "seed": {self.seed}'
        return f'{{{head}, "bases": [\n{bases}\n], "cases": [\n{cases}\n]}}\n'


def data_name(name: str) -> str:
    """File name of a benchmark's list in `radglint/data`, without its suffix."""
    return name.replace("-", "_")


def read_benchmark(name: str) -> Benchmark:
    """Read the frozen list that ships with the package.

    Args:
        name: a key of `BENCHMARKS`.

    Raises:
        InputError: there is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise InputError(f"--benchmark: expected one of {', '.join(BENCHMARKS)}, got {name!r}")
    file = importlib.resources.files("radglint") / "data" / f"{data_name(name)}.json"
    if not file.is_file():
        raise InputError(f"{name}: its list {data_name(name)}.json is not in this copy of radglint; install it again")
    stored = json.loads(file.read_text(encoding="utf-8"))
    plans = tuple(plan(r["name"], stored["seed"], r["index"], r["base"], r["split"]) for r in stored["cases"])
    frozen = {r["name"]: _stored_fingerprint(r) for r in stored["cases"]}
    return Benchmark(stored["name"], stored["seed"], tuple(Base(**b) for b in stored["bases"]), plans, frozen)


def _stored_fingerprint(row: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(row["text"], row["pixels"], row["masks"], row["coarse"], tuple(row["sizes"]))


def plan(name: str, seed: int, index: int, base: int, split: str) -> Plan:
    """The plan of a benchmark's case: test cases speak in unseen words."""
    return Plan(name, seed, index, base, split, held_out=split == "test")


def native_digest(array: np.ndarray) -> str:
    """Digest of a decoded image: a radiograph at 8 bits, a CT in whole HU."""
    values = np.rint(array * 255) if array.ndim == 2 else np.rint(array)
    return hashlib.sha256(values.astype(np.int16).tobytes()).hexdigest()[:16]


def fingerprint(out: Path, name: str) -> Fingerprint:
    """What is on disk of a case.

    Args:
        out: the folder of `dataset.write_dataset`.
        name: of the case.
    """
    line = json.loads((out / "cases" / f"{name}.json").read_text(encoding="utf-8"))
    said = [line["report"], [[f["concept"], f["side"], f["zone"], f["size"]] for f in line["facts"]]]
    pixels = _pixels(out / line["image"])
    with np.load(out / line["masks"], allow_pickle=False) as arrays:
        masks = arrays["masks"].astype(bool)
    levels = np.rint(pixels * 255).astype(np.uint8) if pixels.ndim == 2 else np.rint(pixels * 256).astype(np.int16)
    return Fingerprint(
        _sha(json.dumps(said, sort_keys=True).encode()), _sha(levels.tobytes()), _sha(np.packbits(masks).tobytes()),
        _block_means(pixels).tobytes().hex(), tuple(int(mask.sum()) for mask in masks),
    )  # fmt: skip


def _pixels(path: Path) -> np.ndarray:
    """A stored image in [0, 1]; a CT from -1024 to 3072 HU, slices first."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture, np.float64) / 65535
    volume = np.asarray(nib.load(path).dataobj, np.float64)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    return (volume.transpose(2, 1, 0) + 1024) / 4096


def _block_means(pixels: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 blocks (4 x 8 x 8), uint8."""
    for axis, blocks in enumerate((4, 8, 8)[3 - pixels.ndim :]):
        edges = np.linspace(0, pixels.shape[axis], blocks + 1).astype(int)
        sums = np.add.reduceat(pixels, edges[:-1], axis)
        pixels = sums / np.diff(edges).reshape([-1 if k == axis else 1 for k in range(pixels.ndim)])
    return np.rint(pixels * 255).clip(0, 255).astype(np.uint8)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def verify(out: Path, benchmark: Benchmark) -> int:
    """Compare every case on disk with what was frozen.

    Args:
        out: the folder of the built benchmark.
        benchmark: with its fingerprints.

    Returns:
        How many cases are equal within the tolerance but not to the bit.

    Raises:
        InputError: a case differs; the message names the first one, and in what.
    """
    near = 0
    for case in benchmark.cases:
        found, wanted = fingerprint(out, case.name), benchmark.frozen[case.name]
        if (wrong := difference(found, wanted)) is not None:
            raise InputError(
                f"{benchmark.name}: case {case.name} is not the frozen one: its {wrong}; delete {out} and build it "
                "again with the version of radglint whose list this is"
            )
        near += found != wanted
    return near


def difference(found: Fingerprint, wanted: Fingerprint) -> str | None:
    """In what two fingerprints differ beyond the tolerance; None if they do not."""
    if found.text != wanted.text:
        return "report or facts differ"
    if not _sizes_agree(found.sizes, wanted.sizes):
        return f"masks have {list(found.sizes)} voxels, frozen were {list(wanted.sizes)}"
    if found.pixels == wanted.pixels:
        return None
    one, two = (np.frombuffer(bytes.fromhex(f.coarse), np.uint8).astype(int) for f in (found, wanted))
    same = one.shape == two.shape and np.abs(one - two).max(initial=0) <= COARSE_STEPS
    return None if same else "image differs by more than rounding"


def _sizes_agree(found: Sequence[int], wanted: Sequence[int]) -> bool:
    pairs = list(zip(found, wanted, strict=False))
    return len(found) == len(wanted) and all(abs(a - b) <= SIZE_SHARE * b + SIZE_VOXELS for a, b in pairs)
