"""Files out: each one whole or not at all, and a folder of results as one step.

A file is written under a temporary name in its own folder and then renamed. A folder of results is written into a
hidden staging folder beside its final place (inside it, where it exists already, so that both lie on one disk) and
moved at the end; when anything fails, what stood there before stands there again.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from radglint.errors import OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SLUG_CHARACTERS = 48

_WINDOWS_NAMES = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(10))}
_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission to write here; choose another folder",
    errno.EPERM: "no permission to write here; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a file is in the way where a folder is needed; choose another path",
    errno.EEXIST: "a file is in the way where a folder is needed; choose another path",
    errno.EISDIR: "a folder is in the way where a file is needed; choose another path",
    errno.ENAMETOOLONG: "the path is too long for this file system; choose a shorter one",
    errno.ENOENT: "its folder does not exist; make it first",
}


def slug(text: str) -> str:
    """A file name part that every system accepts: lower-case ASCII letters, digits and underscores, 1 to 48 of them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:MAX_SLUG_CHARACTERS].rstrip("_")
    return f"{name}_query" if name in _WINDOWS_NAMES else name or "query"


def cut(text: str, length: int) -> str:
    """A text of at most `length` characters, with an ellipsis where some are missing."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` inside the block into one clear line.

    Args:
        path: what the user asked to write, named in the message.

    Raises:
        OutputError: no permission, no space, or something in the way.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; check the path and the disk")
        raise OutputError(f"{os.fspath(path)}: cannot be written: {reason}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file whole or not at all.

    Args:
        path: the file; its folder must exist. An older file is replaced.
        content: the bytes.

    Returns:
        The path written.

    Raises:
        OutputError: see `output_errors`; nothing is left behind and an older file is untouched.
    """
    with whole_file(path) as file:
        file.write(content)
    return Path(path)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write in pieces, that is there whole or not at all: what is too large to hold in memory.

    Args:
        path: the file; its folder must exist. An older file is replaced when the block ends well.

    Yields:
        The open file, under a temporary name.

    Raises:
        OutputError: see `output_errors`; nothing is left behind and an older file is untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".radglint-{secrets.token_hex(6)}")
    with output_errors(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | os.PathLike[str], document: Any) -> Path:
    """Write strict JSON (no NaN), indented, UTF-8; see `write_bytes`.

    Raises:
        ValueError: the document holds NaN or infinity.
        OutputError: the file cannot be written.
    """
    return write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_png(path: str | os.PathLike[str], picture: Image) -> Path:
    """Write a PIL picture as PNG; see `write_bytes`.

    Raises:
        OutputError: the name does not end in .png, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise OutputError(f"{path}: a picture needs a name that ends in .png; choose such a name")
    return write_bytes(path, png_bytes(picture))


def png_bytes(picture: Image) -> bytes:
    """A PIL picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def write_nifti(path: str | os.PathLike[str], nifti: Any) -> Path:
    """Write a nibabel NIfTI image; the same content always gives the same bytes. See `write_bytes`.

    Args:
        path: a name that ends in .nii or .nii.gz.
        nifti: a `nibabel.Nifti1Image` or `Nifti2Image`.

    Raises:
        OutputError: another suffix, or the file cannot be written.
    """
    name = Path(path).name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path}: a 3D mask needs a name that ends in .nii or .nii.gz; choose such a name")
    content = nifti.to_bytes()
    return write_bytes(path, gzip.compress(content, 6, mtime=0) if name.endswith(".gz") else content)


@contextmanager
def folder_transaction(folder: str | os.PathLike[str], *, stale: re.Pattern[str] | None = None) -> Iterator[Path]:
    """Fill a folder in one step.

    Args:
        folder: the final place; made with its parents if missing. Files of the same name are replaced, others stay.
        stale: files already in the folder whose whole name matches are removed (left by an earlier run).

    Yields:
        An empty staging folder to write into (files only). It is moved when the block ends well.

    Raises:
        OutputError: see `output_errors`. After any failure nothing new is left and nothing old is lost.
    """
    final = Path(folder)
    made: list[Path] = []
    with output_errors(final):
        try:
            made = _make_folders(final)
            staging = final / f".radglint-{secrets.token_hex(6)}"
            staging.mkdir()
            try:
                yield staging
                _move_in(staging, final, stale)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        except BaseException:
            for path in reversed(made):
                with suppress(OSError):
                    path.rmdir()
            raise


def _make_folders(folder: Path) -> list[Path]:
    """Make the folder; returns those that were missing, outermost first."""
    made: list[Path] = []
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
    except OSError:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        raise
    return made


def _move_in(staging: Path, final: Path, stale: re.Pattern[str] | None) -> None:
    """Move every staged file to its place; on failure put back what was there."""
    names = sorted(path.name for path in staging.iterdir())
    backup = staging / ".before"
    backup.mkdir()
    old = [p.name for p in final.iterdir() if p.name in names or (stale and p.is_file() and stale.fullmatch(p.name))]
    moved_out: list[str] = []
    moved_in: list[str] = []
    try:
        for name in old:
            if (final / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder", name)
            os.replace(final / name, backup / name)
            moved_out.append(name)
        for name in names:
            os.replace(staging / name, final / name)
            moved_in.append(name)
    except BaseException:
        for name in moved_in:
            with suppress(OSError):
                (final / name).unlink()
        for name in moved_out:
            _put_back(backup / name, final / name)
        raise


def _put_back(source: Path, target: Path) -> None:
    """Restore one old file, by another call where the rename itself is what failed."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copy2(source, target)
