"""The commands `radglint evaluate` and `radglint compare`; light until one of them runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from radglint.errors import InputError


def add_evaluate_commands(commands: Any) -> None:
    """Add both to the subparsers of the command line."""
    run = commands.add_parser(
        "evaluate", help="measure a model on a manifest: protocols of the field, intervals, a page", allow_abbrev=False,
        epilog="example: radglint evaluate --suite chestxray14 --manifest nih/manifest.jsonl --out results",
    )  # fmt: skip
    run.add_argument("config", metavar="CONFIG.toml", nargs="?", help="or a suite by name, see --suite")
    run.add_argument("--suite", metavar="NAME", help="a label set and its protocols; an unknown name lists them")
    run.add_argument("--manifest", metavar="FILE", help="with --suite: what `radglint data convert` wrote")
    run.add_argument("--out", metavar="DIR", help="with --suite: answers, results.json and index.html go here")
    run.add_argument("--model", metavar="NAME|PATH", help="with --suite: default nano")
    run.add_argument("--split", choices=("train", "val", "test", "all"), help="with --suite: default test")
    run.add_argument("--limit", type=_positive, metavar="N", help="with --suite: only so many images of each split")
    run.set_defaults(run=_evaluate)
    both = commands.add_parser("compare", help="two evaluations on the same cases, paired", allow_abbrev=False)
    both.add_argument("a", metavar="A.json", help="results.json of one")
    both.add_argument("b", metavar="B.json", help="results.json of the other")
    both.add_argument("--out", metavar="FILE.html", help="also write a page")
    both.add_argument("--across", action="store_true", help="compare although the manifests differ; nothing is paired")
    both.set_defaults(run=_compare)


def _evaluate(args: argparse.Namespace) -> None:
    given = {key: getattr(args, key) for key in ("manifest", "out", "model", "split", "limit")}
    if (args.config is None) == (args.suite is None):
        raise InputError("give CONFIG.toml, or --suite NAME with --manifest FILE and --out DIR")
    if args.config is not None and any(value is not None for value in given.values()):
        raise InputError(
            f"{args.config}: holds the whole evaluation; leave out --manifest, --out, --model, --split, --limit"
        )
    from transformers.utils.logging import disable_progress_bar

    from radglint.evaluation import suite
    from radglint.evaluation.results_table import to_terminal_table

    if args.suite is not None:
        suite.check_suite(args.suite)
        if args.manifest is None or args.out is None:
            raise InputError("--suite needs --manifest FILE and --out DIR")

    disable_progress_bar()
    if args.config is not None:
        config = suite.load_suite(Path(args.config))
    else:
        asked = {key: given[key] for key in ("model", "split", "limit")}
        config = suite.named_suite(str(args.suite), Path(args.manifest), Path(args.out), **asked)
    results = suite.evaluate(config, shlex.join(["radglint", *sys.argv[1:]]))
    print(to_terminal_table(results))
    print(f"\n{config.out / suite.RESULTS}; open {config.out / suite.PAGE}")


def _compare(args: argparse.Namespace) -> None:
    from radglint.evaluation.compare import compare_files

    print(
        compare_files(Path(args.a), Path(args.b), across=args.across, page=None if args.out is None else Path(args.out))
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)
