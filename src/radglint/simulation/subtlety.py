"""How hard a painted finding is to see: a number from 0 (as plain as painted ones get) to 1 (barely there).

    visibility = sqrt(min(1, contrast / full contrast) * min(1, size / full size));   subtlety = 1 - visibility

Contrast is the mean absolute change inside the mask. On a radiograph it is a share of the difference between soft
tissue and lung, and size is the square root of the mask's area over that of the lungs. On a CT it is in HU, and size is
the cube root of the mask's volume in ml. "Full" is the 90th percentile of what the painter of that concept draws,
measured on 22 normal NIH radiographs and on a phantom, so that 0 means easy among its own kind. Noise and what lies in
front are not counted.
"""

from __future__ import annotations

import math

FULL_CXR: dict[str, tuple[float, float]] = {
    "cardiomegaly": (0.21, 0.69), "atelectasis": (0.41, 0.31), "interstitial pattern": (0.13, 0.85),
    "ground-glass opacity": (0.17, 0.65), "consolidation": (0.42, 0.62), "mass": (0.49, 0.34), "nodule": (0.40, 0.11),
    "calcified nodule": (0.88, 0.05), "pneumothorax": (0.20, 0.61), "pleural effusion": (0.43, 0.68),
    "rib fracture": (0.09, 0.10), "chest tube": (0.20, 0.20), "endotracheal tube": (0.11, 0.17),
    "central line": (0.16, 0.16), "pacemaker": (0.81, 0.33),
}  # fmt: skip
"""Full contrast and full size of each concept on a radiograph."""

FULL_CT: dict[str, tuple[float, float]] = {
    "nodule": (774, 2.4), "mass": (817, 4.3), "calcified nodule": (1143, 1.6), "consolidation": (756, 6.6),
    "ground-glass opacity": (321, 12.4), "pleural effusion": (822, 10.3), "pneumothorax": (190, 8.8),
    "atelectasis": (670, 3.0), "emphysema": (44, 15.4), "interstitial pattern": (144, 14.8), "rib fracture": (301, 1.3),
}  # fmt: skip
"""Full contrast in HU and full size in ml^(1/3) of each concept on a CT."""


def subtlety_cxr(concept: str, contrast: float, area_share: float) -> float:
    """Subtlety on a radiograph.

    Args:
        concept: a key of `FULL_CXR`.
        contrast: mean absolute change inside the mask, as a share of soft tissue minus lung.
        area_share: area of the mask over that of both lungs.

    Returns:
        A number in [0, 1], rounded to three digits.
    """
    return _subtlety(FULL_CXR[concept], contrast, math.sqrt(area_share))


def subtlety_ct(concept: str, contrast_hu: float, volume_ml: float) -> float:
    """Subtlety on a CT.

    Args:
        concept: a key of `FULL_CT`.
        contrast_hu: mean absolute change inside the mask.
        volume_ml: of the mask.

    Returns:
        A number in [0, 1], rounded to three digits.
    """
    return _subtlety(FULL_CT[concept], contrast_hu, volume_ml ** (1 / 3))


def _subtlety(full: tuple[float, float], contrast: float, size: float) -> float:
    visibility = math.sqrt(min(1.0, contrast / full[0]) * min(1.0, size / full[1]))
    return round(1 - visibility, 3)
