"""Image-report pairs on disk, and which of them a step takes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radglint.errors import ConfigError, ImageError
from radglint.preprocess import CtPreprocess, CxrPreprocess
from radglint.report_pairs import (
    Pair,
    TarMember,
    load_manifest,
    load_shards,
    pair_pixels,
    pairs_of_step,
    share_of_rank,
)

CONFIG = CxrPreprocess(long_side_px=28, patch_px=14)


def radiograph(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def manifest(folder: Path, *rows: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def shard(folder: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    path = folder / "shard-000.tar"
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            (folder / "member").write_bytes(content)
            archive.add(folder / "member", name)
    return path


def test_a_manifest_gives_pairs_in_order(tmp_path: Path) -> None:
    pairs = load_manifest(
        manifest(
            tmp_path,
            {"image": "a.png", "report": "Clear.", "patient": 7},
            "",
            {"id": "b", "image": "/x/b.png", "report": {"findings": "Nodule.", "impression": "Same."}, "facts": [1]},
            {"image": "c.png", "report": {"impression": "Mass.", "findings": ""}, "group": "g", "modality": "CXR"},
        ),
        "CXR",
    )
    assert pairs == [
        Pair(str(tmp_path / "a.png"), tmp_path / "a.png", "Clear.", "7"),
        Pair("b", Path("/x/b.png"), "FINDINGS: Nodule.\nIMPRESSION: Same."),
        Pair(str(tmp_path / "c.png"), tmp_path / "c.png", "IMPRESSION: Mass.", "g"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected a JSON object, got list"),
        ({"report": "x"}, "line 1: has no 'image'"),
        ({"image": "a.png"}, "line 1: report: expected text, or an object with findings and impression, got None"),
        ({"image": "a.png", "report": {"text": "x"}}, "line 1: report: expected text"),
        ({"image": "a", "report": "x", "modality": "CT"}, "line 1: modality 'CT', but the branch is for CXR"),
        ("", "the manifest is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"train.jsonl: {message}"):
        load_manifest(manifest(tmp_path, row), "CXR")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.jsonl: the manifest cannot be read"):
        load_manifest(tmp_path / "none.jsonl", "CXR")


def test_a_shard_gives_the_same_pixels_as_the_files_in_it(tmp_path: Path) -> None:
    image = radiograph(tmp_path / "1.png")
    files = {
        "a/1.png": image.read_bytes(),
        "a/1.json": json.dumps({"report": "Nodule.", "patient": "p"}).encode(),
        "a/2.v1.png": radiograph(tmp_path / "2.png", seed=1).read_bytes(),
        "a/2.txt": b"Clear lungs.",
    }
    shard(tmp_path, files)
    one, two = load_shards(str(tmp_path / "*.tar"), "CXR")
    assert (one.id, one.report, one.group, two.id, two.report) == ("a/1", "Nodule.", "p", "a/2", "Clear lungs.")
    assert isinstance(one.image, TarMember)
    pixels = pair_pixels(one, CONFIG, None)
    assert np.array_equal(pixels, pair_pixels(Pair("", image, ""), CONFIG, None))
    assert not np.array_equal(pixels, pair_pixels(two, CONFIG, None))


def test_bad_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.*tar: no such tar file; check data.shards"):
        load_shards(str(tmp_path / "none*.tar"), "CXR")
    path = shard(tmp_path, {"1.png": b"x"})
    with pytest.raises(ConfigError, match=r"sample 1: expected one image and a .json or .txt, got \['png'\]"):
        load_shards(str(path), "CXR")
    shard(tmp_path, {"1.png": b"x", "1.txt": b"x"}, "w:gz")
    with pytest.raises(ConfigError, match="not an uncompressed tar"):
        load_shards(str(path), "CXR")


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    shard(tmp_path, {"1.png": b"not an image", "1.txt": b"x"})
    (pair,) = load_shards(str(tmp_path / "*.tar"), "CXR")
    with pytest.raises(ImageError, match=r"shard-000.tar:1.png: (?!.*/radglint-)"):
        pair_pixels(pair, CONFIG, None)
    with pytest.raises(ImageError, match="is CXR, but the branch is for CT; leave it out"):
        pair_pixels(Pair("", radiograph(tmp_path / "a.png"), ""), CtPreprocess(), None)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_takes_each_pair_at_most_once_and_every_epoch_another_order(count: int, batch: int, seed: int) -> None:
    size = min(batch, count)
    steps = count // size
    epochs = [np.concatenate([pairs_of_step(count, batch, seed, e * steps + k) for k in range(steps)]) for e in (0, 1)]
    for taken in epochs:
        assert len(taken) == steps * size == len(set(taken.tolist()))
        assert set(taken.tolist()) <= set(range(count))
    if count > 12:
        assert epochs[0].tolist() != epochs[1].tolist()


@given(st.integers(0, 30), st.integers(1, 7))
def test_the_shares_of_all_ranks_are_the_whole(count: int, ranks: int) -> None:
    items = list(range(count))
    shares = [share_of_rank(items, rank, ranks) for rank in range(ranks)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
