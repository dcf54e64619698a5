"""`radglint batch --engine ray`, the command itself: a local Ray cluster gives what one process gives."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.deadly_cases import DEADLY, DeadlyWorker
from tests.dicom_files import phantom_hu, write_ct_series
from tests.test_batch import QUERIES, contents, write_nifti, write_png
from tests.tiny_models import write_tiny_checkpoint

from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import find_cases
from radglint.batch_files import read_lines
from radglint.batch_headers import HEADERS
from radglint.cli import main
from radglint.pipeline import load

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Data warns of its own settings
]


@pytest.fixture
def ray_settings(monkeypatch) -> Iterator[None]:
    """What Ray leaves goes to a folder that is removed; its path is short, for there will be sockets in it."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")  # of the workers
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 unless told; on a busy machine they would never start
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one is kept in the home folder
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray_settings")
def test_killed_workers_change_nothing_but_the_case_that_kills_them(tmp_path, monkeypatch, capsys) -> None:
    studies, sheet = tmp_path / "in", tmp_path / "queries.txt"
    studies.mkdir()
    for k in range(6):
        write_png(studies / f"{k}.png", k)
    write_nifti(studies / "scan.nii.gz", phantom_hu().transpose(2, 1, 0))
    write_ct_series(studies / "ct", SeriesInstanceUID="1.2.3")
    (studies / "bad.png").write_bytes(b"no picture")
    sheet.write_text("\n".join(QUERIES), encoding="utf-8")
    model = write_tiny_checkpoint(tmp_path / "tiny")
    cases = find_cases([str(studies)])
    run_batch(load(model, device="cpu"), cases, QUERIES, tmp_path / "plain", BatchOptions(masks=True))

    write_png(studies / DEADLY, 3)
    monkeypatch.setattr("radglint.batch_ray.Worker", DeadlyWorker)
    command = ["batch", str(studies), "--queries", str(sheet), "--out", str(tmp_path / "ray"), "--model", str(model)]
    command += ["--masks", "--parquet", "--engine", "ray", "--workers", "2", "--device", "cpu"]
    assert main(command) == 0
    assert f"8 of 10 cases answered in {tmp_path / 'ray'}, 2 failed" in capsys.readouterr().out
    plain, spread = contents(tmp_path / "plain"), contents(tmp_path / "ray")
    failed = {line["id"]: line for line in read_lines(tmp_path / "ray" / "failures.jsonl")}
    assert failed[DEADLY]["kind"] == "worker died"
    assert "2 workers died at it" in failed[DEADLY]["message"]
    assert failed["bad.png"] == next(read_lines(tmp_path / "plain" / "failures.jsonl"))
    for name in ("run.json", "failures.jsonl"):
        del plain[name], spread[name]
    del spread[HEADERS]  # the command keeps what its search has read
    assert spread == plain
    assert pq.read_table(tmp_path / "ray" / "results.parquet").num_rows == 8 * len(QUERIES)
