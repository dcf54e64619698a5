"""ReXGroundingCT: sentences of CT-RATE reports with a 3D mask each.

Layout (fields from the data set's card and from public code that reads it):

    dataset.json                 {"train": [...], "val": [...], "test": [...]}, one entry per scan:
                                   name         train_1741_b_2.nii.gz, the volume's name in CT-RATE
                                   findings     {"0": "Irregularly circumscribed ...", ...}
                                   categories   {"0": "2b", ...}; see `CATEGORIES`
                                   entity_counts, pixels, shape, protocol
    MICCAI_challenge_dataset.json    the same for the 2026 challenge: 200 scans in val, 300 in test (`convert_miccai`)
    segmentations/NAME           (finding, width, height, depth); a voxel's number tells the entity, 0 is outside
    images_flat/NAME             the volumes, or CT-RATE's second release: dataset/train_fixed/train_1741/... here, or
                                 in a folder CT-RATE beside this one

The private test part has no masks: its phrases are texts only. `train` and `val` here have nothing to do with `train`
and `valid` of CT-RATE; 414 training scans carry a `valid_` name. patient is CT-RATE's, and about ten patients are
in two splits (counted by a third party). Such a patient belongs to the first of val, test, train that has a scan of
his; his scans of another split are kept without a split, and extra.published_split says where they were.

Masks lie voxel by voxel on the volume, but their own header does not say so (public users found them mirrored when
the header was believed, and right with the volume's; their voxel counts then equal `pixels` in all 7,687 findings of
train). So a mask's header is ignored: its shape must be the volume's, its count of voxels must be `pixels`, and it is
written with the volume's geometry, one file for each finding, entities joined. Training scans were marked sparsely (at
most three entities for a finding), the others completely: protocol is kept in extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from radglint.datasets.ct_files import load_nifti, mask_box, nifti_grid, voxels, write_mask
from radglint.datasets.ct_rate import parse_name
from radglint.datasets.tables import Images, read_json, required_file
from radglint.errors import InputError
from radglint.image import MedicalImage
from radglint.manifest import LabelState, ManifestRow, Phrase

CATEGORIES: dict[str, str] = {
    "1a": "bronchial wall thickening",
    "1b": "bronchiectasis",
    "1c": "emphysema",
    "1d": "septal thickening",
    "1e": "micronodules",
    "1f": "other non-focal abnormality",
    "2a": "linear opacity",
    "2b": "atelectasis or consolidation",
    "2c": "ground-glass opacity",
    "2d": "nodule or mass",
    "2e": "pleural effusion or thickening",
    "2f": "honeycombing",
    "2g": "pneumothorax",
    "2h": "other focal abnormality",
}
"""The 14 categories: code to manifest name (names as public analyses of the data give them; 1 non-focal, 2 focal)."""
LABELS = CATEGORIES

EXPECTS = "dataset.json, segmentations/ and images_flat/ (or CT-RATE's dataset/*_fixed/ here or in ../CT-RATE/)"
Split = Literal["train", "val", "test"]
_SPLITS: tuple[Split, ...] = get_args(Split)
_FIRST: tuple[Split, ...] = ("val", "test", "train")
"""Which split keeps a patient who is in several: what is measured is not given up for training."""


def convert(src: Path, out: Path) -> Iterator[ManifestRow]:
    """One row for each scan of dataset.json; masks go to `out`/masks, one file for each finding.

    A split of which no volume is on the disk is left out.

    Args:
        src: the folder of dataset.json.
        out: where the manifest will lie.

    Raises:
        InputError: the JSON, a volume or a mask is missing, or a mask does not fit its volume or its entry.
    """
    return _convert(Path(src), Path(out), "dataset.json")


def convert_miccai(src: Path, out: Path) -> Iterator[ManifestRow]:
    """Like `convert`, for the splits of the MICCAI 2026 challenge."""
    return _convert(Path(src), Path(out), "MICCAI_challenge_dataset.json")


def _convert(src: Path, out: Path, name: str) -> Iterator[ManifestRow]:
    path = required_file(src, EXPECTS, name)
    document = read_json(path, dict)
    images = Images(src, EXPECTS)
    scans: list[tuple[Split, int, Any]] = [
        (split, i, entry) for split in _SPLITS for i, entry in enumerate(document.get(split, []))
    ]
    if not scans:
        raise InputError(f"{path}: keys {', '.join(document) or 'none'}, expected train, val or test with their scans")
    there = {split for split, i, entry in scans if _volume(src, _name(path, split, i, entry)) is not None}
    owner = {}
    for split, i, entry in sorted(scans, key=lambda scan: _FIRST.index(scan[0])):
        owner.setdefault(_patient(_name(path, split, i, entry)), split)
    for split, i, entry in scans:
        if split in there or not there:
            name_of_volume = _name(path, split, i, entry)
            volume = images.find(f"{split}/{name_of_volume}", _volume(src, name_of_volume))
            if volume is not None:
                row = _row(f"{path}, {split}[{i}] ({name_of_volume})", entry, split, volume, src, out)
                yield row if owner[row.patient] == split else _without_split(row)
    images.finish()


def _patient(name: str) -> str:
    return "_".join(name.split("_")[:2])


def _without_split(row: ManifestRow) -> ManifestRow:
    """A scan whose patient belongs to another split."""
    return replace(row, split="", extra={**row.extra, "published_split": row.split})


def _name(path: Path, split: str, index: int, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{path}, {split}[{index}]: no 'name', expected the volume's file name, got {entry!r:.80}")
    return name


def _volume(src: Path, name: str) -> Path | None:
    """Where a volume lies: flat, or in the layout of CT-RATE's second release."""
    part, scan = name.split("_")[0], "_".join(name.split("_")[:3])
    nested = Path("dataset", f"{part}_fixed", _patient(name), scan, name)
    for path in (src / "images_flat" / name, src / nested, src.parent / "CT-RATE" / nested):
        if path.is_file():
            return path
    return None


def _row(where: str, entry: dict[str, Any], split: Split, volume: Path, src: Path, out: Path) -> ManifestRow:
    patient, study = parse_name(where, entry["name"], entry["name"].split("_")[0])
    scan = entry["name"].removesuffix(".nii.gz")
    texts = _by_finding(where, entry, "findings")
    codes = _by_finding(where, entry, "categories") if "categories" in entry else {}
    unknown = sorted(set(codes.values()) - set(CATEGORIES))
    if unknown:
        raise InputError(f"{where}: categories {', '.join(unknown)}, expected {', '.join(CATEGORIES)}")
    grid = nifti_grid(volume)
    masks = _masks(where, entry, src / "segmentations" / entry["name"], grid, len(texts), split)
    phrases = []
    for key, text in texts.items():
        label = CATEGORIES[codes[key]] if key in codes else ""
        mask = masks.get(key)
        boxes, files = (), ()
        if mask is not None:
            name = f"masks/{scan}/finding_{int(key):02d}.nii.gz"
            if not (out / name).is_file():
                write_mask(out / name, mask, grid)
            boxes, files = (mask_box(mask),), (name,)
        phrases.append(Phrase(text=text, label=label, boxes=boxes, masks=files))
    labels: dict[str, LabelState] = {phrase.label: "present" for phrase in phrases if phrase.label}
    return ManifestRow(
        id=scan,
        image=str(volume),
        modality="CT",
        dataset="rexgroundingct",
        patient=patient,
        study=study,
        series=scan,
        split=split,
        labels=labels,
        phrases=tuple(phrases),
        size_px=grid.shape,
        extra={key: entry[key] for key in ("entity_counts", "protocol") if key in entry},
    )


def _by_finding(where: str, entry: dict[str, Any], field: str) -> dict[str, str]:
    """A field that has a text for each finding, by the finding's number.

    Raises:
        InputError: not a mapping of numbers 0, 1, 2, ... to texts.
    """
    values = entry.get(field)
    if not isinstance(values, dict) or not values:
        raise InputError(f'{where}: {field!r} is {values!r:.80}, expected {{"0": "...", "1": "..."}}')
    ordered = dict(sorted(values.items(), key=lambda item: int(item[0]) if item[0].isdigit() else -1))
    if list(ordered) != [str(i) for i in range(len(ordered))] or not all(isinstance(v, str) for v in ordered.values()):
        raise InputError(f"{where}: {field!r} has keys {', '.join(values)}, expected 0, 1, 2, ... with texts")
    return ordered


def _masks(
    where: str, entry: dict[str, Any], path: Path, grid: MedicalImage, findings: int, split: str
) -> dict[str, np.ndarray]:
    """Mask of each finding that has voxels, bool `depth height width`; none for the private test part.

    Raises:
        InputError: the file is missing, its shape is not (findings, *volume), or a count differs from `pixels`.
    """
    if split == "test" and not path.is_file():
        return {}
    if not path.is_file():
        raise InputError(f"{where}: no mask {path}; expected one for every scan of train and val; download it")
    nifti = load_nifti(path)
    expected = (findings, *grid.shape[::-1])
    if tuple(nifti.shape) != expected:
        raise InputError(
            f"{path}: shape {tuple(nifti.shape)}, expected {expected}: {findings} findings on the volume {grid.path}; "
            "masks fit only the volume of this name"
        )
    stated = entry.get("pixels", {})
    labelled = voxels(nifti, path)
    masks = {}
    for index in range(findings):
        mask = np.ascontiguousarray((labelled[index] != 0).transpose(2, 1, 0))
        count = int(np.count_nonzero(mask))
        if count != stated.get(str(index), count):
            raise InputError(
                f"{path}: finding {index} has {count} voxels, {where} says {stated[str(index)]} (pixels); "
                "download the mask again"
            )
        if count:
            masks[str(index)] = mask
    return masks
