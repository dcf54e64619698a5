"""A C-STORE receiver on `pynetdicom`: what other nodes send goes to `DIR/study/series/SOPInstanceUID.dcm`.

A file is there whole or not at all, and on the disk before the sender is told so. An instance that is there already is
confirmed, and the first copy stays. Names come from UIDs that were checked, so that nothing is written elsewhere. One
instance at a time is held in memory for each association, up to a limit; both are bounded, and so is what a caller can
claim before it sends anything (see `listening`).
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydicom import dcmread

from radglint.dicom_file import quiet_pydicom, text
from radglint.errors import ConfigError, OutputError
from radglint.pacs.dimse import DEFAULT_TITLE, import_pynetdicom
from radglint.pacs.tls import TlsFiles
from radglint.pacs.uids import is_uid
from radglint.writing import output_errors, whole_file

SUCCESS, PROCESSING_FAILURE, INVALID_INSTANCE = 0x0000, 0x0110, 0x0117
OUT_OF_RESOURCES, NOT_AS_SAID, CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205", "1.2.840.10008.1.2.8.1")
TICK_S = 0.2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

OnQuiet = Callable[[str, str, Path], object]
"""Called with StudyInstanceUID, SeriesInstanceUID and the folder of a series that has come in."""


class ReceiverConfig(TlsFiles):
    """Where a receiver listens, and what it bears."""

    title: str = Field(default=DEFAULT_TITLE, pattern=r"^[^\\\s]{1,16}$")
    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)  # 0 = any free one
    allowed_callers: tuple[str, ...] = ()  # AE titles that may send; empty = all
    max_associations: PositiveInt = 8
    max_pdu_bytes: PositiveInt = 131072  # an association that claims more is ended; see `listening`
    idle_timeout_s: PositiveFloat = 60.0  # an association without a word is ended
    max_instance_bytes: PositiveInt = 2**30  # an association that sends more in one instance is ended
    min_free_bytes: NonNegativeInt = 2**28  # refuse what would leave less on the disk
    quiet_s: PositiveFloat = 10.0  # a series is in when nothing of it came for so long
    on_release: bool = False  # or as soon as the association that sent it is released


class Receiver:
    """A receiver, running inside a `with` block.

    Args:
        folder: where files go; made if missing.
        config: see `ReceiverConfig`.
        on_quiet: called, from a thread of the receiver, for each series that has come in; again if more of it comes.
    """

    def __init__(self, folder: Path, config: ReceiverConfig, on_quiet: OnQuiet = lambda *_: None) -> None:
        self.folder = folder
        self.config = config
        self.refused = 0  # instances
        self.stored = 0
        self._on_quiet = on_quiet
        self._guard = threading.Lock()
        self._last: dict[tuple[str, str], float] = {}  # series that is coming in to when, monotonic
        self._sent: dict[int, set[tuple[str, str]]] = {}  # association to the series it sent
        self._bytes: dict[int, int] = {}  # association to what came since its last whole instance
        self._stop = threading.Event()
        self._node: Any = None
        self._server: Any = None
        self._watcher = threading.Thread(target=self._watch, name="radglint series watcher", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """How many are open."""
        return len(self._node.active_associations)

    def __enter__(self) -> Receiver:
        """Listen.

        Raises:
            ConfigError: the address is in use or is none, or the TLS files cannot be used.
            OutputError: the folder cannot be written.
        """
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._node, events = _node(self.config), import_pynetdicom().evt
        tls = self.config.server_context()
        handlers = [
            (events.EVT_C_STORE, self._store), (events.EVT_C_ECHO, lambda _: SUCCESS),
            (events.EVT_PDU_RECV, self._count), (events.EVT_RELEASED, self._released),
            (events.EVT_CONN_CLOSE, self._closed),
        ]  # fmt: skip
        address = (self.config.host, self.config.port)
        try:
            self._server = self._node.start_server(address, block=False, ssl_context=tls, evt_handlers=handlers)
        except OSError as error:
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"{where}: cannot listen there ({error.strerror}); choose another port") from error
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening and end what is open; series that are still coming in are not announced."""
        self._stop.set()
        self._node.shutdown()  # ends associations too
        self._watcher.join()

    def _store(self, event: Any) -> int:
        """Answer one C-STORE request with a status."""
        self._bytes.pop(id(event.assoc), None)
        status, series = self._keep(event)
        with self._guard:
            self.stored += status == SUCCESS
            self.refused += status != SUCCESS
            if series is not None:
                self._last[series] = time.monotonic()
                self._sent.setdefault(id(event.assoc), set()).add(series)
        return status

    def _keep(self, event: Any) -> tuple[int, tuple[str, str] | None]:
        """Write an instance; its status, and the series that it is of."""
        content = event.encoded_dataset()
        try:
            with quiet_pydicom():
                header = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(LEVELS))
            study, series, instance = (text(header, keyword) for keyword in LEVELS)
        except Exception:  # whatever pydicom raises on what is no data set
            return CANNOT_UNDERSTAND, None
        if not all(map(is_uid, (study, series, instance))):
            return INVALID_INSTANCE, None
        if instance != str(event.request.AffectedSOPInstanceUID):
            return NOT_AS_SAID, None
        status = self._write(self.folder / study / series / f"{instance}.dcm", content)
        return status, (study, series) if status == SUCCESS else None

    def _write(self, path: Path, content: bytes) -> int:
        if path.is_file():
            return SUCCESS
        try:
            if shutil.disk_usage(self.folder).free < self.config.min_free_bytes + len(content):
                return OUT_OF_RESOURCES
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except (OutputError, OSError) as error:
            cause = error.__cause__ if isinstance(error, OutputError) else error
            return OUT_OF_RESOURCES if getattr(cause, "errno", None) in NO_ROOM else PROCESSING_FAILURE
        return SUCCESS

    def _count(self, event: Any) -> None:
        """End an association that sends more than one instance may have; this runs in the thread that reads."""
        pdu = event.pdu
        if not hasattr(pdu, "presentation_data_value_items"):
            return
        key = id(event.assoc)
        self._bytes[key] = self._bytes.get(key, 0) + len(pdu)
        if self._bytes[key] > self.config.max_instance_bytes:
            self._bytes.pop(key)
            self.refused += 1
            event.assoc.dul.socket.close()

    def _released(self, event: Any) -> None:
        if self.config.on_release:
            with self._guard:
                for series in self._sent.pop(id(event.assoc), ()):
                    if series in self._last:
                        self._last[series] = -float("inf")

    def _closed(self, event: Any) -> None:
        with self._guard:
            self._sent.pop(id(event.assoc), None)
            self._bytes.pop(id(event.assoc), None)

    def _watch(self) -> None:
        """Announce each series when nothing of it has come for a while."""
        while not self._stop.wait(TICK_S):
            with self._guard:
                now = time.monotonic()
                quiet = [series for series, last in self._last.items() if now - last >= self.config.quiet_s]
                for series in quiet:
                    del self._last[series]
            for study, series in quiet:
                self._on_quiet(study, series, self.folder / study / series)


def _node(config: ReceiverConfig) -> Any:
    """The application entity: every storage class in every transfer syntax that is not deflated, and C-ECHO.

    A deflated data set is unpacked in memory before its UIDs can be looked at, to a thousand times its size.
    """
    pynetdicom = import_pynetdicom()
    from radglint.pacs.listening import ASK_S, BoundedNode

    syntaxes = [syntax for syntax in pynetdicom.ALL_TRANSFER_SYNTAXES if syntax not in DEFLATED]
    node = BoundedNode(ae_title=config.title)
    for context in pynetdicom.AllStoragePresentationContexts:
        node.add_supported_context(context.abstract_syntax, syntaxes)
    node.add_supported_context("1.2.840.10008.1.1", syntaxes)  # Verification
    node.maximum_associations = config.max_associations
    node.maximum_pdu_size = config.max_pdu_bytes
    node.dimse_timeout = node.network_timeout = config.idle_timeout_s
    node.acse_timeout = min(ASK_S, config.idle_timeout_s)
    node.require_calling_aet = list(config.allowed_callers)
    node.require_called_aet = bool(config.allowed_callers)
    return node
