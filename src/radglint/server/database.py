"""The data base: studies and jobs that were accepted, and answers. SQLite (WAL) by default, PostgreSQL by URL.

Only what must survive a restart is in it: a study is queued, ready or failed; a job queued, done, failed or cancelled.
That something is being worked on is known to the process that works on it (`events`). What was accepted is committed to
disk before the client hears of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from radglint.errors import ConfigError

Row = dict[str, Any]
SCHEMA_VERSION = 2  # 1 did not know the size of results
_metadata = MetaData()
_about = Table("radglint_about", _metadata, Column("version", Integer, nullable=False))
_studies = Table(
    "radglint_studies", _metadata,
    Column("id", String(24), primary_key=True),
    Column("name", String(200), nullable=False),  # the file's name at the client
    Column("state", String(10), nullable=False, index=True),
    Column("source", JSON, nullable=False),
    Column("image", JSON),
    Column("problem", Text),
    Column("attempts", Integer, nullable=False, default=0),  # times that the model process died over it
    Column("size_bytes", BigInteger, nullable=False, default=0),  # with all results of its jobs
    Column("created_s", Float, nullable=False, index=True),
)  # fmt: skip
_jobs = Table(
    "radglint_jobs", _metadata,
    Column("id", String(24), primary_key=True),
    Column("study_id", String(24), ForeignKey(_studies.c.id, ondelete="CASCADE"), nullable=False),
    Column("queries", JSON, nullable=False),
    Column("threshold", Float),
    Column("state", String(10), nullable=False),
    Column("document", JSON),  # of `ask --json`
    Column("problem", Text),
    Column("attempts", Integer, nullable=False, default=0),
    Column("size_bytes", BigInteger, nullable=False, default=0, server_default="0"),  # of its results
    Column("created_s", Float, nullable=False),
    Column("finished_s", Float),
    Index("radglint_jobs_by_state", "state", "created_s"),
    Index("radglint_jobs_by_study", "study_id", "created_s"),
)  # fmt: skip


class Database:
    """Studies and jobs. Every method may be called from any thread; writes come one after another.

    Args:
        url: SQLAlchemy URL.

    Raises:
        ConfigError: it cannot be reached, or another version of radglint made it.
    """

    def __init__(self, url: str) -> None:
        self._writing = threading.Lock()
        try:
            self._engine = create_engine(
                url, pool_pre_ping=not url.startswith("sqlite"), pool_size=10, max_overflow=40, hide_parameters=True
            )
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _sqlite_settings)
            self._prepare()
        except (SQLAlchemyError, NoSuchModuleError, ArgumentError, ImportError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            shown = url if url.startswith("sqlite") else url.partition("://")[0]  # never the password
            raise ConfigError(f"the data base ({shown}) cannot be used: {reason}; check --database") from error

    def _prepare(self) -> None:
        """Make the tables where there are none; after a failure no connection is left."""
        try:
            _metadata.create_all(self._engine)
            self._check_version()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def is_alive(self) -> bool:
        """Whether a question is answered."""
        try:
            with self._engine.connect() as connection:
                connection.execute(select(1))
        except SQLAlchemyError:
            return False
        return True

    def _check_version(self) -> None:
        with self._write() as connection:
            found = connection.execute(select(_about.c.version)).scalar()
            if found is None:
                connection.execute(insert(_about).values(version=SCHEMA_VERSION))
            elif found == 1:
                connection.exec_driver_sql("ALTER TABLE radglint_jobs ADD COLUMN size_bytes BIGINT NOT NULL DEFAULT 0")
                connection.execute(update(_about).values(version=SCHEMA_VERSION))
            elif found != SCHEMA_VERSION:
                raise ConfigError(
                    f"the data base has version {found}, this radglint needs {SCHEMA_VERSION}; give a new --data folder"
                )

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._writing, self._engine.begin() as connection:
            yield connection

    def _rows(self, statement: Any) -> list[Row]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    # Studies

    def add_study(self, study: Row) -> None:
        """Accept a study; `study` has id, name, source and size_bytes."""
        with self._write() as connection:
            connection.execute(insert(_studies).values(state="queued", attempts=0, created_s=time.time(), **study))

    def study(self, study_id: str) -> Row | None:
        """One study."""
        return next(iter(self._rows(select(_studies).where(_studies.c.id == study_id))), None)

    def studies(self, limit: int, offset: int) -> list[Row]:
        """Studies, the newest first."""
        return self._rows(select(_studies).order_by(_studies.c.created_s.desc()).limit(limit).offset(offset))

    def change_study(self, study_id: str, **values: Any) -> bool:
        """Set columns of a study; False if it is gone."""
        with self._write() as connection:
            return connection.execute(update(_studies).where(_studies.c.id == study_id).values(**values)).rowcount > 0

    def fail_study(self, study_id: str, problem: str) -> list[str]:
        """A study cannot be used, and with it its waiting jobs; returns their ids."""
        waiting = (_jobs.c.study_id == study_id) & (_jobs.c.state == "queued")
        with self._write() as connection:
            connection.execute(
                update(_studies).where(_studies.c.id == study_id).values(state="failed", problem=problem)
            )
            ids = list(connection.execute(select(_jobs.c.id).where(waiting)).scalars())
            failed = {"state": "failed", "problem": problem, "finished_s": time.time()}
            connection.execute(update(_jobs).where(waiting).values(**failed))
        return ids

    def delete_study(self, study_id: str) -> list[str] | None:
        """Delete a study with its jobs; returns the ids of these, None if there is no such study."""
        with self._write() as connection:
            ids = list(connection.execute(select(_jobs.c.id).where(_jobs.c.study_id == study_id)).scalars())
            connection.execute(delete(_jobs).where(_jobs.c.study_id == study_id))
            gone = connection.execute(delete(_studies).where(_studies.c.id == study_id)).rowcount > 0
        return ids if gone else None

    def forget_deleted(self) -> None:
        """Empty SQLite's write-ahead log, in which what was deleted is still to be read."""
        if self._engine.dialect.name == "sqlite":
            with self._writing, self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def studies_before(self, created_s: float) -> list[str]:
        """Ids of the studies that came before a time."""
        with self._engine.connect() as connection:
            return list(connection.execute(select(_studies.c.id).where(_studies.c.created_s < created_s)).scalars())

    def waiting_studies(self) -> list[Row]:
        """Studies to be read, the oldest first."""
        columns = (_studies.c.id, _studies.c.name, _studies.c.source, _studies.c.attempts)
        return self._rows(select(*columns).where(_studies.c.state == "queued").order_by(_studies.c.created_s).limit(50))

    # Jobs

    def add_job(self, job: Row) -> bool:
        """Accept a job; `job` has id, study_id, queries and threshold. False if its study is gone or failed."""
        with self._write() as connection:
            state = connection.execute(select(_studies.c.state).where(_studies.c.id == job["study_id"])).scalar()
            if state not in ("queued", "ready"):
                return False
            connection.execute(insert(_jobs).values(state="queued", attempts=0, created_s=time.time(), **job))
        return True

    def job(self, job_id: str) -> Row | None:
        """One job."""
        return next(iter(self._rows(select(_jobs).where(_jobs.c.id == job_id))), None)

    def jobs(self, limit: int, offset: int, study_id: str | None = None) -> list[Row]:
        """Jobs, the newest first, of one study or of all."""
        statement = select(_jobs).order_by(_jobs.c.created_s.desc()).limit(limit).offset(offset)
        return self._rows(statement if study_id is None else statement.where(_jobs.c.study_id == study_id))

    def end_job(
        self, job_id: str, state: str, *, document: Any = None, problem: str | None = None, size_bytes: int = 0
    ) -> bool:
        """A waiting job comes to its end; False if it was not waiting any more (cancelled, deleted)."""
        values = {"state": state, "problem": problem, "finished_s": time.time()}
        values |= {} if document is None else {"document": document}
        with self._write() as connection:
            waiting = (_jobs.c.id == job_id) & (_jobs.c.state == "queued")
            is_ended = connection.execute(update(_jobs).where(waiting).values(**values)).rowcount > 0
            if is_ended and size_bytes:
                _weigh(connection, job_id, size_bytes)
        return is_ended

    def weigh_job(self, job_id: str, size_bytes: int) -> None:
        """Its results have this size now."""
        with self._write() as connection:
            _weigh(connection, job_id, size_bytes)

    def count_attempt(self, study_ids: list[str], job_ids: list[str]) -> None:
        """The model process died while it worked on these."""
        with self._write() as connection:
            for table, ids in ((_studies, study_ids), (_jobs, job_ids)):
                if ids:
                    more = {"attempts": table.c.attempts + 1}
                    connection.execute(update(table).where(table.c.id.in_(ids)).values(**more))

    def delete_job(self, job_id: str) -> None:
        """Delete a job."""
        with self._write() as connection:
            _weigh(connection, job_id, 0)
            connection.execute(delete(_jobs).where(_jobs.c.id == job_id))

    def waiting_jobs(self) -> list[Row]:
        """Jobs whose study is ready, the oldest first."""
        columns = (
            _jobs.c.id, _jobs.c.study_id, _jobs.c.queries, _jobs.c.threshold, _jobs.c.attempts, _studies.c.name
        )  # fmt: skip
        statement = select(*columns).join_from(_jobs, _studies).where(_jobs.c.state == "queued")
        return self._rows(statement.where(_studies.c.state == "ready").order_by(_jobs.c.created_s).limit(200))

    def counts(self) -> dict[str, int]:
        """For limits and metrics: studies, their bytes, and how much waits."""
        waiting_jobs = select(func.count()).select_from(_jobs).where(_jobs.c.state == "queued").scalar_subquery()
        waiting = select(func.count()).select_from(_studies).where(_studies.c.state == "queued").scalar_subquery()
        size = func.coalesce(func.sum(_studies.c.size_bytes), 0)
        statement = select(func.count().label("studies"), size.label("stored_bytes")).select_from(_studies)
        statement = statement.add_columns(waiting_jobs.label("waiting_jobs"), waiting.label("waiting_studies"))
        return {name: int(value) for name, value in self._rows(statement)[0].items()}

    def jobs_of(self, study_id: str) -> int:
        """How many jobs a study has."""
        with self._engine.connect() as connection:
            statement = select(func.count()).select_from(_jobs).where(_jobs.c.study_id == study_id)
            return int(connection.execute(statement).scalar_one())


def _weigh(connection: Connection, job_id: str, size_bytes: int) -> None:
    """Change the size of a job's results, and of its study by as much."""
    found = connection.execute(select(_jobs.c.study_id, _jobs.c.size_bytes).where(_jobs.c.id == job_id)).first()
    if found is None or found.size_bytes == size_bytes:
        return
    connection.execute(update(_jobs).where(_jobs.c.id == job_id).values(size_bytes=size_bytes))
    total = _studies.c.size_bytes + (size_bytes - found.size_bytes)
    connection.execute(update(_studies).where(_studies.c.id == found.study_id).values(size_bytes=total))


_SQLITE_SETTINGS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "busy_timeout=30000")


def _sqlite_settings(connection: Any, _record: Any) -> None:
    """A commit is on the disk, deleted content is overwritten, and studies take their jobs along."""
    cursor = connection.cursor()
    for setting in _SQLITE_SETTINGS:
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
