"""Where `radglint watch` stores results. Storing twice is harmless: an object has one UID, and is looked for first."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from radglint.pacs.config import DimseTarget, WebTarget
from radglint.pacs.dicomweb import DicomWeb
from radglint.pacs.dimse import Caller, import_pynetdicom, parse_peer, send
from radglint.pacs.ledger import Result


class Target(Protocol):
    """What the watcher needs of either."""

    def has(self, result: Result) -> bool:
        """Whether the object is there already."""
        ...

    def store(self, path: Path) -> None:
        """Store an object."""
        ...


class WebStore:
    """A DICOMweb server."""

    def __init__(self, config: WebTarget) -> None:
        self._server = DicomWeb(config)
        self._server.prepare()

    def has(self, result: Result) -> bool:
        """See `Target`."""
        return self._server.has(result.study_uid, result.series_uid, result.instance_uid)

    def store(self, path: Path) -> None:
        """See `Target`."""
        self._server.store(path)


class DimseStore:
    """A node that takes C-STORE. It cannot be asked what it has; it drops an object that it has already."""

    def __init__(self, config: DimseTarget) -> None:
        self._peer = parse_peer(config.to)
        self._caller = Caller(config.title, config.timeout_s, tls=config)
        config.client_context()

    def has(self, result: Result) -> bool:
        """Never known."""
        return False

    def store(self, path: Path) -> None:
        """See `Target`."""
        send([path], self._peer, self._caller)


def open_target(config: WebTarget | DimseTarget) -> Target:
    """The target of a configuration.

    Raises:
        ConfigError: its credentials are incomplete, its TLS files cannot be used, or a package is missing.
    """
    if isinstance(config, DimseTarget):
        import_pynetdicom()
    return WebStore(config) if isinstance(config, WebTarget) else DimseStore(config)
