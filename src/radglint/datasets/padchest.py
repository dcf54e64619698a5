"""PadChest: 160,000 radiographs of Alicante with 193 labels and Spanish reports.

Layout (columns and label names as in public code):

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]   ImageID, ImageDir, StudyID, PatientID, Projection,
                                                                MethodLabel, Labels, Report, ...
    0/IMAGE.png to 54/IMAGE.png by ImageDir, here or in images/; or all images in one folder

`Labels` is a list written as Python text; its entries are stripped of blanks. A label that is not listed counts as
absent, except where the list says that the image was not read as such ("exclude", "suboptimal study", "unchanged"):
there the rest stays unlabelled, and the words stand in `extra["remarks"]`. A row without a list has no labels.
Reports are Spanish, lower-case and stemmed by the publisher. `extra["manual"]` is true where a physician labelled the
report (27 %), which is the part to test on. There is no official split.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from radglint.datasets.padchest_labels import LABELS, REMARKS
from radglint.datasets.registry import DATASETS
from radglint.datasets.tables import Images, listed_states, read_rows, required_file, view
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow

NAME = "padchest"

_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels", "Report")


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read PadChest.

    Args:
        src: its folder, see above.
        out: not used; nothing is written.

    Yields:
        One row per image of the table.

    Raises:
        InputError: the table or a column is missing, a list of labels is damaged, images are missing.
    """
    expects = DATASETS[NAME].expects
    table = required_file(src, expects, "PADCHEST_chest_x_ray_images_labels_160K*.csv", "PADCHEST_*.csv")
    images = Images(src, expects)
    for where, row in read_rows(table, _COLUMNS):
        name = row["ImageID"]
        folder = row["ImageDir"].removesuffix(".0")
        places = (src / folder, src / "images" / folder, src / "images", src)
        path = images.find(f"{folder}/{name}", *(place / name for place in places))
        if path is None:
            continue
        listed = _listed(where, row["Labels"])
        yield ManifestRow(
            id=name.rsplit(".", 1)[0],
            image=str(path),
            modality="CXR",
            dataset=NAME,
            patient=row["PatientID"],
            study=row["StudyID"],
            series=name,
            view=view(row["Projection"]),
            report="" if row["Report"].lower() == "nan" else row["Report"],
            labels=_states(listed),
            extra={
                "manual": row["MethodLabel"].lower() == "physician",
                "projection": row["Projection"],
                "remarks": [text for text in listed if text in REMARKS],
                "unknown_labels": [text for text in listed if text not in LABELS and text not in REMARKS],
            },
        )
    images.finish()


def _listed(where: str, text: str) -> list[str]:
    """The entries of a list written as text, stripped; none for a blank."""
    if text.lower() in ("", "nan", "none"):
        return []
    try:
        entries = ast.literal_eval(text)
        return [entry for entry in dict.fromkeys(str(item).strip() for item in entries) if entry]
    except (ValueError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(f"{where}, column 'Labels': expected a list such as ['normal'], got {text[:60]!r}") from error


def _states(listed: list[str]) -> dict[str, LabelState]:
    """Present for what is listed, absent for the rest if the image was read in full."""
    present = [LABELS[text] for text in listed if text in LABELS]
    if not listed or any(text in REMARKS for text in listed):
        return dict.fromkeys(present, "present")
    return listed_states(LABELS, present)
