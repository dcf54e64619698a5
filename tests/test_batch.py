"""`radglint batch`: every case once, failures named, and a killed run that ends as if it had never been killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tests.dicom_files import phantom_hu, write_ct_series, write_radiograph
from tests.tiny_models import write_tiny_checkpoint

from radglint import batch, batch_files
from radglint.batch import BatchOptions, run_batch
from radglint.batch_cases import Case, find_cases, shard_of
from radglint.batch_files import mask_folder, read_lines
from radglint.batch_memory import MemoryBudget, estimate_bytes
from radglint.batch_queries import read_queries
from radglint.cli import main
from radglint.errors import ConfigError, InputError, QueryError
from radglint.image import MedicalImage
from radglint.pipeline import Pipeline, load

ROOT = Path(__file__).resolve().parents[1]
QUERIES = ["nodule", "large pleural effusion", "no pneumothorax"]
GOOD = ["1.2.3.4.7", "1.2.3.4.8", "chest.png", "dx.dcm", "scan.nii.gz", "sub/other.png"]
BAD = {
    "empty.png": "unreadable image",
    "nan.nii.gz": "unreadable image",
    "text.png": "unreadable image",
    "truncated.dcm": "unreadable image",
    "1.2.3.4.9": "bad geometry",
}


def write_png(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (56, 48)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_nifti(path: Path, hu: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(hu.astype(np.float32), np.diag([-1.5, -1.5, 2.0, 1.0])), path)  # type: ignore[attr-defined]
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Six cases that can be answered, five that cannot and a report, all in one folder and its subfolders."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir()
    write_png(folder / "chest.png", 1)
    write_png(folder / "sub" / "other.png", 2)
    write_radiograph(folder / "dx.dcm", rng.integers(0, 4000, (64, 56)).astype(np.uint16), bits=12)
    hu = phantom_hu().transpose(2, 1, 0)
    write_nifti(folder / "scan.nii.gz", hu)
    write_ct_series(folder / "ct" / "a", SeriesInstanceUID="1.2.3.4.7")
    write_ct_series(folder / "ct" / "a", prefix="late", SeriesInstanceUID="1.2.3.4.8", SeriesNumber=3)
    write_ct_series(folder / "ct" / "gap", SeriesInstanceUID="1.2.3.4.9", skip=(3, 4, 5, 6))
    whole = write_radiograph(folder / "truncated.dcm", rng.integers(0, 4000, (64, 56)).astype(np.uint16), bits=12)
    whole.write_bytes(whole.read_bytes()[:-3000])
    write_radiograph(folder / "report.dcm", np.zeros((64, 56), np.uint16), kind="OT", Modality="SR")
    (folder / "text.png").write_text("a note, not a picture\n", encoding="utf-8")
    (folder / "empty.png").write_bytes(b"")
    (folder / ".hidden").write_text("x", encoding="utf-8")
    holed = hu.astype(np.float32)
    holed[5, 5, 5] = np.nan
    write_nifti(folder / "nan.nii.gz", holed)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipeline(model) -> Pipeline:
    return load(model, device="cpu")


@pytest.fixture(scope="module")
def uninterrupted(studies, pipeline, tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped, with masks."""
    out = tmp_path_factory.mktemp("whole") / "out"
    summary = run_batch(pipeline, find_cases([str(studies)]), QUERIES, out, BatchOptions(masks=True, parquet=True))
    assert (summary.answered, summary.failed) == (len(GOOD), len(BAD))
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run that can be compared, by its path."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".parquet")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def ids(path: Path) -> list[str]:
    return [line["id"] for line in read_lines(path)]


def test_every_case_is_answered_or_named(uninterrupted, studies) -> None:
    answered, failed = ids(uninterrupted / "results.jsonl"), list(read_lines(uninterrupted / "failures.jsonl"))
    assert sorted(answered) == sorted(GOOD)
    assert {line["id"]: line["kind"] for line in failed} == BAD
    order = [case.id for case in find_cases([str(studies)])]
    assert "report.dcm" not in order
    assert answered == [name for name in order if name in GOOD]
    for line in failed:
        assert str(studies) in line["message"]
        assert "\n" not in line["message"]


def test_answers_are_those_of_ask(uninterrupted, studies, pipeline) -> None:
    lines = {line["id"]: line for line in read_lines(uninterrupted / "results.jsonl")}
    direct = {"chest.png": studies / "chest.png", "scan.nii.gz": studies / "scan.nii.gz"}
    direct |= {"1.2.3.4.8": studies / "ct" / "a"}
    for name, path in direct.items():
        findings = pipeline.ask(path, QUERIES, series="1.2.3.4.8" if path.is_dir() else None)
        for said, finding, mask_name in zip(lines[name]["findings"], findings, findings.mask_names, strict=True):
            assert said["probability"] == pytest.approx(finding.probability, abs=2e-6)
            assert said["decision"] == finding.decision
            assert said["mask"] == f"masks/{mask_folder(name)}/{mask_name}"
            mask = _read_mask(uninterrupted / said["mask"])
            np.testing.assert_array_equal(mask, finding.mask())
    assert lines["1.2.3.4.8"]["model"]["fingerprint"] == pipeline.model.fingerprint


def _read_mask(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture) > 0
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0) > 0  # type: ignore[attr-defined]


def test_parquet_holds_a_row_for_each_case_and_query(uninterrupted) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(uninterrupted / "results.parquet").to_pylist()
    lines = list(read_lines(uninterrupted / "results.jsonl"))
    flat = [
        (line["id"], said["query"], said["probability"], said["decision"])
        for line in lines
        for said in line["findings"]
    ]
    assert [(row["id"], row["query"], row["probability"], row["decision"]) for row in rows] == flat
    assert {row["area_px"] is None for row in rows if row["modality"] == "CT"} == {True}
    boxes = [said["boxes"] for line in lines for said in line["findings"]]
    assert [row["boxes"] for row in rows] == boxes


KILLED = """
import os, signal, sys, time
from pathlib import Path
import radglint
from radglint import batch, batch_files, writing
from radglint.batch_cases import Case, find_cases
from radglint.pipeline import load

studies, model, out, third = sys.argv[1:5]
queries = sys.argv[5:]
reading = Path(out).with_name("reading")
pipeline = load(model, device="cpu")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before_the_line(self, line, real=batch_files.RunFolder.add_result):
    die() if len(self.answered) == 1 else real(self, line)

def half_a_line(self, line, real=batch_files.RunFolder.add_result):
    if len(self.answered) == 2:
        self._files["results.jsonl"].write(batch_files.encode_line(line)[:40])
        self._files["results.jsonl"].flush()
        die()
    real(self, line)

def for_ever(case, real=Case.read):
    if case.id == third:
        reading.touch()
        time.sleep(600)
    return real(case)

def half_the_masks(findings, folder, real=batch.write_masks):
    if len(list(folder.parent.iterdir())) == 4:
        (folder / findings.mask_names[0]).write_bytes(b"half")
        die()
    real(findings, folder)

def while_sorting(path, order):
    die()

moments = [
    (batch_files.RunFolder, "add_result", before_the_line), (batch_files.RunFolder, "add_result", half_a_line),
    (Case, "read", for_ever), (batch, "write_masks", half_the_masks), (batch_files, "_sort", while_sorting),
]
for owner, name, replacement in moments:
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        signal.alarm(300)  # whatever becomes of the test, it ends
        setattr(owner, name, replacement)
        options = batch.BatchOptions(masks=True, show_progress=False)
        batch.run_batch(pipeline, find_cases([studies]), queries, Path(out), options)
        os._exit(0)
    while replacement is for_ever and not reading.exists():
        time.sleep(0.01)
    if replacement is for_ever:
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, len(list(batch_files.read_lines(Path(out, "results.jsonl")))), flush=True)
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    studies, model, pipeline, uninterrupted, tmp_path
) -> None:
    out = tmp_path / "out"
    third = ids(uninterrupted / "results.jsonl")[2]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(studies), str(model), str(out), third, *QUERIES], text=True,
        capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.stdout.split("\n")[:5] == ["-9 1", "-9 2", "-9 2", "-9 3", "-9 6"], run.stderr
    asked: list[str] = []
    read = Case.read

    def noted(case: Case) -> MedicalImage:
        asked.append(case.id)
        return read(case)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "read", noted)
        run_batch(pipeline, find_cases([str(studies)]), QUERIES, out, BatchOptions(masks=True))
    assert asked == []  # the last kill came after the last case
    assert contents(out) == contents(uninterrupted)


def test_a_cut_line_and_masks_without_a_line_are_made_again(studies, pipeline, uninterrupted, tmp_path) -> None:
    out = tmp_path / "out"
    cases = find_cases([str(studies)])
    run_batch(pipeline, cases, QUERIES, out, BatchOptions(masks=True))
    results = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(results[: len(results) // 2])
    (out / "masks" / ".radglint-left").mkdir()
    (out / "masks" / mask_folder(GOOD[-1]) / "01_nodule_mask.png").write_bytes(b"damaged")
    run_batch(pipeline, cases, QUERIES, out, BatchOptions(masks=True))
    assert contents(out) == contents(uninterrupted)


def test_failures_are_tried_again_only_when_asked(pipeline, tmp_path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_png(folder / "a.png", 1)
    (folder / "b.png").write_bytes(b"")
    cases = find_cases([str(folder)])
    assert run_batch(pipeline, cases, QUERIES, out).failed == 1
    write_png(folder / "b.png", 2)
    assert run_batch(pipeline, cases, QUERIES, out).failed == 1
    summary = run_batch(pipeline, cases, QUERIES, out, BatchOptions(retry_failed=True))
    assert (summary.answered, summary.failed) == (2, 0)
    assert ids(out / "results.jsonl") == ["a.png", "b.png"]
    assert (out / "failures.jsonl").read_bytes() == b""


def test_another_run_in_the_same_folder_is_refused(pipeline, tmp_path) -> None:
    png, out = write_png(tmp_path / "a.png", 1), tmp_path / "out"
    cases = find_cases([str(png)])
    run_batch(pipeline, cases, QUERIES, out)
    before = contents(out)
    other = load(write_tiny_checkpoint(tmp_path / "other", seed=5), device="cpu")
    with pytest.raises(InputError, match="differs in fingerprint"):
        run_batch(other, cases, QUERIES, out)
    with pytest.raises(InputError, match="differs in queries"):
        run_batch(pipeline, cases, QUERIES[:1], out)
    with pytest.raises(InputError, match="differs in num_cases, cases"):
        run_batch(pipeline, [*cases, Case("b", "b.png")], QUERIES, out)
    with pytest.raises(InputError, match="differs in masks"):
        run_batch(pipeline, cases, QUERIES, out, BatchOptions(masks=True))
    assert contents(out) == before
    (out / "run.json").unlink()
    with pytest.raises(InputError, match=r"holds results, but no run\.json"):
        run_batch(pipeline, cases, QUERIES, out)


def test_two_runs_at_once_in_one_folder_are_refused(pipeline, tmp_path) -> None:
    about = batch_files.describe_run([], QUERIES, model="m", fingerprint="f", threshold=None, shard="all", masks=False)
    with (
        batch_files.open_run(tmp_path, about),
        pytest.raises(InputError, match="a run is going on in it"),
        batch_files.open_run(tmp_path, about),
    ):
        pass


def test_shards_are_a_partition(studies) -> None:
    cases = find_cases([str(studies)])
    parts = [shard_of(cases, part, 3) for part in (1, 2, 3)]
    assert sorted(case.id for part in parts for case in part) == sorted(case.id for case in cases)
    assert all(len(part) < len(cases) for part in parts)


def test_inputs_of_every_kind(studies, tmp_path) -> None:
    manifest = tmp_path / "m.jsonl"
    rows = [{"image": str(studies / "chest.png"), "id": "row 1", "modality": "CXR"}]
    rows += [{"image": str(studies / "sub" / "other.png"), "id": "row 2", "modality": "CT"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = find_cases([str(manifest), f"{studies}/*.png", str(studies / "dx.dcm"), f"{studies}/ct/*"])
    assert [case.id for case in found] == [
        "row 1", "row 2", "chest.png", "empty.png", "text.png", "dx.dcm", "1.2.3.4.8", "1.2.3.4.7", "1.2.3.4.9"
    ]  # fmt: skip
    assert len(found[-1].files) == 8
    assert [case.id for case in find_cases([str(studies), str(studies)])] == [c.id for c in find_cases([str(studies)])]
    with pytest.raises(InputError, match="the manifest says CT, this is CXR"):
        found[1].read()


def test_names_that_clash_become_whole_paths(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "a.png", 1)
    found = find_cases([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [case.id for case in found] == [f"{tmp_path}/one/a.png", f"{tmp_path}/two/a.png"]


def test_inputs_that_are_not_there(tmp_path) -> None:
    for given, words in (("nothing", "no such file"), ("*.png", "no file that matches"), ("", "no file there")):
        with pytest.raises(InputError, match=words):
            find_cases([f"{tmp_path}/{given}"])


def test_results_inside_the_input_are_no_cases(pipeline, tmp_path) -> None:
    write_png(tmp_path / "a.png", 1)
    out = tmp_path / "out"
    for _ in range(2):
        cases = find_cases([str(tmp_path)], leave_out=out)
        assert [case.id for case in cases] == ["a.png"]
        run_batch(pipeline, cases, QUERIES, out)


def test_a_slice_without_a_header_fails_its_series_and_is_named(pipeline, tmp_path) -> None:
    paths = write_ct_series(tmp_path / "ct", SeriesInstanceUID="1.2.3")
    paths[-1].write_bytes(b"")  # at the end of the stack, where no gap tells
    cases = find_cases([str(tmp_path / "ct")])
    assert [case.id for case in cases] == ["1.2.3"]
    run_batch(pipeline, cases, QUERIES, tmp_path / "out")
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert paths[-1].name in failure["message"]


def test_a_case_that_does_not_fit_is_refused_by_its_header(studies, pipeline, tmp_path) -> None:
    cases = [
        case for case in find_cases([str(studies)]) if case.id in ("chest.png", "1.2.3.4.7", "scan.nii.gz", "dx.dcm")
    ]
    needed = {case.id: estimate_bytes(case) for case in cases}
    assert needed == {"chest.png": 56 * 48 * 20, "dx.dcm": 64 * 56 * 20, "1.2.3.4.7": 76800, "scan.nii.gz": 76800}
    summary = run_batch(pipeline, cases, QUERIES, tmp_path / "out", BatchOptions(memory_bytes=72_000))
    assert (summary.answered, summary.failed) == (2, 2)
    assert {line["kind"] for line in read_lines(tmp_path / "out" / "failures.jsonl")} == {"too large"}


def test_memory_that_runs_out_once_is_tried_again_alone(studies, pipeline, tmp_path, monkeypatch) -> None:
    cases = [case for case in find_cases([str(studies)]) if case.id in ("chest.png", "1.2.3.4.7", "sub/other.png")]
    read, tried, sizes = Case.read, [], []

    def short(case: Case) -> MedicalImage:
        tried.append(case.id)
        sizes.append(pipeline.model.slices_at_once)  # type: ignore[attr-defined]
        if case.id == "sub/other.png" or (tried.count(case.id) == 1 and case.id == "1.2.3.4.7"):
            raise MemoryError
        return read(case)

    monkeypatch.setattr(Case, "read", short)
    summary = run_batch(pipeline, cases, QUERIES, tmp_path / "out")
    assert (summary.answered, summary.failed) == (2, 1)
    assert tried.count("sub/other.png") == tried.count("1.2.3.4.7") == 2
    assert set(sizes[-2:]) == {1}
    assert pipeline.model.slices_at_once == 8  # type: ignore[attr-defined]
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], failure["kind"]) == ("sub/other.png", "memory")


def test_memory_errors_of_all_kinds_are_known() -> None:
    wrapped = InputError("truncated or damaged NIfTI")
    wrapped.__cause__ = MemoryError()
    assert batch.is_memory_error(wrapped)
    assert batch.is_memory_error(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert batch.is_memory_error(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not batch.is_memory_error(RuntimeError("shape"))


def test_a_case_that_hangs_is_given_up_and_the_rest_goes_on(studies, pipeline, tmp_path, monkeypatch) -> None:
    cases = [case for case in find_cases([str(studies)]) if case.id in ("chest.png", "sub/other.png")]
    read, release = Case.read, threading.Event()

    def hanging(case: Case) -> MedicalImage:
        if case.id == "chest.png":
            release.wait(60)
        return read(case)

    monkeypatch.setattr(Case, "read", hanging)
    summary = run_batch(pipeline, cases, QUERIES, tmp_path / "out", BatchOptions(timeout_s=1.0))
    release.set()
    assert (summary.answered, summary.failed) == (1, 1)
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], failure["kind"]) == ("chest.png", "timeout")


def test_a_disk_that_refuses_ends_the_run_and_keeps_what_is_written(studies, pipeline, tmp_path, monkeypatch) -> None:
    cases = [case for case in find_cases([str(studies)]) if case.id in GOOD]
    add = batch_files.RunFolder.add_result

    def full(self, line) -> None:
        if len(self.answered) == 2:
            with batch_files.writing.output_errors(self.folder):
                raise OSError(28, "No space left on device")
        add(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(batch_files.RunFolder, "add_result", full)
        with pytest.raises(InputError, match="no space left on the disk"):
            run_batch(pipeline, cases, QUERIES, tmp_path / "out")
    assert len(ids(tmp_path / "out" / "results.jsonl")) == 2
    assert run_batch(pipeline, cases, QUERIES, tmp_path / "out").answered == len(cases)


def test_memory_is_handed_out_in_order() -> None:
    budget, order = MemoryBudget(100), []

    def take(ticket: int, needed: int) -> None:
        budget.take(ticket, needed)
        order.append(ticket)

    budget.take(0, 80)
    threads = [threading.Thread(target=take, args=pair) for pair in ((2, 10), (1, 50))]
    for thread in threads:
        thread.start()
    threads[0].join(0.3)
    assert order == []  # 2 would fit, but 1 comes first
    budget.give_back(80)
    for thread in threads:
        thread.join(10)
    assert order == [1, 2]
    budget.leave(3)
    budget.take(4, 30)
    with pytest.raises(TimeoutError, match="given up"):
        budget.take(3, 1)
    budget.close()
    with pytest.raises(TimeoutError, match="given up"):
        budget.take(5, 1)


def test_a_pipe_is_named_and_does_not_block(pipeline, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = find_cases([str(tmp_path)])
    assert run_batch(pipeline, cases, QUERIES, tmp_path / "out").failed == 1
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert "neither a file nor a folder" in failure["message"]


def test_queries_are_read_and_refused_with_their_lines(tmp_path) -> None:
    path = tmp_path / "q.txt"
    path.write_text("# sheet\nnodule  # small\n\nno effusion\n", encoding="utf-8-sig")
    assert read_queries(path) == ["nodule", "no effusion"]
    path.write_text("nodule\n???\nnodule\n", encoding="utf-8")
    with pytest.raises(QueryError, match=r"line 2: .*; line 3: 'nodule' is in line 1 already"):
        read_queries(path)
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no query in it"):
        read_queries(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_queries(tmp_path / "none.txt")


def test_command_line(studies, model, tmp_path, capsys) -> None:
    sheet, out = tmp_path / "q.txt", tmp_path / "out"
    sheet.write_text("nodule\n", encoding="utf-8")
    command = ["batch", f"{studies}/*.png", "--queries", str(sheet), "--model", str(model), "--out", str(out)]
    assert main([*command, "--parquet"]) == 0
    assert f"1 of 3 cases answered in {out}, 2 failed: see {out}/failures.jsonl" in capsys.readouterr().out
    assert (out / "results.parquet").is_file()
    assert main([*command, "--shard", "1/2"]) == 2
    assert "differs in shard" in capsys.readouterr().err
    for wrong in (["--shard", "0/2"], ["--memory-gb", "-1"], ["--threshold", "2"], ["--timeout-s", "x"]):
        assert main([*command, *wrong]) == 2
    sheet.write_text("", encoding="utf-8")
    assert main(command) == 2
    assert "no query in it" in capsys.readouterr().err


def test_parquet_without_pyarrow_is_refused_before_the_work(studies, model, tmp_path, monkeypatch, capsys) -> None:
    sheet = tmp_path / "q.txt"
    sheet.write_text("nodule\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    out = str(tmp_path / "out")
    assert main(["batch", str(studies), "--queries", str(sheet), "--model", str(model), "--out", out, "--parquet"]) == 2
    assert "--parquet needs pyarrow" in capsys.readouterr().err
    assert not Path(out).exists()
