"""`radglint calibrate`: ask a manifest's images, fit, and write a new checkpoint folder, whole or not at all.

1. manifest --rows_for--> images the model can be asked: one part of it, frontal views
2. images --answer_rows--> raw scores, once each, kept beside the new folder
3. scores, labels --calibrate_scores--> calibration, see `calibrate`
4. all of it --save_checkpoint--> the new folder; weights and prompts as they were
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radglint.calibrate import Source, Wishes, calibrate_scores, cases_of, concepts_of_labels, labels_of
from radglint.calibrate_answers import Answered, answer_rows, side_file
from radglint.calibrate_measures import quality_table
from radglint.checkpoint import CARD, Calibration, Checkpoint, ModalityCalibration, load_checkpoint, save_checkpoint
from radglint.errors import InputError, OutputError
from radglint.hub import from_pretrained
from radglint.manifest import ManifestRow, read_manifest
from radglint.pipeline import Device, GlintAnswerer, Pipeline, choose_device
from radglint.writing import output_errors

ALL = "all"


@dataclass(frozen=True)
class Outcome:
    """What `calibrate` did.

    Attributes:
        folder: the new checkpoint.
        fingerprint: of it.
        answers: the side file, kept: with it another method or goal asks no image again.
        calibrations: modality to its new calibration; only those with cases.
        remarks: what was left out, and why.
    """

    folder: Path
    fingerprint: str
    answers: Path
    calibrations: Mapping[str, ModalityCalibration]
    remarks: tuple[str, ...]

    def to_table(self) -> str:
        """Before and after, by class."""
        parts = {m: (maps.local, maps) for m, maps in self.calibrations.items() if maps.local is not None}
        return quality_table(parts)


def calibrate(
    model: str | os.PathLike[str], manifest: str | os.PathLike[str], out: str | os.PathLike[str], wishes: Wishes, *,
    split: str = "val", name: str | None = None, device: Device = "auto", show_progress: bool = False,
) -> Outcome:  # fmt: skip
    """Calibrate a model on a manifest's labelled images.

    Args:
        model: name, folder or hub id.
        manifest: see `radglint.manifest`.
        out: the checkpoint folder to make; it must not exist, or be empty.
        wishes: what to fit and to promise.
        split: the part of the manifest to use; "all" = every row.
        name: of the new model; by default the old one with "-calibrated".
        device: where the model runs.
        show_progress: a bar on stderr.

    Raises:
        InputError: nothing to calibrate on, a promise that no class can keep, or answers of another model in the way.
        CheckpointError: the model cannot be loaded.
        OutputError: `out` is in the way or cannot be written.
    """
    out = Path(os.path.abspath(os.path.expanduser(out)))
    _check_free(out)
    rows = rows_of_split(read_manifest(manifest), split, manifest)
    checkpoint = from_pretrained(model)
    _check_classes(wishes, checkpoint)
    answerer = GlintAnswerer(checkpoint, choose_device(device))
    where = f"{answerer.device.type}, {str(answerer.dtype).removeprefix('torch.')}"
    rows, remarks = rows_for(rows, checkpoint, manifest)
    labels, left = _labels(rows, checkpoint, answerer)
    remarks += left
    rows = [row for row in rows if set(labels.get(row.modality, {}).values()) & set(labels_of(row))]
    if not rows:
        raise InputError(f"{manifest}: no image has a label that {checkpoint.name} answers: {'; '.join(remarks)}")
    queries = {modality: list(taken) for modality, taken in labels.items()}
    folder = Path(manifest).expanduser().resolve().parent
    answered = answer_rows(
        Pipeline(answerer), rows, queries, folder, side_file(out), where, show_progress=show_progress
    )  # fmt: skip
    remarks += _unreadable(answered, rows, manifest)
    new = {}
    for modality, taken in labels.items():
        mine = [row for row in rows if row.modality == modality]
        cases, uncertain = cases_of(mine, answered, taken)
        source = _source(manifest, split, checkpoint, where, mine, answered)
        maps = checkpoint.calibration.modalities[modality]  # pyright: ignore[reportArgumentType]
        new[modality] = calibrate_scores(cases, maps, wishes, source, uncertain)
    fingerprint = _write(out, checkpoint.folder, name or f"{checkpoint.name}-calibrated", new)
    return Outcome(out, fingerprint, side_file(out), new, tuple(remarks))


def _check_free(out: Path) -> None:
    """Before the work: the folder is not in the way, and the one that it shall lie in is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is in the way; remove it or choose another --out")
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def rows_of_split(rows: Sequence[ManifestRow], split: str, manifest: str | os.PathLike[str]) -> list[ManifestRow]:
    """The rows of one part, or all of them.

    Raises:
        InputError: it has no row.
    """
    kept = [row for row in rows if split == ALL or row.split == split]
    if not kept:
        parts = ", ".join(f"{name or 'none'} ({count})" for name, count in Counter(r.split for r in rows).items())
        raise InputError(f"{manifest}: no row has the split {split!r}; there are {parts}; choose with --split, or all")
    return kept


def rows_for(
    rows: Sequence[ManifestRow], checkpoint: Checkpoint, manifest: str | os.PathLike[str]
) -> tuple[list[ManifestRow], list[str]]:
    """The rows that the model can be asked, and remarks on the others.

    Raises:
        InputError: there is none.
    """
    answers = checkpoint.calibration.modalities
    kept = [row for row in rows if row.modality in answers and row.view != "LATERAL"]
    others = Counter("lateral" if row.modality in answers else row.modality for row in rows if row not in kept)
    remarks = [f"{count} images left out: {kind}, which the model does not answer" for kind, count in others.items()]
    if not kept:
        which = f"{checkpoint.name}, which answers {', '.join(answers)}"
        raise InputError(f"{manifest}: no image for {which}; {remarks[0]}")
    return kept, remarks


def _check_classes(wishes: Wishes, checkpoint: Checkpoint) -> None:
    known = {concept for maps in checkpoint.calibration.modalities.values() for concept in maps.presence}
    wrong = sorted(set(wishes.prevalence) - known - {""})
    if wrong:
        names = ", ".join(sorted(known))
        raise InputError(f"prevalence: {checkpoint.name} does not know {', '.join(wrong)}; it knows {names}")


def _labels(
    rows: Sequence[ManifestRow], checkpoint: Checkpoint, answerer: GlintAnswerer
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Modality to concept to label, only where there is one; and remarks on labels left out."""
    found, remarks = {}, []
    for modality in checkpoint.calibration.modalities:
        names = {label for row in rows if row.modality == modality for label in labels_of(row)}
        maps = checkpoint.calibration.modalities[modality]
        taken, left = concepts_of_labels(sorted(names), maps, checkpoint.prompts)
        asked = answerer.concepts_of(list(taken)) if taken else []
        for concept, as_asked in zip(taken, asked, strict=True):
            if as_asked != concept:  # a bank that lacks the concept's own name
                left[taken[concept]] = f"asked by that name, the model takes it for {as_asked or 'out of scope'}"
        taken = {concept: label for concept, label in taken.items() if label not in left}
        found |= {modality: taken} if taken else {}
        reasons: dict[str, list[str]] = {}
        for label, reason in left.items():
            reasons.setdefault(reason, []).append(label)
        remarks += [f"{modality} labels left out, {reason}: {', '.join(which)}" for reason, which in reasons.items()]
    return found, remarks


def _unreadable(answered: Answered, rows: Sequence[ManifestRow], manifest: str | os.PathLike[str]) -> list[str]:
    count = len(answered.unreadable)
    if not count:
        return []
    first, reason = next(iter(answered.unreadable.items()))
    text = f"{count} of {len(rows)} images could not be read and were left out; the first, {first}: {reason}"
    if count == len(rows):
        raise InputError(f"{manifest}: {text}")
    return [text]


def _source(
    manifest: str | os.PathLike[str], split: str, checkpoint: Checkpoint, device: str, rows: Sequence[ManifestRow],
    answered: Answered,
) -> Source:  # fmt: skip
    with Path(manifest).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    missing = sum(row.id in answered.unreadable for row in rows)
    return Source(
        manifest=Path(manifest).name, manifest_sha256=digest, split="" if split == ALL else split,
        base_name=checkpoint.name, base_fingerprint=checkpoint.fingerprint, device=device,
        num_images=len(rows) - missing, num_unreadable=missing,
    )  # fmt: skip


def _write(out: Path, base: Path, name: str, new: Mapping[str, ModalityCalibration]) -> str:
    """The new checkpoint. The model is loaded afresh: the one that was asked may have been rounded for its device."""
    fresh = load_checkpoint(base)
    fresh.model.config = fresh.model.config.model_copy(update={"name": name})
    maps: dict[Any, ModalityCalibration] = {**fresh.calibration.modalities, **new}
    origin = f"{fresh.calibration.origin}; then locally: {'; '.join(_origin(m, maps) for m, maps in new.items())}"
    calibration = Calibration(modalities=maps, scope_threshold=fresh.calibration.scope_threshold, origin=origin)
    facts = {"base": {"name": fresh.name, "fingerprint": fresh.fingerprint}, "origin": origin}
    return save_checkpoint(
        out, fresh.model, prompts=fresh.prompts, calibration=calibration, quantize=fresh.quantize,
        provenance=fresh.provenance | {"local_calibration": facts}, card=_card(fresh, name, new),
    )  # fmt: skip


def _origin(modality: str, maps: ModalityCalibration) -> str:
    local = maps.local
    assert local is not None
    part = f", split {local.split}" if local.split else ""
    return (
        f"{modality} on {local.num_images} images of {local.manifest}{part} (SHA-256 {local.manifest_sha256[:12]}), "
        f"{local.date}"
    )


def _card(fresh: Checkpoint, name: str, new: Mapping[str, ModalityCalibration]) -> str:
    """What was done here, above the card of the model that it was done to."""
    table = quality_table({m: (maps.local, maps) for m, maps in new.items() if maps.local is not None})
    old = fresh.folder / CARD
    return (
        f"# {name}\n\n{fresh.name} ({fresh.fingerprint}), calibrated locally: "
        f"{'; '.join(_origin(m, maps) for m, maps in new.items())}.\nThe weights are unchanged. Numbers below this "
        f"table are those of the model before.\n\n```text\n{table}\n```\n\n"
        + (old.read_text(encoding="utf-8") if old.is_file() else "")
    )
