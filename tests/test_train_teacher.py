"""The anchor's teacher: the trunk as it starts, or any frozen ViT whose patches are the trunk's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, DINOv3ViTConfig, PretrainedConfig, ViTConfig

from radglint.encoders.backbones import image_encoder, load_backbone
from radglint.encoders.features import grey_to_channels
from radglint.errors import CheckpointError, ConfigError
from radglint.pretraining.run import pretrain
from radglint.regularizer import cosine_anchor, gram_anchor
from radglint.train_engine import Trainer
from radglint.train_pairs import PairTask, load_trained
from radglint.train_smoke import smoke_config
from radglint.train_towers import Ranks
from test_pretraining_run import small_run
from tiny_models import tiny_image_configs
from train_runs import tiny_run

FORMS = {"cosine": cosine_anchor, "gram": gram_anchor}


def write_teacher(folder: Path, config: PretrainedConfig) -> str:
    """A checkpoint of `transformers`, with weights large enough that images differ."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(11)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
        model.save_pretrained(folder)
    return str(folder)


def dino(**changes: Any) -> PretrainedConfig:
    """As wide as the trunk of the tiny runs (32), with its patches (16 px), but three blocks."""
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16, "image_size": 64}
    return DINOv3ViTConfig(**size | {"intermediate_size": 64, "num_register_tokens": 4} | changes)


def anchored(folder: Path, source: str, form: str = "cosine", **changes: Any) -> PairTask:
    config = tiny_run(folder, trunk__anchor__source=source, trunk__anchor__form=form, device="cpu", **changes)
    return PairTask(config, Ranks())


def expected_anchor(task: PairTask, pixels: list[torch.Tensor], source: str, form: str) -> float:
    """The form's own function on what both towers make of the images."""
    images = grey_to_channels(torch.stack(pixels).flatten(0, 1))
    teacher = image_encoder(load_backbone(source))
    with torch.no_grad():
        return float(FORMS[form](task.model.trunk(images, (1,)).layers[1], teacher(images, (1,)).layers[1]))


TEACHERS: dict[str, tuple[PretrainedConfig, str]] = {
    "another of its width": (dino(), "cosine"),
    "another family": (ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=16,
                                 image_size=64, intermediate_size=64), "cosine"),
    "a wider one": (dino(hidden_size=48), "gram"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TEACHERS))
def test_the_anchor_holds_the_trunk_to_the_teacher_that_is_named(tmp_path: Path, name: str) -> None:
    config, form = TEACHERS[name]
    source = write_teacher(tmp_path / "other", config)
    task = anchored(tmp_path, source, form, fit__steps=2, fit__learning_rate=0.01)
    batch = next(task.batches(0, 1))
    out = task.loss(batch, 0)
    assert out is not None
    wanted = expected_anchor(task, list(batch.pixels), source, form)
    assert wanted > 1e-3
    assert out[1]["anchor"] == pytest.approx(wanted, rel=1e-4)
    assert task.teacher is not None
    before = {key: value.clone() for key, value in task.teacher.state_dict().items()}
    trainer = Trainer(task.config, task, Ranks())
    trainer.start(resume=False)
    trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in task.teacher.state_dict().items()), "it is frozen"
    assert load_trained(task.config.out).trunk.embed_dim == 32, "the teacher is no part of what is written"


def test_what_pretraining_writes_is_a_teacher(tmp_path: Path) -> None:
    result = pretrain(small_run(tmp_path, "dinov3_vit", optimizer={"steps": 2, "warmup_steps": 0}))
    task = anchored(tmp_path / "run", str(result.backbone))
    batch = next(task.batches(0, 1))
    out = task.loss(batch, 0)
    assert out is not None
    wanted = expected_anchor(task, list(batch.pixels), str(result.backbone), "cosine")
    assert out[1]["anchor"] == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0


REFUSED: dict[str, tuple[PretrainedConfig, dict[str, Any], str]] = {
    "patches": (dino(patch_size=8), {}, "has patches of 8 px on one slice, expected patches of 16 px on one slice"),
    "volumes": (tiny_image_configs()["vjepa2"], {}, "has patches of 4 px on 2 slices, expected patches of 16 px"),
    "width": (dino(hidden_size=48), {}, "'cosine' needs tokens as wide .* 32, got 48; set form = 'gram'"),
    "its blocks": (dino(num_hidden_layers=1), {"trunk__anchor__blocks": [2]}, "blocks: .2. asked of .*anchor.source"),
    "own blocks": (dino(), {"trunk__anchor__blocks": [3]}, r"blocks: \[3\] asked of trunk.source, whose .* 1 to 2"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_teacher_that_cannot_be_compared_is_refused(tmp_path: Path, name: str) -> None:
    config, changes, message = REFUSED[name]
    source = write_teacher(tmp_path / "other", config)
    with pytest.raises(ConfigError, match=message):
        anchored(tmp_path, source, **changes)


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"backbone .*none: cannot be loaded"):
        anchored(tmp_path, str(tmp_path / "none"))


def test_a_try_of_a_configuration_with_a_teacher_makes_its_own(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, trunk__anchor__source="some/teacher")
    tried = smoke_config(config, tmp_path / "smoke")
    assert tried.trunk is not None
    assert tried.trunk.anchor.source == str(tmp_path / "smoke" / "teacher")
    assert PairTask(tried, Ranks()).teacher is not None
