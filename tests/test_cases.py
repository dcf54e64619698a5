"""Cached training cases: what is saved is what is loaded, and nothing half written is ever read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radglint import cases as cases_module
from radglint.cases import Case, crop_slices, load_cases, save_cases
from radglint.errors import ConfigError
from radglint.simulation.facts import Fact


def some(count: int, seed: int = 0) -> list[Case]:
    """Cases that differ in everything that is stored."""
    generator = torch.Generator().manual_seed(seed)
    facts = (Fact("nodule", "left", "upper", "small"), Fact("cardiomegaly"), Fact("pneumothorax", "right"))
    return [
        Case(
            tokens=torch.randn(1 + k, 6, 4, generator=generator).bfloat16(),
            facts=facts[: k % 4],
            coverage=torch.rand(k % 4, 6 * (1 + k), generator=generator).half() if k % 2 else None,
            group=f"patient-{seed}-{k}",
            unsaid=("nodule", "mass")[:k],
        )
        for k in range(count)
    ]


def assert_equal(got: list[Case], wanted: list[Case]) -> None:
    assert [(c.facts, c.group, c.unsaid) for c in got] == [(c.facts, c.group, c.unsaid) for c in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert a.tokens.dtype == torch.bfloat16
        assert torch.equal(a.tokens, b.tokens)
        assert (a.coverage is None) == (b.coverage is None)
        if a.coverage is not None and b.coverage is not None:
            assert a.coverage.dtype == torch.float16
            assert torch.equal(a.coverage, b.coverage)


def test_cases_survive_the_round_trip(tmp_path: Path) -> None:
    save_cases(tmp_path / "deep" / "train_000", some(12))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["train_000.json", "train_000.safetensors"]
    assert_equal(load_cases(tmp_path / "deep", "train"), some(12))


def test_strided_tokens_are_stored_as_they_look(tmp_path: Path) -> None:
    tokens = torch.arange(48.0).reshape(2, 6, 4).bfloat16().transpose(1, 2)
    save_cases(tmp_path / "train", [Case(tokens, ())])
    assert torch.equal(load_cases(tmp_path, "train")[0].tokens, tokens)


def test_shards_come_in_order_and_by_prefix(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        save_cases(tmp_path / f"train_{number:03d}", some(3, seed=number))
    save_cases(tmp_path / "val_000", some(2, seed=9))
    assert_equal(load_cases(tmp_path, "train"), [*some(3, 0), *some(3, 1), *some(3, 2)])
    assert_equal(load_cases(tmp_path, "val"), some(2, 9))


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_shard_is_said_plainly(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no shard train\*\.json; run the feature recipe first"):
        load_cases(tmp_path / name, "train")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", ["tensors", "index", "first move", "second move"])
def test_a_failed_write_leaves_no_half_shard(tmp_path: Path, monkeypatch: Any, step: str, old: bool) -> None:
    """Full disk at any step: the old shard or none is read, never old tensors with new facts; no temporary files."""
    if old:
        save_cases(tmp_path / "train", some(4))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    moves = iter(range(9))
    real = os.replace
    with monkeypatch.context() as patch:
        if step == "tensors":
            patch.setattr(cases_module, "save_file", full)
        elif step == "index":
            patch.setattr(Path, "write_text", full)
        else:
            failing = ["first move", "second move"].index(step)
            patch.setattr(os, "replace", lambda a, b: full() if next(moves) == failing else real(a, b))
        with pytest.raises(OSError, match="No space left"):
            save_cases(tmp_path / "train", some(2, seed=5))
    assert not list(tmp_path.glob("*.tmp"))
    if old and step in ("tensors", "index"):
        assert_equal(load_cases(tmp_path, "train"), some(4))
    else:
        with pytest.raises(ConfigError):
            load_cases(tmp_path, "train")
    save_cases(tmp_path / "train", some(2, seed=5))
    assert_equal(load_cases(tmp_path, "train"), some(2, seed=5))


def test_pieces_of_a_slab_keep_the_facts_that_touch_them() -> None:
    """Four slices of two tokens; a nodule fills slice 0, a mass touches slice 3 a little."""
    cover = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0.1, 0]]).half()
    slab = Case(torch.arange(8.0).reshape(4, 2, 1), (Fact("nodule"), Fact("mass")), cover, "body")
    first, last = crop_slices(slab, (0, 2), 2)
    assert [f.concept for f in first.facts] == ["nodule"]
    assert [f.concept for f in last.facts] == ["mass"]
    assert first.tokens.flatten().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(last.coverage.float(), [[1, 0, 0.1, 0]], atol=1e-3)
    assert crop_slices(slab, (3,), 1) == []  # touched by a tenth of a token: undecided
    assert crop_slices(Case(slab.tokens, ()), (0,), 3)[0].facts == ()


def test_context_is_seen_and_not_in_the_bag() -> None:
    """The middle of three slices is the bag: tokens keep all three, facts and coverage the middle only."""
    cover = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0]]).half()
    slab = Case(torch.arange(6.0).reshape(3, 2, 1), (Fact("nodule"), Fact("mass")), cover, "body")
    (bag,) = crop_slices(slab, [1], 1, context_slices=1)
    assert bag.tokens.shape == (3, 2, 1)
    assert [f.concept for f in bag.facts] == ["mass"]
    assert bag.coverage is not None
    assert bag.coverage.tolist() == [[1, 0]]
    for start in (0, 2):
        with pytest.raises(ConfigError, match="do not fit 3"):
            crop_slices(slab, [start], 1, context_slices=1)
