"""`radglint ablate`: variants, seeds, resumption, table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from radglint.ablation import (
    AS_GIVEN,
    CACHED_VARIANTS,
    PAIR_VARIANTS,
    VARIANTS,
    ablate,
    changed,
    difference_table,
    table,
    token_coverage,
    variants_for,
)
from radglint.baselines import BASELINES, baselines_for, compare_baselines, page
from radglint.cli import main
from radglint.errors import ConfigError
from radglint.train_config import load_config
from train_runs import RECIPES, tiny_run


@pytest.mark.parametrize("recipe", ["cxr_nano", "cxr_base"])
def test_every_variant_is_a_configuration_and_differs(tmp_path: Path, recipe: str) -> None:
    config = tiny_run(tmp_path, recipe)
    variants = variants_for(config)
    has = {"patch dropout"} | ({"evidence loss from the start"} if recipe == "cxr_base" else set())  # change nothing
    assert set(variants) == {*VARIANTS, *(PAIR_VARIANTS if recipe == "cxr_base" else CACHED_VARIANTS)} - has
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
        "| variant | auroc | pointing | dice | false_area | seeds |",
        "|---|---|---|---|---|---|",
        "| a | 0.600 ± 0.141 | - | 0.200 ± 0.000 | - | 2 |",
        "| b | 0.500 | - | - | - | 1 |",
    ]


def test_a_difference_is_bold_if_it_is_more_than_the_spread() -> None:
    """The spread of b is .014 in Dice; one seed has none, and seeds are compared in pairs."""
    rows = {
        "a": [{"auroc": 0.5, "dice": 0.20}, {"auroc": 0.7, "dice": 0.20}, {"auroc": 0.9}],
        "b": [{"auroc": 0.6, "dice": 0.18}, {"auroc": 0.8, "dice": 0.16}],
        "c": [{"auroc": 0.1}],
    }
    assert difference_table(rows).splitlines()[2:] == [
        "| b | +0.100 | - | **-0.030** | - |",
        "| c | -0.400 | - | - | - |",
    ]


def test_coverage_is_the_share_of_each_token_inside_the_mask() -> None:
    masks = np.zeros((1, 4, 6), dtype=bool)
    masks[0, :2, :3] = True
    masks[0, 3, 5] = True
    assert token_coverage(masks, (2, 2)).tolist() == [[1.0, 0.0, 0.0, pytest.approx(1 / 6, abs=1e-3)]]  # pyright: ignore[reportOptionalMemberAccess]
    assert token_coverage(masks[:0], (2, 2)) is None


def test_pairs_of_the_simulator_are_measured_with_their_masks(tmp_path: Path) -> None:
    """The held-out manifest has facts and masks, so that pointing and Dice are known, not the AUROC alone."""
    config = tiny_run(tmp_path, "cxr_base", fit__steps=1)
    manifest = config.data.val_manifest
    assert manifest is not None
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        facts = [{"concept": "nodule", "side": "left", "zone": None, "size": None, "mask": 0}] if number % 2 else []
        np.savez(tmp_path / f"{number}.npz", masks=np.ones((len(facts), 64, 64), np.uint8))
        row |= {"modality": "CXR", "facts": facts, "masks": f"{number}.npz"}
    manifest.write_text("\n".join(map(json.dumps, rows)))
    (means,) = ablate(config, num_seeds=1, only=["Gram anchor"])["Gram anchor"]
    assert means["pointing"] == 1.0
    assert means["dice"] > 0.5
    assert 0 <= means["auroc"] <= 1
    assert (config.out / "ablation" / "table.md").read_text().startswith("| variant | auroc |")


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", str(RECIPES / "ct_nano.toml"), "--smoke", "--seeds", "1", "--only", "mean pooling"]
    assert main([*command, "--threads", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| mean pooling | 0.")


@pytest.mark.parametrize("recipe", ["cxr_nano", "cxr_base"])
def test_every_baseline_is_a_configuration_without_our_own_terms(tmp_path: Path, recipe: str) -> None:
    config = tiny_run(tmp_path, recipe)
    made = {name: changed(config, c, Path("x"), 0, None) for name, c in baselines_for(config).items()}
    assert list(made) == [
        "ConVIRT", "GLoRIA-like", "FLAIR", "RadZero", "SigLIP", "MGCA (local loss)", "GLINT (gate alone)",
        "GLINT (as given)",
    ]  # fmt: skip
    assert len({run.model_dump_json() for run in made.values()}) == len(made)
    assert made.pop("GLINT (as given)") == changed(config, {}, Path("x"), 0, None)
    for name, run in made.items():
        assert (run.fit.evidence_weight, run.fit.patch_dropout, run.fit.in_lungs) == (0, 0, ()), name
        assert run.trunk is None or run.trunk.anchor.form == "none"
        assert (run.fit.sparsity == "none") == (name != "GLINT (gate alone)"), name
        assert run.fit.model_dump(include={"steps", "batch", "learning_rate"}) == config.fit.model_dump(
            include={"steps", "batch", "learning_rate"}
        )
    losses = {name: (run.branch.gate.pooling, run.fit.loss, run.fit.local) for name, run in made.items()}
    assert losses == {
        "ConVIRT": ("mean", "info_nce", "none"),
        "GLoRIA-like": ("mean", "info_nce", "gloria"),
        "FLAIR": ("softmax_null", "sigmoid", "none"),
        "RadZero": ("softmax", "info_nce", "none"),
        "SigLIP": ("mean", "sigmoid", "none"),
        "MGCA (local loss)": ("mean", "info_nce", "mgca"),
        "GLINT (gate alone)": ("sigmoid_null", "info_nce", "none"),
    }


def test_baselines_have_a_table_of_their_own_and_go_on(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano")
    names = ["MGCA (local loss)", "SigLIP", "GLINT (as given)"]
    results = compare_baselines(config, steps=2, num_seeds=1, only=names)
    done = config.out / "baselines" / "SigLIP" / "seed_0" / "result.json"
    written = (config.out / "baselines" / "table.md").read_text()
    assert written == page(results)
    assert "| less GLINT (as given) | auroc |" in written
    assert f"| SigLIP | {BASELINES['SigLIP'].source} | mean of the patches" in written
    before = done.stat().st_mtime_ns
    assert compare_baselines(config, steps=2, num_seeds=1, only=names) == results
    assert done.stat().st_mtime_ns == before
    assert not (config.out / "ablation").exists()


def test_baselines_do_not_start_from_another_run(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "cxr_nano").model_copy(update={"init": Path("other.safetensors")})
    with pytest.raises(ConfigError, match=r"init other\.safetensors: baselines have branches of other forms"):
        compare_baselines(config)


def test_the_command_prints_baselines_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", str(RECIPES / "cxr_base.toml"), "--smoke", "--seeds", "1", "--baselines", "--threads", "1"]
    assert main([*command, "--only", "GLoRIA-like"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| GLoRIA-like | 0.")
    assert main([*command, "--only", "no sparsity"]) == 2
    assert "no variant 'no sparsity'; choose from ConVIRT, GLoRIA-like, FLAIR" in capsys.readouterr().err


def test_the_train_command_answers_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(RECIPES / "ct_nano.toml"), "--smoke"]) == 0
    assert capsys.readouterr().out == "smoke: one step of ct_nano done\n"
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err
    assert main(["train", str(RECIPES / "ct_nano.toml"), "--smoke", "--resume"]) == 2
    assert main(["ablate", str(RECIPES / "ct_nano.toml"), "--seeds", "0"]) == 2
    assert "expected a whole number from 1 on, got '0'" in capsys.readouterr().err


def test_variants_that_come_to_the_same_run_are_run_once() -> None:
    """Without patch dropout and places, the bare gate is the gate without the evidence loss."""
    variants = variants_for(load_config(RECIPES / "ablation_cxr.toml"))
    assert "no evidence loss" in variants
    assert not {"bare sigmoid gate", "no patch dropout"} & set(variants)
    assert len(variants) == 17
