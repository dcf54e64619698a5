"""`radglint batch --merge`: parts that were worked on apart end as the run that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.dicom_files import write_ct_series, write_radiograph
from tests.test_batch import QUERIES, contents, write_png
from tests.tiny_models import write_tiny_checkpoint

from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import look_for_cases, shard_of
from radglint.batch_files import locked, read_lines
from radglint.batch_merge import merge_runs
from radglint.cli import main
from radglint.errors import InputError
from radglint.pipeline import Pipeline, load

PARTS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipeline(model) -> Pipeline:
    return load(model, device="cpu")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Seven cases that can be answered, three that cannot, and a report."""
    folder = tmp_path_factory.mktemp("studies")
    for k in range(6):
        write_png(folder / f"{k}.png", k)
    write_ct_series(folder / "ct", SeriesInstanceUID="1.2.3")
    for k in range(2):
        (folder / f"bad{k}.png").write_bytes(b"no picture")
    (folder / "caf\u00e9 \u201dx\u201d.png").write_bytes(b"")
    write_radiograph(folder / "sr.dcm", np.zeros((8, 8), np.uint16), kind="OT", Modality="SR")
    return folder


@pytest.fixture(scope="module")
def runs(studies, pipeline, tmp_path_factory) -> Path:
    """A folder with the run over all cases, `whole`, and its parts, `1` to `3`."""
    folder, found = tmp_path_factory.mktemp("runs"), look_for_cases([str(studies)])
    run_batch(pipeline, found.cases, QUERIES, folder / "whole", BatchOptions(masks=True, skipped=found.skipped))
    for part in range(1, PARTS + 1):
        own = shard_of(found.cases, part, PARTS)
        assert own
        shard = f"{part}/{PARTS}"
        options = BatchOptions(masks=True, skipped=found.skipped, shard=shard, whole=found.cases)
        run_batch(pipeline, own, QUERIES, folder / str(part), options)
    return folder


@pytest.fixture
def copies(runs, tmp_path) -> list[Path]:
    """The parts, to be spoilt."""
    return [Path(shutil.copytree(runs / str(part), tmp_path / str(part))) for part in range(1, PARTS + 1)]


def test_parts_end_as_the_run_that_was_not_parted(runs, studies, pipeline, tmp_path) -> None:
    parts = [runs / name for name in ("3", "1", "2")]
    before = [contents(part) for part in parts]
    summary = merge_runs(parts, tmp_path / "out", parquet=True)
    assert (summary.answered, summary.failed) == (7, 3)
    assert [contents(part) for part in parts] == before
    merged, whole = contents(tmp_path / "out"), contents(runs / "whole")
    assert merged == {name: content for name, content in whole.items() if name != ".lock"}
    assert (tmp_path / "out" / "results.parquet").is_file()
    found = look_for_cases([str(studies)])
    options = BatchOptions(masks=True, skipped=found.skipped, retry_failed=True)
    assert run_batch(pipeline, found.cases, QUERIES, tmp_path / "out", options).failed == 3  # it can be gone on from
    assert contents(tmp_path / "out") == whole


def test_a_part_that_is_missing_doubled_or_no_part_is_refused(runs, copies, tmp_path) -> None:
    out = tmp_path / "out"
    wrong = {
        "part 2/3 is missing": [copies[0], copies[2]],
        "is part 1/3, and .* does not go with it": [*copies, copies[0]],
        "holds a whole run, not a part": [runs / "whole"],
        r"no run\.json in it": [*copies, tmp_path],
    }
    for words, folders in wrong.items():
        with pytest.raises(InputError, match=words):
            merge_runs(folders, out)
    assert not out.exists()


def test_parts_that_were_asked_something_else_are_refused(copies, tmp_path) -> None:
    about = json.loads((copies[1] / "run.json").read_text(encoding="utf-8"))
    for name, value in (
        ("queries", ["other"]),
        ("fingerprint", "f"),
        ("threshold", 0.3),
        ("masks", False),
        ("whole", {}),
    ):
        (copies[1] / "run.json").write_text(json.dumps(about | {name: value}), encoding="utf-8")
        with pytest.raises(InputError, match=f"differs from .* in {name}; parts of one run ask the same"):
            merge_runs(copies, tmp_path / "out")
    (copies[1] / "run.json").write_text(json.dumps(about | {"shard": "2/4"}), encoding="utf-8")
    with pytest.raises(InputError, match="is part 2/4"):
        merge_runs(copies, tmp_path / "out")


def test_a_part_that_is_not_finished_or_at_work_is_refused(copies, tmp_path) -> None:
    with locked(copies[2]), pytest.raises(InputError, match="a run is going on in it"):
        merge_runs(copies, tmp_path / "out")
    path = next(part / "results.jsonl" for part in copies if (part / "results.jsonl").stat().st_size)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"cases are done; run part ./3 to its end, then merge"):
        merge_runs(copies, tmp_path / "out")


def test_lines_that_are_doubled_or_of_no_case_are_refused(copies, tmp_path) -> None:
    part = next(part for part in copies if len(list(read_lines(part / "results.jsonl"))) > 1)
    lines = (part / "results.jsonl").read_bytes().splitlines(keepends=True)
    (part / "results.jsonl").write_bytes(b"".join([lines[0], *lines[:-1]]))
    with pytest.raises(InputError, match="is there twice"):
        merge_runs(copies, tmp_path / "out")
    strange = json.dumps(json.loads(lines[-1]) | {"id": "strange"}).encode() + b"\n"
    (part / "results.jsonl").write_bytes(b"".join([*lines[:-1], strange]))
    with pytest.raises(InputError, match="'strange' is of no case of this part"):
        merge_runs(copies, tmp_path / "out")
    first = json.dumps({"id": json.loads(lines[0])["id"], "path": "x", "kind": "k", "message": "m"}).encode() + b"\n"
    failures = (part / "failures.jsonl").read_bytes()
    (part / "results.jsonl").write_bytes(b"".join(lines[:-1]))
    (part / "failures.jsonl").write_bytes(failures + first)
    with pytest.raises(InputError, match="1 have no line and 1 have two"):
        merge_runs(copies, tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(runs, tmp_path) -> None:
    parts = [runs / str(part) for part in range(1, PARTS + 1)]
    out = tmp_path / "out"
    out.mkdir()
    merge_runs(parts, out)  # empty will do
    before = contents(out)
    with pytest.raises(InputError, match="is not empty"):
        merge_runs(parts, out)
    assert contents(out) == before


def test_nothing_is_left_of_a_merge_that_fails(copies, tmp_path) -> None:
    part = next(part for part in copies if (part / "results.jsonl").stat().st_size)
    shutil.rmtree(part / "masks")
    with pytest.raises(InputError, match="cannot be written"):
        merge_runs(copies, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


def test_command_line(studies, model, tmp_path, capsys) -> None:
    sheet = tmp_path / "q.txt"
    sheet.write_text("nodule\n", encoding="utf-8")
    command = ["batch", str(studies), "--queries", str(sheet), "--model", str(model)]
    for part in (1, 2):
        assert main([*command, "--out", str(tmp_path / f"out_{part}"), "--shard", f"{part}/2"]) == 0
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert (
        main(["batch", "--merge", *(str(tmp_path / f"out_{part}") for part in (1, 2)), "--out", f"{tmp_path}/m"]) == 0
    )
    said = capsys.readouterr().out
    assert f"7 of 10 cases answered in {tmp_path}/m, 3 failed: see {tmp_path}/m/failures.jsonl" in said
    assert f"1 DICOM objects without an image to ask were left aside: see {tmp_path}/m/skipped.jsonl" in said
    merged, whole = contents(tmp_path / "m"), contents(tmp_path / "whole")
    assert merged == {name: whole[name] for name in whole if name not in (".lock", ".headers.jsonl")}
    assert main(["batch", str(studies), "--out", str(tmp_path / "n")]) == 2
    assert "--queries: not given" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "n"), "--workers", "2"]) == 2
    assert "--workers: is for --engine ray" in capsys.readouterr().err
