"""Names of a model's tensors in a file: those of the published checkpoints, whatever transformers calls them inside.

transformers renames the modules of its backbones now and then (`attention.attention.key` became `attention.k_proj`)
and maps the published names on loading. Storing the published names keeps a checkpoint loadable across its versions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

try:
    from transformers.core_model_loading import revert_weight_conversion
except ImportError:  # an older transformers, whose modules still carry the published names
    revert_weight_conversion = None


def stored_names(model: torch.nn.Module) -> dict[str, str]:
    """Name in `model.state_dict()` to the name in a file, for every tensor.

    Args:
        model: any module; the names inside each `transformers` backbone that it holds are mapped.
    """
    names = {name: name for name in model.state_dict()}
    done: list[str] = []  # a backbone's own parts are backbones too: only the outermost is asked
    for prefix, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not prefix.startswith(tuple(done)):
            start = f"{prefix}." if prefix else ""
            done.append(start)
            names |= {start + inside: start + stored for inside, stored in _published(module).items()}
    return names


def _published(backbone: Any) -> dict[str, str]:
    """The mapping for one backbone; without any change where transformers does not map one name to one name."""
    own = list(backbone.state_dict())
    same = {name: name for name in own}
    if revert_weight_conversion is None:
        return same
    if getattr(backbone, "_weight_conversions", None) is not None:  # remembers the file it came from: ask a fresh one
        with torch.device("meta"):
            backbone = type(backbone)(backbone.config)
    numbered = {name: torch.tensor(float(k)) for k, name in enumerate(own)}
    reverted = {own[int(number)]: stored for stored, number in revert_weight_conversion(backbone, numbered).items()}
    return reverted if set(reverted) == set(own) and len(set(reverted.values())) == len(own) else same
