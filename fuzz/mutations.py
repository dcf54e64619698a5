"""Mutations that know nothing of a format: of bytes, of text, of JSON values. Every choice comes from one `Random`."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

EDGE_INTEGERS = (
    0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
)  # fmt: skip
EDGE_FLOATS = (
    0.0, -0.0, 1.0, -1.0, 1e-45, 1e-308, 1e-30, 1e-9, 1e9, 3e38, 1e300, -1e300, float("nan"), float("inf"),
    float("-inf"), 0.1, 1024.0,
)  # fmt: skip
EDGE_TEXTS = (
    "", " ", "\0", "\n", "../../etc/passwd", "a" * 300, "\ud800", "\u202e", "é", "\U0001d518", "NaN",
    "-0", "1e999", "%s%n",
    "<script>", "0x10", "\uff11\uff12", "\\", "ISO_IR 192", "1.2.3", "-1", "99999999999999999999",
)  # fmt: skip
MAX_BYTES = 1 << 18
"""Mutants are cut here: the point is small files."""


def mutate_bytes(rng: Random, data: bytes, times: int | None = None) -> bytes:
    """One to six random edits of a byte string, never longer than `MAX_BYTES`."""
    edits = (_flip, _flip, _edge_integer, _edge_integer, _cut, _end, _repeat, _noise, _fill, _swap, _shift)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6)) if times is None else times):
        data = rng.choice(edits)(rng, data)[:MAX_BYTES]
    return data


def mutate_within(rng: Random, data: bytes, first: int, last: int) -> bytes:
    """The same, but only of the bytes from `first` to `last`."""
    return data[:first] + mutate_bytes(rng, data[first:last]) + data[last:]


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _edge_integer(rng: Random, data: bytes) -> bytes:
    size = rng.choice((1, 2, 2, 4, 4, 8))
    if len(data) < size:
        return data
    at = rng.randrange(len(data) - size + 1)
    value = rng.choice(EDGE_INTEGERS) & ((1 << 8 * size) - 1)
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 2, 4, 16, 64, 512)))


def _cut(rng: Random, data: bytes) -> bytes:
    first, last = _span(rng, data)
    return data[:first] + data[last:]


def _end(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: Random, data: bytes) -> bytes:
    first, last = _span(rng, data)
    return data[:last] + data[first:last] * rng.choice((1, 1, 2, 50)) + data[last:]


def _noise(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16))) + data[at:]


def _fill(rng: Random, data: bytes) -> bytes:
    first, last = _span(rng, data)
    return data[:first] + bytes((rng.choice((0, 0xFF, 0x20, 0x41)),)) * (last - first) + data[last:]


def _swap(rng: Random, data: bytes) -> bytes:
    first, last = _span(rng, data)
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[first:last] + data[at + last - first :]


def _shift(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    if changed:
        at = rng.randrange(len(changed))
        changed[at] = (changed[at] + rng.choice((1, -1, 16, -16))) & 0xFF
    return bytes(changed)


def edge_value(rng: Random) -> Any:
    """A JSON value that code tends to forget."""
    plain = (None, True, False, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 1e-300, 1e300, "", [], {}, [[]], {"": None})
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(EDGE_TEXTS)
    if kind == 1:
        return rng.choice(EDGE_FLOATS)
    if kind == 2:
        return nested(rng.choice((3, 40, 150)), rng.choice(("list", "dict")))
    return rng.choice(plain)


def nested(depth: int, kind: str) -> Any:
    """Lists or objects inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def mutate_value(rng: Random, value: Any, times: int | None = None) -> Any:
    """Replace, drop, double or rename random parts of a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(times or rng.choice((1, 1, 2, 4))):
        value = _mutate_place(rng, value)
    return value


def _mutate_place(rng: Random, value: Any) -> Any:
    places: list[tuple[Any, Any]] = []
    _collect(value, places, 0)
    if not places or rng.random() < 0.03:
        return edge_value(rng)
    parent, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del parent[key]
    elif what == 1 and isinstance(parent, dict):
        parent[rng.choice((f"{key}s", str(key).upper(), "", "__class__", "\ud800"))] = parent.pop(key)
    elif what == 2 and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent[key : key + 1]) * rng.choice((1, 1, 200)))
    elif what == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice(
            (-parent[key], parent[key] + 1, parent[key] * 10**6, parent[key] / 7, str(parent[key]))
        )
    elif what == 4:
        parent[key] = copy.deepcopy(rng.choice(places)[0])
    else:
        parent[key] = edge_value(rng)
    return value


def _collect(value: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    if depth > 12 or len(places) > 400:
        return
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        places.append((value, key))
        _collect(value[key], places, depth + 1)


def json_bytes(rng: Random, value: Any) -> bytes:
    """JSON text of any value, NaN and lone surrogates included; sometimes with a key twice, a bomb or broken bytes."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    what = rng.randrange(24)
    if what == 0:
        text = text.replace("{", '{"id": 1, "id": 2, ', 1)
    elif what == 1:
        depth = rng.choice((500, 5_000, 100_000))
        text = text.replace("null", "[" * depth, 1) if "null" in text else "[" * depth + text
    elif what == 2:
        text = text.replace("1", "9" * rng.choice((400, 5_000)), 1)
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, data) if what in (3, 4, 5) else data
