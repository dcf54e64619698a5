"""The command `radglint serve`; like `radglint.cli`, light until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_PORT = 8420
_EXAMPLE = "example: radglint serve --data /var/lib/radglint --keys keys.txt --host 0.0.0.0"


def add_serve(commands: Any) -> None:
    """Add `serve` to the subparsers of the command line."""
    parser = commands.add_parser(
        "serve", help="answer over HTTP: uploads, PACS, jobs, results, a viewer", epilog=_EXAMPLE, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", metavar="DIR", default="radglint_data", help="uploads and results go here (default: radglint_data)")
    add("--host", default="127.0.0.1", help="address to listen on; any other than this machine's own needs --keys")
    add("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}; 0 takes a free one")
    add("--model", metavar="NAME|PATH", default="nano", help="default: nano")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    add("--keys", metavar="FILE", help="API keys, one a line, plain or as sha256:HASH; or RADGLINT_API_KEYS")
    add("--database", metavar="URL", help="such as postgresql+psycopg://user@host/name (default: SQLite in DIR)")
    add("--dicomweb", metavar="URL", help="the PACS that studies can be fetched from")
    add("--ca-file", metavar="FILE", type=Path, help="certificates to trust the PACS by, instead of the usual ones")
    add("--plain-http", action="store_true", help="send the PACS's credentials over http to another machine")
    add("--cors", metavar="ORIGIN", nargs="+", default=[], help="pages of these origins may use the server")
    add("--host-name", metavar="NAME", nargs="+", default=[], help="further names of a server without keys")
    add("--keep-days", metavar="N", type=float, help="delete studies after so many days (default: never)")
    _add_limits(parser.add_argument_group("limits"))
    parser.set_defaults(run=_serve)


def _add_limits(group: Any) -> None:
    add = group.add_argument
    add("--max-upload-mb", metavar="MB", type=float, default=2048, help="of one request (default: 2048)")
    add("--max-incoming-mb", metavar="MB", type=float, help="of all uploads on their way (default: --max-upload-mb)")
    add("--max-files", metavar="N", type=int, default=4000, help="in one request (default: 4000)")
    add("--max-studies", metavar="N", type=int, default=1000, help="kept at once (default: 1000)")
    add("--max-stored-gb", metavar="GB", type=float, default=100, help="of all studies and results (default: 100)")
    add("--max-queue", metavar="N", type=int, default=500, help="jobs and studies that wait (default: 500)")
    add("--cache-mb", metavar="MB", type=float, default=2048, help="images and features in memory (default: 2048)")
    add("--rate", metavar="N", type=float, default=50, help="requests a second and key (default: 50)")
    add("--burst", metavar="N", type=int, default=200, help="requests at once and key (default: 200)")
    add("--body-s", metavar="S", type=float, default=900, help="time for a request's body (default: 900)")
    add("--task-s", metavar="S", type=float, default=900, help="time for one study or question (default: 900)")
    add("--grace-s", metavar="S", type=float, default=30, help="time to finish when stopped (default: 30)")


def _serve(args: argparse.Namespace) -> None:
    import radglint
    from radglint.errors import InputError

    try:
        from radglint.server.auth import read_keys
        from radglint.server.config import ServerConfig
        from radglint.server.run import serve
    except ImportError as error:
        what = f"the server needs {error.name}, which is not installed"
        raise InputError(f'{what}: pip install "radglint[server]"') from error
    config = ServerConfig(
        data=Path(args.data), host=args.host, port=args.port, database=args.database, model=args.model,
        device=args.device, keys=read_keys(args.keys), dicomweb=args.dicomweb, ca_file=args.ca_file,
        plain_http=args.plain_http, cors=tuple(args.cors), host_names=tuple(args.host_name),
        upload_bytes=int(args.max_upload_mb * 2**20), upload_files=args.max_files,
        incoming_bytes=None if args.max_incoming_mb is None else int(args.max_incoming_mb * 2**20),
        stored_bytes=int(args.max_stored_gb * 2**30), studies=args.max_studies, queue=args.max_queue, rate=args.rate,
        burst=args.burst, cache_bytes=int(args.cache_mb * 2**20), keep_days=args.keep_days, body_s=args.body_s,
        task_s=args.task_s, grace_s=args.grace_s,
    )  # fmt: skip
    serve(config, radglint.__version__)
