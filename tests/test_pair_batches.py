"""Which pairs a run trains on and which it is measured on: their splits, and that nobody is in both."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from radglint.ablation import ablate
from radglint.errors import ConfigError
from radglint.manifest import ManifestRow, write_manifest
from radglint.pair_batches import load_pairs, load_validation
from radglint.report_pairs import load_shards
from radglint.train_config import PairData
from radglint.train_engine import train
from radglint.train_log import read_log
from train_runs import tiny_run

SPLITS: tuple[Any, ...] = ("train", "train", "val", "train", "test", "val")
SEVERAL = "several splits, 1 of 'test', 3 of 'train', 2 of 'val'; set data.train_split to the one to take"


def manifest(folder: Path, suffix: str = ".jsonl", splits: tuple[Any, ...] = SPLITS, **more: str) -> Path:
    """A row a split, of a patient each."""
    rows = [
        ManifestRow(str(k), f"{k}.png", "CXR", patient=f"p{k}", split=split, report="Clear.", **more)
        for k, split in enumerate(splits)
    ]  # fmt: skip
    return write_manifest(folder / f"m{suffix}", rows)


def shards(folder: Path, *splits: str | None) -> str:
    """A tar of a sample each; None leaves the .json out."""
    for k, split in enumerate(splits):
        row = None if split is None else json.dumps({"report": "Clear.", "group": f"p{k}", "split": split or None})
        files = {f"{k}.png": "", f"{k}.txt": "Clear."} if row is None else {f"{k}.png": "", f"{k}.json": row}
        with tarfile.open(folder / f"{k}.tar", "w") as archive:
            for name, content in files.items():
                (folder / name).write_text(content)
                archive.add(folder / name, name)
    return str(folder / "*.tar")


def ids(pairs: Any) -> list[str]:
    return [pair.id for pair in pairs]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_manifest_of_several_splits_must_say_which(tmp_path: Path, suffix: str) -> None:
    path = manifest(tmp_path, suffix)
    with pytest.raises(ConfigError, match=rf"m{suffix}: holds rows of {SEVERAL}"):
        load_pairs(PairData(manifests=(path,)), "CXR")
    data = PairData(manifests=(path,), train_split="train", val_manifest=path, val_split="val")
    training = load_pairs(data, "CXR")
    assert ids(training) == ["0", "1", "3"]
    assert ids(load_validation(data, "CXR", training)) == ["2", "5"]
    assert load_validation(PairData(manifests=(path,), train_split="train"), "CXR", training) == []


def test_shards_of_several_splits_must_say_which(tmp_path: Path) -> None:
    pattern = shards(tmp_path, "train", "test", "train", "", None)
    expected = r"\*.tar: holds .* 2 without a split, 1 of 'test', 2 of 'train'; set data.train_split"
    with pytest.raises(ConfigError, match=expected):
        load_pairs(PairData(shards=(pattern,)), "CXR")
    assert ids(load_pairs(PairData(shards=(pattern,), train_split="train"), "CXR")) == ["0", "2"]
    assert ids(load_shards(pattern, "CXR", "")) == ["3", "4"]
    with pytest.raises(ConfigError, match=r"no sample is of split 'val', 2 without a split, 1 of 'test', 2 of 'train'"):
        load_pairs(PairData(shards=(pattern,), train_split="val"), "CXR")


def test_rows_without_a_split_are_a_split_of_their_own(tmp_path: Path) -> None:
    path = manifest(tmp_path, splits=("", "", "test"))
    with pytest.raises(ConfigError, match=r"2 without a split, 1 of 'test'; set data.train_split"):
        load_pairs(PairData(manifests=(path,)), "CXR")
    assert ids(load_pairs(PairData(manifests=(path,), train_split=""), "CXR")) == ["0", "1"]
    assert len(load_pairs(PairData(manifests=(manifest(tmp_path, splits=("test", "test")),)), "CXR")) == 2


def test_a_validation_manifest_of_several_splits_must_say_which(tmp_path: Path) -> None:
    data = PairData(manifests=(tmp_path / "x",), val_manifest=manifest(tmp_path))
    with pytest.raises(ConfigError, match=r"1 of 'test', 3 of 'train', 2 of 'val'; set data.val_split"):
        load_validation(data, "CXR", [])
    with pytest.raises(ConfigError, match="has no row of split 'dev', 1 of 'test', 3 of 'train', 2 of 'val'"):
        load_validation(data.model_copy(update={"val_split": "dev"}), "CXR", [])


def test_nobody_is_in_training_and_validation(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    path, other = manifest(tmp_path), manifest(tmp_path / "val", splits=("val",) * 6)
    data = PairData(manifests=(path,), train_split="train", val_manifest=other)
    with pytest.raises(ConfigError, match=r"3 of its groups \(patients\) are trained on too: p0, p1, p3; take"):
        load_validation(data, "CXR", load_pairs(data, "CXR"))
    manifest(tmp_path / "val", splits=("val",) * 6, dataset="another hospital")  # whose p0 is somebody else
    assert len(load_validation(data, "CXR", load_pairs(data, "CXR"))) == 6


def test_no_image_is_in_training_and_validation(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"image": f"{k}.png", "report": "Clear."}) + "\n" for k in range(5)))
    data = PairData(manifests=(path,), val_manifest=path)
    with pytest.raises(ConfigError, match=r"5 of its images are trained on too: .*0.png, .*1.png, .*2.png, \.\.\.;"):
        load_validation(data, "CXR", load_pairs(data, "CXR"))


def test_a_run_and_an_ablation_keep_to_the_splits(tmp_path: Path) -> None:
    """The recipe's one manifest has both; without the keys neither starts."""
    config = tiny_run(tmp_path, "cxr_base")
    assert config.data.model_dump()["train_split"] == "train"
    train(config)
    assert len(read_log(config.out)) == 1
    unnamed = config.model_copy(update={"data": config.data.model_copy(update={"train_split": None})})
    for command in (train, ablate):
        with pytest.raises(ConfigError, match=r"12 of 'train', 9 of 'val'; set data.train_split"):
            command(unnamed)
