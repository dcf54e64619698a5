"""The command line: `radglint ask | batch | inspect | models | calibrate | data | simulate | train | ...`.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 2 the input cannot be used, with one line on
stderr that says what to do; 1 our own fault; 130 interrupted. `RADGLINT_DEBUG=1` adds the traceback and the
warnings of the libraries underneath. Only the standard library is imported here: what is heavy is imported by the
command that needs it, after the cheap checks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from radglint import cli_simulate
from radglint.cli_batch import add_batch
from radglint.cli_calibrate import add_calibrate
from radglint.cli_data import add_data
from radglint.cli_evaluate import add_evaluate_commands
from radglint.cli_models import add_models
from radglint.cli_pacs import add_pacs, add_watch
from radglint.cli_serve import add_serve
from radglint.errors import InputError, OutputError, QueryError
from radglint.pretraining.command import add_pretrain
from radglint.train_commands import add_train_commands

DEMO_FOLDER = "demo_out"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_EXAMPLE = 'example: radglint ask chest.png "small left pleural effusion" "pulmonary nodule" --out answers'


def entry() -> NoReturn:
    """The `radglint` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end in a traceback
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program name; by default those of the process.

    Returns:
        The exit code: 0, 1, 2 or 130.
    """
    try:
        with _quiet_libraries():
            return _run(argv)
    except SystemExit as stop:  # argparse, after --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _complain("radglint: interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left
        _drop_stdout()
        return 0
    except InputError as error:
        return _complain(f"radglint: error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"radglint: error: {where}{error.strerror or error}; check path, permission and free space", 2)
    except MemoryError:
        return _complain("radglint: error: not enough memory for this image; crop it or use a larger machine", 2)
    except Exception as error:  # the last boundary: whatever comes here is a defect of radglint
        text = f"radglint: internal error: {type(error).__name__}: {error}"
        return _complain(f"{text}; please report it, with the traceback that RADGLINT_DEBUG=1 shows", 1)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its errors are raised as `InputError`."""
    parser = _Parser(
        prog="radglint",
        description="Ask a chest radiograph or a chest CT in plain words. For research, not for diagnosis.",
        epilog=_EXAMPLE,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_ask(commands)
    add_batch(commands)
    _add_inspect(commands)
    add_serve(commands)
    add_models(commands)
    add_calibrate(commands)
    add_data(commands)
    cli_simulate.add_command(commands)
    _add_demo(commands)
    add_pretrain(commands)
    add_train_commands(commands)
    add_evaluate_commands(commands)
    add_pacs(commands)
    add_watch(commands)
    return parser


def _add_ask(commands: Any) -> None:
    ask = commands.add_parser(
        "ask", help="score, decision and mask for each query", epilog=_EXAMPLE, allow_abbrev=False
    )
    ask.add_argument("image", metavar="IMAGE", help="PNG, JPEG, TIFF, DICOM file, folder or zip, or NIfTI")
    ask.add_argument("queries", metavar="QUERY", nargs="+", help="a finding in plain words")
    ask.add_argument("--out", metavar="DIR", help="write masks, overlays and a page to look at into this folder")
    ask.add_argument(
        "--dicom", action="store_true", help="also write a DICOM segmentation and report into DIR; IMAGE must be DICOM"
    )
    ask.add_argument("--json", action="store_true", help="print one JSON document")
    ask.add_argument("--model", metavar="NAME|PATH", default=None, help="default: nano; see `radglint models list`")
    ask.add_argument(
        "--threshold",
        metavar="T",
        type=_probability,
        help="present from this probability on (default: what the model was calibrated to, else 0.5)",
    )
    ask.add_argument("--series", metavar="S", help="DICOM series: its UID or number, where a folder holds several")
    ask.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    ask.set_defaults(run=_ask)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="say how an image is understood", allow_abbrev=False)
    inspect.add_argument("image", metavar="IMAGE")
    inspect.add_argument("--json", action="store_true", help="print one JSON document")
    inspect.add_argument("--series", metavar="S", help="DICOM series: its UID or number, where a folder holds several")
    inspect.set_defaults(run=_inspect)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="ask a real CT, a radiograph made from it, or IMAGE", allow_abbrev=False)
    demo.add_argument("image", metavar="IMAGE", nargs="?", help="ask this image instead")
    demo.add_argument("--out", metavar="DIR", default=DEMO_FOLDER, help=f"default: {DEMO_FOLDER}")
    demo.set_defaults(run=_demo)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
        args.run(args)
    finally:
        sys.stdout.flush()  # a reader that has left is noticed here, not at the interpreter's end
    return 0


def _ask(args: argparse.Namespace) -> None:
    from radglint import registry

    _check_queries(args.queries)
    _check_image(args.image)
    if args.dicom:
        _check_dicom_wanted(args)
    model = args.model if args.model is not None else registry.DEFAULT_MODEL
    if not _HUB_ID.fullmatch(model) or os.path.exists(model):  # a hub id is looked up when it is loaded
        registry.locate(model)
    with _output_folder(args.out):
        findings, saved = _answer(args, model)
        text = findings.to_json() if args.json else findings.to_table()
    print(text)
    if saved and not args.json:
        print(_saved_line(args.out, saved))


def _answer(args: argparse.Namespace, model: str) -> tuple[Any, list[Path]]:
    import radglint

    with _progress(f"reading {args.image}"):
        image = radglint.read_image(args.image, series=args.series)
    if args.dicom:
        from radglint.dicom_source import require_dicom

        require_dicom(image)
    with _progress(f"loading {model}"):
        pipeline = radglint.load(model, device=args.device)
    with _progress(f"asking {len(args.queries)} queries"):
        findings = pipeline.ask(image, args.queries, threshold=args.threshold)
    if args.out is None:
        return findings, []
    with _progress(f"writing to {args.out}"):
        return findings, [Path(path) for path in findings.save(args.out, dicom=args.dicom)]


def _inspect(args: argparse.Namespace) -> None:
    _check_image(args.image)
    from radglint.inspection import inspect_image

    with _progress(f"reading {args.image}"):
        inspection = inspect_image(args.image, series=args.series)
    print(_as_json(inspection.to_dict()) if args.json else inspection.to_text())
    if inspection.verdict == "not usable":  # the report is the answer; the exit code lets a script stop here
        reason = "; ".join(inspection.reasons)
        raise InputError(reason if args.image in reason else f"{args.image}: not usable: {reason}")


def _demo(args: argparse.Namespace) -> None:
    if args.image is not None:
        _check_image(args.image)
    with _output_folder(args.out):
        from radglint import demo

        page = demo.run(args.image, args.out)
    print(f"page: {page}")


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import radglint

        print(f"radglint {radglint.__version__}")
        parser.exit()


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a probability between 0 and 1, such as 0.5, got {text!r}")
    return value


def _check_queries(queries: Sequence[str]) -> None:
    from radglint.query import parse_query

    for number, query in enumerate(queries, start=1):
        try:
            parse_query(query)
        except QueryError as error:
            raise QueryError(f"QUERY {number}: {error}") from None


def _check_image(path: str) -> None:
    if not path.strip():
        raise InputError("IMAGE: it is empty; give the path of a radiograph or a CT")
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file or folder; check the path")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read; check its permission, or where the link points")


def _check_dicom_wanted(args: argparse.Namespace) -> None:
    """Whether DICOM results can be written at all, before the work."""
    from radglint.dicom_result import import_highdicom

    if args.out is None:
        raise InputError("--dicom writes into a folder; give one with --out DIR")
    import_highdicom()


@contextmanager
def _output_folder(path: str | None) -> Iterator[None]:
    """Make the folder and try it before the work; if the work fails, remove what was made."""
    if path is None:
        yield
        return
    created = _make_folder(path)
    try:
        yield
    except BaseException:
        if created is not None:
            shutil.rmtree(created, ignore_errors=True)
        raise


def _make_folder(path: str) -> Path | None:
    folder = Path(path)
    if not path.strip():
        raise OutputError("--out: it is empty; give a folder")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{path}: --out needs a folder, but this is a file; choose another name")
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        for part in missing:
            if part.is_dir():
                part.rmdir()
        raise OutputError(f"{path}: --out cannot be written ({error.strerror}); choose another folder") from error
    return missing[-1] if missing else None


def _saved_line(out: str, saved: Sequence[Path]) -> str:
    pages = [path for path in saved if path.suffix == ".html"]
    files = "1 file" if len(saved) == 1 else f"{len(saved)} files"
    return f"\n{files} in {out}" + (f"; open {pages[0]}" if pages else "")


def _as_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """Say what is being done, on a terminal only; the line is wiped so that an error stays alone on stderr."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"\r\x1b[K{text} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep warnings and log lines of other libraries off stderr, unless RADGLINT_DEBUG is set."""
    if _debug():
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _debug() -> bool:
    return os.environ.get("RADGLINT_DEBUG", "") not in ("", "0")


def _complain(text: str, code: int) -> int:
    if _debug():
        traceback.print_exc()
    print(" ".join(text.split()), file=sys.stderr)
    return code


def _drop_stdout() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush does not fail again."""
    try:
        target = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real stream
        return
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), target)
