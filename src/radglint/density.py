"""Which HU a finding can have: fluid is not air, so the map of a CT is cut to the tissue that the finding is made of.

A patch is 14 mm wide, a nodule often less. The model says which patches show it, the scan itself which voxels of them
can: both are needed for a mask in the scan's own resolution.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

_SOFTNESS_HU = 40.0  # at an end of the range: one half at the end itself, one in twelve 100 HU beyond
_TABLE_GAIN = 4  # voxels for each HU between the lowest and the highest, from which on a table is worth its making


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

        HU are whole numbers in nearly every scan: each is then computed once and looked up, to the same bits.

        Args:
            hu: any shape, HU.

        Returns:
            float32, 0 well inside the range and below 0 elsewhere, finite for finite HU.

        Naive form: log(sigmoid((hu - low) / 40)) + log(sigmoid((high - hu) / 40)), an open end left out.
        """
        values = np.asarray(hu, np.float32)
        if not values.size:
            return values
        low, high = float(values.min()), float(values.max())
        if not values.size > _TABLE_GAIN * (high - low):  # also where one is not a number
            return self._computed(values)
        place = (values - np.float32(low)).astype(np.intp)
        whole = np.arange(place.max() + 1, dtype=np.float32) + np.float32(low)
        return self._computed(whole)[place] if np.array_equal(whole[place], values) else self._computed(values)

    def _computed(self, values: np.ndarray) -> np.ndarray:
        """`log_share` of each value by itself."""
        total = np.zeros(values.shape, np.float32)
        if self.low_hu is not None:
            total -= np.logaddexp(np.float32(0), np.float32(self.low_hu) / _SOFTNESS_HU - values / _SOFTNESS_HU)
        if self.high_hu is not None:
            total -= np.logaddexp(np.float32(0), values / _SOFTNESS_HU - np.float32(self.high_hu) / _SOFTNESS_HU)
        return total
