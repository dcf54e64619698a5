"""A PostgreSQL of Debian's package, in a temporary folder, on a free loopback port, ended after use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
USER = "radglint"


@contextmanager
def running_postgres() -> Iterator[str]:
    """Yields the SQLAlchemy URL of an empty data base; a failure, not a skip, where PostgreSQL is not installed."""
    if not PROGRAMS:
        pytest.fail("PostgreSQL is not installed: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="radglint-postgres-"))
    port = _free_port()
    try:
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "postgres", "postgres")
        _run(folder, "initdb", "-D", "data", "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8", "--locale", "C")
        with _server(folder, port):
            _run(folder, "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "radglint")
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/radglint"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(folder: Path, port: int) -> Iterator[None]:
    settings = [f"-k{folder}", f"-p{port}", "-h127.0.0.1", "-cfsync=off", "-cshared_buffers=16MB"]
    process = subprocess.Popen(
        [*_as_owner(), str(PROGRAMS[-1] / "postgres"), "-D", "data", *settings], cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            if subprocess.run(
                [PROGRAMS[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
            ).returncode == 0:  # fmt: skip
                break
            assert process.poll() is None, "PostgreSQL ended by itself"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _as_owner() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]


def _run(folder: Path, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [*_as_owner(), str(PROGRAMS[-1] / program), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]
