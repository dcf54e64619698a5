"""The commands `radglint models list | export | import | pack`; light until they run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radglint.errors import OutputError


def add_models(commands: Any) -> None:
    """Add `models` to the subparsers of the command line."""
    models = commands.add_parser("models", help="list, export, import or pack models", allow_abbrev=False)
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the models that can be asked, and their licences", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    listing.set_defaults(run=_models_list)
    export = actions.add_parser("export", help="copy a model's folder out", allow_abbrev=False)
    export.add_argument("name", metavar="NAME")
    export.add_argument("folder", metavar="DIR", help="the folder to make")
    export.set_defaults(run=_models_export)
    importing = actions.add_parser("import", help="check a model's folder and keep it", allow_abbrev=False)
    importing.add_argument("folder", metavar="DIR", help="a checkpoint folder")
    importing.add_argument("--name", metavar="N", help="default: the folder's own name")
    importing.set_defaults(run=_models_import)
    _add_pack(actions)


def _add_pack(actions: Any) -> None:
    packing = actions.add_parser("pack", help="make a model of what `radglint train` wrote", allow_abbrev=False)
    packing.add_argument("training", metavar="RUN", help="the `out` folder of a finished run")
    packing.add_argument("--out", metavar="DIR", required=True, help="the checkpoint folder to make")
    packing.add_argument("--trunk", metavar="FOLDER", help="of a run on cached cases: the trunk of their tokens")
    packing.add_argument("--name", metavar="N", help="of the model; default: that of the run")
    packing.add_argument(
        "--quantize", choices=("none", "bfloat16", "int8_trunk"), default="none", help="of the weights; default: none"
    )
    packing.add_argument("--training-data", metavar="TEXT", help="origin and licence of the training data")
    packing.add_argument("--licence", metavar="TEXT", help="of the weights")
    packing.set_defaults(run=_models_pack)


def _models_list(args: argparse.Namespace) -> None:
    from radglint import registry

    models = registry.list_models()
    if args.json:
        print(
            json.dumps({"models": [model.to_dict() for model in models]}, indent=2, ensure_ascii=False, allow_nan=False)
        )
        return
    rows = [("name", "origin", "asks", "size", "fingerprint", "code", "weights", "training data")]
    for model in models:
        size, modalities = f"{model.size_bytes / 1e6:.1f} MB", "+".join(model.modalities) or "?"
        licences = (model.code_licence, model.weights_licence, model.data_licence)
        rows.append((model.name, model.origin, modalities, size, model.fingerprint[:12], *licences))
    print(_table(rows))


def _models_export(args: argparse.Namespace) -> None:
    from radglint import registry

    print(f"exported {args.name} to {registry.export_model(args.name, args.folder)}")


def _models_import(args: argparse.Namespace) -> None:
    from radglint import registry

    def validate(folder: Path) -> object:
        from radglint.checkpoint import load_checkpoint

        return load_checkpoint(folder)

    model = registry.import_model(args.folder, name=args.name, validate=validate)
    print(f"imported {model.name} into {model.folder}")


def _models_pack(args: argparse.Namespace) -> None:
    if not args.out.strip():
        raise OutputError("--out: it is empty; give a folder")
    from transformers.utils.logging import disable_progress_bar

    from radglint.train_pack import pack

    disable_progress_bar()
    packed = pack(
        args.training, args.out, trunk=args.trunk, name=args.name, quantize=args.quantize,
        training_data=args.training_data, licence=args.licence,
    )  # fmt: skip
    print(f"packed {packed.name} ({packed.modality}, {packed.fingerprint}): {packed.folder}; ask it with --model")
    print(
        f"it is uncalibrated: next, radglint calibrate {shlex.quote(str(packed.folder))} MANIFEST --out DIR",
        file=sys.stderr,
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
