"""Presence: zero-shot classification under a protocol, published and honest side by side; prompt styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from radglint.evaluation.bootstrap import (
    Bootstrap,
    auroc_statistic,
    average_precision_statistic,
    bootstrap,
    confusion_statistic,
    macro_statistic,
)
from radglint.evaluation.classification import MEASURES, choose, precision_recall_curve, roc_curve
from radglint.evaluation.protocols import ClassificationProtocol
from radglint.evaluation.results import (
    ClassResult,
    Curves,
    Estimate,
    LeftOut,
    Measures,
    ProtocolResult,
    StyleResult,
    thin,
)
from radglint.evaluation.tables import ClassTable, class_table, probability_of, protocol_score
from radglint.prompt_banks import PromptBank

SHOWN = ("f1", "mcc", "accuracy", "sensitivity", "specificity", "ppv", "npv")
LEAST = 2  # positives and negatives that a class must have
LEAST_GROUPS = 8  # patients; fewer say too little of the others for an interval
_RULES = {"val best mcc": "mcc", "test youden": "youden", "test corner": "corner", "test best f1": "f1"}
Line = dict[str, Any]


def estimate(drawn: Bootstrap, number: int, count: int) -> Estimate:
    """One measure as it is stored; without an interval where too few patients were drawn to say how they differ.

    Args:
        drawn: draws of all measures.
        number: which of them.
        count: what it rests on.
    """
    found = drawn.interval(number)
    if np.isnan(found.low) or drawn.groups < LEAST_GROUPS:
        return Estimate(value=found.estimate, n=count)
    return Estimate(value=found.estimate, low=found.low, high=found.high, n=count)


def classify(
    protocol: ClassificationProtocol, bank: PromptBank, test: Sequence[Line], validation: Sequence[Line], *, unit: str,
    scale: float, draws: int, seed: int,
) -> ProtocolResult:  # fmt: skip
    """One protocol on the lines of a split.

    Args:
        protocol: how to score, and how its source chooses a threshold.
        bank: the classes.
        test: lines that are judged.
        validation: lines that choose the honest thresholds; may be empty.
        unit: what is drawn together in the honest column; the published one draws images.
        scale: 1 / temperature of the model.
        draws: of the bootstrap.
        seed: of the draws.
    """
    names, score = [entry.own_name for entry in bank.classes], protocol_score(protocol, scale)
    table = class_table(test, names, score, unit)
    kept, left_out = measurable(table)
    table = columns_of(table, kept)
    by_image = ClassTable(table.names, table.scores, table.positive, table.known, np.arange(len(test)).astype(str))
    fitted = columns_of(class_table(validation, names, score, unit), kept) if validation else None
    thresholds = {
        "published": published_thresholds(protocol, table, fitted),
        "honest": honest_thresholds(protocol, fitted, table),
    }
    measured = {
        column: _measured(rows, thresholds[column], draws, seed)
        for column, rows in (("published", by_image), ("honest", table))
    }
    labels = {entry.own_name: entry.label for entry in bank.classes}
    classes = tuple(
        ClassResult(
            name=name, label=labels[name], n=int(table.known[:, k].sum()),
            positives=int((table.positive & table.known)[:, k].sum()),
            measures={column: rows[k] for column, (rows, _) in measured.items()}, curves=_curves(table, k),
        )
        for k, name in enumerate(table.names)
    )  # fmt: skip
    return ProtocolResult(
        name=protocol.name, title=protocol.title, citation=protocol.source, label_set=bank.title,
        num_classes=len(bank.classes), how={"published": protocol.how, "honest": _honest(protocol, fitted)},
        lead="auroc" if classes else "", classes=classes,
        means={column: means for column, (_, means) in measured.items()},
        notes=_notes(thresholds["honest"]), left_out=tuple(left_out),
    )  # fmt: skip


def measurable(table: ClassTable) -> tuple[list[int], list[LeftOut]]:
    """Classes with positives and negatives enough; why the others are left out."""
    kept, left_out = [], []
    for k, name in enumerate(table.names):
        positives = int((table.positive & table.known)[:, k].sum())
        negatives = int((~table.positive & table.known)[:, k].sum())
        if min(positives, negatives) >= LEAST:
            kept.append(k)
        else:
            why = f"{positives} positives and {negatives} negatives; {LEAST} of each are needed"
            left_out.append(LeftOut(what=name, count=positives + negatives, why=why))
    return kept, left_out


def columns_of(table: ClassTable, kept: Sequence[int]) -> ClassTable:
    """The table of some classes."""
    columns = list(kept)
    return ClassTable(
        tuple(table.names[k] for k in columns), table.scores[:, columns], table.positive[:, columns],
        table.known[:, columns], table.groups,
    )  # fmt: skip


def published_thresholds(
    protocol: ClassificationProtocol, test: ClassTable, validation: ClassTable | None
) -> np.ndarray:  # fmt: skip
    """`classes`: as the source chooses them, on the test split where it does; NaN where it cannot be chosen."""
    if protocol.threshold == "half":
        return np.full(len(test.names), 0.5)
    source = validation if protocol.threshold.startswith("val") else test
    return np.full(len(test.names), np.nan) if source is None else _chosen(_RULES[protocol.threshold], source)


def honest_thresholds(
    protocol: ClassificationProtocol, validation: ClassTable | None, test: ClassTable
) -> np.ndarray:  # fmt: skip
    """`classes`: one half for `ask`, else the same criterion on the validation split; NaN where that cannot be done."""
    if protocol.threshold == "half":
        return np.full(len(test.names), 0.5)
    if validation is None:
        return np.full(len(test.names), np.nan)
    return _chosen(_RULES[protocol.threshold], validation)


def _chosen(rule: Any, table: ClassTable) -> np.ndarray:
    found = []
    for k in range(len(table.names)):
        known = table.known[:, k]
        found.append(choose(rule, table.scores[known, k], table.positive[known, k]) if known.any() else np.nan)
    return np.array(found)


def _measured(table: ClassTable, thresholds: np.ndarray, draws: int, seed: int) -> tuple[list[Measures], Measures]:
    """Measures of each class, and their means over the classes."""
    rows: list[Measures] = [{} for _ in table.names]
    means: Measures = {}
    if not rows:
        return rows, means
    counts = [int(n) for n in table.known.sum(axis=0)]
    for name, statistic in (("auroc", auroc_statistic), ("average_precision", average_precision_statistic)):
        values = statistic(table.scores, table.positive, table.known)
        _enter(rows, means, name, values, table, counts, draws, seed)
    usable = [int(k) for k in np.flatnonzero(~np.isnan(thresholds))]
    if usable:
        part, some = columns_of(table, usable), [rows[k] for k in usable]
        whole = confusion_statistic(part.scores, part.positive, thresholds[usable], part.known)
        for name in SHOWN:
            values = _one_measure(whole, MEASURES.index(name), len(usable))
            _enter(some, means, name, values, part, [counts[k] for k in usable], draws, seed)
        for k, row in zip(usable, some, strict=True):
            row["threshold"] = Estimate(value=_finite(thresholds[k]), n=counts[k])
    return rows, means


def _finite(threshold: float) -> float | None:
    """None where nothing is called positive: no score reaches a threshold of infinity."""
    return float(threshold) if np.isfinite(threshold) else None


def _one_measure(statistic: Any, number: int, classes: int) -> Any:
    """One measure of all classes out of a statistic of all measures."""
    return lambda weights: statistic(weights).reshape(-1, classes, len(MEASURES))[:, :, number]


def _enter(
    rows: list[Measures], means: Measures, name: str, statistic: Any, table: ClassTable, counts: list[int], draws: int,
    seed: int,
) -> None:  # fmt: skip
    drawn: Bootstrap = bootstrap(statistic, table.groups, draws, seed)
    for k, row in enumerate(rows):
        row[name] = estimate(drawn, k, counts[k])
    means[name] = estimate(bootstrap(macro_statistic(statistic), table.groups, draws, seed), 0, len(rows))


def _curves(table: ClassTable, k: int) -> Curves:
    known = table.known[:, k]
    scores, positive = table.scores[known, k], table.positive[known, k]
    roc, pr = roc_curve(scores, positive), precision_recall_curve(scores, positive)
    return Curves(
        roc=thin(list(zip(roc.false_positive_rate, roc.true_positive_rate, strict=True))),  # pyright: ignore
        pr=thin(list(zip(pr.recall, pr.precision, strict=True))),  # pyright: ignore
    )


def _honest(protocol: ClassificationProtocol, validation: ClassTable | None) -> str:
    if validation is None and protocol.threshold != "half":
        return f"{protocol.honest}; there is no validation split here, so no threshold and nothing that needs one"
    return protocol.honest


def _notes(thresholds: np.ndarray) -> tuple[str, ...]:
    missing = int(np.isnan(thresholds).sum())
    return (
        (f"{missing} of {len(thresholds)} classes have no honest threshold: too few in validation",) if missing else ()
    )


def prompt_sensitivity(
    bank: PromptBank, test: Sequence[Line], styles: Sequence[str], *, unit: str, draws: int, seed: int
) -> ProtocolResult:  # fmt: skip
    """Macro AUROC of the positive prompts of each style, and how far the styles lie apart."""
    names = [entry.own_name for entry in bank.classes]
    found: list[StyleResult] = []
    for style in styles:
        form = ClassificationProtocol("", "", "", style, "positive", None, "half", "")
        table = class_table(test, names, protocol_score(form, 1.0), unit)
        table = columns_of(table, measurable(table)[0])
        if table.names:
            statistic = macro_statistic(auroc_statistic(table.scores, table.positive, table.known))
            area = estimate(bootstrap(statistic, table.groups, draws, seed), 0, len(table.names))
            found.append(StyleResult(name=style, measures={"auroc": area}))
    areas = np.array([row.measures["auroc"].value for row in found], dtype=float)
    means: Measures = {} if not len(areas) else {
        "auroc": Estimate(value=float(areas.mean()), n=len(areas)),
        "auroc_spread": Estimate(value=float(areas.std(ddof=1)) if len(areas) > 1 else None, n=len(areas)),
        "auroc_worst": Estimate(value=float(areas.min()), n=len(areas)),
        "auroc_best": Estimate(value=float(areas.max()), n=len(areas)),
    }  # fmt: skip
    return ProtocolResult(
        name="prompt-sensitivity", title="Prompt sensitivity", label_set=bank.title, num_classes=len(bank.classes),
        columns=("honest",), how={"honest": "macro AUROC of each prompt style; mean and deviation over styles"},
        average="mean over prompt styles", means={"honest": means}, styles=tuple(found),
    )  # fmt: skip


def scale_of(logit_scale: float) -> float:
    """1 / temperature from its stored logarithm."""
    return float(np.exp(logit_scale))


def calibrated_table(bank: PromptBank, lines: Sequence[Line], unit: str) -> ClassTable:
    """The probabilities that `ask` gives, of the classes that can be measured."""
    table = class_table(lines, [entry.own_name for entry in bank.classes], probability_of, unit)
    return columns_of(table, measurable(table)[0])
