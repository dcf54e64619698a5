"""Real lesions for `radglint simulate ct --lesions`: read, measured, blended into scans of other patients only."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicom_files import write_ct_series
from lidc_files import reader, scan_xml, slices_of
from radglint import cli
from radglint.errors import InputError, OutputError
from radglint.simulate_lesions import check_owners, find_pairs, read_real_lesions
from radglint.simulation import dataset
from radglint.simulation.base_names import patient_of_ct
from radglint.simulation.case import Plan, VolumeSource
from radglint.simulation.ct import draw_volume_facts, make_base, make_slab
from radglint.simulation.ct_base import canonical_volume
from radglint.simulation.ct_findings import MASS_DIAMETER_MM, NODULE_DIAMETER_MM
from radglint.simulation.ct_real import make_lesion, read_crops
from radglint.simulation.ct_scene import Lesion, Spacing
from radglint.simulation.drr_study import StudySource
from radglint.simulation.facts import Fact
from simulation_bases import coarse_phantom, volumes

GRID: Spacing = (2.5, 1.0, 1.0)
RANGES = {"nodule": NODULE_DIAMETER_MM, "mass": MASS_DIAMETER_MM}


def balls(*parts: tuple[tuple[float, float, float], float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Lung with balls of (centre in mm, diameter in mm, HU), `slices height width` of 1 mm voxels; and their mask."""
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 15, (60, 70, 80))
    grid = np.stack(np.meshgrid(*map(np.arange, hu.shape), indexing="ij"), -1)
    mask = np.zeros(hu.shape, bool)
    for centre, diameter, value in parts:
        inside = np.linalg.norm(grid - centre, axis=-1) < diameter / 2
        hu[inside], mask[inside] = value, True
    hu[:, :6] = 40  # the chest wall in front
    return hu.astype(np.int16), mask


def save(path: Path, array: np.ndarray, *, flipped: bool = False, shift_mm: float = 0.0) -> None:
    """Feet to head, front to back, patient right to left; `flipped` stores other axis directions of the same grid."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[0, 3] = shift_mm
    stored = array.transpose(2, 1, 0)
    if flipped:
        stored = stored[::-1, ::-1]
        affine[:, 3] += affine[:, 0] * (stored.shape[0] - 1) + affine[:, 1] * (stored.shape[1] - 1)
        affine[:, :2] *= -1
        affine[3] = (0, 0, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(stored, affine), path)


def write_pair(folder: Path, name: str, *parts: tuple[tuple[float, float, float], float, float], **kwargs) -> None:
    hu, mask = balls(*parts)
    save(folder / f"{name}.nii.gz", hu)
    save(folder / f"{name}_mask.nii.gz", mask.astype(np.uint8), **kwargs)


@pytest.mark.parametrize("flipped", [False, True])
def test_each_part_of_a_mask_is_a_measured_lesion(tmp_path, flipped):
    """Of four parts of one mask, a tiny and a calcified one are left out."""
    parts = [((30, 30, 20), 14, 40), ((30, 50, 60), 8, 60), ((10, 20, 60), 3, 60), ((45, 20, 40), 10, 700)]
    write_pair(tmp_path, "a", *parts, flipped=flipped)
    write_pair(tmp_path / "sub", "b", ((30, 30, 30), 26, 30))
    (tmp_path / "records.json").write_text(json.dumps([{"image": "sub/b.nii.gz", "patient": "P7"}]))
    found = read_real_lesions(tmp_path, GRID)
    assert [(x.name, x.patient) for x in found] == [("a_02", "a"), ("a_03", "a"), ("b_01", "P7")]
    assert [x.diameter_mm for x in found] == pytest.approx([14, 8, 26], rel=0.06)
    for lesion in found:
        volume = lesion.inside.sum() * np.prod(GRID)
        assert volume == pytest.approx(np.pi / 6 * lesion.diameter_mm**3, rel=0.25)
        assert np.median(lesion.hu[lesion.inside]) > 0
        assert np.median(lesion.hu[lesion.share == 0]) < -800


def test_the_outline_of_lidc_is_that_of_its_readers(tmp_path):
    """Two of three readers agree on a block; whichever way the slices are stored, it is where the HU are."""
    hu = np.full((12, 40, 40), -800, np.int16)
    hu[:, :2] = 50
    hu[3:7, 10:18, 20:31] = 35
    for down in (False, True):
        folder = tmp_path / f"src{down}" / "LIDC-IDRI-0009" / "study" / "series"
        series = f"1.2.3.{int(down)}"
        tags = {"PatientID": "LIDC-IDRI-0009", "SeriesInstanceUID": series, "StudyInstanceUID": "1.2"}
        write_ct_series(folder, hu[::-1] if down else hu, step=(0, 0, -2.0 if down else 2.0), **tags)
        places = slices_of(folder)
        drawn = dict.fromkeys(range(3, 7), (10, 20, 18, 31))
        small = dict.fromkeys(range(3, 5), (12, 22, 14, 24))
        sessions = [reader(places, drawn, "a"), reader(places, drawn, "b"), reader(places, small, "c")]
        (folder / "1.xml").write_text(scan_xml(series, sessions))
        (lesion,) = read_real_lesions(folder.parents[2], (2.0, 1.5, 1.0))
        assert (lesion.name, lesion.patient) == (f"LIDC-IDRI-0009_{series}_01", "LIDC-IDRI-0009")
        assert lesion.inside.sum() == 4 * 8 * 11
        assert lesion.diameter_mm == pytest.approx((6 * 4 * 2 * 8 * 1.5 * 11 / np.pi) ** (1 / 3), abs=0.01)
        assert (lesion.hu[lesion.inside] == 35).all()


def test_workers_read_the_same_lesions(tmp_path):
    for name in "ab":
        write_pair(tmp_path, name, ((30, 30, 30), 12, 30))
    one, two = (read_real_lesions(tmp_path, GRID, workers=count) for count in (1, 2))
    for first, second in zip(one, two, strict=True):
        assert (first.name, first.diameter_mm) == (second.name, second.diameter_mm)
        np.testing.assert_array_equal(first.hu, second.hu)


def test_a_folder_that_does_not_fit_is_told_why(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_real_lesions(tmp_path / "nowhere", GRID)
    with pytest.raises(InputError, match=r"0 lesions, none of them usable"):
        read_real_lesions(tmp_path, GRID)
    write_pair(tmp_path / "far", "a", ((30, 30, 30), 12, 30), shift_mm=3.0)
    with pytest.raises(InputError, match=r"a_mask\.nii\.gz: lies on another grid than .*a\.nii\.gz"):
        read_real_lesions(tmp_path / "far", GRID)
    (tmp_path / "far" / "a_mask.nii.gz").rename(tmp_path / "far" / "b_mask.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: has no a_mask\.nii\.gz beside it"):
        find_pairs(tmp_path / "far")
    (tmp_path / "far" / "a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b_mask\.nii\.gz: has no b\.nii\.gz beside it"):
        find_pairs(tmp_path / "far")


def test_the_patient_of_a_ct(tmp_path):
    """By records.json, else by its DICOM (a folder or a zip of it), else by its name."""
    folder = tmp_path / "series.1"
    write_ct_series(folder, PatientID="LIDC-IDRI-0042")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    for name in ("a.nii.gz", "b.nii.gz"):
        save(tmp_path / name, balls()[0])
    (tmp_path / "records.json").write_text(json.dumps([{"image": "b.nii.gz", "patient": "P2"}]))
    found = [patient_of_ct(tmp_path / name) for name in ("series.1", "scan.zip", "a.nii.gz", "b.nii.gz")]
    assert found == ["LIDC-IDRI-0042", "LIDC-IDRI-0042", "a", "P2"]


def pool() -> list[Lesion]:
    """One lesion of each size, each of another patient, and again all of them as the phantom's own."""
    made = []
    for diameter in (7.0, 13.0, 26.0, 40.0, 54.0):
        axis = (np.arange(71) - 35).astype(float)
        distance = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
        inside = distance <= diameter / 2
        lesion = make_lesion(np.where(inside, 47.0, -850.0), inside, (1, 1, 1), (5.0, 2.0, 2.0), diameter)
        made += [dataclasses.replace(lesion, name=f"{who}_{diameter:g}", patient=who) for who in ("phantom0", "P1")]
    return made


def source() -> VolumeSource:
    return dataclasses.replace(volumes(), lesions=pool())


def plans(count: int) -> list[Plan]:
    """The first cases whose painter wants a nodule or a mass."""
    every = (Plan(f"ct_{index:03d}", 2, index) for index in range(200))
    fitting = (plan for plan in every if any(f.concept in RANGES for f in draw_volume_facts(plan.stream(1))))
    return list(itertools.islice(fitting, count))


def test_real_lesions_fit_the_words_and_are_of_other_patients():
    real = made = 0
    for plan in plans(7):
        case = source().make(plan)
        assert case.lesions is not None
        for fact, lesion, mask in zip(case.facts, case.lesions, case.masks, strict=True):
            if lesion is None:
                made += fact.concept in RANGES
                continue
            low, high = RANGES[fact.concept][fact.size or ""]
            assert low <= lesion.diameter_mm <= high
            assert lesion.patient == "P1"
            assert 0.3 * lesion.inside.sum() < mask.sum() <= lesion.inside.sum()
            real += 1
    assert real > made > 0


def test_a_study_of_radiographs_names_the_real_lesions_of_its_body():
    studies = StudySource(source(), ("PA", "LL"), size_px=128)
    found = []
    for plan in plans(4):
        front, side = studies.make_study(plan)
        assert front.lesions is not None
        assert front.lesions == side.lesions
        assert len(front.lesions) == len(front.facts)
        assert all(fact.concept in RANGES for fact, x in zip(front.facts, front.lesions, strict=True) if x)
        found += [lesion.patient for lesion in front.lesions if lesion]
    assert set(found) == {"P1"}


def test_a_slab_says_which_lesion_it_shows():
    """Every nodule is either a real one, whose outline is its mask, or a made one."""
    lesions = [lesion for lesion in pool() if lesion.patient == "P1"]
    shown = []
    for seed in range(10):
        facts = [Fact("nodule", "left", None, "medium"), Fact("consolidation", "right", None, "small")]
        made = make_slab(coarse_phantom(), np.random.default_rng(seed), 6, facts=facts, lesions=lesions)
        assert len(made.lesions) == len(made.facts)
        shown += [x and x.name for f, x in zip(made.facts, made.lesions, strict=True) if f.concept == "nodule"]
        assert all(x is None for f, x in zip(made.facts, made.lesions, strict=True) if f.concept != "nodule")
    assert set(shown) == {None, "P1_13"}
    assert 4 <= shown.count("P1_13") <= 9


def test_lesions_of_the_base_alone_are_refused():
    own = [lesion for lesion in pool() if lesion.patient == "phantom0"]
    check_owners(own, ["phantom0", "another"])
    with pytest.raises(InputError, match="all lesions are of patient phantom0, who is the base's patient too"):
        check_owners(own, ["phantom0"])


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_run_with_lesions_is_resumed_only_with_the_same_and_does_not_depend_on_workers(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    manifest = dataset.write_dataset(source(), whole, plans(3), 2, workers=2)
    dataset.write_dataset(source(), parts, plans(1), 2)
    for other in (volumes(), dataclasses.replace(source(), lesions=pool()[:2])):
        with pytest.raises(OutputError, match=r"holds a simulation with other real lesions \(--lesions\), or none"):
            dataset.write_dataset(other, parts, plans(3), 2)
    dataset.write_dataset(source(), parts, plans(3), 2)
    assert contents(whole) == contents(parts)
    with pytest.raises(OutputError, match="other real lesions"):
        dataset.write_dataset(source(), _without(tmp_path / "plain"), plans(1), 2)
    facts = [fact for line in manifest.read_text().splitlines() for fact in json.loads(line)["facts"]]
    named = [fact["lesion"] for fact in facts if fact["lesion"]]
    assert named
    assert all(lesion["patient"] == "P1" and lesion["name"] == f"P1_{lesion['diameter_mm']:g}" for lesion in named)
    assert all(fact["lesion"] is None for fact in facts if fact["concept"] not in RANGES)


def _without(out: Path) -> Path:
    """A run without lesions: its files do not name any."""
    manifest = dataset.write_dataset(volumes(), out, plans(1), 2)
    assert "lesion" not in manifest.read_text() + (out / "simulation.json").read_text()
    return out


def test_the_command_blends_real_lesions(tmp_path, capsys):
    write_pair(tmp_path / "real", "a", ((20, 30, 20), 20, 40), ((40, 50, 60), 13, 60))
    arguments = ["--phantom", "1", "--slice-step", "10", "--count", "1", "--lesions", str(tmp_path / "real")]
    assert cli.main(["simulate", "ct", *arguments, "--out", str(tmp_path / "cases")]) == 0
    assert capsys.readouterr().out.startswith("1 cases")
    stored = json.loads((tmp_path / "cases" / "simulation.json").read_text())
    assert [(x["name"], x["patient"]) for x in stored["lesions"]] == [("a_01", "a"), ("a_02", "a")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cxr", "x", "--lesions", "y"], "--lesions are blended into CT only"),
        (["ct", "--phantom", "1", "--slice-step", "20", "--lesions", "nowhere"], "nowhere: no such folder"),
        (["--benchmark", "simfind-ct", "x", "--lesions", "y"], "takes no --labels, --lesions or --views"),
    ],
)
def test_a_wrong_command_is_told_what_to_do(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", *arguments, "--out", "cases"]) == 2
    assert said in capsys.readouterr().err


def test_real_lidc_nodules_are_measured_as_published(shared_data):
    folder = shared_data / "lidc_nodules"
    published = {record["id"]: record["diameter_mm"] for record, *_ in read_crops(folder)}
    found = read_real_lesions(folder, GRID)
    assert len(found) > 150
    ratio = np.array([lesion.diameter_mm / published[lesion.name] for lesion in found])
    assert 0.95 < np.median(ratio) < 1.25
    assert np.ptp(np.quantile(ratio, [0.05, 0.95])) < 0.4


def test_a_real_nodule_of_one_patient_is_blended_into_another(shared_data, tmp_path):
    """The nodule of LIDC-IDRI-0314, from its CT and the readers' consensus, into the scan of LIDC-IDRI-0001."""
    theirs = shared_data / "ct_chest" / "lidc_0314"
    (tmp_path / "lidc_0314.nii.gz").symlink_to(theirs / "ct.nii.gz")
    (tmp_path / "lidc_0314_mask.nii.gz").symlink_to(theirs / "mask_nodules_consensus.nii.gz")
    (lesion,) = read_real_lesions(tmp_path, (5.0, 1.0, 1.0))
    assert lesion.diameter_mm == pytest.approx(16.9, abs=0.6)
    from radglint.reading import read_image

    image = read_image(shared_data / "ct_chest" / "lidc_0001" / "ct.nii.gz")
    base = make_base(canonical_volume(image, step_mm=5.0)[0], (5.0, 1.0, 1.0))
    facts = [Fact("nodule", "right", None, "medium")]
    made = [make_slab(base, np.random.default_rng(k), 8, facts=facts, lesions=[lesion]) for k in range(5)]
    real = [(m.volume_hu[m.masks[0]], m.masks[0]) for m in made if m.lesions == (lesion,)]
    assert real
    for hu, mask in real:
        assert 0.5 * lesion.inside.sum() < mask.sum() <= lesion.inside.sum()
        assert np.median(hu) == pytest.approx(np.median(lesion.hu[lesion.inside]), abs=90)
