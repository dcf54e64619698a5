"""A model's outputs on a small fixed input, to prove that a loaded model is the one that was saved."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from radglint.errors import CheckpointError
from radglint.model import GlintModel

TOLERANCE = 2e-3  # float32 on other processors and library versions stays far below this; another weight does not
PATCHES_PER_SIDE = 5
NUM_SLICES = 2  # of the probe for CT
SENTENCES = ("There is a nodule in the left lung.", "There is a large right pleural effusion.")
LIBRARIES = ("radglint", "torch", "transformers", "tokenizers", "safetensors")


def probe_pixels(patch_px: int, depth: int) -> torch.Tensor:
    """A fixed smooth pattern, `1 depth side side` in [0, 1], five patches along each side."""
    side = PATCHES_PER_SIDE * patch_px
    row = torch.arange(side, dtype=torch.float64)[:, None]
    column = torch.arange(side, dtype=torch.float64)
    across = torch.cos(0.07 * column + 0.002 * row * column)
    slices = [0.5 + 0.5 * torch.sin(0.11 * row + 0.4 * k) * across for k in range(depth)]
    return torch.stack(slices)[None].float()


@torch.no_grad()
def probe_outputs(model: GlintModel) -> dict[str, list[float]]:
    """Per branch: the score of each fixed sentence, then mean and root mean square of its gate logits.

    Args:
        model: float32, in eval mode.
    """
    outputs = {}
    for modality in sorted(model.config.branches):
        pixels = probe_pixels(model.trunk.patch_px, NUM_SLICES if modality == "CT" else 1)
        gated = model(pixels.to(next(model.parameters()).device), SENTENCES, modality).gated
        logits = gated.gate_logits.flatten(1)
        numbers = torch.cat([gated.scores.flatten(), logits.mean(dim=1), logits.square().mean(dim=1).sqrt()])
        outputs[modality] = [round(float(number), 6) for number in numbers]
    return outputs


def check_outputs(path: Path, outputs: Mapping[str, list[float]], recorded: Mapping[str, Any]) -> None:
    """Compare outputs with those recorded in a fingerprint file.

    Raises:
        CheckpointError: the record is malformed, or an output is off by more than `TOLERANCE`.
    """
    expected = recorded.get("outputs")
    sizes = {key: len(values) for key, values in outputs.items()}
    if not isinstance(expected, Mapping) or sizes != {k: len(v) for k, v in expected.items() if isinstance(v, list)}:
        raise CheckpointError(f"{path}: outputs do not list {sizes} numbers; copy or download the checkpoint again")
    pairs = [pair for key, values in outputs.items() for pair in zip(values, expected[key], strict=True)]
    try:
        worst = max(abs(float(now) - float(then)) for now, then in pairs)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: outputs hold something else than numbers ({error})") from error
    if not worst <= TOLERANCE:
        then, now = _listed(recorded.get("versions")), _listed(versions())
        raise CheckpointError(
            f"{path}: the model does not give its recorded outputs: largest difference {worst:.2g}, "
            f"allowed {TOLERANCE:g}; saved with {then}; here {now}; install the saved versions"
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the outputs."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def _listed(found: Any) -> str:
    if not isinstance(found, Mapping):
        return "unknown versions"
    return ", ".join(f"{key} {value}" for key, value in found.items())
