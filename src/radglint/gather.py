"""Sentences and scores of several processes: every rank's images meet every rank's sentences.

Each rank gathers the texts, scores them on its own images, gathers the scores, and computes the loss of the whole
batch, the same on every rank. Gradients travel back to the rank that owns the row; averaged over the ranks, as
DistributedDataParallel does, they are those of one process with all images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def gather_texts(embeddings: torch.Tensor, statement_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of all ranks, in rank order, with gradients; one that several ranks drew is kept once.

    Args:
        embeddings: `texts embed`; ranks may have different numbers of texts.
        statement_ids: `texts`, int64: which sentence a row is, the same number on every rank.

    Returns:
        Embeddings `all_texts embed` and ids `all_texts`, equal on every rank. Without a process group: this
        process's own.

    Raises:
        ValueError: not one id per text.
    """
    if statement_ids.shape != embeddings.shape[:1]:
        raise ValueError(f"{len(embeddings)} texts need as many statement ids, not {tuple(statement_ids.shape)}")
    ids = _gather_rows(statement_ids)
    first: dict[int, int] = {}
    for row, statement in enumerate(ids.tolist()):
        first.setdefault(statement, row)
    rows = torch.tensor(list(first.values()), dtype=torch.int64, device=ids.device)
    return _gather_rows(embeddings)[rows], ids[rows]


def gather_images(values: torch.Tensor) -> torch.Tensor:
    """Scores, gate sums or labels of all ranks' images, with gradients.

    Args:
        values: `texts batch`, the same texts on every rank; ranks may have different numbers of images.

    Returns:
        `texts all_images`, in rank order. Without a process group: `values`.
    """
    return _gather_rows(values.T.contiguous()).T


def _gather_rows(local: torch.Tensor) -> torch.Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return local
    rows: Any = _GatherRows.apply(local)
    return rows


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; its adjoint sums the gradients over the ranks and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        own = torch.tensor([len(local)], device=local.device)
        counts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(counts, own)
        sizes = [int(count) for count in counts]
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        start = sum(sizes[: distributed.get_rank()])
        ctx.rows = slice(start, start + len(local))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, d_rows: torch.Tensor) -> torch.Tensor:
        total = d_rows.float() if d_rows.dtype == torch.bfloat16 else d_rows.clone()  # sums in full precision
        distributed.all_reduce(total)
        return total[ctx.rows].to(d_rows.dtype)
