"""Two models' answers on the same images, side by side: what a paired comparison needs.

An answers file has one JSON object a line and image: `id`, `patient`, `split` and `answers`, a list of objects with
`class`, `style`, `truth` (present, absent, uncertain or unlabelled), `score`, `probability` and, where maps were
measured, `place`: measure to number. A line with `error` instead of answers is an image that could not be read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radglint.errors import InputError

Line = dict[str, Any]
_NEEDED = ("class", "truth", "score")
_TRUTHS = ("present", "absent", "uncertain", "unlabelled")


@dataclass(frozen=True, eq=False)
class PairedCases:
    """Answers of A and B on the same images.

    Attributes:
        ids: `cases`, of the manifest, in the order of A.
        patients: `cases`, str.
        questions: `questions`, a class, or "class, style" where a class is asked in several styles.
        positive: `cases questions`, bool: present.
        known: `cases questions`, bool: present or absent, and answered by both.
        values: measure ("score", "probability", or a measure of `place`) to A and B, `2 cases questions`, NaN where not
            measured.
        left_out: what is not compared, in words.
    """

    ids: tuple[str, ...]
    patients: np.ndarray
    questions: tuple[str, ...]
    positive: np.ndarray
    known: np.ndarray
    values: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def read_answers(path: str | os.PathLike[str]) -> list[Line]:
    """Lines of an answers file.

    Raises:
        InputError: the file cannot be read or is empty, or a line is no JSON, lacks id, patient or answers, or has an
            id that came before; the message names the line.
    """
    try:
        texts = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the answers file of `radglint evaluate`") from error
    lines, seen = [], set()
    for number, text in enumerate(texts, 1):
        line = _line(text, f"{path}, line {number}")
        if line["id"] in seen:
            raise InputError(f"{path}, line {number}: id {line['id']!r} came before; an image is answered once")
        seen.add(line["id"])
        lines.append(line)
    if not lines:
        raise InputError(f"{path}: is empty; run `radglint evaluate` again")
    return lines


def _line(text: str, where: str) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); was the run stopped? Let `radglint evaluate` finish") from error
    for key in ("id", "patient") + (() if isinstance(line, dict) and "error" in line else ("answers",)):
        if not isinstance(line, dict) or key not in line:
            raise InputError(f"{where}: key {key!r} is missing; give the answers file of `radglint evaluate`")
    for answer in line.get("answers", ()):
        missing = [key for key in _NEEDED if key not in answer]
        if missing:
            raise InputError(f"{where}: an answer has no {missing[0]!r}; give the answers file of `radglint evaluate`")
        if answer["truth"] not in _TRUTHS:
            raise InputError(f"{where}: truth: expected one of {', '.join(_TRUTHS)}, got {answer['truth']!r}")
    return line


def pair_cases(a: Sequence[Line], b: Sequence[Line], split: str = "test") -> PairedCases:
    """Put the answers of two models side by side.

    An image that either model could not read is left out of both, and so is a question that only one was asked; both
    are counted.

    Args:
        a: of `read_answers`.
        b: the same, of the other model.
        split: that is compared; "all" takes every line.

    Raises:
        InputError: the two are of different images or patients, their truth differs, or no question is common.
    """
    a, b = ([line for line in lines if split in ("all", line.get("split"))] for lines in (a, b))
    if not a and not b:
        raise InputError(f"answers: no image of split {split!r} in either file; evaluate that split")
    other = {line["id"]: line for line in b}
    _check_same_images(a, other)
    pairs = [(line, other[line["id"]]) for line in a]
    whole = [pair for pair in pairs if not any("error" in line for line in pair)]
    questions, left_out = _questions(whole)
    if len(whole) < len(pairs):
        left_out.append(f"{len(pairs) - len(whole)} images that A or B could not read")
    return _arrays(whole, questions, tuple(left_out))


def _check_same_images(a: Sequence[Line], b: Mapping[str, Line]) -> None:
    names = {line["id"] for line in a}
    alone = sorted(names ^ set(b))
    if alone:
        which = "A" if alone[0] in names else "B"
        raise InputError(
            f"answers: {len(alone)} images are in one file only, first {alone[0]!r} of {which}; compare runs on one "
            "manifest"
        )
    for line in a:
        if line["patient"] != b[line["id"]]["patient"]:
            raise InputError(f"answers: {line['id']!r} is of patient {line['patient']!r} in A and of another in B")


def _key(answer: Line) -> tuple[str, str]:
    return answer["class"], answer.get("style", "")


def _questions(pairs: Sequence[tuple[Line, Line]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Questions that both were asked, in A's order, and the others in words."""
    asked = [dict.fromkeys(_key(answer) for pair in pairs for answer in pair[side]["answers"]) for side in (0, 1)]
    common = [key for key in asked[0] if key in asked[1]]
    if not common:
        raise InputError("answers: A and B share no class and style; compare runs of one suite")
    alone = [(key, side) for side, name in ((0, "A"), (1, "B")) for key in asked[side] if key not in asked[1 - side]]
    return common, [f"{', '.join(filter(None, key))}: asked of {'AB'[side]} only" for key, side in alone]


def _arrays(
    pairs: Sequence[tuple[Line, Line]], questions: list[tuple[str, str]], left_out: tuple[str, ...]
) -> PairedCases:
    at = {key: number for number, key in enumerate(questions)}
    shape = (len(pairs), len(questions))
    positive, known = np.zeros(shape, bool), np.zeros(shape, bool)
    values: dict[str, np.ndarray] = {}
    for row, pair in enumerate(pairs):
        answers = [{_key(answer): answer for answer in line["answers"]} for line in pair]
        for key in answers[0].keys() & answers[1].keys() & at.keys():
            truth = _truth(pair[0]["id"], key, answers[0][key], answers[1][key])
            known[row, at[key]], positive[row, at[key]] = truth in ("present", "absent"), truth == "present"
            for side in (0, 1):
                for name, value in _numbers(answers[side][key]).items():
                    values.setdefault(name, np.full((2, *shape), np.nan))[side, row, at[key]] = value
    known &= ~np.isnan(values.get("score", np.full((2, *shape), np.nan))).any(axis=0)
    several = max(Counter(name for name, _ in questions).values()) > 1
    names = tuple(", ".join(filter(None, key)) if several else key[0] for key in questions)
    patients = np.array([str(a["patient"]) for a, _ in pairs])
    return PairedCases(tuple(a["id"] for a, _ in pairs), patients, names, positive, known, values, left_out)


def _truth(name: str, key: tuple[str, str], a: Line, b: Line) -> str:
    if a["truth"] != b["truth"]:
        raise InputError(
            f"answers: {key[0]!r} of {name!r} is {a['truth']} in A and {b['truth']} in B; evaluate both on one manifest"
        )
    return a["truth"]


def _numbers(answer: Line) -> dict[str, float]:
    """Score, probability and everything in `place` that is a number; None is left out."""
    found = {"score": answer["score"], "probability": answer.get("probability"), **(answer.get("place") or {})}
    return {name: float(value) for name, value in found.items() if isinstance(value, bool | int | float)}
