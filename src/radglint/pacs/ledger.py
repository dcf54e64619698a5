"""What became of each series, in one SQLite file, so that a watcher that is killed goes on where it was.

    seen      the source has it; it may still be coming in
    fetched   its files lie in our folder
    answered  its results lie in our folder, with the UIDs that they will always have
    stored    the target has the results; the end, unless more instances are to be asked again
    passed    no rule asks it; more instances make it seen again
    left      it was there before the first look; more instances make it seen again
    parked    it failed too often; more instances, or `retry`, make it seen (or answered) again

Every change is one transaction, written through to the disk. UIDs are kept here; names and patient IDs are not.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from radglint.errors import InputError, OutputError

State = Literal["seen", "fetched", "answered", "stored", "passed", "left", "parked"]
OPEN: tuple[State, ...] = ("seen", "fetched", "answered")

NAME = "ledger.sqlite"
VERSION = 1
BUSY_S = 30.0
_LOOKED = "looked"  # fact: the first look at the source is over
_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    series_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL, modality TEXT NOT NULL, state TEXT NOT NULL,
    instances INTEGER NOT NULL, changed_s REAL NOT NULL, due_s REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    waits INTEGER NOT NULL DEFAULT 0, rule TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    objects TEXT NOT NULL DEFAULT '[]', updated_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_state ON series (state, due_s);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Sighting:
    """A series as a source lists it."""

    study_uid: str
    series_uid: str
    modality: str
    instances: int


@dataclass(frozen=True)
class Result:
    """An object to store, as it lies on the disk."""

    study_uid: str
    series_uid: str
    instance_uid: str
    path: Path


@dataclass(frozen=True)
class Entry:
    """A series in the ledger.

    Attributes:
        instances: how many the source listed last.
        changed_s: when that number last changed, seconds since 1970.
        due_s: when to take the next step, seconds since 1970.
        attempts: failures so far that count.
        waits: times in a row that the PACS did not answer.
        rule: name of the rule that asks it.
        reason: why it is passed or parked, what failed last, or what was left out.
        objects: its results, from "answered" on.
    """

    series_uid: str
    study_uid: str
    modality: str
    state: State
    instances: int
    changed_s: float
    due_s: float
    attempts: int
    waits: int
    rule: str
    reason: str
    objects: tuple[Result, ...]
    updated_s: float


class Ledger:
    """The ledger in a folder; made if missing. Close it, or use it as a context.

    Raises:
        InputError: the file is none of ours, or of a later version.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        with self._errors():
            is_new = not self.path.exists()
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if is_new:
                os.chmod(self.path, 0o600)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise InputError(f"{self.path}: is of version {version}, this radglint knows {VERSION}; update it")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Ledger:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._db.close()

    def note(
        self, sightings: Iterable[Sighting], *, first_look: State = "seen", is_rest: bool = False,
        ask_again: bool = False,
    ) -> list[tuple[Entry, int]]:  # fmt: skip
        """Write down what a source lists now; one transaction.

        Args:
            sightings: every series that it has.
            first_look: state of what the very first call of this ledger finds: "seen" or "left".
            is_rest: whether of a stored series it lists only what came since, as the files are gone.
            ask_again: whether a stored series with more instances is seen again.

        Returns:
            Series that have more instances now than were asked, as they are, each with its earlier number.
        """
        grown = []
        with self._change() as db:
            looked = db.execute("SELECT 1 FROM facts WHERE name = ?", (_LOOKED,)).fetchone()
            for sighting in sightings:
                known = db.execute("SELECT * FROM series WHERE series_uid = ?", (sighting.series_uid,)).fetchone()
                if known is None:
                    _add(db, sighting, "seen" if looked else first_look)
                    continue
                before = _entry(known)
                came_before = before.instances if is_rest and before.state == "stored" else 0
                if _changed(db, before, came_before + sighting.instances, ask_again=ask_again):
                    grown.append((sighting.series_uid, before.instances))
            db.execute("INSERT OR IGNORE INTO facts VALUES (?, '1')", (_LOOKED,))
        return [(entry, number) for uid, number in grown if (entry := self.entry(uid)) is not None]

    def due(self) -> list[Entry]:
        """What a step can be taken for now, nearest to its end first."""
        rows = self._rows(
            "SELECT * FROM series WHERE state IN ('seen', 'fetched', 'answered') AND due_s <= ?"
            " ORDER BY state = 'answered' DESC, state = 'fetched' DESC, changed_s, series_uid",
            (time.time(),),
        )
        return [_entry(row) for row in rows]

    def entry(self, series_uid: str) -> Entry | None:
        """One series, or None."""
        rows = self._rows("SELECT * FROM series WHERE series_uid = ?", (series_uid,))
        return _entry(rows[0]) if rows else None

    def entries(self, *states: State) -> list[Entry]:
        """All series in these states, or all; oldest change first."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        return [_entry(row) for row in self._rows(f"SELECT * FROM series {where} ORDER BY updated_s", states)]

    def counts(self) -> dict[str, int]:
        """How many series are in each state."""
        rows = self._rows("SELECT state, count(*) AS number FROM series GROUP BY state ORDER BY state", ())
        return {row["state"]: row["number"] for row in rows}

    def move(
        self,
        entry: Entry,
        state: State,
        *,
        rule: str | None = None,
        reason: str = "",
        objects: Iterable[Result] | None = None,
    ) -> Entry:
        """Bring a series to its next state; returns it as it is then. Failures are forgotten once it is answered."""
        listed = entry.objects if objects is None else tuple(objects)
        with self._change() as db:
            db.execute(
                "UPDATE series SET state = ?, rule = ?, reason = ?, objects = ?, waits = 0, due_s = ?, updated_s = ?,"
                " attempts = ? WHERE series_uid = ?",
                (
                    state, entry.rule if rule is None else rule, reason, json.dumps([_listed(o) for o in listed]),
                    time.time(), time.time(), entry.attempts if state in ("seen", "fetched", "parked") else 0,
                    entry.series_uid,
                ),
            )  # fmt: skip
        return self._again(entry)

    def put_off(self, entry: Entry, state: State, seconds: float, reason: str, *, counts: bool) -> Entry:
        """Try a series again later.

        Args:
            entry: the series.
            state: where it goes on from.
            seconds: from now.
            reason: what failed.
            counts: whether it was a failure of the series, or only a PACS that does not answer.
        """
        with self._change() as db:
            db.execute(
                "UPDATE series SET state = ?, due_s = ?, reason = ?, attempts = attempts + ?, waits = waits + 1,"
                " updated_s = ? WHERE series_uid = ?",
                (state, time.time() + seconds, reason, int(counts), time.time(), entry.series_uid),
            )
        return self._again(entry)

    def wait(self, entry: Entry, seconds: float) -> None:
        """Look at a series again later, without a word."""
        with self._change() as db:
            db.execute("UPDATE series SET due_s = ? WHERE series_uid = ?", (time.time() + seconds, entry.series_uid))

    def retry_parked(self) -> int:
        """Begin again with what is parked, with storing where results lie on the disk; returns how many."""
        with self._change() as db:
            done = db.execute(
                "UPDATE series SET state = CASE objects WHEN '[]' THEN 'seen' ELSE 'answered' END, attempts = 0,"
                " waits = 0, due_s = ?, updated_s = ? WHERE state = 'parked'",
                (time.time(), time.time()),
            )
            return done.rowcount

    def _again(self, entry: Entry) -> Entry:
        found = self.entry(entry.series_uid)
        if found is None:
            raise InputError(f"{self.path}: series {entry.series_uid} is gone from it; do not edit it while it is used")
        return found

    def _rows(self, sql: str, values: Iterable[Any]) -> list[sqlite3.Row]:
        with self._errors():
            return self._db.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def _change(self) -> Any:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code in ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR_WRITE", "SQLITE_BUSY"):
                raise OutputError(f"{self.path}: cannot be written ({error}); check space and permission") from error
            raise InputError(
                f"{self.path}: is no usable ledger ({error}); restore it or give another folder"
            ) from error


def _add(db: sqlite3.Connection, sighting: Sighting, state: State) -> None:
    now = time.time()
    db.execute(
        "INSERT INTO series (series_uid, study_uid, modality, state, instances, changed_s, due_s, updated_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            sighting.series_uid, sighting.study_uid, sighting.modality, state, sighting.instances, now, now, now,
        ),
    )  # fmt: skip


def _changed(db: sqlite3.Connection, before: Entry, instances: int, *, ask_again: bool) -> bool:
    """Note another number of instances; whether there are more than were asked.

    What is answered but not stored yet is left as it is where it is to be asked again, and comes up at a later look.
    """
    if instances == before.instances or (before.state == "answered" and ask_again):
        return False
    is_more, is_answered = instances > before.instances, before.state in ("answered", "stored")
    is_open_again = is_more and (
        ask_again if before.state == "stored" else before.state in ("passed", "left", "parked") and not before.objects
    )
    now, uid = time.time(), before.series_uid
    if before.state in ("seen", "fetched") or is_open_again:
        db.execute(
            "UPDATE series SET state = 'seen', instances = ?, changed_s = ?, due_s = ?, attempts = 0, waits = 0,"
            " objects = '[]', updated_s = ? WHERE series_uid = ?",
            (instances, now, now, now, uid),
        )
    else:
        reason = f"{instances} instances since it was {before.state}" if is_answered else None
        db.execute(
            "UPDATE series SET instances = ?, changed_s = ?, reason = coalesce(?, reason) WHERE series_uid = ?",
            (instances, now, reason, uid),
        )
    return is_more and is_answered


def _listed(result: Result) -> dict[str, str]:
    return {
        "study": result.study_uid, "series": result.series_uid, "instance": result.instance_uid,
        "path": str(result.path),
    }  # fmt: skip


def _entry(row: sqlite3.Row) -> Entry:
    values = dict(row)
    objects = tuple(
        Result(item["study"], item["series"], item["instance"], Path(item["path"]))
        for item in json.loads(values.pop("objects"))
    )
    return Entry(**values, objects=objects)
