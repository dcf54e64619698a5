"""From a probability to a decision: a threshold per class, and where a calibration does not decide.

Conformal abstention holds two statements against a case, "present" and "absent", and keeps those that are not unusual
for a probability like its own. Exactly one kept is a decision; both or none is "uncertain". On new cases of the kind
that was calibrated on, the true statement is dropped in at most the share `alpha` of the present and of the absent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

Decision = Literal["present", "absent", "uncertain", "out of scope"]
Goal = Literal["sensitivity", "specificity"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
OpenShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Strict):
    """A share of patients, one image of each, with its exact (Clopper-Pearson) 95 % interval.

    Attributes:
        share: the point estimate.
        low: lower end.
        high: upper end.
        num_patients: the patients that it is a share of.
    """

    share: Share
    low: Share
    high: Share
    num_patients: NonNegativeInt


class Threshold(_Strict):
    """The probability from which a class is present, chosen on labelled cases.

    Attributes:
        probability: present from here on.
        goal: what was asked for.
        wanted: its value; met on an image of a new patient of the same kind with 95 % confidence.
        sensitivity: share of patients with the finding at or above the threshold.
        specificity: share of patients without it below.
    """

    probability: OpenShare
    goal: Goal
    wanted: OpenShare
    sensitivity: Rate
    specificity: Rate


class Abstention(_Strict):
    """Class-conditional conformal sets, as the two probabilities where they change.

    Attributes:
        alpha: share of the present, and of the absent, for which the true statement may be dropped.
        present_from: "present" is kept from this probability on.
        absent_to: "absent" is kept up to this probability.
        num_present: patients with the finding that this was measured on.
        num_absent: patients without it.
    """

    alpha: OpenShare
    present_from: OpenShare
    absent_to: OpenShare
    num_present: NonNegativeInt
    num_absent: NonNegativeInt

    @property
    def undecided(self) -> tuple[float, float]:
        """The probabilities between which both statements are kept, or neither."""
        ends = sorted((self.present_from, self.absent_to))
        return ends[0], ends[1]

    def kept(self, probability: float) -> frozenset[str]:
        """The statements that are kept for a probability."""
        kept = {"present"} if probability >= self.present_from else set()
        return frozenset(kept | ({"absent"} if probability <= self.absent_to else set()))

    def nearest(self, threshold: float) -> float:
        """A threshold moved into the undecided range, where it contradicts no decision."""
        low, high = self.undecided
        return min(max(threshold, low), high)


def decide(probability: float, threshold: float, abstention: Abstention | None = None) -> Decision:
    """What is said of a class in scope.

    Args:
        probability: in [0, 1].
        threshold: present from here on.
        abstention: conformal sets; where they keep another statement than the threshold's, or not exactly one, the
            answer is "uncertain". A rule can so only take decisions away from the other, never turn one round.
    """
    decision: Decision = "present" if probability >= threshold else "absent"
    if abstention is not None and abstention.kept(probability) != {decision}:
        return "uncertain"
    return decision
