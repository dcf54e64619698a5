"""Every kind of wrong manifest, one by one: row, column, kind and words of the problem; and several at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radglint.errors import ConfigError
from radglint.manifest import ManifestRow, Phrase, parse_manifest, read_manifest, write_manifest
from radglint.manifest_labels import KNOWN_LABELS, label_problem, num_edits
from radglint.manifest_problems import MAX_SHOWN, ManifestError, Problem

CXR = {"id": "a", "image": "a.png", "modality": "CXR", "report": "Clear.", "size_px": [40, 60]}
CT = {"id": "c", "image": "c.nii.gz", "modality": "CT", "report": "Clear.", "size_px": [10, 40, 60]}


def phrase(**values: Any) -> dict[str, Any]:
    return {"phrases": [{"text": "nodule"} | values]}


def box(*corners: Any) -> dict[str, Any]:
    return phrase(boxes=[list(corners)])


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "m.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def problems_of(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return caught.value.problems


BAD_ROWS = [
    ({"image": None}, "image", "missing column", "every row needs its image"),
    ({"modality": None}, "modality", "missing column", "every row needs its modality"),
    ({"patiant": "7"}, "patiant", "unknown column", "did you mean 'patient'"),
    ({"patient_id": "7"}, "patient_id", "unknown column", "did you mean 'patient'"),
    ({"id": ""}, "id", "empty id", "give every row an id of its own"),
    ({"id": None}, "id", "empty id", "expected a name"),
    ({"id": "a\n"}, "id", "spaces or control characters", r"got 'a\n'"),
    ({"patient": 12.0}, "patient", "mixed types", "got 12.0; write it as text"),
    ({"study": True}, "study", "mixed types", "got True"),
    ({"modality": "DX"}, "modality", "bad modality", "expected CXR, CT; got 'DX'; did you mean 'CXR'?"),
    ({"modality": "MR"}, "modality", "bad modality", "got 'MR'"),
    ({"split": "valid"}, "split", "bad split", "got 'valid'; did you mean 'val'?"),
    ({"split": "Train"}, "split", "bad split", "did you mean 'train'?"),
    ({"view": "pa"}, "view", "bad view", "expected PA, AP, LATERAL, empty; got 'pa'; did you mean 'PA'?"),
    ({"report": 5}, "report", "report is no text", "expected text, got 5"),
    ({"findings": ["x"]}, "findings", "report is no text", "got ['x']"),
    ({"report": {"findings": "x", "history": "y"}}, "report.history", "unknown section of a report", "into extra"),
    ({"report": {"findings": "x"}, "findings": "y"}, "findings", "key twice", "expected one text"),
    ({"image": 7}, "image", "mixed types", "expected a path as text, got 7"),
    ({"image": " "}, "image", "bad path", "name the file"),
    ({"image": "../secret/a.png"}, "image", "path leaves the folder", "give an absolute path"),
    ({"image": "x/../../a.png"}, "image", "path leaves the folder", "below the manifest's folder"),
    ({"image": "s3://bucket/a.png"}, "image", "address", "download it first"),
    ({"image": "x\\a.png"}, "image", "backslashes", "expected a path with /"),
    ({"image": "~/a.png"}, "image", "bad path", "write the home folder out"),
    ({"labels": ["nodule"]}, "labels", "labels are no object", "got ['nodule']"),
    ({"labels": {"plueral effusion": "present"}}, "labels", "label typo", "did you mean 'pleural effusion'?"),
    ({"labels": {"Pleural_Effusion": "present"}}, "labels", "label typo", "did you mean 'pleural effusion'?"),
    ({"labels": {"Left Widget": "present"}}, "labels", "label typo", "write 'left widget'"),
    ({"labels": {"nodule": "positive"}}, "labels['nodule']", "unknown label state", "did you mean 'present'?"),
    ({"labels": {"nodule": -1}}, "labels['nodule']", "unknown label state", "did you mean 'uncertain'?"),
    ({"labels": {"nodule": None}}, "labels['nodule']", "unknown label state", "leave an unlabelled concept out"),
    ({"size_px": [40, -60]}, "size_px", "negative size", "from 1 on, got [40, -60]"),
    ({"size_px": [1, 40, 60]}, "size_px", "bad size", "expected [height, width]"),
    ({"size_px": [40.0, 60.0]}, "size_px", "bad size", "expected whole numbers"),
    ({"extra": "x"}, "extra", "extra is no object", "expected a JSON object, got 'x'"),
    ({"extra": {"seed": 1}, "seed": 2}, "seed", "key twice", "here and in extra"),
    ({"phrases": {"text": "x"}}, "phrases", "phrases are no list", 'expected [{"text": ...}]'),
    ({"phrases": ["nodule"]}, "phrases[0]", "phrases are no list", "got 'nodule'"),
    ({"phrases": [{"label": "nodule"}]}, "phrases[0].text", "phrase without text", "got nothing"),
    (phrase(bbox=[1]), "phrases[0].bbox", "unknown key in a phrase", "did you mean 'boxes'?"),
    (phrase(label="noduel"), "phrases[0].label", "label typo", "did you mean 'nodule'?"),
    (
        {**phrase(label="nodule", boxes=[[1, 2, 3, 4]]), "labels": {"nodule": "absent"}},
        "phrases[0].label", "marked, but labelled absent", "correct one of both",
    ),
    (phrase(boxes="1,2,3,4"), "phrases[0].boxes", "boxes or masks are no list", "got '1,2,3,4'"),
    (phrase(boxes=[5]), "phrases[0].boxes[0]", "box of wrong length", "expected [y0, x0, y1, x1], got 5"),
    (box(1, 2, 3), "phrases[0].boxes[0]", "box of wrong length", "expected 4 numbers"),
    (box(0, 1, 2, 3, 4, 5), "phrases[0].boxes[0]", "3D box on a radiograph", "has no depth"),
    (box(1.5, 2, 3, 4), "phrases[0].boxes[0]", "box not in whole pixels", "round outwards"),
    (box(30, 2, 10, 4), "phrases[0].boxes[0]", "box inside out", "each second corner beyond the first"),
    (box(30, 20, 10, 9), "phrases[0].boxes[0]", "box inside out", "is it corner and size?"),
    (box(-1, 2, 3, 4), "phrases[0].boxes[0]", "box outside the image", "from 0 on"),
    (box(10, 5, 55, 35), "phrases[0].boxes[0]", "box with x and y swapped", "write [5, 10, 35, 55]"),
    (box(10, 5, 35, 99), "phrases[0].boxes[0]", "box outside the image", "within the image of 40 x 60 px"),
    (phrase(masks=["m.npz"]), "phrases[0].masks[0]", "bad mask reference", "expected FILE.npz#K"),
    (phrase(masks=["m.npz#-1"]), "phrases[0].masks[0]", "bad mask reference", "K from 0 on"),
    (phrase(masks=["m.jpg"]), "phrases[0].masks[0]", "bad mask reference", "got 'm.jpg'"),
    (phrase(masks=["../m.png"]), "phrases[0].masks[0]", "path leaves the folder", "absolute"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "column", "kind", "words"), BAD_ROWS)
def test_a_bad_radiograph_is_named(tmp_path: Path, change: dict, column: str, kind: str, words: str) -> None:
    good = CXR | {"id": "good"}
    (problem,) = problems_of(jsonl(tmp_path, good, CXR | change))
    assert (problem.row, problem.column, problem.kind) == (2, column, kind)
    assert words in problem.text


@pytest.mark.parametrize(
    ("change", "column", "kind", "words"),
    [
        ({"view": "AP"}, "view", "view on a CT", "only a radiograph has a view"),
        ({"size_px": [40, 60]}, "size_px", "bad size", "expected [depth, height, width]"),
        (box(1, 2, 3, 4), "phrases[0].boxes[0]", "2D box on a CT", "needs its slices"),
        (box(1, 50, 2, 5, 58, 30), "phrases[0].boxes[0]", "box with x and y swapped", "write [1, 2, 50, 5, 30, 58]"),
        (box(1, 2, 3, 11, 20, 30), "phrases[0].boxes[0]", "box outside the image", "10 x 40 x 60 px"),
    ],
)
def test_a_bad_ct_is_named(tmp_path: Path, change: dict, column: str, kind: str, words: str) -> None:
    (problem,) = problems_of(jsonl(tmp_path, CT | change))
    assert (problem.row, problem.column, problem.kind, problem.id) == (1, column, kind, "c")
    assert words in problem.text


@pytest.mark.parametrize(
    ("lines", "row", "kind", "words"),
    [
        ([json.dumps(CXR), '{"id": "b", "image": "b.p'], 2, "truncated JSON", "cut off"),
        (["{id: 1}", json.dumps(CXR)], 1, "not JSON", "expected one object a line"),
        ([json.dumps([CXR])], 1, "no JSON object", "got list; take the array's brackets"),
        (["[", json.dumps(CXR)], 1, "no JSONL", "put each on a line of its own"),
        (['{"id": "a", "id": "b", "image": "a.png", "modality": "CXR"}'], 1, "not JSON", "'id' is there twice"),
        (['{"id": "a", "image": "a.png", "modality": "CXR", "dose": NaN}'], 1, "not JSON", "NaN is no JSON value"),
        (["[" * 20_000], 1, "not JSON", "expected one object a line"),
        ([CXR, CXR], 2, "duplicate id", "already the id of row 1"),
        (
            [CXR | {"patient": "7", "split": "train"}, CXR | {"id": "b", "patient": 7, "split": "test"}],
            2, "patient in two splits", "patient '7' is in test here and in train in row 1",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_or_pair_of_rows_is_named(tmp_path: Path, lines: list, row: int, kind: str, words: str) -> None:
    (problem,) = problems_of(jsonl(tmp_path, *lines))
    assert (problem.row, problem.kind) == (row, kind)
    assert words in problem.text


@pytest.mark.parametrize(
    ("table", "row", "column", "kind", "words"),
    [
        ("id,modality\na,CXR\n", 1, "image", "missing column", "the file has id, modality"),
        ("id,image\na,a.png\n", 1, "modality", "missing column", "the column is missing"),
        ("id,image,modality,pateint\na,a.png,CXR,7\n", 1, "pateint", "unknown column", "did you mean 'patient'?"),
        ("id,image,modality,view,view\na,a.png,CXR,,PA\n", 1, "view", "column twice", "got it 2 times"),
        ("id,image,modality,\na,a.png,CXR,1\n", 1, "", "column without name", "expected a name"),
        ("id,image,modality\na,a.png\n", 2, "", "wrong number of cells", "expected 3 cells as in the header, got 2"),
        ("id,image,modality\n,a.png,CXR\n", 2, "id", "empty id", "got ''"),
        ("id,image,modality,labels\na,a.png,CXR,{x}\n", 2, "labels", "cell is no JSON", "is a quote missing?"),
        ("image,modality,label:nodule\na.png,CXR,2\n", 2, "label:nodule", "label column out of range", "got '2'"),
        ("image,modality,label:nodule\na.png,CXR,nan\n", 2, "label:nodule", "label column out of range", "got 'nan'"),
        ("image,modality,label:noduel\na.png,CXR,1\n", 2, "labels", "label typo", "did you mean 'nodule'?"),
        (
            'image,modality,labels,label:nodule\na.png,CXR,"{""nodule"": ""absent""}",1\n',
            2, "label:nodule", "labels contradict each other", "is present here, but absent in labels",
        ),
    ],
)  # fmt: skip
def test_a_bad_csv_is_named(tmp_path: Path, table: str, row: int, column: str, kind: str, words: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(table)
    (problem,) = problems_of(path)
    assert (problem.row, problem.column, problem.kind) == (row, column, kind)
    assert words in problem.text


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("patient", [float("nan")], "NaN"),
        ("findings", [float("nan")], "NaN"),
        ("view", [float("nan")], "NaN"),
        ("patient", [7.5], "mixed types"),
        ("label:nodule", [float("nan")], "label column out of range"),
        ("label:nodule", [True], "label column out of range"),
        ("labels", [{"nodule": "present"}], "cell is no JSON"),
        ("id", [None], "empty id"),
    ],
)
def test_a_bad_parquet_is_named(tmp_path: Path, column: str, values: list, kind: str) -> None:
    path = tmp_path / "m.parquet"
    columns = {"image": ["a.png"], "modality": ["CXR"], column: values}
    pq.write_table(pa.table(columns), path)
    (problem,) = problems_of(path)
    assert (problem.row, problem.kind) == (1, kind)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.jsonl", b"", "is empty"),
        ("m.jsonl", b" \n\n", "is empty"),
        ("m.csv", b"id,image,modality\n", "a header and no rows"),
        ("m.csv", b"id;image;modality\na;b;c\n", "expected commas between columns"),
        ("m.csv", b'id,image,modality\n"a,b,CXR\n', "not CSV"),
        ("m.csv", "id,image,modality\na,b,CXR\n".encode("utf-16"), "expected UTF-8, got UTF-16"),
        ("m.jsonl", json.dumps(CXR).encode("utf-32"), "expected UTF-8, got UTF-32"),
        ("m.csv", "id,image,modality\na,b,CXR\nm\u00fc,b,CXR\n".encode("latin-1"), r"byte 0xfc in line 3 \(Latin-1"),
        ("m.parquet", b"PAR1 cut off", "not a parquet file, or cut off"),
        ("m.xlsx", b"PK", r"expected a name that ends in .jsonl, .csv, .parquet"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_manifest(tmp_path / name)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_manifest(tmp_path / "m.csv")


def test_all_problems_come_at_once_with_row_and_column(tmp_path: Path) -> None:
    rows = [CXR | {"id": f"r{k}", "view": "frontal", **box(9, 9, 9, 9)} for k in range(40)]
    path = jsonl(tmp_path, "{", *rows)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert len(caught.value.problems) == 81
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{path}: 81 problems"
    assert lines[2] == (
        "- row 2 (id 'r0'), column phrases[0].boxes[0]: expected [y0, x0, y1, x1] with each second corner beyond the "
        "first, got [9, 9, 9, 9]; is it corner and size? Then add the corner to the size"
    )
    assert len(lines) == MAX_SHOWN + 2
    assert lines[-1] == "- and 31 more; `radglint data check` lists all"


def test_good_rows_come_beside_the_problems_of_others(tmp_path: Path) -> None:
    rows, problems = parse_manifest(jsonl(tmp_path, CXR, CXR | {"id": "b", "view": "x"}, CXR | {"id": "c"}))
    assert [(number, row.id) for number, row in rows] == [(1, "a"), (3, "c")]
    assert [(problem.row, problem.column) for problem in problems] == [(2, "view")]


def test_rows_with_problems_are_not_written(tmp_path: Path) -> None:
    rows = [
        ManifestRow("a", "a.png", "CXR", phrases=(Phrase("", boxes=((3, 3, 1, 1),)),)),
        ManifestRow("a", "a.png", "CXR", split="dev"),  # pyright: ignore[reportArgumentType]
    ]
    with pytest.raises(ManifestError) as caught:
        write_manifest(tmp_path / "m.csv", rows)
    kinds = [problem.kind for problem in caught.value.problems]
    assert kinds == ["box inside out", "phrase without text", "duplicate id", "bad split"]
    with pytest.raises(ManifestError, match="there are no rows to write"):
        write_manifest(tmp_path / "m.csv", [])
    assert not list(tmp_path.iterdir())


def test_known_labels_are_good_and_far_ones_are_anyones() -> None:
    assert [name for name in KNOWN_LABELS if label_problem(name)] == []
    assert label_problem("left upper lobe widget") is None
    assert label_problem("nodules in both lungs") is None
    assert label_problem("cardiomegly") == "unknown label 'cardiomegly'; did you mean 'cardiomegaly'?"
    assert label_problem(" ") == "expected a name, got ' '; name the finding"


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("", "abc", 3), ("edema", "oedema", 1), ("nodule", "noduel", 1), ("kitten", "sitting", 3), ("ab", "ab", 0)],
)
def test_num_edits(first: str, second: str, edits: int) -> None:
    assert num_edits(first, second) == num_edits(second, first) == edits
