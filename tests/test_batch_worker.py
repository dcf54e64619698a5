"""What goes on in a worker of the Ray engine, without Ray: batches, what is left of dead workers, refusals."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.test_batch import QUERIES, write_png
from tests.tiny_models import write_tiny_checkpoint

from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import Case, find_cases
from radglint.batch_files import mask_folder, read_lines
from radglint.batch_ray import reason_of
from radglint.batch_worker import Deaths, Outcome, Worker, pack_case, pack_outcome, unpack_case, unpack_outcome
from radglint.cli import main
from radglint.errors import InputError
from radglint.pipeline import Pipeline, load


class LocalWorker(Worker):
    """A worker whose count of the dead is an object of this process."""

    def _call(self, name: str, key: str) -> Any:
        return getattr(self.deaths, name)(key)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    return load(write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(3):
        write_png(folder / f"{k}.png", k)
    (folder / "bad.png").write_bytes(b"")
    return find_cases([str(folder)])


@pytest.fixture
def worker(pipeline, monkeypatch) -> LocalWorker:
    monkeypatch.chdir(os.getcwd())  # a worker changes the folder of its process
    return make(pipeline)


def make(pipeline: Pipeline, **changes: Any) -> LocalWorker:
    given = {
        "model": str(pipeline.model.folder), "fingerprint": pipeline.model.fingerprint, "device": "cpu",
        "queries": QUERIES, "options": BatchOptions(masks=True, show_progress=False), "at": os.getcwd(), "share": 2,
        "deaths": Deaths(),
    }  # fmt: skip
    return LocalWorker(**given | changes)


def answers(worker: Worker, cases: list[Case]) -> list[Outcome]:
    table = worker(pa.table({"place": list(range(len(cases))), "case": [pack_case(case) for case in cases]}))
    assert table["place"].to_pylist() == list(range(len(cases)))
    return [unpack_outcome(packed) for packed in table["outcome"].to_pylist()]


def test_a_worker_answers_as_the_run_does(worker, pipeline, cases, tmp_path) -> None:
    outcomes = answers(worker, cases)
    run_batch(pipeline, cases, QUERIES, tmp_path / "out", BatchOptions(masks=True))
    lines = {line["id"]: line for line in read_lines(tmp_path / "out" / "results.jsonl")}
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome.line == lines.get(case.id)
        folder = tmp_path / "out" / "masks" / mask_folder(case.id)
        written = sorted(folder.iterdir()) if folder.is_dir() else []
        assert outcome.masks == [(path.name, path.read_bytes()) for path in written]
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert [outcome.failure for outcome in outcomes if outcome.failure] == [(failure["kind"], failure["message"])]


def test_after_a_death_cases_are_asked_one_at_a_time(worker, cases, monkeypatch) -> None:
    usual = answers(worker, cases)
    asked: list[int] = []
    ask = worker._ask
    monkeypatch.setattr(worker, "_ask", lambda some: (asked.append(len(some)), ask(some))[1])
    worker.deaths.begin(f"batch of {cases[0].id}")
    assert answers(worker, cases) == usual
    assert asked == [1] * len(cases)


def test_a_case_at_which_workers_die_again_is_named(worker, cases) -> None:
    usual = answers(worker, cases)
    worker.deaths.begin(f"batch of {cases[0].id}")  # a worker died at the batch
    worker.deaths.begin(cases[2].id)  # and one at this case alone
    outcomes = answers(worker, cases)
    assert outcomes[:2] + outcomes[3:] == usual[:2] + usual[3:]
    assert outcomes[2].failure is not None
    assert outcomes[2].failure[0] == "worker died"
    assert f"{cases[2].path}: 2 workers died at it" in outcomes[2].failure[1]


def test_the_dead_are_counted() -> None:
    deaths = Deaths()
    assert [deaths.begin("a"), deaths.begin("b"), deaths.begin("a"), deaths.begin("a")] == [0, 0, 1, 2]
    deaths.end("a")
    assert deaths.begin("a") == 2
    deaths.end("b")
    assert deaths.begin("b") == 0


def test_a_worker_on_another_disk_is_refused(pipeline, tmp_path) -> None:
    with pytest.raises(InputError, match="not on every machine of the cluster"):
        make(pipeline, at=str(tmp_path / "none"))
    with pytest.raises(InputError, match="is another model on a machine of the cluster"):
        make(pipeline, fingerprint="other")


def test_paths_of_a_series_shrink_to_little() -> None:
    folder = Path("/archive/patient/study/series")
    case = Case("1.2.3", str(folder), "1.2.3", tuple(folder / f"IM{k:06d}.dcm" for k in range(300)), 300 * 512 * 512)
    assert unpack_case(pack_case(case)) == case
    assert len(pack_case(case)) < 3000


def test_names_that_are_no_utf_8_and_masks_travel_whole() -> None:
    name = os.fsdecode(b"caf\xe9 \xe8\x82\xba.png")
    case = Case(name, f"/in/{name}", modality="CXR")
    assert unpack_case(pack_case(case)) == case
    line = {"id": name, "findings": [{"score": 0.1 + 0.2, "peak": None, "boxes": [[0, 1], [2, 3]]}]}
    for outcome in (
        Outcome(line, [("1_nodule.nii.gz", bytes(range(256))), ("2_mass.png", b"")]),
        Outcome(failure=("bad input", f"/in/{name}: empty")),
    ):
        assert unpack_outcome(pack_outcome(outcome)) == outcome


REPORT = """The actor died because of an error raised in its creation task, ray::Worker.__init__() (pid=1, ip=127.0.0.1)
  File "worker.py", line 78, in __init__
    raise CheckpointError(f"model {text!r}: unknown name")
radglint.errors.CheckpointError: model '/nowhere': unknown name and no such folder; known models: nano

The above exception was the direct cause of the following exception:
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, see the manual.
"""


def test_what_a_worker_says_is_found_in_what_ray_says() -> None:
    found = reason_of(RuntimeError(REPORT))
    assert found == "CheckpointError: model '/nowhere': unknown name and no such folder; known models: nano"
    assert reason_of(ValueError("no\n node left")) == "ValueError: no node left"


def test_without_ray_the_command_says_what_to_install(cases, tmp_path, monkeypatch, capsys) -> None:
    sheet, out = tmp_path / "q.txt", tmp_path / "out"
    sheet.write_text("nodule\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    command = ["batch", str(tmp_path / "in"), "--queries", str(sheet), "--out", str(out), "--engine", "ray"]
    assert main(command) == 2
    assert 'pip install "radglint[ray]"' in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--workers", "0"]) == 2
