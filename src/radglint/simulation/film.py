"""Radiographs to paint into: real ones, and those reconstructed from a CT and framed as a radiographer frames them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from radglint.image import MedicalImage
from radglint.simulation.anatomy_cxr import LungFields
from radglint.simulation.ct import CtBase
from radglint.simulation.drr import DrrConfig, project_lungs, render_drr
from radglint.simulation.facts import Fact

FILM_PX = 512
"""Longer side of a radiograph that findings are painted into: the scale that the painters' sizes are meant for."""

_SWAP = {"left": "right", "right": "left"}


@dataclass(frozen=True, eq=False)
class Film:
    """A radiograph to paint into: picture, anatomy, patient, and what it shows already.

    Attributes:
        picture: float32 `height width` in [0, 1], bright = dense.
        lungs: its anatomy.
        patient: the patient, for splits.
        facts: real findings that it shows.
        name: which radiograph of the patient.
        labelled: which of "lungs" and "heart" a label map gave; the rest is our own estimate.
    """

    picture: np.ndarray
    lungs: LungFields
    patient: str
    facts: tuple[Fact, ...] = ()
    name: str = ""
    labelled: tuple[str, ...] = ()

    def mirrored(self) -> Film:
        """The mirror image: another body, for which left and right are the picture's as ever."""
        turned = [np.ascontiguousarray(plane[:, ::-1]) for plane in (self.picture, self.lungs.right, self.lungs.left)]
        lungs = LungFields(left=turned[1], right=turned[2], heart=np.ascontiguousarray(self.lungs.heart[:, ::-1]))
        facts = tuple(replace(f, side=_SWAP.get(f.side or "", f.side)) for f in self.facts)  # pyright: ignore[reportArgumentType]
        return replace(self, picture=turned[0], lungs=lungs, facts=facts)


def drr_film(volume: CtBase, patient: str, facts: tuple[Fact, ...], rng: np.random.Generator) -> Film:
    """Reconstruct a radiograph of a CT: stretched a little, from a random distance, in a random display, framed.

    Args:
        volume: the CT, slices as `volume.anatomy.spacing_mm` says.
        patient: goes into the film.
        facts: real findings that the CT shows.
        rng: source of everything random.

    Returns:
        A square film of `FILM_PX` pixels.

    Raises:
        ImageError: the CT shows nothing that attenuates.
    """
    step = volume.anatomy.spacing_mm[0]
    stretch = np.array(volume.anatomy.spacing_mm) * rng.uniform(0.93, 1.07, 3)
    lowest = max(0, int(volume.anatomy.lung_bottom - rng.uniform(10, 40) / step))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = stretch[0], -stretch[1], -stretch[2], 1
    spacing = (float(stretch[0]), float(stretch[1]), float(stretch[2]))
    ct = MedicalImage(np.ascontiguousarray(volume.volume_hu[lowest:]), "CT", "HU", spacing, affine, patient)
    view = DrrConfig(
        size_px=FILM_PX, source_to_detector_mm=float(rng.uniform(1000, 2200)), gap_mm=float(rng.uniform(10, 80)),
        local_contrast=float(rng.uniform(0.2, 0.8)),
    )  # fmt: skip
    lungs = project_lungs(volume.anatomy.labels[lowest:], ct, view)
    return framed(Film(render_drr(ct, view).array, lungs, patient, facts), rng)


def framed(film: Film, rng: np.random.Generator) -> Film:
    """Cut the sides to the lungs with a margin, as a radiographer does, and bring it to a square of `FILM_PX`.

    Args:
        film: with lungs.
        rng: source of the margin.
    """
    columns = np.flatnonzero(film.lungs.both.any(axis=0))
    margin = float(rng.uniform(0.12, 0.25)) * (columns[-1] - columns[0])
    sides = slice(max(0, int(columns[0] - margin)), int(columns[-1] + margin))

    def square(plane: np.ndarray, resample: Image.Resampling) -> np.ndarray:
        cut = np.ascontiguousarray(plane[:, sides], np.float32)
        return np.asarray(Image.fromarray(cut).resize((FILM_PX, FILM_PX), resample))

    parts = (film.lungs.left, film.lungs.right, film.lungs.heart)
    left, right, heart = (square(part, Image.Resampling.NEAREST) > 0.5 for part in parts)
    picture = square(film.picture, Image.Resampling.BILINEAR).clip(0, 1)
    return replace(film, picture=picture, lungs=LungFields(left=left, right=right, heart=heart))
