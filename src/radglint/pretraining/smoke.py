"""`radglint pretrain --smoke`: a run shrunk to one step of a tiny trunk on made-up scans. Offline, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from radglint.pretraining.config import PretrainConfig
from radglint.writing import write_nifti, write_png

SIDE_PATCHES = 4
MAX_SLICES = 4
NUM_SCANS = 2
_SIZE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def smoke_config(config: PretrainConfig, folder: Path) -> PretrainConfig:
    """The same run in small.

    Args:
        config: the real run. Kept: kind of scan and trunk, patch size, mask, target, loss, precision. Shrunk: the rest.
        folder: empty; made-up scans and the results go there.

    Returns:
        A run of one step that needs nothing else.
    """
    values = config.model_dump(mode="json")
    patch, is_ct = config.data.preprocess.patch_px, config.data.preprocess.kind == "CT"
    side, slices = SIDE_PATCHES * patch, min(config.data.slices, MAX_SLICES)
    _write_scans(folder / "scans", side, slices if is_ct else None)
    sides = {"height_px": side, "width_px": side, "mm_per_px": 1.0} if is_ct else {"long_side_px": side}
    values["data"] |= {"scans": [str(folder / "scans")], "crop_px": side, "slices": slices, "zoom": [1.0, 1.0]}
    values["data"]["preprocess"] |= sides | ({"slice_step_mm": 1.0} if is_ct else {})
    values["optimizer"] |= {"steps": 1, "batch": 2, "warmup_steps": 0}
    values["target"] |= {"blocks": min(config.target.blocks, 2)}
    values |= {
        "out": str(folder / "out"), "device": "cpu", "min_feature_std": 0.0,
        "backbone": {"config": _tiny_trunk(config, side)}, "predictor": {"width": 24, "layers": 1, "heads": 2},
    }  # fmt: skip
    return PretrainConfig.model_validate(values)


def _tiny_trunk(config: PretrainConfig, side: int) -> dict[str, Any]:
    """A trunk of the same family: as configured, or by its name, V-JEPA 2 or DINOv2."""
    named = "vjepa2" if "vjepa2" in (config.backbone.source or "").lower() else "dinov2"
    kind = (config.backbone.config or {}).get("model_type", named)
    common = {"model_type": kind, "patch_size": config.data.preprocess.patch_px, **_SIZE}
    if kind != "vjepa2":
        return common | {"image_size": side, "intermediate_size": 48, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    frames = {"crop_size": side, "frames_per_clip": MAX_SLICES, "tubelet_size": 2, "mlp_ratio": 2}
    return common | frames | predictor | {"num_pooler_layers": 1}


def _write_scans(folder: Path, side: int, slices: int | None) -> None:
    """Noise, as PNG files or, with a number of slices, as NIfTI in HU."""
    import nibabel
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(NUM_SCANS):
        if slices is None:
            write_png(folder / f"{k}.png", Image.fromarray(rng.integers(256, size=(side, side), dtype=np.uint8)))
        else:
            hu = rng.normal(-300, 250, (side, side, slices)).astype(np.float32)
            write_nifti(folder / f"{k}.nii.gz", nibabel.Nifti1Image(hu, np.eye(4)))
