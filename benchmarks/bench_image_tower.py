"""Image tower: what share of this machine's matrix rate the trunk reaches, in the pipeline's own precision.

Command: python benchmarks/bench_image_tower.py [--model NAME|PATH] [--repeats N]      (about half a minute on 2 cores)
Target: 50 % or more of the rate of a 2048 x 2048 x 2048 product, measured in the same run with the same threads.
Without the weights of `nano` a ViT-S/14 of 9 blocks with random weights is measured: the same work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import Dinov2Config, Dinov2Model

from radglint.encoders.vit import VitEncoder
from radglint.errors import CheckpointError
from radglint.pipeline import SLICES_AT_ONCE, choose_device, load, trunk_dtype

MATRIX = 2048
TARGET = 0.5
# name, images at once, height, width in pixels: a radiograph, and the slices that the pipeline encodes together
CASES = [("radiograph", 1, 392, 392), ("CT slices", SLICES_AT_ONCE, 308, 392)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    trunk, name = tower(options.model)
    dtype = trunk_dtype(choose_device("cpu"))
    trunk.to(dtype)
    rate = matrix_rate(dtype, options.repeats)
    print(f"{name}, {dtype}, {torch.get_num_threads()} threads; {MATRIX}^3 product: {rate / 1e9:.0f} GFLOP/s")
    print(f"{'case':<12}{'images':>8}{'ms each':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'of the matrix rate':>20}")
    for case, images, height, width in CASES:
        pixels = torch.rand(images, 3, height, width).to(dtype)
        seconds = best_seconds(lambda x=pixels: trunk(x), options.repeats)
        work = images * flops(trunk, height, width)
        share = work / seconds / rate
        met = "ok" if share >= TARGET else f"below the target of {TARGET:.0%}"
        print(
            f"{case:<12}{images:8}{1000 * seconds / images:9.1f}{work / images / 1e9:8.1f}{work / seconds / 1e9:9.0f}",
            end="",
        )
        print(f"{share:>13.0%}  {met}", flush=True)


def tower(model: str) -> tuple[VitEncoder, str]:
    """The trunk of a model, or one of the same shape with random weights."""
    try:
        answerer = load(model, device="cpu").model
    except CheckpointError as error:
        if model != "nano":
            raise SystemExit(str(error)) from error
        config = Dinov2Config(
            hidden_size=384, num_attention_heads=6, num_hidden_layers=9, patch_size=14, image_size=518
        )
        return VitEncoder(Dinov2Model(config).eval()), "random ViT-S/14, 9 blocks"
    return answerer.model.trunk, f"trunk of {answerer.name}"  # pyright: ignore[reportAttributeAccessIssue]


def flops(trunk: VitEncoder, height: int, width: int) -> float:
    """Multiplications and additions of one image: patch embedding, linear layers, attention."""
    config = trunk.backbone.config
    patches = (height // trunk.patch_px) * (width // trunk.patch_px)
    tokens, wide = patches + trunk.num_prefix_tokens, trunk.embed_dim
    hidden = getattr(config, "intermediate_size", None) or int(config.mlp_ratio * wide)
    block = 2 * tokens * wide * (4 * wide + 2 * hidden) + 4 * tokens**2 * wide
    return 2.0 * patches * 3 * trunk.patch_px**2 * wide + trunk.num_blocks * block


def matrix_rate(dtype: torch.dtype, repeats: int) -> float:
    """Operations a second of a large square product."""
    left, right = (torch.rand(MATRIX, MATRIX).to(dtype) for _ in range(2))
    return 2.0 * MATRIX**3 / best_seconds(lambda: left @ right, 2 * repeats)


@torch.inference_mode()
def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
