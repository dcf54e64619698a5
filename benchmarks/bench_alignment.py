"""Alignment loss, forward and backward: image by image against the plain float32 form, all at once.

Command: python benchmarks/bench_alignment.py [--images N] [--patches N] [--width N] [--repeats N]
    (about two minutes on 2 cores and 4 GB of memory; every row is a process of its own)
Target: at most 25 % of the memory and 50 % of the time of plain softmax pooling (512 sentences, 128 images, 1024
patches, width 512), the same loss and gradients, and memory flat in the number of sentences.
Memory is the peak above what the process held before the step, its inputs included there: what counts is the gradients
of the inputs and whatever the step makes. Where other work runs on the machine, read the CPU seconds. Image by image
multiplies in bfloat16, as training does, where the processor does so natively; emulated, it would take many minutes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from radglint.alignment import align
from radglint.gate import GateConfig, SparseGate
from radglint.losses import multi_positive_info_nce
from radglint.precision import autocast, product_dtype

MEMORY_TARGET, TIME_TARGET = 0.25, 0.5
SENTENCES, COUNTS = 512, (128, 512, 2048)
CPU = torch.device("cpu")
SCORE_TOLERANCE, GRADIENT_TOLERANCE = 0.005, 0.02  # see radglint.alignment
COMPARED_IMAGES = 2  # whose token gradients are kept for the comparison
FORMS: dict[str, dict[str, Any]] = {
    "softmax": {"pooling": "softmax", "shared_space": True},  # the form of RadZero: one space of the full width
    "sigmoid_null": {"pooling": "sigmoid_null"},  # the gate of GLINT, in a space of its own
}


def main() -> None:
    """Measure and print the tables."""
    options = _options()
    if options.row:
        return measure(options)
    kind = f"torch {torch.__version__}, {product_dtype('auto', CPU)}, {torch.get_num_threads()} threads"
    print(f"{options.images} images, {options.patches} patches, width {options.width}; {kind}")
    print(f"{'pooling':<14}{'form':<16}{'sentences':>9}{'s':>8}{'CPU s':>8}{'MB':>8}  share of the first row's")
    with tempfile.TemporaryDirectory() as folder:
        base = _row(options, "softmax", "plain", SENTENCES, folder)
        _print("softmax", "plain", SENTENCES, base, base)
        ours = _row(options, "softmax", "image by image", SENTENCES, folder)
        _print("softmax", "image by image", SENTENCES, ours, base)
        compare(base, ours)
        for count in COUNTS:
            _print("sigmoid_null", "image by image", count, _row(options, "sigmoid_null", "", count, folder), base)
    _verdict(ours, base)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 128), ("patches", 1024), ("width", 512), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # one measurement: pooling, form, sentences, file
    return parser.parse_args()


def _row(options: argparse.Namespace, pooling: str, form: str, count: int, folder: str) -> dict[str, Any]:
    """One measurement, in a process of its own so that its memory is its own."""
    file = Path(folder) / f"{pooling}-{form}-{count}.pt"
    sizes = [f"--{name}={getattr(options, name)}" for name in ("images", "patches", "width", "repeats")]
    command = [sys.executable, __file__, *sizes, "--row", pooling, form, str(count), str(file)]
    subprocess.run(command, check=True)
    return torch.load(file)


def _print(pooling: str, form: str, count: int, row: dict[str, Any], base: dict[str, Any]) -> None:
    print(f"{pooling:<14}{form:<16}{count:9}{row['seconds']:8.2f}{row['cpu']:8.2f}{row['megabytes']:8.0f}", end="  ")
    print(*(f"{row[k] / base[k]:6.0%}" for k in ("seconds", "cpu", "megabytes")), flush=True)


def _verdict(ours: dict[str, Any], base: dict[str, Any]) -> None:
    for key, name, target in (("megabytes", "memory", MEMORY_TARGET), ("seconds", "time", TIME_TARGET)):
        share = ours[key] / base[key]
        print(f"{name}: {share:.0%} of plain softmax pooling, {'ok' if share <= target else f'above {target:.0%}'}")


def compare(base: dict[str, Any], ours: dict[str, Any]) -> None:
    """Loss, scores and every gradient of the two forms of softmax pooling."""
    scores = float((base["scores"] - ours["scores"]).abs().max())
    print(f"loss {base['loss']:.5f} and {ours['loss']:.5f}; scores differ by at most {scores:.5f}", end="")
    whole = torch.cat([x.flatten() for x in base["gradients"]]).norm()
    worst = 0.0
    for exact, got in zip(base["gradients"], ours["gradients"], strict=True):
        worst = max(worst, float((got - exact).norm() / (exact.norm() if exact.ndim else whole)))
    same = scores <= SCORE_TOLERANCE and worst <= GRADIENT_TOLERANCE
    print(f", a gradient by at most {worst:.2%}: {'ok' if same else 'NOT THE SAME'}")


def measure(options: argparse.Namespace) -> None:
    """One row: best time of a step, its peak memory, and what is compared, written to a file."""
    pooling, form, count, file = options.row
    step(*_inputs(options, pooling, 8, images=2), form)  # the libraries' own buffers
    inputs = _inputs(options, pooling, int(count), options.images)
    before = psutil.Process().memory_info().rss
    seconds, cpu, result = [], [], {}
    for _ in range(options.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = step(*inputs, form)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes there
    torch.save({"seconds": min(seconds), "cpu": min(cpu), "megabytes": (peak - before) / 1e6} | result, file)


def _inputs(
    options: argparse.Namespace, pooling: str, count: int, images: int
) -> tuple[SparseGate, torch.Tensor, torch.Tensor]:
    """Gate, tokens `images patches width` and texts `count width`."""
    torch.manual_seed(0)
    gate = SparseGate(options.width, options.width, GateConfig(joint_dim=options.width, **FORMS[pooling]))
    texts = torch.randn(count, options.width, requires_grad=True)
    return gate, torch.randn(images, options.patches, options.width, requires_grad=True), texts


def step(gate: SparseGate, tokens: torch.Tensor, texts: torch.Tensor, form: str) -> dict[str, Any]:
    """Loss and gradients of one batch in which every image has sentences of its own."""
    if form == "plain":
        scores = gate(tokens, texts).scores
    else:
        with autocast("auto", CPU):
            scores = align(gate, tokens, texts).scores
    positives = torch.arange(len(texts))[:, None] % len(tokens) == torch.arange(len(tokens))
    loss = multi_positive_info_nce(scores, positives, 1 / 0.07)
    first, *others = torch.autograd.grad(loss, [tokens, texts, *gate.parameters()])
    gradients = [first[:COMPARED_IMAGES].clone(), *others]
    return {"loss": float(loss.detach()), "scores": scores.detach(), "gradients": gradients}


if __name__ == "__main__":
    main()
