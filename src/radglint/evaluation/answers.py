"""One line per image: what the model answers, how its maps lie on the truth. Kept on disk, so a stopped run goes on.

Maps are measured while they are in memory and then thrown away: a line holds numbers only, and every protocol is a
function of the lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from radglint.errors import ImageError, InputError
from radglint.evaluation.map_numbers import numbers_with_place, numbers_without_place
from radglint.evaluation.questions import StyledPrompts, TrustQuestion, trust_questions
from radglint.evaluation.truth import place_of_class, place_of_phrases
from radglint.finding import Finding
from radglint.manifest import ManifestRow, Phrase
from radglint.pipeline import DEFAULT_THRESHOLD, EncodedImage, Pipeline
from radglint.prompt_banks import ClassPrompts, PromptBank
from radglint.query import Query
from radglint.writing import write_text

Line = dict[str, Any]
DIGITS = 6


@dataclass(frozen=True, eq=False)
class Asked:
    """Everything that does not change from image to image.

    Attributes:
        bank: the classes.
        prompts: every class in every style.
        sentences: of the reports that retrieval looks for, in order.
        folder: of the manifest.
        with_maps: measure maps too.
        with_trust: ask the questions of trust too.
        key: hash of all this and of the model: lines of another are not mixed in.
    """

    bank: PromptBank
    prompts: tuple[StyledPrompts, ...]
    sentences: tuple[str, ...]
    folder: Path
    with_maps: bool
    with_trust: bool
    key: str


def run_key(*parts: Any) -> str:
    """16 hexadecimal digits of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]


def collect(pipe: Pipeline, rows: Sequence[ManifestRow], asked: Asked, path: Path) -> list[Line]:
    """The lines of all rows, in their order; those on disk are not made again.

    A row whose image cannot be read gets a line with `error` instead of answers: it is counted, not dropped.

    Raises:
        InputError: the file holds lines of another model, manifest or set of questions.
    """
    lines = {line["id"]: line for line in kept_lines(path, asked.key)}
    write_text(path, "".join(_text(line) for line in lines.values()))
    todo = [(k, row) for k, row in enumerate(rows) if row.id not in lines]
    with path.open("a", encoding="utf-8") as file:
        for number, row in tqdm(todo, "asking", unit="image", disable=None):
            lines[row.id] = _line(pipe, row, number, asked)
            file.write(_text(lines[row.id]))
            file.flush()
    return [lines[row.id] for row in rows]


def kept_lines(path: Path, key: str | None = None) -> Iterator[Line]:
    """Whole lines of a file of answers; a last line that was cut off is dropped.

    Raises:
        InputError: a line has another key.
    """
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if key is not None and line["key"] != key:
            raise InputError(
                f"{path}: holds answers of another model, manifest or suite; move it away, or choose another --out"
            )
        yield line


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _line(pipe: Pipeline, row: ManifestRow, number: int, asked: Asked) -> Line:
    line: Line = {"id": row.id, "key": asked.key, "patient": row.patient or row.id, "study": row.study or row.id,
                  "split": row.split, "view": row.view}  # fmt: skip
    try:
        encoded = pipe.encode_image(str(asked.folder / row.image))
        if encoded.image.modality != asked.bank.modality:
            raise ImageError(f"{row.image}: is {encoded.image.modality}, the prompt bank is for {asked.bank.modality}")
    except ImageError as error:
        return line | {"error": str(error)}
    return line | {
        "answers": _class_answers(pipe, encoded, row, asked),
        "scores": _styled_scores(pipe, encoded, asked.prompts),
        "phrases": _phrase_answers(pipe, encoded, row, asked) if asked.with_maps else [],
        "trust": _trust_answers(pipe, encoded, row, number, asked.bank) if asked.with_trust else [],
        "retrieval": [round(float(s), DIGITS) for s in _raw_scores(pipe, encoded, asked.sentences)],
        "feature": [round(float(v), 4) for v in encoded.tokens[0].mean(dim=0)],
    }


def default_query(entry: ClassPrompts) -> str:
    """What a user would ask for a class: its name in the manifest."""
    return entry.label


def _class_answers(pipe: Pipeline, encoded: EncodedImage, row: ManifestRow, asked: Asked) -> list[Line]:
    """What `radglint ask` says of each class, and how its map lies on the truth."""
    classes = asked.bank.classes
    findings = pipe.ask(encoded, [default_query(entry) for entry in classes])
    answers = []
    for entry, finding in zip(classes, findings, strict=True):
        truth = row.labels.get(entry.label, "unlabelled")
        answer = _said(finding) | {"class": entry.own_name, "style": "ask", "truth": truth}
        if asked.with_maps:
            place = place_of_class(row, entry.label, asked.folder, encoded.image.shape)
            if place is not None:
                answer["place"] = numbers_with_place(finding, place)
            elif truth == "absent":
                answer["place"] = numbers_without_place(finding)
        answers.append(answer)
    return answers


def _said(finding: Finding) -> Line:
    return {
        "prompt": finding.query, "score": round(finding.score, DIGITS),
        "probability": round(finding.probability, DIGITS), "present": finding.present, "in_scope": finding.in_scope,
    }  # fmt: skip


def _styled_scores(pipe: Pipeline, encoded: EncodedImage, prompts: Sequence[StyledPrompts]) -> dict[str, Any]:
    """Class to style to the cosines of its positive and negative sentences as they stand: no parser, no calibration."""
    texts = list(dict.fromkeys(text for entry in prompts for text in (*entry.positive, *entry.negative)))
    score = dict(zip(texts, _raw_scores(pipe, encoded, texts), strict=True))
    scores: dict[str, Any] = {}
    for entry in prompts:
        sides = [[round(float(score[text]), DIGITS) for text in side] for side in (entry.positive, entry.negative)]
        scores.setdefault(entry.class_name, {})[entry.style] = sides
    return scores


def _raw_scores(pipe: Pipeline, encoded: EncodedImage, texts: Sequence[str]) -> list[float]:
    """Cosine of each sentence exactly as it is written, negations included."""
    if not texts:
        return []
    queries = [Query(text, text, "present") for text in texts]
    return [finding.score for finding in pipe.model.answer(encoded, queries, DEFAULT_THRESHOLD)]


def free_phrases(row: ManifestRow) -> list[Phrase]:
    """Phrases in a reader's own words that have a place, such as those of MS-CXR."""
    return [
        phrase
        for phrase in row.phrases
        if phrase.text and phrase.text != phrase.label and (phrase.boxes or phrase.masks)
    ]


def _phrase_answers(pipe: Pipeline, encoded: EncodedImage, row: ManifestRow, asked: Asked) -> list[Line]:
    phrases = free_phrases(row)
    if not phrases:
        return []
    findings = pipe.ask(encoded, [phrase.text for phrase in phrases])
    answers = []
    for phrase, finding in zip(phrases, findings, strict=True):
        place = place_of_phrases(row.id, [phrase], asked.folder, encoded.image.shape)
        answers.append(_said(finding) | {"class": phrase.label, "place": numbers_with_place(finding, place)})
    return answers


def _trust_answers(
    pipe: Pipeline, encoded: EncodedImage, row: ManifestRow, number: int, bank: PromptBank
) -> list[Line]:  # fmt: skip
    questions = trust_questions(row, bank, number)
    findings = pipe.ask(encoded, [question.query for question in questions])
    return [_trusted(question, finding) for question, finding in zip(questions, findings, strict=True)]


def _trusted(question: TrustQuestion, finding: Finding) -> Line:
    return _said(finding) | {
        "kind": question.kind, "class": question.class_name, "truth": question.truth, "assertion": finding.assertion,
        "marked": bool(np.any(finding.mask())) if finding.is_marked else False,
    }  # fmt: skip
