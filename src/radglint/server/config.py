"""What a server was told: address, folders, limits. Checked once, before anything is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from radglint.errors import ConfigError


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
        cors: origins that may use the API from a browser.
        host_names: further names under which the server is reached; checked where there are no keys.
        upload_bytes: of one request with files.
        upload_files: files in one request.
        stored_bytes: of all studies together; when reached, uploads are refused.
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
    cors: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    upload_bytes: int = 2 * 2**30
    upload_files: int = 4000
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
        if self.dicomweb is not None and urlsplit(self.dicomweb).scheme not in ("http", "https"):
            raise ConfigError(
                f"--dicomweb {self.dicomweb}: expected an http or https URL, such as http://pacs/dicom-web"
            )
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name.replace('_', ' ')}: expected a number above 0, got {getattr(self, name)}")

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
