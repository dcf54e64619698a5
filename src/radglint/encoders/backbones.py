"""From a `transformers` configuration or checkpoint folder to an encoder of radglint. No remote code, ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from radglint.encoders.video import VideoEncoder
from radglint.encoders.vit import VitEncoder
from radglint.errors import CheckpointError, ConfigError

VIDEO_TYPES = ("vjepa2",)
# Keys of a configuration that must not decide anything here: number type, and anything that could name code to fetch.
IGNORED_KEYS = ("auto_map", "attn_implementation", "quantization_config", "dtype", "torch_dtype")


def config_from_dict(values: Mapping[str, Any]) -> PretrainedConfig:
    """A `transformers` configuration from its JSON form.

    Raises:
        ConfigError: `model_type` is missing or unknown to the installed transformers.
    """
    rest = {key: v for key, v in values.items() if key not in IGNORED_KEYS and not key.startswith("_")}
    model_type = rest.pop("model_type", None)
    try:
        return AutoConfig.for_model(str(model_type), **rest)
    except ValueError as error:
        raise ConfigError(f"model_type {model_type!r} is not known to the installed transformers") from error


def build_backbone(values: Mapping[str, Any]) -> PreTrainedModel:
    """An untrained backbone of the given configuration; its weights are to be loaded over."""
    return AutoModel.from_config(config_from_dict(values))


def load_backbone(source: str | Path, *, local_files_only: bool = True, revision: str | None = None) -> PreTrainedModel:
    """A pretrained backbone from a folder or a hub id, strictly: every tensor must be found.

    Args:
        source: folder with config.json and model.safetensors, or a hub id such as
            `facebook/dinov3-vitb16-pretrain-lvd1689m` or `facebook/vjepa2-vitl-fpc64-256`.
        local_files_only: True never asks the network.
        revision: hub revision.

    Raises:
        CheckpointError: not found, not safetensors, or tensors are missing or of another shape.
    """
    try:
        model, report = AutoModel.from_pretrained(
            str(source), local_files_only=local_files_only, revision=revision,
            use_safetensors=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(f"backbone {source}: cannot be loaded ({first_line})") from error
    wrong = {key: report[key] for key in ("missing_keys", "mismatched_keys") if report[key]}
    if wrong:
        raise CheckpointError(f"backbone {source}: tensors do not fit {type(model).__name__}: {wrong}")
    return model.eval()


def image_encoder(backbone: Any) -> VitEncoder | VideoEncoder:
    """The adapter that fits a backbone: video for V-JEPA 2, else ViT."""
    is_video = backbone.config.model_type in VIDEO_TYPES
    return VideoEncoder(backbone) if is_video else VitEncoder(backbone)
