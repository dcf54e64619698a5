"""How well a branch finds what is in cached cases: AUROC, pointing and Dice of each concept, on the token grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from radglint.cases import Case
from radglint.model import GlintBranch
from radglint.place import Place
from radglint.simulation.facts import Fact
from radglint.train import Embed, score_cases, verdict

THRESHOLDS = np.array([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7])
MARKED_SHARES = np.geomspace(0.0005, 0.6, 24)  # of the patches: thresholds of a map whose scale is not known
LEAST_CASES = 3  # with and without a concept, or it is not measured
MEASURES = ("auroc", "pointing", "dice", "false_area")
Metrics = dict[str, dict[str, float]]


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of positive-negative pairs in which the positive scores higher; ties count half.

    Args:
        scores: `cases`.
        positive: `cases`, bool, some True and some False.
    """
    ranks, count = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def concept_metrics(
    concept: str, cases: Sequence[Case], scores: np.ndarray, gate: np.ndarray, *, any_scale: bool = False
) -> dict[str, float]:
    """Measures of one concept.

    Args:
        concept: asked for.
        cases: with coverage where the place is known.
        scores: `cases`.
        gate: `cases tokens`, in [0, 1].
        any_scale: the gate may have any scale; thresholds are then those that mark `MARKED_SHARES` of the patches.

    Returns:
        n, auroc, and where the place is known pointing, chance (pointing of a random token), dice and its threshold,
        which is the best of `THRESHOLDS` on these very cases, and false_area, the share of the patches that it marks
        where the finding is not; nothing if there are too few cases.
    """
    verdicts = np.array([verdict(Fact(concept), case) for case in cases])
    numbers, positive = presence_metrics(verdicts, scores), verdicts == "holds"
    if not numbers:
        return {}
    thresholds = np.unique(np.quantile(gate[positive], 1 - MARKED_SHARES)) if any_scale else THRESHOLDS
    there = [case for case, holds in zip(cases, positive, strict=True) if holds]
    place = _place_metrics(concept, there, gate[positive], thresholds)
    if place:
        place["false_area"] = float((gate[verdicts == "fails"] >= place["threshold"]).mean())
    return numbers | place


def presence_metrics(verdicts: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Number of positives and AUROC; nothing if there are too few.

    Args:
        verdicts: `cases`: holds, fails or unknown, which is left out.
        scores: `cases`.
    """
    positive, known = verdicts == "holds", verdicts != "unknown"
    if positive.sum() < LEAST_CASES or (known & ~positive).sum() < LEAST_CASES:
        return {}
    return {"n": int(positive.sum()), "auroc": auroc(scores[known], positive[known])}


def _place_metrics(
    concept: str, cases: Sequence[Case], gate: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:  # fmt: skip
    hits, chance, dice = [], [], []
    for case, values in zip(cases, gate, strict=True):
        if case.coverage is None:
            continue
        rows = [k for k, fact in enumerate(case.facts) if fact.concept == concept]
        truth = case.coverage[rows].float().amax(dim=0).numpy()
        hits.append(truth[values.argmax()] > 0.1)
        chance.append((truth > 0.1).mean())
        marked = values[None] >= thresholds[:, None]
        dice.append(2 * (marked * truth).sum(1) / (marked.sum(1) + truth.sum() + 1e-9))
    if not hits:
        return {}
    curve = np.mean(dice, axis=0)
    best = int(curve.argmax())
    return {"pointing": float(np.mean(hits)), "chance": float(np.mean(chance)), "dice": float(curve[best]),
            "threshold": float(thresholds[best])}  # fmt: skip


def evaluate_cases(
    branch: GlintBranch, cases: Sequence[Case], grid: tuple[int, int], embed: Embed, *, per_case: bool = False,
    in_lungs: Collection[str] = (),
) -> Metrics:  # fmt: skip
    """Measures of every concept for the query "There is a ...".

    Args:
        branch: put in eval mode.
        cases: held out.
        grid: `(height, width)` of one slice of tokens.
        embed: sentences to `texts embed`.
        per_case: divide each map by its highest value first, as softmax weights need before a threshold means anything.
        in_lungs: concepts that are looked for in the lungs only.
    """
    concepts, texts = _asked(cases, embed)
    if not concepts:
        return {}
    places = [Place(c in in_lungs) for c in concepts]
    scores, logits = score_cases(branch, cases, grid, texts, valid_depth=True, places=places)
    gate = torch.sigmoid(logits.float())
    if per_case:
        gate = (logits.float() - logits.float().amax(dim=-1, keepdim=True)).exp()
    rows = {c: concept_metrics(c, cases, scores[k].numpy(), gate[k].numpy()) for k, c in enumerate(concepts)}
    return {concept: row for concept, row in rows.items() if row}


def _asked(cases: Sequence[Case], embed: Embed) -> tuple[list[str], torch.Tensor]:
    """The concepts of some cases, and "There is a ..." for each."""
    concepts = sorted({fact.concept for case in cases for fact in case.facts})
    return concepts, embed([f"There is {concept}." for concept in concepts]) if concepts else torch.zeros(0, 0)


def evaluate_best_reading(
    branch: GlintBranch, cases: Sequence[Case], grid: tuple[int, int], embed: Embed, content_weights: Sequence[float],
    in_lungs: Collection[str] = (),
) -> tuple[Metrics, str]:  # fmt: skip
    """Measures of every concept with the map read as it does best, so that different methods can be compared.

    A map is read with each weight of how well a patch fits the text, once with one scale for all images and once
    relative to the highest value of each image; of these the one with the best mean Dice counts.

    Args:
        branch: put in eval mode.
        cases: held out.
        grid: `(height, width)` of one slice of tokens.
        embed: sentences to `texts embed`.
        content_weights: see `GateConfig.map_content_weight`; 0 = the gate alone.
        in_lungs: concepts that are looked for in the lungs only.

    Returns:
        The measures, and in words the reading that they belong to; none without a concept.
    """
    concepts, texts = _asked(cases, embed)
    places = [Place(c in in_lungs) for c in concepts]
    given, found = branch.gate.config, []
    for weight in content_weights if concepts else ():
        branch.gate.config = given.model_copy(update={"map_content_weight": weight})
        scores, logits = score_cases(branch, cases, grid, texts, valid_depth=True, places=places)
        relative = logits - logits.amax(dim=-1, keepdim=True)
        for scale, maps in (("one scale", logits), ("relative", relative)):
            rows = {c: concept_metrics(c, cases, scores[k].numpy(), maps[k].float().numpy(), any_scale=True)
                    for k, c in enumerate(concepts)}  # fmt: skip
            rows = {concept: row for concept, row in rows.items() if row}
            found.append((mean_metrics(rows).get("dice", 0.0), rows, f"fit x {weight:g}, {scale}"))
    branch.gate.config = given
    _, metrics, reading = max(found, key=lambda row: row[0], default=(0.0, {}, ""))
    return metrics, reading


def mean_metrics(metrics: Metrics) -> dict[str, float]:
    """Mean over concepts of each of `MEASURES`, of those that have it."""
    values = {key: [row[key] for row in metrics.values() if key in row] for key in MEASURES}
    return {key: float(np.mean(found)) for key, found in values.items() if found}


def metrics_table(metrics: Metrics) -> str:
    """Lines to print: a concept each, then the means."""
    rows = [(c, "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
            for c, row in metrics.items()]  # fmt: skip
    rows += [(f"mean {key}", f"{value:.3f}") for key, value in mean_metrics(metrics).items()]
    return "\n".join(f"  {name:22s} {text}" for name, text in rows)
