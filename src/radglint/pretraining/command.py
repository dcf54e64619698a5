"""`radglint pretrain` on the command line. What is heavy is imported when it runs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def add_pretrain(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "pretrain", help="adapt an image trunk to your own unlabelled scans",
        description="Masked-token prediction with a moving-average teacher. The adapted trunk is OUT/backbone.",
        epilog="example: radglint pretrain recipes/pretrain_cxr.toml", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("config", metavar="CONFIG.toml", help="the run; recipes/ holds examples")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state, if there is one")
    parser.add_argument(
        "--smoke", action="store_true", help="try one step of a tiny model on made-up scans; OUT is not touched"
    )
    parser.set_defaults(run=_pretrain)


def _pretrain(args: argparse.Namespace) -> None:
    from radglint.pretraining.config import load_config
    from radglint.pretraining.run import pretrain
    from radglint.pretraining.smoke import smoke_config

    config = load_config(args.config)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder, _no_foreign_bars():
            result = pretrain(smoke_config(config, Path(folder)))
        print(f"{args.config}: one step of a tiny model went well, loss {result.last['loss']:.4f}")
        return
    with _no_foreign_bars():
        result = pretrain(config, resume=args.resume)
    print(f"trunk after {result.steps} steps on {result.num_scans} scans: {result.backbone}")


@contextmanager
def _no_foreign_bars() -> Iterator[None]:
    """Keep the progress bars of transformers off stderr: the run has its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
