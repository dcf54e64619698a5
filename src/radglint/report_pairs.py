"""Image-report pairs on disk: manifests, and tar shards in the WebDataset layout.

A manifest is JSONL, CSV or parquet; the last two are read by `manifest.read_manifest`. A JSONL line is an object:
`image` (a path, relative to the manifest), `report` (text, or an object with `findings` and `impression`), and
optionally `id`, `modality` (CXR or CT), `split`, `group` or `patient`, and `dataset`; other keys, such as the facts and
masks of a simulator, are not read. A shard is an uncompressed tar in which KEY.json (such an object without `image`) or
KEY.txt (the report) lies beside KEY.<image suffix>. Shards are indexed once and then read at random, so that a batch is
a function of seed and step alone.
"""

from __future__ import annotations

import glob
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radglint.errors import ConfigError, ImageError
from radglint.image import MedicalImage
from radglint.manifest import ManifestRow, read_manifest
from radglint.preprocess import PreprocessConfig, preprocess
from radglint.reading import read_image

FLAT_SUFFIXES = (".csv", ".parquet")
TEXT_SUFFIXES = ("json", "txt")


@dataclass(frozen=True)
class TarMember:
    """Where one file lies inside an uncompressed tar."""

    archive: Path
    name: str
    offset_bytes: int
    size_bytes: int

    def __str__(self) -> str:
        """As it is named in errors."""
        return f"{self.archive}:{self.name}"

    def read(self) -> bytes:
        """Its content."""
        with self.archive.open("rb") as file:
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)


@dataclass(frozen=True)
class Pair:
    """One image and its report.

    Attributes:
        id: its name in logs and pictures.
        image: a file or folder that `read_image` takes, or a member of a tar.
        report: the whole text.
        group: patient or body, empty if unknown.
        split: as the data have it, empty if they have none.
        dataset: within which the group's name means somebody, empty if unknown.
    """

    id: str
    image: Path | TarMember
    report: str
    group: str = ""
    split: str = ""
    dataset: str = ""


def load_manifest(path: Path, modality: str, split: str | None = None) -> list[Pair]:
    """Read the pairs of a manifest; the images are opened later.

    Args:
        path: a .csv or .parquet manifest; anything else is read as JSONL.
        modality: CXR or CT; a row of the other is refused.
        split: take the rows of this split only, "" those without one; None takes all.

    Raises:
        ConfigError: it cannot be read, is empty, has no row of the split, or a line lacks something; it names the line.
    """
    if path.suffix.lower() in FLAT_SUFFIXES:
        lines = ((f"{path}: row {row.id}", _flat_line(row)) for row in read_manifest(path))
    else:
        lines = _manifest_lines(path)
    pairs, splits = [], Counter[str]()
    for where, row in lines:
        splits[split_of(row)] += 1
        if split is None or split_of(row) == split:
            pairs.append(_pair(row, path.parent / str(row.get("image", "")), where, modality))
            if "image" not in row:
                raise ConfigError(f"{where}: has no 'image'; give the path of the image")
    if not splits:
        raise ConfigError(f"{path}: the manifest is empty; expected one JSON object a line")
    if not pairs:
        raise ConfigError(f"{path}: the manifest has no row of split {split!r}, {counted(splits)}; check the split")
    return pairs


def split_of(row: Mapping[str, Any]) -> str:
    """The split of a line, empty if it has none."""
    split = row.get("split")
    return "" if split is None else str(split)


def counted(splits: Mapping[str, int]) -> str:
    """How many rows each split has, as a message shows it; the first eight."""
    named = [f"{count} of {name!r}" if name else f"{count} without a split" for name, count in sorted(splits.items())]
    return ", ".join([*named[:8], *(["..."] if len(named) > 8 else [])])


def _manifest_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line of a JSONL manifest is, and what it holds."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the manifest cannot be read ({error}); check data.manifests") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}: line {number}", _parsed(line, f"{path}: line {number}")


def _flat_line(row: ManifestRow) -> dict[str, Any]:
    """A row of a table as a JSONL line has it."""
    sections = {"findings": row.findings, "impression": row.impression}
    report = row.report if row.report or not any(sections.values()) else sections
    line = {"id": row.id, "image": row.image, "report": report, "modality": row.modality, "split": row.split}
    return line | {"group": row.extra.get("group", row.patient), "dataset": row.dataset}


def load_shards(pattern: str, modality: str, split: str | None = None) -> list[Pair]:
    """Index the tar shards that a glob pattern names, in order.

    Args:
        pattern: of .tar files.
        modality: CXR or CT; a sample of the other is refused.
        split: as in `load_manifest`; a sample without a .json has none.

    Raises:
        ConfigError: no file fits, one is no uncompressed tar, a sample lacks its image or its report, or none is of
            the split.
    """
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise ConfigError(f"{pattern}: no such tar file; check data.shards")
    pairs = [pair for path in paths for pair in _shard_pairs(Path(path), modality)]
    chosen = [pair for pair in pairs if split is None or pair.split == split]
    if not chosen and split is not None:
        splits = Counter(pair.split for pair in pairs)
        raise ConfigError(f"{pattern}: no sample is of split {split!r}, {counted(splits)}; check the split")
    return chosen


def _shard_pairs(path: Path, modality: str) -> Iterator[Pair]:
    samples: dict[str, dict[str, TarMember]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    key, suffix = _key_and_suffix(member.name)
                    place = TarMember(path, member.name, member.offset_data, member.size)
                    samples.setdefault(key, {})[suffix] = place
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"{path}: not an uncompressed tar ({error}); unpack it to .tar") from error
    for key, parts in samples.items():
        yield _sample(path, key, parts, modality)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last component."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _sample(path: Path, key: str, parts: dict[str, TarMember], modality: str) -> Pair:
    where = f"{path}: sample {key}"
    images = [place for suffix, place in parts.items() if suffix not in TEXT_SUFFIXES]
    if len(images) != 1 or not set(parts) & set(TEXT_SUFFIXES):
        raise ConfigError(f"{where}: expected one image and a .json or .txt, got {sorted(parts)}")
    if "json" in parts:
        row = _parsed(parts["json"].read().decode("utf-8", errors="replace"), where)
    else:
        row = {"report": parts["txt"].read().decode("utf-8", errors="replace")}
    return _pair({"id": key} | row, images[0], where, modality)


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _pair(row: dict[str, Any], image: Path | TarMember, where: str, modality: str) -> Pair:
    if row.get("modality", modality) != modality:
        raise ConfigError(
            f"{where}: modality {row['modality']!r}, but the branch is for {modality}; split the manifest"
        )
    group = row.get("group", row.get("patient", ""))
    text, known = _report_text(row.get("report"), where), (split_of(row), str(row.get("dataset") or ""))
    return Pair(str(row.get("id", image)), image, text, str(group), *known)


def _report_text(report: Any, where: str) -> str:
    """The text, or findings and impression under their headings."""
    if isinstance(report, str):
        return report
    if isinstance(report, dict) and {"findings", "impression"} & set(report):
        parts = [(name, report.get(name)) for name in ("findings", "impression")]
        return "\n".join(f"{name.upper()}: {text}" for name, text in parts if text)
    raise ConfigError(f"{where}: report: expected text, or an object with findings and impression, got {report!r:.60}")


def read_pair_image(pair: Pair) -> MedicalImage:
    """Read the image of a pair.

    Raises:
        ImageError: it cannot be read; the message names file, and member of a tar.
    """
    if isinstance(pair.image, Path):
        return read_image(pair.image)
    with tempfile.TemporaryDirectory(prefix="radglint-") as folder:
        path = Path(folder) / Path(pair.image.name).name
        path.write_bytes(pair.image.read())
        try:
            return replace(read_image(path), path=str(pair.image))
        except ImageError as error:
            raise type(error)(str(error).replace(str(path), str(pair.image))) from error


def pair_pixels(pair: Pair, config: PreprocessConfig, max_slices: int | None) -> torch.Tensor:
    """Model pixels `depth height width` in [0, 1], thinned evenly to at most `max_slices`.

    Raises:
        ImageError: it cannot be read, or is of the other modality.
    """
    image = read_pair_image(pair)
    if image.modality != config.kind:
        raise ImageError(f"{pair.image}: is {image.modality}, but the branch is for {config.kind}; leave it out")
    pixels = torch.from_numpy(preprocess(image, config).pixels)
    if max_slices is None or len(pixels) <= max_slices:
        return pixels
    return pixels[np.linspace(0, len(pixels) - 1, max_slices).round().astype(int)]


def pairs_of_step(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Which pairs a step takes: each epoch a new order, its incomplete last batch left out.

    Args:
        count: pairs there are.
        batch: pairs of a step over all processes.
        seed: of the run.
        step: from 0.

    Returns:
        `batch` distinct numbers below `count`, or all of them if there are fewer.
    """
    size = min(batch, count)
    epoch, place = divmod(step, count // size)
    order = np.random.default_rng([seed, 0, epoch]).permutation(count)
    return order[place * size : (place + 1) * size]


def share_of_rank(items: Any, rank: int, num_ranks: int) -> Any:
    """A rank's run of consecutive items; the first ranks have one more where they do not divide evenly.

    Args:
        items: a sequence, or a tensor (its rows).
        rank: from 0.
        num_ranks: how many share.
    """
    least, more = divmod(len(items), num_ranks)
    start = rank * least + min(rank, more)
    return items[start : start + least + (rank < more)]
