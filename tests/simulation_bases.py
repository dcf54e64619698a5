"""Small bases for the tests of the simulator: a coarse phantom, and radiographs reconstructed from it."""

from __future__ import annotations

from functools import cache

import numpy as np

from radglint.simulation.case import FilmSource, VolumeSource
from radglint.simulation.ct import CtBase
from radglint.simulation.phantom import make_phantom
from radglint.simulation.sources import drr_source


@cache
def coarse_phantom() -> CtBase:
    """One body of 5 x 2 x 2 mm voxels."""
    return make_phantom(np.random.default_rng(3), "phantom0", step_mm=5.0, pixel_mm=2.0)


@cache
def volumes() -> VolumeSource:
    """The body as a source of CT."""
    return VolumeSource([coarse_phantom()], ["phantom0"])


@cache
def films() -> FilmSource:
    """Two views of the body."""
    return drr_source(volumes(), 5, views=2)
