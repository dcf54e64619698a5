"""One simulated case: an image with its facts, masks, subtleties and report. What is random depends on seed and index.

Cases 2k and 2k + 1 are twins: one body (base, geometry, exposure, noise) with other findings, so that a model cannot
tell the finding by the body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from radglint.simulation.ct import CT_CONCEPTS, CtBase, draw_volume_facts, make_slab
from radglint.simulation.ct_scene import Lesion
from radglint.simulation.drr import View
from radglint.simulation.facts import Fact
from radglint.simulation.film import Film
from radglint.simulation.radiograph import CONCEPTS, FULL_WEIGHTS, make_image
from radglint.simulation.report_text import Report, write_full_report
from radglint.simulation.subtlety import subtlety_ct, subtlety_cxr

Kind = Literal["cxr", "ct", "drr"]
MIRROR_SHARE = 0.2
_BODY, _PAINT, _WORDS = range(3)  # one random stream each


@dataclass(frozen=True)
class Plan:
    """What decides a case.

    Attributes:
        name: file name without suffix.
        seed: of the whole run.
        index: of the case.
        base: which base; drawn if None.
        split: "" or the split of a benchmark.
        held_out: write in words that training never reads, and without mirror images.
    """

    name: str
    seed: int
    index: int
    base: int | None = None
    split: str = ""
    held_out: bool = False

    def body(self) -> np.random.Generator:
        """The generator of the body."""
        return self.stream(_BODY)

    def painter(self) -> np.random.Generator:
        """The generator of the findings."""
        return self.stream(_PAINT)

    def stream(self, kind: int) -> np.random.Generator:
        """The generator of the body, the painter or the words; twins share a body."""
        number = self.index // 2 if kind == _BODY and self.base is None else self.index
        return np.random.default_rng([self.seed, kind, number])


@dataclass(frozen=True, eq=False)
class SimulatedCase:
    """An image and everything that is known of it.

    Attributes:
        pixels: uint16 `height width` (0 to 65535, bright = dense), or int16 HU `slices height width`.
        spacing_mm: of a CT: slice, row and column step; None for a radiograph.
        facts: painted findings first, then real ones of the base.
        masks: one bool array per painted finding.
        subtlety: one number per painted finding; see `subtlety`.
        report: what a radiologist would write.
        distractors: hard distractors by name.
        base: name of the base.
        patient: of the base.
        is_mirrored: whether the base was turned left to right.
        lesions: the real lesion behind each painted finding, None for a made one; None if there were none to take.
        view: of a radiograph that is one of a study.
        shown: whether this image shows each painted finding; None if it shows all. `masks` and `subtlety` are of those.
    """

    pixels: np.ndarray
    spacing_mm: tuple[float, float, float] | None
    facts: tuple[Fact, ...]
    masks: tuple[np.ndarray, ...]
    subtlety: tuple[float, ...]
    report: Report
    distractors: tuple[str, ...]
    base: str
    patient: str
    is_mirrored: bool = False
    lesions: tuple[Lesion | None, ...] | None = None
    view: View | None = None
    shown: tuple[bool, ...] | None = None


class Source(Protocol):
    """Bases that cases are made from."""

    @property
    def kind(self) -> Kind:
        """Which images come out."""
        ...

    def describe(self) -> list[dict[str, str]]:
        """Name, patient and a digest of each base, in order."""
        ...

    def options(self) -> dict[str, Any]:
        """What else decides the cases; empty where nothing but the bases does."""
        ...

    def make(self, plan: Plan) -> SimulatedCase:
        """Make one case."""
        ...


@dataclass(frozen=True, eq=False)
class FilmSource:
    """Radiographs, real or reconstructed.

    Attributes:
        films: at least one.
        kind: "cxr" or "drr".
    """

    films: Sequence[Film]
    kind: Kind = "cxr"

    def describe(self) -> list[dict[str, str]]:
        """Name, patient and a digest of each base, in order."""
        return [
            {"name": f.name, "patient": f.patient, "digest": _digest(f.picture, 255)}
            | _labels_digest(f.labelled, f.lungs.left + 2 * f.lungs.right + 4 * f.lungs.heart)
            for f in self.films
        ]

    def options(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def make(self, plan: Plan) -> SimulatedCase:
        """Make one radiograph."""
        body = plan.stream(_BODY)
        drawn = int(body.integers(len(self.films)))
        film = self.films[drawn if plan.base is None else plan.base]
        is_mirrored = not plan.split and bool(body.random() < MIRROR_SHARE)
        film = film.mirrored() if is_mirrored else film
        made = make_image(film.picture, film.lungs, body, plan.stream(_PAINT), weights=FULL_WEIGHTS, hard=True)
        area = max(int(made.lungs.both.sum()), 1)
        hard = tuple(
            subtlety_cxr(fact.concept, contrast, float(mask.sum()) / area)
            for fact, contrast, mask in zip(made.facts, made.contrasts, made.masks, strict=True)
        )
        pixels = np.rint(made.image * 65535).astype(np.uint16)
        facts = (*made.facts, *film.facts)
        report = write_report(plan, facts, hard, CONCEPTS)
        return SimulatedCase(
            pixels, None, facts, tuple(made.masks), hard, report, tuple(made.distractors), film.name, film.patient,
            is_mirrored,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class VolumeSource:
    """CT volumes.

    Attributes:
        volumes: at least one; the name is that of the base.
        patients: one per volume.
        kind: "ct".
        lesions: real nodules and masses to blend in, never those of the base's own patient.
    """

    volumes: Sequence[CtBase]
    patients: Sequence[str]
    kind: Kind = "ct"
    lesions: Sequence[Lesion] = ()

    def describe(self) -> list[dict[str, str]]:
        """Name, patient and a digest of each base, in order."""
        rows = zip(self.volumes, self.patients, strict=True)
        return [
            {"name": v.name, "patient": p, "digest": _digest(v.volume_hu, 0.25)}
            | _labels_digest(v.labelled, v.anatomy.labels)
            for v, p in rows
        ]

    def options(self) -> dict[str, Any]:
        """The lesions, if there are any."""
        rows = [
            {"name": x.name, "patient": x.patient, "digest": _digest(np.where(x.inside, x.hu, -9999), 0.25)}
            for x in self.lesions
        ]
        return {"lesions": rows} if rows else {}

    def make(self, plan: Plan) -> SimulatedCase:
        """Make one volume that covers the lungs."""
        body, painter = plan.stream(_BODY), plan.stream(_PAINT)
        drawn = int(body.integers(len(self.volumes)))
        number = drawn if plan.base is None else plan.base
        base = self.volumes[number]
        made = make_slab(
            base, body, lung_slices(base), facts=draw_volume_facts(painter), painter=painter, hard=True,
            lesions=[lesion for lesion in self.lesions if lesion.patient != self.patients[number]],
        )  # fmt: skip
        spacing = base.anatomy.spacing_mm
        voxel_ml = float(np.prod(spacing)) / 1000
        hard = tuple(
            subtlety_ct(fact.concept, contrast, float(mask.sum()) * voxel_ml)
            for fact, contrast, mask in zip(made.facts, made.contrasts_hu, made.masks, strict=True)
        )
        pixels = np.rint(made.volume_hu).astype(np.int16)
        report = write_report(plan, made.facts, hard, CT_CONCEPTS)
        return SimulatedCase(
            pixels, spacing, made.facts, made.masks, hard, report, made.distractors, base.name, self.patients[number],
            lesions=made.lesions if self.lesions else None,
        )  # fmt: skip


def lung_slices(base: CtBase) -> int:
    """How many slices a volume of this base gets: the lungs and a tenth more, if the scan has them."""
    covered = base.anatomy.lung_top - base.anatomy.lung_bottom
    return max(3, min(len(base.volume_hu), int(1.1 * covered)))


def write_report(plan: Plan, facts: Sequence[Fact], hard: Sequence[float], concepts: Sequence[str]) -> Report:
    """The report of a case; facts beyond those of `hard` are real and easy to see."""
    known = (*hard, *(0.0 for _ in range(len(facts) - len(hard))))
    return write_full_report(
        facts, plan.stream(_WORDS), subtlety=known, concepts=concepts, held_out=plan.held_out
    )  # fmt: skip


def _digest(array: np.ndarray, levels: float) -> str:
    """A short digest of a base, so that another file under the same name is noticed."""
    return hashlib.sha256(np.rint(array * levels).astype(np.int32).tobytes()).hexdigest()[:16]


def _labels_digest(labelled: Sequence[str], labels: np.ndarray) -> dict[str, str]:
    """A digest of the anatomy where a label map gave it."""
    return {"labels": _digest(labels, 1)} if labelled else {}
