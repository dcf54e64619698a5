"""What is true of an image: the state of each class of a label set, and where its findings are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow, Phrase
from radglint.mask_files import read_mask_file, split_reference
from radglint.simulation.ct import CT_CONCEPTS
from radglint.simulation.entailment import holds_for
from radglint.simulation.facts import Fact
from radglint.simulation.radiograph import CONCEPTS

Side = Literal["left", "right"]
_STATE: dict[str, LabelState] = {"holds": "present", "fails": "absent"}


@dataclass(frozen=True)
class Place:
    """Where a finding is, on the native grid.

    Attributes:
        mask: bool, of the image's shape: boxes and masks together.
        boxes: half-open, as the reader drew them; empty for masks.
    """

    mask: np.ndarray
    boxes: tuple[tuple[int, ...], ...]


def facts_of(row: ManifestRow, key: str = "facts") -> list[Fact] | None:
    """Facts of a simulated case, or those `hidden` from its view; None of any other row."""
    if "facts" not in row.extra:
        return None
    return [Fact(f["concept"], f["side"], f["zone"], f["size"]) for f in row.extra.get(key, ())]


def with_simulated_truth(row: ManifestRow) -> ManifestRow:
    """The row of a simulated case with the labels and places that its facts mean; any other row as it is.

    A concept that the facts do not decide, such as a mass beside a nodule of unknown size, or that only another view of
    the study shows, stays unlabelled.
    """
    facts = facts_of(row)
    if facts is None:
        return row
    concepts = CT_CONCEPTS if row.modality == "CT" else CONCEPTS
    hidden = facts_of(row, "hidden") or ()
    verdicts = {concept: holds_for(Fact(concept), facts, hidden) for concept in concepts}
    labels = {concept: _STATE[v] for concept, v in verdicts.items() if v in _STATE}
    places = [_simulated_place(row, c) for c, state in labels.items() if state == "present"]
    return replace(row, labels=labels, phrases=tuple(place for place in places if place is not None))


def _simulated_place(row: ManifestRow, concept: str) -> Phrase | None:
    """All of a concept; None where one of its facts has no mask."""
    numbers = [fact["mask"] for fact in row.extra["facts"] if fact["concept"] == concept]
    if not numbers or None in numbers:
        return None
    masks = tuple(f"{row.extra['masks']}#{k}" for k in numbers)
    return Phrase(concept, label=concept, masks=masks)


def side_of(row: ManifestRow, label: str) -> Side | None:
    """The side that a class has in all of its facts or marked phrases, if that is left or right."""
    facts = facts_of(row)
    if facts is not None:
        sides = {fact.side for fact in facts if fact.concept == label}
    else:
        sides = {_said_side(phrase.text) for phrase in row.phrases if phrase.label == label}
    return next(iter(sides)) if sides in ({"left"}, {"right"}) else None  # pyright: ignore[reportReturnType]


def _said_side(text: str) -> str | None:
    words = set(text.lower().replace("-", " ").split())
    named = words & {"left", "right"}
    return next(iter(named)) if len(named) == 1 and "bilateral" not in words else None


def place_of_class(row: ManifestRow, label: str, folder: Path, shape: tuple[int, ...]) -> Place | None:
    """Where a class is; None if no reader marked it.

    Args:
        row: of the manifest.
        label: a manifest's label name.
        folder: of the manifest, against which masks are named.
        shape: of the native image.

    Raises:
        InputError: a box is outside the image, or a mask is missing or of another shape.
    """
    phrases = [phrase for phrase in row.phrases if phrase.label == label and (phrase.boxes or phrase.masks)]
    return place_of_phrases(row.id, phrases, folder, shape) if phrases else None


def place_of_phrases(name: str, phrases: Sequence[Phrase], folder: Path, shape: tuple[int, ...]) -> Place:
    """Everything that some phrases mark, as one place.

    Raises:
        InputError: as there.
    """
    mask = np.zeros(shape, dtype=bool)
    for phrase in phrases:
        for reference in phrase.masks:
            mask |= read_mask(folder, reference, shape, name)
    boxes = tuple(box for phrase in phrases for box in phrase.boxes)
    for box in boxes:
        mask[_box_slices(box, shape, name)] = True
    return Place(mask, boxes if not any(phrase.masks for phrase in phrases) else ())


def _box_slices(box: Sequence[int], shape: tuple[int, ...], name: str) -> tuple[slice, ...]:
    ndim = len(shape)
    low, high = box[:ndim], box[ndim:]
    if len(box) != 2 * ndim or any(not 0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True)):
        raise InputError(
            f"{name}: box {tuple(box)} does not lie inside the image of shape {shape}; correct the manifest"
        )
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def read_mask(folder: Path, reference: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """One stored mask, bool on the native grid.

    Args:
        folder: of the manifest.
        reference: FILE.png, FILE.nii.gz or FILE.npz#K.
        shape: of the native image.
        name: of the row, for errors.

    Raises:
        InputError: it is missing, damaged, or of another shape.
    """
    path, number = split_reference(reference)
    stored = read_mask_file(folder / path)
    if number >= len(stored.masks):
        raise InputError(f"{name}: mask {reference}: {path} holds {len(stored.masks)} masks; correct the number")
    mask = stored.masks[number]
    if mask.shape != shape:
        raise InputError(f"{name}: mask {reference} has shape {mask.shape}, the image {shape}; it must be on its grid")
    return mask
