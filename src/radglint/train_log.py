"""What a training run tells while it runs: `log.jsonl`, TensorBoard, pictures of gates, and the batch that broke it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from radglint.display import colour_scale
from radglint.errors import ConfigError, TrainingError
from radglint.writing import cut, output_errors, write_json, write_png, write_text

TILE_PX = 224
CAPTION_PX = 30
LOG = "log.jsonl"


class RunLog:
    """Numbers of a run, a row every few steps.

    Args:
        run: folder, made if missing.
        start_step: rows of this step and later, left by a run that was cut off, are dropped.
        tensorboard: also write TensorBoard events into `run/tensorboard`.

    Raises:
        ConfigError: TensorBoard is asked for and its writer is not installed.
        OutputError: the folder cannot be written.
    """

    def __init__(self, run: Path, start_step: int, tensorboard: bool) -> None:
        self.path = run / LOG
        with output_errors(self.path):
            run.mkdir(parents=True, exist_ok=True)
            rows = [row for row in read_log(run) if row["step"] < start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.events = _event_writer(run / "tensorboard", start_step) if tensorboard else None

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row; `step` is its place, every other key a number."""
        with output_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        if self.events is not None:
            for key, value in row.items():
                self.events.add_scalar(key, value, int(row["step"]))

    def picture(self, step: int, sheet: Image.Image) -> Path:
        """Keep a picture of gates as `gates/step_NNNNNNNN.png`."""
        folder = self.path.parent / "gates"
        with output_errors(folder):
            folder.mkdir(exist_ok=True)
        if self.events is not None:
            self.events.add_image("gates", np.asarray(sheet), step, dataformats="HWC")
        return write_png(folder / f"step_{step:08d}.png", sheet)

    def close(self) -> None:
        """Flush what is still in memory."""
        if self.events is not None:
            self.events.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of `log.jsonl`, oldest first; a last line cut off by a kill is left out."""
    rows = []
    if (run / LOG).is_file():
        for line in (run / LOG).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _event_writer(folder: Path, start_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("tensorboard = true needs tensorboardX: pip install 'radglint[train]'") from error
    return SummaryWriter(str(folder), purge_step=start_step)


@dataclass(frozen=True, eq=False)
class GateView:
    """One query on one validation case.

    Attributes:
        caption: query and what is known of it.
        background: `height width` in [0, 1], the image (or the truth on the token grid); None = black.
        gate: `height width` tokens, in [0, 1].
    """

    caption: str
    background: np.ndarray | None
    gate: np.ndarray


def gate_sheet(views: Sequence[GateView]) -> Image.Image:
    """Background beside gate for each view, four views a row; a gate is shown from 0 to its own maximum."""
    columns = min(4, len(views)) or 1
    width, height = 2 * TILE_PX, TILE_PX + CAPTION_PX
    sheet = Image.new("RGB", (columns * width, -(-len(views) // columns) * height))
    draw = ImageDraw.Draw(sheet)
    for k, view in enumerate(views):
        left, top = k % columns * width, k // columns * height
        draw.text((left + 4, top + 2), cut(view.caption, 66), fill="white")
        draw.text((left + 4, top + 15), f"gate: highest {view.gate.max():.3f}, sum {view.gate.sum():.2f}", fill="white")
        if view.background is not None:
            sheet.paste(_grey_tile(view.background), (left, top + CAPTION_PX))
        sheet.paste(_gate_tile(view.gate), (left + TILE_PX, top + CAPTION_PX))
    return sheet


def _grey_tile(values: np.ndarray) -> Image.Image:
    grey = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return grey.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)


def _gate_tile(gate: np.ndarray) -> Image.Image:
    scale = colour_scale()
    level = gate / max(float(gate.max()), 1e-6)
    colours = scale[np.clip(level * (len(scale) - 1), 0, len(scale) - 1).astype(int)]
    return Image.fromarray(colours.astype(np.uint8)).resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)


def stop_on_nan(
    run: Path, step: int, numbers: Mapping[str, float], tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any],
    broken: Sequence[int] = (),
) -> TrainingError:  # fmt: skip
    """Keep the batch whose loss or gradient is not finite.

    Args:
        run: the run's folder; `broken_NNNNNNNN.safetensors` and `.json` are written into it.
        step: where it happened.
        numbers: parts of the loss, gradient norm.
        tensors: what the loss was computed from.
        facts: what they are, as JSON.
        broken: processes in which it happened, where there are several.

    Returns:
        The error to raise.
    """
    path = run / f"broken_{step:08d}"
    with output_errors(path):
        run.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".tmp")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, staged)
        staged.replace(path.with_suffix(".safetensors"))
    words = {key: str(value) for key, value in numbers.items()}  # JSON knows no NaN
    write_json(path.with_suffix(".json"), {"step": step, "numbers": words, **facts})
    listed = ", ".join(f"{key} {value}" for key, value in words.items())
    where = f" in process {', '.join(map(str, broken))}" if broken else ""
    return TrainingError(
        f"step {step}: loss or gradient is not finite{where} ({listed}); the batch is kept in {path}.safetensors; "
        "lower fit.learning_rate or look at that batch"
    )
