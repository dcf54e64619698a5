"""`radglint ablate`: variants, seeds, resumption, table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from radglint.ablation import AS_GIVEN, PAIR_VARIANTS, VARIANTS, ablate, changed, table, variants_for
from radglint.cli import main
from radglint.errors import ConfigError
from train_runs import RECIPES, tiny_run

pytest.importorskip("accelerate", reason="the extra radglint[train] is not installed")


@pytest.mark.parametrize("recipe", ["cxr_nano", "cxr_base"])
def test_every_variant_is_a_configuration_and_differs(tmp_path: Path, recipe: str) -> None:
    config = tiny_run(tmp_path, recipe)
    variants = variants_for(config)
    assert set(variants) == set(VARIANTS) | (set(PAIR_VARIANTS) if recipe == "cxr_base" else set())
    made = [changed(config, changes, Path("x"), 0, None).model_dump_json() for changes in variants.values()]
    repeated = {"cosine anchor"} if recipe == "cxr_base" else set()  # what the recipe has already
    assert len(set(made)) == len(made) - len(repeated)


def test_runs_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano")
    names = [AS_GIVEN, "softmax (RadZero)"]
    results = ablate(config, steps=2, num_seeds=2, only=names)
    assert list(results) == names
    assert all(len(rows) == 2 for rows in results.values())
    done = config.out / "ablation" / "softmax_RadZero" / "seed_1" / "result.json"
    document = json.loads(done.read_text())
    assert document["config"]["branch"]["gate"]["pooling"] == "softmax"
    assert document["config"]["fit"] | {"steps": 2, "seed": 1} == document["config"]["fit"]
    document["means"]["auroc"] = 0.125
    done.write_text(json.dumps(document))
    again = ablate(config, steps=2, num_seeds=2, only=names)
    assert again["softmax (RadZero)"][1]["auroc"] == 0.125
    assert again[AS_GIVEN] == results[AS_GIVEN]
    with pytest.raises(ConfigError, match="is of another configuration"):
        ablate(config, steps=3, num_seeds=1, only=names)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano")
    with pytest.raises(ConfigError, match="--only: no variant 'entmax'; choose from as given"):
        ablate(config, only=["entmax"])
    blind = config.model_copy(update={"data": config.data.model_copy(update={"val_prefix": None})})
    with pytest.raises(ConfigError, match=r"set data\.val_prefix"):
        ablate(blind)


def test_the_table_has_mean_and_spread() -> None:
    rows = {"a": [{"auroc": 0.5, "dice": 0.2}, {"auroc": 0.7, "dice": 0.2}], "b": [{"auroc": 0.5}]}
    assert table(rows).splitlines() == [
        "| variant | auroc | pointing | dice | seeds |",
        "|---|---|---|---|---|",
        "| a | 0.600 ± 0.141 | - | 0.200 ± 0.000 | 2 |",
        "| b | 0.500 | - | - | 1 |",
    ]


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", str(RECIPES / "ct_nano.toml"), "--smoke", "--seeds", "1", "--only", "mean pooling"]
    assert main([*command, "--threads", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| mean pooling | 0.")


def test_the_train_command_answers_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(RECIPES / "ct_nano.toml"), "--smoke"]) == 0
    assert capsys.readouterr().out == "smoke: one step of ct_nano done\n"
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err
    assert main(["train", str(RECIPES / "ct_nano.toml"), "--smoke", "--resume"]) == 2
    assert main(["ablate", str(RECIPES / "ct_nano.toml"), "--seeds", "0"]) == 2
    assert "expected a whole number from 1 on, got '0'" in capsys.readouterr().err
