"""LIDC-IDRI: readers' outlines to masks, and the adapter on a tiny DICOM series with XML in the published schema."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import radglint
from dicom_files import phantom_hu, write_ct_series, write_radiograph
from lidc_files import RATINGS, Points, nodule_xml, reader, ring, roi_xml, scan_xml, slices_of
from radglint.datasets import lidc
from radglint.datasets.contours import (
    BoxedMask,
    agreement,
    boxed,
    drawn_pixels,
    enclosed_pixels,
    longest_in_plane_mm,
    overlap_groups,
    union,
)
from radglint.datasets.lidc_xml import read_lidc_xml
from radglint.errors import InputError
from radglint.manifest import ManifestRow, Phrase

SHAPE = (16, 20)

# ------------------------------------------------------------------------------------------------ outlines


def picture(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def naive_enclosed(points: Points, shape: tuple[int, int]) -> np.ndarray:
    """The winding number as a sum of angles; a pixel on a segment is outside."""
    mask = np.zeros(shape, dtype=bool)
    pairs = list(zip(points, [*points[1:], points[0]], strict=True))
    for y, x in np.ndindex(shape):
        turn, on_line = 0.0, False
        for (y0, x0), (y1, x1) in pairs:
            cross = (x0 - x) * (y1 - y) - (y0 - y) * (x1 - x)
            dot = (x0 - x) * (x1 - x) + (y0 - y) * (y1 - y)
            on_line |= cross == 0 and dot <= 0
            turn += math.atan2(cross, dot)
        mask[y, x] = not on_line and round(turn / (2 * math.pi)) != 0
    return mask


def test_the_outline_is_the_first_pixel_outside():
    ring = [(1, 2), (1, 3), (2, 4), (3, 4), (4, 3), (4, 2), (3, 1), (2, 1)]
    expected = picture("...... ...... ..##.. ..##.. ...... ......")
    np.testing.assert_array_equal(enclosed_pixels(np.array(ring), (6, 6)), expected)
    corners_only = [(0, 0), (0, 4), (4, 4), (4, 0)]  # pixels between two corners are outline too
    expected = picture("..... .###. .###. .###. .....")
    np.testing.assert_array_equal(enclosed_pixels(np.array(corners_only), (5, 5)), expected)


@pytest.mark.parametrize("points", [[], [(2, 2)], [(2, 2), (2, 5)], [(1, 1), (1, 5), (1, 1)], [(1, 1), (2, 2), (1, 2)]])
def test_an_outline_without_room_encloses_nothing(points):
    assert not enclosed_pixels(np.array(points).reshape(-1, 2), SHAPE).any()


def test_an_outline_beyond_the_slice_is_cut_off():
    mask = enclosed_pixels(np.array([(-3, -3), (-3, 4), (4, 4), (4, -3)]), SHAPE)
    np.testing.assert_array_equal(np.argwhere(mask), [(y, x) for y in range(4) for x in range(4)])
    assert not enclosed_pixels(np.array([(30, 30), (30, 40), (40, 40)]), SHAPE).any()


@given(st.lists(st.tuples(st.integers(-2, 12), st.integers(-2, 12)), min_size=3, max_size=9))
def test_enclosed_pixels_equal_the_naive_form(points):
    np.testing.assert_array_equal(enclosed_pixels(np.array(points), (11, 12)), naive_enclosed(points, (11, 12)))


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=6))
def test_drawn_pixels_are_those_on_a_segment(points):
    expected = np.zeros((9, 9), dtype=bool)
    for (y0, x0), (y1, x1) in zip(points, [*points[1:], points[0]], strict=True):
        for y, x in np.ndindex(9, 9):
            between = min(y0, y1) <= y <= max(y0, y1) and min(x0, x1) <= x <= max(x0, x1)
            expected[y, x] |= between and (x1 - x0) * (y - y0) == (x - x0) * (y1 - y0)
    np.testing.assert_array_equal(drawn_pixels(np.array(points), (9, 9)), expected)


def box_of(z: int, y: int, x: int, size: int = 2) -> BoxedMask:
    return BoxedMask((z, y, x), np.ones((size, size, size), dtype=bool))


def in_volume(mask: BoxedMask, shape: tuple[int, int, int] = (8, 8, 8)) -> np.ndarray:
    volume = np.zeros(shape, dtype=np.int32)
    mask.add_to(volume)
    return volume > 0


def test_masks_that_share_a_voxel_are_one_nodule():
    chain = [box_of(0, 0, 0), box_of(4, 4, 4), box_of(1, 1, 1), box_of(2, 2, 2), box_of(6, 0, 0)]
    assert overlap_groups(chain) == [[0, 2, 3], [1], [4]]
    corner = BoxedMask((0, 0, 0), np.arange(8).reshape(2, 2, 2) == 0)  # its box meets the other's, its voxel does not
    assert overlap_groups([corner, box_of(1, 1, 1)]) == [[0], [1]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_agreement_of_half_the_readers_equals_the_naive_form(count):
    rng = np.random.default_rng(count)
    masks = [BoxedMask(tuple(rng.integers(0, 3, 3)), rng.random((4, 5, 3)) < 0.5) for _ in range(count)]
    votes = sum(in_volume(mask).astype(int) for mask in masks)
    np.testing.assert_array_equal(in_volume(agreement(masks, 0.5)), votes >= max(1, count / 2))
    np.testing.assert_array_equal(in_volume(union(masks)), votes >= 1)


def test_a_boxed_mask_is_tight():
    plane = np.zeros(SHAPE, dtype=bool)
    plane[3:5, 7] = True
    mask = boxed({2: plane, 5: plane[::-1], 9: np.zeros(SHAPE, dtype=bool)})
    assert mask is not None
    assert (mask.origin, mask.voxels.shape) == ((2, 3, 7), (4, 10, 1))
    assert in_volume(mask, (10, *SHAPE)).sum() == 4
    assert boxed({2: np.zeros(SHAPE, dtype=bool)}) is None


def test_the_diameter_is_the_longest_extent_within_one_slice():
    rng = np.random.default_rng(0)
    voxels = rng.random((3, 6, 7)) < 0.3
    spacing = np.array([0.5, 0.8])
    naive = max(
        float(np.linalg.norm((np.subtract(p, q)) * spacing))
        for plane in voxels for p in np.argwhere(plane) for q in np.argwhere(plane)
    )  # fmt: skip
    mask = BoxedMask((0, 0, 0), voxels)
    assert longest_in_plane_mm(mask, (0.5, 0.8)) == pytest.approx(naive + 0.65)
    assert longest_in_plane_mm(box_of(0, 0, 0, 1), (0.5, 0.8)) == pytest.approx(0.65)


# ----------------------------------------------------------------------------------------------------- XML

NON_NODULE = (
    "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>-30</imageZposition><imageSOP_UID>x</imageSOP_UID>"
    "<locus><xCoord>3</xCoord><yCoord>4</yCoord></locus></nonNodule>"
)


def test_an_xml_file_is_read_as_published(tmp_path):
    path = tmp_path / "069.xml"
    session = nodule_xml("7", [roi_xml(-12.5, "1.9", [(4, 3), (5, 6)], "FALSE")], RATINGS)
    small = nodule_xml("8", [roi_xml(-20, "1.8", [(2, 2)])])
    path.write_text(scan_xml("1.2.840.1", [session + NON_NODULE, small]))
    reading = read_lidc_xml(path)
    assert reading is not None
    assert (reading.study_uid, reading.series_uid) == ("1.2.3.4", "1.2.840.1")
    assert (reading.readers, reading.non_nodules) == (2, 1)
    large, tiny = reading.nodules
    assert (large.reader, large.name, large.ratings, large.is_small) == (0, "7", RATINGS, False)
    assert (tiny.reader, tiny.name, tiny.ratings, tiny.is_small) == (1, "8", {}, True)
    (outline,) = large.outlines
    assert (outline.z_mm, outline.sop_uid, outline.inclusion) == (-12.5, "1.9", False)
    assert outline.points.tolist() == [[4, 3], [5, 6]]


def test_readings_of_radiographs_are_passed_over(tmp_path):
    path = tmp_path / "cxr.xml"
    path.write_text(scan_xml("1", [], kind="IdriReadMessage"))
    assert read_lidc_xml(path) is None


BOMB = '<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
ONE_POINT = scan_xml("1", [nodule_xml("1", [roi_xml(1, "u", [(1, 1)])], {"margin": 4})])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<LidcReadMessage>", r"bad\.xml: not well-formed XML"),
        ("<Other/>", r"bad\.xml: root element 'Other', expected LidcReadMessage"),
        ("<LidcReadMessage/>", r"LidcReadMessage has no ResponseHeader"),
        (scan_xml("", []), r"SeriesInstanceUid in ResponseHeader is empty"),
        (scan_xml("1", [], head=BOMB), r"declares a document type"),
        (scan_xml("1", [nodule_xml("1", ["<roi><inclusion>TRUE</inclusion></roi>"])]), r"roi has no imageZposition"),
        (scan_xml("1", [nodule_xml("1", [roi_xml(1, "u", [])])]), r"a roi at z 1 has no edgeMap"),
        (ONE_POINT.replace("TRUE", "MAYBE"), r"inclusion 'MAYBE', expected TRUE or FALSE"),
        (ONE_POINT.replace("<imageZposition>1", "<imageZposition>?"), r"imageZposition '\?', expected a number"),
        (ONE_POINT.replace("<xCoord>1", "<xCoord>1.5"), r"xCoord '1\.5', expected a whole number"),
        (ONE_POINT.replace("<margin>4", "<margin>x"), r"margin 'x', expected a whole number"),
    ],
)
def test_a_wrong_xml_file_names_file_and_element(tmp_path, text, message):
    path = tmp_path / "bad.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_lidc_xml(path)


# ------------------------------------------------------------------------------------------------- adapter

SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1"
PATIENT = "LIDC-IDRI-0001"


def write_scan(root: Path, *, down: bool = False, skip: tuple[int, ...] = (), series: str = SERIES) -> Path:
    """A series in the published folders; `down` stores the slices from head to feet."""
    folder = root / PATIENT / "01-01-2000-30178" / f"3000566.{series[-1]}"
    step = (0.0, 0.0, -2.0 if down else 2.0)
    tags = {"PatientID": PATIENT, "SeriesInstanceUID": series, "StudyInstanceUID": "1.2.3.4"}
    write_ct_series(folder, step=step, skip=skip, **tags)
    return folder


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def filled(*parts: tuple[int, int, int, int, int], depth: int = 12) -> np.ndarray:
    mask = np.zeros((depth, *SHAPE), dtype=bool)
    for z, y0, x0, y1, x1 in parts:
        mask[z, y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("down", [False, True])
def test_rows_and_masks_of_lidc(tmp_path, down):
    folder = write_scan(tmp_path / "src", down=down)
    places = slices_of(folder)
    one = {3: (4, 6, 8, 10), 4: (4, 6, 8, 10)}
    two = {3: (5, 6, 9, 10), 4: (4, 6, 8, 9)}
    three = {4: (4, 5, 8, 9), 5: (4, 6, 5, 7)}
    far = {9: (10, 14, 12, 17)}
    hole = roi_xml(*places[9], [(11, 15)], "FALSE")
    sessions = [
        reader(places, one, "a") + NON_NODULE,
        reader(places, two, "b"),
        reader(places, three, "c") + nodule_xml("s", [roi_xml(*places[1], [(3, 3)])]),
        nodule_xml("d", [roi_xml(*places[9], ring(*far[9])), hole], RATINGS),
    ]
    (folder / "069.xml").write_text(scan_xml(SERIES, sessions))
    out = tmp_path / "out"
    (row,) = lidc.convert(tmp_path / "src", out)
    ident = f"{PATIENT}_{SERIES}"
    image = radglint.read_image(row.image)
    votes = sum(filled(*((z, *box) for z, box in drawn.items())).astype(int) for drawn in (one, two, three))
    expected = [votes >= 2, filled((9, *far[9]))]
    expected[1][9, 11, 15] = False  # the one-pixel hole is its own outline
    ratings = [{"reader": number, **RATINGS} for number in range(4)]
    # Slice 4 keeps 4 rows of 1.5 mm and 3 columns of 1 mm: hypot(4.5, 2) + 1.25 mm.
    assert row == ManifestRow(
        id=ident,
        image=str(folder),
        modality="CT",
        dataset="lidc-idri",
        patient=PATIENT,
        study="1.2.3.4",
        series=SERIES,
        labels={"nodule": "present"},
        phrases=(
            Phrase("nodule, 6 mm", "nodule", ((3, 4, 6, 5, 8, 10),), (f"masks/{ident}/nodule_01.nii.gz",)),
            Phrase("nodule, 4 mm", "nodule", ((9, 10, 14, 10, 12, 17),), (f"masks/{ident}/nodule_02.nii.gz",)),
        ),
        size_px=(12, 16, 20),
        extra={
            "readers": 4,
            "nodules": [
                {"diameter_mm": 6.17, "readers": 3, "ratings": ratings[:3]},
                {"diameter_mm": 3.75, "readers": 1, "ratings": ratings[3:]},
            ],
            "small_nodules": 1,
            "non_nodules": 1,
        },
    )
    for phrase, mask in zip(row.phrases, expected, strict=True):
        found = read_mask(out / phrase.masks[0])
        assert found.shape == image.shape
        np.testing.assert_array_equal(found != 0, mask)
        np.testing.assert_allclose(nib.load(out / phrase.masks[0]).affine, image.nifti_affine, atol=1e-5)


def test_a_bright_block_is_found_where_it_lies(tmp_path):
    """The phantom's bright block, outlined in pixels of its own slices, covers exactly its voxels as read."""
    folder = write_scan(tmp_path / "src", down=True)
    hu = phantom_hu()[::-1]  # stored from head to feet: read from feet to head
    places = slices_of(folder)
    block = np.argwhere(hu > 500)
    (y0, x0), (y1, x1) = block[:, 1:].min(axis=0), block[:, 1:].max(axis=0) + 1
    rectangles = {int(d): (int(y0), int(x0), int(y1), int(x1)) for d in np.unique(block[:, 0])}
    (folder / "1.xml").write_text(scan_xml(SERIES, [reader(places, rectangles, "a")]))
    (row,) = lidc.convert(tmp_path / "src", tmp_path / "out")
    image = radglint.read_image(row.image)
    mask = read_mask(tmp_path / "out" / row.phrases[0].masks[0])
    np.testing.assert_array_equal(mask != 0, image.array > 500)


def test_slices_are_found_by_position_where_the_uid_is_unknown(tmp_path):
    folder = write_scan(tmp_path / "src")
    places = [(z + 0.4, "unknown") for z, _ in slices_of(folder)]
    (folder / "1.xml").write_text(scan_xml(SERIES, [reader(places, {3: (4, 6, 8, 10)}, "a")]))
    (row,) = lidc.convert(tmp_path / "src", tmp_path / "out")
    assert row.phrases[0].boxes == ((3, 4, 6, 4, 8, 10),)


def test_uneven_slices_take_the_outline_of_the_nearest_one(tmp_path):
    folder = write_scan(tmp_path / "src", skip=(6,))
    places = slices_of(folder)
    assert radglint.read_image(folder).is_resampled
    rectangles = {4: (4, 6, 8, 10), 6: (5, 6, 8, 10)}  # before the gap, and after it: slices 4 and 7 of the even grid
    (folder / "1.xml").write_text(scan_xml(SERIES, [reader(places, rectangles, "a")]))
    (row,) = lidc.convert(tmp_path / "src", tmp_path / "out")
    mask = read_mask(tmp_path / "out" / row.phrases[0].masks[0]) != 0
    assert mask.shape == radglint.read_image(folder).shape == (12, 16, 20)
    np.testing.assert_array_equal(mask, filled((4, 4, 6, 8, 10), (7, 5, 6, 8, 10)))


@pytest.mark.parametrize(
    ("session", "labels"),
    [
        ("", {"nodule": "absent"}),
        (NON_NODULE, {"nodule": "absent"}),
        (nodule_xml("s", [roi_xml(-30, "", [(3, 3)])]), {}),
        (nodule_xml("flat", [roi_xml(-30, "", [(3, 3), (3, 4), (3, 5)])], RATINGS), {}),
    ],
)
def test_a_scan_without_an_extended_nodule(tmp_path, session, labels):
    folder = write_scan(tmp_path / "src")
    (folder / "1.xml").write_text(scan_xml(SERIES, [session, ""]))
    (row,) = lidc.convert(tmp_path / "src", tmp_path / "out")
    assert row.labels == labels
    assert row.phrases == ()


def test_xml_files_apart_are_matched_by_series(tmp_path):
    root = tmp_path / "src"
    places = slices_of(write_scan(root))
    write_scan(root, series=SERIES[:-1] + "2")
    write_radiograph(root / PATIENT / "cxr.dcm", np.zeros((4, 4), np.uint16))
    apart = root / "tcia-lidc-xml/157"
    apart.mkdir(parents=True)
    (apart / "1.xml").write_text(scan_xml(SERIES, [reader(places, {3: (4, 6, 8, 10)}, "a")]))
    (apart / "2.xml").write_text(scan_xml(SERIES[:-1] + "2", [""]))
    (apart / "3.xml").write_text(scan_xml("1", [], kind="IdriReadMessage"))
    one, two = lidc.convert(root, tmp_path / "out")
    assert (one.series, len(one.phrases)) == (SERIES, 1)
    assert (two.series, len(two.phrases)) == (SERIES[:-1] + "2", 0)
    assert one.id != two.id


def test_a_series_that_was_done_is_not_read_again_unless_its_xml_changes(tmp_path, monkeypatch):
    folder, out = write_scan(tmp_path / "src"), tmp_path / "out"
    places = slices_of(folder)
    (folder / "1.xml").write_text(scan_xml(SERIES, [reader(places, {3: (4, 6, 8, 10)}, "a")]))
    first = list(lidc.convert(tmp_path / "src", out))
    calls = []
    monkeypatch.setattr(lidc, "read_image", lambda path: calls.append(path) or radglint.read_image(path))
    assert list(lidc.convert(tmp_path / "src", out)) == first
    assert calls == []
    (folder / "1.xml").write_text(scan_xml(SERIES, [reader(places, {3: (4, 6, 8, 12)}, "a")]))
    (row,) = lidc.convert(tmp_path / "src", out)
    assert calls == [folder]
    assert row.phrases[0].boxes == ((3, 4, 6, 4, 8, 12),)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", r"no CT series found, expected LIDC-IDRI-NNNN/STUDY/SERIES/\*\.dcm"),
        ("no xml", rf"no readings of series {SERIES}; expected a LIDC XML file"),
        ("other xml", rf"1\.xml: readings of series 1\.2\.9, expected {SERIES}"),
        ("no slice", r"1\.xml: an outline at z 500 mm, slice u, but .* has no such slice \(-30 to -8 mm\)"),
    ],
)
def test_a_wrong_lidc_folder_names_file_and_expectation(tmp_path, what, message):
    root = tmp_path / "src"
    root.mkdir()
    if what != "empty":
        folder = write_scan(root)
    if what == "other xml":
        (folder / "1.xml").write_text(scan_xml("1.2.9", [""]))
    if what == "no slice":
        session = nodule_xml("a", [roi_xml(500, "u", ring(4, 6, 8, 10))], RATINGS)
        (folder / "1.xml").write_text(scan_xml(SERIES, [session]))
    with pytest.raises(InputError, match=message):
        list(lidc.convert(root, tmp_path / "out"))
