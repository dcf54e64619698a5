"""What is fuzzed: each target has small valid files, a way to spoil them, and the code of radglint that reads them.

A target's `read` may raise `RadglintError` and nothing else. What was read in spite of the damage must keep the
promises of its type: that is checked too, because a wrong image is worse than a refused one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import formats
import mutations
import seeds
from radglint import batch_memory, batch_queries, manifest, prompt_banks, query, reading, reports, train_config
from radglint.batch_cases import Case, find_cases
from radglint.evaluation import results as evaluation_results
from radglint.evaluation import suite
from radglint.image import MedicalImage
from radglint.inspection import judge_image
from radglint.preprocess import CtPreprocess, CxrPreprocess, preprocess
from radglint.pretraining import config as pretraining_config

Mutate = Callable[[Random, bytes], bytes]
Read = Callable[[bytes, Path], None]


class BrokenPromiseError(AssertionError):
    """What was read is not what its type promises."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        weight: how many of 1,000 inputs it gets.
        files: makes its valid files by name.
        mutate: spoils one.
        read: reads one, with an empty folder to write it to.
        is_folder: the bytes are a stored zip that `read` unpacks, so it must stay whole.
    """

    weight: int
    files: Callable[[], Mapping[str, bytes]]
    mutate: Mutate
    read: Read
    is_folder: bool = False

    def seeds(self) -> dict[str, bytes]:
        """Its valid files, made once."""
        return _made(self.files)


@cache
def _made(files: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
    return dict(sorted(files().items()))


def mutant(target: Target, rng: Random) -> bytes:
    """The next spoilt file of a target; one in twenty has a piece of another seed in it."""
    files = list(target.seeds().values())
    data = rng.choice(files)
    if target.is_folder or rng.random() < 0.95:
        return target.mutate(rng, data)
    other = rng.choice(files)
    first = rng.randrange(len(other) + 1)
    at = rng.randrange(len(data) + 1)
    data = data[:at] + other[first : first + rng.choice((8, 64, 100_000))] + data[at:]
    return mutations.mutate_bytes(rng, data, rng.randrange(2))


# --- images


def _promise(condition: Any, words: str) -> None:
    if not bool(condition):
        raise BrokenPromiseError(words)


def check_image(image: MedicalImage, *, is_followed: bool = True) -> None:
    """What every reader promises of an image; if it is followed, it can be judged and turned into model pixels."""
    array = image.array
    _promise(array.dtype == np.float32 and array.size and np.isfinite(array).all(), "the array is not finite float32")
    _promise(float(array.min()) < float(array.max()), "the image is constant")
    if image.modality == "CT":
        _promise(array.ndim == 3 and array.min() >= -1024, "a CT below -1024 HU")
        _promise(image.spacing_mm and min(image.spacing_mm) > 0, "a CT without spacing")
    else:
        _promise(array.ndim == 2 and array.min() >= 0 and array.max() <= 1, "a radiograph outside [0, 1]")
        _promise(image.spacing_mm is None or np.isfinite(image.spacing_mm).all(), "spacing that is not finite")
    if not is_followed:
        return
    json.dumps(judge_image(image).to_dict(), allow_nan=False)
    ct = image.modality == "CT"
    config = (
        CtPreprocess(height_px=28, width_px=28, mm_per_px=10.0, patch_px=14) if ct else CxrPreprocess(long_side_px=56)
    )
    pixels = preprocess(image, config).pixels
    _promise(np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1, "model pixels outside [0, 1]")


def read_file(data: bytes, folder: Path) -> None:
    """An image file, as `ask` and `batch` take it."""
    path = folder / "image.bin"
    path.write_bytes(data)
    is_followed = zlib.crc32(data) % 4 == 0
    if is_followed:
        batch_memory.estimate_bytes(Case(id="a", path=str(path)))
    check_image(reading.read_image(path), is_followed=is_followed)


def read_folder(data: bytes, folder: Path) -> None:
    """A folder of DICOM files."""
    inside = folder / "series"
    inside.mkdir()
    for name, body in seeds.unzipped(data).items():
        (inside / name).write_bytes(body)
    for case in find_cases([str(inside)]):
        batch_memory.estimate_bytes(case)
    check_image(reading.read_image(inside))


def mutate_folder(rng: Random, data: bytes) -> bytes:
    """Spoil one or two files of a folder, double one, or leave one out."""
    files = seeds.unzipped(data)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(files))
        what = rng.random()
        if what < 0.8:
            files[name] = formats.mutate_dicom(rng, files[name])
        elif what < 0.9:
            files[f"copy_{name}"] = files[name]
        elif len(files) > 1:
            del files[name]
    return seeds.zipped(files)


def mutate_member(rng: Random, data: bytes) -> bytes:
    """Spoil a member of a zip by what it is."""
    if data[128:132] == b"DICM":
        return formats.mutate_dicom(rng, data)
    return formats.mutate_png(rng, data) if data[:4] == b"\x89PNG" else mutations.mutate_bytes(rng, data)


def mutate_picture(rng: Random, data: bytes) -> bytes:
    """Spoil a picture by what it is."""
    if data[:4] == b"\x89PNG":
        return formats.mutate_png(rng, data)
    return formats.mutate_jpeg(rng, data) if data[:2] == b"\xff\xd8" else formats.mutate_tiff(rng, data)


# --- text


def _write_and(read: Callable[[Path], Any], name: str, data: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(data)
    read(path)


def read_manifest(name: str, data: bytes, folder: Path) -> None:
    """A manifest; rows that are read can be written, and come back the same."""
    path = folder / name
    path.write_bytes(data)
    rows = manifest.read_manifest(path)
    again = manifest.read_manifest(manifest.write_manifest(folder / f"again_{name}", rows))
    _promise(repr(again) == repr(rows), "rows changed by writing and reading them")


def mutate_jsonl(rng: Random, data: bytes) -> bytes:
    """Spoil values of rows, or bytes."""
    if rng.random() < 0.2:
        return mutations.mutate_bytes(rng, data)
    lines = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            lines.append(line)
            continue
        lines.append(mutations.json_bytes(rng, mutations.mutate_value(rng, value) if rng.random() < 0.7 else value))
    return rng.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def mutate_json(rng: Random, data: bytes) -> bytes:
    """Spoil a JSON document."""
    try:
        value = json.loads(data)
    except ValueError:
        return mutations.mutate_bytes(rng, data)
    return mutations.json_bytes(rng, mutations.mutate_value(rng, value))


_MARKS = (
    '"', '""', ",", ";", "\n", "\r", "\r\n", "\t", "\0", "[", "]", "{", "}", "=", ".", "#", "'''", '"""', "\\", "-1",
    "1e999", "nan", "inf", "true", "''", "\ufeff", "é", "\u2028", "label:", "extra", "null", "[[", "0x", "1979-05-27",
)  # fmt: skip


def mutate_text(rng: Random, data: bytes) -> bytes:
    """Insert marks that mean something, double lines, nest deeply, or spoil bytes."""
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(6)
        if what < 3:
            text = text[:at] + rng.choice(_MARKS) * rng.choice((1, 1, 1, 2, 2_000)) + text[at:]
        elif what == 3:
            lines = text.split("\n")
            k = rng.randrange(len(lines))
            lines[k:k] = lines[k : k + 1]
            text = "\n".join(lines)
        elif what == 4:
            last = at + rng.choice((1, 4, 40))
            text = text[:at] + rng.choice(mutations.EDGE_TEXTS) + text[last:]
        else:
            depth = rng.choice((50, 1_000, 50_000))
            text = text[:at] + rng.choice(("[" * depth, "{a=" * depth, "x." * depth, "[x" + "]" * depth)) + text[at:]
    return mutations.mutate_bytes(rng, text.encode("utf-8", "replace"), 1 if rng.random() < 0.2 else None) if (
        rng.random() < 0.3
    ) else text.encode("utf-8", "replace")  # fmt: skip


_WORDS = (
    "no", "not", "without", "effusion", "left", "right", "pleural", "nodule", "possible", "cannot", "exclude", "is",
    "there", "evidence", "of", "the", "a", "an", "heart", "enlarged", "lungs", "are", "clear", "resolved", "seen",
    "and", "or", "but", "?", ".", ",", ";", ":", "-", "mass", "3 mm", "T4", "(", ")", "free", "negative", "for", "with",
    "neither", "nor", "unchanged", "has", "been", "appears", "patient", "x-ray", "shows", "r/o", "w/o", "don't", "1.",
    "FINDINGS:", "IMPRESSION:", "\n", "\n\n", "INDICATION:", "  ", "é", "\u2019", "Dr.", "e.g.", "2.5 cm", "upper",
)  # fmt: skip


def mutate_words(rng: Random, data: bytes) -> bytes:
    """Sentences of the words that rules look for, alone, mixed or repeated, up to the longest that is allowed."""
    what = rng.random()
    if what < 0.3:
        text = " ".join(rng.choices(_WORDS, k=rng.choice((1, 2, 4, 8, 20, 60))))
    elif what < 0.6:
        part = rng.choice((" ", "", "  ", "\t")).join(rng.choices(_WORDS, k=rng.choice((1, 2, 3, 5))))
        text = (part + rng.choice((" ", "", ", "))) * rng.choice((2, 10, 100, 400))
    elif what < 0.7:
        text = "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.choice((1, 5, 50, 1_500))))
    else:
        return mutate_text(rng, data)
    return text[: rng.choice((1_990, 2_000, 2_100))].encode("utf-8", "surrogatepass")


def read_query(data: bytes, folder: Path) -> None:
    """A query; its phrase is stable."""
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    parsed = query.parse_query(text)
    again = query.parse_query(parsed.phrase)
    _promise(again.phrase == parsed.phrase and again.assertion == "present", f"phrase {parsed.phrase!r} is not stable")


def read_report(data: bytes, folder: Path) -> None:
    """A report; every statement is a part of its text."""
    report = reports.read_report(data.decode("utf-8", "replace"))
    for statement in report.statements:
        _promise(statement.text in report.text, "a statement that is not in the text")


# --- checkpoints


def read_checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint folder, without its fingerprint: the hashes would refuse every mutant before it is looked at."""
    from radglint.checkpoint import load_checkpoint

    inside = folder / "model"
    inside.mkdir()
    for name, body in seeds.unzipped(data).items():
        (inside / name).write_bytes(body)
    load_checkpoint(inside, verify=False)


def mutate_checkpoint(rng: Random, data: bytes) -> bytes:
    """Spoil one file of a checkpoint; of the weights, the header."""
    files = seeds.unzipped(data)
    name = rng.choice(sorted(files))
    if name.endswith(".json"):
        files[name] = mutate_json(rng, files[name])
    elif name.endswith(".safetensors"):
        files[name] = _mutate_safetensors(rng, files[name])
    else:
        files[name] = mutations.mutate_bytes(rng, files[name])
    return seeds.zipped(files)


def _mutate_safetensors(rng: Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return mutations.mutate_within(rng, data, 0, min(8 + size, len(data)))
    header = mutations.json_bytes(rng, mutations.mutate_value(rng, json.loads(data[8 : 8 + size])))
    length = len(header) if rng.random() < 0.9 else rng.choice(mutations.EDGE_INTEGERS)
    return (length & (2**64 - 1)).to_bytes(8, "little") + header + data[8 + size :]


# --- the list


def _toml(name: str) -> Callable[[], dict[str, bytes]]:
    return partial(_recipe, name)


def _recipe(name: str) -> dict[str, bytes]:
    return {name: (seeds.ROOT / "recipes" / name).read_bytes()}


def _suite_toml() -> dict[str, bytes]:
    return {"suite.toml": b'name = "mine"\nprotocols = ["radglint"]\nmanifest = "m.jsonl"\nbank = "lidc"\nout = "o"\n'}


def _results() -> dict[str, bytes]:
    import made_up_results

    made = seeds.packed_folder(
        lambda folder: evaluation_results.write_results(folder / "r.json", made_up_results.results())
    )
    return {"results.json": seeds.unzipped(made)["r.json"]}


def mutate_results(rng: Random, data: bytes) -> bytes:
    """Spoil results and put the checksum right: else nothing behind it is reached."""
    try:
        value = mutations.mutate_value(rng, json.loads(data))
        if isinstance(value, dict) and rng.random() < 0.9:
            value["content_sha256"] = evaluation_results.content_sha256(value)
    except (ValueError, TypeError, RecursionError):
        return mutations.mutate_bytes(rng, data)
    return mutations.json_bytes(rng, value)


def _queries() -> dict[str, bytes]:
    return {"queries.txt": b"pleural effusion\nno nodule # not there\n\n# comment\nleft lung mass\n"}


def _phrases() -> dict[str, bytes]:
    lines = ("No left effusion.", "cannot exclude a small nodule", "is there a pneumothorax?", "heart is not enlarged")
    return {line: line.encode() for line in lines}


def _reports() -> dict[str, bytes]:
    text = (
        "INDICATION: rule out pneumonia.\nFINDINGS: No effusion. The lungs are clear; heart size is normal.\n"
        "There is a 3 mm nodule in the right upper lobe, unchanged.\nIMPRESSION: 1. Small nodule. 2. No pneumothorax."
    )
    return {"report.txt": text.encode()}


def _jsonl() -> dict[str, bytes]:
    return {"rows.jsonl": b"\n".join(json.dumps(row).encode() for row in seeds.manifest_rows())}


def _one(name: str, make: Callable[[], bytes]) -> Callable[[], dict[str, bytes]]:
    return partial(_single, name, make)


def _single(name: str, make: Callable[[], bytes]) -> dict[str, bytes]:
    return {name: make()}


def _bank() -> dict[str, bytes]:
    return {"bank.json": json.dumps(seeds.bank()).encode()}


TARGETS: dict[str, Target] = {
    "raster": Target(230, seeds.raster_files, mutate_picture, read_file),
    "nifti": Target(150, seeds.nifti_files, formats.mutate_nifti, read_file),
    "dicom": Target(230, seeds.radiograph_files, formats.mutate_dicom, read_file),
    "enhanced": Target(25, seeds.enhanced_files, formats.mutate_dicom, read_file),
    "series": Target(15, seeds.series_folders, mutate_folder, read_folder, True),
    "zip": Target(40, seeds.zip_files, partial(formats.mutate_zip, inner=mutate_member), read_file),
    "jsonl": Target(80, _jsonl, mutate_jsonl, partial(read_manifest, "rows.jsonl")),
    "csv": Target(45, _one("rows.csv", seeds.csv_table), mutate_text, partial(read_manifest, "rows.csv")),
    "parquet": Target(40, _one("rows.parquet", seeds.parquet_table), mutations.mutate_bytes,
                      partial(read_manifest, "rows.parquet")),
    "query": Target(60, _phrases, mutate_words, read_query),
    "queries": Target(20, _queries, mutate_text, partial(_write_and, batch_queries.read_queries, "queries.txt")),
    "report": Target(30, _reports, mutate_words, read_report),
    "bank": Target(15, _bank, mutate_json, partial(_write_and, prompt_banks.load_bank, "bank.json")),
    "train": Target(7, _toml("ct_nano.toml"), mutate_text, partial(_write_and, train_config.load_config, "t.toml")),
    "pretrain": Target(6, _toml("pretrain_ct.toml"), mutate_text,
                       partial(_write_and, pretraining_config.load_config, "p.toml")),
    "suite": Target(4, _suite_toml, mutate_text, partial(_write_and, suite.load_suite, "s.toml")),
    "results": Target(2, _results, mutate_results, partial(_write_and, evaluation_results.read_results, "r.json")),
    "checkpoint": Target(3, _one("checkpoint", seeds.checkpoint_folder), mutate_checkpoint, read_checkpoint, True),
}  # fmt: skip
