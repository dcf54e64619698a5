"""Start a server and stop it in good order."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from types import FrameType
from typing import Any

import uvicorn

from radglint.errors import ConfigError
from radglint.pacs.dicomweb import DicomWeb
from radglint.server.app import create_app
from radglint.server.config import ServerConfig
from radglint.server.database import Database
from radglint.server.events import Hub
from radglint.server.folders import DataFolder
from radglint.server.http_protocol import bounded_protocol
from radglint.server.jobs import Dispatcher
from radglint.server.limits import Incoming
from radglint.server.logs import set_up_logs
from radglint.server.metrics import Metrics
from radglint.server.service import Service

KEEP_ALIVE_S = 10
BACKLOG = 512


def serve(config: ServerConfig, version: str) -> None:
    """Run until SIGTERM or SIGINT. The address is printed to stderr once questions are taken.

    Raises:
        ConfigError: the address, the folder, the data base or the credentials for the PACS cannot be used.
        CheckpointError: the model cannot be loaded.
        OutputError: the folder cannot be made.
    """
    if config.pacs is not None:
        DicomWeb(config.pacs).prepare()
    with ExitStack() as at_the_end:
        listener = at_the_end.enter_context(_listen(config))
        folders = DataFolder(config.data)
        folders.claim()
        at_the_end.callback(folders.release)
        database = Database(config.database_url)
        at_the_end.callback(database.close)
        set_up_logs()
        signal.signal(signal.SIGTERM, _leave)  # uvicorn raises the signal again when it is done
        tempfile.tempdir = str(folders.temporary)  # bodies wait on the disk that keeps them
        hub, metrics = Hub(), Metrics()
        dispatcher = Dispatcher(config, database, folders, hub, metrics)
        at_the_end.callback(dispatcher.stop)
        dispatcher.start()
        incoming = Incoming(config.most_incoming_bytes)
        app = create_app(Service(config, database, folders, hub, metrics, dispatcher, incoming), version)
        port = listener.getsockname()[1]
        shown = f"[{config.host}]" if ":" in config.host else config.host
        print(f"radglint {version} at http://{shown}:{port}", file=sys.stderr, flush=True)
        _Server(_uvicorn(app, config), hub).run(sockets=[listener])


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _listen(config: ServerConfig) -> socket.socket:
    """The listening socket, before anything slow is done: who comes while the model is loaded waits."""
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host.strip("[]"), config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where, reason = f"{config.host}:{config.port}", error.strerror or error
        raise ConfigError(f"{where}: cannot listen there ({reason}); give another --port") from error
    return listener


def _uvicorn(app: Any, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=bounded_protocol(config.header_s, config.connections), ws="none", loop="asyncio", lifespan="on",
        access_log=False, log_config=None, log_level="warning", server_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=round(config.grace_s),
    )  # fmt: skip


class _Server(uvicorn.Server):
    """uvicorn that ends streams of events when it is told to stop.

    Args:
        config: of uvicorn.
        hub: to close.
    """

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        self._hub.close()
        super().handle_exit(sig, frame)
