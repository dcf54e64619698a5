"""Unlabelled scans found and kept, and samples drawn from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_files import write_ct_series, write_radiograph
from radglint.errors import ConfigError, ImageError, TrainingError
from radglint.preprocess import preprocess
from radglint.pretraining.config import DataConfig, MaskConfig, load_config
from radglint.pretraining.samples import Samples, prefetched, random_crop
from radglint.pretraining.scans import INDEX, WHITE, find_scans, open_pixels, prepare_scans
from radglint.reading import read_image
from textures import write_pictures, write_volumes

CXR = {"kind": "CXR", "long_side_px": 56, "patch_px": 14}
CT = {"kind": "CT", "height_px": 28, "width_px": 28, "patch_px": 14, "slice_step_mm": 1.0}


def cxr_data(folder: Path, **changes) -> DataConfig:
    return DataConfig.model_validate({"scans": [folder], "preprocess": CXR, "crop_px": 28} | changes)


def test_pixels_are_those_of_inference(tmp_path: Path):
    write_pictures(tmp_path / "in", 2, 64)
    config = cxr_data(tmp_path / "in")
    scans = prepare_scans(config, tmp_path / "pixels")
    assert [Path(scan.path).name for scan in scans] == ["000.png", "001.png"]
    stored = open_pixels(tmp_path / "pixels" / scans[0].pixels)
    wanted = preprocess(read_image(tmp_path / "in" / "000.png"), config.preprocess).pixels
    assert scans[0].shape == wanted.shape
    assert np.abs(stored / np.float32(WHITE) - wanted).max() < 1e-5


def test_volumes_keep_their_slices(tmp_path: Path):
    write_volumes(tmp_path / "in", 1, (6, 28, 28))
    data = DataConfig.model_validate({"scans": [tmp_path / "in"], "preprocess": CT, "crop_px": 28, "slices": 4})
    assert prepare_scans(data, tmp_path / "pixels")[0].shape == (6, 28, 28)
    with pytest.raises(
        TrainingError, match=r"1 of 1 scans cannot be used.*has 6 model slices, data.slices 7 need more"
    ):
        prepare_scans(data.model_copy(update={"slices": 7}), tmp_path / "pixels")


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path):
    write_pictures(tmp_path / "in", 1, 64)
    config = cxr_data(tmp_path / "in")
    first = prepare_scans(config, tmp_path / "pixels")
    written = (tmp_path / "pixels" / first[0].pixels).stat().st_mtime_ns
    assert prepare_scans(config, tmp_path / "pixels") == first
    assert (tmp_path / "pixels" / first[0].pixels).stat().st_mtime_ns == written
    write_pictures(tmp_path / "in", 1, 80, seed=1)
    assert prepare_scans(config, tmp_path / "pixels")[0].pixels != first[0].pixels
    other = cxr_data(tmp_path / "in", preprocess=CXR | {"long_side_px": 42})
    assert prepare_scans(other, tmp_path / "pixels")[0].shape == (1, 42, 42)


def test_scans_that_cannot_be_read_are_named_and_few_are_left_out(tmp_path: Path):
    write_pictures(tmp_path / "in", 3, 64)
    (tmp_path / "in" / "003.png").write_bytes((tmp_path / "in" / "000.png").read_bytes()[:200])
    (tmp_path / "in" / "notes.md").write_text("no scan, so it does not count")
    with pytest.raises(TrainingError, match=r"1 of 4 scans cannot be used.*index\.json.*003\.png"):
        prepare_scans(cxr_data(tmp_path / "in"), tmp_path / "pixels")
    scans = prepare_scans(cxr_data(tmp_path / "in", max_unreadable_share=0.3), tmp_path / "pixels")
    skipped = json.loads((tmp_path / "pixels" / INDEX).read_text())["skipped"]
    assert len(scans) == 3
    assert [Path(entry["path"]).name for entry in skipped] == ["003.png"]


def test_a_resumed_run_keeps_its_scans(tmp_path: Path):
    write_pictures(tmp_path / "in", 2, 64)
    config = cxr_data(tmp_path / "in")
    first = prepare_scans(config, tmp_path / "pixels")
    shutil.rmtree(tmp_path / "in")
    assert prepare_scans(config, tmp_path / "pixels", keep_index=True) == first
    (tmp_path / "pixels" / INDEX).write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json: not the index of a run"):
        prepare_scans(config, tmp_path / "pixels", keep_index=True)


def test_files_folders_and_lists_are_found(tmp_path: Path):
    write_pictures(tmp_path / "a" / "deep", 2, 64)
    write_volumes(tmp_path / "a", 1, (6, 28, 28))
    (tmp_path / "list.txt").write_text("a/deep/001.png\n\na/deep\n")
    pictures = [tmp_path / "a" / "deep" / f"00{k}.png" for k in range(2)]
    assert find_scans([tmp_path / "a"], "CXR") == pictures
    assert find_scans([tmp_path / "list.txt"], "CXR") == pictures
    assert find_scans([pictures[1]], "CXR") == pictures[1:]
    assert find_scans([tmp_path / "a"], "CT") == [tmp_path / "a" / "000.nii.gz"]
    with pytest.raises(ImageError, match=r"data.scans: no CT file in .*deep"):
        find_scans([tmp_path / "a" / "deep"], "CT")
    with pytest.raises(ImageError, match=r"data.scans: .*missing: no such file or folder"):
        find_scans([tmp_path / "missing"], "CXR")


def test_dicom_files_are_radiographs_and_dicom_folders_are_volumes(tmp_path: Path):
    (tmp_path / "x").mkdir()
    write_radiograph(tmp_path / "x" / "one.dcm", np.arange(4096, dtype=np.uint16).reshape(64, 64))
    write_ct_series(tmp_path / "ct")
    (tmp_path / "x" / ".hidden.png").write_bytes((tmp_path / "x" / "one.dcm").read_bytes())
    assert find_scans([tmp_path / "x"], "CXR") == [tmp_path / "x" / "one.dcm"]
    assert find_scans([tmp_path / "ct"], "CT") == [tmp_path / "ct"]
    data = DataConfig.model_validate({"scans": [tmp_path / "ct"], "preprocess": CT, "crop_px": 28, "slices": 2})
    assert len(prepare_scans(data, tmp_path / "pixels")) == 1


def test_damaged_pixels_are_named(tmp_path: Path):
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(TrainingError, match=r"cut\.npy: the stored pixels cannot be read"):
        open_pixels(tmp_path / "cut.npy")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    with pytest.raises(TrainingError, match=r"expected uint16 pixels with three axes, got float64 \(4,\)"):
        open_pixels(tmp_path / "flat.npy")


def test_a_crop_is_a_part_of_the_scan():
    pixels = np.arange(5 * 40 * 50, dtype=np.uint16).reshape(5, 40, 50)
    data = DataConfig.model_validate({"scans": ["x"], "preprocess": CT, "crop_px": 14, "slices": 2})
    part = random_crop(pixels, data, np.random.default_rng(0))
    assert part.shape == (2, 14, 14)
    first = round(float(part[0, 0, 0]) * WHITE)
    depth, top, left = np.unravel_index(first, pixels.shape)
    wanted = pixels[depth : depth + 2, top : top + 14, left : left + 14]
    assert np.array_equal(np.round(part.numpy() * WHITE), wanted)


@pytest.mark.parametrize("zoom", [(0.5, 0.5), (2.0, 2.0), (0.1, 0.1)])
def test_zoom_magnifies(zoom: tuple[float, float]):
    """A ramp becomes 1 / zoom as steep; where the scan ends, no part is made up."""
    ramp = np.tile(np.linspace(0, WHITE, 64).astype(np.uint16), (1, 64, 1))
    data = DataConfig.model_validate({"scans": ["x"], "preprocess": CXR, "crop_px": 28, "zoom": zoom})
    part = random_crop(ramp, data, np.random.default_rng(0))
    side = min(28 / zoom[0], 64)
    assert part.shape == (1, 28, 28)
    assert float(part[0, 10, 20] - part[0, 10, 10]) == pytest.approx(10 * side / 28 / 63, rel=0.03)


def samples(folder: Path, seed: int = 0, **changes) -> Samples:
    write_pictures(folder / "in", 5, 64)
    config = cxr_data(folder / "in", **changes)
    scans = prepare_scans(config, folder / "pixels")
    return Samples(scans, folder / "pixels", config, MaskConfig(), (1, 2, 2), batch=2, seed=seed)


def test_a_batch_depends_on_seed_and_step_only(tmp_path: Path):
    drawn = samples(tmp_path, gamma_jitter=0.3, zoom=(0.5, 1.5))
    again = samples(tmp_path, gamma_jitter=0.3, zoom=(0.5, 1.5))
    for step in (7, 3):
        first, second = drawn[step], again[step]
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.student_pixels, second.student_pixels)
        assert torch.equal(first.hidden, second.hidden)
    assert not torch.equal(drawn[3].pixels, drawn[7].pixels)
    assert not torch.equal(drawn[3].pixels, samples(tmp_path, seed=1, gamma_jitter=0.3, zoom=(0.5, 1.5))[3].pixels)


def test_gamma_is_the_students_only(tmp_path: Path):
    batch = samples(tmp_path, gamma_jitter=0.5)[0]
    inside = (batch.pixels > 0.05) & (batch.pixels < 0.95)
    gamma = (batch.student_pixels.log() / batch.pixels.log())[0][inside[0]]
    assert float(gamma.std()) < 1e-3
    assert abs(float(gamma.mean()) - 1) > 0.01
    plain = samples(tmp_path)[0]
    assert torch.equal(plain.pixels, plain.student_pixels)


def test_every_scan_is_drawn_once_an_epoch(tmp_path: Path):
    drawn = samples(tmp_path)
    assert sorted(drawn._order(0)) == sorted(drawn._order(1)) == list(range(5))
    assert not np.array_equal(drawn._order(0), drawn._order(1))


def test_prefetching_gives_the_same_batches_in_order(tmp_path: Path):
    drawn = samples(tmp_path)
    got = list(prefetched(drawn, 2, 5))
    assert [step for step, _, _ in got] == [2, 3, 4]
    assert all(torch.equal(batch.pixels, drawn[step].pixels) for step, batch, _ in got)
    assert all(waited >= 0 for _, _, waited in got)
    assert list(prefetched(drawn, 5, 5)) == []


RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "pretrain_cxr.toml"


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("share = 0.5", "share = 1.5", "mask.share: .*less than 1"),
        ("share = 0.5", "part = 0.5", "mask.part: Extra inputs"),
        ("crop_px = 224", "crop_px = 225", "data: crop_px must be a multiple of preprocess.patch_px 14, got 225"),
        ("slices = 1", "slices = 2", "data: a radiograph has no slices"),
        ("zoom = [0.7, 1.4]", "zoom = [1.4, 0.7]", "data: zoom must be two positive factors"),
        ("warmup_steps = 200", "warmup_steps = 2000", "optimizer: warmup_steps must be fewer than steps 2000"),
        ("batch = 32", "batch = 1", "optimizer.batch: .*greater than or equal to 2"),
        ("width = 192", "width = 190", "predictor: width must be a multiple"),
        ('source = "runs/trunk"', "", "backbone: give either source"),
        ("seed = 0", "seed = ", "not a TOML file"),
    ],
)
def test_errors_of_a_configuration_name_the_key(tmp_path: Path, line: str, other: str, message: str):
    text = RECIPE.read_text(encoding="utf-8")
    assert line in text
    (tmp_path / "run.toml").write_text(text.replace(line, other, 1))
    with pytest.raises(ConfigError, match=f"run.toml: {message}"):
        load_config(tmp_path / "run.toml")


def test_a_missing_configuration_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load_config(tmp_path / "none.toml")
