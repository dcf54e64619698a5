"""The registry of data sets, and what the adapters share: tables, images, boxes, masks, report sections."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_trees import write_csv, write_image, write_words
from radglint.datasets import chexpert_labels, registry
from radglint.datasets.report_text import report_parts
from radglint.datasets.rle import decode_coco, decode_relative
from radglint.datasets.tables import (
    ALLOW_MISSING,
    Images,
    box_px,
    dicom_header,
    listed_states,
    number,
    optional_file,
    raster_size_px,
    read_json,
    read_json_lines,
    read_rows,
    required_file,
    required_folder,
    view,
    write_mask,
)
from radglint.errors import InputError

CXR = [name for name, info in registry.DATASETS.items() if info.modality == "CXR"]


def test_registry_has_every_set_of_the_field():
    assert {
        "mimic-cxr-jpg", "chexpert", "chexpert-plus", "nih-chestxray14", "padchest", "openi", "vindr-cxr",
        "rsna-pneumonia", "siim-pneumothorax", "ms-cxr", "chestx-det10", "chexlocalize", "covid-19-cxr",
        "covid-19-rural", "ct-rate-v1", "ct-rate-v2", "rad-chestct", "rexgroundingct", "lidc-idri",
    } == set(registry.DATASETS)  # fmt: skip


@pytest.mark.parametrize("info", registry.DATASETS.values(), ids=lambda info: info.name)
def test_registry_entry_is_complete(info):
    assert all((info.title, info.licence, info.url_name, info.expects, info.module))
    assert re.search(r"\b(19|20)\d\d\b", info.citation), "a citation names its year"
    assert "://" not in info.url_name
    assert not re.search(r"pypi|npmjs|conda", info.url_name)
    assert "\n" not in info.expects
    assert info.modality in ("CXR", "CT")


def test_sharing_of_patients_is_mutual():
    for info in registry.DATASETS.values():
        assert info.name not in info.shares_patients_with
        for other in info.shares_patients_with:
            assert info.name in registry.DATASETS[other].shares_patients_with, (info.name, other)


@pytest.mark.parametrize("name", CXR)
def test_adapter_of_every_radiograph_set_imports(name):
    convert = registry.adapter(name)
    module = sys.modules[convert.__module__]
    assert module.__name__.startswith("radglint.datasets.")
    labels = {own: label for own, label in module.LABELS.items()}
    assert labels
    assert all(label == label.strip().lower() for label in labels.values())


@pytest.mark.parametrize("name", CXR)
def test_empty_folder_says_what_is_missing_and_what_is_expected(name, tmp_path):
    (tmp_path / "unrelated").mkdir()
    with pytest.raises(InputError, match="missing; expected") as caught:
        next(registry.adapter(name)(tmp_path, tmp_path / "out"))
    assert registry.DATASETS[name].expects in str(caught.value)
    assert "found unrelated/" in str(caught.value) or "no such folder" in str(caught.value)


def test_names_are_read_in_any_case_and_a_typo_gets_a_hint():
    assert registry.find(" CheXpert_Plus ").name == "chexpert-plus"
    with pytest.raises(InputError, match="did you mean 'mimic-cxr-jpg'") as caught:
        registry.find("mimic-cxr-jgp")
    assert "padchest" in str(caught.value)
    with pytest.raises(InputError, match=r"no data set 'zzzzzz': known are"):
        registry.adapter("zzzzzz")


def test_registry_imports_no_adapter_and_nothing_heavy():
    code = (
        "import sys, radglint.datasets.registry\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'torch', 'PIL', 'pydicom')"
        " or m.startswith('radglint.datasets.') and m != 'radglint.datasets.registry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- tables


def test_rows_are_streamed_with_their_place_and_stripped_names(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("ImageId", " EncodedPixels"), ("a", " -1"), ("b", "1 2\n3 4"), ("c", "x"))
    rows = list(read_rows(path, ("ImageId", "EncodedPixels")))
    assert [row for _, row in rows] == [
        {"ImageId": "a", "EncodedPixels": "-1"}, {"ImageId": "b", "EncodedPixels": "1 2\n3 4"},
        {"ImageId": "c", "EncodedPixels": "x"},
    ]  # fmt: skip
    assert [where for where, _ in rows] == [f"{path}, line {line}" for line in (2, 4, 5)]


def test_compressed_table_and_byte_order_mark(tmp_path):
    write_csv(tmp_path / "t.csv.gz", ("\ufeffid",), ("1",))
    assert [row for _, row in read_rows(tmp_path / "t.csv.gz", ("id",))] == [{"id": "1"}]


def test_missing_column_names_the_column_and_the_header(tmp_path):
    path = write_csv(tmp_path / "t.csv", ("Path", "Sex"), ("a", "F"))
    with pytest.raises(InputError, match=r"t\.csv: no column 'Age', 'View'; the header has Path, Sex"):
        list(read_rows(path, ("Path", "Age", "View")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header has nothing"),
        (b"id,b\n1\n", "line 2: 1 values for 2 columns"),
        (b"id,b\n\xff\xfe,1\n", "cannot be read as a CSV file"),
    ],
    ids=["empty", "short row", "not text"],
)
def test_damaged_table_is_refused(content, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(path, ("id",)))


def test_truncated_gzip_is_refused(tmp_path):
    path = write_csv(tmp_path / "t.csv.gz", ("id",), *[(str(n),) for n in range(2000)])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="copy or download it again"):
        list(read_rows(path, ("id",)))


def test_number_names_row_and_column():
    assert number("w", {"x": "1.5"}, "x") == 1.5
    for text in ("", "nan", "left"):
        with pytest.raises(InputError, match=f"f, line 3, column 'x': expected a number, got '{text}'"):
            number("f, line 3", {"x": text}, "x")


def test_json_of_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a JSON list, got a dict"):
        read_json(write_words(tmp_path / "a.json", "{}"), list)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(write_words(tmp_path / "b.json", "{"), dict)
    with pytest.raises(InputError, match="line 2: expected a JSON object, got list"):
        list(read_json_lines(write_words(tmp_path / "c.json", '{"a": 1}\n[]\n')))


def test_last_version_of_a_file_is_taken(tmp_path):
    for version in ("v1.0.0", "v1.1.0"):
        write_words(tmp_path / f"M_{version}.csv", "")
    assert optional_file(tmp_path, "N_v*.csv", "M_v*.csv") == tmp_path / "M_v1.1.0.csv"
    assert required_folder(tmp_path, "x", "missing", "") == tmp_path
    with pytest.raises(InputError, match=r"N\.csv is missing; expected the layout; found M_v1"):
        required_file(tmp_path, "the layout", "N.csv")


# --- images


def test_missing_images_are_counted_by_folder_and_refused_at_the_end(tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW_MISSING, raising=False)
    images = Images(tmp_path, "the layout")
    here = write_image(tmp_path / "a" / "0.png")
    assert images.find("a/0.png", None, here) == here.absolute()
    for n in range(1, 6):
        assert images.find(f"b/{n}.png", tmp_path / "b" / f"{n}.png") is None
    with pytest.raises(InputError) as caught:
        images.finish()
    for part in ("5 of 6 listed images are missing", "b: 5 of 5", "first: b/1.png, b/2.png, b/3.png, ...",
                 f"set {ALLOW_MISSING}=1 to go on with the 1"):  # fmt: skip
        assert part in str(caught.value)


def test_missing_images_can_be_allowed_but_not_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW_MISSING, "1")
    images = Images(tmp_path, "the layout")
    images.find("b/1.png")
    with pytest.raises(InputError, match="1 of 1 listed images are missing"):
        images.finish()
    images.find("0.png", write_image(tmp_path / "0.png"))
    with pytest.warns(UserWarning, match="1 of 2 listed images are missing .*; they are left out"):
        images.finish()


def test_wrong_folder_is_noticed_early(tmp_path):
    images = Images(tmp_path, "the layout")
    for n in range(1999):
        assert images.find(f"x/{n}.png", tmp_path / f"{n}.png") is None
    with pytest.raises(InputError, match=r"2000 of 2000 listed images are missing.*expected the layout"):
        images.find("x/1999.png", tmp_path / "1999.png")


def test_sizes_come_from_headers(tmp_path):
    assert raster_size_px(write_image(tmp_path / "a.png", 7, 9)) == (7, 9)
    broken = write_words(tmp_path / "b.png", "no image")
    with pytest.raises(InputError, match=r"b\.png: its size cannot be read"):
        raster_size_px(broken)
    with pytest.raises(InputError, match="its DICOM header cannot be read"):
        dicom_header(broken)


def test_views():
    words = ["PA", "ap", "AP_horizontal", "AP Supine", "LL", "L", "LATERAL", "LAO", "", "Frontal"]
    assert [view(word) for word in words] == ["PA", "AP", "AP", "AP", "LATERAL", "LATERAL", "LATERAL", "", "", ""]


# --- boxes


def test_box_is_turned_and_rounded_outwards():
    assert box_px("w", (10, 20, 40, 60), (100, 80)) == (20, 10, 60, 40)
    assert box_px("w", (10.4, 20.9, 40.1, 60.0), (100, 80)) == (20, 10, 60, 41)
    assert box_px("w", (-3, 5, 90, 200), (100, 80)) == (5, 0, 100, 80)
    assert box_px("w", (7, 7, 7, 7), (100, 80)) == (7, 7, 8, 8)


def test_box_follows_a_resized_image():
    assert box_px("w", (512, 256, 1024, 512), (256, 256), (1024, 1024)) == (64, 128, 128, 256)


@pytest.mark.parametrize(
    ("corners", "size", "drawn", "message"),
    [
        ((40, 20, 10, 60), (100, 80), None, "has its corners swapped"),
        ((90, 20, 95, 60), (100, 80), None, "lies outside the image of 100 x 80 pixels"),
        ((1, 1, 2, 2), (100, 80), (1024, 1024), "drawn on 1024 x 1024 pixels, the image has 100 x 80"),
    ],
)
def test_impossible_box_is_refused(corners, size, drawn, message):
    with pytest.raises(InputError, match=f"t.csv, line 4: .*{message}"):
        box_px("t.csv, line 4", corners, size, drawn)


@given(st.tuples(*[st.floats(0, 63, allow_nan=False)] * 4), st.sampled_from([(64, 64), (32, 32), (128, 128)]))
def test_box_holds_what_was_drawn(values, size):
    x0, x1, y0, y1 = sorted(values[:2]) + sorted(values[2:])
    top, left, bottom, right = box_px("w", (x0, y0, x1, y1), size, (64, 64))
    scale = size[0] / 64
    assert 0 <= top < bottom <= size[0]
    assert 0 <= left < right <= size[1]
    assert left <= x0 * scale
    assert x1 * scale <= right
    assert top <= y0 * scale
    assert y1 * scale <= bottom
    assert x0 * scale - left < 1
    assert right - x1 * scale <= 1


# --- masks


def naive_relative(text: str, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    words, at = [int(word) for word in text.split()], 0
    for gap, length in zip(words[0::2], words[1::2], strict=True):
        at += gap
        for k in range(at, at + length):
            mask[k % size[0], k // size[0]] = True
        at += length
    return mask


def naive_coco(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    flat = [index % 2 == 1 for index, count in enumerate(counts) for _ in range(count)]
    mask = np.zeros(size, dtype=bool)
    for k, value in enumerate(flat):
        mask[k % size[0], k // size[0]] = value
    return mask


def column_runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, outside first."""
    counts, inside = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != inside:
                inside = not inside
                counts.append(0)
            counts[-1] += 1
    return counts


def packed(counts: list[int]) -> str:
    """The characters of the COCO form, written from its description."""
    text = ""
    for index, count in enumerate(counts):
        value = count - (counts[index - 2] if index > 2 else 0)
        while True:
            low = value & 31
            value >>= 5
            more = value != (-1 if low & 16 else 0)
            text += chr(low + (32 if more else 0) + 48)
            if not more:
                break
    return text


MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda values: np.array(values, dtype=bool).reshape(size)
    )
)


@given(MASKS)
def test_both_decoders_undo_their_encoding(mask):
    counts = column_runs(mask)
    size = mask.shape
    for coded in (counts, packed(counts)):
        np.testing.assert_array_equal(decode_coco(coded, size, "w"), mask)
    np.testing.assert_array_equal(naive_coco(counts, size), mask)
    pairs = counts if len(counts) % 2 == 0 else counts[:-1]
    text = " ".join(map(str, pairs)) or "-1"
    np.testing.assert_array_equal(decode_relative(text, size, "w"), mask)
    np.testing.assert_array_equal(naive_relative(text if pairs else "", size), mask)


def test_relative_runs_go_down_the_columns_from_zero():
    mask = decode_relative("1 2 3 1", (4, 3), "w")
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 0], [2, 0], [2, 1]])
    assert not decode_relative(" -1", (4, 3), "w").any()


def test_published_empty_mask_decodes_to_nothing():
    # how the segmentations of CheXlocalize write "no mask" on 2021 x 2021 pixels
    assert not decode_coco("ifdl3", (2021, 2021), "w").any()


@pytest.mark.parametrize(
    ("decode", "coded", "message"),
    [
        (decode_relative, "1 2 3", "expected -1 or pairs of whole numbers"),
        (decode_relative, "1 -2", "expected -1 or pairs of whole numbers"),
        (decode_relative, "", "expected -1 or pairs of whole numbers"),
        (decode_relative, "3 10", "ends at pixel 13 of 12; it belongs to a larger image"),
        (decode_coco, [5, 5], "cover 10 pixels, expected 4 x 3"),
        (decode_coco, [20, -8], "the file is damaged"),
        (decode_coco, "!!", "cannot stand in a packed mask"),
        (decode_coco, "P", "ends inside a number"),
    ],
)
def test_damaged_runs_are_refused(decode, coded, message):
    with pytest.raises(InputError, match=message):
        decode(coded, (4, 3), "t.csv, line 2")


def test_mask_is_written_as_black_and_white(tmp_path):
    mask = np.zeros((5, 6), dtype=bool)
    mask[1, 2] = True
    assert write_mask(tmp_path / "out", "masks/set/a.png", mask) == "masks/set/a.png"
    stored = np.asarray(Image.open(tmp_path / "out" / "masks" / "set" / "a.png"))
    np.testing.assert_array_equal(stored, mask * 255)


# --- labels and reports


def test_states_keep_absent_uncertain_and_unlabelled_apart():
    row = {"Edema": "1.0", "Fracture": "0", "Pneumonia": "-1.0", "Cardiomegaly": "", "Sex": "F", "Airspace Opacity": 1}
    assert chexpert_labels.states("w", row) == {
        "edema": "present", "fracture": "absent", "pneumonia": "uncertain", "lung opacity": "present",
    }  # fmt: skip
    with pytest.raises(InputError, match="f, line 9, column 'Edema': expected 1, 0, -1 or nothing, got '2'"):
        chexpert_labels.states("f, line 9", {"Edema": "2"})


def test_listed_states_give_every_label_a_state():
    assert listed_states({"A": "a", "B": "b"}, ["b"]) == {"a": "absent", "b": "present"}


MIMIC_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough

 FINDINGS:
 There is a small left effusion.
 The heart is normal.

 IMPRESSION:
 Small left pleural effusion.
"""


def test_report_is_cut_at_its_headings():
    parts = report_parts(MIMIC_REPORT)
    assert " ".join(parts.findings.split()) == "There is a small left effusion. The heart is normal."
    assert parts.impression == "Small left pleural effusion."
    assert parts.report == ""


def test_report_without_headings_is_kept_whole():
    parts = report_parts("   FINAL REPORT\n The lungs are clear.\n")
    assert (parts.findings, parts.impression, parts.report) == ("", "", "The lungs are clear.")


def test_text_before_the_impression_counts_as_findings():
    parts = report_parts("FINAL REPORT\n The lungs are clear.\n\n IMPRESSION:  No acute process.\n")
    assert (parts.findings, parts.impression, parts.report) == ("The lungs are clear.", "No acute process.", "")
