"""`radglint models pack`: what `radglint train` wrote becomes a checkpoint folder that can be asked.

    run.json, weights --read_run--> the run, finished and whole
    "pairs": the model as written;  "cases": the branch, with the trunk that its tokens came from
    prompts of the model that ships, a neutral calibration, provenance --save_checkpoint--> the folder

Training gives scores that rank and no probabilities. The calibration written here says so: every concept is listed as
uncalibrated, its map is the score itself as a logit, and each answer carries the remark until `radglint calibrate` has
fitted it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from radglint import registry
from radglint.checkpoint import PROMPTS, Calibration, ModalityCalibration, save_checkpoint
from radglint.encoders.backbones import image_encoder, load_backbone
from radglint.encoders.text import TextEncoder
from radglint.encoders.video import VideoEncoder
from radglint.encoders.vit import VitEncoder
from radglint.errors import CheckpointError, ConfigError, OutputError, TrainingError
from radglint.model import GlintConfig, GlintModel, trunk_blocks
from radglint.packing import Packing
from radglint.scope import OUTSIDE
from radglint.score_maps import LogisticMap
from radglint.train_config import CachedData, PairData, TrainConfig, parse_config
from radglint.train_pairs import MODEL_CONFIG, MODEL_TOKENIZER, MODEL_WEIGHTS, load_trained
from radglint.train_towers import load_text_tower

RUN, BRANCH, BRANCH_CONFIG, METRICS = "run.json", "branch.safetensors", "branch.json", "metrics.json"
SCOPE_THRESHOLD = 0.5  # as that of the model that ships
NEUTRAL = LogisticMap(slope=1.0, bias=0.0)  # keeps every order; claims nothing
NOT_STATED = "not stated by whoever trained it"
AGAIN = "train it to the end with `radglint train CONFIG.toml --resume`"
_PATHS = frozenset({"out", "init", "folder", "source", "manifests", "shards", "val_manifest", "cache"})


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        folder: the checkpoint.
        name: of the model.
        fingerprint: of the checkpoint.
        modality: what it can be asked about.
    """

    folder: Path
    name: str
    fingerprint: str
    modality: str


def pack(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, trunk: str | os.PathLike[str] | None = None,
    name: str | None = None, quantize: Packing = "none", training_data: str | None = None, licence: str | None = None,
) -> Packed:  # fmt: skip
    """Write the checkpoint of a finished run.

    Args:
        run: the `out` folder of `radglint train`.
        out: the folder to make; it must not exist, or be empty.
        trunk: folder of the transformers trunk whose tokens a run on cached cases was trained on; for such a run only.
        name: of the model; by default that of the run.
        quantize: see `save_checkpoint`.
        training_data: origin and licence of the training data, in words.
        licence: of the weights.

    Raises:
        TrainingError: the run is not finished, or damaged.
        ConfigError: a trunk is missing, or given where the run has its own; an empty name.
        CheckpointError: a tower cannot be loaded, or is not the one that was trained on.
        OutputError: `out` is in the way or cannot be written.
    """
    folder, run = Path(os.path.abspath(os.path.expanduser(out))), Path(run).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: is in the way; remove it or choose another --out")
    config = read_run(run)
    name = config.name if name is None else name.strip()
    if not name:
        raise ConfigError("--name: it is empty; give the model a name, or leave it out")
    model = _pair_model(run, config, trunk) if isinstance(config.data, PairData) else _case_model(run, config, trunk)
    _check_finite(run, model)
    model.config = model.config.model_copy(update={"name": name, "image_backbone": _public(model.config.image_backbone),
                                                   "text_backbone": _public(model.config.text_backbone)})  # fmt: skip
    prompts = default_prompts()
    fingerprint = save_checkpoint(
        folder, model, prompts=prompts, calibration=neutral_calibration(config, list(prompts)), quantize=quantize,
        provenance=provenance(run, config, trunk, training_data, licence),
    )  # fmt: skip
    return Packed(folder, name, fingerprint, config.branch.preprocess.kind)


# --- the run --------------------------------------------------------------------------------------------------------


def read_run(run: Path) -> TrainConfig:
    """The configuration of a run that ended well.

    Raises:
        TrainingError: no run, not finished, or its configuration cannot be read.
    """
    if not (run / RUN).is_file():
        raise TrainingError(f"{run}: no run of `radglint train`, it lacks {RUN}; give the `out` folder of a run")
    document = _json(run / RUN)
    if not isinstance(document.get("config"), dict):
        raise TrainingError(f"{run / RUN}: expected the key 'config', got {sorted(document)[:8]}; {AGAIN}")
    try:
        config = parse_config(document["config"], str(run / RUN))
    except ConfigError as error:
        raise TrainingError(f"{error}; use the radglint version that trained it") from error
    missing = [name for name in _written(config) if not (run / name).is_file()]
    if missing:
        raise TrainingError(f"{run}: is not finished, it lacks {', '.join(missing)}; {AGAIN}")
    return config


def _written(config: TrainConfig) -> Sequence[str]:
    """The files that a run writes at its end."""
    if isinstance(config.data, PairData):
        return (MODEL_WEIGHTS, BRANCH, MODEL_CONFIG, MODEL_TOKENIZER, METRICS)
    return (BRANCH, BRANCH_CONFIG, *((METRICS,) if config.data.val_prefix is not None else ()))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: cannot be read as JSON ({error}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path}: expected a JSON object, got {type(value).__name__}; {AGAIN}")
    return value


def _pair_model(run: Path, config: TrainConfig, trunk: str | os.PathLike[str] | None) -> GlintModel:
    """The model that a run on pairs wrote."""
    if trunk is not None:
        raise ConfigError(f"--trunk: {run} holds its own trunk; leave it out")
    try:
        model = load_trained(run)
    except Exception as error:  # tokenizers raises bare Exception
        raise TrainingError(f"{run}: what it wrote cannot be loaded ({_line(error)}); {AGAIN}") from error
    if model.config.branches != {config.branch.preprocess.kind: config.branch}:
        raise TrainingError(f"{run / MODEL_CONFIG}: its branch is not that of {RUN}: files of two runs; {AGAIN}")
    return model


def _case_model(run: Path, config: TrainConfig, trunk: str | os.PathLike[str] | None) -> GlintModel:
    """Branch, trunk and text tower of a run on cached cases."""
    if trunk is None:
        raise ConfigError(f"{run}: was trained on cached tokens; give the folder of their trunk with --trunk")
    state = _branch_state(run)
    backbone = load_backbone(Path(trunk).expanduser())
    encoder = image_encoder(backbone)
    _check_trunk(Path(trunk), encoder, config, state)
    text = load_text_tower(config.text)
    model = _assembled(config, encoder, backbone, text)
    try:
        model.branch(config.branch.preprocess.kind).load_state_dict(state, strict=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise TrainingError(f"{run / BRANCH}: does not fit {RUN} and the text tower ({problem}); {AGAIN}") from error
    return model.eval()


def _assembled(config: TrainConfig, encoder: Any, backbone: Any, text: TextEncoder) -> GlintModel:
    glint = GlintConfig(
        name=config.name, image_backbone=backbone.config.to_dict(), text_backbone=text.backbone.config.to_dict(),
        max_text_tokens=config.text.max_text_tokens, train_text=False,
        branches={config.branch.preprocess.kind: config.branch},
    )  # fmt: skip
    model = GlintModel(glint, text.tokenizer)
    model.trunk, model.text = encoder, text
    return model


def _branch_state(run: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(run / BRANCH)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{run / BRANCH}: cannot be read ({_line(error)}); {AGAIN}") from error


def _check_trunk(
    folder: Path, encoder: VitEncoder | VideoEncoder, config: TrainConfig, state: Mapping[str, torch.Tensor]
) -> None:
    """Width, blocks and patch are those of the cached tokens; more cannot be told from the branch."""
    entry, blocks = state.get("mixer.enter.weight"), 1 + len(config.branch.trunk_layers)
    if entry is not None and entry.shape[1] != blocks * encoder.embed_dim:
        raise CheckpointError(
            f"--trunk {folder}: is {encoder.embed_dim} wide, the run was trained on tokens of a trunk "
            f"{entry.shape[1] / blocks:g} wide; give the trunk that made them"
        )
    deepest, there = max(config.branch.trunk_layers, default=0), len(trunk_blocks(encoder))
    if deepest > there:
        raise CheckpointError(f"--trunk {folder}: has {there} blocks, the run reads block {deepest}; give its trunk")
    patch, wanted = getattr(encoder, "patch_px", None), config.branch.preprocess.patch_px
    if patch not in (None, wanted):
        raise CheckpointError(f"--trunk {folder}: has patches of {patch} px, the run of {wanted} px; give its trunk")


def _check_finite(run: Path, model: GlintModel) -> None:
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise TrainingError(f"{run}: weights are not finite ({', '.join(bad[:3])}); train again at a lower rate")


# --- what stands beside the weights -----------------------------------------------------------------------------------


def default_prompts() -> dict[str, list[str]]:
    """The prompt bank of the model that ships."""
    path = registry.shipped_folder() / registry.DEFAULT_MODEL / PROMPTS
    return json.loads(path.read_text(encoding="utf-8"))


def neutral_calibration(config: TrainConfig, concepts: Sequence[str]) -> Calibration:
    """Score and map logit as they are, and every concept listed as uncalibrated.

    Args:
        config: of the run; its evidence loss fixes which map logit is neither yes nor no.
        concepts: of the prompt bank.
    """
    known = tuple(concept for concept in concepts if concept != OUTSIDE)
    fit = config.fit
    maps = ModalityCalibration(
        presence=dict.fromkeys(known, NEUTRAL), presence_default=NEUTRAL, uncalibrated=known,
        pixel=LogisticMap(slope=1.0, bias=-fit.evidence_offset if fit.evidence_weight else 0.0),
        in_lungs=fit.in_lungs if config.branch.place_field else (),
    )  # fmt: skip
    return Calibration(
        modalities={config.branch.preprocess.kind: maps}, scope_threshold=SCOPE_THRESHOLD,
        origin="UNCALIBRATED: no labelled case was used. A probability is the logistic function of the raw score, "
        "a place is marked where the gate is half open; run `radglint calibrate`",
    )  # fmt: skip


def provenance(
    run: Path, config: TrainConfig, trunk: str | os.PathLike[str] | None, training_data: str | None,
    licence: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Where the weights come from; of paths only the last part, which names no machine."""
    document, weights = _json(run / RUN), MODEL_WEIGHTS if isinstance(config.data, PairData) else BRANCH
    facts: dict[str, Any] = {
        "config": _names(document["config"]), "run_sha256": _sha256(run / RUN),
        "weights_sha256": {weights: _sha256(run / weights)}, "seed": config.fit.seed, "steps": config.fit.steps,
        "began": _date(run / RUN), "ended": _date(run / weights), "versions": document.get("versions"),
        "processes": document.get("processes"), "training_data": _data_names(config),
    }  # fmt: skip
    facts |= {"trunk": Path(trunk).expanduser().resolve().name} if trunk is not None else {}
    facts |= {"metrics": _json(run / METRICS)} if (run / METRICS).is_file() else {}
    licences = {
        "code": "Apache-2.0",
        "weights": licence or NOT_STATED,
        "data": training_data or f"{NOT_STATED}; trained on {', '.join(facts['training_data'])}",
    }
    return {"licences": licences, "calibration": "none, see `radglint calibrate`", "training": facts}


def _data_names(config: TrainConfig) -> list[str]:
    if isinstance(config.data, CachedData):
        return [f"{config.data.folder.name}/{prefix}" for prefix in config.data.train_prefixes]
    return [*(path.name for path in config.data.manifests), *(Path(pattern).name for pattern in config.data.shards)]


def _names(value: Any, key: str = "") -> Any:
    """A configuration without the folders of the machine it ran on; hub ids stay."""
    if isinstance(value, dict):
        return {inner: _names(item, inner) for inner, item in value.items()}
    if isinstance(value, list):
        return [_names(item, key) for item in value]
    is_local = isinstance(value, str) and key in _PATHS and (Path(value).is_absolute() or Path(value).exists())
    return Path(value).name if is_local else value


def _public(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Without private keys, which can name a folder."""
    return {key: value for key, value in backbone.items() if not key.startswith("_")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _date(path: Path) -> str:
    """When a file was written, UTC, to the second."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
