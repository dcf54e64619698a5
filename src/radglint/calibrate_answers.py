"""Scores of labelled images, asked once each and kept in a side file, so that a stopped run loses one image at most.

The file is JSON lines: a first line says of which model and device the scores are, then one line per image with its
raw score for each query. Labels are not in it: they may be corrected, and nothing is asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from radglint.errors import ImageError, InputError
from radglint.manifest import ManifestRow
from radglint.pipeline import Pipeline
from radglint.writing import output_errors, write_text

FORMAT = "radglint-answers 1"


@dataclass(frozen=True)
class Answered:
    """Scores of a manifest's images.

    Attributes:
        scores: row id to query to raw score.
        unreadable: row id to the reason why it has none.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def side_file(out: Path) -> Path:
    """Where the answers for a checkpoint folder are kept: beside it."""
    return out.with_name(f"{out.name}.answers.jsonl")


def answer_rows(
    pipe: Pipeline, rows: Sequence[ManifestRow], queries: Mapping[str, Sequence[str]], folder: Path, side: Path,
    device: str, *, show_progress: bool = False,
) -> Answered:  # fmt: skip
    """Ask every image its queries, except what the side file holds.

    Args:
        pipe: the model.
        rows: with distinct ids.
        queries: modality to what its images are asked.
        folder: that relative image paths start from.
        side: file of answers; made if missing, and kept.
        device: what the scores are computed on, in words; scores of another are not mixed in.
        show_progress: a bar on stderr.

    Returns:
        Scores of all readable rows. An unreadable image does not stop the run and is tried again the next time.

    Raises:
        InputError: the side file is of another model or device, or is no such file.
        OutputError: it cannot be written.
    """
    head = {"format": FORMAT, "model": pipe.model.fingerprint, "device": device}
    lines = kept_lines(side, head)
    write_text(side, "".join(_text(line) for line in (head, *lines.values())))  # without a line that was cut off
    answered = Answered()
    with output_errors(side), side.open("a", encoding="utf-8") as file:
        for row in tqdm(rows, "asking", unit="image", disable=not show_progress):
            line = lines.get(row.id)
            if line is None or line["image"] != row.image or not set(queries[row.modality]) <= set(line["scores"]):
                try:
                    line = _ask(pipe, row, queries[row.modality], folder)
                except ImageError as error:
                    answered.unreadable[row.id] = str(error)
                    continue
                file.write(_text(line))
                file.flush()
            answered.scores[row.id] = {query: line["scores"][query] for query in queries[row.modality]}
    return answered


def _ask(pipe: Pipeline, row: ManifestRow, queries: Sequence[str], folder: Path) -> dict[str, Any]:
    encoded = pipe.encode_image(str(folder / row.image))
    if encoded.image.modality != row.modality:
        raise ImageError(f"{row.image}: the manifest says {row.modality}, the image is {encoded.image.modality}")
    findings = pipe.ask(encoded, queries)
    return {"id": row.id, "image": row.image, "scores": {q: f.score for q, f in zip(queries, findings, strict=True)}}


def kept_lines(side: Path, head: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Row id to its last whole line; empty without a file.

    Raises:
        InputError: the file is of another model or device, or a line before the last is broken.
    """
    if not side.is_file():
        return {}
    texts = side.read_text(encoding="utf-8", errors="replace").splitlines()
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(_checked(json.loads(text), is_head=number == 1))
        except (ValueError, TypeError):
            if number < len(texts) or number == 1:
                raise InputError(
                    f"{side}: line {number}: expected an answer of `radglint calibrate`; move the file away"
                ) from None
    if lines and lines[0] != head:
        was, now = (f"model {line.get('model')} on {line.get('device')}" for line in (lines[0], head))
        raise InputError(f"{side}: holds answers of {was}, this is {now}; move the file away, or choose another --out")
    return {line["id"]: line for line in lines[1:]}


def _checked(line: Any, *, is_head: bool) -> dict[str, Any]:
    """A line of the right form; `ValueError` for any other."""
    if not isinstance(line, dict):
        raise ValueError("not an object")
    if is_head:
        good = line.get("format") == FORMAT
    else:
        scores = line.get("scores")
        named = isinstance(line.get("id"), str) and isinstance(line.get("image"), str)
        good = named and isinstance(scores, dict) and all(isinstance(score, float) for score in scores.values())
    if not good:
        raise ValueError("other keys")
    return line


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
