"""Calibration of a model on labelled cases, from scores in memory; `calibrate_run` gets scores and writes the model.

Uncertain and unlabelled images are left out. A concept is asked by its own name; the fit then serves every phrase of
that concept ("small left effusion" too), whose scores can lie a little apart from those of the plain name. Maps of
places are not fitted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from radglint import calibration_fit as fit
from radglint.calibrate_answers import Answered
from radglint.calibrate_measures import auroc_interval, measure
from radglint.calibration_fit import ClassCases
from radglint.calibration_record import ClassRecord, LocalCalibration
from radglint.checkpoint import ModalityCalibration
from radglint.decisions import Abstention, Goal, Threshold, decide
from radglint.errors import InputError
from radglint.manifest import LabelState, ManifestRow
from radglint.pipeline import DEFAULT_THRESHOLD
from radglint.scope import core_phrase
from radglint.score_maps import ScoreMap, probability
from radglint.simulation.ct import CT_CONCEPTS
from radglint.simulation.entailment import holds_for
from radglint.simulation.facts import Fact
from radglint.simulation.radiograph import CONCEPTS

LEAST_PATIENTS = 10  # with a finding, and without it, below which a class keeps the map that it came with
EDGE = 1e-9  # stored probabilities stay this far from 0 and 1
_DRAWN = {"CXR": CONCEPTS, "CT": CT_CONCEPTS}

MethodWish = Literal["auto", "platt", "temperature", "isotonic"]


@dataclass(frozen=True)
class Wishes:
    """What a calibration shall do.

    Attributes:
        method: platt (slope and bias), temperature (slope only), isotonic, or auto: platt, or isotonic where there are
            many cases and it fits other patients better.
        sensitivity: to promise with a threshold; None = no such threshold.
        specificity: the same; not both.
        alpha: of the conformal sets; None = no abstention.
        prevalence: concept to the prevalence that its probabilities shall hold at; the key "" stands for all others.
    """

    method: MethodWish = "auto"
    sensitivity: float | None = None
    specificity: float | None = None
    alpha: float | None = None
    prevalence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse wishes that cannot be met together.

        Raises:
            InputError: unknown method, a share out of range, both rates, or a prevalence for a temperature.
        """
        if self.method not in ("auto", "platt", "temperature", "isotonic"):
            raise InputError(f"method {self.method!r}: expected auto, platt, temperature or isotonic")
        shares = {"sensitivity": self.sensitivity, "specificity": self.specificity, "alpha": self.alpha}
        shares |= {f"prevalence {concept}".strip(): share for concept, share in self.prevalence.items()}
        for name, share in shares.items():
            top = 0.5 if name == "alpha" else 1.0
            if share is not None and not 0.0 < share < top:
                raise InputError(f"{name}: expected a share above 0 and below {top:g}, got {share}")
        if self.sensitivity is not None and self.specificity is not None:
            raise InputError("sensitivity and specificity: one threshold cannot be chosen for both; give one of them")
        if self.method == "temperature" and self.prevalence:
            raise InputError(
                "prevalence: a temperature keeps the prior that the model was shipped with, which is not that of the "
                "cases; use platt or isotonic"
            )

    @property
    def goal(self) -> tuple[Goal, float] | None:
        """Which rate is to be promised, and its value."""
        if self.sensitivity is not None:
            return "sensitivity", self.sensitivity
        return None if self.specificity is None else ("specificity", self.specificity)

    def prevalence_of(self, concept: str) -> float | None:
        """The stated prevalence of a concept."""
        return self.prevalence.get(concept, self.prevalence.get(""))


@dataclass(frozen=True)
class ClassResult:
    """What came out for one class; map, threshold and sets are None where the class stays as it was."""

    record: ClassRecord
    to_logit: ScoreMap | None = None
    threshold: Threshold | None = None
    abstention: Abstention | None = None


# --- one class ----------------------------------------------------------------------------------------------------


def calibrate_class(
    cases: ClassCases, shipped: ScoreMap, wishes: Wishes, *, stated: float | None = None, num_uncertain: int = 0
) -> ClassResult:  # fmt: skip
    """Fit one class.

    Args:
        cases: its labelled cases.
        shipped: the map that the model came with.
        wishes: what to do.
        stated: prevalence to shift the probabilities to; None = that of the cases. The measures stay those at the
            prevalence of the cases, on which they can be measured.
        num_uncertain: images left out, for the record.
    """
    counts = {
        "num_present": int(cases.present.sum()), "num_absent": int((~cases.present).sum()),
        "num_uncertain": num_uncertain, "patients_present": len(cases.one_present),
        "patients_absent": len(cases.one_absent), "prevalence": cases.prevalence,
    }  # fmt: skip
    reason = _too_few(cases)
    before = None if reason else measure(np.asarray(shipped.logit(cases.scores)), cases)
    if not reason:
        try:
            method = fit.choose_method(cases, shipped) if wishes.method == "auto" else wishes.method
            held_out, to_logit = fit.held_out_logits(method, cases, shipped), fit.fit_map(method, cases, shipped)
        except InputError as error:
            reason = str(error)
        else:
            record = ClassRecord(
                method=method, before=before, after=measure(held_out, cases), stated_prevalence=stated,
                auroc_interval=auroc_interval(cases), **counts,
            )  # fmt: skip
            if stated is not None:
                to_logit = to_logit.changed(shift=fit.prior_shift(cases.prevalence, stated))
            return _with_promises(cases, to_logit, wishes, record)
    note = f"the map is the one the model came with: {reason}"
    return ClassResult(ClassRecord(method="unchanged", note=note, before=before, **counts))


def _too_few(cases: ClassCases) -> str:
    """Why a class cannot be fitted, or empty text."""
    found = len(cases.one_present), len(cases.one_absent)
    if min(found) >= LEAST_PATIENTS:
        return ""
    return f"{found[0]} patients with and {found[1]} without the finding, {LEAST_PATIENTS} of each are needed"


def _with_promises(cases: ClassCases, to_logit: ScoreMap, wishes: Wishes, record: ClassRecord) -> ClassResult:
    """Threshold and conformal sets, as far as there are enough cases for them; the record says what is lacking."""
    notes, threshold, abstention = [], None, None
    try:
        threshold = choose_threshold(cases, to_logit, wishes.goal) if wishes.goal is not None else None
    except InputError as error:
        notes.append(f"no threshold: {error}")
    try:
        abstention = choose_abstention(cases, to_logit, wishes.alpha) if wishes.alpha is not None else None
    except InputError as error:
        notes.append(f"no abstention: {error}")
    abstained = None
    if abstention is not None:
        level = abstention.nearest(DEFAULT_THRESHOLD) if threshold is None else threshold.probability
        said = [decide(probability(score, to_logit), level, abstention) for score in cases.scores.tolist()]
        abstained = said.count("uncertain") / len(said)
    changed = record.model_copy(update={"note": "; ".join(notes), "abstained": abstained})
    return ClassResult(changed, to_logit, threshold, abstention)


def choose_threshold(cases: ClassCases, to_logit: ScoreMap, goal: tuple[Goal, float]) -> Threshold:
    """The threshold that promises a rate, with both rates that it has on the cases.

    Raises:
        InputError: too few patients to promise it.
    """
    cut = fit.cut_for(*goal, cases)
    present, absent = cases.one_present, cases.one_absent
    return Threshold(
        probability=_stored(cut, to_logit), goal=goal[0], wanted=goal[1],
        sensitivity=fit.exact_rate(int((present >= cut).sum()), len(present)),
        specificity=fit.exact_rate(int((absent < cut).sum()), len(absent)),
    )  # fmt: skip


def choose_abstention(cases: ClassCases, to_logit: ScoreMap, alpha: float) -> Abstention:
    """Conformal sets as two probabilities.

    Raises:
        InputError: too few patients for this alpha.
    """
    present_from, absent_to = fit.conformal_cuts(alpha, cases)
    return Abstention(
        alpha=alpha, present_from=_stored(present_from, to_logit), absent_to=_stored(absent_to, to_logit),
        num_present=len(cases.one_present), num_absent=len(cases.one_absent),
    )  # fmt: skip


def _stored(score: float, to_logit: ScoreMap) -> float:
    return min(max(probability(score, to_logit), EDGE), 1 - EDGE)


# --- all classes of a modality, from scores in memory -------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where the cases come from, as it is written down; see `LocalCalibration`."""

    manifest: str
    manifest_sha256: str
    split: str
    base_name: str
    base_fingerprint: str
    device: str
    num_images: int
    num_unreadable: int = 0


def calibrate_scores(
    cases: Mapping[str, ClassCases], maps: ModalityCalibration, wishes: Wishes, source: Source,
    num_uncertain: Mapping[str, int] | None = None,
) -> ModalityCalibration:  # fmt: skip
    """The calibration of one modality from scores in memory.

    Args:
        cases: concept to its labelled cases; each must be one that the model answers.
        maps: the calibration that the model came with.
        wishes: what to do.
        source: to be written down.
        num_uncertain: concept to images left out, for the record.

    Returns:
        A new calibration. Concepts that are not among the cases, or have too few, keep what they had; one that gets a
        new map loses the threshold and the sets that belonged to the old one.

    Raises:
        InputError: a concept that the model does not answer, no class that can be fitted, or a promise that none can
            keep.
    """
    unknown = sorted(set(cases) - set(maps.presence))
    if unknown or not cases:
        got = ", ".join(unknown) or "none"
        raise InputError(f"calibration: expected concepts of the model ({', '.join(maps.presence)}), got {got}")
    left = num_uncertain or {}
    results = {
        concept: calibrate_class(
            part, maps.presence[concept], wishes, stated=wishes.prevalence_of(concept),
            num_uncertain=left.get(concept, 0),
        )
        for concept, part in cases.items()
    }  # fmt: skip
    _check_kept(results, wishes)
    new = {c: r for c, r in results.items() if r.to_logit is not None}
    return maps.model_copy(
        update={
            "presence": maps.presence | {c: r.to_logit for c, r in new.items()},
            "thresholds": _merged(maps.thresholds, {c: r.threshold for c, r in new.items()}),
            "abstention": _merged(maps.abstention, {c: r.abstention for c, r in new.items()}),
            "uncalibrated": tuple(c for c in maps.uncalibrated if c not in new),
            "local": _record(results, source),
        }
    )


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """New values in place of old ones; None takes the old one away."""
    return {concept: value for concept, value in {**old, **new}.items() if value is not None}


def _check_kept(results: Mapping[str, ClassResult], wishes: Wishes) -> None:
    """Refuse a calibration that changes nothing, or a promise that no class can keep.

    Where some classes can, the others say in their notes why they cannot.
    """
    notes = "; ".join(f"{concept}: {result.record.note}" for concept, result in results.items())
    if all(result.to_logit is None for result in results.values()):
        raise InputError(f"no class can be calibrated; label more cases. {notes}")
    if wishes.goal is not None and all(result.threshold is None for result in results.values()):
        raise InputError(f"no class has enough cases for {wishes.goal[0]} {wishes.goal[1]:g}: {notes}")
    if wishes.alpha is not None and all(result.abstention is None for result in results.values()):
        raise InputError(f"no class has enough cases for alpha {wishes.alpha:g}: {notes}")


def _record(results: Mapping[str, ClassResult], source: Source) -> LocalCalibration:
    return LocalCalibration(
        **asdict(source), date=datetime.now(UTC).date().isoformat(), version=version("radglint"),
        classes={concept: result.record for concept, result in results.items()},
    )  # fmt: skip


# --- labels -------------------------------------------------------------------------------------------------------


def labels_of(row: ManifestRow) -> Mapping[str, LabelState]:
    """The labels of a row; those of a case of `radglint simulate` are what its facts mean.

    There every concept that the simulator draws is present or absent, except one that the facts leave open (a mass,
    beside a nodule of unknown size) or that only another view of the study shows, which stays unlabelled, and one that
    the report doubts, which is uncertain.
    """
    if row.labels or "facts" not in row.extra:
        return row.labels
    facts, hidden = (
        [Fact(f["concept"], f["side"], f["zone"], f["size"]) for f in row.extra.get(key, ())]
        for key in ("facts", "hidden")
    )
    states: dict[str, LabelState] = {"holds": "present", "fails": "absent"}
    verdicts = {concept: holds_for(Fact(concept), facts, hidden) for concept in _DRAWN[row.modality]}
    labels: dict[str, LabelState] = {c: states[verdict] for c, verdict in verdicts.items() if verdict in states}
    for concept in row.extra.get("doubted", ()):
        if labels.get(concept) != "present":
            labels[concept] = "uncertain"
    return labels


def concepts_of_labels(
    labels: Sequence[str], maps: ModalityCalibration, prompts: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Which concept a label is, by its name or by a prompt of the model's bank; nothing is guessed.

    Args:
        labels: names in the manifest.
        maps: what the model answers.
        prompts: its bank.

    Returns:
        concept to label, and label to the reason why it is left out. Of several labels of one concept, only one that
        has the concept's own name is taken.
    """
    owners = {core_phrase(text).lower(): c for c, texts in prompts.items() for text in texts} | {c: c for c in prompts}
    wanted: dict[str, list[str]] = {}
    left = {}
    for label in sorted(labels):
        concept = label if label in maps.presence else owners.get(core_phrase(label).lower())
        if concept in maps.presence:
            wanted.setdefault(concept, []).append(label)
        else:
            left[label] = "the model does not answer it"
    taken = {}
    for concept, names in wanted.items():
        own = concept if concept in names else names[0] if len(names) == 1 else None
        taken |= {} if own is None else {concept: own}
        left |= {n: f"one of several labels for {concept!r} ({', '.join(names)})" for n in names if n != own}
    return taken, left


def cases_of(
    rows: Sequence[ManifestRow], answered: Answered, taken: Mapping[str, str]
) -> tuple[dict[str, ClassCases], dict[str, int]]:
    """Labelled cases of each concept, and how many uncertain ones were left out.

    Args:
        rows: of one modality.
        answered: their scores.
        taken: concept to label.
    """
    cases, uncertain = {}, {}
    for concept, label in taken.items():
        states = [(row, labels_of(row).get(label)) for row in rows if row.id in answered.scores]
        known = [(row, state == "present") for row, state in states if state in ("present", "absent")]
        cases[concept] = ClassCases.of(
            [answered.scores[row.id][concept] for row, _ in known], [there for _, there in known],
            [patient_of(row) for row, _ in known],
        )  # fmt: skip
        uncertain[concept] = sum(state == "uncertain" for _, state in states)
    return cases, uncertain


def patient_of(row: ManifestRow) -> str:
    """Whose image it is; without a patient, the study or the image is taken to be one."""
    return f"{row.dataset}/{row.patient or row.study or row.id}"
