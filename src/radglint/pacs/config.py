"""Configuration of `radglint watch`: one TOML file with a source, a target and rules.

An unknown key, a missing one or a value out of range is refused by name. Secrets are not in it: see `access`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydicom.dataset import Dataset

from radglint.dicom_file import text
from radglint.errors import ConfigError
from radglint.pacs.access import DicomWebConfig
from radglint.pacs.dimse import DEFAULT_TITLE, parse_peer
from radglint.pacs.receiver import ReceiverConfig
from radglint.pacs.tls import TlsFiles

Modality = Literal["CT", "CR", "DX", "RG"]
"""What can be asked. Results are SEG and SR, so that they can never match a rule."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Strict):
    """Which series are asked what. The first rule that a series meets decides."""

    name: str = Field(min_length=1)
    queries: Path  # one query a line, # begins a comment
    modality: tuple[Modality, ...] = Field(min_length=1)
    body_part: tuple[str, ...] = ()  # BodyPartExamined, in capitals; empty = any, also none
    description: str = ""  # regular expression found somewhere in SeriesDescription, letters of either case
    exclude_description: str = ""  # and one that must not be
    min_instances: PositiveInt = 1
    derived: bool = False  # also series whose ImageType says DERIVED, such as reconstructions in another plane
    threshold: float | None = Field(default=None, gt=0, lt=1)  # None = the model's own

    @field_validator("description", "exclude_description")
    @classmethod
    def _an_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return pattern

    def against(self, header: Dataset, instances: int) -> str:
        """Why a series does not meet the rule; empty if it does.

        Args:
            header: of any of its instances.
            instances: how many it has.
        """
        modality, body = text(header, "Modality").upper(), text(header, "BodyPartExamined").upper()
        if modality not in self.modality:
            return f"modality {modality or 'not given'}"
        if self.body_part and body not in {part.upper() for part in self.body_part}:
            return f"body part {body or 'not given'}"
        described = text(header, "SeriesDescription")
        if not re.search(self.description, described, re.IGNORECASE):
            return "description does not match"
        if self.exclude_description and re.search(self.exclude_description, described, re.IGNORECASE):
            return "description is excluded"
        if not self.derived and text(header, "ImageType").upper().startswith("DERIVED"):
            return "derived image"
        return f"{instances} instances, {self.min_instances} wanted" if instances < self.min_instances else ""


class WebSource(DicomWebConfig):
    """New series are looked for on a DICOMweb server, again and again."""

    kind: Literal["dicomweb"] = "dicomweb"
    poll_s: PositiveFloat = 15.0
    lookback_days: PositiveInt | None = None  # only studies of the last days, by StudyDate; None = all
    existing: Literal["leave", "ask"] = "leave"  # what becomes of series that were there before the first look


class InboxSource(ReceiverConfig):
    """New series are sent to us by C-STORE."""

    kind: Literal["receive"] = "receive"
    poll_s: PositiveFloat = 2.0


class WebTarget(DicomWebConfig):
    """Results are stored on a DICOMweb server."""

    kind: Literal["dicomweb"] = "dicomweb"


class DimseTarget(TlsFiles):
    """Results are sent by C-STORE, over TLS where there are files for it."""

    kind: Literal["dimse"] = "dimse"
    to: str  # AE@host:port
    title: str = Field(default=DEFAULT_TITLE, pattern=r"^[^\\\s]{1,16}$")
    timeout_s: PositiveFloat = 30.0

    @field_validator("to")
    @classmethod
    def _a_node(cls, to: str) -> str:
        try:
            return str(parse_peer(to))
        except ConfigError as error:
            raise ValueError(str(error)) from error


class WatchConfig(_Strict):
    """One `radglint watch`."""

    folder: Path  # ledger, fetched images and results that are not stored yet; only one watcher a folder
    source: Annotated[WebSource | InboxSource, Field(discriminator="kind")]
    target: Annotated[WebTarget | DimseTarget, Field(discriminator="kind")]
    rules: tuple[Rule, ...] = Field(min_length=1)
    model: str = "nano"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    segmentation: Literal["BINARY", "FRACTIONAL", "LABELMAP"] = "BINARY"
    when_grown: Literal["leave", "ask"] = "leave"  # what becomes of a stored series that gets more instances
    quiet_s: NonNegativeFloat = 60.0  # a series is asked when no instance of it came for so long
    max_attempts: PositiveInt = 5  # then a series is parked
    first_retry_s: NonNegativeFloat = 30.0  # doubled each time
    longest_retry_s: PositiveFloat = 900.0

    @model_validator(mode="after")
    def _rules_differ(self) -> WatchConfig:
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise ValueError("rules: two have one name; give each its own")
        return self

    @model_validator(mode="after")
    def _grown_can_be_fetched(self) -> WatchConfig:
        if self.when_grown == "ask" and isinstance(self.source, InboxSource):
            raise ValueError('when_grown: "ask" needs a source of kind "dicomweb"; what was received is not kept')
        return self

    @property
    def modalities(self) -> frozenset[str]:
        """What any rule asks."""
        return frozenset(modality for rule in self.rules for modality in rule.modality)

    def rule_for(self, header: Dataset, instances: int) -> tuple[Rule | None, str]:
        """The first rule that a series meets, or None and why each says no; see `Rule.against`."""
        reasons = []
        for rule in self.rules:
            reason = rule.against(header, instances)
            if not reason:
                return rule, ""
            reasons.append(f"{rule.name}: {reason}")
        return None, "; ".join(reasons)


def load_config(path: str | Path) -> WatchConfig:
    """Read a configuration. Relative paths in it are those of the working directory.

    Raises:
        ConfigError: the file is missing or no TOML, or a key is unknown, missing or out of range; it names the key.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: not a TOML file ({error}); the README shows one") from error
    try:
        return WatchConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_problem, error.errors()[:3]))}") from error


def _problem(error: Any) -> str:
    """One line: key, what was expected, what came."""
    parts = [str(part) for part in error["loc"]]
    if parts[:1] in (["source"], ["target"]) and len(parts) > 2:
        del parts[1]  # the kind, which pydantic names too
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; check its spelling"
    if error["type"] == "missing":
        return f"{key}: is missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.kind: is missing"
    message = error["msg"].removeprefix("Value error, ")
    came = "" if isinstance(error["input"], dict | BaseModel) or key.endswith("url") else f", got {error['input']!r}"
    return f"{key}: {message}{came}" if key else message
