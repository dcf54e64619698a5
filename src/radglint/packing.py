"""A model's tensors in a safetensors file: packed to bfloat16 or int8 on the way out, float32 again on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from radglint.errors import CheckpointError
from radglint.quantize import dequantize_rows, is_quantizable, quantize_rows

Packing = Literal["none", "bfloat16", "int8_trunk"]
INT8, SCALE = ".int8", ".scale"
INT8_PREFIXES = ("trunk.", "text.")
PLAIN_DTYPES = ("F32", "BF16")
Entry = tuple[tuple[int, ...], str]  # shape and type as stored
AGAIN = "copy or download the checkpoint again"


def pack_state(state: Mapping[str, torch.Tensor], packing: Packing) -> dict[str, torch.Tensor]:
    """Tensors as they are stored.

    Args:
        state: a state dict of floating point tensors.
        packing: none = float32; bfloat16 = all but vectors in bfloat16; int8_trunk = matrices of trunk and text tower
            as `NAME.int8` and `NAME.scale` and the rest of them float32, other modules as with bfloat16.

    Returns:
        Contiguous tensors on the CPU that share no memory.
    """
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        plain = tensor.detach().to("cpu", torch.float32)
        in_towers = name.startswith(INT8_PREFIXES)
        if packing == "int8_trunk" and in_towers and is_quantizable(plain):
            packed[name + INT8], packed[name + SCALE] = quantize_rows(plain)
        elif plain.ndim >= 2 and (packing == "bfloat16" or (packing == "int8_trunk" and not in_towers)):
            packed[name] = plain.to(torch.bfloat16).contiguous()
        else:
            packed[name] = plain.contiguous().clone()
    return packed


def read_state(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read exactly the expected tensors.

    Args:
        path: a safetensors file.
        expected: name to shape of every tensor of the model.

    Returns:
        float32 tensors under the expected names, unpacked.

    Raises:
        CheckpointError: the file is broken; a tensor is missing, unknown, of another shape or type, or not finite.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
            stored = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            _check_names(path, stored, expected)
            state = {name: _unpack(file, name, stored) for name in expected}
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not a whole safetensors file ({reason}); {AGAIN}") from error
    # A sum is finite only if every term is (weights are far from the float32 limit), and faster than a look at each.
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor.sum()))]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds NaN or infinite values; {AGAIN}")
    return state


def _check_names(path: Path, stored: Mapping[str, Entry], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Every expected tensor is stored once, in one of its two forms, and nothing else is."""
    left = dict(stored)
    for name, shape in expected.items():
        if name in left:
            _check_entry(path, name, left.pop(name), shape, PLAIN_DTYPES)
        elif name + INT8 in left and name + SCALE in left:
            _check_entry(path, name + INT8, left.pop(name + INT8), shape, ("I8",))
            _check_entry(path, name + SCALE, left.pop(name + SCALE), shape[:1], ("F32",))
        else:
            raise CheckpointError(f"{path}: lacks the tensor {name}; {AGAIN}")
    if left:
        raise CheckpointError(f"{path}: holds the unknown tensor {sorted(left)[0]} ({len(left)} in all); {AGAIN}")


def _check_entry(path: Path, key: str, entry: Entry, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if entry[0] != shape or entry[1] not in dtypes:
        wanted = f"{shape} of {' or '.join(dtypes)}"
        raise CheckpointError(f"{path}: {key}: expected {wanted}, got {entry[0]} of {entry[1]}; {AGAIN}")


def _unpack(file: Any, name: str, stored: Mapping[str, Entry]) -> torch.Tensor:
    if name in stored:
        return file.get_tensor(name).float()
    return dequantize_rows(file.get_tensor(name + INT8), file.get_tensor(name + SCALE))
