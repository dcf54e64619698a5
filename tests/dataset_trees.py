"""Write small data sets in their published layout: tables and tiny images."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from radglint.datasets.registry import adapter
from radglint.manifest import ManifestRow

CHEXPERT_COLUMNS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[object]) -> Path:
    """Write a CSV file; a name that ends in .gz is compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_image(path: Path, height: int = 32, width: int = 40) -> Path:
    """Write a small grey PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(height * width) % 251).reshape(height, width).astype(np.uint8)).save(path)
    return path


def write_words(path: Path, text: str) -> Path:
    """Write a text file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def chexpert_values(**states: object) -> list[object]:
    """Values of the 14 columns of CheXpert, blank where not given: `Pleural_Effusion=1`."""
    given = {name.replace("_", " "): value for name, value in states.items()}
    assert set(given) <= set(CHEXPERT_COLUMNS)
    return [given.get(name, "") for name in CHEXPERT_COLUMNS]


def convert(name: str, src: Path, out: Path | None = None) -> list[ManifestRow]:
    """All rows of a data set, by its adapter."""
    return list(adapter(name)(src, out or src.parent / "out"))


def by_id(rows: Sequence[ManifestRow]) -> dict[str, ManifestRow]:
    """Rows by their id, which must be unique."""
    result = {row.id: row for row in rows}
    assert len(result) == len(rows)
    return result
