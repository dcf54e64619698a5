"""Where a server keeps what: one folder a study, named by a random id, so that deleting it deletes everything.

* `data/radglint.sqlite`: the data base, if no other was given
* `data/tmp/`: bodies on their way in; emptied at every start
* `data/studies/ID/source/`: the files as they came, numbered
* `data/studies/ID/volume.nii`: the image for display (`volume.nii.gz` once somebody asked for it)
* `data/studies/ID/features.npz`: tokens of the model
* `data/studies/ID/jobs/JOB/`: token logits of an answer, and the results that were asked for
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

from radglint.errors import ConfigError, OutputError
from radglint.writing import output_errors

ID_PATTERN = r"^[0-9a-f]{24}$"


def new_id() -> str:
    """A random id; it says nothing of a patient and cannot be guessed."""
    return secrets.token_hex(12)


class DataFolder:
    """The folder below `--data`.

    Args:
        root: made if missing, for its owner only.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.studies, self.temporary, self.trash = (self.root / name for name in ("studies", "tmp", "trash"))
        self._lock: IO[str] | None = None
        with output_errors(self.root):
            for folder in (self.root, self.studies, self.temporary, self.trash):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(self) -> None:
        """Make sure that this is the only server on the folder, and clear what an earlier one left half done.

        Raises:
            ConfigError: another server uses it.
        """
        with output_errors(self.root):
            lock = (self.root / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigError(f"{self.root}: another radglint server uses this folder; give another --data") from error
        self._lock = lock
        for folder in (self.temporary, self.trash):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, exist_ok=True)

    def release(self) -> None:
        """Let another server have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def study(self, study_id: str) -> Path:
        """The folder of a study; the id comes from the data base or was checked against it."""
        if not re.fullmatch(ID_PATTERN, study_id):
            raise OutputError(f"{study_id!r} is not an id")
        return self.studies / study_id

    def source(self, study_id: str) -> Path:
        """The files of a study as they came."""
        return self.study(study_id) / "source"

    def job(self, study_id: str, job_id: str) -> Path:
        """What belongs to one answer."""
        if not re.fullmatch(ID_PATTERN, job_id):
            raise OutputError(f"{job_id!r} is not an id")
        return self.study(study_id) / "jobs" / job_id

    def remove_study(self, study_id: str) -> None:
        """Delete everything of a study; first out of the way, so that nobody writes into what is being deleted."""
        self._remove(self.study(study_id))

    def remove_job(self, study_id: str, job_id: str) -> None:
        """Delete everything of one answer."""
        self._remove(self.job(study_id, job_id))

    def _remove(self, folder: Path) -> None:
        away = self.trash / secrets.token_hex(8)
        try:
            folder.rename(away)
        except FileNotFoundError:
            return
        shutil.rmtree(away, ignore_errors=True)


def size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what is deleted meanwhile does not count."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size
