"""Configuration of `radglint train`: one complete TOML file a run, no inheritance, no class paths.

Keys carry their unit; an unknown key, a missing one or a value out of range is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from pydantic import model_validator as checked

from radglint.errors import ConfigError, shown
from radglint.model import BranchConfig
from radglint.precision import Precision
from radglint.regularizer import Anchor
from radglint.toml_files import read_toml
from radglint.train import FitConfig

Said = Literal["present", "uncertain", "absent", "other"]
"""What a sentence states at most; "other" names no known finding."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CachedData(_Strict):
    """Cached tokens of a frozen trunk, from a feature recipe (`radglint.cases`): the fast path.

    It runs on the CPU, and every process holds all tokens of these shards in memory.
    """

    kind: Literal["cases"] = "cases"
    folder: Path  # of the shards
    train_prefixes: tuple[str, ...] = ("train",)
    val_prefix: str | None = None  # measured at the end and shown in the gate pictures
    grid_tokens: tuple[PositiveInt, PositiveInt]  # height and width of one slice
    bag_slices: PositiveInt | None = None  # cut slabs into bags of so many slices; None = each case is a bag
    context_slices: NonNegativeInt = 0  # neighbours on either side of a bag that the mixer sees

    @checked(mode="after")
    def _context_of_a_bag(self) -> CachedData:
        if self.context_slices and self.bag_slices is None:
            raise ValueError("context_slices needs bag_slices: a whole case has no neighbours")
        return self


class PairData(_Strict):
    """Images with their reports: JSONL manifests, and tar shards in the WebDataset layout."""

    kind: Literal["pairs"] = "pairs"
    manifests: tuple[Path, ...] = ()  # one JSON object a line: id, image, report, group, split
    shards: tuple[str, ...] = ()  # glob patterns of .tar files: KEY.json (or KEY.txt) beside KEY.<image suffix>
    train_split: str | None = None  # rows that are trained on; "" = those without a split; None = all, of one split
    val_manifest: Path | None = None  # images that are measured and shown; never trained on; may be one of `manifests`
    val_split: str | None = None  # its rows that are used; as with train_split
    said: tuple[Said, ...] = ("present",)  # sentences that are drawn
    sentences_per_image: PositiveInt = 6  # at most so many of each report a step
    duplicate_cosine: float | None = Field(default=None, gt=0, le=1)  # join sentences whose embeddings are this near
    max_slices: PositiveInt | None = None  # a CT with more is thinned evenly to so many
    workers: NonNegativeInt = 2  # processes that read and preprocess images; 0 = none
    cache: Path | None = None  # folder of a frozen trunk's tokens: each image is encoded once; None = at every step

    @checked(mode="after")
    def _some_data(self) -> PairData:
        if not self.manifests and not self.shards:
            raise ValueError("expected manifests, shards or both, got neither")
        if self.val_split is not None and self.val_manifest is None:
            raise ValueError("val_split needs val_manifest; the manifest that is trained on may be named there too")
        return self


class LoraConfig(_Strict):
    """Low-rank updates of the linear layers in the trunk's blocks; the trunk's own weights stay."""

    rank: PositiveInt = 16
    alpha: float = Field(default=32.0, gt=0)  # the update is scaled by alpha / rank


class AnchorConfig(_Strict):
    """Dense Feature Regularization: a trained trunk stays near a frozen teacher."""

    form: Anchor = "none"
    source: str | None = None  # folder or hub id of the teacher, loaded as the trunk is; None = the trunk as it starts
    blocks: tuple[PositiveInt, ...] = ()  # whose patch tokens are compared, from 1
    start_weight: NonNegativeFloat = 1.0
    end_weight: NonNegativeFloat = 0.2  # reached by a cosine at the last step

    @checked(mode="after")
    def _blocks_named(self) -> AnchorConfig:
        if (self.form == "none") == bool(self.blocks):
            raise ValueError(f"blocks: expected {'none' if self.form == 'none' else 'some'} with form {self.form!r}")
        if self.form == "none" and self.source is not None:
            raise ValueError("source: form 'none' has no teacher; leave it out, or set form to 'cosine' or 'gram'")
        return self


class TrunkConfig(_Strict):
    """The image trunk of `pairs`; `cases` hold its tokens already."""

    source: str  # folder or hub id of a transformers ViT or V-JEPA 2
    allow_download: bool = False  # False never asks the network
    trained_blocks: int = Field(default=0, ge=-1)  # last blocks that are trained; -1 = the whole trunk
    lora: LoraConfig | None = None
    anchor: AnchorConfig = AnchorConfig()

    @checked(mode="after")
    def _one_way_to_train(self) -> TrunkConfig:
        if self.lora is not None and self.trained_blocks:
            raise ValueError("lora keeps the blocks as they are; leave out lora or trained_blocks")
        if self.anchor.form != "none" and not self.is_trained:
            raise ValueError("anchor: a frozen trunk needs none; set trained_blocks or lora, or form = 'none'")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether any weight of the trunk changes."""
        return bool(self.trained_blocks) or self.lora is not None


class TextConfig(_Strict):
    """The text tower."""

    source: str  # folder or hub id, with tokenizer.json
    allow_download: bool = False
    trained: bool = False
    max_text_tokens: PositiveInt = 128
    round_int8: bool = False  # round a frozen tower's weights as a packed checkpoint does


class TrainConfig(_Strict):
    """One run of `radglint train`."""

    name: str
    out: Path  # the run's folder: log, checkpoints, pictures, weights
    data: Annotated[CachedData | PairData, Field(discriminator="kind")]
    branch: BranchConfig
    text: TextConfig
    trunk: TrunkConfig | None = None
    fit: FitConfig = FitConfig()  # steps, images a step (over all processes), rates, sparsity, seed
    init: Path | None = None  # branch.safetensors of another run to go on from
    microbatch_images: PositiveInt | None = None  # encoded at a time; the contrastive batch stays whole; None = all
    precision: Precision = "auto"  # of matrix products
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["data", "fsdp2"] = "data"  # with more than one process
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # learning rate of a block over that of the next
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # moving average of the weights; None = none
    log_every_steps: PositiveInt = 10
    checkpoint_every_steps: PositiveInt = 100
    picture_every_steps: PositiveInt | None = None
    picture_cases: PositiveInt = 4
    tensorboard: bool = False

    @checked(mode="after")
    def _parts_fit(self) -> TrainConfig:
        problems = _cached_problems(self) if isinstance(self.data, CachedData) else _pair_problems(self)
        if (self.fit.loss == "sigmoid") != (self.branch.initial_logit_bias is not None):
            problems.append(
                f"fit.loss: {self.fit.loss!r} with branch.initial_logit_bias {self.branch.initial_logit_bias}; "
                "the loss 'sigmoid' needs one (as published -10, and initial_logit_scale 10), 'info_nce' has none"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @checked(mode="after")
    def _cache_of_a_frozen_trunk(self) -> TrainConfig:
        has_cache = isinstance(self.data, PairData) and self.data.cache is not None
        if has_cache and self.trunk is not None and self.trunk.is_trained:
            raise ValueError(
                "data.cache: the tokens of a trunk that is trained change at every step; leave it out, or freeze the "
                "trunk (trunk.trained_blocks = 0 and no trunk.lora)"
            )
        return self


def _cached_problems(config: TrainConfig) -> list[str]:
    nothing = "cached tokens have no trunk and no tower to train; leave it out"
    on_cpu = "cached tokens are trained on the CPU, and every process holds all of them in memory"
    wrong = {
        "trunk": (config.trunk is not None, nothing),
        "text.trained": (config.text.trained, nothing),
        "layer_decay": (config.layer_decay != 1, nothing),
        "parallel": (config.parallel != "data", f"{on_cpu}: nothing is sharded; leave it out"),
        "precision": (config.precision != "auto", f"{on_cpu}, in bfloat16 where it multiplies that; leave it out"),
    }
    return [f"{key}: {text}" for key, (given, text) in wrong.items() if given] + _context_problems(config)


def _context_problems(config: TrainConfig) -> list[str]:
    """Neighbours that the mixer does not use up would be taken for slices of the bag, with facts of their own."""
    data, reach = config.data, config.branch.mixer.reach
    needed = reach if config.fit.valid_depth else 0
    if not isinstance(data, CachedData) or data.bag_slices is None or data.context_slices == needed:
        return []
    how = f"whose mixer reaches {reach} slices to either side" if config.fit.valid_depth else "without fit.valid_depth"
    return [f"data.context_slices: expected {needed} for a branch {how}, got {data.context_slices}"]


def _pair_problems(config: TrainConfig) -> list[str]:
    fit = config.fit
    cached_only = {
        "group_size": fit.group_size != 1, "valid_depth": fit.valid_depth, "token_shift": fit.token_shift,
        "patch_dropout": fit.patch_dropout, "evidence_weight": fit.evidence_weight, "in_lungs": fit.in_lungs,
    }  # fmt: skip
    problems = [f"fit.{key}: is for data of kind 'cases'; leave it out" for key, given in cached_only.items() if given]
    if config.branch.place_field:
        problems.append(
            "branch.place_field: the loss of data of kind 'pairs' never reads it; leave it out (recipes/nano_place.py "
            "fits one on cached tokens, and with --branch gives it to a finished branch)"
        )
    return problems + (["trunk: is missing, and data of kind 'pairs' needs it"] if config.trunk is None else [])


def load_config(path: str | Path) -> TrainConfig:
    """Read a configuration. Relative paths in it are those of the working directory.

    Raises:
        ConfigError: the file is missing or no TOML, or a key is unknown, missing or out of range; it names the key.
    """
    document = read_toml(Path(path), "see recipes/cxr_nano.toml")
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], name: str) -> TrainConfig:
    """A configuration from its keys and values.

    Args:
        document: as read from TOML.
        name: what to call it in an error.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{name}: {'; '.join(map(_problem, error.errors()[:3]))}") from error


def _problem(error: Any) -> str:
    """One line: key, what was expected, what came."""
    key = ".".join(str(part) for part in error["loc"] if part not in ("cases", "pairs", "CXR", "CT"))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; check its spelling"
    if error["type"] == "missing":
        return f"{key}: is missing"
    message = error["msg"].removeprefix("Value error, ")
    came = "" if isinstance(error["input"], dict | BaseModel) else f", got {shown(error['input'])}"
    return f"{key}: {message}{came}" if key else message
