"""How an image is looked at: grey windows, radiological views of a CT in any orientation, and colours.

A view is one plane of the native array, turned and flipped but never resampled: the patient's right is on the left of
the picture, the front (or the head) on top. Oblique scans are shown along the array axis nearest to the view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from radglint.geometry import apply_affine, closest_world_axes, obliqueness_deg

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.image import MedicalImage

ViewName = Literal["axial", "coronal", "sagittal", "radiograph"]

OBLIQUE_DEG = 10.0
MASK_RGB = (255, 159, 28)
_LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
# View: world axis across it, down it, along it (0 right, 1 front, 2 head).
_VIEW_AXES: dict[str, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


@dataclass(frozen=True)
class Window:
    """A grey window: `low` and below is black, `high` and above white (HU, or display brightness)."""

    name: str
    low: float
    high: float

    def to_grey(self, values: np.ndarray) -> np.ndarray:
        """Values as uint8 grey of the same shape."""
        scaled = (values.astype(np.float32) - self.low) * (255.0 / (self.high - self.low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    @property
    def label(self) -> str:
        """Name with width and level as on a workstation."""
        if self.name == "display":
            return "as displayed"
        return f"{self.name} window W {self.high - self.low:.0f} L {(self.high + self.low) / 2:.0f} HU"


LUNG = Window("lung", -1350, 150)
SOFT = Window("soft tissue", -160, 240)
BONE = Window("bone", -500, 1300)
DISPLAY = Window("display", 0.0, 1.0)
_SOFT_WORDS = (
    *("effusion", "pleural", "heart", "cardi", "aort", "mediast", "lymph", "pericard", "embol", "thyroid", "liver"),
    *("hepat", "adrenal", "esoph", "spleen", "node", "vessel", "arter", "coronar", "breast", "muscle"),
)
_BONE_WORDS = ("bone", "rib", "fracture", "vertebra", "spine", "sclero", "lytic", "osseous", "skelet")


def window_for(phrase: str, image: MedicalImage) -> Window:
    """The window that suits a phrase: lung unless its words speak of soft tissue or bone; a radiograph as it is."""
    if image.affine is None:
        return DISPLAY
    words = phrase.lower()
    if any(word in words for word in _BONE_WORDS):
        return BONE
    return SOFT if any(word in words for word in _SOFT_WORDS) else LUNG


@dataclass(frozen=True, eq=False)
class View:
    """Which native plane is shown, and how it is turned.

    Attributes:
        name: "axial", "coronal", "sagittal" or "radiograph".
        axis: native array axis across the plane; None in 2D.
        index: position on that axis.
        transpose: the two remaining native axes are swapped first.
        flips: then flipped along rows, columns.
        pixel_mm: size of a shown pixel down and along; (1, 1) if unknown.
        letters: patient sides at the left, right, top and bottom edge, or None where they are unknown.
        position: for example "I 116 mm", where the plane's middle lies; empty in 2D.
        shape: rows and columns as shown.
    """

    name: ViewName
    axis: int | None
    index: int
    transpose: bool
    flips: tuple[bool, bool]
    pixel_mm: tuple[float, float]
    letters: tuple[str, str, str, str] | None
    position: str
    shape: tuple[int, int]

    def turn(self, plane: np.ndarray) -> np.ndarray:
        """A native plane (two axes in their order) as it is shown."""
        turned = plane.T if self.transpose else plane
        return turned[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def grey(self, image: MedicalImage, window: Window) -> np.ndarray:
        """The image in this view, uint8."""
        plane = image.array if self.axis is None else np.take(image.array, self.index, axis=self.axis)
        return window.to_grey(self.turn(plane))

    def probability(self, finding: Finding) -> np.ndarray:
        """The probability map in this view, float32, NaN where unseen."""
        if self.axis is None:
            return self.turn(finding.probability_map())
        return self.turn(finding.probability_plane(self.axis, self.index))

    def shown_position(self, index: tuple[int, ...]) -> tuple[float, float]:
        """Native index to (row, column) in the shown plane."""
        return self._place([float(i) for i in index])

    def shown_box(self, box: tuple[int, ...]) -> tuple[float, float, float, float] | None:
        """A half-open native box to shown edges (top, left, bottom, right); None if the plane does not cut it."""
        half = len(box) // 2
        starts, stops = box[:half], box[half:]
        if self.axis is not None and not starts[self.axis] <= self.index < stops[self.axis]:
            return None
        a = self._place([s - 0.5 for s in starts])
        b = self._place([s - 0.5 for s in stops])
        return min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])

    def _place(self, index: list[float]) -> tuple[float, float]:
        rest = [i for axis, i in enumerate(index) if axis != self.axis]
        row, column = reversed(rest) if self.transpose else rest
        rows, columns = self.shape
        return (rows - 1 - row if self.flips[0] else row, columns - 1 - column if self.flips[1] else column)


def radiograph_view(image: MedicalImage) -> View:
    """A radiograph as the file stores it; its side is not known from the pixels."""
    spacing = image.spacing_mm or (1.0, 1.0)
    pixel_mm = (float(spacing[0]), float(spacing[1]))
    height, width = image.shape
    return View("radiograph", None, 0, False, (False, False), pixel_mm, None, "", (height, width))


def ct_view(image: MedicalImage, name: ViewName, index: int | None = None) -> View:
    """A view of a CT.

    Args:
        image: a CT with an affine.
        name: "axial", "coronal" or "sagittal".
        index: position on the array axis across the view; by default the middle.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    world = closest_world_axes(affine)
    across, down, along = (world.index(w) for w in _VIEW_AXES[name])
    position = image.shape[across] // 2 if index is None else int(index)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    w_down, w_along = _VIEW_AXES[name][1:]
    centre = [(n - 1) / 2 for n in image.shape]
    centre[across] = position
    mm = apply_affine(affine, np.array(centre))[_VIEW_AXES[name][0]]
    letter = _LETTERS[_VIEW_AXES[name][0]][0 if mm >= 0 else 1]
    return View(
        name=name,
        axis=across,
        index=position,
        transpose=down > along,
        flips=(bool(affine[w_down, down] > 0), bool(affine[w_along, along] > 0)),
        pixel_mm=(float(spacing[down]), float(spacing[along])),
        letters=(*_LETTERS[w_along], *_LETTERS[w_down]),
        position=f"{letter} {abs(mm):.0f} mm",
        shape=(image.shape[down], image.shape[along]),
    )


def view_axis(image: MedicalImage, name: ViewName) -> int:
    """The native array axis across a CT view."""
    return ct_view(image, name, 0).axis or 0


def is_oblique(image: MedicalImage) -> bool:
    """Whether a CT's axes lie more than 10 degrees off the patient's."""
    return image.affine is not None and obliqueness_deg(image.affine) > OBLIQUE_DEG


def colour_scale() -> np.ndarray:
    """256 sRGB colours for probability 0 to 1, uint8 (256, 3).

    Even in lightness (so it also reads in grey and with any colour blindness), from deep violet over red to pale
    yellow: OKLab lightness rises in a straight line from 0.22 to 0.95 while the hue turns from 300 to 110 degrees.
    Every colour lies inside sRGB, so nothing is clipped.
    """
    t = np.linspace(0.0, 1.0, 256)
    hue = np.radians(300.0 + 170.0 * t)
    chroma = 0.05 + 0.09 * np.sin(np.pi * t)
    lab = np.stack([0.22 + 0.73 * t, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return np.rint(255 * _oklab_to_srgb(lab)).astype(np.uint8)


def _oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab (Ottosson 2020) to sRGB in [0, 1], clipped."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
