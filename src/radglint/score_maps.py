"""From a raw score to the logit of "it is there": a straight line, or a rising line through knots.

Both rise strictly, so no pair of cases ever changes its order: AUROC is that of the scores themselves.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

PositiveSlope = Annotated[FiniteFloat, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogisticMap(_Strict):
    """Raw value to logit: `slope * value + bias`."""

    slope: FiniteFloat
    bias: FiniteFloat

    def logit(self, values: Any) -> Any:
        """Logits of a number, an array or a tensor of any shape."""
        return self.slope * values + self.bias

    def changed(self, *, factor: float = 1.0, shift: float = 0.0) -> LogisticMap:
        """The map whose logits are `factor * logit + shift`."""
        return LogisticMap(slope=factor * self.slope, bias=factor * self.bias + shift)


class KnotMap(_Strict):
    """Raw value to logit: straight between knots, with a small slope beyond the first and the last.

    Attributes:
        scores: of the knots, rising.
        logits: of the knots, rising.
        outer_slope: logit per score beyond the ends, above 0.
    """

    scores: tuple[FiniteFloat, ...] = Field(min_length=1)
    logits: tuple[FiniteFloat, ...]
    outer_slope: PositiveSlope

    @model_validator(mode="after")
    def _rising(self) -> KnotMap:
        if len(self.scores) != len(self.logits):
            raise ValueError(f"expected one logit per score, got {len(self.logits)} for {len(self.scores)}")
        for name, values in (("scores", self.scores), ("logits", self.logits)):
            if any(after <= before for before, after in pairwise(values)):
                raise ValueError(f"{name} must rise strictly from knot to knot")
        return self

    def logit(self, values: Any) -> Any:
        """Logits, float64, of a number or an array of any shape."""
        x = np.asarray(values, dtype=np.float64)
        beyond = np.minimum(x - self.scores[0], 0.0) + np.maximum(x - self.scores[-1], 0.0)
        return np.interp(x, self.scores, self.logits) + self.outer_slope * beyond

    def changed(self, *, factor: float = 1.0, shift: float = 0.0) -> KnotMap:
        """The map whose logits are `factor * logit + shift`; the factor is above 0."""
        logits = tuple(factor * logit + shift for logit in self.logits)
        return KnotMap(scores=self.scores, logits=logits, outer_slope=factor * self.outer_slope)


ScoreMap = LogisticMap | KnotMap


def probability(score: float, to_logit: ScoreMap) -> float:
    """Calibrated probability of a raw score: the logistic function of its logit."""
    return float(1.0 / (1.0 + np.exp(-to_logit.logit(score))))
