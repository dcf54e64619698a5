"""The manifest: one row per image, with what is known of it. Adapters write it, training and evaluation read it.

A manifest is a .jsonl, .csv or .parquet file (see `manifest_files`); all three hold the same.

image, modality                     a path (relative to the manifest) and CXR or CT
patient, study, series, split, view whose it is, and where it belongs
findings, impression                the report
labels                              concept: present, absent or uncertain; a concept that is missing is unlabelled
phrases                             what a reader marked: text, boxes, masks
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from radglint.manifest_files import raw_bytes, read_raw
from radglint.manifest_problems import COLUMNS, NAMES, ManifestError, Problem, RowCheck, whole_problems
from radglint.writing import write_bytes

LabelState = Literal["present", "absent", "uncertain"]
Box = tuple[int, ...]


@dataclass(frozen=True)
class Phrase:
    """What a reader marked in an image.

    Attributes:
        text: in the reader's words, for example "small left pleural effusion"; for a class label, its name.
        label: the class that it belongs to, empty if none.
        boxes: half-open native boxes in pixels: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1).
        masks: where its mask lies, relative to the manifest: a PNG, a NIfTI, or `FILE.npz#K`, row K of its array
            `masks`. Several are one mask together.
    """

    text: str
    label: str = ""
    boxes: tuple[Box, ...] = ()
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ManifestRow:
    """One image and what is known of it.

    Attributes:
        id: unique in its manifest.
        image: path of a file or folder that `read_image` takes, relative to the manifest or absolute.
        modality: CXR or CT.
        dataset: name in `radglint.datasets.registry`, empty if none.
        patient: no patient is in two splits.
        study: one visit.
        series: one image or reconstruction of it.
        split: train, val, test, or empty.
        view: of a radiograph: PA, AP, LATERAL, or empty.
        findings: section of the report.
        impression: section of the report.
        report: the whole report where its sections are not known apart.
        labels: concept to state; unlabelled concepts are missing.
        phrases: places that a reader marked.
        size_px: native shape, (height, width) or (depth, height, width); None if not known without opening the image.
        extra: everything else that the manifest's line holds, kept as it is.
    """

    id: str
    image: str
    modality: Literal["CXR", "CT"]
    dataset: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    split: Literal["train", "val", "test", ""] = ""
    view: Literal["PA", "AP", "LATERAL", ""] = ""
    findings: str = ""
    impression: str = ""
    report: str = ""
    labels: Mapping[str, LabelState] = field(default_factory=dict)
    phrases: tuple[Phrase, ...] = ()
    size_px: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(path: str | os.PathLike[str]) -> list[ManifestRow]:
    """Read and check a manifest; its images are not opened (`radglint data check` does that).

    Args:
        path: .jsonl, .csv or .parquet. In JSONL `report` is text or `{findings, impression}`, `group` stands in for a
            missing `patient`, and unknown keys go to `extra`. A missing id becomes the image's path.

    Raises:
        ManifestError: its problems, all of them in one message, each with row and column.
        ConfigError: missing, empty, or not in its format at all.
    """
    rows, problems = parse_manifest(path)
    if problems:
        raise ManifestError(path, problems)
    return [row for _, row in rows]


def parse_manifest(path: str | os.PathLike[str]) -> tuple[list[tuple[int, ManifestRow]], list[Problem]]:
    """The rows that are well formed, with their numbers, and the problems of all.

    Raises:
        ConfigError: missing, empty, or not in its format at all.
    """
    raw = read_raw(Path(path))
    problems = list(raw.problems)
    bad = {problem.row for problem in problems}
    for number, values in raw.rows:
        if isinstance(values.get("image"), str):
            values.setdefault("id", values["image"])
        found = RowCheck(number, values).run(raw.absent)
        problems += found
        if found:
            bad.add(number)
    problems += whole_problems(raw.rows)
    rows = [(number, _row(values)) for number, values in raw.rows if number not in bad and not raw.absent]
    return rows, sorted(problems)


def write_manifest(path: str | os.PathLike[str], rows: Iterable[ManifestRow]) -> Path:
    """Write a manifest whole or not at all; reading it gives the same rows.

    Args:
        path: its suffix decides the format: .jsonl, .csv or .parquet.
        rows: at least one. Lists in `extra` stay lists, tuples in it become lists.

    Raises:
        ManifestError: the rows have problems that a reader would refuse; the row counts from 1.
        InputError: another suffix, or `extra` holds what JSON cannot.
        OutputError: the file cannot be written.
    """
    path, rows = Path(path), list(rows)
    problems = sound_rows(rows)[1]
    if not rows:
        problems.append(Problem(0, "", "no rows", "there are no rows to write; check where they come from"))
    if problems:
        raise ManifestError(path, problems)
    return write_bytes(path, raw_bytes(path, map(row_values, rows)))


def sound_rows(rows: Iterable[ManifestRow]) -> tuple[list[ManifestRow], list[Problem]]:
    """The rows that `write_manifest` would take, and the problems of those it would not; rows count from 1.

    Of an id that is there twice the first row stays, of a patient in two splits the rows of the first split.
    """
    rows = list(rows)
    raw = [(number, row_values(row)) for number, row in enumerate(rows, start=1)]
    problems = [problem for number, values in raw for problem in RowCheck(number, values).run()]
    problems += whole_problems(raw)
    bad = {problem.row for problem in problems}
    return [row for number, row in enumerate(rows, start=1) if number not in bad], sorted(problems)


def row_values(row: ManifestRow) -> dict[str, Any]:
    """A row as plain JSON values by column; empty ones are left out."""
    values = {name: getattr(row, name) for name in COLUMNS if getattr(row, name) not in ("", None)}
    values |= {"labels": dict(row.labels), "extra": dict(row.extra), "phrases": [_phrase(p) for p in row.phrases]}
    if row.size_px is not None:
        values["size_px"] = list(row.size_px)
    values.setdefault("id", "")
    return {name: value for name, value in values.items() if value or name == "id"}


def _phrase(phrase: Phrase) -> dict[str, Any]:
    values = {"text": phrase.text, "label": phrase.label, "masks": list(phrase.masks)}
    values["boxes"] = [list(box) for box in phrase.boxes]
    return {name: value for name, value in values.items() if value}


def _row(values: Mapping[str, Any]) -> ManifestRow:
    """A row of values that have no problem."""
    found: dict[str, Any] = dict(values)
    found |= {name: str(values[name]) for name in NAMES if name in values}
    if "size_px" in found:
        found["size_px"] = tuple(found["size_px"])
    phrases = [
        Phrase(
            phrase["text"], phrase.get("label") or "", tuple(tuple(box) for box in phrase.get("boxes") or ()),
            tuple(phrase.get("masks") or ()),
        )
        for phrase in found.get("phrases", ())
    ]  # fmt: skip
    found["phrases"] = tuple(phrases)
    return ManifestRow(**found)
