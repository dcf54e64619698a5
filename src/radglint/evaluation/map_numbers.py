"""What is kept of a map: numbers on the native grid, from which every protocol of place is computed.

Two maps are looked at: the probability map of `ask`, absolute and calibrated, and its published treatment (patch map
smoothed, enlarged, stretched to [-1, 1] per image). No map is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from radglint.evaluation.instances import score_finding
from radglint.evaluation.localisation import cnr, dice_of, iou_of, overlap_counts, pointing_hit, smooth, sweep
from radglint.evaluation.overlap import LEVELS, Tally, tally
from radglint.evaluation.surfaces import hd95_mm
from radglint.evaluation.truth import Place
from radglint.finding import Finding

FIXED = int(np.abs(LEVELS - 0.5).argmin())  # the level of the fixed column
DIGITS = 5
FAR = 30.0  # a logit that is as good as certain
Numbers = dict[str, Any]


def numbers_with_place(finding: Finding, place: Place) -> Numbers:
    """Numbers of a finding whose place is known, whatever was answered."""
    values, truth = finding.probability_map(), place.mask
    if not truth.any():
        return {}
    counted, mask = tally(values, truth), finding.mask()
    both, marked, true = overlap_counts(mask, truth)
    plain, published = sweep(values, truth, smooth_sigma=None, rescale=False), _published_sweep(finding, truth)
    return {
        "hit": bool(pointing_hit(values, place.boxes or truth)), "chance": _short(truth.mean()),
        "cnr": _or_none(cnr(values, truth).signed), "curve": _list(counted.dice()),
        "inside": counted.inside.tolist(), "outside": counted.outside.tolist(),
        "sweep_iou": _list(published.iou), "sweep_dice": _list(published.dice),
        "plain_iou": _list(plain.iou), "plain_dice": _list(plain.dice),
        "dice_ask": _short(dice_of(both, marked, true)), "iou_ask": _short(iou_of(both, marked, true)),
        "sensitivity_ask": _short(both / true), "marked": bool(marked), **_numbers_in_3d(finding, mask, truth),
    }  # fmt: skip


def _numbers_in_3d(finding: Finding, mask: np.ndarray, truth: np.ndarray) -> Numbers:
    """Distance of the surfaces, where both masks hold something, and instances matched one to one; of a CT only."""
    if finding.image.affine is None or finding.image.spacing_mm is None:
        return {}
    found = score_finding(mask, truth)
    distance = hd95_mm(mask, truth, finding.image.spacing_mm) if mask.any() else float("inf")
    return {"hd95_mm": _short(distance) if np.isfinite(distance) else None,
            "instances": [found.tp, found.fp, found.fn]}  # fmt: skip


def numbers_without_place(finding: Finding) -> Numbers:
    """Numbers of a finding that is absent: the highest value of its map, and whether anything is marked."""
    mask = finding.mask()
    return {
        "peak": _short(np.nanmax(finding.probability_map())),
        "marked": bool(mask.any()),
        "area": _short(mask.mean()),
    }


def _published_sweep(finding: Finding, truth: np.ndarray) -> Any:
    """The sweep as published: the patch map is smoothed, then enlarged, then stretched."""
    patches = 1 / (1 + np.exp(-finding.token_logits.astype(np.float64)))
    smoothed = smooth(patches.reshape(finding.record.grid_shape)).clip(1e-9, 1 - 1e-9)
    logits = np.log(smoothed / (1 - smoothed)).clip(-FAR, FAR).astype(np.float32)
    return sweep(replace(finding, token_logits=logits).probability_map(), truth, smooth_sigma=None)


def pixel_auroc(rows: Sequence[Numbers]) -> float | None:
    """AUROC of the pixels of all cases together, to the width of a level; None without a case.

    Args:
        rows: numbers of cases with a place.
    """
    if not rows:
        return None
    inside, outside = (np.sum([row[key] for row in rows], axis=0) for key in ("inside", "outside"))
    return Tally(LEVELS, inside, outside).voxel_auroc()


def _short(value: Any) -> float:
    return round(float(value), DIGITS)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else _short(value)


def _list(values: np.ndarray) -> list[float]:
    return [_short(value) for value in values]
