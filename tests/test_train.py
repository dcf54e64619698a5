"""Training a branch on cached tokens: labels, schedule, loss, and that it learns to score and to point."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radglint.cases import Case, save_cases
from radglint.encoders.mixer import MixerConfig
from radglint.gate import GateConfig
from radglint.model import BranchConfig, GlintBranch
from radglint.preprocess import CxrPreprocess
from radglint.simulation import sentences
from radglint.simulation.entailment import holds_for
from radglint.simulation.sentences import CONCEPTS, Fact
from radglint.train import (
    NOT_IN_LABELS,
    FitConfig,
    SentencePool,
    batch_order,
    branch_loss,
    evidence_weight_at,
    keep_patches,
    label_pairs,
    learning_rate_factor,
    score_cases,
    shift_channels,
    shown_patches,
)
from radglint.train_cached import CachedTask
from radglint.train_config import CachedData, TextConfig, TrainConfig
from radglint.train_engine import Trainer
from radglint.train_log import read_log
from radglint.train_smoke import write_text_tower
from radglint.train_towers import Ranks

GRID, EMBED, TEXT = (4, 5), 12, 8
AIR, HEART = Fact("pneumothorax"), Fact("cardiomegaly")
CONFIG = BranchConfig(
    preprocess=CxrPreprocess(), mixer=MixerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0),
    gate=GateConfig(joint_dim=32, gate_dim=8, initial_scale=2.0, initial_bias=-1.0), text_hidden=16,
)  # fmt: skip


SIGMOID = CONFIG.model_copy(update={"initial_logit_scale": 10.0, "initial_logit_bias": -10.0})


def tiny_branch(seed: int = 0, config: BranchConfig = CONFIG) -> GlintBranch:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GlintBranch(EMBED, TEXT, config)


def embed(texts: Sequence[str]) -> torch.Tensor:
    """A text tower that knows which concept a sentence names, and adds a little of its wording."""
    rows = []
    for text in texts:
        named = [c for c in CONCEPTS for n in sentences.NAMES[c] if n.removeprefix("~").lower() in text.lower()]
        vector = np.random.default_rng(zlib.crc32(text.encode())).normal(0, 0.1, TEXT)
        vector[CONCEPTS.index(max(named, key=named.count)) % TEXT] += 1.0
        rows.append(vector / np.linalg.norm(vector))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def planted(count: int, seed: int) -> list[Case]:
    """Noise tokens; pneumothorax and cardiomegaly add a direction each at two random tokens (kept as coverage)."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(0, 1.6, (2, EMBED))
    cases = []
    for k in range(count):
        facts = [fact for fact, there in zip((AIR, HEART), (k & 1, k & 2), strict=True) if there]
        tokens, coverage = rng.normal(0, 1, (20, EMBED)), np.zeros((len(facts), 20))
        for row, fact in enumerate(facts):
            place = rng.choice(20, 2, replace=False)
            tokens[place] += 2 * directions[(AIR, HEART).index(fact)]
            coverage[row, place] = 1
        cases.append(
            Case(torch.tensor(tokens[None]).bfloat16(), tuple(facts), torch.tensor(coverage).half(), f"patient-{k}")
        )
    return cases


class PlantedTask(CachedTask):
    """With sentences embedded by `embed`."""

    def embed(self, sentences: Sequence[str]) -> torch.Tensor:
        return embed(sentences)


def fitted(
    folder: Path, cases: Sequence[Case], config: BranchConfig = CONFIG, **fit: Any
) -> tuple[GlintBranch, list[dict[str, Any]]]:
    """A branch after a run on some cases, in eval mode, and the run's log."""
    save_cases(folder / "cases" / "train_000", cases)
    text = TextConfig(source=str(write_text_tower(folder / "text", TEXT)))
    data = CachedData(folder=folder / "cases", grid_tokens=GRID)
    run = TrainConfig(name="x", out=folder / "run", data=data, branch=config, text=text, fit=FitConfig(**fit))
    task = PlantedTask(run, Ranks())
    trainer = Trainer(run, task, Ranks())
    trainer.start(resume=False)
    trainer.run()
    return task.branch.eval(), read_log(run.out)


def auroc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Share of pairs in which the positive scores higher."""
    difference = positive[:, None] - negative[None]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def test_a_tiny_branch_learns_to_score_and_to_point_without_masks(tmp_path: Path) -> None:
    train = [replace(case, coverage=None) for case in planted(96, seed=0)]
    fit = {"steps": 160, "batch": 32, "learning_rate": 6e-3, "warmup_steps": 10, "sentences_per_fact": 1}
    branch, history = fitted(tmp_path, train, **fit)
    assert history[-1]["align"] < 0.5 * history[0]["align"]
    assert history[-1]["mass_neg"] < history[-1]["mass_pos"]
    unseen = planted(120, seed=1)
    scores, logits = score_cases(branch, unseen, GRID, embed(["Pneumothorax.", "There is cardiomegaly."]))
    for row, fact in enumerate((AIR, HEART)):
        there = torch.tensor([fact in case.facts for case in unseen])
        assert auroc(scores[row][there], scores[row][~there]) > 0.9
        hits = [
            float(case.coverage[case.facts.index(fact), logits[row, k].float().argmax()])  # type: ignore[index]
            for k, case in enumerate(unseen)
            if fact in case.facts
        ]
        assert np.mean(hits) > 0.8  # by chance 0.1


def test_the_same_seed_gives_the_same_branch(tmp_path: Path) -> None:
    def run(folder: str, seed: int) -> tuple[list[float], torch.Tensor]:
        branch, history = fitted(tmp_path / folder, planted(16, seed=3), steps=4, batch=8, warmup_steps=1, seed=seed)
        return [row["loss"] for row in history], torch.cat([p.detach().flatten() for p in branch.parameters()])

    (first, weights), (again, same), (_, other) = run("a", 7), run("b", 7), run("c", 8)
    assert first == again
    assert torch.equal(weights, same)
    assert not torch.equal(weights, other)
    assert not torch.equal(weights, torch.cat([p.detach().flatten() for p in tiny_branch(7).parameters()]))


def test_sentences_are_drawn_by_the_seed_alone() -> None:
    """Not by the order of a set of strings, which differs from process to process."""
    cases = [Case(torch.zeros(1, 1, 1), (Fact("nodule", side, zone, "small"),)) for side in ("left", "right") for zone in ("upper", "lower")]  # noqa: E501 # fmt: skip
    pool = SentencePool(cases, embed, variants=12, seed=1)
    for options in pool.options.values():
        rows = [row for row, _ in options]
        assert len(rows) > 5
        assert rows == sorted(set(rows))


def test_a_drawn_sentence_holds_for_the_case_it_was_drawn_for() -> None:
    cases = [
        Case(torch.zeros(1, 1, 1), (Fact("pneumothorax", "left", "upper", "small"),)),
        Case(torch.zeros(1, 1, 1), (Fact("pleural effusion", "bilateral"), Fact("cardiomegaly", size="large"))),
        Case(torch.zeros(1, 1, 1), ()),
    ]
    pool = SentencePool(cases, embed, variants=12, seed=0)
    texts, statements = pool.draw(cases, 2, np.random.default_rng(0))
    assert texts.shape == (6, TEXT)
    assert len(statements) == 6
    positives, negatives = label_pairs(statements, cases)
    for k, case in enumerate(cases):
        assert int(positives[:, k].sum()) == 2 * len(case.facts)
    assert not positives[:, 2].any()
    assert negatives[:, 2].all()
    for text, statement in zip(texts, statements, strict=True):
        row = int((pool.embeddings - text).abs().sum(dim=1).argmin())
        assert torch.equal(pool.embeddings[row], text)
        assert (row, statement) in [option for options in pool.options.values() for option in options]


_FACTS = st.builds(
    Fact,
    st.sampled_from(["nodule", "mass", "rib fracture", "pleural effusion"]),
    st.sampled_from([None, "left", "right"]),
)


@given(
    st.lists(_FACTS, min_size=1, max_size=4),
    st.lists(
        st.tuples(st.lists(_FACTS, max_size=3), st.sampled_from([(), ("nodule",), tuple(NOT_IN_LABELS)])),
        min_size=1,
        max_size=4,
    ),
)
def test_label_pairs_equal_their_naive_form(
    statements: list[Fact], images: list[tuple[list[Fact], tuple[str, ...]]]
) -> None:
    cases = [Case(torch.zeros(1), tuple(facts), unsaid=unsaid) for facts, unsaid in images]
    positives, negatives = label_pairs(statements, cases)
    assert positives.dtype == negatives.dtype == torch.bool
    assert positives.shape == negatives.shape == (len(statements), len(cases))
    for t, statement in enumerate(statements):
        for b, case in enumerate(cases):
            verdict = holds_for(statement, case.facts)
            if verdict == "fails" and statement.concept in case.unsaid:
                verdict = "unknown"
            assert bool(positives[t, b]) == (verdict == "holds")
            assert bool(negatives[t, b]) == (verdict == "fails")


def test_learning_rate_rises_then_falls_to_zero() -> None:
    config = FitConfig(steps=100, warmup_steps=20)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[0] == 1 / 20
    assert factors[19] == factors[20] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    for step in range(20, 101):
        assert factors[step] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (step - 20) / 80))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 5), (3, 10)])
def test_learning_rate_of_short_runs_stays_in_range(steps: int, warmup: int) -> None:
    config = FitConfig(steps=steps, warmup_steps=warmup)
    assert all(0 <= learning_rate_factor(step, config) <= 1 for step in range(steps + 2))
    assert learning_rate_factor(0, config) > 0


@pytest.mark.parametrize("sparsity", ["none", "budget", "negatives", "binarise"])
@pytest.mark.parametrize(
    "loss", [{}, {"loss": "sigmoid"}, {"local": "gloria"}], ids=["info_nce", "sigmoid", "gloria"]
)  # fmt: skip
def test_undecided_pairs_do_not_enter_the_loss(sparsity: Any, loss: dict[str, Any]) -> None:
    """The image of a mass says nothing about "nodule": its tokens change neither loss nor gradient."""
    concepts = ("nodule", "mass", "cardiomegaly")
    images = [replace(c, facts=(Fact(name),)) for c, name in zip(planted(3, seed=5), concepts, strict=True)]
    statements, texts = [Fact("nodule")], embed(["nodule"])
    config = FitConfig(sparsity=sparsity, sparsity_weight=1.0, **loss)

    def loss_and_gradient(changed: int | None) -> tuple[float, torch.Tensor]:
        batch = [replace(c, tokens=c.tokens + 2.0) if k == changed else c for k, c in enumerate(images)]
        bias = -1.0 if config.loss == "sigmoid" else None  # at -10 a negative pair hardly has a loss
        branch = tiny_branch(config=CONFIG.model_copy(update={"initial_logit_bias": bias}))
        loss, _ = branch_loss(branch, batch, GRID, texts, statements, config, step=0)
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in branch.parameters() if p.grad is not None])

    loss, gradient = loss_and_gradient(None)
    undecided, same = loss_and_gradient(1)
    decided, other = loss_and_gradient(2)
    assert undecided == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-5)
    assert abs(decided - loss) > 1e-4
    assert not torch.allclose(other, gradient, rtol=1e-3, atol=1e-5)


def test_only_a_branch_that_is_asked_for_a_bias_has_one(tmp_path: Path) -> None:
    plain, biased = tiny_branch(), tiny_branch(config=SIGMOID)
    assert biased.state_dict().keys() - plain.state_dict().keys() == {"logit_bias"}
    assert float(biased.logit_scale.detach().exp()) == pytest.approx(10.0)
    assert float(biased.state_dict()["logit_bias"]) == -10.0
    assert float(plain.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)
    fit: dict[str, Any] = {"steps": 20, "batch": 8, "warmup_steps": 0, "loss": "sigmoid"}
    _, history = fitted(tmp_path, planted(16, seed=2), SIGMOID, **fit)
    assert history[0]["bias"] == -10.0
    assert history[-1]["bias"] > -10.0, "nearly every pair is a negative to begin with: the bias has to rise"


@pytest.mark.parametrize("local", ["gloria", "mgca"])
def test_a_local_loss_is_added_with_its_weight_and_trains_the_patches(local: Any) -> None:
    images, statements = planted(8, seed=5), [AIR, HEART, HEART]
    texts = embed(["pneumothorax", "cardiomegaly", "enlarged heart"])

    def numbers(**changes: Any) -> tuple[float, dict[str, float], torch.Tensor]:
        branch = tiny_branch()
        loss, log = branch_loss(branch, images, GRID, texts, statements, FitConfig(**changes), step=0)
        loss.backward()
        gradient = branch.gate.image_content.weight.grad
        assert gradient is not None
        return float(loss.detach()), log, gradient

    plain, log_plain, gradient_plain = numbers()
    loss, log, gradient = numbers(local=local, local_weight=0.5)
    assert log["align"] == pytest.approx(log_plain["align"], rel=1e-6)
    assert "local" not in log_plain
    assert log["local"] > 0
    assert loss == pytest.approx(plain + 0.5 * log["local"], rel=1e-5)
    assert not torch.allclose(gradient, gradient_plain, rtol=1e-2)


def test_the_budget_is_that_of_the_configuration() -> None:
    images, texts = planted(4, seed=5), embed(["pneumothorax"])

    def sparsity(budget: float) -> float:
        config = FitConfig(sparsity="budget", sparsity_weight=1.0, sparsity_budget=budget)
        return branch_loss(tiny_branch(), images, GRID, texts, [AIR], config, step=0)[1]["sparsity"]

    assert sparsity(0.9) == 0.0
    assert sparsity(0.01) > sparsity(0.1) > 0


def test_scores_do_not_depend_on_the_chunk() -> None:
    branch, cases, texts = tiny_branch(), planted(7, seed=2), embed(["pneumothorax", "cardiomegaly"])
    scores, logits = score_cases(branch, cases, GRID, texts)
    assert scores.shape == (2, 7)
    assert logits.shape == (2, 7, 20)
    assert (scores.dtype, logits.dtype) == (torch.float32, torch.float16)
    for chunk in (1, 3):
        again = score_cases(branch, cases, GRID, texts, chunk)
        torch.testing.assert_close(again[0], scores, atol=2e-2, rtol=0)
        torch.testing.assert_close(again[1], logits, atol=0.15, rtol=0)


def test_batches_keep_a_body_together_and_see_every_case() -> None:
    """Six bodies of two images in batches of four: whole bodies, and all of them in three batches."""
    cases = [replace(case, group=f"body-{k // 2}") for k, case in enumerate(planted(12, 0))]
    order = batch_order(cases, FitConfig(batch=4, group_size=2), np.random.default_rng(0))
    batches = [next(order) for _ in range(3)]
    for batch in batches:
        groups = [case.group for case in batch]
        assert sorted(groups) == sorted(2 * sorted(set(groups)))
    seen = {id(case) for batch in batches for case in batch}
    assert seen == {id(case) for case in cases}


def test_a_batch_of_groups_of_one_is_any_cases() -> None:
    cases = planted(10, 0)
    batch = next(batch_order(cases, FitConfig(batch=64), np.random.default_rng(0)))
    assert sorted(map(id, batch)) == sorted(map(id, cases))


def test_a_shift_changes_whole_channels_of_one_image() -> None:
    """Gain and offset are the same for every token of an image, and other for another image."""
    tokens = torch.randn(2, 1, 50, 6, generator=torch.Generator().manual_seed(0)) * 3
    assert shift_channels(tokens, 0.0) is tokens
    moved = shift_channels(tokens, 0.3)
    for image in range(2):
        for channel in range(6):
            before, after = tokens[image, 0, :, channel], moved[image, 0, :, channel]
            gain, offset = np.polyfit(before.numpy(), after.numpy(), 1)
            np.testing.assert_allclose(after, gain * before + offset, atol=1e-4)
            assert 0 < abs(gain - 1) < 1.5
    assert not torch.allclose(moved[0] - tokens[0], moved[1] - tokens[1])


def test_patches_are_left_out_at_random_and_never_all() -> None:
    torch.manual_seed(0)
    assert keep_patches(20, 0.0) is None
    drawn = [keep_patches(20, 0.9) for _ in range(200)]
    sizes = {len(kept) for kept in drawn if kept is not None}
    assert min(sizes) <= 4
    assert max(sizes) >= 18
    whole = sum(kept is None for kept in drawn)
    assert 70 < whole < 130  # every other step sees the whole image
    some = [kept for kept in drawn if kept is not None]
    assert all(len(kept.unique()) == len(kept) and 0 <= kept.min() <= kept.max() < 20 for kept in some)
    assert {tuple(kept.tolist()) for kept in (keep_patches(1, 0.9) for _ in range(20)) if kept is not None} == {(0,)}


@torch.no_grad()
def test_left_out_patches_do_not_move_the_others() -> None:
    """Without attention a token keeps its place and its value, whichever others are there."""
    config = CONFIG.model_copy(update={"mixer": CONFIG.mixer.model_copy(update={"attention": False})})
    branch, kept = GlintBranch(EMBED, TEXT, config).eval(), torch.tensor([0, 7, 13])
    tokens, texts = torch.randn(2, 1, 20, EMBED), torch.randn(3, TEXT)
    whole, part = branch(tokens, GRID, texts), branch(tokens, GRID, texts, kept=kept)
    torch.testing.assert_close(part.gate_logits, whole.gate_logits[..., kept])
    assert (part.gate_logits - whole.gate_logits[..., :3]).abs().max() > 1e-3


def test_a_larger_finding_shows_in_more_patches() -> None:
    sizes = [shown_patches(Fact("pleural effusion", size=size)) for size in ("small", "medium", "large")]
    assert sizes == sorted(set(sizes))
    assert shown_patches(Fact("pleural effusion")) == sizes[0]


def test_with_the_evidence_loss_the_map_itself_says_where_nothing_is(tmp_path: Path) -> None:
    """Trained without masks, the highest map logit alone tells images with the finding from those without."""
    cases, held_out = planted(64, 0), planted(64, 7)
    gate = CONFIG.gate.model_copy(update={"map_content_weight": 8.0})
    fit = {"steps": 100, "batch": 32, "warmup_steps": 5, "learning_rate": 5e-3, "patch_dropout": 0.5}
    branch, _ = fitted(tmp_path, cases, CONFIG.model_copy(update={"gate": gate}), evidence_weight=1.0, **fit)
    _, logits = score_cases(branch, held_out, GRID, embed(["There is a pneumothorax."]))
    highest = logits[0].float().max(dim=-1).values - FitConfig().evidence_offset
    there = torch.tensor([AIR in case.facts for case in held_out])
    assert ((highest > 0) == there).float().mean() > 0.85


def test_the_evidence_loss_begins_when_it_is_told_to() -> None:
    config = FitConfig(evidence_weight=0.5, evidence_from_step=20)
    assert [evidence_weight_at(step, config) for step in (0, 20, 70, 120, 500)] == [0, 0, 0.25, 0.5, 0.5]
    assert evidence_weight_at(0, FitConfig(evidence_weight=0.5)) == 0.5
