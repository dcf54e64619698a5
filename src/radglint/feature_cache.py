"""A frozen trunk's tokens of one's own images, kept in a folder: each image is encoded once, not at every step.

    cache.json              what the tokens were made with: trunk, preprocessing, blocks, slices, version of radglint
    3f/3f0c....safetensors  one image: `tokens`, bfloat16 `depth patches width * (1 + blocks)`, and in the metadata the
                            grid and a checksum

The folder serves one such record; another one is refused. The name of a file is a hash of that record and of the
image's path, size and time of change (of a DICOM folder: of each of its files; of a tar: also the member), so the
tokens of another trunk or of an image that was replaced are never found. An image that was moved is encoded again.

Tokens are rounded to bfloat16. Where the products of training are bfloat16, the branch rounds them so in any case, and
training on them is the same computation; with float32 products it is that on rounded tokens. The products of the trunk
itself are in the format of the run that fills the folder, which the record does not tell apart.

Disk: 2 bytes x slices x patches x width x (1 + blocks) an image, 1.5 MB for a radiograph of 1024 patches and a ViT-B.
Memory: a step reads the tokens of its own images, in the worker processes, and the names of the files are all that is
kept of the others: memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import radglint
from radglint.encoders.backbones import IGNORED_KEYS
from radglint.errors import ConfigError, ImageError, InputError, TrainingError, shown
from radglint.model import GlintModel
from radglint.precision import autocast
from radglint.preprocess import PreprocessConfig
from radglint.reading import list_files
from radglint.report_pairs import Pair, TarMember, pair_pixels
from radglint.train_config import PairData, TrainConfig
from radglint.train_towers import Ranks
from radglint.writing import output_errors, write_bytes, write_json

FORMAT, FORMAT_VERSION = "radglint-trunk-tokens", 1
RECORD = "cache.json"
TOKENS, ABOUT, GRID, CHECKSUM = "tokens", "radglint", "grid", "crc32"
IMAGES_AT_ONCE = 16  # radiographs of one size that are encoded together, unless microbatch_images is smaller
ROUND_IMAGES = 16  # of each process, then all wait: none is ever so far ahead that another's wait would time out
LEFTOVER_AGE_S = 24 * 3600  # an unfinished file so old is nobody's work in progress
Record = dict[str, Any]


@dataclass(frozen=True)
class TrunkTokens:
    """What the branch reads of one image.

    Attributes:
        tokens: `depth patches embed`, bfloat16; embed is the trunk's width times one and its `trunk_layers`.
        grid: `(height, width)` of one slice, whose product is the number of patches.
    """

    tokens: torch.Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class FeatureCache:
    """Where the tokens of each image of a run are.

    Attributes:
        folder: of the cache.
        names: image to the file of its tokens, relative to the folder.
    """

    folder: Path
    names: Mapping[Path | TarMember, str]

    def path(self, pair: Pair) -> Path:
        """The file of an image's tokens, there or not."""
        return self.folder / self.names[pair.image]

    def holds(self, pair: Pair) -> bool:
        """Whether the tokens of an image are there; what a power cut emptied is not."""
        try:
            return self.path(pair).stat().st_size > 0
        except OSError:
            return False

    def read(self, pair: Pair) -> TrunkTokens:
        """The tokens of an image.

        Raises:
            TrainingError: the file is missing or damaged.
        """
        path = self.path(pair)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[ABOUT])
                tokens = file.get_tensor(TOKENS).clone()  # a mapped file may change under it
            height, width = about[GRID]
            is_whole = tokens.shape[1] == height * width and about[CHECKSUM] == _checksum(tokens)
            problem = None if is_whole else "its content is not what was written"
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            problem, tokens, height, width = str(error), torch.zeros(0), 0, 0
        if problem is not None:
            raise TrainingError(
                f"{path}: the cached tokens of {pair.image} cannot be read ({shown(problem)}); delete this file and "
                "start again with --resume, it is made anew"
            )
        return TrunkTokens(tokens, (height, width))

    def write(self, pair: Pair, tokens: torch.Tensor, grid: Sequence[int]) -> None:
        """Keep the tokens of an image.

        Args:
            pair: of the run.
            tokens: `depth patches embed`.
            grid: `(height, width)` of one slice.

        Raises:
            TrainingError: a value is not finite.
            OutputError: the file cannot be written; nothing is left behind.
        """
        if not bool(tokens.isfinite().all()):
            raise TrainingError(f"{pair.image}: the trunk gives values that are not finite; leave this image out")
        rounded, path = tokens.to("cpu", torch.bfloat16).contiguous(), self.path(pair)
        about = json.dumps({GRID: list(grid), CHECKSUM: _checksum(rounded), "image": str(pair.image)})
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({TOKENS: rounded}, {ABOUT: about}))  # one entry: several have no order


def _checksum(tokens: torch.Tensor) -> str:
    return f"{zlib.crc32(tokens.contiguous().flatten().view(torch.uint8).numpy().data):08x}"


def filled_cache(
    config: TrainConfig, model: GlintModel, ranks: Ranks, pairs: Iterable[Pair]
) -> FeatureCache | None:  # fmt: skip
    """The cache of a run, with the tokens of all its images; None without `data.cache`.

    All processes must call, each with the whole trunk on its device. Images that are not there are shared out among
    them, read by the run's workers and encoded; a fill that was stopped goes on where it was.

    Args:
        config: with data of kind "pairs" and a frozen trunk.
        model: its trunk is asked for the tokens; put in eval mode.
        ranks: this process among all.
        pairs: of training and validation.

    Raises:
        ConfigError: the folder is another cache, or something else.
        ImageError: an image cannot be read.
        TrainingError: the trunk gives values that are not finite, or the processes do not see one folder.
        OutputError: the folder cannot be written.
    """
    assert isinstance(config.data, PairData)
    if config.data.cache is None:
        return None
    record, folder = cache_record(config, model), config.data.cache
    if ranks.rank == 0:
        _open_folder(folder, record)
    _wait(ranks)
    _check_record(folder, record)
    images = {pair.image: pair for pair in pairs}
    cache = FeatureCache(folder, {image: _file_name(record, image) for image in images})
    _fill(cache, list(images.values()), config, model.eval(), ranks)
    for pair in images.values():
        if not cache.holds(pair):
            raise TrainingError(
                f"{cache.path(pair)}: is not there, but another process has written it; all processes must see the "
                "same folder data.cache, or something deletes its files"
            )
    return cache


def cache_record(config: TrainConfig, model: GlintModel) -> Record:
    """What decides the tokens of an image, as `cache.json` has it."""
    assert isinstance(config.data, PairData)
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "radglint": radglint.__version__,
        "trunk": trunk_fingerprint(model.trunk, model.config.image_backbone),
        "preprocess": config.branch.preprocess.model_dump(mode="json"),
        "trunk_layers": list(config.branch.trunk_layers), "max_slices": config.data.max_slices,
    }  # fmt: skip


def trunk_fingerprint(trunk: nn.Module, backbone: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of a trunk's weights and configuration.

    Args:
        trunk: whole, on any device.
        backbone: its `transformers` configuration; where it was loaded from and by which version does not count.
    """
    known = {k: v for k, v in backbone.items() if not k.startswith("_") and k not in IGNORED_KEYS}
    known.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for name, tensor in sorted(trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _open_folder(folder: Path, record: Record) -> None:
    """Make the folder and its record, where they are not there; drop what a kill left unfinished long ago."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if RECORD in others:
        _check_record(folder, record)
    elif others:
        raise ConfigError(
            f"data.cache: {folder} holds other things ({shown(sorted(others)[:3])}) and no {RECORD}; name a new folder"
        )
    else:
        write_json(folder / RECORD, record)
    for leftover in folder.glob("??/.radglint-*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                leftover.unlink()


def _check_record(folder: Path, record: Record) -> None:
    path = folder / RECORD
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in {**record, **there} if there.get(key) != record.get(key)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a new folder in data.cache") from error
    if differing:
        listed = "; ".join(f"{key}: {shown(there.get(key))} there, {shown(record.get(key))} now" for key in differing)
        raise ConfigError(
            f"data.cache: {folder} holds tokens made with something else ({listed}); name another folder, or go back "
            "to what it was made with"
        )


def _file_name(record: Record, image: Path | TarMember) -> str:
    known = json.dumps([record, _stamp(image)], sort_keys=True)
    name = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:40]
    return f"{name[:2]}/{name}.safetensors"


def _stamp(image: Path | TarMember) -> list[Any]:
    """What tells an image as it is now from any other.

    Raises:
        ImageError: it is not there.
    """
    path = image if isinstance(image, Path) else image.archive
    try:
        files = list_files(path) if path.is_dir() else [path]
        stamps: list[Any] = [[os.path.abspath(f), s.st_size, s.st_mtime_ns] for f in files for s in (f.stat(),)]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the manifest") from error
    return stamps if isinstance(image, Path) else [*stamps, image.name, image.offset_bytes, image.size_bytes]


def _fill(
    cache: FeatureCache, images: Sequence[Pair], config: TrainConfig, model: GlintModel, ranks: Ranks
) -> None:  # fmt: skip
    """Encode what is not there, in rounds of all processes."""
    size = ROUND_IMAGES * ranks.count
    rounds = [images[start : start + size] for start in range(0, len(images), size)]
    missing = [[pair for pair in some[ranks.rank :: ranks.count] if not cache.holds(pair)] for some in rounds]
    pixels = _pixels([pair for some in missing for pair in some], config)
    most = min(config.microbatch_images or IMAGES_AT_ONCE, IMAGES_AT_ONCE)
    with tqdm(total=len(images), desc="encoding", unit="image", disable=None if ranks.rank == 0 else True) as bar:
        for some, own in zip(rounds, missing, strict=True):
            for group in _alike(islice(pixels, len(own)), most):
                _encode(cache, group, config, model, ranks)
            _wait(ranks)
            bar.update(len(some))


class _Unseen(Dataset[tuple[Pair, "torch.Tensor | InputError"]]):
    """Pixels of the images that have no tokens; read in worker processes.

    Args:
        pairs: their images.
        preprocess: of the branch.
        max_slices: of the run.
    """

    def __init__(self, pairs: Sequence[Pair], preprocess: PreprocessConfig, max_slices: int | None) -> None:
        self.pairs, self.preprocess, self.max_slices = pairs, preprocess, max_slices

    def __len__(self) -> int:
        """Images."""
        return len(self.pairs)

    def __getitem__(self, k: int) -> tuple[Pair, torch.Tensor | InputError]:
        """Pixels, or why there are none: an error that left a worker by itself would be a page long."""
        try:
            return self.pairs[k], pair_pixels(self.pairs[k], self.preprocess, self.max_slices)
        except InputError as error:
            return self.pairs[k], error


def _pixels(pairs: Sequence[Pair], config: TrainConfig) -> Iterator[tuple[Pair, torch.Tensor]]:
    """The pixels of each image in order, read ahead."""
    assert isinstance(config.data, PairData)
    if not pairs:
        return
    data, workers = _Unseen(pairs, config.branch.preprocess, config.data.max_slices), config.data.workers
    loader = DataLoader(data, batch_size=None, num_workers=workers,
                        multiprocessing_context="spawn" if workers else None)  # fmt: skip
    for pair, pixels in loader:
        if isinstance(pixels, InputError):
            raise pixels
        yield pair, pixels


def _alike(images: Iterable[tuple[Pair, torch.Tensor]], most: int) -> Iterator[list[tuple[Pair, torch.Tensor]]]:
    """Radiographs of one size together, at most `most` of them; a volume, which has many slices, alone."""
    waiting: dict[torch.Size, list[tuple[Pair, torch.Tensor]]] = {}
    for pair, pixels in images:
        group = waiting.setdefault(pixels.shape, [])
        group.append((pair, pixels))
        if len(group) >= most or len(pixels) > 1:
            yield waiting.pop(pixels.shape)
    yield from waiting.values()


@torch.no_grad()
def _encode(
    cache: FeatureCache, group: Sequence[tuple[Pair, torch.Tensor]], config: TrainConfig, model: GlintModel,
    ranks: Ranks,
) -> None:  # fmt: skip
    pixels = torch.stack([image for _, image in group]).to(ranks.device)
    with autocast(config.precision, ranks.device):
        features = model.branch_features(pixels, config.branch.preprocess.kind)
    for (pair, _), tokens in zip(group, features.tokens, strict=True):
        cache.write(pair, tokens, features.grid)


def _wait(ranks: Ranks) -> None:
    if ranks.count > 1:
        distributed.barrier()
