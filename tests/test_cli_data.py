"""`radglint data`: exact words, exit codes and files; the registry here is a double of two made-up data sets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from manifest_data import cxr_manifest, cxr_row, radiograph
from radglint.cli import main
from radglint.cli_data import REGISTRY
from radglint.errors import InputError
from radglint.manifest import ManifestRow, Phrase, read_manifest
from radglint.report_pairs import load_shards


@dataclass(frozen=True)
class Info:
    """The fields of `DatasetInfo` that the command line reads."""

    name: str
    title: str
    modality: str
    shares_patients_with: tuple[str, ...]
    licence: str = "CC0"
    citation: str = "Doe et al., A set, 2026"
    url_name: str = "example.org/set"
    expects: str = "one.png"


def convert(source: Path, out: Path) -> Iterator[ManifestRow]:
    """One row a PNG."""
    for path in sorted(source.glob("*.png")):
        labels: Any = {"nodule": "present", "mass": "absent"} if path.stem == "a" else {"nodule": "absent"}
        phrases = (Phrase("nodule", "nodule", ((1, 2, 3, 4),)),) if path.stem == "a" else ()
        yield ManifestRow(
            path.stem, str(path), "CXR", "ours", patient="1", split="val", report="Clear.", labels=labels,
            phrases=phrases,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType(REGISTRY)
    infos = (Info("ours", "Our set", "CXR", ("theirs",)), Info("theirs", "Their set", "CXR", ("ours",)))
    module.DATASETS = {info.name: info for info in infos}

    def find(name: str) -> Info:
        if name not in module.DATASETS:
            raise InputError(f"no data set {name!r}: known are ours, theirs")
        return module.DATASETS[name]

    module.find, module.adapter = find, lambda name: convert
    monkeypatch.setitem(sys.modules, REGISTRY, module)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for k, name in enumerate("ab"):
        radiograph(tmp_path / "src", f"{name}.png", k)
    return tmp_path / "src"


def run(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    code = main(["data", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_convert_writes_the_manifest_and_says_what_it_holds(tmp_path: Path, source: Path, capsys: Any) -> None:
    out = tmp_path / "made" / "here"
    code, text, errors = run(capsys, "convert", "ours", source, out)
    assert (code, errors) == (0, "")
    assert text.splitlines() == [
        f"2 images of Our set: {out}/manifest.jsonl",
        "2 val",
        "1 patients, 2 images with a report, 1 marked phrases",
        "",
        "label   present  absent  uncertain",
        "nodule  1        1       0",
        "mass    0        1       0",
        "",
        "licence: CC0",
        "cite: Doe et al., A set, 2026",
    ]
    assert [row.id for row in read_manifest(out / "manifest.jsonl")] == ["a", "b"]
    code, _, _ = run(capsys, "convert", "ours", source, out, "--format", "parquet")
    assert code == 0
    assert read_manifest(out / "manifest.parquet") == read_manifest(out / "manifest.jsonl")


def test_convert_refuses_what_it_cannot_do(tmp_path: Path, source: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    for argv, words in (
        (("nothing", source, tmp_path / "o"), "no data set 'nothing'"),
        (("ours", tmp_path / "no", tmp_path / "o"), "no such folder; give the folder of Our set, with one.png"),
        (("ours", tmp_path / "empty", tmp_path / "o"), "holds no image of Our set; expected one.png"),
        (("ours", source, source / "a.png"), "OUT needs a folder, but this is a file"),
    ):
        code, text, errors = run(capsys, "convert", *argv)
        assert (code, text) == (2, "")
        assert words in errors
        assert errors.count("\n") == 1


def test_a_conversion_that_fails_leaves_the_old_manifest(tmp_path: Path, source: Path, capsys: Any) -> None:
    run(capsys, "convert", "ours", source, tmp_path / "o")
    before = (tmp_path / "o" / "manifest.jsonl").read_bytes()

    def broken(src: Path, out: Path) -> Iterator[ManifestRow]:
        yield from convert(src, out)
        raise InputError("train.csv: row 3, column 'x': expected a number, got 'y'")

    sys.modules[REGISTRY].adapter = lambda name: broken  # pyright: ignore[reportAttributeAccessIssue]
    code, _, errors = run(capsys, "convert", "ours", source, tmp_path / "o")
    assert (code, "row 3, column 'x'" in errors) == (2, True)
    assert (tmp_path / "o" / "manifest.jsonl").read_bytes() == before


def test_a_data_set_with_bad_rows_is_converted_without_them(tmp_path: Path, source: Path, capsys: Any) -> None:
    def leaky(src: Path, out: Path) -> Iterator[ManifestRow]:
        for k, row in enumerate(convert(src, out)):
            yield replace(row, split="train" if k else "val")

    sys.modules[REGISTRY].adapter = lambda name: leaky  # pyright: ignore[reportAttributeAccessIssue]
    out = tmp_path / "o"
    code, _, errors = run(capsys, "convert", "ours", source, out)
    assert (code, "patient '1' is in train here and in val in row 1" in errors) == (2, True)
    code, text, errors = run(capsys, "convert", "ours", source, out, "--drop-bad")
    assert (code, errors, text.splitlines()[1]) == (0, "", f"1 images were left out: {out}/dropped.txt")
    assert [row.id for row in read_manifest(out / "manifest.jsonl")] == ["a"]
    assert (out / "dropped.txt").read_text().startswith("row 2 (id 'b'), column patient: patient '1' is in train here")


def test_check_ends_with_0_on_warnings_and_2_on_errors(tmp_path: Path, capsys: Any) -> None:
    path = cxr_manifest(tmp_path, cxr_row("a"), cxr_row("b", report=""))
    code, text, errors = run(capsys, "check", path)
    assert (code, errors) == (0, "")
    assert "warning   empty report" in text
    (tmp_path / "b.png").unlink()
    code, text, errors = run(capsys, "check", path, "--report", tmp_path / "r.json")
    assert code == 2
    assert "error: missing image\n  row 2 (id 'b'), column image: b.png: no such file or folder; restore it" in text
    assert errors == f"radglint: error: {path}: 1 error; see {tmp_path}/r.json\n"
    assert (tmp_path / "r.txt").read_text() == text
    code, text, _ = run(capsys, "check", path, "--json")
    assert (code, json.loads(text)["errors"]) == (2, 1)


def test_check_against_a_related_set(tmp_path: Path, capsys: Any) -> None:
    mine = cxr_manifest(tmp_path, cxr_row("a", dataset="ours", patient="1", split="train"))
    other = cxr_manifest(tmp_path, cxr_row("b", dataset="theirs", patient="p1", split="test"), name="o.csv")
    assert run(capsys, "check", mine)[0] == 0
    code, text, _ = run(capsys, "check", mine, "--against", other)
    assert code == 2
    assert f"patient '1' is in train here and in test of {other} (row 2); take it out of one of both" in text


def test_check_of_a_wrong_manifest_lists_everything(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "m.csv"
    path.write_text("image,modality,view\n" + "".join(f"{k}.png,XR,front\n" for k in range(40)))
    code, text, errors = run(capsys, "check", path)
    assert (code, errors.count("\n")) == (2, 1)
    assert "0 rows, 0 files read; 80 errors" in text
    assert run(capsys, "check", tmp_path / "none.csv")[0] == 2


def test_shards_are_named_for_the_configuration(tmp_path: Path, capsys: Any) -> None:
    path = cxr_manifest(tmp_path, cxr_row("a", split="train"), cxr_row("b", split="val"))
    code, text, errors = run(capsys, "shards", path, tmp_path / "out", "--split", "train", "--shard-mb", "1")
    assert (code, errors) == (0, "")
    pattern = f"{tmp_path}/out/train-cxr-*.tar"
    assert text.splitlines() == [f"1 images in 1 shards: {tmp_path}/out", f'data.shards = ["{pattern}"]']
    assert [pair.id for pair in load_shards(pattern, "CXR")] == ["a"]
    assert "1 of them from before" in run(
        capsys, "shards", path, tmp_path / "out", "--split", "train", "--shard-mb", "1"
    )[1]  # fmt: skip
    assert run(capsys, "shards", path, tmp_path / "out", "--split", "test")[0] == 2
    assert run(capsys, "shards", path, tmp_path / "out", "--shard-mb", "0")[0] == 2


def test_list_names_licence_citation_and_layout(capsys: Any) -> None:
    code, text, _ = run(capsys, "list")
    assert code == 0
    assert text.splitlines()[:2] == [
        "name    images  shares patients with  licence",
        "ours    CXR     theirs                CC0",
    ]
    assert "ours: Our set\n  expects  one.png\n  cite     Doe et al., A set, 2026\n  page     example.org/set" in text
    _, text, _ = run(capsys, "list", "--json")
    assert [info["name"] for info in json.loads(text)["datasets"]] == ["ours", "theirs"]


def test_the_parser_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'torch', 'pyarrow', 'tqdm', 'radglint.manifest'} & set(sys.modules)"
    code = f"import sys; from radglint.cli import build_parser; build_parser(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
