"""Several processes against one: the same loss and the same gradients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from radglint.alignment import align
from radglint.gate import GateConfig, SparseGate
from radglint.gather import gather_images, gather_texts
from radglint.losses import multi_positive_info_nce, sparsity_of_sums

TOKENS, WIDTH = 5, 6
IMAGES = [0, 0, 0, 1, 1]  # the rank of each: three and two
DRAWN = [[4, 7, 2], [7, 9]]  # statements of each rank, different numbers, 7 on both
ORDER = [4, 7, 2, 9]


def _setting() -> tuple[SparseGate, torch.nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate, text tower, tokens, embeddings by statement id, and which statement holds for which image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = SparseGate(WIDTH, WIDTH, GateConfig(joint_dim=8, gate_dim=4, initial_scale=3.0, initial_bias=-0.5))
        tower, tokens, sentences = torch.nn.Linear(WIDTH, WIDTH), torch.randn(5, TOKENS, WIDTH), torch.randn(10, WIDTH)
        return gate, tower, tokens, sentences, torch.rand(10, 5) < 0.5


def _loss_and_gradients(images: list[int], ids: list[int]) -> tuple[torch.Tensor, list[int], list[torch.Tensor]]:
    """Of one process: its own images and sentences; the loss is that of all."""
    gate, tower, tokens, sentences, holds = _setting()
    logit_scale = torch.tensor(10.0, requires_grad=True)
    texts, all_ids = gather_texts(tower(sentences[ids]), torch.tensor(ids))
    out = align(gate, tokens[images], texts)
    positives = gather_images(holds[all_ids][:, images])
    sums = (gather_images(out.gate_mass), gather_images(out.gate_squares), TOKENS)
    loss = multi_positive_info_nce(gather_images(out.scores), positives, logit_scale)
    loss = loss + 5 * sparsity_of_sums(*sums, positives, "binarise")
    return loss.detach(), all_ids.tolist(), list(
        torch.autograd.grad(loss, [*gate.parameters(), *tower.parameters(), logit_scale])
    )  # fmt: skip


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images = [k for k, owner in enumerate(IMAGES) if owner == rank]
    loss, ids, gradients = _loss_and_gradients(images, DRAWN[rank])
    for gradient in gradients:  # as DistributedDataParallel does
        distributed.all_reduce(gradient)
        gradient /= 2
    torch.save((loss, ids, gradients), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    loss, ids, gradients = _loss_and_gradients(list(range(5)), ORDER)
    assert ids == ORDER
    assert all(bool(g.abs().max() > 1e-5) for g in gradients), "a comparison of zeros proves nothing"
    for rank in range(2):
        got_loss, got_ids, got_gradients = torch.load(tmp_path / f"{rank}.pt")
        assert got_ids == ORDER
        torch.testing.assert_close(got_loss, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got_gradients, gradients, rtol=1e-5, atol=1e-6)


def test_one_process_keeps_its_own_sentences_each_once() -> None:
    embeddings = torch.randn(4, 3)
    texts, ids = gather_texts(embeddings, torch.tensor([5, 1, 5, 0]))
    assert ids.tolist() == [5, 1, 0]
    assert torch.equal(texts, embeddings[[0, 1, 3]])
    assert torch.equal(gather_images(embeddings), embeddings)


def test_every_text_needs_an_id() -> None:
    with pytest.raises(ValueError, match="4 texts need as many statement ids"):
        gather_texts(torch.randn(4, 3), torch.arange(3))
