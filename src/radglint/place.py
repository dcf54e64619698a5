"""Where in the chest a patch lies, and where a query wants it: in the lungs, on a side, at a height.

Sentences alone hardly teach a gate left from right, and no report says that a lung finding is not in the abdomen.
Anatomy does: a linear field over the patches gives the probability of lung and of either side, and a gate that is
asked for a lung finding, or for one of a side, opens there only. So a finding of the other side is not there, for the
score as well as for the mask.

A finding of the heart as a whole shows at its borders only, so no patch tells where it is. The gate says whether, and
the map is the heart itself, which on a radiograph is what lies between the lungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from radglint.encoders.mixer import position_code
from radglint.place_words import Side, Zone, read_side, read_zone

PLACES = ("lung", "right", "left", "upper", "mid", "lower", "heart")
"""Rows of a place field."""
_NUM_FREQUENCIES = 4
_LUNG_ENDS = (0.02, 0.98)  # quantiles of the lung's mass along its height that count as top and bottom
_ZONE_SOFTNESS = 0.06  # of the lung's height, at the border of two thirds
LUNG_MARGIN = 3.0  # the field leaves dense lung alone: its edge is where aerated lung is 1 to 20
_HEART_ENDS = (0.42, 1.1)  # of the lungs' height, between which what lies between the lungs is heart
_LEAST = 1e-6  # probability of heart that the logarithm is still taken of


@dataclass(frozen=True)
class Place:
    """Where a phrase wants its finding.

    Attributes:
        in_lungs: the finding lies in air-filled lung and nowhere else; without it the zone is ignored.
        side: patient side; "bilateral" is no side.
        zone: third of the lung's height.
    """

    in_lungs: bool = False
    side: Side | None = None
    zone: Zone | None = None


def place_of(phrase: str, in_lungs: bool) -> Place:
    """The place that a phrase names.

    Args:
        phrase: in words, for example "mass in the left upper lobe".
        in_lungs: whether its finding lies in the lungs only.
    """
    return Place(in_lungs, read_side(phrase), read_zone(phrase))


class PlaceField(nn.Module):
    """Log-probability of each place for each patch, linear in the trunk's tokens and the position in the picture.

    Fitted once, to lungs that were found without anybody's outline of a disease, and then left alone.

    Args:
        embed_dim: width of the trunk's tokens.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(embed_dim + 4 * _NUM_FREQUENCIES, 2)  # lung or not, left or right
        nn.init.zeros_(self.head.weight)  # until it is fitted it says the same of every patch
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(False)

    def features(self, tokens: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """What the field is linear in: `batch depth patches embed` to `batch depth patches (embed + code)`, float32."""
        code = position_code(grid[-2], grid[-1], _NUM_FREQUENCIES, tokens.device)
        return torch.cat([tokens.float(), code.expand(*tokens.shape[:2], -1, -1)], dim=-1)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """The field of an image.

        Args:
            tokens: `batch depth patches embed`, the trunk's, slices from the feet up.
            grid: `(height, width)` of one slice.

        Returns:
            `batch places (depth * patches)`, log-probabilities in the order of `PLACES`.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            lung, left = self.head(self.features(tokens, grid)).unbind(-1)
        log, heights = functional.logsigmoid, _heights(lung.shape[1], grid, lung.device)
        zones, heart = _zones(log(lung), heights), _heart(lung, left, heights, grid)
        return torch.stack([log(lung), log(-left), log(left), *zones, heart], dim=1).flatten(2)


def _heights(depth: int, grid: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """From the head (0) to the feet (1): rows of a radiograph, slices of a volume. `depth patches`."""
    if depth == 1:
        rows = (torch.arange(grid[-2], device=device) + 0.5) / grid[-2]
        return rows.repeat_interleave(grid[-1])[None]
    slices = 1 - (torch.arange(depth, device=device) + 0.5) / depth
    return slices[:, None].expand(depth, grid[-2] * grid[-1])


def _zones(log_lung: torch.Tensor, heights: torch.Tensor) -> list[torch.Tensor]:
    """Log-probability of each third of the lungs' height.

    Args:
        log_lung: `batch depth patches`.
        heights: `depth patches`.
    """
    share = _share_of_height(log_lung.exp(), heights)
    below = [(share - edge) / _ZONE_SOFTNESS for edge in (1 / 3, 2 / 3)]
    log = functional.logsigmoid
    return [log(-below[0]), log(below[0]) + log(-below[1]), log(below[1])]


def _share_of_height(lung: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
    """How far down the lungs a patch lies: 0 at their top, 1 at their bottom.

    Args:
        lung: `batch depth patches`, probabilities.
        heights: `depth patches`.
    """
    order = heights.flatten().argsort()
    levels = heights.flatten()[order]
    mass = lung.flatten(1)[:, order].cumsum(dim=-1)
    top, bottom = (levels[(mass >= q * mass[:, -1:]).int().argmax(dim=-1)] for q in _LUNG_ENDS)
    span = (bottom - top).clamp_min(1e-3)
    return (heights[None] - top[:, None, None]) / span[:, None, None]


def _heart(lung: torch.Tensor, left: torch.Tensor, heights: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Log-probability of heart: no lung, a lung on either side in the same row, and not above the lungs' middle.

    The right lung is to the left of it, as radiographs and slices are shown. On a slice of a CT the spine lies there
    too, so this is a place for radiographs.

    Args:
        lung: `batch depth patches`, logits.
        left: the same, of the left side.
        heights: `depth patches`.
        grid: `(height, width)` of one slice.
    """
    sharp = torch.sigmoid(lung - LUNG_MARGIN).unflatten(-1, grid[-2:])
    left_lung = sharp * torch.sigmoid(left).unflatten(-1, grid[-2:])
    right_of = (sharp - left_lung).cummax(dim=-1).values
    left_of = left_lung.flip(-1).cummax(dim=-1).values.flip(-1)
    share = _share_of_height(sharp.flatten(2), heights)
    top, bottom = _HEART_ENDS
    at_height = torch.sigmoid((share - top) / _ZONE_SOFTNESS) * torch.sigmoid((bottom - share) / _ZONE_SOFTNESS)
    return ((1 - sharp) * right_of * left_of).flatten(2).mul(at_height).clamp_min(_LEAST).log()


def heart_logits(field: torch.Tensor) -> torch.Tensor:
    """The map of a finding of the heart as a whole: log-odds of heart.

    Args:
        field: `batch places tokens`, from `PlaceField`.

    Returns:
        `batch tokens`.

    Naive form: log(p / (1 - p)).
    """
    log = field[:, PLACES.index("heart")].clamp_max(-_LEAST)
    return log - torch.log(-torch.expm1(log))


def place_prior(field: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
    """What is added to the gate's logits so that each text looks where it should.

    Args:
        field: `batch places tokens`, from `PlaceField`.
        places: one per text.

    Returns:
        `texts batch tokens`, 0 where a text may look anywhere.

    Naive form: log p(side) + (log p(lung) + log p(zone) if in the lungs), parts that are not said left out.
    """
    wanted = torch.zeros(len(places), len(PLACES), device=field.device)
    for row, place in zip(wanted, places, strict=True):
        names = (place.side, "lung", place.zone) if place.in_lungs else (place.side,)
        for name in names:
            if name in PLACES:
                row[PLACES.index(name)] = 1
    return torch.einsum("tk,bkp->tbp", wanted, field)
