"""SIIM-ACR Pneumothorax Segmentation (2019): radiographs of NIH ChestX-ray14 with outlines of pneumothoraces.

Layout (columns, the blank before "EncodedPixels" and the tree as in public code):

    train-rle.csv      ImageId (SOPInstanceUID), " EncodedPixels": "-1" or run lengths, see `rle.decode_relative`
    dicom-images-train/STUDY/SERIES/SOPINSTANCEUID.dcm   or any other tree of files so named

An image may have several rows, one per outlined part (some drawn twice by two readers): they are joined into one
mask, written below `masks/siim-pneumothorax/`. DICOM files without a row are left out, as in the challenge. The
corrected table of the second stage, stage_2_train.csv (its name from memory), is preferred where it is there. All
images are `train`: the answers of the test part were not given out in this form. The patient is the one in the file's
header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from radglint.datasets.registry import DATASETS
from radglint.datasets.rle import decode_relative
from radglint.datasets.tables import Images, dicom_header, read_rows, required_file, write_mask
from radglint.manifest import ManifestRow, Phrase

NAME = "siim-pneumothorax"
LABELS: dict[str, str] = {"Pneumothorax": "pneumothorax"}

_Runs = dict[str, list[tuple[str, str]]]


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Read the SIIM-ACR challenge.

    Args:
        src: its folder, see above.
        out: masks are written to `masks/siim-pneumothorax/` below it.

    Yields:
        One row per image with an answer; positive ones with one phrase and its mask.

    Raises:
        InputError: the table or a column is missing, run lengths are damaged, images are missing.
        OutputError: a mask cannot be written.
    """
    expects = DATASETS[NAME].expects
    runs = _runs(required_file(src, expects, "stage_2_train.csv", "train-rle.csv", "*rle*.csv"))
    files = {path.stem: path for path in sorted(src.rglob("*.dcm"))}
    images = Images(src, expects)
    for name, coded in runs.items():
        path = images.find(f"{name}.dcm", files.get(name))
        if path is not None:
            yield _row(name, path, coded, out)
    images.finish()


def _runs(path: Path) -> _Runs:
    """Image to (where, run lengths) of each of its parts; an empty list for a negative image."""
    result: _Runs = {}
    for where, row in read_rows(path, ("ImageId", "EncodedPixels")):
        parts = result.setdefault(row["ImageId"], [])
        if row["EncodedPixels"] != "-1":
            parts.append((where, row["EncodedPixels"]))
    return result


def _row(name: str, path: Path, coded: list[tuple[str, str]], out: Path) -> ManifestRow:
    header = dicom_header(path)
    masks: tuple[str, ...] = ()
    if coded:
        mask = decode_relative(coded[0][1], header["size_px"], coded[0][0])
        for where, text in coded[1:]:
            mask |= decode_relative(text, header["size_px"], where)
        masks = (write_mask(out, f"masks/{NAME}/{name}.png", mask),)
    return ManifestRow(
        id=name,
        image=str(path),
        modality="CXR",
        dataset=NAME,
        patient=header["patient"] or name,
        study=name,
        series=name,
        split="train",
        view=header["view"],
        labels={"pneumothorax": "present" if masks else "absent"},
        phrases=(Phrase("pneumothorax", "pneumothorax", masks=masks),) if masks else (),
        size_px=header["size_px"],
        extra={"parts": len(coded)},
    )
