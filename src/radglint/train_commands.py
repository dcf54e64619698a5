"""The commands `radglint train` and `radglint ablate`; like `radglint.cli`, light until one of them runs."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from radglint.errors import InputError


def add_train_commands(commands: Any) -> None:
    """Add both to the subparsers of the command line."""
    _add_train(commands)
    _add_ablate(commands)


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model from a TOML file, see recipes/", allow_abbrev=False)
    train.add_argument("config", metavar="CONFIG.toml")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run's folder")
    train.add_argument("--smoke", action="store_true", help="one step on tiny made-up data and towers, offline")
    train.set_defaults(run=_train)


def _add_ablate(commands: Any) -> None:
    ablate = commands.add_parser(
        "ablate", help="train variants of a configuration with several seeds, print one table", allow_abbrev=False
    )
    ablate.add_argument("config", metavar="CONFIG.toml")
    ablate.add_argument("--steps", type=_positive, metavar="N", help="default: those of the file")
    ablate.add_argument("--seeds", type=_positive, metavar="N", default=3, help="default: 3")
    ablate.add_argument("--threads", type=_positive, metavar="N", help="default: all cores")
    ablate.add_argument("--baselines", action="store_true", help="earlier methods by name, instead of the variants")
    ablate.add_argument("--only", metavar="VARIANT", nargs="+", help="some of the variants or baselines, by name")
    ablate.add_argument("--smoke", action="store_true", help="one step on tiny made-up data, offline")
    ablate.set_defaults(run=_ablate)


def _train(args: argparse.Namespace) -> None:
    config = _load(args.config)
    if args.smoke and args.resume:
        raise InputError("--smoke makes its own data each time, there is nothing to resume; leave out one of both")
    from radglint.train_engine import train

    if args.smoke:
        from radglint.train_smoke import smoke_config

        with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
            train(smoke_config(config, Path(folder)))
        print(f"smoke: one step of {config.name} done")
        return
    means = train(config, resume=args.resume)
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        measured = "".join(f", mean {key} {value:.3f}" for key, value in means.items())
        print(f"trained {config.name}: {config.out}{measured}")


def _ablate(args: argparse.Namespace) -> None:
    config = _load(args.config)
    from radglint.ablation import ablate, table
    from radglint.baselines import compare_baselines
    from radglint.train_smoke import smoke_config

    compare = compare_baselines if args.baselines else ablate
    if not args.smoke:
        print(table(compare(config, args.steps, args.seeds, args.threads, args.only)))
        return
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        print(table(compare(smoke_config(config, Path(folder)), 1, args.seeds, args.threads, args.only)))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _load(path: str) -> Any:
    """The configuration, before anything heavy is done; the bars of other libraries are turned off."""
    from transformers.utils.logging import disable_progress_bar

    from radglint.train_config import load_config

    disable_progress_bar()
    return load_config(path)
