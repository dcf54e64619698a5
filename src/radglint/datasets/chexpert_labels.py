"""The 14 labels of CheXpert, which MIMIC-CXR-JPG, CheXpert Plus, CheXlocalize and MS-CXR share, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from radglint.errors import InputError
from radglint.manifest import LabelState

LABELS: dict[str, str] = {
    "No Finding": "no finding",
    "Enlarged Cardiomediastinum": "enlarged cardiomediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung lesion",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural other",
    "Fracture": "fracture",
    "Support Devices": "support devices",
}

ALIASES = {"Airspace Opacity": "Lung Opacity"}
"""What the readers' files of MIMIC-CXR-JPG 2.1.0 and CheXlocalize call Lung Opacity."""

_STATES: dict[float, LabelState] = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


def states(where: str, row: Mapping[str, Any]) -> dict[str, LabelState]:
    """1 is present, 0 absent, -1 uncertain; a label that is blank or not there is left out.

    Args:
        where: for messages.
        row: values by column, text or numbers; other columns are passed over.

    Raises:
        InputError: another value; names the row and the column.
    """
    result: dict[str, LabelState] = {}
    for column, value in row.items():
        name = LABELS.get(ALIASES.get(column, column))
        if name is None or value is None or str(value).strip().lower() in ("", "nan"):
            continue
        try:
            result[name] = _STATES[float(value)]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{where}, column {column!r}: expected 1, 0, -1 or nothing, got {value!r}") from None
    return result
