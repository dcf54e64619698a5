"""How well probabilities fit labelled cases, before and after; and the table that says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from radglint.calibration_fit import ClassCases
from radglint.calibration_record import ClassRecord, LocalCalibration, Quality
from radglint.checkpoint import ModalityCalibration
from radglint.decisions import Threshold
from radglint.evaluation.bootstrap import auroc_statistic, bootstrap
from radglint.evaluation.calibration import brier, ece, log_loss
from radglint.evaluation.classification import auroc

DRAWS = 1000
HEADER: tuple[str, ...] = (
    "", "class", "n", "present", "method", "AUROC (95 %)", "ECE", "Brier", "log loss", "threshold", "sensitivity",
    "specificity", "abstained",
)  # fmt: skip
LEGEND = (
    "ECE: 15 bins of equal width. After the arrow: each image judged by a map fitted on other patients.\n"
    "Sensitivity and specificity: of one image of each patient, with the exact 95 % interval."
)


def measure(logits: np.ndarray, cases: ClassCases) -> Quality:
    """Quality of logits on labelled cases; AUROC is that of the scores, which no map changes.

    Args:
        logits: float64 `cases`.
        cases: the labels, and the scores.
    """
    p = expit(logits)
    both = bool(cases.present.any() and not cases.present.all())
    return Quality(
        auroc=auroc(cases.scores, cases.present) if both else None,
        ece=ece(p, cases.present), brier=brier(p, cases.present), log_loss=log_loss(p, cases.present),
    )  # fmt: skip


def auroc_interval(cases: ClassCases) -> tuple[float, float] | None:
    """95 % bootstrap interval over patients."""
    found = bootstrap(auroc_statistic(cases.scores, cases.present), cases.patients, DRAWS).interval()
    return None if np.isnan(found.low) else (found.low, found.high)


def quality_table(locals_: Mapping[str, tuple[LocalCalibration, ModalityCalibration]]) -> str:
    """One row per class, "before -> after" where something changes, and its note below.

    Args:
        locals_: modality to what was measured and to the calibration that holds the thresholds.
    """
    rows, notes = [HEADER], []
    for modality, (local, maps) in locals_.items():
        for concept, record in local.classes.items():
            rows.append((modality, concept, *_cells(record, maps.thresholds.get(concept))))
            notes += [f"{modality} {concept}: {record.note}"] if record.note else []
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", LEGEND, *notes])


def _cells(record: ClassRecord, threshold: Threshold | None) -> tuple[str, ...]:
    count = (str(record.num_present + record.num_absent), str(record.num_present), record.method)
    pairs = [_pair(record, name) for name in ("ece", "brier", "log_loss")]
    rates = ["-", "-", "-"]
    if threshold is not None:
        both = (threshold.sensitivity, threshold.specificity)
        rates = [f"{threshold.probability:.3f}"] + [f"{r.share:.2f} ({r.low:.2f}-{r.high:.2f})" for r in both]
    return (*count, _area(record), *pairs, *rates, "-" if record.abstained is None else f"{record.abstained:.0%}")


def _area(record: ClassRecord) -> str:
    area = None if record.before is None else record.before.auroc
    if area is None:
        return "-"
    ends = record.auroc_interval
    return f"{area:.3f}" if ends is None else f"{area:.3f} ({ends[0]:.2f}-{ends[1]:.2f})"


def _pair(record: ClassRecord, name: str) -> str:
    if record.before is None:
        return "-"
    before = f"{getattr(record.before, name):.3f}"
    return before if record.after is None else f"{before} -> {getattr(record.after, name):.3f}"
