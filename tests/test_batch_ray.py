"""`radglint batch --engine ray`: a local Ray cluster gives what one process gives, also when workers are killed."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deadly_cases import Deadly
from tests.dicom_files import phantom_hu, write_ct_series
from tests.test_batch import QUERIES, contents, write_nifti, write_png
from tests.tiny_models import write_tiny_checkpoint

from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import find_cases
from radglint.batch_files import read_lines
from radglint.batch_ray import RayEngine
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
def test_killed_workers_change_nothing_but_the_case_that_kills_them(tmp_path) -> None:
    studies = tmp_path / "in"
    studies.mkdir()
    for k in range(6):
        write_png(studies / f"{k}.png", k)
    write_nifti(studies / "scan.nii.gz", phantom_hu().transpose(2, 1, 0))
    write_ct_series(studies / "ct", SeriesInstanceUID="1.2.3")
    (studies / "bad.png").write_bytes(b"no picture")
    pipeline = load(write_tiny_checkpoint(tmp_path / "tiny"), device="cpu")
    cases = find_cases([str(studies)])
    deadly = Deadly("deadly", str(studies / "3.png"))
    options = BatchOptions(masks=True, show_progress=False)
    run_batch(pipeline, cases, QUERIES, tmp_path / "plain", options)

    mixed = [*cases[:4], deadly, *cases[4:]]
    summary = run_batch(pipeline, mixed, QUERIES, tmp_path / "ray", options, RayEngine(workers=2, device="cpu"))
    assert (summary.answered, summary.failed) == (8, 2)
    plain, spread = contents(tmp_path / "plain"), contents(tmp_path / "ray")
    failed = {line["id"]: line for line in read_lines(tmp_path / "ray" / "failures.jsonl")}
    assert failed["deadly"]["kind"] == "worker died"
    assert "2 workers died at it" in failed["deadly"]["message"]
    assert failed["bad.png"] == next(read_lines(tmp_path / "plain" / "failures.jsonl"))
    for name in ("run.json", "failures.jsonl"):
        del plain[name], spread[name]
    assert spread == plain
