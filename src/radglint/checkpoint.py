"""Checkpoint folders: all that decides an answer, in plain files that can be inspected; strict; no pickle, no code.

config.json        GlintConfig, format version, how the weights are packed
model.safetensors  every parameter, named as in GlintModel.state_dict(), backbones as published
tokenizer.json     the text tower's fast tokenizer
prompts.json       concept -> sentences
calibration.json   Calibration
fingerprint.json   SHA-256 of the files above, outputs on a fixed input, versions they were made with
provenance.json    licences of code, weights and data, and where they come from
README.md          model card
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers.initialization import no_init_weights

from radglint.calibration_record import LocalCalibration
from radglint.decisions import Abstention, Threshold
from radglint.density import DensityRange
from radglint.errors import CheckpointError
from radglint.fingerprint import check_outputs, probe_outputs, versions
from radglint.model import GlintConfig, GlintModel
from radglint.packing import Packing, pack_state, read_state
from radglint.score_maps import LogisticMap, ScoreMap
from radglint.stored_names import stored_names
from radglint.writing import folder_transaction, output_errors, write_json, write_text

FORMAT = "radglint-checkpoint"
FORMAT_VERSION = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PROMPTS, CALIBRATION = "prompts.json", "calibration.json"
FINGERPRINT, PROVENANCE, CARD = "fingerprint.json", "provenance.json", "README.md"
HASHED_FILES = (CONFIG, WEIGHTS, TOKENIZER, PROMPTS, CALIBRATION)  # what decides an answer
FILES = (*HASHED_FILES, FINGERPRINT, PROVENANCE, CARD)
LICENCE_PARTS = ("code", "weights", "data")
LATER_KEYS = frozenset(
    {"at_heart", "thresholds", "abstention", "local", "uncalibrated"}
)  # of a calibration; unwritten if empty
AGAIN = "copy or download the checkpoint again"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalityCalibration(_Strict):
    """From raw scores to logits, for one modality.

    Attributes:
        presence: concept to the map from its score (cosine) to the logit of "it is there".
        presence_default: the same for phrases that belong to no concept.
        pixel: map from a token's raw map logit to the logit of "it is here".
        pixel_by_concept: the same for concepts that have one of their own.
        in_lungs: concepts that lie in the lungs only: their gate opens where the branch's place field says.
        at_heart: concepts of the heart as a whole: the gate says whether, their map is the heart (see `place`).
        density: concepts of a CT to the HU that they can have.
        thresholds: concepts with a threshold of their own, chosen on labelled cases.
        abstention: concepts that are not decided where labelled cases did not tell them apart.
        uncalibrated: concepts whose map was never fitted to a labelled case; their answers say so.
        local: the labelled cases behind all this, if `radglint calibrate` has changed anything.
    """

    presence: dict[str, ScoreMap] = {}
    presence_default: LogisticMap
    pixel: LogisticMap
    pixel_by_concept: dict[str, LogisticMap] = {}
    in_lungs: tuple[str, ...] = ()
    at_heart: tuple[str, ...] = ()
    density: dict[str, DensityRange] = {}
    thresholds: dict[str, Threshold] = {}
    abstention: dict[str, Abstention] = {}
    uncalibrated: tuple[str, ...] = ()
    local: LocalCalibration | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later the same bytes, so the same fingerprint, as before there was any."""
        document = handler(self)
        return {key: value for key, value in document.items() if key not in LATER_KEYS or value}


class Calibration(_Strict):
    """How raw outputs become probabilities, and where the numbers come from.

    Attributes:
        modalities: one entry per branch of the model.
        scope_threshold: a phrase less similar than this to every known concept is out of scope.
        origin: the data that this was fitted on, in words.
    """

    modalities: dict[Literal["CXR", "CT"], ModalityCalibration]
    scope_threshold: FiniteFloat
    origin: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: float32, in eval mode, on the CPU.
        prompts: concept to sentences.
        calibration: raw outputs to probabilities.
        provenance: licences and sources.
        fingerprint: 12 hexadecimal digits over all files that decide an answer.
        name: the model's own name.
        folder: where it was loaded from.
        quantize: how the weights are packed; saving again with it gives the same weights.
    """

    model: GlintModel
    prompts: dict[str, list[str]]
    calibration: Calibration
    provenance: dict[str, Any]
    fingerprint: str
    name: str
    folder: Path
    quantize: Packing

    def save_pretrained(self, folder: str | os.PathLike[str], *, quantize: Packing | None = None) -> str:
        """Write the checkpoint to another folder (see `save_checkpoint`); packed as it was unless told otherwise."""
        return save_checkpoint(
            folder, self.model, prompts=self.prompts, calibration=self.calibration, provenance=self.provenance,
            quantize=quantize or self.quantize,
        )  # fmt: skip


def save_checkpoint(
    folder: str | os.PathLike[str], model: GlintModel, *, prompts: Mapping[str, list[str]], calibration: Calibration,
    provenance: Mapping[str, Any], quantize: Packing = "none", card: str | None = None,
) -> str:  # fmt: skip
    """Write a checkpoint folder, whole or not at all, and prove that it loads.

    Args:
        folder: made if missing; files of the same names are replaced together.
        model: any device and mode; it is not changed.
        prompts: concept to sentences.
        calibration: one entry per branch of the model.
        provenance: JSON facts; `licences` with the keys code, weights and data is required.
        quantize: none = float32; bfloat16 = matrices in bfloat16; int8_trunk = matrices of image trunk and text tower
            in int8 with a float32 scale per row, those of the branches in bfloat16. Vectors stay float32.
        card: Markdown of README.md; None writes a short one from `provenance`.

    Returns:
        The fingerprint's 12 digits.

    Raises:
        CheckpointError: the parts do not fit each other.
        OutputError: the folder cannot be written.
    """
    _check_parts(Path(folder), model.config, calibration, provenance)
    config = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "name": model.config.name,
        "modalities": sorted(model.config.branches), "quantize": quantize,
        "model": model.config.model_dump(mode="json"),
    }  # fmt: skip
    with folder_transaction(folder) as staging:
        write_json(staging / CONFIG, config)
        with output_errors(staging / WEIGHTS):
            names = stored_names(model)
            state = {names[name]: tensor for name, tensor in model.state_dict().items()}
            save_file(pack_state(state, quantize), staging / WEIGHTS, metadata={"format": "pt"})
        write_text(staging / TOKENIZER, model.text.tokenizer.to_str(pretty=False))
        write_json(staging / PROMPTS, dict(prompts))
        write_json(staging / CALIBRATION, calibration.model_dump(mode="json"))
        outputs = probe_outputs(_load_model(staging)[0])
        hashes = _hashes(staging)
        short = _short(hashes)
        write_json(staging / FINGERPRINT, {"id": short, "files": hashes, "outputs": outputs, "versions": versions()})
        write_json(staging / PROVENANCE, {**provenance, "fingerprint": {"hash": short}})
        write_text(staging / CARD, card if card is not None else _card(model.config, provenance, short))
    return short


def load_checkpoint(folder: str | os.PathLike[str], *, verify: bool = True) -> Checkpoint:
    """Load a checkpoint folder strictly and check that it still gives its recorded outputs.

    Args:
        folder: a folder written by `save_checkpoint`.
        verify: False skips the hashes and the recorded outputs (for a checkpoint under construction).

    Returns:
        The checkpoint; model in eval mode on the CPU.

    Raises:
        CheckpointError: a file is missing, broken, altered or of another version; a tensor is missing, unknown or of
            another shape; or the outputs differ from the recorded ones.
    """
    folder = Path(folder)
    _check_files(folder)
    model, config = _load_model(folder)
    prompts = _validated(folder / PROMPTS, TypeAdapter(dict[str, list[str]]))
    calibration = _validated(folder / CALIBRATION, TypeAdapter(Calibration))
    provenance = _read_object(folder / PROVENANCE)
    recorded = _read_object(folder / FINGERPRINT)
    _check_parts(folder, model.config, calibration, provenance)
    hashes = _hashes(folder)
    if verify:
        _check_hashes(folder, hashes, recorded)
        check_outputs(folder / FINGERPRINT, probe_outputs(model), recorded)
    facts = {key: value for key, value in provenance.items() if key != "fingerprint"}
    return Checkpoint(
        model=model, prompts=prompts, calibration=calibration, provenance=facts, fingerprint=_short(hashes),
        name=model.config.name, folder=folder, quantize=config["quantize"],
    )  # fmt: skip


def _check_files(folder: Path) -> None:
    """Every file is there; pickles are never an alternative."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise CheckpointError(f"{folder}: expected a checkpoint folder, found {found}; give the folder with {CONFIG}")
    missing = [name for name in FILES if name != CARD and not (folder / name).is_file()]
    if missing:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        refused = f" ({', '.join(pickles)} is a pickle and never read)" if pickles and WEIGHTS in missing else ""
        raise CheckpointError(f"{folder}: lacks {', '.join(missing)}{refused}; {AGAIN}")


def _load_model(folder: Path) -> tuple[GlintModel, dict[str, Any]]:
    """The model with its weights, in eval mode, and the whole of config.json."""
    document = _read_config(folder / CONFIG)
    config = _validated_value(folder / CONFIG, TypeAdapter(GlintConfig), document["model"])
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    try:
        # Every parameter is loaded over below; the few that are drawn all the same must not move the user's generator.
        with no_init_weights(), torch.random.fork_rng(devices=[]):
            model = GlintModel(config, tokenizer)
    except Exception as error:
        raise CheckpointError(f"{folder / CONFIG}: no model can be built from it ({_line(error)}); {AGAIN}") from error
    names = stored_names(model)
    expected = {names[name]: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = read_state(folder / WEIGHTS, expected)
    model.load_state_dict({name: state[names[name]] for name in names}, strict=True, assign=True)
    return model.eval(), document


def _read_config(path: Path) -> dict[str, Any]:
    document = _read_object(path)
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {document.get('format')!r}; choose another")
    if document.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, got {document.get('format_version')!r}; "
            "use the radglint version that wrote it"
        )
    wanted = {"format", "format_version", "name", "modalities", "quantize", "model"}
    if set(document) != wanted or document["quantize"] not in ("none", "bfloat16", "int8_trunk"):
        got = f"{sorted(document)} with quantize {document.get('quantize')!r}"
        raise CheckpointError(f"{path}: expected the keys {sorted(wanted)} and a known quantize, got {got}; {AGAIN}")
    return document


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer ({_line(error)}); {AGAIN}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({_line(error)}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}; {AGAIN}")
    return value


def _validated(path: Path, adapter: TypeAdapter[Any]) -> Any:
    return _validated_value(path, adapter, _read_object(path))


def _validated_value(path: Path, adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(f"{path}: {place}: {first['msg']}; {AGAIN}") from error


def _check_parts(folder: Path, config: GlintConfig, calibration: Calibration, provenance: Mapping[str, Any]) -> None:
    """Calibration fits the branches; the three licences are stated."""
    if set(calibration.modalities) != set(config.branches):
        got = sorted(calibration.modalities)
        wanted = sorted(config.branches)
        raise CheckpointError(f"{folder / CALIBRATION}: expected entries for {wanted}, got {got}; {AGAIN}")
    licences = provenance.get("licences")
    lacking = [part for part in LICENCE_PARTS if not (isinstance(licences, Mapping) and licences.get(part))]
    if lacking:
        raise CheckpointError(f"{folder / PROVENANCE}: licences lacks {', '.join(lacking)}; state {LICENCE_PARTS}")


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that decides an answer."""
    hashes = {}
    for name in HASHED_FILES:
        with open(folder / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _short(hashes: Mapping[str, str]) -> str:
    text = "".join(f"{name} {hashes[name]}\n" for name in HASHED_FILES)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_hashes(folder: Path, hashes: Mapping[str, str], recorded: Mapping[str, Any]) -> None:
    files = recorded.get("files")
    if not isinstance(files, Mapping):
        raise CheckpointError(f"{folder / FINGERPRINT}: files does not list hashes, so it was altered; {AGAIN}")
    altered = [name for name in HASHED_FILES if files.get(name) != hashes[name]]
    if altered or recorded.get("id") != _short(hashes):
        altered = altered or [FINGERPRINT]
        raise CheckpointError(f"{folder / altered[0]}: was altered since it was saved ({', '.join(altered)}); {AGAIN}")


def _card(config: GlintConfig, provenance: Mapping[str, Any], short: str) -> str:
    """A short model card."""
    licences = provenance["licences"]
    lines = [f"# {config.name}", "", f"A radglint GLINT model for {' and '.join(sorted(config.branches))}. "
             "Not a medical device; for research.", "", f"- fingerprint: `{short}`"]  # fmt: skip
    lines += [f"- licence of the {part}: {licences[part]}" for part in LICENCE_PARTS]
    lines += ["", "## Provenance", "", "```json", json.dumps(provenance, indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
