"""A manifest as tar shards in the WebDataset layout, which `report_pairs.load_shards` and webdataset itself read.

    OUT/SPLIT-MODALITY-000000.tar   KEY.json (the manifest's line without `image`) and KEY.<suffix> (the image's file)
    OUT/SPLIT-MODALITY.json         what was exported, and how far; written after every shard

KEY is the place of a row among the exported ones. A file is copied byte for byte; a folder of CT slices becomes one
.nii.gz of the same voxels and the same affine. The same manifest and settings always give the same bytes, and an export
that was stopped goes on behind its last whole shard. Masks stay where they are: their paths are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from radglint.errors import ImageError, InputError, OutputError
from radglint.image import MedicalImage
from radglint.manifest import ManifestRow, read_manifest, row_values
from radglint.manifest_files import jsonl_line
from radglint.manifest_problems import ManifestError, Problem
from radglint.reading import list_files, read_image, sniff
from radglint.writing import output_errors, whole_file, write_json

FORMAT = 1
MEGABYTE = 1_000_000
DEFAULT_SHARD_MB = 256
_RASTER_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg"}
_BLOCK_BYTES = 512
_TAR_END_BYTES = 10_240


@dataclass(frozen=True)
class Export:
    """What an export made.

    Attributes:
        shards: the tar files, in order.
        num_samples: rows in them.
        num_kept: shards that were there from an earlier, stopped run.
        num_masks_left_out: mask references that the shards do not carry.
    """

    shards: tuple[Path, ...]
    num_samples: int
    num_kept: int
    num_masks_left_out: int


@dataclass(frozen=True)
class _Source:
    """An image as it goes into a shard: a file to copy, or content that was made."""

    suffix: str
    size_bytes: int
    path: Path | None = None
    content: bytes = b""

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if self.path is None else self.path.open("rb")


def export_shards(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    shard_mb: float = DEFAULT_SHARD_MB,
    *,
    show_progress: bool = False,
) -> Export:
    """Write a manifest's images and reports as shards.

    Args:
        manifest: .jsonl, .csv or .parquet.
        out: folder; made if missing.
        split: rows of this split only; None takes all.
        shard_mb: a shard is closed before it grows beyond this many megabytes, but holds at least one sample.
        show_progress: draw a bar on stderr.

    Raises:
        ManifestError: the manifest has problems, images that are missing, or no row of the split; all named.
        ImageError: an image is of no kind that is read, or a CT folder cannot be read.
        OutputError: the folder cannot be written, or holds another export of the same name.
    """
    path, folder = Path(manifest), Path(out)
    rows = [row for row in read_manifest(path) if split is None or row.split == split]
    _check_there(path, rows, split)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    made: list[Export] = []
    with _bar(len(rows), show_progress) as bar:
        for modality in sorted({row.modality for row in rows}):
            stream = _Stream(folder, f"{split or 'all'}-{modality.lower()}", path.parent, shard_mb)
            settings = {"format": FORMAT, "manifest_sha256": digest, "split": split, "shard_mb": shard_mb}
            made.append(stream.write([row for row in rows if row.modality == modality], settings, bar))
    return Export(
        tuple(shard for part in made for shard in part.shards),
        len(rows),
        sum(part.num_kept for part in made),
        sum(part.num_masks_left_out for part in made),
    )


def _bar(total: int, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="exporting", unit="image", disable=not show)


def _check_there(path: Path, rows: Sequence[ManifestRow], split: str | None) -> None:
    """Every image is there, before the first is copied."""
    if not rows:
        what = f"no row of split {split!r}" if split is not None else "no rows"
        raise ManifestError(path, [Problem(0, "split", "no rows", f"{what}; check the split")])
    problems = [
        Problem(number, "image", "missing image", f"{row.image}: no such file or folder; drop the row", row.id)
        for number, row in enumerate(rows, start=1)
        if not (path.parent / row.image).exists()
    ]
    if problems:
        raise ManifestError(path, problems)


class _Stream:
    """The shards of one modality, one after another.

    Args:
        out: their folder.
        name: what their names begin with.
        folder: of the manifest.
        shard_mb: largest size, in megabytes.
    """

    def __init__(self, out: Path, name: str, folder: Path, shard_mb: float) -> None:
        self.out, self.name, self.folder = out, name, folder
        self.max_bytes = int(shard_mb * MEGABYTE)
        self.index = out / f"{name}.json"
        self.shards: list[dict[str, Any]] = []

    def write(self, rows: Sequence[ManifestRow], settings: dict[str, Any], bar: Any) -> Export:
        """Write what is missing."""
        self._resume(settings)
        num_kept, done = len(self.shards), sum(shard["samples"] for shard in self.shards)
        bar.update(done)
        while done < len(rows):
            shard = self.out / f"{self.name}-{len(self.shards):06d}.tar"
            with whole_file(shard) as file:
                count = self._fill(file, rows, done, bar)
            self.shards.append({"name": shard.name, "samples": count, "bytes": shard.stat().st_size})
            done += count
            write_json(self.index, settings | {"complete": done == len(rows), "shards": self.shards})
        left_out = sum(len(phrase.masks) for row in rows for phrase in row.phrases)
        return Export(tuple(self.out / shard["name"] for shard in self.shards), len(rows), num_kept, left_out)

    def _resume(self, settings: dict[str, Any]) -> None:
        """Keep the whole shards of a stopped run; refuse those of another export."""
        if not self.index.is_file():
            if (old := self.out / f"{self.name}-000001.tar").exists():  # the first one alone may be of a stopped run
                raise OutputError(f"{old}: is of an export whose {self.index.name} is gone; choose another folder")
            return
        try:
            there = json.loads(self.index.read_text(encoding="utf-8"))
            shards = list(there["shards"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{self.index}: is damaged ({error}); choose another folder") from error
        differs = [key for key, value in settings.items() if there.get(key) != value]
        if differs:
            what = "another manifest" if "manifest_sha256" in differs else f"another {differs[0]}"
            raise OutputError(f"{self.index}: holds an export of {what}; choose another folder, or empty this one")
        for shard in shards:
            path = self.out / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                break
            self.shards.append(shard)

    def _fill(self, file: BinaryIO, rows: Sequence[ManifestRow], first: int, bar: Any) -> int:
        """One shard from row `first` on; returns how many rows it took."""
        size, count = _TAR_END_BYTES, 0
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for number, row in enumerate(rows[first:], start=first):
                source = image_source(self.folder / row.image)
                line = _line(row)
                needed = _in_tar(len(line)) + _in_tar(source.size_bytes)
                if count and size + needed > self.max_bytes:
                    break
                key = f"{number:08d}"
                archive.addfile(_member(f"{key}.json", len(line)), io.BytesIO(line))
                with source.open() as content:
                    archive.addfile(_member(f"{key}.{source.suffix}", source.size_bytes), content)
                size, count = size + needed, count + 1
                bar.update()
        return count


def _line(row: ManifestRow) -> bytes:
    values = row_values(row)
    values.pop("image")
    phrases = [{key: value for key, value in phrase.items() if key != "masks"} for phrase in values.pop("phrases", ())]
    return jsonl_line(values | ({"phrases": phrases} if phrases else {})).encode("utf-8")


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A header without time, owner or rights of this machine."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o644
    return member


def _in_tar(size_bytes: int) -> int:
    return _BLOCK_BYTES * (1 + -(-size_bytes // _BLOCK_BYTES))


def image_source(path: Path) -> _Source:
    """What to put into a shard for an image.

    Args:
        path: a file or folder that `read_image` takes.

    Raises:
        ImageError: of no kind that is read, or a CT folder that cannot be read.
        InputError: a CT that a NIfTI file does not hold exactly.
    """
    kind = sniff(path)
    if kind == "folder":
        return _folder_source(path)
    suffix = {"zip": "zip", "dicom": "dcm", "nifti": "nii"}.get(kind) or ""
    with path.open("rb") as file:
        head = file.read(4)
    if kind == "nifti" and head.startswith(b"\x1f\x8b"):
        suffix = "nii.gz"
    elif kind == "raster":
        suffix = next((name for magic, name in _RASTER_SUFFIXES.items() if head.startswith(magic)), "tif")
    return _Source(suffix, path.stat().st_size, path)


def _folder_source(folder: Path) -> _Source:
    """The one image file of a folder as it is; slices of a CT as one NIfTI."""
    files = [file for file in list_files(folder) if _is_image(file)]
    if len(files) == 1:
        return image_source(files[0])
    image = read_image(folder)
    if image.modality != "CT":
        return image_source(image.source_frames[0].path)
    content = exact_nifti(image)
    return _Source("nii.gz", len(content), None, content)


def _is_image(path: Path) -> bool:
    try:
        return bool(sniff(path))
    except ImageError:
        return False


def exact_nifti(image: MedicalImage) -> bytes:
    """A CT as .nii.gz that reads back as the very same voxels and affine.

    NIfTI-2, because it stores the affine in 64 bits. Whole HU become int16, others stay float32.

    Args:
        image: a CT.

    Raises:
        InputError: what is read back differs.
    """
    import nibabel as nib

    array, affine = image.array, np.asarray(image.nifti_affine, dtype=np.float64)
    is_whole = bool(np.array_equal(array, np.rint(array))) and abs(array).max() < 2**15
    data = array.transpose(2, 1, 0).astype(np.int16 if is_whole else np.float32)
    nifti = nib.Nifti2Image(data, affine)  # pyright: ignore[reportPrivateImportUsage]
    nifti.set_sform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    content = gzip.compress(nifti.to_bytes(), 6, mtime=0)
    _check_same(content, image)
    return content


def _check_same(content: bytes, image: MedicalImage) -> None:
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        path = Path(folder) / "volume.nii.gz"
        path.write_bytes(content)
        again = read_image(path)
    if not np.array_equal(again.array, image.array):
        raise InputError(f"{image.path}: the CT cannot be stored as NIfTI without changing voxels; convert it yourself")
    if not np.array_equal(np.asarray(again.affine), np.asarray(image.affine)):
        raise InputError(f"{image.path}: the CT cannot be stored as NIfTI without moving it; convert it yourself")
