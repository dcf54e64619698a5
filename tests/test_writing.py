"""Atomic writers: whole or not at all, and one clear line when it cannot be."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from radglint import writing
from radglint.errors import OutputError


def fill(folder: Path, *names: str, stale: re.Pattern[str] | None = None) -> None:
    with writing.folder_transaction(folder, stale=stale) as staging:
        for name in names:
            (staging / name).write_text("new")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def failing(number: int, after: int = 0) -> Any:
    """An `os.replace` that works `after` times and then fails."""
    real, count = os.replace, iter(range(10_000))

    def replace(source: Any, target: Any) -> None:
        if next(count) >= after:
            raise OSError(number, os.strerror(number))
        real(source, target)

    return replace


def test_write_replaces_and_leaves_no_temporary(tmp_path: Path) -> None:
    for text in ("first", "second \u00e9"):
        assert writing.write_text(tmp_path / "a.txt", text) == tmp_path / "a.txt"
    assert (tmp_path / "a.txt").read_bytes() == "second \u00e9".encode()
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "error"),
    ],
)
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: Any, number: int, words: str) -> None:
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "replace", failing(number))
    with pytest.raises(OutputError, match=words) as caught:
        writing.write_text(tmp_path / "a.txt", "new")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.txt") in str(caught.value)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


def test_full_disk_while_writing(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(OutputError, match="no space left"),
        writing.output_errors(tmp_path),
        open("/dev/full", "wb") as f,
    ):
        f.write(b"x" * 100_000)


def test_below_a_file_and_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="in the way"):
        writing.write_text(tmp_path / "file" / "a.txt", "y")
    with pytest.raises(OutputError, match="a folder is in the way"):
        writing.write_text(tmp_path, "y")
    with pytest.raises(OutputError, match="does not exist"):
        writing.write_text(tmp_path / "none" / "a.txt", "y")
    assert listing(tmp_path) == ["file"]


def test_json_is_strict(tmp_path: Path) -> None:
    writing.write_json(tmp_path / "a.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        writing.write_json(tmp_path / "b.json", {"x": float("nan")})
    assert listing(tmp_path) == ["a.json"]


def test_png_and_nifti_need_their_suffix(tmp_path: Path) -> None:
    nifti = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    with pytest.raises(OutputError, match=r"\.nii"):
        writing.write_nifti(tmp_path / "a.png", nifti)
    with pytest.raises(OutputError, match=r"\.png"):
        writing.write_png(tmp_path / "a.jpg", Image.new("L", (2, 2)))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_bytes_are_the_same_every_time(tmp_path: Path, name: str) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    contents = {writing.write_nifti(tmp_path / name, nib.Nifti1Image(data, np.eye(4))).read_bytes() for _ in range(2)}
    assert len(contents) == 1
    assert (np.asarray(nib.load(tmp_path / name).dataobj) == data).all()


def test_folder_is_made_with_parents_and_filled(tmp_path: Path) -> None:
    with writing.folder_transaction(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a" / "b" / "x").exists()
    assert listing(tmp_path) == ["a", "a/b", "a/b/x"]


def test_folder_keeps_other_files_and_drops_stale_ones(tmp_path: Path) -> None:
    for name in ("x", "01_old_mask.png", "mine.txt"):
        (tmp_path / name).write_text("old")
    with writing.folder_transaction(tmp_path, stale=re.compile(r"\d\d_.*_mask\.png")) as staging:
        (staging / "x").write_text("new")
    assert listing(tmp_path) == ["mine.txt", "x"]
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize("after", range(5))
def test_folder_failure_at_any_move_restores_everything(tmp_path: Path, monkeypatch: Any, after: int) -> None:
    for name in ("a", "b", "01_mask.png", "mine"):
        (tmp_path / name).write_text("old " + name)
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC, after))
    with pytest.raises(OutputError, match="no space left"):
        fill(tmp_path, "a", "b", "c", stale=re.compile("01_.*"))
    assert {n: (tmp_path / n).read_text() for n in listing(tmp_path)} == {
        n: f"old {n}" for n in ("a", "b", "01_mask.png", "mine")
    }


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyboardInterrupt()])
def test_failure_inside_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with writing.folder_transaction(tmp_path / "a" / "b") as staging:
            (staging / "x").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert listing(tmp_path) == []


def test_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="in the way"):
            fill(path)
    assert listing(tmp_path) == ["file"]


def test_a_folder_where_a_file_must_go(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputError, match="folder is in the way"):
        fill(tmp_path, "a", "x")
    assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == ["a", "x"]
