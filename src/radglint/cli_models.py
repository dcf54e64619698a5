"""The commands `radglint models list | export | import`; light until they run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_models(commands: Any) -> None:
    """Add `models` to the subparsers of the command line."""
    models = commands.add_parser("models", help="list, export or import models", allow_abbrev=False)
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


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
