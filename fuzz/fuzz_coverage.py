"""Coverage-guided fuzzing of the readers that are pure Python, with atheris, beside `fuzz_readers.py`.

Command:  pip install atheris; python fuzz/fuzz_coverage.py --targets query jsonl csv -runs=20000 fuzz_out/corpus
Time:     about a millisecond an input; all options after the targets are those of libFuzzer
Expected: it ends by itself after -runs inputs; a crash is written to a file and ends it

atheris sees which lines of radglint an input reaches and keeps those that reach new ones. It runs in one process, so
native decoders are left to `fuzz_readers.py`.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris  # pyright: ignore[reportMissingImports] (Linux only, installed for this)

sys.path.insert(0, str(Path(__file__).resolve().parent))
PURE = ("query", "queries", "report", "jsonl", "csv", "bank", "train", "suite", "nifti", "dicom", "series", "zip")

with atheris.instrument_imports(include=["radglint"]):
    from radglint.errors import RadglintError
    from targets import TARGETS


def main(arguments: list[str]) -> None:
    """Split our option from those of libFuzzer, write the valid files as its corpus, and begin."""
    names = [a for a in arguments if a in TARGETS]
    options = [a for a in arguments if a not in TARGETS and a != "--targets"]
    unknown = set(names) - set(PURE)
    if unknown or not names:
        raise SystemExit(f"expected targets of {', '.join(PURE)}, got {', '.join(sorted(unknown)) or 'none'}")
    warnings.simplefilter("ignore")
    with TemporaryDirectory(prefix="radglint-fuzz-") as work, TemporaryDirectory(prefix="radglint-seeds-") as seeds:
        for k, name in enumerate(names):
            for file, data in TARGETS[name].seeds().items():
                Path(seeds, f"{name}_{abs(hash(file))}").write_bytes(bytes([k]) + data)

        def one_input(data: bytes) -> None:
            folder = Path(work, "input")
            folder.mkdir()
            with contextlib.suppress(RadglintError):
                TARGETS[names[data[0] % len(names)] if data else names[0]].read(data[1:], folder)
            _empty(folder)

        atheris.Setup([sys.argv[0], *options, seeds], one_input)
        atheris.Fuzz()


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main(sys.argv[1:])
