"""Another DICOM node over DIMSE, as the one who calls: C-ECHO and C-STORE, on `pynetdicom`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radglint.dicom_file import open_dicom, quiet_pydicom, tag_name, text
from radglint.errors import ConfigError, PacsError, PacsUnreachableError
from radglint.pacs.access import INSTALL_HINT
from radglint.pacs.tls import NO_TLS, TlsFiles, problem_of

DEFAULT_TITLE = "RADGLINT"
MAX_CONTEXTS = 128  # PS3.8 section 9.3.2
MAX_NAMED = 5
SUCCESS = 0x0000
STORED_WITH_WARNING = (0xB000, 0xB006, 0xB007)
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_PEER = re.compile(r"(?P<title>[^@\\\s]{1,16})@(?P<host>\[[0-9A-Fa-f:]+\]|[^@:\s]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Peer:
    """Another node: its AE title and where it listens."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        """The form that `parse_peer` reads."""
        return f"{self.title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Caller:
    """How radglint calls: its own AE title, how long it waits for an answer, and its certificates."""

    title: str = DEFAULT_TITLE
    timeout_s: float = 30.0
    max_pdu_bytes: int = 131072
    tls: TlsFiles = NO_TLS


def parse_peer(given: str) -> Peer:
    """A node from `AE@host:port`.

    Raises:
        ConfigError: it has another form.
    """
    found = _PEER.fullmatch(given)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ConfigError(f"{given!r}: expected AE@host:port, such as ORTHANC@127.0.0.1:4242")
    return Peer(found["title"], found["host"].strip("[]"), int(found["port"]))


def echo(peer: Peer, caller: Caller = Caller()) -> None:
    """C-ECHO: whether a node answers to us.

    Raises:
        ConfigError: the TLS files cannot be used.
        PacsUnreachableError: no connection, or no answer.
        PacsError: it rejects the association or the request.
    """
    pynetdicom = import_pynetdicom()
    context = pynetdicom.build_context("1.2.840.10008.1.1")  # Verification
    with _association(peer, caller, [context]) as association:
        _check(association.send_c_echo(), f"{peer}: C-ECHO")


def send(files: Sequence[Path], peer: Peer, caller: Caller = Caller()) -> int:
    """C-STORE: send files as they are, without changing their transfer syntax.

    Args:
        files: DICOM files; all are tried before the first failure is raised.
        peer: the other node.
        caller: who we are.

    Returns:
        How many were sent.

    Raises:
        ConfigError: the TLS files cannot be used.
        ImageError: a file is not DICOM; nothing is sent then.
        PacsUnreachableError: no connection, or it broke.
        PacsError: the node refuses some of the files; it names them and the status.
    """
    pynetdicom = import_pynetdicom()
    refused: list[str] = []
    for group in _groups(files):
        contexts = [pynetdicom.build_context(kind, list(offer)) for kind, offer in group]
        with _association(peer, caller, contexts) as association:
            for file in (file for members in group.values() for file in members):
                refused += _send_one(association, file, peer)
    if refused:
        more = f" and {len(refused) - MAX_NAMED} more" if len(refused) > MAX_NAMED else ""
        raise PacsError(
            f"{peer}: {len(refused)} of {len(files)} files not stored: {'; '.join(refused[:MAX_NAMED])}{more}"
        )
    return len(files)


def failure_words(status: int) -> str:
    """What a status of the storage service means (PS3.4 table B.2-1, PS3.7 annex C)."""
    known = {
        0x0110: "processing failure", 0x0117: "invalid instance", 0x0122: "SOP class not supported",
        0x0124: "not authorised", 0x0210: "duplicate invocation",
    }  # fmt: skip
    groups = {0xA7: "out of resources", 0xA9: "data set does not match SOP class"}
    if status in known:
        return known[status]
    return groups.get(status >> 8, "cannot understand" if status >> 12 == 0xC else "unknown reason")


def import_pynetdicom() -> Any:
    """The library, imported on first use; its own log says nothing, since it would quote values of the data.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with quiet_pydicom():
            import pynetdicom
    except ImportError as error:
        raise ConfigError(f"DIMSE needs the package pynetdicom ({error}); {INSTALL_HINT}") from error
    return pynetdicom


def _groups(files: Sequence[Path]) -> Iterator[dict[tuple[str, tuple[str, ...]], list[Path]]]:
    """Files by what they need of an association: SOP class and transfer syntaxes; as many as one can offer."""
    found: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for file in files:
        header = open_dicom(file, stop_before_pixels=True, tags=["SOPClassUID", "SOPInstanceUID"])
        kind, syntax = text(header, "SOPClassUID"), str(header.file_meta.get("TransferSyntaxUID", ""))
        for keyword, value in (("SOPClassUID", kind), ("TransferSyntaxUID", syntax)):
            if not value:
                raise PacsError(f"{file}: tag {tag_name(keyword)} is missing, so it cannot be sent; re-export it")
        offer = (syntax, *(plain for plain in _PLAIN_SYNTAXES if plain != syntax and syntax in _PLAIN_SYNTAXES))
        found.setdefault((kind, offer), []).append(file)
    entries = list(found.items())
    for start in range(0, len(entries), MAX_CONTEXTS):
        yield dict(entries[start : start + MAX_CONTEXTS])


def _send_one(association: Any, file: Path, peer: Peer) -> list[str]:
    """Send a file; returns why it was refused, if it was."""
    try:
        with quiet_pydicom():
            status = association.send_c_store(file)
    except ValueError:  # no context for it was accepted
        return [f"{file.name} (kind or transfer syntax not accepted)"]
    except RuntimeError as error:  # the association is gone
        raise PacsUnreachableError(f"{peer}: the connection broke before {file.name} was sent; try again") from error
    code = status.get("Status")
    if code is None:
        raise PacsUnreachableError(f"{peer}: the connection broke while {file.name} was sent; try again")
    if code == SUCCESS or code in STORED_WITH_WARNING:
        return []
    return [f"{file.name} (status {code:04X}H, {failure_words(code)})"]


@contextmanager
def _association(peer: Peer, caller: Caller, contexts: list[Any]) -> Iterator[Any]:
    """An open association, released at the end."""
    pynetdicom = import_pynetdicom()
    node = pynetdicom.AE(ae_title=caller.title)
    node.acse_timeout = node.dimse_timeout = node.network_timeout = node.connection_timeout = caller.timeout_s
    node.maximum_pdu_size = caller.max_pdu_bytes
    context = caller.tls.client_context()
    tls = None if context is None else (context, peer.host)
    association = node.associate(peer.host, peer.port, contexts=contexts, ae_title=peer.title, tls_args=tls)
    try:
        if association.is_rejected:
            raise PacsError(f"{peer}: rejects the association; check both AE titles and what the node allows")
        if not association.is_established:
            raise PacsUnreachableError(f"{peer}: {_why_not(context)}")
        yield association
        association.release()
    finally:
        if association.is_established:
            association.abort()


def _why_not(context: Any) -> str:
    """Why there is no association, as far as it is known."""
    if problem := problem_of(context):
        return f"the TLS handshake failed ({problem}); check tls_ca, and the certificate and name of the node"
    wrong = "" if context is None else ", and whether it takes our certificate"
    return f"does not answer; check host, port and network{wrong}"


def _check(status: Any, what: str) -> None:
    code = status.get("Status")
    if code is None:
        raise PacsUnreachableError(f"{what}: no answer within the time; try again")
    if code != SUCCESS:
        raise PacsError(f"{what}: status {code:04X}H; see the log of the other node")
