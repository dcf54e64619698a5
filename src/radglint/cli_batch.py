"""The command `radglint batch`; like `radglint.cli`, light until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_EXAMPLE = "example: radglint batch studies/ --queries queries.txt --out answers --masks"


def add_batch(commands: Any) -> None:
    """Add `batch` to the subparsers of the command line."""
    parser = commands.add_parser(
        "batch", help="ask many images: a folder, a DICOM tree, a manifest or a glob; resumable", epilog=_EXAMPLE,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="a folder (DICOM is grouped into series), file, glob or manifest"
    )
    parser.add_argument("--queries", metavar="FILE", required=True, help="one query a line, # begins a comment")
    parser.add_argument("--out", metavar="DIR", required=True, help="results go here; a stopped run goes on from it")
    parser.add_argument("--model", metavar="NAME|PATH", default=None, help="default: nano")
    parser.add_argument("--threshold", metavar="T", type=_share, help="present from this probability on")
    parser.add_argument("--masks", action="store_true", help="also write masks, below DIR/masks")
    parser.add_argument("--parquet", action="store_true", help="also write results.parquet at the end")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier run")
    parser.add_argument("--shard", metavar="I/N", type=_shard, default=(1, 1), help="only part I of N, from 1/N to N/N")
    parser.add_argument(
        "--memory-gb", metavar="G", type=_positive, help="for the images in work (default: 80 %% of what there is)"
    )
    parser.add_argument(
        "--timeout-s", metavar="S", type=_positive, default=900.0, help="give up an image that is not read by then"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    parser.set_defaults(run=_batch)


def _batch(args: argparse.Namespace) -> None:
    from radglint import registry
    from radglint.batch_files import FAILURES, check_folder, require_pyarrow
    from radglint.batch_queries import read_queries

    out = check_folder(args.out)
    queries = read_queries(Path(args.queries))
    if args.parquet:
        require_pyarrow()
    cases = _cases(args, out)
    import radglint
    from radglint.batch import BatchOptions, run_batch

    part, parts = args.shard
    options = BatchOptions(
        threshold=args.threshold, masks=args.masks, parquet=args.parquet, retry_failed=args.retry_failed,
        shard=f"{part}/{parts}", timeout_s=args.timeout_s,
        memory_bytes=None if args.memory_gb is None else int(args.memory_gb * 1e9),
    )  # fmt: skip
    pipeline = radglint.load(args.model if args.model is not None else registry.DEFAULT_MODEL, device=args.device)
    summary = run_batch(pipeline, cases, queries, out, options)
    failed = f", {summary.failed} failed: see {out / FAILURES}" if summary.failed else ""
    print(f"{summary.answered} of {len(cases)} cases answered in {out}{failed}")


def _cases(args: argparse.Namespace, out: Path) -> list[Any]:
    """The cases of this part; files are counted on a terminal while they are looked at."""
    from tqdm import tqdm

    from radglint.batch_cases import find_cases, shard_of

    with tqdm(desc="looking", unit="file", disable=None, leave=False) as bar:
        cases = find_cases(args.inputs, leave_out=out, tick=bar.update)
    found = shard_of(cases, *args.shard)
    if args.shard[1] > 1:
        print(f"{len(found)} of {len(cases)} cases are in this part", file=sys.stderr)
    return found


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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
