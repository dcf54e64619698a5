"""Where `radglint watch` sees new series: a DICOMweb server that is asked again and again, or what is sent to us."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from radglint.dicom_file import open_dicom, text
from radglint.errors import ImageError, PacsError, PacsUnreachableError
from radglint.pacs.config import InboxSource, WebSource
from radglint.pacs.dicomweb import DicomWeb
from radglint.pacs.ledger import Entry, Ledger, Sighting, State
from radglint.pacs.receiver import Receiver
from radglint.pacs.uids import is_uid

KEEP_PASSED_S = 86400.0
"""What was sent to us and no rule asks is kept so long: more of it may come."""
SPOOL, INBOX = "fetched", "inbox"


class Source(Protocol):
    """What the watcher needs of either."""

    first_look: State
    is_rest: bool  # of a stored series only what came since is there
    problems: set[str]  # what could not be looked at, in words

    def sightings(self) -> list[Sighting]:
        """Every series of a wanted modality that there is now."""
        ...

    def header(self, entry: Entry) -> Dataset:
        """The tags of one of its instances."""
        ...

    def fetch(self, entry: Entry) -> list[Path]:
        """All its instances as files in one folder."""
        ...

    def is_whole(self, entry: Entry, files: list[Path]) -> bool:
        """Whether nothing has come since `fetch`."""
        ...

    def clean(self, ledger: Ledger) -> None:
        """Remove files that are no longer needed."""
        ...

    def forget(self, entry: Entry) -> None:
        """Remove the files of a series, to fetch them anew if need be."""
        ...


class WebFolder:
    """A DICOMweb server. What is fetched goes to `FOLDER/fetched/series UID`.

    Args:
        config: of the source.
        modalities: what any rule asks; other series are not even noted.
        folder: of the watcher.
    """

    is_rest = False

    def __init__(self, config: WebSource, modalities: frozenset[str], folder: Path) -> None:
        self.first_look: State = "seen" if config.existing == "ask" else "left"
        self._config = config
        self._server = DicomWeb(config)
        self._modalities = modalities
        self._spool = folder / SPOOL
        self._studies: dict[str, tuple[str, list[Sighting]]] = {}  # UID to number of instances, and what was seen then
        self.problems: set[str] = set()

    def sightings(self) -> list[Sighting]:
        """See `Source`. A study is looked into again only when its number of instances has changed."""
        found: dict[str, tuple[str, list[Sighting]]] = {}
        for row in self._server.studies(self._filters()):
            study, number = row["StudyInstanceUID"], row["NumberOfStudyRelatedInstances"]
            known = self._studies.get(study)
            found[study] = known if known and number and known[0] == number else (number, self._look_into(study))
        self._studies = found
        return [sighting for _, sightings in found.values() for sighting in sightings]

    def _look_into(self, study: str) -> list[Sighting]:
        """The series of a study; none if the server refuses to list them, which must not hide the other studies."""
        try:
            return list(self._series_of(study))
        except PacsUnreachableError:
            raise
        except PacsError as error:
            self.problems.add(f"study {study}: {error}")
            return []

    def _filters(self) -> dict[str, str]:
        if self._config.lookback_days is None:
            return {}
        first = date.today() - timedelta(days=self._config.lookback_days)
        return {"StudyDate": f"{first:%Y%m%d}-"}

    def _series_of(self, uid: str) -> Iterator[Sighting]:
        for row in self._server.series(uid):
            modality, series = row["Modality"].upper(), row["SeriesInstanceUID"]
            if modality not in self._modalities or not is_uid(series):
                continue
            number = row["NumberOfSeriesRelatedInstances"]
            count = int(number) if number.isdecimal() else len(self._server.instances(uid, series))
            yield Sighting(uid, series, modality, count)

    def header(self, entry: Entry) -> Dataset:
        """See `Source`."""
        instances = self._server.instances(entry.study_uid, entry.series_uid)
        if not instances:
            raise PacsError(f"series {entry.series_uid}: the server has no instance of it any more")
        return self._server.header(entry.study_uid, entry.series_uid, instances[0])

    def fetch(self, entry: Entry) -> list[Path]:
        """See `Source`; goes on with what an interrupted fetch left."""
        return self._server.fetch(entry.study_uid, entry.series_uid, self._spool / entry.series_uid)

    def is_whole(self, entry: Entry, files: list[Path]) -> bool:
        """See `Source`."""
        return self._server.instances(entry.study_uid, entry.series_uid) == sorted(file.stem for file in files)

    def clean(self, ledger: Ledger) -> None:
        """See `Source`: of what is done or parked; it can be fetched again."""
        for folder in _folders(self._spool):
            entry = ledger.entry(folder.name)
            if entry is None or entry.state not in ("seen", "fetched"):
                shutil.rmtree(folder, ignore_errors=True)

    def forget(self, entry: Entry) -> None:
        """See `Source`."""
        shutil.rmtree(self._spool / entry.series_uid, ignore_errors=True)


class InboxFolder:
    """What is sent to us by C-STORE, in `FOLDER/inbox/study UID/series UID`; the receiver runs inside a `with` block.

    Args:
        config: of the receiver.
        modalities: what any rule asks.
        folder: of the watcher.
    """

    first_look: State = "seen"
    is_rest = True

    def __init__(self, config: InboxSource, modalities: frozenset[str], folder: Path) -> None:
        self._inbox = folder / INBOX
        self._modalities = modalities
        self._modality: dict[str, str] = {}  # of each series folder
        self.problems: set[str] = set()
        self.receiver = Receiver(self._inbox, config)
        self._stack = ExitStack()

    def __enter__(self) -> InboxFolder:
        """Listen; see `Receiver`."""
        self._stack.enter_context(self.receiver)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._stack.close()

    def sightings(self) -> list[Sighting]:
        """See `Source`: one for each folder with files of a wanted modality."""
        found = []
        for study in _folders(self._inbox):
            for series in _folders(study):
                files = _files(series)
                if files and self._modality_of(files[0]) in self._modalities:
                    found.append(Sighting(study.name, series.name, self._modality_of(files[0]), len(files)))
        return found

    def _modality_of(self, file: Path) -> str:
        """Modality of a file, and of all in its folder; empty if its header cannot be read."""
        key = file.parent.name
        if key not in self._modality:
            try:
                header = open_dicom(file, stop_before_pixels=True, tags=["Modality"])
                self._modality[key] = text(header, "Modality").upper()
            except ImageError as error:
                self._modality[key] = ""
                self.problems.add(f"not asked: {error}")
        return self._modality[key]

    def header(self, entry: Entry) -> Dataset:
        """See `Source`."""
        return open_dicom(self.fetch(entry)[0], stop_before_pixels=True)

    def fetch(self, entry: Entry) -> list[Path]:
        """See `Source`: they are here."""
        files = _files(self._place(entry))
        if not files:
            raise PacsError(f"series {entry.series_uid}: its files are gone from {self._inbox}; send it again")
        return files

    def is_whole(self, entry: Entry, files: list[Path]) -> bool:
        """See `Source`."""
        return _files(self._place(entry)) == files

    def clean(self, ledger: Ledger) -> None:
        """See `Source`: of what is stored, and of what no rule has asked for a day."""
        for study in _folders(self._inbox):
            for series in _folders(study):
                if self._is_over(ledger.entry(series.name), series):
                    shutil.rmtree(series, ignore_errors=True)
                    self._modality.pop(series.name, None)
            if not any(study.iterdir()):
                study.rmdir()

    def _is_over(self, entry: Entry | None, series: Path) -> bool:
        if entry is not None and entry.state != "passed":
            return entry.state == "stored"
        return time.time() - series.stat().st_mtime > KEEP_PASSED_S  # no rule asks it, or its modality

    def forget(self, entry: Entry) -> None:
        """See `Source`: nothing to do, they cannot be fetched again."""

    def _place(self, entry: Entry) -> Path:
        return self._inbox / entry.study_uid / entry.series_uid


def _folders(parent: Path) -> list[Path]:
    """Folders named by a UID, sorted; none if the parent is not there."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as found:
        return sorted(Path(item.path) for item in found if item.is_dir() and is_uid(item.name))


def _files(folder: Path) -> list[Path]:
    """The whole files of a series, sorted."""
    return sorted(path for path in folder.glob("*.dcm") if is_uid(path.stem))
