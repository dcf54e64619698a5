"""Work on a batch in pieces while its loss stays that of the whole batch.

The idea of GradCache (Gao et al. 2021, arXiv 2101.06983): a first pass keeps each piece's output and no graph, the loss
is taken over all of them, and a second pass computes each piece again and sends its gradient back. PyTorch's
checkpointing does just that, with the generator's state put back for the second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def in_pieces(function: Callable[[Any], Result], items: Any, size: int | None) -> list[Result]:
    """Apply a function to runs of items.

    Args:
        function: from some items to tensors.
        items: a tensor (its rows) or a sequence.
        size: items of a piece; None takes all at once and keeps the graph.

    Returns:
        One result per piece, in order.
    """
    if size is None or len(items) <= size:
        return [function(items)]
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    return again(function, pieces)


def again(function: Callable[[Any], Result], pieces: Sequence[Any]) -> list[Result]:
    """Apply a function to each piece; only inputs and results are kept, the rest is computed again for the gradient."""
    results: list[Any] = [checkpoint(function, piece, use_reentrant=False) for piece in pieces]
    return results
