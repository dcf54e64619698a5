"""What a checkpoint says of its own local calibration: on which cases, when, how, and what it did to each class.

Nothing here names a patient: counts, rates and hashes only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

from radglint.decisions import OpenShare

Method = Literal["platt", "temperature", "isotonic", "unchanged"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quality(_Strict):
    """How well probabilities fit labelled cases; images count, not patients.

    Attributes:
        auroc: None where all cases have the same label.
        ece: expected calibration error, 15 bins of equal width.
        brier: mean squared error of the probability.
        log_loss: mean negative log-likelihood, in nats.
    """

    auroc: FiniteFloat | None
    ece: FiniteFloat
    brier: FiniteFloat
    log_loss: FiniteFloat


class ClassRecord(_Strict):
    """One class of a local calibration.

    Attributes:
        method: how its map was fitted; "unchanged" is the map that the model came with.
        note: what was not done, and why; empty if nothing was left out.
        num_present: images with the finding.
        num_absent: images without it.
        num_uncertain: images left out because their label is uncertain.
        patients_present: patients with at least one image with the finding.
        patients_absent: patients with at least one image without it.
        prevalence: share of the present among the cases fitted on.
        stated_prevalence: the prevalence that probabilities were shifted to; None = that of the cases.
        before: of the map that the model came with, on all cases.
        after: of the new map, each case judged by a map that was fitted on other patients; AUROC of the scores.
        auroc_interval: 95 % bootstrap interval over patients; None if it was not computed.
        abstained: share of the cases on which the conformal sets do not decide; None without them.
    """

    method: Method
    note: str = ""
    num_present: NonNegativeInt
    num_absent: NonNegativeInt
    num_uncertain: NonNegativeInt = 0
    patients_present: NonNegativeInt
    patients_absent: NonNegativeInt
    prevalence: FiniteFloat
    stated_prevalence: OpenShare | None = None
    before: Quality | None = None
    after: Quality | None = None
    auroc_interval: tuple[FiniteFloat, FiniteFloat] | None = None
    abstained: FiniteFloat | None = None


class LocalCalibration(_Strict):
    """Where the local numbers of one modality come from.

    Attributes:
        manifest: file name of the manifest, without its folder.
        manifest_sha256: of the manifest's bytes.
        split: the part of it that was used; empty = all rows.
        date: ISO date, UTC.
        version: of radglint.
        base_name: the model that was calibrated.
        base_fingerprint: its fingerprint.
        device: what the scores were computed on, for example "cpu, bfloat16".
        num_images: images that were asked.
        num_unreadable: images that could not be read.
        classes: by concept.
    """

    manifest: str
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    split: str
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    version: str
    base_name: str
    base_fingerprint: str
    device: str
    num_images: NonNegativeInt
    num_unreadable: NonNegativeInt
    classes: dict[str, ClassRecord]
