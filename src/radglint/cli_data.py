"""`radglint data convert | check | shards | list` on the command line; light until one of them runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from radglint.errors import InputError, OutputError

FORMATS = ("jsonl", "csv", "parquet")
REGISTRY = "radglint.datasets.registry"


def add_data(commands: Any) -> None:
    """Add `data` to the commands of the main parser."""
    data = commands.add_parser("data", help="manifests of images: make, check, export", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_convert(actions)
    _add_check(actions)
    _add_shards(actions)
    listing = actions.add_parser("list", help="the data sets that can be converted", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    listing.set_defaults(run=_list)


def _add_convert(actions: Any) -> None:
    convert = actions.add_parser(
        "convert", help="a public data set, as it was downloaded, to a manifest",
        epilog="example: radglint data convert nih-chestxray14 /data/nih nih_manifest", allow_abbrev=False,
    )  # fmt: skip
    convert.add_argument("name", metavar="NAME", help="see `radglint data list`")
    convert.add_argument("src", metavar="SRC", help="folder of the data set")
    convert.add_argument("out", metavar="OUT", help="folder for the manifest and decoded masks")
    convert.add_argument("--format", choices=FORMATS, default="jsonl", help="default: jsonl")
    convert.add_argument(
        "--drop-bad", action="store_true", help="leave rows with problems out, and list them in OUT/dropped.txt"
    )
    convert.set_defaults(run=_convert)


def _add_check(actions: Any) -> None:
    check = actions.add_parser(
        "check", help="open every image and mask of a manifest; a stopped check goes on", allow_abbrev=False
    )
    check.add_argument("manifest", metavar="MANIFEST", help=".jsonl, .csv or .parquet")
    check.add_argument("--against", metavar="OTHER", nargs="+", default=[], help="manifests that may share no patients")
    check.add_argument("--report", metavar="FILE.json", help="write the report here, and as text beside it")
    check.add_argument("--workers", metavar="W", type=_positive, default=1, help="processes (default 1)")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.set_defaults(run=_check)


def _add_shards(actions: Any) -> None:
    shards = actions.add_parser(
        "shards", help="images and reports as WebDataset tars; a stopped export goes on", allow_abbrev=False
    )
    shards.add_argument("manifest", metavar="MANIFEST", help=".jsonl, .csv or .parquet")
    shards.add_argument("out", metavar="OUT", help="folder for the shards")
    shards.add_argument("--split", choices=("train", "val", "test"), help="default: all rows")
    shards.add_argument("--shard-mb", metavar="MB", type=_positive, default=256, help="largest shard (default 256)")
    shards.set_defaults(run=_shards)


def _convert(args: argparse.Namespace) -> None:
    registry = importlib.import_module(REGISTRY)
    info = registry.find(args.name)
    source, out = Path(args.src), Path(args.out)
    if not source.is_dir():
        raise InputError(f"{args.src}: no such folder; give the folder of {info.title}, with {info.expects}")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{args.out}: OUT needs a folder, but this is a file; choose another name")
    from radglint.manifest import sound_rows, write_manifest
    from radglint.writing import output_errors, write_text

    convert = registry.adapter(info.name)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    rows = list(_with_bar(convert(source, out), f"converting {info.name}"))
    if not rows:
        raise InputError(f"{args.src}: holds no image of {info.title}; expected {info.expects}")
    dropped = []
    if args.drop_bad:
        total = len(rows)
        rows, problems = sound_rows(rows)
        if problems:
            listed = write_text(out / "dropped.txt", "".join(f"{problem}\n" for problem in problems))
            dropped = [f"{total - len(rows)} images were left out: {listed}"]
    manifest = write_manifest(out / f"manifest.{args.format}", rows)
    print("\n".join([f"{len(rows)} images of {info.title}: {manifest}", *dropped, *_summary(rows), *_terms(info)]))


def _with_bar(rows: Iterable[Any], title: str) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(rows, title, unit="image", disable=not sys.stderr.isatty()))


def _summary(rows: Sequence[Any]) -> list[str]:
    """Splits, patients, reports, marked places, and a table of labels."""
    splits = Counter(row.split or "no split" for row in rows)
    patients = len({row.patient for row in rows if row.patient})
    reports = sum(bool(row.findings or row.impression or row.report) for row in rows)
    marked = sum(bool(phrase.boxes or phrase.masks) for row in rows for phrase in row.phrases)
    lines = [", ".join(f"{count} {split}" for split, count in sorted(splits.items()))]
    lines.append(f"{patients} patients, {reports} images with a report, {marked} marked phrases")
    states = {name: Counter[str]() for row in rows for name in row.labels}
    for row in rows:
        for name, state in row.labels.items():
            states[name][state] += 1
    if states:
        columns = ("present", "absent", "uncertain")
        ordered = sorted(states.items(), key=lambda item: (-item[1]["present"], item[0]))
        lines += ["", *_table([("label", *columns), *((n, *(str(c[s]) for s in columns)) for n, c in ordered)])]
    return lines


def _terms(info: Any) -> list[str]:
    return ["", f"licence: {info.licence}", f"cite: {info.citation}"]


def _check(args: argparse.Namespace) -> None:
    from radglint.manifest_check import check_manifest

    report = check_manifest(
        args.manifest, against=args.against, report=args.report, workers=args.workers,
        show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if args.json else report.to_text())
    errors = report.count("error")
    if errors:  # the report is the answer; the exit code lets a script stop here
        where = f"see {args.report}" if args.report else "see the report above, --report FILE.json keeps it"
        raise InputError(f"{args.manifest}: {errors} {'error' if errors == 1 else 'errors'}; {where}")


def _shards(args: argparse.Namespace) -> None:
    from radglint.manifest_shards import export_shards

    export = export_shards(
        args.manifest, args.out, args.split, args.shard_mb, show_progress=sys.stderr.isatty()
    )  # fmt: skip
    kept = f", {export.num_kept} of them from before" if export.num_kept else ""
    print(f"{export.num_samples} images in {len(export.shards)} shards{kept}: {args.out}")
    for prefix in sorted({shard.name.rpartition("-")[0] for shard in export.shards}):
        print(f'data.shards = ["{os.path.join(args.out, prefix)}-*.tar"]')
    if export.num_masks_left_out:
        print(f"{export.num_masks_left_out} masks are not in the shards; training does not read them")


def _list(args: argparse.Namespace) -> None:
    datasets = importlib.import_module(REGISTRY).DATASETS
    if args.json:
        print(json.dumps({"datasets": [_public(info) for info in datasets.values()]}, indent=2, ensure_ascii=False))
        return
    rows = [("name", "images", "shares patients with", "licence")]
    rows += [(i.name, i.modality, ", ".join(i.shares_patients_with) or "-", i.licence) for i in datasets.values()]
    print("\n".join(_table(rows)))
    for info in datasets.values():
        print(f"\n{info.name}: {info.title}\n  expects  {info.expects}\n  cite     {info.citation}")
        print(f"  page     {info.url_name}")


def _public(info: Any) -> dict[str, Any]:
    names = ("name", "title", "modality", "licence", "citation", "url_name", "shares_patients_with", "expects")
    return {name: getattr(info, name) for name in names}


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)
