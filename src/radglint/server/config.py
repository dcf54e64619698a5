"""What a server was told: address, folders, limits. Checked once, before anything is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from radglint.errors import ConfigError
from radglint.pacs.access import DicomWebConfig

PACS_ATTEMPTS = 3


@dataclass(frozen=True)
class ServerConfig:
    """All settings of one server.

    Attributes:
        data: folder of uploads, features and results, and of the SQLite file.
        host: address to listen on.
        port: 0 takes a free one.
        database: SQLAlchemy URL; None is SQLite in `data`.
        model: name or folder of the model.
        device: auto, cpu, cuda or mps.
        keys: API keys as `auth.read_keys` gives them; empty = nobody is asked, on a loopback address only.
        dicomweb: base URL of the PACS that studies can be fetched from; None = none.
        ca_file: certificates to trust the PACS by, in place of the usual ones.
        plain_http: whether credentials may go to the PACS over http, where it is another machine.
        cors: origins that may use the API from a browser.
        host_names: further names under which the server is reached; checked where there are no keys.
        upload_bytes: of one request with files, or of one series of the PACS.
        upload_files: files in one request, or instances of one series.
        incoming_bytes: of all uploads on their way, in memory and on disk; None = `upload_bytes`.
        stored_bytes: of all studies with their results; when reached, uploads, questions and new results are refused.
        studies: that are kept at the same time.
        queue: jobs and studies that wait or run.
        jobs_per_study: kept at the same time.
        rate: requests per second and key, on average.
        burst: requests at once and key.
        connections: at the same time.
        cache_bytes: images and features held in memory.
        keep_days: studies are deleted this long after they came; None = never.
        header_s: a request's head must be there by then.
        body_s: a request's body must be there by then.
        stall_s: longest pause of a client that sends or reads.
        task_s: longest time for one study or question; then the model process is started again.
        grace_s: time for what is in work when the server is stopped.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8420
    database: str | None = None
    model: str = "nano"
    device: str = "auto"
    keys: tuple[str, ...] = ()
    dicomweb: str | None = None
    ca_file: Path | None = None
    plain_http: bool = False
    cors: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    upload_bytes: int = 2 * 2**30
    upload_files: int = 4000
    incoming_bytes: int | None = None
    stored_bytes: int = 100 * 2**30
    studies: int = 1000
    queue: int = 500
    jobs_per_study: int = 1000
    rate: float = 50.0
    burst: int = 200
    connections: int = 400
    cache_bytes: int = 2 * 2**30
    keep_days: float | None = None
    header_s: float = 15.0
    body_s: float = 900.0
    stall_s: float = 30.0
    task_s: float = 900.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what would be unsafe or cannot work.

        Raises:
            ConfigError: an address that others can reach without keys, a bad URL, a limit that is not above 0.
        """
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host}: other machines can reach this address, so API keys are needed; give --keys FILE "
                "or set RADGLINT_API_KEYS, or listen on 127.0.0.1"
            )
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name.replace('_', ' ')}: expected a number above 0, got {getattr(self, name)}")
        if self.most_incoming_bytes < self.upload_bytes:
            raise ConfigError(
                f"incoming bytes: one upload may have {self.upload_bytes}, all on their way together only "
                f"{self.incoming_bytes}; give more"
            )
        _ = self.pacs

    @property
    def most_incoming_bytes(self) -> int:
        """See `incoming_bytes`."""
        return self.upload_bytes if self.incoming_bytes is None else self.incoming_bytes

    @property
    def pacs(self) -> DicomWebConfig | None:
        """The PACS, with what one series of it may weigh.

        Raises:
            ConfigError: an address that cannot be.
        """
        if self.dicomweb is None:
            return None
        try:
            return DicomWebConfig(
                url=self.dicomweb, ca_file=self.ca_file, plain_http=self.plain_http, attempts=PACS_ATTEMPTS,
                max_instances=self.upload_files, max_series_bytes=self.upload_bytes,
            )  # fmt: skip
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"--dicomweb: {message}") from error

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in use."""
        return self.database or f"sqlite:///{self.data.absolute() / 'radglint.sqlite'}"


_POSITIVE = (
    *("upload_bytes", "upload_files", "stored_bytes", "studies", "queue", "jobs_per_study", "rate"),
    *("burst", "connections", "cache_bytes", "header_s", "body_s", "stall_s", "task_s", "grace_s"),
)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
