"""Run-length encoded masks of published data sets, decoded exactly.

Both forms run down the columns: pixel `k` is row `k % height` of column `k // height`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from radglint.errors import InputError


def decode_relative(text: str, size_px: tuple[int, int], where: str) -> np.ndarray:
    """The form of the SIIM-ACR challenge: pairs of a gap and a length, each gap counted from the last run's end.

    Args:
        text: whole numbers with blanks between them; "-1" is an empty mask.
        size_px: height and width.
        where: for messages.

    Returns:
        bool `height width`.

    Raises:
        InputError: not pairs of whole numbers, negative, or longer than the image.

    Naive form: walk the runs, and set `mask[k % height, k // height]` pixel by pixel.
    Source: `rle2mask` in the challenge's own starter files, whose result is transposed before use.
    """
    words = text.split()
    if words == ["-1"]:
        return np.zeros(size_px, dtype=bool)
    if not words or len(words) % 2 or not all(word.isdecimal() for word in words):
        raise InputError(f"{where}: expected -1 or pairs of whole numbers, got {text[:40]!r}")
    return _from_runs([int(word) for word in words], size_px, where)


def decode_coco(counts: str | Sequence[int], size_px: tuple[int, int], where: str) -> np.ndarray:
    """The form of COCO: lengths of runs that are in turn outside and inside, plain or packed into characters.

    Args:
        counts: a list of whole numbers, or the packed text.
        size_px: height and width.
        where: for messages.

    Returns:
        bool `height width`.

    Raises:
        InputError: damaged, or the runs do not fill the image exactly.

    Naive form: write each run's value `count` times into a list, then `mask[k % height, k // height] = list[k]`.
    Source: the format notes of the COCO interface (6 bits a character from code 48, 5 of them payload, the highest of
    the last one the sign; from the fourth number on, the difference to the number two before).
    """
    runs = _unpack(counts, where) if isinstance(counts, str) else [int(count) for count in counts]
    if any(run < 0 for run in runs) or sum(runs) != size_px[0] * size_px[1]:
        raise InputError(
            f"{where}: the runs of the mask cover {sum(runs)} pixels, expected {size_px[0]} x {size_px[1]}; the file "
            "is damaged"
        )
    return _from_runs(runs, size_px, where)


def _unpack(text: str, where: str) -> list[int]:
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise InputError(f"{where}: {character!r} cannot stand in a packed mask; the file is damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError(f"{where}: the packed mask ends inside a number; the file is cut")
    return numbers


def _from_runs(runs: Iterable[int], size_px: tuple[int, int], where: str) -> np.ndarray:
    """Runs that are in turn outside and inside; what follows the last is outside."""
    ends = np.cumsum(np.asarray(list(runs), dtype=np.int64))
    total = size_px[0] * size_px[1]
    if len(ends) and ends[-1] > total:
        raise InputError(f"{where}: the mask ends at pixel {ends[-1]} of {total}; it belongs to a larger image")
    edges = np.zeros(total + 1, dtype=np.int64)
    np.add.at(edges, ends[0::2], 1)
    np.add.at(edges, ends[1::2], -1)
    inside = np.cumsum(edges[:-1]) > 0
    return np.ascontiguousarray(inside.reshape(size_px[1], size_px[0]).T)
