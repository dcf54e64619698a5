"""The server's data base on SQLite and on a real PostgreSQL, and a whole server on the latter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import running_postgres
from radglint.errors import ConfigError
from radglint.server import database as module
from radglint.server.database import Database
from radglint.server.folders import new_id
from server_process import ServerProcess, png


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'a.sqlite'}" if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    for row in opened.studies(500, 0):
        opened.delete_study(row["id"])
    yield opened
    opened.close()


def add_study(database: Database, name: str = "é\u4e2d.png") -> str:
    study_id = new_id()
    database.add_study({"id": study_id, "name": name, "source": {"kind": "upload"}, "size_bytes": 3 * 2**32})
    return study_id


def add_job(database: Database, study_id: str, query: str = "nodule \U0001fac1") -> str:
    job_id = new_id()
    assert database.add_job({"id": job_id, "study_id": study_id, "queries": [query], "threshold": 0.25})
    return job_id


def test_what_was_accepted_is_there_after_a_restart(database: Database, url: str) -> None:
    study_id = add_study(database)
    job_id = add_job(database, study_id)
    database.close()
    again = Database(url)
    study, job = again.study(study_id), again.job(job_id)
    assert study is not None
    assert job is not None
    assert (study["name"], study["state"], study["size_bytes"]) == ("é\u4e2d.png", "queued", 3 * 2**32)
    assert (job["queries"], job["threshold"], job["state"]) == (["nodule \U0001fac1"], 0.25, "queued")
    assert again.is_alive()
    again.close()


def test_a_job_waits_for_its_study_and_ends_once(database: Database) -> None:
    study_id = add_study(database)
    job_id = add_job(database, study_id)
    assert [row["id"] for row in database.waiting_studies()] == [study_id]
    assert database.waiting_jobs() == []
    assert database.change_study(study_id, state="ready", image={"shape": [1, 2]})
    assert [row["id"] for row in database.waiting_jobs()] == [job_id]
    assert database.counts() == {"studies": 1, "stored_bytes": 3 * 2**32, "waiting_jobs": 1, "waiting_studies": 0}
    assert database.end_job(job_id, "done", document={"findings": [1.5, None]})
    assert not database.end_job(job_id, "cancelled")
    row = database.job(job_id)
    assert row is not None
    assert (row["state"], row["document"]) == ("done", {"findings": [1.5, None]})
    assert database.jobs_of(study_id) == 1
    assert [r["id"] for r in database.jobs(10, 0, study_id)] == [job_id]
    assert database.jobs(10, 1) == []


def test_a_study_takes_its_jobs_along(database: Database) -> None:
    study_id = add_study(database)
    jobs = {add_job(database, study_id), add_job(database, study_id)}
    assert set(database.fail_study(study_id, "broken")) == jobs
    failed = database.job(min(jobs))
    assert failed is not None
    assert (failed["state"], failed["problem"]) == ("failed", "broken")
    assert not database.add_job({"id": new_id(), "study_id": study_id, "queries": ["x"], "threshold": None})
    assert set(database.delete_study(study_id) or []) == jobs
    assert database.delete_study(study_id) is None
    assert database.job(min(jobs)) is None
    assert not database.change_study(study_id, state="ready")


def test_old_studies_and_attempts_are_found(database: Database) -> None:
    study_id = add_study(database)
    job_id = add_job(database, study_id)
    database.count_attempt([study_id], [job_id])
    database.count_attempt([], [job_id])
    assert database.waiting_studies()[0]["attempts"] == 1
    job = database.job(job_id)
    assert job is not None
    assert job["attempts"] == 2
    assert database.studies_before(time.time() + 1) == [study_id]
    assert database.studies_before(time.time() - 60) == []


def test_many_threads_write_at_once(database: Database) -> None:
    study_id = add_study(database)
    threads = [threading.Thread(target=lambda: [add_job(database, study_id) for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.jobs_of(study_id) == 40


def test_another_version_is_refused(database: Database, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCHEMA_VERSION", 9)
    with pytest.raises(ConfigError, match="version 2"):
        Database(url)


def test_results_count_for_their_study(database: Database) -> None:
    study_id, kept = add_study(database), 3 * 2**32
    one, other = add_job(database, study_id), add_job(database, study_id)
    assert database.end_job(one, "done", document={}, size_bytes=1000)
    assert not database.end_job(one, "done", document={}, size_bytes=5000)
    database.weigh_job(one, 2**33)
    database.weigh_job(other, 70)
    database.weigh_job(new_id(), 70)  # deleted meanwhile
    assert database.counts()["stored_bytes"] == kept + 2**33 + 70
    database.delete_job(one)
    assert database.counts()["stored_bytes"] == kept + 70
    database.delete_study(study_id)
    assert database.counts()["stored_bytes"] == 0


def test_a_data_base_of_version_1_is_brought_up_to_date(database: Database, url: str) -> None:
    job_id = add_job(database, add_study(database))
    with database._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE radglint_jobs DROP COLUMN size_bytes")
        connection.exec_driver_sql("UPDATE radglint_about SET version = 1")
    again = Database(url)
    job = again.job(job_id)
    assert job is not None
    assert (job["queries"], job["size_bytes"]) == (["nodule \U0001fac1"], 0)
    again.weigh_job(job_id, 5)
    again.close()
    Database(url).close()


def test_errors_do_not_show_the_password() -> None:
    with pytest.raises(ConfigError) as caught:
        Database("postgresql+nodriver://me:secretword@127.0.0.1:1/none")
    assert "secretword" not in str(caught.value)
    assert "--database" in str(caught.value)


def test_deleted_names_are_not_left_in_the_file(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    study_id = add_study(database, "Meier^Anna-to-be-deleted")
    add_job(database, study_id, "question-to-be-deleted")
    database.delete_study(study_id)
    database.forget_deleted()
    database.close()
    assert not [path for path in tmp_path.iterdir() if b"to-be-deleted" in path.read_bytes()]


def test_a_server_on_postgresql_goes_on_after_a_kill(postgres: str, tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "data", "--database", postgres)
    try:
        study_id = first.client.post("/api/v1/studies", files={"file": ("a.png", png())}).json()["id"]
        jobs = [
            first.client.post("/api/v1/jobs", json={"study_id": study_id, "queries": [query]}).json()["id"]
            for query in ("nodule", "mass")
        ]
    finally:
        first.kill()
    second = ServerProcess(tmp_path / "data", "--database", postgres)
    try:
        assert [second.wait(f"/api/v1/jobs/{job_id}", ("done", "failed"))["state"] for job_id in jobs] == ["done"] * 2
        assert second.ask(study_id, "nodule")["state"] == "done"
    finally:
        assert second.stop() == 0
