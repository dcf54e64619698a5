"""DICOM over TLS (PS3.15 annex B): certificates of both sides, at least TLS 1.2, never unverified."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from radglint.errors import ConfigError


class TlsFiles(BaseModel):
    """PEM files; without any there is no TLS.

    Attributes:
        tls_ca: certificates to trust. Who calls verifies the other node by them, and needs them; who listens wants a
            certificate from every caller if they are given.
        tls_certificate: our own, with those that lead to `tls_ca` behind it; who listens needs it.
        tls_key: its private key, not encrypted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def client_context(self) -> ssl.SSLContext | None:
        """For a connection that we open; None without TLS. Name and issuer of the other side are checked.

        Raises:
            ConfigError: a file is missing or unusable, or there is a certificate but nobody to trust.
        """
        if not (self.tls_ca or self.tls_certificate or self.tls_key):
            return None
        if self.tls_ca is None:
            raise ConfigError("tls_ca: is missing; name the certificates by which the other node is to be trusted")
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = _Remembering
        self._trust(context)
        self._own(context)
        return context

    def server_context(self) -> ssl.SSLContext | None:
        """For connections that we take; None without TLS.

        Raises:
            ConfigError: a file is missing or unusable, or there is no certificate of our own.
        """
        if not (self.tls_ca or self.tls_certificate or self.tls_key):
            return None
        if self.tls_certificate is None:
            raise ConfigError("tls_certificate: is missing; a node that listens needs a certificate and its key")
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        self._own(context)
        if self.tls_ca is not None:
            self._trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(self.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls_ca: {self.tls_ca}: holds no certificates ({_words(error)}); give PEM") from error

    def _own(self, context: ssl.SSLContext) -> None:
        if self.tls_certificate is None and self.tls_key is None:
            return
        if self.tls_certificate is None or self.tls_key is None:
            raise ConfigError("tls_certificate and tls_key: only one of the two is given; give both or none")
        try:
            context.load_cert_chain(self.tls_certificate, self.tls_key, password=lambda: "")  # never asked for
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"tls_certificate, tls_key: {self.tls_certificate}, {self.tls_key}: cannot be used ({_words(error)}); "
                "give PEM files that belong together, the key without a password"
            ) from error


NO_TLS = TlsFiles()


class _Remembering(ssl.SSLSocket):
    """A socket whose context keeps why a handshake failed, since pynetdicom tells only that there is no connection.

    It is closed where pynetdicom leaves that to the garbage collector.
    """

    def do_handshake(self, block: bool = False) -> None:
        """As in the base class."""
        try:
            super().do_handshake(block)
        except ssl.SSLError as error:
            self.context.problem = _words(error)  # type: ignore[attr-defined]
            self.close()
            raise

    def shutdown(self, how: int) -> None:
        """As in the base class."""
        try:
            super().shutdown(how)
        except OSError:  # the other side is gone
            self.close()
            raise


def problem_of(context: ssl.SSLContext | None) -> str:
    """Why the last handshake of a client's context failed; empty if none did."""
    return getattr(context, "problem", "")


def _context(protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _words(error: OSError) -> str:
    message = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror or "not readable"
    return str(message).replace("_", " ").lower()
