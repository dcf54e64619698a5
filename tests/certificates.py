"""Certificates of an authority made for a test run, by openssl: for a node on loopback, a caller, and a stranger."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Certificates:
    """PEM files in a folder: NAME.pem and NAME.key."""

    folder: Path

    def files(self, name: str, ca: str | None = "ca") -> dict[str, Any]:
        """The keys of `TlsFiles` for a name, with an authority to trust."""
        own = {"tls_certificate": self.folder / f"{name}.pem", "tls_key": self.folder / f"{name}.key"}
        return own | ({} if ca is None else self.trust(ca))

    def trust(self, ca: str = "ca") -> dict[str, Any]:
        """Only the authority."""
        return {"tls_ca": self.folder / f"{ca}.pem"}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """`node` and `caller` of `ca`; `elsewhere` of `ca` for another machine; `stranger` of an authority of its own."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "stranger"):
        _openssl(folder, "req", "-x509", *_key(name), "-subj", f"/CN={name}", "-days", "2", "-out", f"{name}.pem")
    for name, place in (("node", "IP:127.0.0.1"), ("caller", "IP:127.0.0.1"), ("elsewhere", "DNS:pacs.example")):
        _openssl(folder, "req", *_key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (folder / "names").write_text(f"subjectAltName={place}")
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    return Certificates(folder)


def _key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
