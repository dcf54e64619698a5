"""UIDs from outside: checked before they become a file name or a part of a URL, and hashed before they are logged."""

from __future__ import annotations

import hashlib
import re

from radglint.errors import PacsError

MAX_CHARACTERS = 64  # PS3.5 section 9.1
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_IN_TEXT = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+){4,}")


def is_uid(text: str) -> bool:
    """Whether a text is a UID: groups of digits with single dots between them, at most 64 characters.

    Nothing that passes can leave a folder. A group with leading zeros passes too: real files have them.
    """
    return len(text) <= MAX_CHARACTERS and _UID.fullmatch(text) is not None


def check_uid(text: str, what: str) -> str:
    """The UID itself.

    Args:
        text: from a network, a file or a command line.
        what: what it should be, for the message, such as "StudyInstanceUID".

    Raises:
        PacsError: it is none.
    """
    if not is_uid(text):
        raise PacsError(
            f"{what}: expected digits and dots, at most {MAX_CHARACTERS} characters, got {text[:80]!r}; correct it"
        )
    return text


def short_name(uid: str) -> str:
    """What a series is called in a log: eight characters of a hash."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def hide_uids(text: str) -> str:
    """A message with every UID replaced by its short name; a version, a decimal or an IP address stays."""
    return _IN_TEXT.sub(lambda found: short_name(found.group()), text)
