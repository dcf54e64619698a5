"""The manifest: one row per image, with what is known of it. Adapters write it, training and evaluation read it.

image, modality                     a path (relative to the manifest) and CXR or CT
patient, study, series, split, view whose it is, and where it belongs
findings, impression                the report
labels                              concept: present, absent or uncertain; a concept that is missing is unlabelled
phrases                             what a reader marked: text, boxes, masks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LabelState = Literal["present", "absent", "uncertain"]
Box = tuple[int, ...]


@dataclass(frozen=True)
class Phrase:
    """What a reader marked in an image.

    Attributes:
        text: in the reader's words, for example "small left pleural effusion"; for a class label, its name.
        label: the class that it belongs to, empty if none.
        boxes: half-open native boxes in pixels: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1).
        masks: where its mask lies, relative to the manifest: a PNG, a NIfTI, or `FILE.npz#K`, row K of its array `masks`.
            Several are one mask together.
    """

    text: str
    label: str = ""
    boxes: tuple[Box, ...] = ()
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ManifestRow:
    """One image and what is known of it.

    Attributes:
        id: unique in its manifest.
        image: path of a file or folder that `read_image` takes, relative to the manifest or absolute.
        modality: CXR or CT.
        dataset: name in `radglint.datasets.registry`, empty if none.
        patient: no patient is in two splits.
        study: one visit.
        series: one image or reconstruction of it.
        split: train, val, test, or empty.
        view: of a radiograph: PA, AP, LATERAL, or empty.
        findings: section of the report.
        impression: section of the report.
        report: the whole report where its sections are not known apart.
        labels: concept to state; unlabelled concepts are missing.
        phrases: places that a reader marked.
        size_px: native shape, (height, width) or (depth, height, width); None if not known without opening the image.
        extra: everything else that the manifest's line holds, kept as it is.
    """

    id: str
    image: str
    modality: Literal["CXR", "CT"]
    dataset: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    split: Literal["train", "val", "test", ""] = ""
    view: Literal["PA", "AP", "LATERAL", ""] = ""
    findings: str = ""
    impression: str = ""
    report: str = ""
    labels: Mapping[str, LabelState] = field(default_factory=dict)
    phrases: tuple[Phrase, ...] = ()
    size_px: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
