"""Hard distractors of a CT: a vessel seen end on, a round shadow on the skin, a calcified node in the mediastinum.

No report mentions them, and they have no mask.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from radglint.simulation.anatomy_ct import BODY, OUTSIDE
from radglint.simulation.ct_scene import Scene, soft_step


def add_hard_distractors(scene: Scene) -> list[str]:
    """Paint some of them, each with its own chance.

    Args:
        scene: changed in place; its generator decides.

    Returns:
        Names of those painted, of `HARD_DISTRACTORS`.
    """
    wanted = [name for name, (chance, _) in HARD_DISTRACTORS.items() if scene.rng.random() < chance]
    return [name for name in wanted if HARD_DISTRACTORS[name][1](scene)]


def _vessel_end_on(scene: Scene) -> bool:
    """A vessel of 3 to 6 mm that runs steeply through the slices for 25 to 60 mm: round in each of them."""
    rng = scene.rng
    middle = int(rng.integers(len(scene.hu)))
    depth = np.asarray(ndimage.distance_transform_edt(scene.lung("bilateral")[middle])) * scene.spacing_mm[1]
    places = np.argwhere((depth > 8) & (depth < 30))
    if not len(places):
        return False
    start = places[rng.integers(len(places))]
    reach, radius = rng.uniform(12, 30), rng.uniform(1.5, 3.0)
    lean = rng.uniform(-0.5, 0.5, 2)
    for index in range(len(scene.hu)):
        height = (index - middle) * scene.spacing_mm[0]
        taper = radius * float(np.clip(1.3 - abs(height) / reach, 0, 1))
        if taper <= 0:
            continue
        centre = start + lean * height / scene.spacing_mm[1:]
        _disc(scene, index, centre, taper, 45, scene.lung("bilateral")[index])
    return True


def _disc(scene: Scene, index: int, centre: np.ndarray, radius_mm: float, hu: float, room: np.ndarray) -> None:
    """A round of tissue in one slice."""
    reach = radius_mm + 3
    spans = [
        slice(max(0, int(c - reach / s)), max(0, min(n, int(c + reach / s) + 2)))
        for c, s, n in zip(centre, scene.spacing_mm[1:], scene.hu.shape[1:], strict=True)
    ]
    rows, columns = np.mgrid[spans[0], spans[1]].astype(np.float32)
    away = np.hypot((rows - centre[0]) * scene.spacing_mm[1], (columns - centre[1]) * scene.spacing_mm[2])
    where = (slice(index, index + 1), *spans)
    scene.fill((soft_step(radius_mm - away, 0.8) * room[spans[0], spans[1]])[None], hu, where)


def _ball(scene: Scene, centre: np.ndarray, radius_mm: float, hu: float, room: np.ndarray) -> None:
    """A ball of tissue."""
    for index in range(len(scene.hu)):
        inside = radius_mm**2 - ((index - centre[0]) * scene.spacing_mm[0]) ** 2
        if inside > 0:
            _disc(scene, index, centre[1:], float(np.sqrt(inside)), hu, room[index])


def _skin_lump(scene: Scene) -> bool:
    """A nipple, wart or electrode: a lump of 6 to 14 mm on the skin at the front."""
    index = int(scene.rng.integers(len(scene.hu)))
    body = scene.labels[index] != OUTSIDE
    columns = np.nonzero(body.any(axis=0))[0]
    if columns.size < 40:
        return False
    quarter = columns.size // 4
    column = int(scene.rng.choice(columns[quarter:-quarter]))
    row = int(np.nonzero(body[:, column])[0][0])
    radius = float(scene.rng.uniform(3, 7))
    hu = 600.0 if scene.rng.random() < 0.3 else 20.0
    _ball(scene, np.array([index, row, column], float), radius, hu, np.ones(scene.hu.shape, bool))
    return True


def _calcified_node(scene: Scene) -> bool:
    """A dense node of 5 to 10 mm in the soft tissue between the lungs."""
    both = scene.lung("bilateral")
    index = int(scene.rng.integers(len(scene.hu)))
    columns = np.nonzero(both[index].any(axis=0))[0]
    if not columns.size:
        return False
    middle = (columns[0] + columns[-1]) / 2
    near = np.abs(np.arange(scene.hu.shape[2]) - middle) * scene.spacing_mm[2] < 35
    rows = both[index].any(axis=1)
    places = np.argwhere((scene.labels[index] == BODY) & near[None] & rows[:, None])
    if not len(places):
        return False
    centre = np.array([index, *places[scene.rng.integers(len(places))]], float)
    _ball(scene, centre, float(scene.rng.uniform(2.5, 5)), float(scene.rng.uniform(250, 800)), ~both)
    return True


HARD_DISTRACTORS: dict[str, tuple[float, Callable[[Scene], bool]]] = {
    "vessel end-on": (0.3, _vessel_end_on),
    "lump on the skin": (0.15, _skin_lump),
    "calcified lymph node": (0.12, _calcified_node),
}
"""Chance and painter of each; a painter says whether it found a place."""
