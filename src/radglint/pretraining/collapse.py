"""Is the teacher still telling patches and images apart? The loss cannot say: it is lowest when it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from radglint.errors import TrainingError

MAX_RANK_TOKENS = 4096


@dataclass(frozen=True)
class Spread:
    """How far features lie apart, before they are centred and scaled.

    Attributes:
        tokens: standard deviation over all tokens of a batch, mean over channels; a token alone has 1.
        images: the same over the images at one place, mean over places. Zero, where `tokens` is not, means that the
            features only say where a patch lies: the usual form of collapse in masked prediction.
        rank: effective number of directions, from 1 to the number of channels.
    """

    tokens: float
    images: float
    rank: float

    @property
    def logs(self) -> tuple[float, float]:
        """Natural logarithms of `tokens` and `images`; -inf for a spread of zero."""
        return _log(self.tokens), _log(self.images)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def spread(features: torch.Tensor, with_rank: bool = True) -> Spread:
    """Measure a batch of features.

    Args:
        features: `batch tokens embed`, float32, at least two images.
        with_rank: without it `rank` is NaN; it costs an eigenvalue decomposition.
    """
    rows = features.flatten(0, 1)
    images = features.std(dim=0).mean()
    return Spread(float(rows.std(dim=0).mean()), float(images), effective_rank(rows) if with_rank else math.nan)


def effective_rank(rows: torch.Tensor) -> float:
    """Exponential of the entropy of the covariance's eigenvalues; 0 when all rows are equal.

    Args:
        rows: `tokens embed`; at most `MAX_RANK_TOKENS` of them, evenly chosen, are used.

    Reference: Roy and Vetterli 2007, "The effective rank", there of singular values; here of the covariance.
    """
    chosen = rows[:: max(1, len(rows) // MAX_RANK_TOKENS)].float().cpu()
    centred = chosen - chosen.mean(dim=0)
    values = torch.linalg.eigvalsh(centred.mT @ centred).clamp(min=0)
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def check_spread(found: Spread, smallest: float, step: int) -> None:
    """Stop a run whose teacher has collapsed.

    Args:
        found: the spread at this step.
        smallest: `min_feature_std`.
        step: for the message.

    Raises:
        TrainingError: the features of different images hardly differ, or are not finite.
    """
    if found.images >= smallest and math.isfinite(found.tokens):
        return
    raise TrainingError(
        f"step {step}: the teacher's features have collapsed: their standard deviation between images is "
        f"{found.images:.2g} (between all patches {found.tokens:.2g}), min_feature_std asks for {smallest:g}; lower "
        "optimizer.learning_rate, raise optimizer.teacher_momentum or optimizer.batch, and start again"
    )
