"""Configuration of `radglint pretrain`: one complete TOML file per run, no inheritance, units in the names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from pydantic import model_validator as checked

from radglint.errors import ConfigError
from radglint.precision import Precision
from radglint.preprocess import PreprocessConfig
from radglint.toml_files import read_toml


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneConfig(_Strict):
    """The image trunk: one that exists (`source`), or a new one of a given size (`config`)."""

    source: str | None = None  # folder of a transformers model, or a hub id
    config: dict[str, Any] | None = None  # transformers configuration with model_type; its weights start at random
    revision: str | None = None  # hub revision of `source`
    local_files_only: bool = True  # False lets `source` be downloaded

    @checked(mode="after")
    def _one_of_both(self) -> BackboneConfig:
        if (self.source is None) == (self.config is None):
            raise ValueError("give either source (a folder or hub id) or config (a transformers configuration)")
        return self


class DataConfig(_Strict):
    """Which scans are read, and what one sample of them is."""

    scans: list[Path] = Field(min_length=1)  # files, folders (searched with subfolders), .txt lists of either
    preprocess: PreprocessConfig  # as at inference, so that training sees the same pixels
    crop_px: PositiveInt  # sides of a sample, in pixels of the model
    slices: PositiveInt = 1  # neighbouring CT slices of a sample; 1 for radiographs
    zoom: tuple[float, float] = (1.0, 1.0)  # a sample is magnified by a random factor between these
    gamma_jitter: NonNegativeFloat = 0.0  # the student sees pixels ** gamma, |ln gamma| up to this; 0 keeps HU as is
    max_unreadable_share: float = Field(default=0.05, ge=0, le=1)  # if more cannot be read, the run stops

    @checked(mode="after")
    def _sample_fits(self) -> DataConfig:
        kind, patch = self.preprocess.kind, self.preprocess.patch_px
        if self.crop_px % patch:
            raise ValueError(f"crop_px must be a multiple of preprocess.patch_px {patch}, got {self.crop_px}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom must be two positive factors, the smaller first, got {list(self.zoom)}")
        if kind == "CXR" and self.slices != 1:
            raise ValueError(f"a radiograph has no slices: slices must be 1, got {self.slices}")
        return self


class MaskConfig(_Strict):
    """Which patches are hidden from the student: blocks, the same ones in every slice of a sample (tubes)."""

    share: float = Field(default=0.6, gt=0, lt=1)  # of the patches
    min_block_patches: PositiveInt = 4  # area of the smallest block
    max_block_share: float = Field(default=0.25, gt=0, le=1)  # area of the largest block, of the patches
    max_aspect: float = Field(default=3.0, ge=1)  # longer to shorter side of a block


class TargetConfig(_Strict):
    """What is predicted: the teacher's tokens, averaged over its last blocks and brought to unit variance."""

    blocks: PositiveInt = 3  # how many of the last blocks
    expansion_weight: NonNegativeFloat = 0.0  # of a term that pays for using all directions; see the rank in the log
    norm_momentum: float = Field(default=0.9, ge=0, lt=1)  # of the running mean and variance of each channel


class PredictorConfig(_Strict):
    """The narrow transformer from the student's tokens to the target; it is dropped after the run."""

    width: PositiveInt = 192
    layers: PositiveInt = 2
    heads: PositiveInt = 6

    @checked(mode="after")
    def _heads_fit(self) -> PredictorConfig:
        if self.width % self.heads or self.width % 6:
            raise ValueError(f"width must be a multiple of 6 (three axes) and of heads {self.heads}, got {self.width}")
        return self


class OptimizerConfig(_Strict):
    """AdamW with warm-up and cosine decay, and the pace of the teacher."""

    steps: PositiveInt
    batch: int = Field(ge=2)  # samples a step; collapse can only be told between two
    micro_batch: PositiveInt | None = None  # samples at once, to save memory; None = all (expansion is then per part)
    learning_rate: float = Field(default=3e-4, gt=0)  # peak
    final_learning_rate: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 0.05  # of matrices; vectors have none
    gradient_clip: float = Field(default=1.0, gt=0)  # largest norm of the whole gradient
    smooth_l1_beta: float = Field(default=1.0, gt=0)  # where the loss turns from square to straight
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)  # at the start; 1 at the end, by a cosine

    @checked(mode="after")
    def _warm_up_ends(self) -> OptimizerConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be fewer than steps {self.steps}, got {self.warmup_steps}")
        return self


class PretrainConfig(_Strict):
    """One run of `radglint pretrain`."""

    out: Path  # folder of the run; the adapted trunk is OUT/backbone
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Precision = "auto"  # of matrix products
    log_every_steps: PositiveInt = 10
    save_every_steps: PositiveInt = 100
    min_feature_std: NonNegativeFloat = 0.02  # of the teacher's features between images; below, the run has collapsed
    backbone: BackboneConfig
    data: DataConfig
    mask: MaskConfig = MaskConfig()
    target: TargetConfig = TargetConfig()
    predictor: PredictorConfig = PredictorConfig()
    optimizer: OptimizerConfig


def load_config(path: str | Path) -> PretrainConfig:
    """Read a TOML file.

    Args:
        path: the file; relative paths in it count from the current folder.

    Raises:
        ConfigError: missing, no TOML, or a key is unknown, missing or out of range; the message names it.
    """
    values = read_toml(Path(path), "see recipes/pretrain_cxr.toml for the form")
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {key}: {message}; recipes/pretrain_cxr.toml holds every key") from error
