"""`radglint simulate` on the command line: its arguments, and the checks that need no heavy import."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from radglint.errors import InputError, OutputError


def add_command(commands: Any) -> None:
    """Add `simulate` to the commands of the main parser."""
    simulate = commands.add_parser(
        "simulate",
        help="make images with findings of known place, and their reports, from normal scans",
        epilog="example: radglint simulate cxr normal_radiographs --out cases --count 1000 --seed 1 --workers 4",
        allow_abbrev=False,
    )
    simulate.add_argument(
        "bases", metavar="cxr|ct|drr BASES", nargs="*", help="what to make, and folders of normal radiographs, or CT"
    )
    simulate.add_argument(
        "--benchmark", metavar="NAME", help="rebuild and check simfind-cxr, simfind-ct or simfind-drr"
    )
    simulate.add_argument(
        "--out", metavar="DIR", required=True, help="folder for the cases; a stopped run is continued"
    )
    simulate.add_argument("--count", metavar="N", type=_positive, default=100, help="default: 100")
    simulate.add_argument("--seed", metavar="S", type=_natural, default=0, help="default: 0")
    simulate.add_argument("--workers", metavar="W", type=_positive, default=1, help="processes (default 1)")
    simulate.add_argument(
        "--phantom", metavar="N", nargs="?", type=_positive, const=4, default=0, help="N procedural chests, no BASES"
    )
    simulate.add_argument(
        "--slice-step", metavar="MM", type=_millimetres, default=2.5, help="slice step of a CT (default 2.5)"
    )
    simulate.add_argument(
        "--labels",
        metavar="FOLDER",
        help="take lungs and heart from label maps: NAME.nii.gz for a CT (TotalSegmentator v2 values), NAME.png or "
        ".nii.gz for a radiograph (1 right lung, 2 left lung, 3 heart); labels.json in FOLDER tells other values, as "
        '{"left lung": [1], "right lung": [2], "heart": [3], "other": [4]}',
    )
    simulate.add_argument(
        "--lesions",
        metavar="FOLDER",
        help="with ct, or drr with --views: two of three nodules and masses, where FOLDER has some of the size, are "
        "real ones from FOLDER: "
        "LIDC-IDRI as downloaded (DICOM and XML), or pairs NAME.nii.gz and NAME_mask.nii.gz; never of the base's own "
        "patient (PatientID, or records.json beside the CT, or its name)",
    )
    simulate.add_argument(
        "--views",
        metavar="VIEW",
        nargs="+",
        default=[],
        help="with drr: PA, AP or LL (left lateral), or several: one body with findings in 3D, a radiograph of each "
        "view; --count is then of bodies; give BASES first",
    )
    simulate.set_defaults(run=_simulate)


def _simulate(args: argparse.Namespace) -> None:
    if not args.out.strip():
        raise OutputError("--out: it is empty; give a folder")
    shown = sys.stderr.isatty()
    if args.benchmark is not None:
        _simulate_benchmark(args, shown)
        return
    kinds = ("cxr", "ct", "drr")
    if not args.bases or args.bases[0] not in kinds:
        given = repr(args.bases[0]) if args.bases else "nothing"
        raise InputError(f"simulate: expected one of {', '.join(kinds)} first, got {given}")
    from radglint.simulate import simulate

    manifest = simulate(
        args.bases[0], args.bases[1:], args.out, count=args.count, seed=args.seed, workers=args.workers,
        phantoms=args.phantom, slice_step_mm=args.slice_step, labels=args.labels, lesions=args.lesions,
        views=args.views, show_progress=shown,
    )  # fmt: skip
    what = "studies" if args.views else "cases"
    print(f"{args.count} {what}: {manifest}")


def _simulate_benchmark(args: argparse.Namespace, shown: bool) -> None:
    if len(args.bases) > 1:
        raise InputError(f"--benchmark: expected one folder with its bases, got {len(args.bases)}")
    if args.labels is not None or args.lesions is not None or args.views:
        raise InputError("--benchmark: takes no --labels, --lesions or --views: its cases are frozen; leave them out")
    from radglint.simulate import build_benchmark

    folder = args.bases[0] if args.bases else None
    manifest, near = build_benchmark(
        args.benchmark, folder, args.out, workers=args.workers, show_progress=shown
    )  # fmt: skip
    rounded = f", {near} of them to within rounding" if near else ""
    print(f"{args.benchmark}: every case is the frozen one{rounded}: {manifest}")


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return int(text)


def _millimetres(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value <= 20:
        raise argparse.ArgumentTypeError(f"expected millimetres from 0.5 to 20, got {text!r}")
    return value
