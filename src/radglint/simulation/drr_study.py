"""Studies: several reconstructed radiographs of one body, with findings that were put into it in 3D.

A finding is painted into the CT in HU, as for `simulate ct`; then each view is rendered of that one body, and each 3D
mask is projected into each view. All images of a study have one report and one list of facts:

* a view has a mask of a finding only where it shows it: the projection is large enough (`LEAST_AREA`) and the finding
  changes the film there (`LEAST_CONTRAST`). Else the fact is one of those that are hidden in that view.
* a finding that none of the views asked for shows is taken out of the body again, so that facts and report are true of
  body and films; so the same plan with other views may have other findings.
* concepts that only a CT report states are not drawn at all (`CONCEPTS`: no emphysema), and what is denied is what a
  radiograph's report may deny.

A report states the side of a finding as ever, though a lateral alone does not show it. The bodies are those of CT: they
lie on their backs, so fluid collects behind and free air in front, as on a film taken lying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from radglint.errors import ImageError
from radglint.image import MedicalImage
from radglint.simulation import radiograph
from radglint.simulation.anatomy_cxr import LungFields
from radglint.simulation.canvas import Canvas, resize
from radglint.simulation.case import Kind, Plan, SimulatedCase, VolumeSource, write_report
from radglint.simulation.ct import CT_CONCEPTS, CtBase, SimulatedVolume, draw_volume_facts, make_slab
from radglint.simulation.ct_scene import Lesion
from radglint.simulation.drr import (
    VIEWS,
    DrrConfig,
    View,
    display,
    line_integrals,
    patient_mask,
    project_lungs,
    project_values,
)
from radglint.simulation.facts import Fact
from radglint.simulation.film import FILM_PX
from radglint.simulation.subtlety import subtlety_cxr

CONCEPTS: tuple[str, ...] = tuple(c for c in CT_CONCEPTS if c in radiograph.CONCEPTS)
"""Findings of a CT that a radiograph shows as well."""
LEAST_AREA, LEAST_CONTRAST = 20 / 512**2, 0.02
"""A mask's least area as a share of the square of the film's longer side; the least mean change of the film in it as a
share of soft tissue minus lung."""
_DISTANCE_MM = {"PA": (1500.0, 2200.0), "AP": (1000.0, 1500.0), "LL": (1500.0, 2200.0)}
_MARGIN = {"PA": (0.12, 0.25), "AP": (0.12, 0.25), "LL": (0.3, 0.5)}  # beside the lungs, as a share of their width
_TURN_DEG = 4.0  # standard deviation; most patients stand a little turned
_DEPTH_STEP_MM = 4.0  # planes so near together are magnified alike, to a third of a pixel at the film's border
_LEAST_PATH_MM, _PATH_SHARE = 2.0, 0.25  # a ray in the mask runs so far inside, and such a share of the longest
_BESIDE_LUNGS_MM = ((10.0, 40.0), (30.0, 60.0))  # of the body below and above the lungs that is on the film


@dataclass(frozen=True, eq=False)
class Body:
    """A body with findings.

    Attributes:
        made: with findings.
        ct: the same as a CT in HU, air outside the patient.
        changes_per_mm: change of the attenuation that is each finding, 1/mm, of the CT's shape.
    """

    made: SimulatedVolume
    ct: MedicalImage
    changes_per_mm: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Projection:
    """A radiograph of a body, framed.

    Attributes:
        picture: float32 `height width` in [0, 1], bright = dense.
        lungs: its anatomy.
        masks: one bool array per finding of the body.
        contrasts: how much each finding changes the film inside its mask; see `radiograph.Simulated`.
    """

    picture: np.ndarray
    lungs: LungFields
    masks: tuple[np.ndarray, ...]
    contrasts: tuple[float, ...]

    @property
    def shown(self) -> tuple[bool, ...]:
        """Which findings are to be seen."""
        least = LEAST_AREA * max(self.picture.shape) ** 2
        rows = zip(self.masks, self.contrasts, strict=True)
        return tuple(bool(mask.sum() >= least and contrast >= LEAST_CONTRAST) for mask, contrast in rows)


@dataclass(frozen=True, eq=False)
class StudySource:
    """CT volumes of which studies are made.

    Attributes:
        volumes: the CT, and the lesions to blend in.
        views: which radiographs a study has, each once.
        kind: "drr".
        size_px: pixels along the longer side of a film.
    """

    volumes: VolumeSource
    views: Sequence[View]
    kind: Kind = "drr"
    size_px: int = FILM_PX

    def describe(self) -> list[dict[str, str]]:
        """Name, patient and a digest of each base, in order."""
        return self.volumes.describe()

    def options(self) -> dict[str, Any]:
        """The views, their size, and the lesions if there are any."""
        return {"views": list(self.views), "size_px": self.size_px, **self.volumes.options()}

    def make_study(self, plan: Plan) -> list[SimulatedCase]:
        """Make the radiographs of one study, in the order of `views`.

        Raises:
            ImageError: a view shows nothing that attenuates, or no lungs.
        """
        rng = plan.body()
        drawn = int(rng.integers(len(self.volumes.volumes)))
        number = drawn if plan.base is None else plan.base
        base, patient = self.volumes.volumes[number], self.volumes.patients[number]
        lesions = [lesion for lesion in self.volumes.lesions if lesion.patient != patient]
        body, films = _visible(base, plan, int(rng.integers(2**62)), lesions, self.views, self.size_px)
        blended = body.made.lesions if self.volumes.lesions else None
        return _cases(plan, body.made.facts, films, self.views, blended, (base.name, patient, body.made.distractors))


def _visible(
    base: CtBase, plan: Plan, seed: int, lesions: Sequence[Lesion], views: Sequence[View], size_px: int
) -> tuple[Body, list[Projection]]:
    """A body and its films, without the findings that no film shows."""
    painter = plan.painter()
    wanted = [fact for fact in draw_volume_facts(painter) if fact.concept in CONCEPTS]
    state = painter.bit_generator.state

    def paint(facts: Sequence[Fact]) -> SimulatedVolume:
        painter.bit_generator.state = state
        rng = np.random.default_rng(seed)
        return make_slab(base, rng, None, facts=facts, painter=painter, lesions=lesions, hard=True)

    bare = paint(())
    while True:
        body = make_body(base, paint(wanted) if wanted else bare, bare, np.random.default_rng([seed, 0]))
        films = [project(body, v, np.random.default_rng([seed, 1 + VIEWS.index(v)]), size_px) for v in views]
        unseen = [f for k, f in enumerate(body.made.facts) if not any(film.shown[k] for film in films)]
        if not unseen:
            return body, films
        wanted = [fact for fact in wanted if fact not in unseen]


def make_body(base: CtBase, made: SimulatedVolume, bare: SimulatedVolume, rng: np.random.Generator) -> Body:
    """Cut a CT to the lungs with a little more, and stretch it.

    Args:
        base: what it was made of.
        made: all slices of it, with findings.
        bare: the same without findings.
        rng: source of what is cut and how it is stretched.
    """
    kept = _kept_slices(base, rng)
    stretch = np.array(base.anatomy.spacing_mm) * rng.uniform(0.93, 1.07, 3)
    cut = replace(
        made, volume_hu=np.ascontiguousarray(made.volume_hu[kept]), labels=made.labels[kept],
        masks=tuple(mask[kept] for mask in made.masks),
    )  # fmt: skip
    change = _attenuation(cut.volume_hu) - _attenuation(bare.volume_hu[kept])
    no_table = np.where(patient_mask(cut.volume_hu, stretch), cut.volume_hu, np.float32(-1000))
    return Body(cut, _as_ct(no_table, stretch, base.name), tuple(change * mask for mask in cut.masks))


def _kept_slices(base: CtBase, rng: np.random.Generator) -> slice:
    """The lungs and a little more."""
    below, above = (float(rng.uniform(*span)) / base.anatomy.spacing_mm[0] for span in _BESIDE_LUNGS_MM)
    return slice(max(0, int(base.anatomy.lung_bottom - below)), int(base.anatomy.lung_top + above) + 1)


def _as_ct(volume_hu: np.ndarray, spacing_mm: np.ndarray, name: str) -> MedicalImage:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2], 1
    steps = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    return MedicalImage(volume_hu, "CT", "HU", steps, affine, name)


def _attenuation(volume_hu: np.ndarray) -> np.ndarray:
    """As `render_drr` takes it, 1/mm."""
    return np.clip(1 + volume_hu / np.float32(1000), 0, None) * np.float32(DrrConfig.water_per_mm)


def project(body: Body, view: View, rng: np.random.Generator, size_px: int = FILM_PX) -> Projection:
    """Render one view of a body from a random distance, a little turned, in a random exposure, and frame it.

    Args:
        body: with findings.
        view: which radiograph.
        rng: source of everything random.
        size_px: pixels along the film's longer side.

    Raises:
        ImageError: the view shows nothing that attenuates, or no lungs.
    """
    settings = DrrConfig(
        size_px=size_px, depth_step_mm=_DEPTH_STEP_MM, source_to_detector_mm=float(rng.uniform(*_DISTANCE_MM[view])),
        gap_mm=float(rng.uniform(10, 80)), local_contrast=float(rng.uniform(0.2, 0.8)), view=view,
        turn_deg=float(np.clip(rng.normal(0, _TURN_DEG), -10, 10)), remove_table=False,
    )  # fmt: skip
    line, _ = line_integrals(body.ct, settings)
    picture = display(line, settings)
    lungs = project_lungs(body.made.labels, body.ct, settings)
    if line.max() <= 0.05 or not lungs.both.any():
        raise ImageError(f"{body.ct.path}: its {view} radiograph shows no lungs; expected a CT of a whole chest, in HU")
    masks = tuple(_long_paths(project_values(mask, body.ct, settings)) for mask in body.made.masks)
    scale = Canvas(picture, lungs)
    contrasts = []
    for mask, change in zip(masks, body.changes_per_mm, strict=True):
        without = display(line - project_values(change, body.ct, settings), settings)
        contrasts.append(_contrast(picture - without, mask) / (scale.tissue - scale.air))
    frame = _frame(lungs, float(rng.uniform(*_MARGIN[view])))
    moved = LungFields(*(_scaled_mask(part[:, frame], size_px) for part in (lungs.left, lungs.right, lungs.heart)))
    film = radiograph.vary_exposure(_scaled(picture[:, frame], size_px), rng)
    return Projection(film, moved, tuple(_scaled_mask(mask[:, frame], size_px) for mask in masks), tuple(contrasts))


def _long_paths(paths_mm: np.ndarray) -> np.ndarray:
    """Where rays run far enough inside: not the faint rim of what is thick."""
    inside = paths_mm[paths_mm > 0]
    longest = float(np.percentile(inside, 98)) if inside.size else 0.0
    return paths_mm >= max(_LEAST_PATH_MM, _PATH_SHARE * longest)


def _contrast(change: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute change inside the mask, beyond what moves everywhere (the display's window)."""
    if not mask.any():
        return 0.0
    return float(np.abs(change[mask] - np.median(change[~mask])).mean())


def _frame(lungs: LungFields, margin: float) -> slice:
    """Columns of the lungs with a margin."""
    columns = np.flatnonzero(lungs.both.any(axis=0))
    beside = margin * (columns[-1] - columns[0])
    return slice(max(0, int(columns[0] - beside)), int(columns[-1] + beside) + 1)


def _scaled(plane: np.ndarray, size_px: int) -> np.ndarray:
    """A plane with so many pixels on its longer side."""
    scale = size_px / max(plane.shape)
    return resize(np.ascontiguousarray(plane, np.float32), [max(16, round(n * scale)) for n in plane.shape])


def _scaled_mask(mask: np.ndarray, size_px: int) -> np.ndarray:
    return _scaled(mask, size_px) > 0.5


def _cases(
    plan: Plan, facts: Sequence[Fact], films: Sequence[Projection], views: Sequence[View],
    lesions: tuple[Lesion | None, ...] | None, about: tuple[str, str, tuple[str, ...]],
) -> list[SimulatedCase]:  # fmt: skip
    """The images of a study under one report; `about` is base, patient and distractors."""
    hard = [_subtleties(facts, film) for film in films]
    easiest = [min(h[k] for h, film in zip(hard, films, strict=True) if film.shown[k]) for k in range(len(facts))]
    report = write_report(plan, facts, easiest, radiograph.CONCEPTS)
    base, patient, distractors = about
    return [
        SimulatedCase(
            np.rint(film.picture * 65535).astype(np.uint16), None, tuple(facts),
            tuple(compress(film.masks, film.shown)), tuple(compress(values, film.shown)), report, distractors, base,
            patient, lesions=lesions, view=view, shown=film.shown,
        )
        for film, values, view in zip(films, hard, views, strict=True)
    ]  # fmt: skip


def _subtleties(facts: Sequence[Fact], film: Projection) -> list[float]:
    """Of each finding in one view."""
    area = max(int(film.lungs.both.sum()), 1)
    return [
        subtlety_cxr(fact.concept, contrast, float(mask.sum()) / area)
        for fact, contrast, mask in zip(facts, film.contrasts, film.masks, strict=True)
    ]
