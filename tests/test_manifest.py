"""Manifests: three formats that hold the same, compatible with simulation and training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radglint import manifest as module
from radglint.errors import ConfigError, InputError
from radglint.manifest import ManifestRow, Phrase, read_manifest, write_manifest
from radglint.manifest_files import SUFFIXES
from radglint.manifest_problems import STATES
from radglint.report_pairs import Pair, load_manifest
from radglint.simulation.case import Plan, SimulatedCase
from radglint.simulation.dataset import write_dataset
from radglint.simulation.facts import Fact
from radglint.simulation.report_text import Report

FULL = ManifestRow(
    id="7_a", image="images/a b.png", modality="CXR", dataset="nih-chestxray14", patient="007", study="7-1", series="1",
    split="val", view="PA", findings='Two "lines",\nand a comma\u2028.', impression="Fine \u00fcber.", report="",
    labels={"nodule": "present", "mass": "absent", "edema": "uncertain"},
    phrases=(
        Phrase("small nodule", "nodule", ((1, 2, 3, 4), (5, 6, 7, 8)), ("masks/7.npz#0", "masks/7.png")),
        Phrase("no effusion"),
    ),
    size_px=(40, 60), extra={"facts": [{"mask": 0, "side": None}], "masks": "m.npz", "sizes": 3, "images": ["x"]},
)  # fmt: skip
PLAIN = ManifestRow("1", "/data/ct/1", "CT", report="Whole report.", size_px=(9, 40, 60))
BARE = ManifestRow("x", "x.png", "CXR")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_rows_back(tmp_path: Path, suffix: str) -> None:
    path = write_manifest(tmp_path / f"m{suffix}", [FULL, PLAIN, BARE])
    assert read_manifest(path) == [FULL, PLAIN, BARE]
    assert list(read_manifest(path)[0].labels) == ["nodule", "mass", "edema"]
    assert [file.name for file in tmp_path.iterdir()] == [f"m{suffix}"]


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_name = st.text("abcXYZ019 _-.\u00e4", max_size=8).map(str.strip)
_label = st.sampled_from(["nodule", "pleural effusion", "no finding", "green widget"])
_json = st.recursive(st.none() | st.booleans() | st.integers() | _text, lambda s: st.lists(s, max_size=2), max_leaves=4)


@st.composite
def _rows(draw: st.DrawFn, number: int) -> ManifestRow:
    box = tuple(draw(st.integers(0, 9)) for _ in range(2)) + tuple(draw(st.integers(10, 40)) for _ in range(2))
    return ManifestRow(
        id=f"{number}{draw(_name)}x", image=f"i/{number}.png", modality="CXR", patient=draw(_name), study=draw(_name),
        view=draw(st.sampled_from(["", "PA", "AP"])), findings=draw(_text), impression=draw(_text), report=draw(_text),
        labels=draw(st.dictionaries(st.sampled_from(["nodule", "mass"]), st.sampled_from(STATES))),
        phrases=(Phrase("p" + draw(_text), draw(st.just("") | st.just("edema")), draw(st.sampled_from([(), (box,)]))),),
        size_px=draw(st.none() | st.just((40, 40))),
        extra=draw(st.dictionaries(_text.map("k".__add__), _json, max_size=3)),
    )  # fmt: skip


@given(st.data())
def test_any_rows_are_equal_in_all_formats(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rows = [data.draw(_rows(number)) for number in range(data.draw(st.integers(1, 3)))]
    folder = tmp_path_factory.mktemp("m")
    for suffix in SUFFIXES:
        assert read_manifest(write_manifest(folder / f"m{suffix}", rows)) == rows


def simulated_line(**change: Any) -> dict[str, Any]:
    """A line as `radglint simulate` writes it."""
    return {
        "id": "val_0000", "image": "images/val_0000.png", "modality": "CXR", "base": "b.jpg", "mirrored": False,
        "patient": "1389", "group": "1389", "split": None, "report": {"findings": "A nodule.", "impression": "Nodule."},
        "facts": [{"concept": "nodule", "side": "right", "zone": "upper", "size": "small", "subtlety": 0.5, "mask": 0}],
        "doubted": [], "distractors": ["skin fold"], "masks": "masks/val_0000.npz", "seed": 7, "index": 0,
        "version": "0.1.0/1",
    } | change  # fmt: skip


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_simulated_line_keeps_what_only_the_simulator_knows(tmp_path: Path) -> None:
    line = simulated_line()
    (row,) = read_manifest(write_lines(tmp_path / "m.jsonl", line))
    assert (row.patient, row.split, row.findings, row.impression) == ("1389", "", "A nodule.", "Nodule.")
    others = ("base", "mirrored", "group", "facts", "doubted", "distractors", "masks", "seed", "index", "version")
    assert row.extra == {key: line[key] for key in others}
    again = write_manifest(tmp_path / "again.jsonl", [row])
    assert read_manifest(again) == [row]
    written = json.loads(again.read_text())
    assert {key: written[key] for key in ("facts", "masks")} == {key: line[key] for key in ("facts", "masks")}


class OneFinding:
    """A base whose every case is the same nodule, as the simulator's writer takes it."""

    kind: Any = "cxr"

    def describe(self) -> list[dict[str, str]]:
        return [{"name": "b.png"}]

    def options(self) -> dict[str, Any]:
        return {}

    def make(self, plan: Plan) -> SimulatedCase:
        mask = np.zeros((40, 60), bool)
        mask[3:9, 4:8] = True
        pixels = np.arange(2400, dtype=np.uint16).reshape(40, 60)
        report = Report("A nodule.", "Nodule.", doubted=("mass",))
        return SimulatedCase(
            pixels, None, (Fact("nodule", "right"),), (mask,), (0.5,), report, ("skin fold",), "b", "7"
        )


def test_what_simulate_writes_can_be_read(tmp_path: Path) -> None:
    path = write_dataset(OneFinding(), tmp_path, [Plan("x0", 1, 0), Plan("x1", 1, 1, split="test")], seed=1)
    one, two = read_manifest(path)
    assert (one.id, one.image, one.patient, one.split, two.split) == ("x0", "images/x0.png", "7", "", "test")
    assert (one.findings, one.extra["facts"][0]["concept"], one.extra["masks"]) == (
        "A nodule.",
        "nodule",
        "masks/x0.npz",
    )
    text = "FINDINGS: A nodule.\nIMPRESSION: Nodule."
    assert [(pair.report, pair.group) for pair in load_manifest(path, "CXR")] == [(text, "7")] * 2


def test_defaults_of_a_jsonl_line(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "m.jsonl",
        {"image": "a.png", "modality": "CXR", "group": 7, "report": "Clear."},
        {"image": "b.png", "modality": "CXR", "findings": "Clear.", "labels": {}, "view": None},
    )
    assert read_manifest(path) == [
        ManifestRow("a.png", "a.png", "CXR", patient="7", report="Clear."),
        ManifestRow("b.png", "b.png", "CXR", findings="Clear."),
    ]


def test_a_table_with_label_columns(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # as Excel saves it
        table = csv.writer(file)
        table.writerow(["image", "modality", "label:nodule", "label:mass", "label:edema", "labels", "age"])
        table.writerow(["a.png", "CXR", "1", "0.0", "-1", "", "63"])
        table.writerow([])
        table.writerow(["b.png", "CXR", "", "", "0", '{"nodule": "uncertain", "edema": "absent"}', ""])
    one, two = read_manifest(path)
    assert one.labels == {"nodule": "present", "mass": "absent", "edema": "uncertain"}
    assert two.labels == {"nodule": "uncertain", "edema": "absent"}
    assert (one.extra, two.extra) == ({"age": "63"}, {})


def test_a_parquet_table_with_typed_columns(tmp_path: Path) -> None:
    columns = {
        "image": ["a.png", "b.png"], "modality": ["CXR", "CXR"], "patient": [7, None], "label:nodule": [1.0, None],
        "size_px": [[40, 60], None], "age": [63, None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == [
        ManifestRow(
            "a.png", "a.png", "CXR", patient="7", labels={"nodule": "present"}, size_px=(40, 60), extra={"age": 63}
        ),
        ManifestRow("b.png", "b.png", "CXR"),
    ]


def test_a_cell_may_be_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    row = ManifestRow("a", "a.png", "CXR", report="x" * 200_000)
    assert read_manifest(write_manifest(tmp_path / "m.csv", [row])) == [row]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_training_reads_every_format_alike(tmp_path: Path, suffix: str) -> None:
    rows = [FULL, ManifestRow("t", "/x/t.png", "CXR", patient="8", split="train", report="Clear.")]
    path = write_manifest(tmp_path / f"m{suffix}", rows)
    pairs = load_manifest(path, "CXR")
    text = f"FINDINGS: {FULL.findings}\nIMPRESSION: {FULL.impression}"
    assert pairs == [
        Pair("7_a", tmp_path / "images/a b.png", text, "007", FULL.split, FULL.dataset),
        Pair("t", Path("/x/t.png"), "Clear.", "8", "train"),
    ]
    assert load_manifest(path, "CXR", split="train") == pairs[1:]
    with pytest.raises(ConfigError, match="has no row of split 'test', 1 of 'train', 1 of 'val'; check"):
        load_manifest(path, "CXR", split="test")
    with pytest.raises(ConfigError, match="modality 'CXR', but the branch is for CT"):
        load_manifest(path, "CT")


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    for extra in ({"dose": float("nan")}, {"when": {1, 2}}, {"name": "\ud800"}):
        for suffix in SUFFIXES:
            with pytest.raises(InputError, match="extra may hold JSON values only"):
                write_manifest(tmp_path / f"m{suffix}", [ManifestRow("a", "a.png", "CXR", extra=extra)])
    with pytest.raises(InputError, match=r"ends in .jsonl, .csv, .parquet"):
        write_manifest(tmp_path / "m.txt", [BARE])
    assert not list(tmp_path.iterdir())


def test_an_older_manifest_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.jsonl", [BARE])
    with pytest.raises(InputError):
        write_manifest(path, [ManifestRow("", "a.png", "CXR")])
    assert read_manifest(path) == [BARE]


def test_states_are_those_of_the_type() -> None:
    assert get_args(module.LabelState) == STATES
