"""The commands `radglint pacs` and `radglint watch`; like `radglint.cli`, light until they run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radglint.errors import ConfigError, InputError

if TYPE_CHECKING:
    from radglint.pacs.dicomweb import DicomWeb
    from radglint.pacs.ledger import Entry
    from radglint.pacs.tls import TlsFiles

URL_VARIABLE = "RADGLINT_DICOMWEB_URL"
_CREDENTIALS = (
    "credentials come from the variables RADGLINT_DICOMWEB_USER and RADGLINT_DICOMWEB_PASSWORD, or "
    "RADGLINT_DICOMWEB_TOKEN, never from the command line"
)


def add_pacs(commands: Any) -> None:
    """Add `pacs` to the subparsers of the command line."""
    parser = commands.add_parser("pacs", help="find, fetch, store, send and receive DICOM", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_query(actions)
    _add_fetch(actions)
    _add_store(actions)
    _add_echo(actions)
    _add_send(actions)
    _add_receive(actions)


def add_watch(commands: Any) -> None:
    """Add `watch` to the subparsers of the command line."""
    parser = commands.add_parser(
        "watch", help="ask each new series of a PACS and store the answers there, once", allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="source, target and rules; see the README")
    parser.add_argument("--once", action="store_true", help="end when no series is on its way any more")
    parser.add_argument("--status", action="store_true", help="print what became of each series, and end")
    parser.add_argument("--json", action="store_true", help="with --status: one JSON document")
    parser.add_argument("--retry-failed", action="store_true", help="begin again with what is parked, and end")
    parser.set_defaults(run=_watch)


def _add_query(actions: Any) -> None:
    query = actions.add_parser(
        "query", help="studies of a DICOMweb server, or the series of one", epilog=_CREDENTIALS, allow_abbrev=False
    )
    query.add_argument("study", metavar="STUDY_UID", nargs="?", help="list the series of this study")
    query.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="such as StudyDate=20260101- or Modality=CT"
    )
    query.add_argument("--json", action="store_true", help="print one JSON document")
    _add_server(query)
    query.set_defaults(run=_query)


def _add_fetch(actions: Any) -> None:
    fetch = actions.add_parser(
        "fetch", help="series of a DICOMweb server into a folder; resumable", epilog=_CREDENTIALS, allow_abbrev=False
    )
    fetch.add_argument("study", metavar="STUDY_UID")
    fetch.add_argument("series", metavar="SERIES_UID", nargs="?", help="default: all series of the study")
    fetch.add_argument("--out", metavar="DIR", required=True, help="files go to DIR/SERIES_UID")
    _add_server(fetch)
    fetch.set_defaults(run=_fetch)


def _add_store(actions: Any) -> None:
    store = actions.add_parser(
        "store", help="store DICOM files on a DICOMweb server", epilog=_CREDENTIALS, allow_abbrev=False
    )
    store.add_argument("files", metavar="FILE", nargs="+")
    _add_server(store)
    store.set_defaults(run=_store)


def _add_server(parser: Any) -> None:
    parser.add_argument("--url", metavar="URL", help=f"such as https://pacs.example/dicom-web; default: {URL_VARIABLE}")
    parser.add_argument("--ca-file", metavar="FILE", type=Path, help="certificates to trust, instead of the usual ones")
    parser.add_argument("--plain-http", action="store_true", help="send credentials over http to another machine")


def _add_echo(actions: Any) -> None:
    echo = actions.add_parser("echo", help="ask a DICOM node whether it answers (C-ECHO)", allow_abbrev=False)
    echo.add_argument("peer", metavar="AE@HOST:PORT")
    _add_title(echo)
    echo.set_defaults(run=_echo)


def _add_send(actions: Any) -> None:
    send = actions.add_parser("send", help="send DICOM files to a node (C-STORE)", allow_abbrev=False)
    send.add_argument("files", metavar="FILE", nargs="+", help="files, or folders that are searched")
    send.add_argument("--to", metavar="AE@HOST:PORT", required=True)
    _add_title(send)
    send.set_defaults(run=_send)


def _add_title(parser: Any) -> None:
    parser.add_argument("--title", metavar="AE", default="RADGLINT", help="our own AE title (default: RADGLINT)")
    parser.add_argument("--timeout-s", metavar="S", type=float, default=30.0, help="for each answer (default: 30)")
    _add_tls(parser, "certificates to trust the node by (PEM); turns TLS on")


def _add_tls(parser: Any, about_ca: str) -> None:
    parser.add_argument("--tls-ca", metavar="FILE", type=Path, help=about_ca)
    parser.add_argument("--tls-certificate", metavar="FILE", type=Path, help="our own certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="and its private key, without a password")


def _add_receive(actions: Any) -> None:
    receive = actions.add_parser(
        "receive", help="take what other nodes send (C-STORE), until it is interrupted", allow_abbrev=False
    )
    receive.add_argument("--out", metavar="DIR", required=True, help="files go to DIR/STUDY_UID/SERIES_UID")
    receive.add_argument("--port", metavar="N", type=int, default=11112, help="default: 11112; 0 = any free one")
    receive.add_argument("--host", metavar="H", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    receive.add_argument("--title", metavar="AE", default="RADGLINT", help="our own AE title (default: RADGLINT)")
    receive.add_argument("--allow", metavar="AE", action="append", default=[], help="only these may send; repeatable")
    receive.add_argument(
        "--quiet-s", metavar="S", type=float, default=10.0, help="a series is in when quiet for so long (default: 10)"
    )
    _add_tls(receive, "with a certificate: only callers with one of these may send (PEM)")
    receive.set_defaults(run=_receive)


def _server(args: argparse.Namespace) -> DicomWeb:
    from pydantic import ValidationError

    from radglint.pacs.access import DicomWebConfig
    from radglint.pacs.dicomweb import DicomWeb

    url = args.url or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise ConfigError(f"--url: is missing; give the address of the DICOMweb server, or set {URL_VARIABLE}")
    try:
        return DicomWeb(DicomWebConfig(url=url, ca_file=args.ca_file, plain_http=args.plain_http))
    except ValidationError as error:
        raise ConfigError(f"--url: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _query(args: argparse.Namespace) -> None:
    server, filters = _server(args), dict(map(_filter, args.where))
    rows = list(server.series(args.study, filters) if args.study else server.studies(filters))
    if args.json:
        print(json.dumps({"series" if args.study else "studies": rows}, indent=2, ensure_ascii=False))
        return
    wanted = (
        ("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances", "SeriesDescription") if args.study
        else ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances", "StudyDescription")
    )  # fmt: skip
    titles = {"NumberOfSeriesRelatedInstances": "instances", "NumberOfStudyRelatedInstances": "instances"}
    _print_table([tuple(titles.get(w, w) for w in wanted), *(tuple(row[w] for w in wanted) for row in rows)])


def _filter(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (equals and key.strip()):
        raise InputError(f"--where: expected KEY=VALUE, such as StudyDate=20260101-, got {given!r}")
    return key.strip(), value.strip()


def _fetch(args: argparse.Namespace) -> None:
    from radglint.pacs.uids import check_uid

    server, study = _server(args), check_uid(args.study, "STUDY_UID")
    wanted = [args.series] if args.series else [row["SeriesInstanceUID"] for row in server.series(study)]
    if not wanted:
        raise InputError(f"{study}: the server has no such study; check the UID")
    for series in wanted:
        folder = Path(args.out) / check_uid(series, "SERIES_UID")
        print(f"{len(server.fetch(study, series, folder))} instances in {folder}", flush=True)


def _store(args: argparse.Namespace) -> None:
    server = _server(args)
    for file in map(Path, args.files):
        _check_file(file)
        server.store(file)
    print(f"{len(args.files)} stored at {server.config.url}")


def _echo(args: argparse.Namespace) -> None:
    from radglint.pacs.dimse import Caller, echo, parse_peer

    peer = parse_peer(args.peer)
    echo(peer, Caller(args.title, args.timeout_s, tls=_tls(args)))
    print(f"{peer} answers")


def _send(args: argparse.Namespace) -> None:
    from radglint.pacs.dimse import Caller, parse_peer, send

    peer, files = parse_peer(args.to), list(_files(args.files))
    print(f"{send(files, peer, Caller(args.title, args.timeout_s, tls=_tls(args)))} sent to {peer}")


def _tls(args: argparse.Namespace) -> TlsFiles:
    from radglint.pacs.tls import TlsFiles

    return TlsFiles(tls_ca=args.tls_ca, tls_certificate=args.tls_certificate, tls_key=args.tls_key)


def _files(given: Sequence[str]) -> Iterator[Path]:
    """Files as they are; of folders every DICOM file."""
    from radglint.dicom_file import is_dicom
    from radglint.reading import list_files

    for path in map(Path, given):
        _check_file(path)
        found = [file for file in list_files(path) if is_dicom(file)] if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: no DICOM file in this folder; check the path")
        yield from found


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")


def _receive(args: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from radglint.pacs.receiver import Receiver, ReceiverConfig

    try:
        config = ReceiverConfig(
            title=args.title, host=args.host, port=args.port, allowed_callers=tuple(args.allow), quiet_s=args.quiet_s,
            **_tls(args).model_dump(),
        )  # fmt: skip
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0]).replace("_", "-").replace("allowed-callers", "allow")
        raise ConfigError(f"--{key}: {error.errors()[0]['msg']}, got {error.errors()[0]['input']!r}") from error

    def tell(study: str, series: str, folder: Path) -> None:
        print(f"{sum(1 for _ in folder.glob('*.dcm'))} instances in {folder}", flush=True)

    with Receiver(Path(args.out), config, tell) as receiver, _stop_signal() as stop:
        print(f"{config.title} listens on {config.host}:{receiver.port}; interrupt to end", file=sys.stderr, flush=True)
        stop.wait()
    print(f"{receiver.stored} instances taken, {receiver.refused} refused")


def _watch(args: argparse.Namespace) -> None:
    from radglint.pacs.config import load_config
    from radglint.pacs.ledger import NAME, Ledger

    config = load_config(args.config)
    if not (args.status or args.retry_failed):
        from radglint.pacs.watching import open_watcher, say_to_stderr

        with open_watcher(config, say_to_stderr) as watcher, _stop_signal() as stop:
            watcher.run(stop, once=args.once)
        return
    if not (config.folder / NAME).is_file():
        raise InputError(f"{config.folder}: no ledger in it; nothing has been watched with this folder yet")
    with Ledger(config.folder) as ledger:
        if args.retry_failed:
            print(f"{ledger.retry_parked()} series are tried again by the next or the running `radglint watch`")
        if args.status:
            _print_status(ledger.entries(), ledger.counts(), as_json=args.json)


def _print_status(entries: Sequence[Entry], counts: dict[str, int], *, as_json: bool) -> None:
    keys = ("state", "modality", "instances", "attempts", "rule", "series_uid", "reason")
    if as_json:
        rows = [{key: getattr(entry, key) for key in keys} for entry in entries]
        print(json.dumps({"counts": counts, "series": rows}, indent=2, ensure_ascii=False))
        return
    titles = ("state", "modality", "instances", "attempts", "rule", "series", "note")
    _print_table([titles, *(tuple(str(getattr(entry, key)) for key in keys) for entry in entries)])
    print("\n" + (", ".join(f"{number} {state}" for state, number in counts.items()) or "no series yet"))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step being taken ends well; a second one ends at once."""
    stop = threading.Event()

    def on_signal(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
