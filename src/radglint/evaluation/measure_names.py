"""What the measures of an evaluation are called on a page or in a terminal, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Measure:
    """How one measure is shown.

    Attributes:
        title: short, for the head of a column.
        meaning: one plain sentence.
        better: which way is better; "neither" for a description such as a threshold.
        scale: the axis that it is drawn on, None if it has no natural ends.
        chance: what guessing gives on that scale, None if that depends on the data.
    """

    title: str
    meaning: str
    better: Better = "higher"
    scale: tuple[float, float] | None = (0.0, 1.0)
    chance: float | None = None


MEASURES: dict[str, Measure] = {
    "auroc": Measure("AUROC", "Chance that a positive image scores above a negative one.", chance=0.5),
    "average_precision": Measure("AP", "Area under precision-recall; compare it with the share of positives."),
    "f1": Measure("F1", "Harmonic mean of precision and recall at the threshold."),
    "weighted_f1": Measure("F1 weighted", "F1 of positives and negatives, weighted by their number."),
    "mcc": Measure("MCC", "Correlation of decision and truth at the threshold.", scale=(-1.0, 1.0), chance=0.0),
    "accuracy": Measure("Accuracy", "Share of right decisions at the threshold."),
    "balanced_accuracy": Measure("Bal. acc.", "Mean of sensitivity and specificity.", chance=0.5),
    "sensitivity": Measure("Sensitivity", "Share of positives that are found."),
    "specificity": Measure("Specificity", "Share of negatives that are left alone."),
    "ppv": Measure("PPV", "Share of positive answers that are right."),
    "npv": Measure("NPV", "Share of negative answers that are right."),
    "precision": Measure("Precision", "Share of positive answers that are right."),
    "recall": Measure("Recall", "Share of positives that are found."),
    "youden": Measure("Youden J", "Sensitivity + specificity - 1.", scale=(-1.0, 1.0), chance=0.0),
    "threshold": Measure("Threshold", "Where a score becomes a positive answer.", "neither", None),
    "brier": Measure("Brier", "Mean squared error of the probability.", "lower"),
    "ece": Measure("ECE", "Mean distance of probability and frequency, bins of equal width.", "lower"),
    "ece_equal_mass": Measure("ECE mass", "Mean distance of probability and frequency, bins of equal count.", "lower"),
    "log_loss": Measure("Log loss", "Mean negative log probability of the truth, in nats.", "lower", None),
    "pointing": Measure("Pointing", "Share of positives whose highest point lies in the truth."),
    "dice": Measure("Dice", "Overlap of mask and truth, 2|A and B| / (|A| + |B|)."),
    "iou": Measure("IoU", "Overlap of mask and truth, |A and B| / |A or B|."),
    "pixel_auroc": Measure("Pixel AUROC", "Chance that a marked pixel scores above an unmarked one.", chance=0.5),
    "cnr": Measure("CNR", "(mean inside - mean outside) / sqrt(sum of variances).", scale=None),
    "cnr_absolute": Measure("|CNR|", "Absolute value of CNR: a map that points away counts as well.", scale=None),
    "hit_rate": Measure("Hit rate", "Share of findings whose Dice reaches the hit threshold."),
    "instance_precision": Measure("Inst. prec.", "Share of predicted instances that match a true one."),
    "instance_recall": Measure("Inst. recall", "Share of true instances that are matched."),
    "instance_f1": Measure("Inst. F1", "Harmonic mean of instance precision and recall."),
    "hd95_mm": Measure("HD95, mm", "95th percentile of the distance between surfaces.", "lower", None),
    "false_mask_rate": Measure("False masks", "Share of negatives on which anything is marked.", "lower"),
    "false_area": Measure("False area", "Share of the image marked where nothing should be.", "lower"),
}
"""Known measures by name. One that is missing here is shown under its own name; see `measure`."""

_VARIANTS = ("gated", "positives", "oracle", "validation", "fixed")


def measure(name: str) -> Measure:
    """How to show a measure.

    Args:
        name: a key of `MEASURES`; such a key with `_oracle`, `_validation`, `_fixed`, `_gated` or `_positives` behind
            it; `recall_at_K`; or any other name.

    Returns:
        The known measure (its title with the variant in brackets), or one with the name itself and no scale.
    """
    if name in MEASURES:
        return MEASURES[name]
    base, _, variant = name.rpartition("_")
    if base in MEASURES and variant in _VARIANTS:
        known = MEASURES[base]
        return Measure(f"{known.title} ({variant})", known.meaning, known.better, known.scale, known.chance)
    if base == "recall_at" and variant.isdecimal():
        return Measure(f"R@{variant}", f"Share of queries whose match is among the first {variant}.")
    return Measure(name.replace("_", " "), "", "neither", None)
