"""Headers kept between the starts of a batch run, and DICOM objects without an image set aside."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.dicom_files import phantom_hu, write_ct_series, write_radiograph
from tests.tiny_models import write_tiny_checkpoint

from radglint import batch_headers
from radglint.batch_cases import Found, find_cases, look_for_cases
from radglint.batch_headers import HEADERS, open_headers, read_header
from radglint.cli import main
from radglint.errors import ImageError, InputError

SR, KO, SEG, LABELMAP, GSPS, PDF, RAW, PLAN, SIEMENS = (
    "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.104.1",
    "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.481.5", "1.3.12.2.1107.5.9.1",
)  # fmt: skip
NO_IMAGES = {
    "sr.dcm": (SR, "SR", "structured report"), "ko.dcm": (KO, "KO", "key object"),
    "seg.dcm": (SEG, "SEG", "segmentation"), "map.dcm": (LABELMAP, "SEG", "segmentation"),
    "pr.dcm": (GSPS, "PR", "presentation state"),
    "pdf.dcm": (PDF, "OT", "encapsulated document"), "raw.dcm": (RAW, "CT", "raw data"),
    "plan.dcm": (PLAN, "RTPLAN", "radiotherapy plan"), "csa.dcm": (SIEMENS, "CT", "without an image"),
    "old.dcm": ("1.2.3.4", "SR", "without an image"),
}  # fmt: skip


@pytest.fixture
def tree(tmp_path) -> Path:
    """A CT series, a radiograph, an MR image, and beside them one object of each kind that holds no image."""
    folder = tmp_path / "tree"
    write_ct_series(folder / "ct", SeriesInstanceUID="1.2.3.4.7")
    write_image(folder / "dx.dcm")
    write_image(folder / "mr.dcm", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    for name, (sop_class, modality, _) in NO_IMAGES.items():
        write_image(folder / "ct" / name, Modality=modality, SOPClassUID=sop_class, SeriesInstanceUID="1.2.3.4.7")
    return folder


def write_image(path: Path, **tags) -> Path:
    return write_radiograph(path, np.zeros((16, 16), np.uint16), kind="OT", **tags)


def test_objects_without_an_image_are_no_cases(tree) -> None:
    found = look_for_cases([str(tree)])
    assert sorted(case.id for case in found.cases) == ["1.2.3.4.7", "dx.dcm", "mr.dcm"]
    reasons = {Path(item.path).name: item.reason for item in found.skipped}
    assert reasons.keys() == NO_IMAGES.keys()
    for name, (_, _, words) in NO_IMAGES.items():
        assert words in reasons[name], name
    assert all("CT" in reasons[name] for name in ("raw.dcm", "csa.dcm"))
    (series,) = (case for case in found.cases if case.series)
    assert len(series.files) == 12  # none of them is taken for a slice of the series that it belongs to
    assert series.read().array.shape[0] == 12


def test_an_object_that_is_named_was_meant(tree) -> None:
    assert [case.id for case in find_cases([str(tree / "ct" / "sr.dcm")])] == ["sr.dcm"]
    assert len(find_cases([str(tree / "ct" / "sr.dcm"), str(tree)])) == 4
    only = tree / "only"
    only.mkdir()
    (tree / "ct" / "sr.dcm").rename(only / "sr.dcm")
    with pytest.raises(InputError, match="no file there but 1 DICOM objects without an image"):
        find_cases([str(only)])
    with pytest.raises(InputError, match="no file there but 1 DICOM objects"):
        find_cases([f"{only}/*.dcm"])


@pytest.fixture
def study(tmp_path) -> Path:
    """A CT study as it comes: a scout of two views, the scan with a scout of its own, and a dose page."""
    folder = tmp_path / "study"
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_ct_series(folder / "scout", phantom_hu(2), SeriesInstanceUID="1.2.3.4.1", SeriesNumber=1, **scout)
    write_ct_series(folder / "chest", SeriesInstanceUID="1.2.3.4.2", SeriesNumber=2, per_slice={0: scout})
    page = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SeriesInstanceUID": "1.2.3.4.999"}
    write_image(folder / "dose.dcm", **page)
    return folder


def test_series_of_scouts_and_dose_pages_alone_are_set_aside_and_named(study) -> None:
    found = look_for_cases([str(study)])
    assert [case.id for case in found.cases] == ["1.2.3.4.2"]
    assert len(found.cases[0].files) == 12
    image = found.cases[0].read()
    assert image.array.shape[0] == 11
    assert "1 localizers left out" in image.steps[0]
    reasons = {Path(item.path).relative_to(study).as_posix(): item.reason for item in found.skipped}
    scout = "CT localizer (scout)"
    assert reasons == {
        "scout/slice_000.dcm": scout, "scout/slice_001.dcm": scout, "dose.dcm": "screenshot or dose page of a CT",
    }  # fmt: skip


def test_a_scout_that_is_named_was_meant_and_fails_with_its_reason(study) -> None:
    named = str(study / "scout" / "slice_000.dcm")
    assert [case.id for case in find_cases([named, str(study)])] == ["1.2.3.4.1", "1.2.3.4.2"]
    (case,) = find_cases([named])
    with pytest.raises(ImageError, match="only localizer images, no CT slices"):
        case.read()
    with pytest.raises(InputError, match="no file there but 2 DICOM objects without an image to ask"):
        find_cases([str(study / "scout")])


def test_a_damaged_file_beside_a_scout_stays_a_case(study) -> None:
    (study / "scout" / "cut.dcm").write_bytes(b"")
    assert [case.id for case in find_cases([str(study)])] == ["1.2.3.4.2", "scout/cut.dcm"]


def test_a_batch_counts_a_scout_as_set_aside_not_as_failed(study, tmp_path, capsys) -> None:
    sheet, out = tmp_path / "queries.txt", tmp_path / "out"
    sheet.write_text("nodule\n", encoding="utf-8")
    model = write_tiny_checkpoint(tmp_path / "tiny")
    command = ["batch", str(study), "--queries", str(sheet), "--out", str(out), "--model", str(model)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"1 of 1 cases answered in {out}\n" in said
    assert f"3 DICOM objects without an image to ask were left aside: see {out}/skipped.jsonl" in said
    assert (out / "skipped.jsonl").read_text(encoding="utf-8").count("CT localizer (scout)") == 2
    assert (out / "failures.jsonl").read_bytes() == b""
    assert main(command) == 0  # a run goes on with the headers that it keeps
    assert "3 DICOM objects" in capsys.readouterr().out


def look(tree: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Found, list[str]]:
    """What is found, and the names of the files whose headers were read for it."""
    read: list[str] = []
    with monkeypatch.context() as patch, open_headers(out) as headers:
        patch.setattr(batch_headers, "read_header", lambda file: (read.append(file.name), read_header(file))[1])
        return look_for_cases([str(tree)], headers=headers), sorted(read)


def test_headers_are_read_once(tree, tmp_path, monkeypatch) -> None:
    plain, out = look_for_cases([str(tree)]), tmp_path / "out"
    first, read = look(tree, out, monkeypatch)
    assert len(read) == 12 + 2 + len(NO_IMAGES)
    again, read_again = look(tree, out, monkeypatch)
    assert read_again == []
    assert first == again == plain


def test_only_what_changed_is_read_again(tree, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    look(tree, out, monkeypatch)
    write_image(tree / "dx.dcm", Modality="SR", SOPClassUID=SR, PatientComments="longer")
    os.utime(tree / "mr.dcm", ns=(1, 1))
    write_image(tree / "new.dcm")
    found, read = look(tree, out, monkeypatch)
    assert read == ["dx.dcm", "mr.dcm", "new.dcm"]
    assert found == look_for_cases([str(tree)])
    assert "dx.dcm" in {Path(item.path).name for item in found.skipped}


def test_a_damaged_header_is_looked_at_each_time(tree, tmp_path, monkeypatch) -> None:
    (tree / "ct" / "cut.dcm").write_bytes(b"")
    out = tmp_path / "out"
    for _ in range(2):
        found, read = look(tree, out, monkeypatch)
        assert "cut.dcm" in read
        assert found == look_for_cases([str(tree)])
    assert read == ["cut.dcm"]


def test_a_cut_or_damaged_file_of_headers_is_read_as_far_as_it_is_whole(tree, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    first, _ = look(tree, out, monkeypatch)
    content = (out / HEADERS).read_bytes()
    (out / HEADERS).write_bytes(content[: len(content) // 2])
    found, read = look(tree, out, monkeypatch)
    assert found == first
    assert 0 < len(read) < 24
    assert look(tree, out, monkeypatch) == (first, [])
    (out / HEADERS).write_bytes(b'\x80{}[]\n[1, 2]\n["a", "b", 3, 4, 5, 6]\nnull\n')
    assert look(tree, out, monkeypatch)[0] == first


def test_lines_that_nobody_asks_for_are_dropped(tree, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    look(tree, out, monkeypatch)
    for path in (tree / "ct").iterdir():
        path.unlink()
    look(tree, out, monkeypatch)
    assert len((out / HEADERS).read_bytes().splitlines()) == 2
    assert look(tree, out, monkeypatch)[1] == []


def test_a_search_that_is_stopped_keeps_what_it_read(tree, tmp_path, monkeypatch) -> None:
    out, seen = tmp_path / "out", []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_headers(out) as headers:
        look_for_cases([str(tree)], headers=headers, tick=stop)
    _, read = look(tree, out, monkeypatch)
    assert len(read) == 24 - 9


def test_no_folder_is_made_where_nothing_is_found(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"), open_headers(tmp_path / "out") as headers:
        look_for_cases([str(tmp_path / "none")], headers=headers)
    assert not (tmp_path / "out").exists()
