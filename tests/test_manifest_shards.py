"""Shards give training what the manifest gives it; the same bytes always; a stopped export goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_files import phantom_hu, write_ct_series, write_enhanced_ct, write_radiograph
from manifest_data import cxr_manifest, cxr_row, radiograph, volume
from radglint import manifest_shards
from radglint.errors import ImageError, InputError, OutputError
from radglint.manifest import ManifestRow, Phrase, write_manifest
from radglint.manifest_problems import ManifestError
from radglint.manifest_shards import exact_nifti, export_shards
from radglint.reading import read_image
from radglint.report_pairs import load_manifest, load_shards, read_pair_image


def mixed_manifest(folder: Path) -> Path:
    """Every kind of file that an image can be."""
    radiograph(folder, "a.png")
    write_radiograph(folder / "b.dcm", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    (folder / "one").mkdir()
    shutil.copy(folder / "b.dcm", folder / "one" / "IM1")
    volume(folder, "v.nii.gz")
    volume(folder, "w.nii", phantom_hu(20, 32, 40))
    write_ct_series(folder / "series", phantom_hu(24, 32, 40), step=(0.1, 0.3, 2.1), origin=(-10.3, 20.7, -1 / 3))
    write_enhanced_ct(folder / "e.dcm", phantom_hu(24, 32, 40))
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, file.name)
    rows = [cxr_row(name, image=name, patient=f"p{name}") for name in ("a.png", "b.dcm", "one")]
    names = ("v.nii.gz", "w.nii", "series", "e.dcm", "z.zip")
    rows += [ManifestRow(name, name, "CT", findings="Clear.", impression="Fine.") for name in names]
    return write_manifest(folder / "m.jsonl", rows)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_shards_give_the_pairs_and_pixels_of_the_manifest(tmp_path: Path) -> None:
    path = mixed_manifest(tmp_path)
    export = export_shards(path, tmp_path / "out")
    assert [shard.name for shard in export.shards] == ["all-ct-000000.tar", "all-cxr-000000.tar"]
    assert (export.num_samples, export.num_kept) == (8, 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for modality in ("CXR", "CT"):
        part = tmp_path / f"{modality}.jsonl"
        part.write_text("".join(json.dumps(line) + "\n" for line in lines if line["modality"] == modality))
        wanted = load_manifest(part, modality)
        got = load_shards(str(tmp_path / "out" / f"all-{modality.lower()}-*.tar"), modality)
        assert [(p.id, p.report, p.group) for p in got] == [(p.id, p.report, p.group) for p in wanted]
        for mine, theirs in zip(got, wanted, strict=True):
            one, two = read_pair_image(mine), read_pair_image(theirs)
            assert np.array_equal(one.array, two.array)
            assert one.modality == two.modality
            assert (one.affine is None) == (two.affine is None)
            assert one.affine is None or np.array_equal(one.affine, np.asarray(two.affine))


def test_a_series_becomes_one_nifti_of_the_same_voxels(tmp_path: Path) -> None:
    path = mixed_manifest(tmp_path)
    export_shards(path, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "all-ct-000000.tar") as archive:
        names = archive.getnames()
        archive.extract("00000002.nii.gz", tmp_path / "there", filter="data")
    assert names == [
        "00000000.json", "00000000.nii.gz", "00000001.json", "00000001.nii", "00000002.json", "00000002.nii.gz",
        "00000003.json", "00000003.dcm", "00000004.json", "00000004.zip",
    ]  # fmt: skip
    series, nifti = read_image(tmp_path / "series"), read_image(tmp_path / "there" / "00000002.nii.gz")
    assert np.array_equal(series.array, nifti.array)
    assert np.array_equal(np.asarray(series.affine), np.asarray(nifti.affine))
    assert nifti.spacing_mm == pytest.approx(series.spacing_mm, abs=1e-9)


def test_fractions_of_a_hu_are_kept(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "s", phantom_hu(24, 32, 40), RescaleSlope=0.3, RescaleIntercept=-1023.7)
    image = read_image(tmp_path / "s")
    (tmp_path / "v.nii.gz").write_bytes(exact_nifti(image))
    assert np.array_equal(read_image(tmp_path / "v.nii.gz").array, image.array)


def test_a_ct_that_reads_back_otherwise_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    write_ct_series(tmp_path / "s", phantom_hu(24, 32, 40))
    image, other = read_image(tmp_path / "s"), read_image(volume(tmp_path, "v.nii.gz"))
    monkeypatch.setattr(manifest_shards, "read_image", lambda path: other)
    with pytest.raises(InputError, match=r"s: the CT cannot be stored as NIfTI without (moving it|changing voxels)"):
        exact_nifti(image)


def test_a_broken_series_is_refused_by_name(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "s", phantom_hu(24, 32, 40), skip=(5, 6, 9))
    path = write_manifest(tmp_path / "m.jsonl", [ManifestRow("s", "s", "CT")])
    with pytest.raises(ImageError, match="/s: "):
        export_shards(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_samples_carry_the_row_without_masks(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    phrase = Phrase("nodule", "nodule", ((1, 2, 3, 4),), ("x.png",))
    row = cxr_row("a", split="val", labels={"nodule": "present"}, phrases=(phrase,), extra={"seed": 3})
    export = export_shards(cxr_manifest(tmp_path, row, cxr_row("b", split="train")), tmp_path / "out", "val")
    assert (export.num_samples, export.num_masks_left_out) == (1, 1)
    with tarfile.open(export.shards[0]) as archive:
        line = json.loads(archive.extractfile("00000000.json").read())  # pyright: ignore[reportOptionalMemberAccess]
    assert line == {
        "id": "a", "modality": "CXR", "split": "val", "report": "Clear lungs.", "labels": {"nodule": "present"},
        "seed": 3, "phrases": [{"text": "nodule", "label": "nodule", "boxes": [[1, 2, 3, 4]]}],
    }  # fmt: skip


def big_manifest(folder: Path) -> Path:
    """Ten radiographs of about 20 kB."""
    return cxr_manifest(folder, *(cxr_row(str(k)) for k in range(10)))


def fill(folder: Path) -> Path:
    for k in range(10):
        radiograph(folder, f"{k}.png", k, (100, 100))
    return big_manifest(folder)


def test_shards_are_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    path = fill(tmp_path)
    first = export_shards(path, tmp_path / "one", shard_mb=0.06)
    assert len(first.shards) == 5
    assert all(shard.stat().st_size <= 60_000 for shard in first.shards)
    shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "b"), ignore=shutil.ignore_patterns("one"))
    export_shards(tmp_path.with_name(tmp_path.name + "b") / "m.jsonl", tmp_path / "two", shard_mb=0.06)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_export_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    path = fill(tmp_path)
    export_shards(path, tmp_path / "whole", shard_mb=0.06)
    taken: list[Path] = []
    source = manifest_shards.image_source

    def stop(image: Path) -> Any:
        taken.append(image)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return source(image)

    monkeypatch.setattr(manifest_shards, "image_source", stop)
    with pytest.raises(KeyboardInterrupt):
        export_shards(path, tmp_path / "out", shard_mb=0.06)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["all-cxr-000000.tar", "all-cxr.json"]
    assert json.loads((tmp_path / "out" / "all-cxr.json").read_text())["complete"] is False
    export = export_shards(path, tmp_path / "out", shard_mb=0.06)
    assert export.num_kept == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert export_shards(path, tmp_path / "out", shard_mb=0.06).num_kept == 5


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    path = fill(tmp_path)
    export = export_shards(path, tmp_path / "out", shard_mb=0.06)
    before = contents(tmp_path / "out")
    export.shards[1].write_bytes(b"cut")
    assert export_shards(path, tmp_path / "out", shard_mb=0.06).num_kept == 1
    assert contents(tmp_path / "out") == before


def test_another_export_in_the_folder_is_not_mixed_with(tmp_path: Path) -> None:
    path = fill(tmp_path)
    export_shards(path, tmp_path / "out", shard_mb=0.06)
    with pytest.raises(OutputError, match="holds an export of another shard_mb"):
        export_shards(path, tmp_path / "out", shard_mb=1)
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(OutputError, match="holds an export of another manifest"):
        export_shards(path, tmp_path / "out", shard_mb=0.06)
    (tmp_path / "out" / "all-cxr.json").write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        export_shards(path, tmp_path / "out", shard_mb=0.06)
    (tmp_path / "out" / "all-cxr.json").unlink()
    with pytest.raises(OutputError, match=r"all-cxr.json is gone"):
        export_shards(path, tmp_path / "out", shard_mb=0.06)


def test_a_sample_larger_than_a_shard_has_one_for_itself(tmp_path: Path) -> None:
    path = cxr_manifest(tmp_path, cxr_row("a"), cxr_row("b"))
    assert len(export_shards(path, tmp_path / "out", shard_mb=0.001).shards) == 2


def test_what_is_missing_is_said_before_the_first_copy(tmp_path: Path) -> None:
    path = cxr_manifest(tmp_path, *(cxr_row(name, split="train") for name in "abc"))
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.png").unlink()
    with pytest.raises(ManifestError) as caught:
        export_shards(path, tmp_path / "out")
    assert [problem.id for problem in caught.value.problems] == ["a", "c"]
    with pytest.raises(ManifestError, match="no row of split 'test'; check the split"):
        export_shards(path, tmp_path / "out", "test")
    assert not (tmp_path / "out").exists()
