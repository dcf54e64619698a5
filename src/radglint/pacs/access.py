"""Where a DICOMweb server is, and who asks. Secrets come from the environment, never from a file or a command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from radglint.errors import ConfigError

if TYPE_CHECKING:
    from radglint.pacs.session import BoundedSession

DEFAULT_PREFIX = "RADGLINT_DICOMWEB"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSTALL_HINT = '`pip install "radglint[pacs]"`'


class DicomWebConfig(BaseModel):
    """One DICOMweb server.

    The variables PREFIX_USER and PREFIX_PASSWORD, or PREFIX_TOKEN, are looked up when the server is first asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str  # such as https://pacs.example/dicom-web
    credentials_env: str = Field(default=DEFAULT_PREFIX, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")  # PREFIX of the variables
    ca_file: Path | None = None  # certificates to trust (PEM) instead of the usual ones
    verify_tls: bool = True
    plain_http: bool = False  # send credentials over http to another machine all the same
    connect_timeout_s: PositiveFloat = 10.0
    read_timeout_s: PositiveFloat = 60.0
    attempts: PositiveInt = 4  # of one call, where the server does not answer
    first_wait_s: PositiveFloat = 0.5  # before the second attempt; doubled each time
    max_instances: PositiveInt = 20_000  # of a series; a larger one is refused
    max_series_bytes: PositiveInt = 8 * 2**30  # likewise
    max_instance_bytes: PositiveInt = 2**30  # held in memory while it comes

    @field_validator("url")
    @classmethod
    def _usable(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an http or https address such as https://pacs.example/dicom-web")
        if parts.username or parts.password:
            raise ValueError(f"holds a user or a password; set {DEFAULT_PREFIX}_USER and _PASSWORD instead")
        if parts.query or parts.fragment:
            raise ValueError("expected an address without ? and #")
        return url.rstrip("/")


def open_session(config: DicomWebConfig) -> BoundedSession:
    """A `session.BoundedSession` with credentials and certificates.

    The variables for proxies, `.netrc` and certificate bundles are not looked at: what is said here is all there is.

    Raises:
        ConfigError: half of the credentials, both kinds, credentials over http to another machine, or no such file of
            certificates; or the package is missing.
    """
    session = _new_session(config)
    session.trust_env = False
    session.headers["Accept"] = "application/dicom+json"
    session.verify = _certificates(config)
    user, password, token = (os.environ.get(f"{config.credentials_env}_{k}") for k in ("USER", "PASSWORD", "TOKEN"))
    _check_credentials(config, user, password, token)
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user and password:
        session.auth = (user.encode(), password.encode())  # pyright: ignore[reportAttributeAccessIssue]
    return session


def _new_session(config: DicomWebConfig) -> BoundedSession:
    try:
        from radglint.pacs.session import BoundedSession
    except ImportError as error:
        raise ConfigError(f"DICOMweb needs the package dicomweb-client ({error}); {INSTALL_HINT}") from error
    return BoundedSession(config.url, config.max_instance_bytes)


def _certificates(config: DicomWebConfig) -> bool | str:
    if config.ca_file is None:
        return config.verify_tls
    if not config.verify_tls:
        raise ConfigError(f"{config.ca_file}: ca_file says whom to trust, verify_tls = false not to ask; leave out one")
    if not config.ca_file.is_file():
        raise ConfigError(f"{config.ca_file}: no such file of certificates; check ca_file")
    return str(config.ca_file)


def _check_credentials(config: DicomWebConfig, user: str | None, password: str | None, token: str | None) -> None:
    prefix = config.credentials_env
    if bool(user) != bool(password):
        raise ConfigError(f"{prefix}_USER and {prefix}_PASSWORD: only one of the two is set; set both or none")
    if token and user:
        raise ConfigError(f"{prefix}_TOKEN and {prefix}_USER are both set; unset one of them")
    parts = urlsplit(config.url)
    if (token or user) and parts.scheme == "http" and parts.hostname not in LOOPBACK and not config.plain_http:
        raise ConfigError(
            f"{config.url}: credentials would go over http, where others can read them; use https, or say "
            "plain_http = true (--plain-http) if the network is yours"
        )
