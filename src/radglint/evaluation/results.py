"""The results of an evaluation as one JSON file: what it holds, how it is written, and strict reading.

The file carries a checksum of its own content, so that a number changed by hand is noticed. Unknown keys, missing keys
and files of a newer version are refused by name. Values that are not defined (an AUROC without positives) are null.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError
from pydantic import model_validator as checked

from radglint.errors import InputError, shown
from radglint.writing import write_json

KIND = "radglint evaluation"
FORMAT = 1
MAX_POINTS = 200

Truth = Literal["present", "absent", "uncertain", "unlabelled"]


def _nan_to_none(value: Any) -> Any:
    """NaN says "not defined"; JSON has null for it."""
    return None if isinstance(value, float | np.floating) and math.isnan(value) else value


Defined = Annotated[FiniteFloat | None, BeforeValidator(_nan_to_none)]
"""A finite number, or None where the quantity is not defined; NaN is taken as None."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Point = tuple[FiniteFloat, FiniteFloat]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Strict):
    """A value with its interval.

    Attributes:
        value: None if not defined on this data.
        low: lower end of the interval, None if there is none.
        high: upper end.
        n: units that it rests on (images, studies or patients, see `Results.unit_of_analysis`; for a mean, classes).
    """

    value: Defined
    low: Defined = None
    high: Defined = None
    n: NonNegativeInt = 0

    @checked(mode="after")
    def _interval_whole(self) -> Estimate:
        if (self.low is None) != (self.high is None):
            raise ValueError("expected low and high, or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")
        return self


Measures = dict[str, Estimate]
"""Name of a measure (see `measure_names`) to its estimate."""


class ReliabilityBin(_Strict):
    """One bin of a reliability plot: mean probability, observed frequency of the finding, and number of answers."""

    probability: float = Field(ge=0, le=1)
    frequency: float = Field(ge=0, le=1)
    count: NonNegativeInt


class SweepPoint(_Strict):
    """What a threshold does: Dice on positives, sensitivity and specificity; None where not measured."""

    threshold: FiniteFloat
    dice: Defined = None
    sensitivity: Defined = None
    specificity: Defined = None


class Curves(_Strict):
    """What is drawn of one class; each list is empty where it does not apply and holds at most `MAX_POINTS` points.

    Attributes:
        roc: (false positive rate, true positive rate), rising.
        pr: (recall, precision).
        reliability: bins by rising probability.
        sweep: by rising threshold.
        thresholds: where a threshold came from ("validation", "fixed", "oracle") to its value; marked in the sweep.
    """

    roc: Annotated[tuple[Point, ...], Field(max_length=MAX_POINTS)] = ()
    pr: Annotated[tuple[Point, ...], Field(max_length=MAX_POINTS)] = ()
    reliability: Annotated[tuple[ReliabilityBin, ...], Field(max_length=MAX_POINTS)] = ()
    sweep: Annotated[tuple[SweepPoint, ...], Field(max_length=MAX_POINTS)] = ()
    thresholds: dict[str, FiniteFloat] = {}


class ClassResult(_Strict):
    """One class (or one part of a suite) under a protocol.

    Attributes:
        name: as the data set or the prompt bank calls it; unique in its protocol.
        label: the manifest's label, empty if none.
        n: units with a definite state (present or absent).
        positives: those where it is present.
        measures: column to measures.
        curves: what is drawn.
    """

    name: str
    label: str = ""
    n: NonNegativeInt
    positives: NonNegativeInt
    measures: dict[str, Measures]
    curves: Curves = Curves()

    @checked(mode="after")
    def _counts_fit(self) -> ClassResult:
        if self.positives > self.n:
            raise ValueError(f"expected at most {self.n} positives, got {self.positives}")
        return self


class StyleResult(_Strict):
    """One way of asking: its name, an example of its wording, and the protocol's means with it."""

    name: str
    example: str = ""
    measures: Measures


class CaseResult(_Strict):
    """One of the best or worst answers, as a picture.

    Attributes:
        rank: which end of the list.
        id: of the manifest's row.
        class_name: which class.
        query: what was asked.
        score: cosine or logit, as the protocol ranks.
        probability: calibrated, None without calibration.
        truth: state in the manifest.
        measures: of this case alone, for example its Dice; null where not defined.
        overlay: a PNG: a file name relative to the results file, or a data URI; empty if none.
        note: anything to add.
    """

    rank: Literal["best", "worst"]
    id: str
    class_name: str
    query: str
    score: Defined
    probability: Defined = None
    truth: Truth
    measures: dict[str, Defined] = {}
    overlay: str = ""
    note: str = ""


class LeftOut(_Strict):
    """What was not measured, how many of it, and why."""

    what: str
    count: NonNegativeInt | None = None
    why: str


class ProtocolResult(_Strict):
    """One protocol on one manifest.

    Attributes:
        name: as `radglint evaluate` takes it; unique in the results.
        title: for people.
        citation: where the published form is described.
        label_set: name of the classes, such as "CheXpert 5"; numbers of different label sets are not comparable.
        num_classes: in that label set.
        columns: forms of the protocol side by side, mostly ("published", "honest").
        how: one sentence on each column.
        lead: the measure that stands for the protocol; empty takes the first of the means.
        classes: may be empty (retrieval).
        average: how the means come about, in words.
        means: column to measures.
        styles: the honest means again, by prompt style.
        cases: best and worst.
        notes: plain sentences.
        left_out: what was not measured.
    """

    name: str
    title: str
    citation: str = ""
    label_set: str
    num_classes: NonNegativeInt
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("published", "honest")
    how: dict[str, str]
    lead: str = ""
    classes: tuple[ClassResult, ...] = ()
    average: str = "mean over classes, each with the same weight"
    means: dict[str, Measures]
    styles: tuple[StyleResult, ...] = ()
    cases: tuple[CaseResult, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @checked(mode="after")
    def _columns_known(self) -> ProtocolResult:
        known = set(self.columns)
        for where, found in (("how", self.how), ("means", self.means)):
            if set(found) != known:
                raise ValueError(f"{where}: expected the columns {list(self.columns)}, got {list(found)}")
        for one in self.classes:
            if set(one.measures) - known:
                raise ValueError(f"classes.{one.name}: expected columns among {list(self.columns)}")
        _unique([one.name for one in self.classes], "classes")
        if self.lead and self.lead not in self.measure_names():
            raise ValueError(f"lead: {self.lead!r} is none of the means {self.measure_names()}")
        return self

    def measure_names(self) -> list[str]:
        """Measures of the means in the order in which they first come, the leading one first."""
        names = list(dict.fromkeys(name for column in self.columns for name in self.means[column]))
        return sorted(names, key=lambda name: name != self.lead) if self.lead else names

    def class_measure_names(self) -> list[str]:
        """Measures of the classes: in the order of the means, then others."""
        found = (name for one in self.classes for column in self.columns for name in one.measures.get(column, {}))
        own = list(dict.fromkeys(found))
        means = self.measure_names()
        return [name for name in means if name in own] + [name for name in own if name not in means]


class ModelFacts(_Strict):
    """The model: its name, the fingerprint of its outputs and the hash of its weights."""

    name: str
    fingerprint: str
    weights_sha256: Sha256


class ManifestFacts(_Strict):
    """The data: the manifest's file name (no folder), its hash, and what it holds."""

    path: Annotated[str, Field(pattern=r"^[^/\\]+$")]
    sha256: Sha256
    rows: NonNegativeInt
    patients: NonNegativeInt
    images: NonNegativeInt
    dataset: str = ""
    licence: str = ""


class Results(_Strict):
    """Everything that one run of `radglint evaluate` measured, and where it came from.

    Attributes:
        kind, format: what the file is, and the version of its form.
        created: date and time, ISO 8601.
        radglint_version: that wrote it.
        versions: of Python and the libraries that matter.
        seed: of every draw.
        command: as it was typed.
        suite: name of the suite or configuration.
        model: which weights.
        manifest: which data.
        unit_of_analysis: what is counted once: "image", "study" or "patient".
        split: of the manifest that is judged: train, val, test or all; empty if not recorded.
        resampled: what the intervals draw, and how, in words.
        protocols: in order.
        notes, left_out: of the whole run, such as rows that could not be read.
    """

    kind: Literal["radglint evaluation"] = KIND
    format: Literal[1] = FORMAT
    created: str
    radglint_version: str
    versions: dict[str, str] = {}
    seed: int
    command: str = ""
    suite: str
    model: ModelFacts
    manifest: ManifestFacts
    unit_of_analysis: str
    split: str = ""
    resampled: str = ""
    protocols: tuple[ProtocolResult, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @checked(mode="after")
    def _names_unique(self) -> Results:
        _unique([protocol.name for protocol in self.protocols], "protocols")
        return self

    def protocol(self, name: str) -> ProtocolResult | None:
        """The protocol of this name, None if it was not run."""
        return next((protocol for protocol in self.protocols if protocol.name == name), None)


def _unique(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: expected each name once, got {', '.join(twice)} more than once")


def write_results(path: str | os.PathLike[str], results: Results) -> Path:
    """Write the results with their checksum; the file is there whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    document = results.model_dump(mode="json")
    return write_json(path, {**document, "content_sha256": content_sha256(document)})


def content_sha256(document: Mapping[str, Any]) -> str:
    """Checksum of a document without its own `content_sha256`: keys sorted, no spaces, UTF-8."""
    content = {key: value for key, value in document.items() if key != "content_sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read results strictly.

    Raises:
        InputError: the file is missing, is no JSON (a cut one), is something else, was written by a newer radglint, was
            altered since, or lacks a key; the message names the file, the key and what to do.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of `radglint evaluate`") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole JSON ({error}); was it cut short? Evaluate again") from error
    _check_form(path, document)
    try:
        return Results.model_validate({key: value for key, value in document.items() if key != "content_sha256"})
    except ValidationError as error:
        problems = "; ".join(_problem(one) for one in error.errors()[:5])
        raise InputError(f"{path}: {problems}; run `radglint evaluate` again") from error


def _check_form(path: str | os.PathLike[str], document: Any) -> None:
    """Kind first, then version, then checksum: the first that is wrong explains the rest."""
    if not isinstance(document, dict) or document.get("kind") != KIND:
        came = repr(document.get("kind")) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{path}: key kind: expected {KIND!r}, got {came}; give a results file of `radglint evaluate`")
    form = document.get("format")
    if not isinstance(form, int) or form < 1:
        raise InputError(f"{path}: key format: expected a whole number from 1, got {form!r}; evaluate again")
    if form > FORMAT:
        raise InputError(f"{path}: has format {form}, this radglint reads up to {FORMAT}; update radglint")
    if "content_sha256" not in document:
        raise InputError(f"{path}: key content_sha256: is missing, so the file is not whole; evaluate again")
    if document["content_sha256"] != content_sha256(document):
        raise InputError(f"{path}: was altered after it was written (its checksum does not fit); evaluate again")


def _problem(error: Any) -> str:
    key = ".".join(map(str, error["loc"])) or "file"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: is missing"
    came = "" if isinstance(error["input"], dict | list) else f", got {shown(error['input'])}"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}{came}"


def thin(points: Sequence[tuple[float, ...]], limit: int = MAX_POINTS) -> list[tuple[float, ...]]:
    """At most `limit` points of a curve, evenly along its length, with both ends kept.

    The length is that of |dx| + |dy| over the first two coordinates, each scaled to its range, so steep parts keep as
    many points as flat ones; between two kept points a curve that rises or falls throughout changes by at most about
    2 / (limit - 1) of its range.

    Args:
        points: in order.
        limit: 2 or more.
    """
    if len(points) <= limit:
        return [tuple(map(float, point)) for point in points]
    xy = np.asarray([point[:2] for point in points], dtype=np.float64)
    span = np.ptp(xy, axis=0)
    steps = np.abs(np.diff(xy, axis=0) / np.where(span > 0, span, 1.0)).sum(axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    kept = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], limit)).clip(max=len(points) - 1))
    kept[-1] = len(points) - 1
    return [tuple(map(float, points[index])) for index in kept]
