"""`radglint evaluate`: a model, a manifest and a label set to answers, results JSON, a table and a page.

manifest rows --answers.collect--> answers.jsonl, one line an image (a stopped run goes on)
lines --classify, locate, trust, retrieve, probe--> protocols
protocols --> results.json, index.html
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from radglint.errors import ConfigError, InputError, shown
from radglint.evaluation import classify, locate, retrieve, trust
from radglint.evaluation.answers import Asked, collect, run_key
from radglint.evaluation.page import write_page
from radglint.evaluation.probe_features import probes
from radglint.evaluation.protocols import (
    ALL,
    CLASSIFICATION,
    GROUNDING,
    SENSITIVITY_STYLES,
    check_protocols,
    needed_styles,
)
from radglint.evaluation.questions import styled_prompts
from radglint.evaluation.results import LeftOut, ManifestFacts, ModelFacts, ProtocolResult, Results, write_results
from radglint.evaluation.tables import answered
from radglint.evaluation.truth import with_simulated_truth
from radglint.evaluation.worst_cases import with_cases
from radglint.manifest import ManifestRow, read_manifest
from radglint.pipeline import Pipeline, load
from radglint.prompt_banks import PromptBank, load_bank
from radglint.toml_files import read_toml

ANSWERS, RESULTS, PAGE = "answers.jsonl", "results.json", "index.html"
Line = dict[str, Any]


class SuiteConfig(BaseModel):
    """One evaluation, as a TOML file holds it; paths are relative to where the command is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    manifest: Path
    out: Path
    bank: str  # label set: a name of `radglint.prompt_banks`, or the path of a JSON file
    model: str = "nano"
    split: Literal["train", "val", "test", "all"] = "test"
    validation_split: Literal["train", "val", "test"] | None = "val"  # chooses the honest thresholds
    probe_split: Literal["train"] | None = None  # fits the linear probe; None = three quarters of the validation split
    protocols: tuple[str, ...] = ALL
    unit: Literal["patient", "study", "image"] = "patient"  # what the honest column draws
    draws: PositiveInt = 1000
    seed: int = 0
    limit: PositiveInt | None = None  # images of each split; the first ones
    retrieval_images: PositiveInt = 200  # reports that are searched for, and images to search in
    shown_cases: PositiveInt = 4  # best and worst each

    @property
    def choosing_split(self) -> str | None:
        """The split that chooses thresholds; none where the judged one would choose its own."""
        return None if self.split in ("all", self.validation_split) else self.validation_split

    @property
    def fitting_split(self) -> str | None:
        """The split that fits the linear probe; none where the judged one would be fitted on."""
        return None if self.split in ("all", self.probe_split) else self.probe_split


@dataclass(frozen=True)
class Suite:
    """What a name stands for: a label set and the protocols that its data can carry.

    Attributes:
        bank: label set.
        protocols: in order.
        data: what the manifest must come from.
        validation_split: None where the data set publishes none.
    """

    bank: str
    protocols: tuple[str, ...]
    data: str
    validation_split: Literal["train", "val", "test"] | None = "val"


_PRESENCE_CXR = (
    "radglint",
    "chexzero",
    "radzero",
    "medklip",
    "merlin",
    "calibration",
    "prompt-sensitivity",
    "trust",
    "probe",
)
_PRESENCE_CT = ("radglint", "ct-clip", "hlip", "merlin", "calibration", "prompt-sensitivity", "trust", "probe")
_PLACE = ("pointing", "cnr", "sweep", "zero-shot-segmentation", "presence")
SUITES: dict[str, Suite] = {
    "simfind-cxr": Suite("simfind_cxr", (*_PRESENCE_CXR, *_PLACE, "retrieval"), "simulate --benchmark simfind-cxr"),
    "simfind-ct": Suite("simfind_ct", (*_PRESENCE_CT, *_PLACE, "vlm3d"), "simulate --benchmark simfind-ct"),
    "simfind-drr": Suite("simfind_cxr", (*_PRESENCE_CXR, *_PLACE), "simulate --benchmark simfind-drr", None),
    "chestxray14": Suite("chestxray14", (*_PRESENCE_CXR, *_PLACE), "data convert nih-chestxray14"),
    "chexpert5": Suite("chexpert5", _PRESENCE_CXR, "data convert chexpert"),
    "openi18": Suite("openi18", (*_PRESENCE_CXR, "retrieval"), "data convert openi", None),
    "padchest": Suite("padchest", _PRESENCE_CXR, "data convert padchest", None),
    "vindr22": Suite("vindr22", (*_PRESENCE_CXR, *_PLACE), "data convert vindr-cxr", None),
    "rsna": Suite("rsna", ("radglint", "radzero", "calibration", *_PLACE), "data convert rsna-pneumonia", None),
    "siim": Suite("siim", ("radglint", "radzero", "calibration", *_PLACE), "data convert siim-pneumothorax", None),
    "mscxr": Suite("mscxr8", ("pointing", "cnr", "sweep"), "data convert ms-cxr"),
    "chestxdet10": Suite("chestxdet10", ("radglint", "radzero", *_PLACE), "data convert chestx-det10", "train"),
    "chexlocalize10": Suite("chexlocalize10", _PLACE, "data convert chexlocalize"),
    "ctrate18": Suite("ctrate18", (*_PRESENCE_CT, "retrieval"), "data convert ct-rate-v2", None),
    "hlip16": Suite("hlip16", _PRESENCE_CT, "data convert ct-rate-v2", None),
    "radchestct16": Suite("radchestct16", _PRESENCE_CT, "data convert rad-chestct"),
    "rexgroundingct": Suite("rexgroundingct", ("rexgroundingct", *_PLACE), "data convert rexgroundingct"),
    "vlm3d5": Suite("vlm3d5", ("vlm3d", *_PLACE), "volumes with masks of the five findings"),
    "lidc": Suite("lidc", ("radglint", *_PLACE, "vlm3d"), "data convert lidc-idri", None),
}  # fmt: skip


def load_suite(path: Path) -> SuiteConfig:
    """Read a configuration.

    Raises:
        ConfigError: no TOML, an unknown key, a value out of range, an unknown protocol.
    """
    values = read_toml(path, "give a file such as recipes/evaluate_cxr.toml")
    return suite_config(values, str(path))


def suite_config(values: dict[str, Any], where: str) -> SuiteConfig:
    """Check the values of a configuration.

    Raises:
        ConfigError: all problems in one message, each with its key.
    """
    try:
        config = SuiteConfig.model_validate(values)
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {shown(e['input'])}" for e in error.errors()]
        problems = "; ".join(parts)
        raise ConfigError(f"{where}: {problems}") from error
    check_protocols(config.protocols)
    return config


def check_suite(name: str) -> None:
    """Refuse an unknown suite.

    Raises:
        ConfigError: it lists those that there are.
    """
    if name not in SUITES:
        raise ConfigError(f"--suite: no suite {name!r}; choose from {', '.join(SUITES)}")


def named_suite(name: str, manifest: Path, out: Path, **changes: Any) -> SuiteConfig:
    """The configuration of a suite by its name.

    Raises:
        ConfigError: an unknown suite; it lists those that there are.
    """
    check_suite(name)
    suite = SUITES[name]
    values = {"name": name, "manifest": manifest, "out": out, "bank": suite.bank, "protocols": suite.protocols,
              "validation_split": suite.validation_split}  # fmt: skip
    return suite_config(values | {key: value for key, value in changes.items() if value is not None}, f"--suite {name}")


def evaluate(config: SuiteConfig, command: str = "") -> Results:
    """Run an evaluation and write its files below `config.out`.

    Args:
        config: what to measure.
        command: as it was typed, for the record.

    Returns:
        The results, also in `results.json`; `index.html` shows them.

    Raises:
        InputError: the manifest or a mask cannot be used; no row of the split; answers of another model in the folder.
    """
    bank = load_bank(config.bank)
    rows = chosen_rows(config, bank)
    pipe = load(config.model)
    config.out.mkdir(parents=True, exist_ok=True)
    asked = what_to_ask(config, bank, rows, pipe)
    lines = collect(pipe, rows, asked, config.out / ANSWERS)
    measured, left_out = said_something(measure(config, bank, lines, rows, pipe))
    protocols = with_cases(measured, pipe, rows, lines, config, bank)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"), radglint_version=version("radglint"),
        versions=_versions(), seed=config.seed, command=command, suite=config.name, split=config.split,
        model=model_facts(pipe),
        manifest=manifest_facts(config, rows), unit_of_analysis=config.unit,
        resampled=f"honest: {config.unit}s, {config.draws} draws, 95 % percentile intervals; published: images",
        protocols=tuple(protocols), notes=few_patients(answered(lines), config), left_out=(*_unread(lines), *left_out),
    )  # fmt: skip
    write_results(config.out / RESULTS, results)
    write_page(results, config.out / PAGE, config.out)
    return results


def chosen_rows(config: SuiteConfig, bank: PromptBank) -> list[ManifestRow]:
    """Rows of the split that is judged and of the one that chooses thresholds, with their truth.

    Raises:
        InputError: none is of the split, or none of the bank's modality.
    """
    rows = [with_simulated_truth(row) for row in read_manifest(config.manifest)]
    wanted = {config.split, config.choosing_split, config.fitting_split}
    found = [row for row in rows if "all" in wanted or row.split in wanted]
    found = [row for row in found if bank.modality in ("any", row.modality)]
    if not any(config.split in ("all", row.split) for row in found):
        splits = sorted({row.split or "(none)" for row in rows})
        raise InputError(
            f"{config.manifest}: no {bank.modality} row of split {config.split!r}, only {', '.join(splits)}; set split"
        )
    if config.limit is None:
        return found
    return [row for part in _by_split(found) for row in part[: config.limit]]


def _by_split(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    return [[row for row in rows if row.split == split] for split in dict.fromkeys(row.split for row in rows)]


def what_to_ask(config: SuiteConfig, bank: PromptBank, rows: Sequence[ManifestRow], pipe: Pipeline) -> Asked:
    """Sentences and switches of the run."""
    prompts = tuple(styled_prompts(bank, needed_styles(config.protocols)))
    tested = [row for row in rows if config.split in ("all", row.split)]
    sentences = retrieve.sentences_of(tested, config.retrieval_images) if "retrieval" in config.protocols else ()
    with_maps, with_trust = bool(set(config.protocols) & set(GROUNDING)), "trust" in config.protocols
    texts = [(p.class_name, p.style, p.positive, p.negative) for p in prompts]
    key = run_key(pipe.model.fingerprint, _sha256(config.manifest), bank.name, texts, sentences, with_maps, with_trust)
    return Asked(bank, prompts, tuple(sentences), config.manifest.parent, with_maps, with_trust, key)


def measure(
    config: SuiteConfig, bank: PromptBank, lines: Sequence[Line], rows: Sequence[ManifestRow], pipe: Pipeline
) -> list[ProtocolResult]:  # fmt: skip
    """Every protocol of the configuration, in its order."""
    test = answered(lines, None if config.split == "all" else config.split)
    validation = answered(lines, config.choosing_split) if config.choosing_split else []
    if not test:
        raise InputError(
            f"{config.manifest}: no image of split {config.split!r} could be read; see {config.out / ANSWERS}"
        )
    fitted = answered(lines, config.fitting_split) if config.fitting_split else []
    placer = locate.Placer(bank, test, config.unit, config.draws, config.seed)
    many: dict[str, Any] = {"unit": config.unit, "draws": config.draws, "seed": config.seed}
    scale = classify.scale_of(_logit_scale(pipe, bank))
    runs: dict[str, Callable[[], ProtocolResult]] = {
        "pointing": lambda: locate.pointing(placer), "cnr": lambda: locate.contrast(placer),
        "sweep": lambda: locate.sweep(placer),
        "zero-shot-segmentation": lambda: locate.segmentation(placer, validation),
        "presence": lambda: locate.presence_gated(placer), "vlm3d": lambda: locate.vlm3d(placer),
        "rexgroundingct": lambda: locate.rexgroundingct(placer),
        "calibration": lambda: trust.calibration(bank, test, unit=config.unit),
        "trust": lambda: trust.trust(bank, test, **many),
        "prompt-sensitivity": lambda: classify.prompt_sensitivity(bank, test, SENSITIVITY_STYLES, **many),
        "retrieval": lambda: retrieve.retrieval(bank, test, rows, config.retrieval_images),
        "probe": lambda: probes(bank, fitted, validation, test),
    }  # fmt: skip
    for name, protocol in CLASSIFICATION.items():
        runs[name] = lambda p=protocol: classify.classify(p, bank, test, validation, scale=scale, **many)
    return [runs[name]() for name in config.protocols]


def few_patients(lines: Sequence[Line], config: SuiteConfig) -> tuple[str, ...]:
    """A warning where the honest column has too few patients for intervals."""
    key = "id" if config.unit == "image" else config.unit
    count = len({line[key] for line in lines if config.split in ("all", line["split"])})
    if count >= classify.LEAST_GROUPS:
        return ()
    return (
        f"only {count} {config.unit}s: the honest column has no intervals ({classify.LEAST_GROUPS} are needed), and "
        "the published ones, which draw images, say nothing of other patients",
    )


def said_something(protocols: Sequence[ProtocolResult]) -> tuple[list[ProtocolResult], list[LeftOut]]:
    """Protocols that measured anything; the others as left out, with their first reason."""
    empty = [p for p in protocols if not any(p.means.values())]
    left_out = [LeftOut(what=p.title, why=p.left_out[0].why if p.left_out else "no case for it") for p in empty]
    return [p for p in protocols if any(p.means.values())], left_out


def _logit_scale(pipe: Pipeline, bank: PromptBank) -> float:
    model = getattr(pipe.model, "model", None)
    modality = "CXR" if bank.modality == "any" else bank.modality
    if model is None or modality not in model.branches:
        return 0.0
    return float(model.branch(modality).logit_scale.detach())


def _unread(lines: Sequence[Line]) -> list[LeftOut]:
    broken = [line for line in lines if "error" in line]
    if not broken:
        return []
    first = "; ".join(line["error"] for line in broken[:3])
    return [LeftOut(what="images that could not be read", count=len(broken), why=first)]


def model_facts(pipe: Pipeline) -> ModelFacts:
    """Name, fingerprint and the hash of the weights file."""
    weights = pipe.model.folder / "model.safetensors"
    return ModelFacts(name=pipe.model.name, fingerprint=pipe.model.fingerprint, weights_sha256=_sha256(weights))


def manifest_facts(config: SuiteConfig, rows: Sequence[ManifestRow]) -> ManifestFacts:
    """Counts over the rows that are judged."""
    tested = [row for row in rows if config.split in ("all", row.split)]
    names = sorted({row.dataset for row in tested if row.dataset})
    return ManifestFacts(
        path=config.manifest.name, sha256=_sha256(config.manifest), rows=len(tested),
        patients=len({row.patient or row.id for row in tested}), images=len(tested), dataset=", ".join(names),
        licence=_licences(names),
    )  # fmt: skip


def _licences(names: Sequence[str]) -> str:
    from radglint.datasets.registry import DATASETS

    return "; ".join(f"{name}: {DATASETS[name].licence}" for name in names if name in DATASETS)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
