"""API keys: read from a file or the environment, kept as hashes, compared in constant time over all of them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path

from radglint.errors import ConfigError

KEYS_VARIABLE = "RADGLINT_API_KEYS"
MIN_KEY_CHARACTERS = 16
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")


def hash_key(key: str) -> str:
    """A key as it is kept: keys are long random texts, so one round of SHA-256 is enough."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """All keys of a file and of the environment variable RADGLINT_API_KEYS (separated by spaces or commas), hashed.

    Args:
        path: one key a line, plain or as `sha256:` with the 64 digits of its hash; `#` begins a comment.

    Raises:
        ConfigError: the file cannot be read, is open to others, holds no key, or a key is too short.
    """
    words = re.split(r"[\s,]+", os.environ.get(KEYS_VARIABLE, "").strip())
    lines = [] if path is None else _lines(Path(path))
    if path is not None and not lines:
        raise ConfigError(f"{path}: holds no API key; write one a line")
    return tuple(dict.fromkeys(_checked(word, path) for word in (*words, *lines) if word))


def _lines(path: Path) -> list[str]:
    try:
        if os.name == "posix" and path.stat().st_mode & 0o007:
            raise ConfigError(f"{path}: everybody on this machine can use it; run chmod 600 on it")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: the API keys cannot be read ({reason}); check the path") from error
    return [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]


def _checked(key: str, path: str | os.PathLike[str] | None) -> str:
    if _HASHED.fullmatch(key):
        return key
    if len(key) < MIN_KEY_CHARACTERS:
        where = KEYS_VARIABLE if path is None else f"{path} or {KEYS_VARIABLE}"
        raise ConfigError(f"{where}: a key has {len(key)} characters, at least {MIN_KEY_CHARACTERS} are needed")
    return hash_key(key)


class KeyRing:
    """The keys that open this server.

    Args:
        hashes: as `read_keys` gives them.
    """

    def __init__(self, hashes: Sequence[str]) -> None:
        self._hashes = [text.encode() for text in hashes]

    def __bool__(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._hashes)

    def number_of(self, key: str) -> int | None:
        """Which key this is, from 1; None for none. Takes as long for any key, also for a wrong one."""
        given, found = hash_key(key).encode(), 0
        for number, known in enumerate(self._hashes, start=1):
            found |= number * hmac.compare_digest(given, known)
        return found or None
