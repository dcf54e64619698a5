"""`radglint simulate`: cases on disk are decided by seed and index, complete or absent, and true to their facts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from radglint import cli, simulate
from radglint.errors import InputError, OutputError
from radglint.reading import read_image
from radglint.simulation import benchmark, dataset
from radglint.simulation.anatomy_ct import LEFT_LUNG, RIGHT_LUNG, zone_of_height
from radglint.simulation.benchmark import BENCHMARKS, Benchmark, difference, fingerprint, native_digest, read_benchmark
from radglint.simulation.case import Plan, lung_slices
from radglint.simulation.ct import make_base
from radglint.simulation.ct import simulate as paint
from radglint.simulation.facts import Fact
from radglint.simulation.healing import cover_lesions
from radglint.simulation.sources import radiograph_source
from radglint.simulation.subtlety import FULL_CT, FULL_CXR, subtlety_ct, subtlety_cxr
from simulation_bases import coarse_phantom, films, volumes

SEED = 11


def plans(count: int, kind: str = "drr") -> list[Plan]:
    return [Plan(f"{kind}_{index:03d}", SEED, index) for index in range(count)]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Ten radiographs."""
    out = tmp_path_factory.mktemp("built")
    dataset.write_dataset(films(), out, plans(10), SEED)
    return out


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_a_case_is_an_image_masks_facts_and_a_report(built):
    rows = lines(built)
    assert [row["index"] for row in rows] == list(range(10))
    assert any(row["facts"] for row in rows)
    for row in rows:
        with Image.open(built / row["image"]) as picture:
            assert (picture.mode, picture.size) == ("I;16", (512, 512))
        with np.load(built / row["masks"], allow_pickle=False) as arrays:
            masks = arrays["masks"]
        assert masks.shape == (len(row["facts"]), 512, 512)
        assert [fact["mask"] for fact in row["facts"]] == list(range(len(masks)))
        assert all(mask.any() for mask in masks)
        assert all(0 <= fact["subtlety"] <= 1 for fact in row["facts"])
        assert set(row["report"]) == {"findings", "impression"}
        assert row["patient"] == row["group"] == "phantom0"
        assert row["base"].startswith("phantom0_view")


def test_an_image_reads_back_as_radglint_reads_images(built):
    image = read_image(built / lines(built)[0]["image"])
    assert image.modality == "CXR"
    assert image.shape == (512, 512)


def test_the_number_of_workers_does_not_matter(built, tmp_path):
    dataset.write_dataset(films(), tmp_path, plans(10), SEED, workers=2)
    assert contents(tmp_path) == contents(built)


def test_a_case_does_not_depend_on_those_before_it(built, tmp_path):
    dataset.write_dataset(films(), tmp_path, [plans(10)[7]], SEED)
    name = "images/drr_007.png"
    assert contents(tmp_path)[name] == contents(built)[name]


@pytest.mark.parametrize("step", ["write_bytes", "write_text"])
def test_a_stopped_run_goes_on_and_ends_the_same(step, built, tmp_path, monkeypatch):
    """Stopped after the second call of either writer: between image, masks and line."""
    calls = []
    write = getattr(dataset, step)

    def stopping(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, step, stopping)
        with pytest.raises(KeyboardInterrupt):
            dataset.write_dataset(films(), tmp_path, plans(10), SEED)
    assert not (tmp_path / "manifest.jsonl").exists()
    made = []
    real = dataset.write_case
    monkeypatch.setattr(dataset, "write_case", lambda *args: made.append(args[2].index) or real(*args))
    dataset.write_dataset(films(), tmp_path, plans(10), SEED)
    assert made == list(range(0 if step == "write_bytes" else 1, 10))
    assert contents(tmp_path) == contents(built)


def test_a_finished_run_does_nothing_more(built, monkeypatch):
    monkeypatch.setattr(dataset, "write_case", lambda *_: pytest.fail("a complete case was made again"))
    before = contents(built)
    dataset.write_dataset(films(), built, plans(10), SEED)
    assert contents(built) == before


def test_another_run_in_the_same_folder_is_refused(built):
    with pytest.raises(OutputError, match="seed 11, now it is 12"):
        dataset.write_dataset(films(), built, plans(1), 12)
    other = dataclasses.replace(films(), films=films().films[:1])
    with pytest.raises(OutputError, match="other bases"):
        dataset.write_dataset(other, built, plans(1), SEED)


def test_twins_share_the_body_and_not_the_findings():
    first, second = (films().make(plan) for plan in plans(2))
    assert (first.base, first.is_mirrored) == (second.base, second.is_mirrored)
    assert first.report.text != second.report.text


def test_masks_of_radiographs_are_on_the_side_of_the_fact():
    checked = 0
    for plan in plans(24):
        case = films().make(plan)
        for fact, mask in zip(case.facts, case.masks, strict=True):
            if fact.side in ("left", "right") and fact.concept not in ("central line", "pacemaker", "chest tube"):
                columns = np.nonzero(mask)[1]
                assert (columns.mean() > 256) == (fact.side == "left"), fact
                checked += 1
    assert checked > 8


@pytest.fixture(scope="module")
def ct_cases():
    return [volumes().make(plan) for plan in plans(8, "ct")]


def test_masks_of_volumes_are_in_the_lung_and_zone_of_the_fact(ct_cases):
    """Each focal finding is drawn alone into the phantom, on each side and in each zone."""
    base = coarse_phantom()
    for concept in ("nodule", "consolidation", "calcified nodule"):
        for side, label in (("left", LEFT_LUNG), ("right", RIGHT_LUNG)):
            for zone in ("lower", "mid", "upper"):
                fact = Fact(concept, side, zone, "medium")  # type: ignore[arg-type]
                made = paint(base.volume_hu, base.anatomy, [fact], np.random.default_rng(1), noise=base.noise)
                for mask in made.masks:
                    assert (base.anatomy.labels[mask] == label).mean() > 0.6
                    heights = [base.anatomy.height_fraction(k) for k in np.nonzero(mask.any(axis=(1, 2)))[0]]
                    assert zone in {zone_of_height(h) for h in heights}
    assert all(m.shape == c.pixels.shape for c in ct_cases for m in c.masks)


def test_a_volume_covers_the_lungs_and_holds_hounsfield_units(ct_cases):
    for case in ct_cases:
        assert case.pixels.dtype == np.int16
        assert len(case.pixels) == lung_slices(coarse_phantom())
        assert np.percentile(case.pixels, 1) < -900
        assert -100 < np.median(case.pixels[case.pixels > -200]) < 120
    assert len({len(case.facts) for case in ct_cases}) > 1


def test_a_written_volume_lies_in_the_patients_axes(tmp_path):
    dataset.write_dataset(volumes(), tmp_path, plans(1, "ct"), SEED)
    row = lines(tmp_path)[0]
    image = read_image(tmp_path / row["image"])
    assert image.modality == "CT"
    assert image.orientation == "SPL"
    assert image.spacing_mm == pytest.approx((5.0, 2.0, 2.0))
    stored = nib.load(tmp_path / row["image"])
    with np.load(tmp_path / row["masks"]) as arrays:
        assert arrays["masks"].shape[1:] == stored.shape[::-1] == image.shape


def test_a_rib_fracture_of_a_ct_breaks_a_rib():
    base = coarse_phantom()
    for seed, side in enumerate(("left", "right")):
        fact = Fact("rib fracture", side)  # type: ignore[arg-type]
        made = paint(base.volume_hu, base.anatomy, [fact], np.random.default_rng(seed), noise=base.noise)
        assert made.facts == (fact,)
        mask = made.masks[0]
        columns = np.nonzero(mask)[2]
        assert (columns.mean() > mask.shape[2] / 2) == (side == "left")
        assert base.volume_hu[mask].max() > 250
        changed = np.abs(made.volume_hu - base.volume_hu) > 60
        assert changed[mask].mean() > 0.25
        assert (changed & mask).sum() > 0.5 * changed.sum()


def test_hard_distractors_of_a_ct_are_no_facts():
    names = set()
    for index in range(12):
        case = volumes().make(Plan("ct", 5, index))
        names |= set(case.distractors)
    assert "vessel end-on" in names
    assert not names & {fact.concept for fact in case.facts}


def test_subtlety_falls_with_contrast_and_size():
    for concept in FULL_CXR:
        grid = [[subtlety_cxr(concept, c, s) for c in (0.01, 0.05, 0.2, 1)] for s in (0.0004, 0.01, 0.3)]
        assert np.all(np.diff(grid, axis=0) <= 0)
        assert np.all(np.diff(grid, axis=1) <= 0)
    for concept, (contrast, size) in FULL_CT.items():
        assert subtlety_ct(concept, contrast, size**3) == pytest.approx(0, abs=1e-3)
        assert subtlety_ct(concept, 0, 1) == 1


def test_a_phantom_has_two_lungs_of_human_size_and_a_heart():
    labels = coarse_phantom().anatomy.labels
    litres = [(labels == k).sum() * 20 / 1e6 for k in (LEFT_LUNG, RIGHT_LUNG)]
    assert all(1.0 < v < 3.5 for v in litres)
    film = films().films[0]
    assert film.lungs.left.mean() > 0.06
    assert film.lungs.heart.any()
    assert np.nonzero(film.lungs.left)[1].mean() > np.nonzero(film.lungs.right)[1].mean()


def test_a_covered_lesion_is_gone():
    base = coarse_phantom()
    fact = Fact("mass", "right", "mid", "small")
    made = paint(base.volume_hu, base.anatomy, [fact], np.random.default_rng(2), noise=base.noise)
    lungs = (base.anatomy.labels == LEFT_LUNG) | (base.anatomy.labels == RIGHT_LUNG)
    healed = cover_lesions(made.volume_hu, made.masks[0], lungs, base.anatomy.spacing_mm)
    assert made.volume_hu[made.masks[0]].mean() > -100
    assert healed[made.masks[0]].mean() < -600
    far = np.abs(healed - made.volume_hu) > 0
    assert far.sum() < 8 * made.masks[0].sum()


def test_the_command_makes_cases_from_a_phantom(tmp_path, capsys):
    out = tmp_path / "cases"
    arguments = ["--phantom", "1", "--slice-step", "20", "--count", "2", "--seed", "4", "--out", str(out)]
    assert cli.main(["simulate", "ct", *arguments]) == 0
    assert capsys.readouterr().out == f"2 cases: {out / 'manifest.jsonl'}\n"
    assert len(lines(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mri", "x"], "expected one of cxr, ct, drr first, got 'mri'"),
        (["ct"], "give BASES or --phantom"),
        (["ct", "x", "--phantom"], "one of the two"),
        (["cxr", "nowhere"], "nowhere: no such folder"),
        (["ct", "nowhere.nii"], "nowhere.nii: no such file"),
        (["--benchmark", "simfind-mri"], "expected one of simfind-cxr, simfind-ct, simfind-drr, got 'simfind-mri'"),
        (["--count", "0", "ct", "x"], "a whole number from 1 on, got '0'"),
        (["--slice-step", "thin", "ct", "x"], "millimetres from 0.5 to 20, got 'thin'"),
    ],
)
def test_a_wrong_command_is_told_what_to_do(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", *arguments, "--out", "cases"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_too_few_radiographs_are_refused(tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="1 radiographs, but at least 8"):
        radiograph_source([tmp_path])


def test_real_radiographs_are_bases(shared_data, tmp_path):
    records = json.loads((shared_data / "nih_cxr" / "records.json").read_text())
    normal = [r for r in records if r["labels"] == ["No Finding"]][:10]
    (tmp_path / "records.json").write_text(
        json.dumps([{"image": Path(r["image"]).name, "patient": r["patient"]} for r in normal])
    )
    for record in normal:
        source = shared_data / "nih_cxr" / record["image"]
        (tmp_path / source.name).write_bytes(source.read_bytes())
    found = radiograph_source([tmp_path])
    assert len(found.films) >= 6
    assert {film.patient for film in found.films} <= {r["patient"] for r in normal}
    assert all(0.08 < film.lungs.both.mean() < 0.48 for film in found.films)


@pytest.fixture
def small_benchmark(built) -> Benchmark:
    cases = tuple(plans(10)[:3])
    return Benchmark("simfind-drr", SEED, (), cases, {case.name: fingerprint(built, case.name) for case in cases})


def test_a_list_comes_back_from_its_file(small_benchmark, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    whole = dataclasses.replace(small_benchmark, bases=(benchmark.Base("ct", "1", "0"),))
    (tmp_path / "data" / "simfind_drr.json").write_text(whole.to_json())
    monkeypatch.setattr(benchmark.importlib.resources, "files", lambda _: tmp_path)
    again = read_benchmark("simfind-drr")
    assert (again.bases, again.frozen, again.seed) == (whole.bases, whole.frozen, whole.seed)
    assert [case.index for case in again.cases] == [case.index for case in whole.cases]


def test_a_built_benchmark_is_verified(built, small_benchmark):
    assert benchmark.verify(built, small_benchmark) == 0


def test_a_benchmark_that_differs_names_the_case(built, small_benchmark):
    name = small_benchmark.cases[1].name
    wrong = dataclasses.replace(small_benchmark.frozen[name], text="another")
    changed = dataclasses.replace(small_benchmark, frozen={**small_benchmark.frozen, name: wrong})
    with pytest.raises(InputError, match=rf"case {name} is not the frozen one: its report or facts differ"):
        benchmark.verify(built, changed)


def test_rounding_is_tolerated_and_more_is_not(built, small_benchmark):
    frozen = small_benchmark.frozen[small_benchmark.cases[0].name]
    levels = np.frombuffer(bytes.fromhex(frozen.coarse), np.uint8)
    for step, same in ((1, True), (2, True), (3, False)):
        moved = np.where(levels > 128, levels - step, levels + step).astype(np.uint8).tobytes().hex()
        found = dataclasses.replace(frozen, pixels="another", coarse=moved)
        assert (difference(found, frozen) is None) == same
    assert difference(dataclasses.replace(frozen, sizes=(*frozen.sizes, 5)), frozen) is not None
    near = {**small_benchmark.frozen, small_benchmark.cases[0].name: dataclasses.replace(frozen, pixels="another")}
    assert benchmark.verify(built, dataclasses.replace(small_benchmark, frozen=near)) == 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_shipped_benchmark_is_split_by_patient(name):
    frozen = read_benchmark(name)
    if BENCHMARKS[name] != "drr":  # its bases are views of one CT
        patients = {s: {frozen.bases[c.base].patient for c in frozen.cases if c.split == s} for s in ("val", "test")}  # type: ignore[index]
        assert patients["val"]
        assert not patients["val"] & patients["test"]
    assert all(case.held_out == (case.split == "test") for case in frozen.cases)
    assert len({case.name for case in frozen.cases}) == len(frozen.cases)
    assert len({case.index for case in frozen.cases}) == len(frozen.cases)
    assert all(base.digest for base in frozen.bases)


def test_the_first_cases_of_simfind_cxr_come_out_as_frozen(shared_data, tmp_path):
    whole = read_benchmark("simfind-cxr")
    cases = (*whole.cases[:1], *[c for c in whole.cases if c.split == "test"][:2])
    source = simulate.benchmark_source(whole, shared_data / "nih_cxr")
    dataset.write_dataset(source, tmp_path, cases, whole.seed)
    benchmark.verify(tmp_path, dataclasses.replace(whole, cases=cases))


def test_another_file_as_a_base_is_refused(tmp_path):
    Image.fromarray(np.arange(64 * 64).reshape(64, 64).astype(np.uint8)).save(tmp_path / "film.png")
    base = benchmark.Base("film.png", "1", "0" * 16)
    with pytest.raises(InputError, match=r"film\.png: is not the image that the benchmark was frozen with"):
        simulate._checked(tmp_path / "film.png", base)
    image = read_image(tmp_path / "film.png")
    right = dataclasses.replace(base, digest=native_digest(image.array))
    assert simulate._checked(tmp_path / "film.png", right).shape == (64, 64)


def test_frozen_lungs_come_back(built):
    lungs = films().films[0].lungs
    again = simulate.unpack_lungs(simulate.pack_lungs(lungs))
    for one, two in ((lungs.left, again.left), (lungs.right, again.right)):
        assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.98


def test_a_base_without_its_lesion_keeps_its_lungs():
    base = coarse_phantom()
    again = make_base(base.volume_hu, base.anatomy.spacing_mm, name="again")
    assert lung_slices(again) == lung_slices(base) <= len(base.volume_hu)
