"""The configuration of a run: what is refused, and that every message names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from radglint.errors import ConfigError
from radglint.train_config import TrainConfig, load_config, parse_config
from train_runs import RECIPES, write_toml


def document(recipe: str, **changes: Any) -> dict[str, Any]:
    """A recipe as it is read, with keys changed (dots as double underscores) or removed (None)."""
    values = load_config(RECIPES / f"{recipe}.toml").model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        *path, last = key.split("__")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
        if value is None:
            del place[last]
    return values


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("cxr_nano", {"fit__stepps": 3}, "x.toml: fit.stepps: unknown key; check its spelling"),
        ("cxr_nano", {"tensor_board": True}, "x.toml: tensor_board: unknown key"),
        ("cxr_nano", {"out": None}, "x.toml: out: is missing"),
        ("cxr_nano", {"data__grid_tokens": None}, "x.toml: data.grid_tokens: is missing"),
        ("cxr_nano", {"fit__batch": -1}, "x.toml: fit.batch: Input should be greater than 0, got -1"),
        ("cxr_nano", {"data__kind": "folder"}, "x.toml: data: .*'cases', 'pairs'"),
        ("cxr_nano", {"data__context_slices": 1}, "data: context_slices needs bag_slices"),
        (
            "ct_nano",
            {"branch__mixer__depth_kernel": 1},
            "data.context_slices: expected 0 for a branch whose mixer reaches 0 slices to either side, got 1",
        ),
        ("ct_nano", {"data__context_slices": 2}, "data.context_slices: expected 1 for a branch whose .*, got 2"),
        ("ct_nano", {"fit__valid_depth": False}, "expected 0 for a branch without fit.valid_depth, got 1"),
        ("cxr_nano", {"layer_decay": 0.5}, "layer_decay: cached tokens have no trunk"),
        ("cxr_nano", {"text__trained": True}, "text.trained: cached tokens have no trunk"),
        (
            "cxr_nano",
            {"parallel": "fsdp2"},
            "parallel: cached tokens are trained on the CPU, and every process holds all",
        ),
        ("cxr_nano", {"precision": "float32"}, "precision: cached tokens are trained on the CPU, .* leave it out"),
        ("cxr_nano", {"branch__gate__pooling": "max"}, "branch.gate.pooling: .*'max'"),
        ("cxr_nano", {"fit__local": "mgca"}, "fit: local 'mgca' needs evidence_weight = 0"),
        ("cxr_nano", {"fit__loss": "siglip"}, "fit.loss: .*'siglip'"),
        ("cxr_nano", {"fit__loss": "sigmoid"}, "fit.loss: 'sigmoid' with branch.initial_logit_bias None; .* needs one"),
        ("cxr_base", {"branch__initial_logit_bias": -9.5}, "fit.loss: 'info_nce' with branch.initial_logit_bias -9.5"),
        ("cxr_base", {"trunk": None}, "trunk: is missing, and data of kind 'pairs' needs it"),
        ("cxr_base", {"branch__place_field": True}, "branch.place_field: .*'pairs' never reads it; leave it out"),
        ("cxr_base", {"fit__group_size": 2}, "fit.group_size: is for data of kind 'cases'"),
        ("cxr_base", {"fit__evidence_weight": 0.5}, "fit.evidence_weight: is for data of kind 'cases'"),
        ("cxr_base", {"data__manifests": []}, "data: expected manifests, shards or both, got neither"),
        ("cxr_base", {"data__val_manifest": None}, "data: val_split needs val_manifest"),
        ("cxr_base", {"trunk__anchor": {"source": "x"}}, "trunk.anchor: source: form 'none' has no teacher"),
        ("cxr_base", {"data__said": ["maybe"]}, "data.said.0: .*'maybe'"),
        ("cxr_base", {"trunk__trained_blocks": 0}, "trunk: anchor: a frozen trunk needs none"),
        ("cxr_base", {"trunk__anchor": {"form": "gram"}}, "trunk.anchor: blocks: expected some with form 'gram'"),
        (
            "cxr_base",
            {"data__cache": "tokens"},
            "data.cache: the tokens of a trunk that is trained change at every step;",
        ),
        (
            "ct_base",
            {"data__cache": "tokens"},
            r"data.cache: .* freeze the trunk \(trunk.trained_blocks = 0 and no trunk",
        ),
        ("cxr_nano", {"data__cache": "tokens"}, "data.cache: unknown key"),
        ("ct_base", {"trunk__trained_blocks": 2}, "trunk: lora keeps the blocks as they are"),
        ("ct_base", {"ema_decay": 1.0}, "ema_decay: Input should be less than 1, got 1.0"),
    ],
)
def test_what_is_refused_is_named(recipe: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(document(recipe, **changes), "x.toml")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad.toml: not a TOML file"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"bad.toml: not a TOML file"):
        load_config(tmp_path / "bad.toml")


@pytest.mark.parametrize("recipe", ["cxr_nano", "ct_nano", "cxr_base", "ct_base"])
def test_a_recipe_survives_being_written(tmp_path: Path, recipe: str) -> None:
    config = load_config(RECIPES / f"{recipe}.toml")
    assert config.name == recipe
    assert load_config(write_toml(config, tmp_path / "again.toml")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("recipe", ["cxr_nano", "ct_nano", "cxr_base", "ct_base"])
def test_a_recipe_says_how_it_is_run(recipe: str) -> None:
    header = (RECIPES / f"{recipe}.toml").read_text().split("name =")[0]
    for word in ("Command:", "Hardware:", "Time:", "Expected:", "--smoke"):
        assert word in header
