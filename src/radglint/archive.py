"""Unpack a zip without trusting it: no path leaves the target folder, no link, no bomb, no password, no half file."""

from __future__ import annotations

import errno
import lzma
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from radglint.errors import ImageError

MAX_MEMBERS = 20_000
"""Files in one zip; the largest studies have some thousand slices."""
MAX_TOTAL_BYTES = 4 * 2**30
"""Unpacked size of one zip: about 2,000 slices of a 1024 x 1024 CT."""
MAX_RATIO = 200
"""Unpacked size over packed size, for anything above `RATIO_FROM_BYTES`; CT slices pack 2 to 10 times."""
RATIO_FROM_BYTES = 64 * 2**20
MAX_NAME_CHARS = 80

_CHUNK_BYTES = 2**20
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz")
_ENCRYPTED = 0x1
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OSError, struct.error)


def extract_zip(path: str | Path, into: str | Path) -> list[Path]:
    """Unpack every file of a zip into a flat folder, numbered in the order of the zip.

    Hidden files, macOS side files and folders are left out. After an error the files written so far stay in `into`;
    the caller gives a temporary folder and removes it.

    Args:
        path: the zip.
        into: an existing folder.

    Returns:
        The files, named `00012_original-name`, in the order of the zip.

    Raises:
        ImageError: not a zip, truncated, encrypted, empty, holds only archives, an unsafe member (absolute path,
            `..`, link), or too many or too large members. It names the member.
    """
    path, into = Path(path), Path(into)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked_members(archive.infolist(), path)
            budget = MAX_TOTAL_BYTES
            written: list[Path] = []
            for number, member in enumerate(members):
                target = into / f"{number:05d}_{_safe_name(member.filename)}"
                budget -= _extract_member(archive, member, target, path, budget)
                written.append(target)
            return written
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(f"{path}: not a zip, or truncated ({_one_line(error)}); copy it again") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _checked_members(members: list[zipfile.ZipInfo], path: Path) -> list[zipfile.ZipInfo]:
    """Refuse an unsafe zip from its table of contents, before anything is unpacked."""
    if len(members) > MAX_MEMBERS:
        raise ImageError(f"{path}: {len(members)} members, at most {MAX_MEMBERS} are unpacked; zip one study only")
    for member in members:
        _check_member(member, path)
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if total > MAX_TOTAL_BYTES:
        raise ImageError(f"{path}: unpacks to {total} bytes, at most {MAX_TOTAL_BYTES} are; zip one study only")
    if total > RATIO_FROM_BYTES and total > MAX_RATIO * max(packed, 1):
        raise ImageError(f"{path}: unpacks to {total} bytes from {packed}, a zip bomb; zip the original files again")
    wanted = [member for member in members if not member.is_dir() and not _is_hidden(member.filename)]
    if not wanted:
        raise ImageError(f"{path}: the zip holds no file; zip the folder with the DICOM files")
    if all(member.filename.lower().endswith(_ARCHIVES) for member in wanted):
        raise ImageError(f"{path}: holds only the archive {wanted[0].filename!r}; unpack it and give what is inside")
    return wanted


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename.replace("\\", "/")
    if not name:
        raise ImageError(f"{path}: a member has no name; zip the files again")
    if name.startswith("/") or re.match(r"^[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
        raise ImageError(f"{path}: member {member.filename!r} points outside the archive; do not trust this zip")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ImageError(f"{path}: member {member.filename!r} is a symbolic link; zip the files themselves")
    if member.flag_bits & _ENCRYPTED:
        raise ImageError(f"{path}: member {member.filename!r} is encrypted; unpack it with its password first")
    if member.file_size > RATIO_FROM_BYTES and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        raise ImageError(f"{path}: member {member.filename!r} unpacks to {member.file_size} bytes, a zip bomb; refused")


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _safe_name(name: str) -> str:
    """The last part of a member's name with anything but letters, digits, dot, dash and underscore replaced."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return re.sub(r"[^A-Za-z0-9._-]", "_", last)[-MAX_NAME_CHARS:]


def _extract_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path, budget: int) -> int:
    """Write one member; count the bytes that really come, whatever the table of contents says."""
    size = 0
    try:
        with archive.open(member) as source, target.open("xb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > budget:
                    raise ImageError(
                        f"{path}: member {member.filename!r} is larger than announced, a zip bomb; refused"
                    )
                sink.write(chunk)
    except NotImplementedError as error:
        raise ImageError(f"{path}: member {member.filename!r}: {_one_line(error)}; zip with 'deflate'") from error
    except _BROKEN as error:
        target.unlink(missing_ok=True)
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ImageError(
                f"{path}: no space left in {target.parent} to unpack it; free some or set TMPDIR"
            ) from error
        what = _one_line(error)
        raise ImageError(f"{path}: member {member.filename!r} cannot be unpacked ({what}); zip it again") from error
    return size
