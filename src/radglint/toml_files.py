"""One TOML file to a dictionary: missing, too long, nested without end or no TOML end with one clear line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from radglint.errors import ConfigError

MAX_BYTES = 2**15
"""The recipes have 2 to 4 KiB. Time for a key of many dots grows with the square of its length."""


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """Keys and values of a file.

    Args:
        path: the file.
        hint: what to do about a file that is no TOML, for the message.

    Raises:
        ConfigError: so.
    """
    try:
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: {len(content)} bytes, a configuration has at most {MAX_BYTES}; {hint}")
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or nested without end
        raise ConfigError(f"{path}: not a TOML file ({error}); {hint}") from error
