"""Put NiiVue, the library that draws the viewer's picture, into the package: `python scripts/vendor_niivue.py`.

Runs `npm pack` for one pinned version, checks the archive against the pinned integrity, and takes the single
self-contained file out of it. Called by `make setup` and when a wheel is built; a second run only hashes one file.
It uses nothing but the standard library, so that a build needs no more.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@niivue/niivue"
VERSION = "0.69.0"
ARCHIVE = f"niivue-niivue-{VERSION}.tgz"
INTEGRITY = "sha512-YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
MEMBER = "package/dist/niivue.umd.js"  # the only build of the package that a page can load as it is
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
TARGET = Path(__file__).resolve().parents[1] / "src" / "radglint" / "viewer" / "vendor" / "niivue.umd.js"
NPM_S = 300


class VendorError(RuntimeError):
    """NiiVue cannot be fetched, or what came is not what is pinned."""


def vendor(target: Path = TARGET, archive: Path | None = None) -> bool:
    """Make sure that the pinned NiiVue lies at `target`.

    Args:
        target: the file to write; its folder is made.
        archive: an `npm pack` archive that is already here; by default npm fetches it.

    Returns:
        Whether something was written; False if it was there already.

    Raises:
        VendorError: no npm, no network, or an archive with another content than the pinned one.
    """
    if target.is_file() and sha256(target.read_bytes()) == SHA256:
        return False
    with tempfile.TemporaryDirectory() as folder:
        packed = archive or fetch(Path(folder))
        content = unpack(packed)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".radglint-{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def fetch(folder: Path) -> Path:
    """The archive of the pinned version, from the npm registry."""
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError(
            f"npm is not installed, and the viewer needs {PACKAGE} {VERSION} from it: install npm (on Debian: "
            f"apt install npm), or fetch {ARCHIVE} elsewhere and give it with --archive"
        )
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_S, cwd=folder)
    except subprocess.TimeoutExpired:
        raise VendorError(f"npm pack {PACKAGE}@{VERSION}: no answer within {NPM_S} s; check the network") from None
    if done.returncode or not (folder / ARCHIVE).is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise VendorError(f"npm pack {PACKAGE}@{VERSION} failed: {said[-1] if said else 'no message'}")
    return folder / ARCHIVE


def unpack(archive: Path) -> bytes:
    """The one file out of an archive that has the pinned integrity."""
    try:
        packed = archive.read_bytes()
    except OSError as error:
        raise VendorError(f"{archive}: cannot be read: {error.strerror}") from None
    found = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if found != INTEGRITY:
        raise VendorError(f"{archive.name}: integrity {found}, expected {INTEGRITY}; not used")
    with tarfile.open(archive, "r:gz") as tar:
        member = tar.extractfile(MEMBER)
        content = b"" if member is None else member.read()
    if sha256(content) != SHA256:
        raise VendorError(f"{archive.name}: {MEMBER} has sha256 {sha256(content)}, expected {SHA256}; not used")
    return content


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """The command line: 0 when NiiVue is there, 1 with one line of reason when not."""
    parser = argparse.ArgumentParser(description=f"put {PACKAGE} {VERSION} into the viewer")
    parser.add_argument("--archive", type=Path, metavar="TGZ", help=f"{ARCHIVE}, if npm cannot fetch it here")
    try:
        written = vendor(archive=parser.parse_args().archive)
    except VendorError as error:
        print(f"vendor_niivue: {error}", file=sys.stderr)
        return 1
    print(f"NiiVue {VERSION}: {'written to' if written else 'already in'} {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
