"""The command `radglint batch`; like `radglint.cli`, light until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_EXAMPLE = """examples: radglint batch studies/ --queries queries.txt --out answers --masks;
radglint batch --merge answers_* --out answers"""


def add_batch(commands: Any) -> None:
    """Add `batch` to the subparsers of the command line."""
    parser = commands.add_parser(
        "batch", help="ask many images: a folder, a DICOM tree, a manifest or a glob; resumable", epilog=_EXAMPLE,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="a folder (DICOM is grouped into series), file, glob or manifest"
    )
    parser.add_argument("--queries", metavar="FILE", help="one query a line, # begins a comment; needed to ask")
    parser.add_argument("--out", metavar="DIR", required=True, help="results go here; a stopped run goes on from it")
    parser.add_argument("--model", metavar="NAME|PATH", default=None, help="default: nano")
    parser.add_argument("--threshold", metavar="T", type=_share, help="present from this probability on")
    parser.add_argument("--masks", action="store_true", help="also write masks, below DIR/masks")
    parser.add_argument("--parquet", action="store_true", help="also write results.parquet at the end")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier run")
    parser.add_argument("--shard", metavar="I/N", type=_shard, default=(1, 1), help="only part I of N, from 1/N to N/N")
    parser.add_argument(
        "--merge", action="store_true", help="INPUTs are the result folders of all parts of a run: make one of them"
    )
    parser.add_argument(
        "--engine", choices=("here", "ray"), default="here", help="who works: this process, or a Ray cluster"
    )
    parser.add_argument(
        "--workers", metavar="W", type=_count, help="with --engine ray (default: one for each GPU, else for each CPU)"
    )
    parser.add_argument(
        "--memory-gb", metavar="G", type=_positive, help="for the images in work (default: 80 %% of what there is)"
    )
    parser.add_argument(
        "--timeout-s", metavar="S", type=_positive, default=900.0, help="give up an image that is not read by then"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    parser.set_defaults(run=_batch)


def _batch(args: argparse.Namespace) -> None:
    from radglint.batch_files import check_folder, require_pyarrow

    out = check_folder(args.out)
    if args.parquet:
        require_pyarrow()
    if args.merge:
        _merge(args, out)
    else:
        _ask(args, out)


def _merge(args: argparse.Namespace, out: Path) -> None:
    from radglint.batch_merge import merge_runs

    summary = merge_runs([Path(given) for given in args.inputs], out, parquet=args.parquet)
    _report(summary, summary.answered + summary.failed)


def _ask(args: argparse.Namespace, out: Path) -> None:
    from radglint.batch_queries import read_queries
    from radglint.errors import InputError

    if args.queries is None:
        raise InputError("--queries: not given; name a file with one query a line")
    if args.workers is not None and args.engine != "ray":
        raise InputError("--workers: is for --engine ray; this process alone asks one case at a time")
    queries = read_queries(Path(args.queries))
    engine = _engine(args)
    found, whole = _look(args, out)
    cases = _own(args, found.cases) if whole else found.cases
    import radglint
    from radglint import registry
    from radglint.batch import run_batch
    from radglint.batch_options import BatchOptions

    options = BatchOptions(
        threshold=args.threshold, masks=args.masks, parquet=args.parquet, retry_failed=args.retry_failed,
        shard="{}/{}".format(*args.shard) if whole else "all", whole=whole, skipped=found.skipped,
        timeout_s=args.timeout_s, memory_bytes=None if args.memory_gb is None else int(args.memory_gb * 1e9),
    )  # fmt: skip
    name = registry.DEFAULT_MODEL if args.model is None else args.model
    pipeline = radglint.load(name, device=args.device if engine is None else "cpu")  # else the workers compute
    _report(run_batch(pipeline, cases, queries, out, options, engine), len(cases))


def _engine(args: argparse.Namespace) -> Any:
    """Who does the work; None = this process."""
    if args.engine != "ray":
        return None
    from radglint.batch_ray import RayEngine

    return RayEngine(workers=args.workers, device=args.device)


def _report(summary: Any, num_cases: int) -> None:
    from radglint.batch_files import FAILURES, SKIPPED

    failed = f", {summary.failed} failed: see {summary.folder / FAILURES}" if summary.failed else ""
    print(f"{summary.answered} of {num_cases} cases answered in {summary.folder}{failed}")
    aside = (summary.folder / SKIPPED).read_bytes().count(b"\n")
    if aside:
        print(f"{aside} DICOM objects without an image to ask were left aside: see {summary.folder / SKIPPED}")


def _look(args: argparse.Namespace, out: Path) -> tuple[Any, list[Any] | None]:
    """What there is, counted on a terminal; and all cases, if this run is a part of several."""
    from tqdm import tqdm

    from radglint.batch_cases import look_for_cases
    from radglint.batch_headers import open_headers

    with tqdm(desc="looking", unit="file", disable=None, leave=False) as bar, open_headers(out) as headers:
        found = look_for_cases(args.inputs, leave_out=out, headers=headers, tick=bar.update)
    return found, found.cases if args.shard[1] > 1 else None


def _own(args: argparse.Namespace, cases: list[Any]) -> list[Any]:
    """The cases of this part."""
    from radglint.batch_cases import shard_of

    own = shard_of(cases, *args.shard)
    print(f"{len(own)} of {len(cases)} cases are in this part", file=sys.stderr)
    return own


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 1/4, got {text!r}")
    return int(part), int(parts)


def _share(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a probability between 0 and 1, such as 0.5, got {text!r}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
