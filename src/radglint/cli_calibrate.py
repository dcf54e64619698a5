"""The command `radglint calibrate`; like `radglint.cli`, light until it runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from radglint.errors import InputError, OutputError

_EXAMPLE = "example: radglint calibrate nano cases.jsonl --out nano-here --sensitivity 0.9 --alpha 0.1"


def add_calibrate(commands: Any) -> None:
    """Add `calibrate` to the subparsers of the command line."""
    parser = commands.add_parser(
        "calibrate", help="fit a model's probabilities and decisions to your own labelled cases", epilog=_EXAMPLE,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="name, folder or hub id")
    parser.add_argument("manifest", metavar="MANIFEST", help="images with labels: .jsonl, .csv or .parquet")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="the checkpoint folder to make")
    parser.add_argument("--split", metavar="PART", default="val", help="train, val, test or all (default val)")
    parser.add_argument(
        "--method", choices=("auto", "platt", "temperature", "isotonic"), default="auto", help="default: auto"
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--sensitivity", metavar="S", type=_share, help="thresholds that promise it, 0.9 for 90 %%")
    goal.add_argument("--specificity", metavar="S", type=_share, help="thresholds that promise it")
    parser.add_argument(
        "--alpha", metavar="A", type=_share,
        help="abstain, so that of the present, and of the absent, at most the share A is called the other",
    )  # fmt: skip
    parser.add_argument(
        "--prevalence", metavar="[CLASS=]P", type=_prevalence, action="append", default=[],
        help="give probabilities as they would be where P of the cases have the finding; may be given several times",
    )  # fmt: skip
    parser.add_argument("--name", metavar="N", help="of the new model; default: the old one with -calibrated")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> None:
    if not args.out.strip():
        raise OutputError("--out: it is empty; give a folder")
    if not os.path.isfile(args.manifest):
        raise InputError(f"{args.manifest}: no such file; give a manifest, see `radglint data`")
    from radglint.calibrate import Wishes
    from radglint.calibrate_run import calibrate

    wishes = Wishes(args.method, args.sensitivity, args.specificity, args.alpha, _by_class(args.prevalence))
    outcome = calibrate(
        args.model, args.manifest, args.out, wishes, split=args.split, name=args.name, device=args.device,
        show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    for remark in outcome.remarks:
        print(remark, file=sys.stderr)
    print(outcome.to_table())
    print(f"\ncalibrated: {outcome.folder} ({outcome.fingerprint}); use it with --model, or `radglint models import`")
    print(f"scores, by the manifest's ids: {outcome.answers}; with them no image is asked again; delete at will")


def _by_class(given: list[tuple[str, float]]) -> dict[str, float]:
    found = dict(given)
    if len(found) < len(given):
        raise InputError("--prevalence: given twice for one class, or twice for all; give each once")
    return found


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.9, got {text!r}")
    return value


def _prevalence(text: str) -> tuple[str, float]:
    concept, _, share = text.rpartition("=")
    return concept.strip(), _share(share)
