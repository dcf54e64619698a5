"""Retrieval: reports to images and back (recall at k, median rank), volume to volume (mean average precision at k).

Ties: keys whose cosines are equal to six decimals (float32 has little more) are in random order, and a measure is its
expected value over those orders. A model that gives every key the same score so gets what chance gets, neither all nor
nothing. Scores are made in pieces of queries:
20,000 x 20,000 needs some hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from radglint.errors import ConfigError, InputError
from radglint.evaluation.inputs import as_flags, as_numbers, ratio

PIECE_BYTES = 64_000_000  # of one piece of scores
Relevance = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ranks:
    """Where the best positive key of each query stands.

    Attributes:
        above: `queries`, keys that score higher than it.
        tied: `queries`, other keys that score the same and are not positive.
        same: `queries`, positive keys with that score, itself included; 0 = the query has no positive key.
    """

    above: np.ndarray
    tied: np.ndarray
    same: np.ndarray

    def recall_at(self, k: int) -> float:
        """Share of the queries with a positive among the first k keys; queries without a positive do not count.

        Naive form: mean over queries, and over all orders of tied keys, of "a positive is among the first k".
        """
        return float(np.nanmean(self.hits_at(k))) if self.same.any() else float("nan")

    def hits_at(self, k: int) -> np.ndarray:
        """`queries`: chance that a positive is among the first k; NaN without a positive."""
        if k < 1:
            raise ConfigError(f"k: expected 1 or more, got {k}")
        places = np.clip(k - self.above, 0, self.tied + self.same)  # that are left for the tied ones
        none = np.where(
            places <= self.tied, _choose(self.tied, places) - _choose(self.tied + self.same, places), -np.inf
        )
        return np.where(self.same == 0, np.nan, 1 - np.exp(none))

    def ranks(self) -> np.ndarray:
        """`queries`: expected rank of the best positive, from 1; NaN without one."""
        rank = self.above + (self.tied + self.same + 1) / (self.same + 1)
        return np.where(self.same == 0, np.nan, rank)

    def median_rank(self) -> float:
        """Median over queries; NaN if none has a positive."""
        return float(np.nanmedian(self.ranks())) if self.same.any() else float("nan")


def ranks(queries: Any, keys: Any, query_ids: Sequence[Any], key_ids: Sequence[Any]) -> Ranks:
    """Rank the keys of each query by cosine; a key is positive where its id is that of the query.

    Several keys (and queries) may share an id: the same report of two images, two reconstructions of a scan. The best
    of them counts.

    Args:
        queries: `queries width`.
        keys: `keys width`.
        query_ids: `queries`.
        key_ids: `keys`.

    Naive form: for each query the cosines of all keys; those above the best positive, and those equal to it.
    """
    queries, keys = _unit("queries", queries), _unit("keys", keys)
    wanted, owned = _ids(query_ids, key_ids, len(queries), len(keys))
    found = np.zeros((3, len(queries)), np.int64)
    for rows, scores in _pieces(queries, keys):
        positive = wanted[rows, None] == owned
        best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
        equal = scores == best
        same = (equal & positive).sum(1)
        found[:, rows] = (scores > best).sum(1), equal.sum(1) - same, same
        found[:2, rows] *= same > 0
    return Ranks(*found)


def both_ways(images: Any, texts: Any, image_ids: Sequence[Any], text_ids: Sequence[Any]) -> dict[str, Ranks]:
    """Ranks by direction, "image to text" and "text to image"; arguments as `ranks`."""
    return {
        "image to text": ranks(images, texts, image_ids, text_ids),
        "text to image": ranks(texts, images, text_ids, image_ids),
    }


def label_overlap(labels: Any, least: float = 1.0) -> Relevance:
    """Relevance of volumes by their findings: Jaccard index of label sets at least `least`; two empty sets are equal.

    Args:
        labels: `volumes classes`, bool.
        least: in (0, 1]; 1 = the same labels.

    Returns:
        A function of query numbers, to `queries volumes` bool.
    """
    table = as_flags("labels", labels).astype(np.float32)
    if not 0 < least <= 1:
        raise ConfigError(f"least: expected a number in (0, 1], got {least}")
    sizes = table.sum(1)

    def relevant(rows: np.ndarray) -> np.ndarray:
        both = table[rows] @ table.T
        either = sizes[rows, None] + sizes - both
        return ratio(both, either, 1.0) >= least - 1e-6

    return relevant


def average_precision_at(
    volumes: Any, relevant: Relevance, k: int, groups: Sequence[Any] | None = None
) -> np.ndarray:  # fmt: skip
    """Volume to volume: average precision among the first k by cosine, for each volume as the query.

    The query itself, and with `groups` all of its patient, are not searched. Ties: in order of the volumes (here no
    expected value is taken).

    Args:
        volumes: `volumes width`.
        relevant: of query numbers to `queries volumes` bool, for example `label_overlap`.
        k: how many are looked at.
        groups: `volumes`, patients.

    Returns:
        `volumes`; NaN where nothing relevant is left to be found. Their mean is MAP@k; the code of CT-CLIP was not
        read, so its rule of relevance and its divisor are not confirmed.

    Naive form: sum over ranks i <= k of precision(i) relevant(i), divided by min(k, relevant keys).
    """
    vectors = _unit("volumes", volumes)
    own = np.arange(len(vectors)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(own) != len(vectors) or k < 1:
        raise InputError(
            f"groups: {len(own)} for {len(vectors)} volumes, k {k}; give one patient for each, k 1 or more"
        )
    found = np.zeros(len(vectors))
    for rows, scores in _pieces(vectors, vectors):
        barred = own[rows, None] == own
        wanted = relevant(rows) & ~barred
        scores = np.where(barred, -np.inf, scores)
        order = _first(scores, k)
        hit = np.take_along_axis(wanted, order, 1).astype(np.float64)
        precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
        found[rows] = ratio((hit * precision).sum(1), np.minimum(wanted.sum(1), k))
    return found


def _first(scores: np.ndarray, k: int) -> np.ndarray:
    """`queries k`: the k highest, falling, of equals the earlier first."""
    k = min(k, scores.shape[1])
    if k * 4 > scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    limit = np.partition(scores, -k, axis=1)[:, -k, None]
    found = np.empty((len(scores), k), np.int64)
    for row, (line, least) in enumerate(zip(scores, limit[:, 0], strict=True)):
        places = np.flatnonzero(line >= least)
        found[row] = places[np.argsort(-line[places], kind="stable")[:k]]
    return found


def _pieces(queries: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    size = max(1, PIECE_BYTES // (4 * len(keys)))
    for start in range(0, len(queries), size):
        rows = np.arange(start, min(start + size, len(queries)))
        scores = queries[rows] @ keys.T
        yield rows, np.round(scores, 6, out=scores)


def _unit(name: str, values: Any) -> np.ndarray:
    """Rows of length 1, float32."""
    rows = as_numbers(name, values)
    if rows.ndim != 2:
        raise InputError(f"{name}: expected (rows, width), got shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"{name}: row {int(np.argmin(norms))} is all 0 and has no direction")
    return np.ascontiguousarray(rows / norms, np.float32)


def _ids(a: Sequence[Any], b: Sequence[Any], n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    if len(a) != n or len(b) != m:
        raise InputError(f"ids: {len(a)} and {len(b)} for {n} queries and {m} keys; give one for each")
    _, numbers = np.unique(np.concatenate([np.asarray(a), np.asarray(b)]), return_inverse=True)
    return numbers[:n], numbers[n:]


def _choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Log of n over k, for k <= n."""
    k = np.minimum(k, n)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
