"""Whether a model can be trusted with words: negation, side, absent findings, and what it was never trained for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from radglint.evaluation.bootstrap import bootstrap, mean_statistic
from radglint.evaluation.calibration import brier, ece, log_loss, reliability
from radglint.evaluation.classify import calibrated_table, estimate
from radglint.evaluation.results import (
    ClassResult,
    Curves,
    Estimate,
    Measures,
    ProtocolResult,
    ReliabilityBin,
)
from radglint.evaluation.tables import ClassTable, groups_of
from radglint.prompt_banks import PromptBank

Line = dict[str, Any]
Check = Callable[[Line], bool | None]


def _negated(answer: Line) -> bool | None:
    return answer["assertion"] == "absent" and not answer["marked"] if answer["kind"] == "negated" else None


def _foreign(answer: Line) -> bool | None:
    return not answer["in_scope"] and not answer["marked"] if answer["kind"] == "foreign" else None


def _unmarked(kind: str) -> Check:
    return lambda answer: not answer["marked"] if answer["kind"] == kind else None


CHECKS: dict[str, tuple[str, Check]] = {
    "negation_kept": ("share of 'no X' queries read as absent, with an empty mask", _negated),
    "foreign_refused": ("share of queries about other body parts that are out of scope, with an empty mask", _foreign),
    "other_side_empty": (
        "share of findings on one side only whose query for the other side marks nothing", _unmarked("other side"),
    ),
}  # fmt: skip


def trust(bank: PromptBank, lines: Sequence[Line], *, unit: str, draws: int, seed: int) -> ProtocolResult:
    """Shares of questions with a known right answer that are answered right."""
    means: Measures = {}
    for name, (_, check) in CHECKS.items():
        _enter(means, name, [_share(line, check) for line in lines], lines, unit, draws, seed)
    _enter(means, "own_side_scores_higher", [_side_order(line) for line in lines], lines, unit, draws, seed)
    _enter(means, "absent_left_alone", [_absent(line) for line in lines], lines, unit, draws, seed)
    sentences = [*(f"{name}: {text}" for name, (text, _) in CHECKS.items()),
                 "own_side_scores_higher: the query for the right side scores above that for the other one",
                 "absent_left_alone: share of absent classes on which nothing is marked"]  # fmt: skip
    return ProtocolResult(
        name="trust", title="Trust: negation, side, absent and foreign queries", label_set=bank.title,
        num_classes=len(bank.classes), columns=("honest",), average="mean over images of the share of right answers",
        how={"honest": "questions whose right answer follows from the manifest; nothing is chosen"},
        means={"honest": means}, notes=tuple(sentences),
    )  # fmt: skip


def _enter(
    means: Measures, name: str, values: Sequence[float], lines: Sequence[Line], unit: str, draws: int, seed: int
) -> None:  # fmt: skip
    array = np.array(values, dtype=float)
    if not np.isnan(array).all():
        drawn = bootstrap(mean_statistic(array), groups_of(lines, unit), draws, seed)
        means[name] = estimate(drawn, 0, int((~np.isnan(array)).sum()))


def _share(line: Line, check: Check) -> float:
    found = [right for answer in line["trust"] if (right := check(answer)) is not None]
    return float(np.mean(found)) if found else float("nan")


def _side_order(line: Line) -> float:
    own = {a["class"]: a["score"] for a in line["trust"] if a["kind"] == "own side"}
    other = {a["class"]: a["score"] for a in line["trust"] if a["kind"] == "other side"}
    return float(np.mean([own[name] > other[name] for name in own])) if own else float("nan")


def _absent(line: Line) -> float:
    marked = [a["place"]["marked"] for a in line["answers"] if a["truth"] == "absent" and "place" in a]
    return float(1 - np.mean(marked)) if marked else float("nan")


def calibration(bank: PromptBank, lines: Sequence[Line], *, unit: str) -> ProtocolResult:
    """How far the probabilities of `ask` can be taken at their word, class by class and over all answers."""
    table = calibrated_table(bank, lines, unit)
    labels = {entry.own_name: entry.label for entry in bank.classes}
    classes = tuple(_calibrated(table, k, labels[name]) for k, name in enumerate(table.names))
    means: Measures = {}
    for measure in ("ece", "ece_equal_mass", "brier", "log_loss"):
        values = [one.measures["honest"][measure].value for one in classes]
        if values:
            means[measure] = Estimate(value=float(np.mean([v for v in values if v is not None])), n=len(values))
    if table.names:
        means["ece_pooled"] = Estimate(value=_pooled_ece(table), n=int(table.known.sum()))
    return ProtocolResult(
        name="calibration", title="Calibration of `ask`", label_set=bank.title, num_classes=len(bank.classes),
        columns=("honest",), how={"honest": "probabilities as answered; 15 bins of equal width, and of equal count"},
        classes=classes, means={"honest": means},
    )  # fmt: skip


def _calibrated(table: ClassTable, k: int, label: str) -> ClassResult:
    known = table.known[:, k]
    p, positive = table.scores[known, k], table.positive[known, k]
    count = int(known.sum())
    measures = {
        "ece": Estimate(value=ece(p, positive), n=count),
        "ece_equal_mass": Estimate(value=ece(p, positive, binning="mass"), n=count),
        "brier": Estimate(value=brier(p, positive), n=count),
        "log_loss": Estimate(value=log_loss(p, positive), n=count),
        "mean_probability": Estimate(value=float(p.mean()), n=count),
        "prevalence": Estimate(value=float(positive.mean()), n=count),
    }
    bins = tuple(ReliabilityBin(probability=b[0], frequency=b[1], count=b[2]) for b in reliability_points(p, positive))
    return ClassResult(name=table.names[k], label=label, n=count, positives=int(positive.sum()),
                       measures={"honest": measures}, curves=Curves(reliability=bins))  # fmt: skip


def reliability_points(p: np.ndarray, positive: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean probability, observed share and count of each bin that holds something."""
    curve = reliability(p, positive)
    return [(float(a), float(b), int(c)) for a, b, c in zip(curve.said, curve.true, curve.count, strict=True)]


def _pooled_ece(table: ClassTable) -> float:
    return ece(table.scores[table.known], table.positive[table.known])
