"""Lines of answers as arrays: cases by classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radglint.evaluation.protocols import ClassificationProtocol

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ClassTable:
    """One score per case and class.

    Attributes:
        names: classes.
        scores: `cases classes`.
        positive: the same shape, bool.
        known: the same shape, bool: present or absent; uncertain and unlabelled are False.
        groups: `cases`, what is drawn together.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    positive: np.ndarray
    known: np.ndarray
    groups: np.ndarray


def answered(lines: Sequence[Line], split: str | None = None) -> list[Line]:
    """Lines with answers, of one split if it is named."""
    return [line for line in lines if "error" not in line and split in (None, line["split"])]


def class_table(
    lines: Sequence[Line], names: Sequence[str], score: Callable[[Line, str], float], unit: str
) -> ClassTable:  # fmt: skip
    """The table of some lines.

    Args:
        lines: with answers.
        names: classes, as the bank calls them.
        score: of a line and a class.
        unit: "patient" or "study" draw those together, "image" draws each line alone.
    """
    truth = np.array([[_truth(line, name) for name in names] for line in lines], dtype=object).reshape(-1, len(names))
    scores = np.array([[score(line, name) for name in names] for line in lines], float).reshape(-1, len(names))
    known = (truth == "present") | (truth == "absent")
    return ClassTable(tuple(names), scores, truth == "present", known, groups_of(lines, unit))


def groups_of(lines: Sequence[Line], unit: str) -> np.ndarray:
    """What is drawn together in the bootstrap, one name per line."""
    return np.array([line["id" if unit == "image" else unit] for line in lines], dtype=str)


def _truth(line: Line, name: str) -> str:
    return answer_of(line, name)["truth"]


def answer_of(line: Line, name: str) -> Line:
    """What `ask` said of a class."""
    return next(answer for answer in line["answers"] if answer["class"] == name)


def probability_of(line: Line, name: str) -> float:
    """The calibrated probability of a class."""
    return answer_of(line, name)["probability"]


def asked_probability(line: Line, name: str) -> float:
    """The same, halved out of scope: it ranks as before, and never reaches one half."""
    answer = answer_of(line, name)
    return answer["probability"] / (1.0 if answer["in_scope"] else 2.0 + 1e-9)


def protocol_score(protocol: ClassificationProtocol, scale: float) -> Callable[[Line, str], float]:
    """How a protocol scores a class in a line.

    Args:
        protocol: names its style and form.
        scale: 1 / temperature of the trained model, where the protocol takes the model's.

    Naive form: positive: mean of the positive cosines. pair: e^(k a) / (e^(k a) + e^(k b)) of the mean positive cosine
        a and the mean negative cosine b. ensemble: a - b.
    """
    if protocol.scoring == "ask":
        return asked_probability
    factor = scale if protocol.temperature is None else 1 / protocol.temperature

    def score(line: Line, name: str) -> float:
        positive, negative = (np.mean(side) if side else 0.0 for side in line["scores"][name][protocol.style])
        if protocol.scoring == "positive":
            return float(positive)
        if protocol.scoring == "ensemble":
            return float(positive - negative)
        return float(1 / (1 + np.exp(-factor * (positive - negative))))

    return score
