"""Lungs and heart of a base from a label map: for CT and radiographs, in a user's own coding, and every wrong map."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from radglint import cli, simulate
from radglint.errors import InputError, OutputError
from radglint.reading import read_image
from radglint.simulation import dataset, sources
from radglint.simulation.anatomy_ct import HEART, LEFT_LUNG, RIGHT_LUNG
from radglint.simulation.anatomy_cxr import heart_between
from radglint.simulation.case import FilmSource, Plan, VolumeSource
from radglint.simulation.drr import DrrConfig, project_mask, render_drr
from radglint.simulation.label_maps import CT_CODING, CXR_CODING, LabelMaps, read_label_maps
from simulation_bases import coarse_phantom, films

STEP_MM = 5.0


def save(path: Path, array: np.ndarray, spacing_mm=(STEP_MM, 2.0, 2.0), *, flipped: bool = False, shift_mm=0.0) -> None:
    """`slices height width`, feet to head, front to back, patient right to left; or the same grid stored otherwise."""
    step, row, column = spacing_mm
    affine = np.diag([-column, -row, step, 1.0])
    affine[2, 3] = shift_mm
    stored = array.transpose(2, 1, 0)
    if flipped:
        stored = stored[::-1]
        affine[:, 3] += affine[:, 0] * (len(stored) - 1)
        affine[:, 0] *= -1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(stored, affine), path)


def total_values() -> np.ndarray:
    """The phantom's anatomy in values of TotalSegmentator: five lobes, a heart, a liver for all the rest."""
    labels = coarse_phantom().anatomy.labels
    values = np.where(labels > 0, 5, 0).astype(np.uint8)
    middle = len(labels) // 2
    for label, (lower, upper) in {LEFT_LUNG: (11, 10), RIGHT_LUNG: (14, 12)}.items():
        values[labels == label] = upper
        values[:middle][labels[:middle] == label] = lower
    values[middle - 2 : middle][labels[middle - 2 : middle] == RIGHT_LUNG] = 13
    values[labels == HEART] = 51
    return values


@pytest.fixture
def ct(tmp_path) -> Path:
    """A CT file, the phantom's."""
    path = tmp_path / "bases" / "body.nii.gz"
    save(path, np.rint(coarse_phantom().volume_hu).astype(np.int16))
    return path


def ct_with(ct: Path, values: np.ndarray, coding: dict | None = None, **kwargs) -> VolumeSource:
    """Bases of a CT and a label map."""
    folder = ct.parents[1] / "labels"
    save(folder / "body.nii.gz", values, **kwargs)
    if coding is not None:
        (folder / "labels.json").write_text(json.dumps(coding))
    return sources.ct_source([ct], slice_step_mm=STEP_MM, label_maps=read_label_maps(folder, CT_CODING))


def share_alike(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def volume_ml(mask: np.ndarray) -> float:
    return float(mask.sum()) * STEP_MM / 1000


@pytest.mark.parametrize("flipped", [False, True])
def test_lungs_and_heart_of_a_ct_are_those_of_its_map(ct, flipped):
    """The map's lungs are shrunk at the back, so that they are no estimate of ours; axes may be stored otherwise."""
    values = total_values()
    lung = (values >= 10) & (values <= 14)
    back = values.copy()
    back[:, int(np.nonzero(lung)[1].mean()) :][lung[:, int(np.nonzero(lung)[1].mean()) :]] = 5
    found = ct_with(ct, back, flipped=flipped)
    (base,) = found.volumes
    assert (base.name, base.labelled, found.patients) == ("body", ("lungs", "heart"), ["body"])
    for label, wanted in ((LEFT_LUNG, (10, 11)), (RIGHT_LUNG, (12, 13, 14)), (HEART, (51,))):
        expected = float(np.isin(back, wanted).sum()) * STEP_MM * 4 / 1000
        assert volume_ml(base.anatomy.labels == label) == pytest.approx(expected, rel=0.03)
    rows = np.nonzero((base.anatomy.labels == LEFT_LUNG) | (base.anatomy.labels == RIGHT_LUNG))[1]
    unaided = sources.ct_source([ct], slice_step_mm=STEP_MM).volumes[0].anatomy.labels
    assert rows.max() < np.nonzero((unaided == LEFT_LUNG) | (unaided == RIGHT_LUNG))[1].max() - 20
    left = np.nonzero(base.anatomy.labels == LEFT_LUNG)[2].mean()
    assert left > np.nonzero(base.anatomy.labels == RIGHT_LUNG)[2].mean()


def test_other_values_are_told_and_a_missing_heart_is_estimated(ct):
    values = total_values()
    own = np.select([np.isin(values, (10, 11)), np.isin(values, (12, 13, 14))], [7, 9], 0).astype(np.uint8)
    (base,) = ct_with(ct, own, {"left lung": [7], "right lung": [9]}).volumes
    assert base.labelled == ("lungs",)
    assert volume_ml(base.anatomy.labels == LEFT_LUNG) == pytest.approx((own == 7).sum() * 0.02, rel=0.03)
    assert 50 < volume_ml(base.anatomy.labels == HEART) < 1500


def moved(values: np.ndarray, old: tuple[int, ...], new: int) -> np.ndarray:
    return np.where(np.isin(values, old), new, values).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "coding", "kwargs", "said"),
    [
        (lambda v: v[:-1], None, {}, r"body\.nii\.gz: lies on another grid than .*body\.nii\.gz \(shape"),
        (lambda v: v, None, {"shift_mm": 2.0}, r"body\.nii\.gz: lies on another grid"),
        (lambda v: moved(v, (5,), 200), None, {}, r"value 200 has no meaning \(TotalSegmentator v2, the default\)"),
        (lambda v: moved(v, (10, 11), 5), None, {}, r'"left lung" \(value 10, 11; .*is 0 ml, expected at least 50'),
        (lambda v: v, {"left lung": [12, 13, 14], "right lung": [10, 11], "other": [5, 51]}, {},
         r'"left lung" lies to the patient\'s right of "right lung" \(.*labels\.json\)'),
        (lambda v: v, {"left lung": [10, 11], "right lung": [12, 13, 14], "heart": [51]}, {},
         r"value 5 has no meaning \(.*labels\.json\); give each value a key"),
        (lambda v: v * np.float32(1.01), None, {}, r"body\.nii\.gz: expected whole numbers, got fractions"),
        (lambda v: v.astype(np.int16) - 1, None, {}, r"body\.nii\.gz: expected whole numbers from 0"),
    ],
)  # fmt: skip
def test_a_wrong_map_of_a_ct_is_refused(ct, change, coding, kwargs, said):
    with pytest.raises(InputError, match=said):
        ct_with(ct, change(total_values()), coding, **kwargs)


def test_a_missing_or_damaged_map_is_named(ct):
    folder = ct.parents[1] / "labels"
    folder.mkdir()
    maps = read_label_maps(folder, CT_CODING)
    with pytest.raises(InputError, match=r"labels/body\.nii\.gz: no such label map"):
        sources.ct_source([ct], slice_step_mm=STEP_MM, label_maps=maps)
    (folder / "body.nii.gz").write_bytes(b"no NIfTI")
    with pytest.raises(InputError, match=r"labels/body\.nii\.gz: the label map cannot be read"):
        sources.ct_source([ct], slice_step_mm=STEP_MM, label_maps=maps)
    with pytest.raises(InputError, match=r"2 bases are named body"):
        sources.ct_source([ct, ct], slice_step_mm=STEP_MM, label_maps=maps)
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_label_maps(folder / "nowhere", CT_CODING)


@pytest.mark.parametrize(
    ("coding", "said"),
    [
        ("{", "labels.json: no JSON"),
        ("[1]", "expected an object"),
        ('{"left lung": [1], "right lung": [2], "liver": [3]}', "'liver' is no key"),
        ('{"left lung": [1]}', '"right lung" has no value'),
        ('{"left lung": [1], "right lung": [true]}', '"right lung": expected a list of whole numbers'),
        ('{"left lung": [1], "right lung": [0]}', '"right lung": expected a list of whole numbers from 1'),
        ('{"left lung": [1], "right lung": [2], "heart": [1]}', "value 1 is listed twice"),
    ],
)
def test_a_wrong_coding_names_file_and_key(tmp_path, coding, said):
    (tmp_path / "labels.json").write_text(coding)
    with pytest.raises(InputError) as caught:
        read_label_maps(tmp_path, CT_CODING)
    assert str(tmp_path / "labels.json") in str(caught.value)
    assert said in str(caught.value)


def film_values() -> np.ndarray:
    lungs = films().films[0].lungs
    return np.select([lungs.right, lungs.left, lungs.heart], [1, 2, 3], 0).astype(np.uint8)


@pytest.fixture
def film(tmp_path) -> Path:
    """A radiograph of the phantom in a subfolder, twice as large as a film."""
    path = tmp_path / "bases" / "sub" / "one.png"
    path.parent.mkdir(parents=True)
    picture = np.rint(films().films[0].picture * 255).astype(np.uint8)
    Image.fromarray(picture.repeat(2, 0).repeat(2, 1)).save(path)
    return path


def films_with(film: Path, write, name: str = "one.png", coding: dict | None = None) -> FilmSource:
    folder = film.parents[2] / "labels"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    write(folder / "sub" / name)
    if coding is not None:
        (folder / "labels.json").write_text(json.dumps(coding))
    return sources.radiograph_source([film.parents[1]], label_maps=read_label_maps(folder, CXR_CODING))


def large_map() -> np.ndarray:
    return film_values().repeat(2, 0).repeat(2, 1)


def palette(path: Path) -> None:
    picture = Image.fromarray(large_map(), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("one.png", lambda path: Image.fromarray(large_map()).save(path)),
        ("one.png", palette),
        ("one.nii.gz", lambda path: nib.save(nib.Nifti1Image(large_map().T, np.eye(4)), path)),
        ("one.nii", lambda path: nib.save(nib.Nifti1Image(large_map().T[..., None], np.eye(4)), path)),
    ],
)
def test_one_radiograph_with_a_map_is_enough(film, name, write, monkeypatch):
    """No features are asked; the fields are those of the map to the pixel."""
    monkeypatch.setattr(sources, "lungs_by_features", lambda *_: pytest.fail("the map was not enough"))
    (found,) = films_with(film, write, name).films
    wanted = films().films[0].lungs
    assert found.labelled == ("lungs", "heart")
    for part in ("left", "right", "heart"):
        expected = getattr(wanted, part) & (film_values() == {"right": 1, "left": 2, "heart": 3}[part])
        assert share_alike(getattr(found.lungs, part), expected) > 0.999
    case = FilmSource([found]).make(Plan("a", 3, 1))
    assert case.pixels.shape == (512, 512)


def test_a_radiograph_without_a_heart_in_its_map_gets_an_estimate(film):
    values = np.where(large_map() == 3, 0, large_map()).astype(np.uint8)
    own = np.select([values == 1, values == 2], [20, 10], 0).astype(np.uint8)
    coding = {"left lung": [10], "right lung": [20]}
    (found,) = films_with(film, lambda path: Image.fromarray(own).save(path), coding=coding).films
    assert found.labelled == ("lungs",)
    assert found.lungs.heart.any()
    assert np.nonzero(found.lungs.left)[1].mean() > np.nonzero(found.lungs.right)[1].mean()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda: film_values(), r"sub/one\.png: 512 rows and 512 columns, expected those of its radiograph, 1024"),
        (lambda: np.where(large_map() == 3, 255, large_map()).astype(np.uint8),
         r"sub/one\.png: value 255 has no meaning \(the default for radiographs\)"),
        (lambda: np.where(large_map() == 1, 0, large_map()).astype(np.uint8), r'"right lung" \(value 1; .*is 0 %'),
        (lambda: large_map()[:, ::-1], r'"left lung" lies to the patient\'s right'),
        (lambda: np.stack([large_map()] * 3, -1), r"one\.png: a colour picture \(RGB\), expected one value a pixel"),
    ],
)  # fmt: skip
def test_a_wrong_map_of_a_radiograph_is_refused(film, values, said):
    with pytest.raises(InputError, match=said):
        films_with(film, lambda path: Image.fromarray(np.ascontiguousarray(values())).save(path))


def test_a_radiograph_without_a_map_is_named(film):
    with pytest.raises(InputError, match=r"labels/sub/one\.png: no such label map"):
        films_with(film, lambda path: None)


def test_a_run_with_label_maps_is_resumed_only_with_them(film, tmp_path):
    found = films_with(film, lambda path: Image.fromarray(large_map()).save(path))
    plain = FilmSource([dataclasses.replace(film, labelled=()) for film in found.films])
    other = found.films[0]
    other = dataclasses.replace(other, lungs=dataclasses.replace(other.lungs, heart=np.zeros_like(other.lungs.heart)))
    plans = [Plan("a", 3, 1)]
    dataset.write_dataset(found, tmp_path / "out", plans, 3)
    for changed in (plain, FilmSource([other])):
        with pytest.raises(OutputError, match="other bases or label maps"):
            dataset.write_dataset(changed, tmp_path / "out", plans, 3)
    dataset.write_dataset(found, tmp_path / "out", plans, 3)
    assert "labels" in json.loads((tmp_path / "out" / "simulation.json").read_text())["bases"][0]
    dataset.write_dataset(plain, tmp_path / "plain", plans, 3)
    assert "labels" not in (tmp_path / "plain" / "simulation.json").read_text()


def test_the_command_takes_label_maps(ct, capsys):
    labels, out = ct.parents[1] / "labels", ct.parents[1] / "out"
    save(labels / "body.nii.gz", total_values())
    arguments = [str(ct), "--labels", str(labels), "--out", str(out), "--count", "1", "--slice-step", "10"]
    assert cli.main(["simulate", "ct", *arguments]) == 0
    assert capsys.readouterr().out.startswith("1 cases")
    (base,) = json.loads((out / "simulation.json").read_text())["bases"]
    assert (base["name"], len(base["labels"])) == ("body", 16)


def test_a_reconstructed_radiograph_shows_the_heart_of_the_map(ct):
    """A heart of the left half only: the one between the lungs would be twice as wide."""
    values = total_values()
    columns = np.nonzero(values == 51)[2]
    half = values.copy()
    half[:, :, : int(columns.mean())][half[:, :, : int(columns.mean())] == 51] = 5
    (film,) = sources.drr_source(ct_with(ct, half), 5, views=1).films
    whole = heart_between(film.lungs.left, film.lungs.right)
    assert film.labelled == ("lungs", "heart")
    assert np.ptp(np.nonzero(film.lungs.heart)[1]) < 0.75 * np.ptp(np.nonzero(whole)[1])


def test_label_maps_need_bases_and_a_folder_of_their_own(ct, tmp_path):
    with pytest.raises(InputError, match="a phantom needs no label map"):
        simulate.simulate("ct", [], str(tmp_path / "o"), count=1, seed=1, phantoms=1, labels=str(tmp_path))
    with pytest.raises(InputError, match="is the folder of the bases too"):
        simulate.simulate("ct", [str(ct.parent)], str(tmp_path / "o"), count=1, seed=1, labels=str(ct.parent))


def test_a_real_label_map_of_totalsegmentator_values(shared_data, tmp_path):
    """Lobes join to lungs near our own estimate; the heart is the map's, of which no estimate is left."""
    folder = shared_data / "ct_chest" / "lidc_0001"
    for name, file in (("bases", "ct.nii.gz"), ("labels", "labels.nii.gz")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lidc_0001.nii.gz").symlink_to(folder / file)
    maps = LabelMaps(tmp_path / "labels", CT_CODING)
    (base,) = sources.ct_source([tmp_path / "bases"], slice_step_mm=STEP_MM, label_maps=maps).volumes
    (own,) = sources.ct_source([tmp_path / "bases"], slice_step_mm=STEP_MM).volumes
    stored = np.asarray(nib.load(folder / "labels.nii.gz").dataobj)
    voxel_ml = 1.5 * 1.5 * 2.5 / 1000
    for label, values in ((LEFT_LUNG, (10, 11)), (RIGHT_LUNG, (12, 13, 14)), (HEART, (51,))):
        found = base.anatomy.labels == label
        assert volume_ml(found) == pytest.approx(np.isin(stored, values).sum() * voxel_ml, rel=0.03)
        assert share_alike(found, own.anatomy.labels == label) > (0.5 if label == HEART else 0.96)


def test_a_real_label_map_projected_onto_a_radiograph(shared_data, tmp_path):
    """The lobes and heart of a real CT as a PNG beside the radiograph reconstructed from it."""
    folder = shared_data / "ct_chest" / "lidc_0001"
    image, view = read_image(folder / "ct.nii.gz"), DrrConfig(size_px=512)
    stored = np.asarray(nib.load(folder / "labels.nii.gz").dataobj).transpose(2, 1, 0)
    right, left, heart = (
        project_mask(np.isin(stored, values), image, view, min_path_mm=depth)
        for values, depth in (((12, 13, 14), 90.0), ((10, 11), 90.0), ((51,), 40.0))
    )
    for name in ("bases", "labels"):
        (tmp_path / name).mkdir()
    picture = render_drr(image, view).array
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(tmp_path / "bases" / "a.png")
    values = np.select([right, left, heart], [1, 2, 3], 0).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "labels" / "a.png")
    maps = read_label_maps(tmp_path / "labels", CXR_CODING)
    (film,) = sources.radiograph_source([tmp_path / "bases"], label_maps=maps).films
    assert share_alike(film.lungs.left, left & ~right) > 0.97
    assert film.picture[film.lungs.both].mean() < film.picture[film.lungs.heart].mean()
