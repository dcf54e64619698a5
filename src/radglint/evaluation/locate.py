"""Place: pointing, contrast, overlap sweeps, zero-shot segmentation, and what a mask marks where nothing is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from radglint.evaluation.bootstrap import bootstrap, macro_statistic, mean_statistic, ratio_statistic
from radglint.evaluation.classify import estimate
from radglint.evaluation.instances import EXACT_HIT_DICE, HIT_DICE, INSTANCE_DICE
from radglint.evaluation.map_numbers import FIXED, LEVELS, pixel_auroc
from radglint.evaluation.results import ClassResult, Curves, Estimate, LeftOut, Measures, ProtocolResult, SweepPoint
from radglint.evaluation.tables import answer_of, groups_of
from radglint.prompt_banks import PromptBank

Line = dict[str, Any]
Value = Callable[[Line], float | None]
LEAST_PLACED = 1


def placed(line: Line, name: str) -> Line | None:
    """Numbers of a class that is present with a known place; None of any other."""
    answer = answer_of(line, name)
    return answer["place"] if answer["truth"] == "present" and "hit" in answer.get("place", {}) else None


def unplaced(line: Line, name: str) -> Line | None:
    """Numbers of a class that is absent; None of any other."""
    answer = answer_of(line, name)
    return answer.get("place") if answer["truth"] == "absent" else None


def values_of(
    lines: Sequence[Line], names: Sequence[str], find: Callable[[Line, str], Line | None], value: Value
) -> np.ndarray:
    """`cases classes`, NaN where a case has none."""
    found = np.full((len(lines), len(names)), np.nan)
    for i, line in enumerate(lines):
        for k, name in enumerate(names):
            numbers = find(line, name)
            number = None if numbers is None else value(numbers)
            found[i, k] = np.nan if number is None else number
    return found


class Placer:
    """The lines of a split with their classes, ready to be averaged.

    Args:
        bank: the classes.
        lines: with answers.
        unit: what is drawn together.
        draws: of the bootstrap.
        seed: of the draws.
    """

    def __init__(self, bank: PromptBank, lines: Sequence[Line], unit: str, draws: int, seed: int) -> None:
        self.bank, self.lines, self.unit, self.draws, self.seed = bank, list(lines), unit, draws, seed
        counts = {e.own_name: sum(placed(line, e.own_name) is not None for line in self.lines) for e in bank.classes}
        self.names = [name for name, count in counts.items() if count >= LEAST_PLACED]
        self.counts = counts
        self.left_out = [LeftOut(what=n, count=0, why="no marked place") for n, c in counts.items() if c < LEAST_PLACED]

    def enter(
        self, rows: dict[str, Measures], means: Measures, measure: str, value: Value,
        find: Callable[[Line, str], Line | None] = placed, unit: str | None = None,
    ) -> None:  # fmt: skip
        """Add one measure: its mean in each class, and the mean of those."""
        values = values_of(self.lines, self.names, find, value)
        if not self.names or np.isnan(values).all():
            return
        statistic, groups = mean_statistic(values), groups_of(self.lines, unit or self.unit)
        drawn = bootstrap(statistic, groups, self.draws, self.seed)
        for k, name in enumerate(self.names):
            count = int((~np.isnan(values[:, k])).sum())
            if count:
                rows.setdefault(name, {})[measure] = estimate(drawn, k, count)
        whole = bootstrap(macro_statistic(statistic), groups, self.draws, self.seed)
        means[measure] = estimate(whole, 0, int((~np.isnan(values)).any(axis=0).sum()))

    def result(
        self, name: str, title: str, citation: str, how: dict[str, str], rows: dict[str, dict[str, Measures]],
        means: dict[str, Measures], curves: dict[str, Curves] | None = None, notes: Sequence[str] = (),
    ) -> ProtocolResult:  # fmt: skip
        """The finished protocol; `rows` is column to class to measures."""
        labels = {entry.own_name: entry.label for entry in self.bank.classes}
        classes = tuple(
            ClassResult(
                name=n, label=labels[n], n=self.counts[n], positives=self.counts[n],
                measures={column: found.get(n, {}) for column, found in rows.items()},
                curves=(curves or {}).get(n, Curves()),
            )
            for n in self.names
        )  # fmt: skip
        return ProtocolResult(
            name=name, title=title, citation=citation, label_set=self.bank.title, num_classes=len(self.bank.classes),
            columns=tuple(how), how=how, classes=classes, means=means, notes=tuple(notes),
            left_out=tuple(self.left_out),
            average="mean of the cases of each class, then mean over classes",
        )  # fmt: skip


def pointing(placer: Placer) -> ProtocolResult:
    """Peak of the map inside a box or mask of its class, on the native grid."""
    rows: dict[str, dict[str, Measures]] = {"published": {}, "honest": {}}
    means: dict[str, Measures] = {"published": {}, "honest": {}}
    for column, unit in (("published", "image"), ("honest", None)):
        placer.enter(rows[column], means[column], "pointing", lambda n: n["hit"], unit=unit)
        placer.enter(rows[column], means[column], "chance", lambda n: n["chance"], unit=unit)
    how = {"published": "highest pixel inside any box of the class, the first of equals; images are drawn",
           "honest": "the same; patients are drawn; chance: the share of the image that the truth covers"}  # fmt: skip
    return placer.result("pointing", "Pointing game", "RadZero, grounding_utils.py", how, rows, means)


def contrast(placer: Placer) -> ProtocolResult:
    """Contrast-to-noise ratio inside against outside."""
    rows: dict[str, Measures] = {}
    means: Measures = {}
    placer.enter(rows, means, "cnr", lambda n: n["cnr"])
    placer.enter(rows, means, "cnr_absolute", lambda n: None if n["cnr"] is None else abs(n["cnr"]))
    published = {"cnr_absolute": means["cnr_absolute"]} if means else {}
    how = {"published": "absolute value, as BioViL: a map that points away counts as well",
           "honest": "signed beside absolute"}  # fmt: skip
    only = {name: {"cnr_absolute": row["cnr_absolute"]} for name, row in rows.items() if "cnr_absolute" in row}
    return placer.result("cnr", "Contrast to noise", "Boecking et al. 2022", how, {"published": only, "honest": rows},
                         {"published": published, "honest": means})  # fmt: skip


def sweep(placer: Placer) -> ProtocolResult:
    """IoU and Dice, mean over five thresholds; stretched per image as published, and the absolute map."""
    rows: dict[str, dict[str, Measures]] = {"published": {}, "honest": {}}
    means: dict[str, Measures] = {"published": {}, "honest": {}}
    for column, prefix in (("published", "sweep"), ("honest", "plain")):
        for measure in ("iou", "dice"):
            placer.enter(
                rows[column], means[column], measure, lambda n, key=f"{prefix}_{measure}": float(np.mean(n[key]))
            )
    how = {
        "published": "map smoothed (sigma 1.5, kernel 13), stretched to [-1, 1] per image, thresholds .1 to .5",
        "honest": "the probability map as it is, the same thresholds: an absent finding is not made to look sure",
    }
    return placer.result(
        "sweep", "mIoU and Dice sweep", "evaluate_phrase_grounding.py, see the documentation", how, rows, means
    )


def segmentation(placer: Placer, validation: Sequence[Line]) -> ProtocolResult:
    """Dice on positives at three kinds of threshold, specificity on negatives, pixel AUROC."""
    names = placer.names
    oracle = {name: _best_level(placer.lines, name) for name in names}
    chosen = {name: _best_level(validation, name) for name in names}
    kinds: dict[str, dict[str, int | None]] = {
        "oracle": oracle, "validation": chosen, "fixed": dict.fromkeys(names, FIXED)}  # fmt: skip
    rows: dict[str, dict[str, Measures]] = {kind: {} for kind in kinds}
    means: dict[str, Measures] = {kind: {} for kind in kinds}
    for kind, levels in kinds.items():
        _at_levels(placer, rows[kind], means[kind], levels)
    areas = {name: pixel_auroc([n for line in placer.lines if (n := placed(line, name)) is not None]) for name in names}
    for kind in rows:
        for name, area in areas.items():
            rows[kind].setdefault(name, {})["pixel_auroc"] = Estimate(value=area, n=placer.counts[name])
    curves = {name: _sweep_curve(placer, name, kinds) for name in names}
    how = {
        "oracle": "as published (RadZero): per class the best threshold of 0, .01, ... 1 on the test positives",
        "validation": "per class the best threshold on the validation split",
        "fixed": "0.5 for every class",
    }
    missing = [name for name in names if chosen[name] is None]
    notes = [f"no place in the validation split, so no threshold from it: {', '.join(missing)}"] if missing else []
    return placer.result("zero-shot-segmentation", "Zero-shot segmentation", "RadZero, segmentation_utils.py", how,
                         rows,
                         means, curves, notes)  # fmt: skip


def _best_level(lines: Sequence[Line], name: str) -> int | None:
    curves = [numbers["curve"] for line in lines if (numbers := placed(line, name)) is not None]
    return int(np.mean(curves, axis=0).argmax()) if curves else None


def _at_levels(placer: Placer, rows: dict[str, Measures], means: Measures, levels: dict[str, int | None]) -> None:
    """Dice and specificity of each class at its own level."""
    level_of = dict(levels)

    def dice(line: Line, name: str) -> Line | None:
        numbers, level = placed(line, name), level_of[name]
        return None if numbers is None or level is None else {"v": numbers["curve"][level]}

    def silent(line: Line, name: str) -> Line | None:
        numbers, level = unplaced(line, name), level_of[name]
        return None if numbers is None or level is None else {"v": numbers["peak"] < LEVELS[level]}

    placer.enter(rows, means, "dice", lambda n: n["v"], dice)
    placer.enter(rows, means, "specificity", lambda n: n["v"], silent)
    for name, level in level_of.items():
        if level is not None:
            rows.setdefault(name, {})["threshold"] = Estimate(value=float(LEVELS[level]), n=placer.counts[name])


def _sweep_curve(placer: Placer, name: str, kinds: dict[str, dict[str, int | None]]) -> Curves:
    curve = np.mean([n["curve"] for line in placer.lines if (n := placed(line, name)) is not None], axis=0)
    peaks = np.array([n["peak"] for line in placer.lines if (n := unplaced(line, name)) is not None])
    points = [
        SweepPoint(threshold=float(t), dice=float(d), specificity=float((peaks < t).mean()) if len(peaks) else None)
        for t, d in zip(LEVELS, curve, strict=True)
    ]
    marked = {kind: float(LEVELS[level]) for kind, levels in kinds.items() if (level := levels[name]) is not None}
    return Curves(sweep=tuple(points), thresholds=marked)


def presence_gated(placer: Placer) -> ProtocolResult:
    """The mask that `ask` gives: overlap where the finding is, anything at all where it is not."""
    rows: dict[str, Measures] = {}
    means: Measures = {}
    placer.enter(rows, means, "dice_gated", lambda n: n["dice_ask"])
    placer.enter(rows, means, "false_mask_rate", lambda n: n["marked"], unplaced)
    placer.enter(rows, means, "false_area", lambda n: n["area"], unplaced)
    how = {
        "honest": "the mask as answered, empty where the finding is said to be absent; nothing is chosen on this split"
    }
    return placer.result("presence", "Presence-gated masks", "", how, {"honest": rows}, {"honest": means})


def vlm3d(placer: Placer) -> ProtocolResult:
    """Dice, IoU, 95th percentile of the surface distance and sensitivity of the mask as answered."""
    rows: dict[str, Measures] = {}
    means: Measures = {}
    for measure, key in (
        ("dice", "dice_ask"),
        ("iou", "iou_ask"),
        ("hd95_mm", "hd95_mm"),
        ("sensitivity", "sensitivity_ask"),
    ):
        placer.enter(rows, means, measure, lambda n, key=key: n.get(key))
    how = {"honest": "the mask as answered at the fixed threshold, on the original voxels"}
    notes = ["HD95 is measured where both masks hold something; an empty answer has Dice 0 and no distance"]
    return placer.result(
        "vlm3d", "VLM3D task 3", "abnloc.vlm3dchallenge.com", how, {"honest": rows}, {"honest": means}, notes=notes
    )


def rexgroundingct(placer: Placer) -> ProtocolResult:
    """Findings in a reader's words: Dice of each, hits, and instances pooled over all findings."""
    found = [
        (line, answer["place"]) for line in placer.lines for answer in line["phrases"] if "dice_ask" in answer["place"]
    ]
    means: Measures = {}
    if found:
        groups = groups_of([line for line, _ in found], placer.unit)
        overlap = np.array([numbers["dice_ask"] for _, numbers in found])
        for measure, values in (
            ("dice", overlap),
            ("hit_rate", overlap >= HIT_DICE),
            ("hit_rate_5", overlap >= EXACT_HIT_DICE),
        ):
            drawn = bootstrap(mean_statistic(values.astype(float)), groups, placer.draws, placer.seed)
            means[measure] = estimate(drawn, 0, len(found))
        counts = np.array([numbers.get("instances", (0, 0, 0)) for _, numbers in found], dtype=float)
        means |= _instances(counts, groups, placer)
    how = {
        "honest": f"masks as answered at the fixed threshold; a hit is Dice >= {HIT_DICE:g} (board) or "
        f">= {EXACT_HIT_DICE:g} (EXACT); an instance is found at Dice >= {INSTANCE_DICE:g}, pooled over findings"
    }
    return ProtocolResult(
        name="rexgroundingct", title="ReXGroundingCT", citation="rexrank.ai/rexgroundingct",
        label_set="findings in words", num_classes=len(found), columns=("honest",), how=how, means={"honest": means},
        average=f"mean over {len(found)} findings",
    )  # fmt: skip


def _instances(counts: np.ndarray, groups: np.ndarray, placer: Placer) -> Measures:
    """Precision, recall and F1 of instances; `findings (found, false, missed)`."""
    tp, fp, fn = counts.T
    means: Measures = {}
    for measure, top, bottom in (
        ("instance_precision", tp, tp + fp), ("instance_recall", tp, tp + fn),
        ("instance_f1", 2 * tp, 2 * tp + fp + fn),
    ):  # fmt: skip
        drawn = bootstrap(ratio_statistic(top, bottom), groups, placer.draws, placer.seed)
        means[measure] = estimate(drawn, 0, len(counts))
    return means
