"""Which HU a finding can have: fluid is not air, so the map of a CT is cut to the tissue that the finding is made of.

A patch is 14 mm wide, a nodule often less. The model says which patches show it, the scan itself which voxels of them
can: both are needed for a mask in the scan's own resolution.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

_SOFTNESS_HU = 40.0  # at an end of the range: one half at the end itself, one in twelve 100 HU beyond


class DensityRange(BaseModel):
    """HU from `low_hu` to `high_hu`; None leaves that end open."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low_hu: FiniteFloat | None = None
    high_hu: FiniteFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> DensityRange:
        if self.low_hu is not None and self.high_hu is not None and not self.low_hu < self.high_hu:
            raise ValueError(f"low_hu {self.low_hu:g} must be below high_hu {self.high_hu:g}")
        return self

    def log_share(self, hu: np.ndarray) -> np.ndarray:
        """Log of how well voxels fit the range, to be added to their logits.

        Args:
            hu: any shape, HU.

        Returns:
            float32, 0 well inside the range and below 0 elsewhere, finite for finite HU.

        Naive form: log(sigmoid((hu - low) / 40)) + log(sigmoid((high - hu) / 40)), an open end left out.
        """
        total = np.zeros(hu.shape, np.float32)
        values = np.asarray(hu, np.float32)
        if self.low_hu is not None:
            total -= np.logaddexp(np.float32(0), np.float32(self.low_hu) / _SOFTNESS_HU - values / _SOFTNESS_HU)
        if self.high_hu is not None:
            total -= np.logaddexp(np.float32(0), values / _SOFTNESS_HU - np.float32(self.high_hu) / _SOFTNESS_HU)
        return total
