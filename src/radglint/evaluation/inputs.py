"""Checks that every measure shares: arrays come out as float64 or bool, or `InputError` says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from radglint.errors import InputError


def as_numbers(name: str, values: Any, shape: tuple[int, ...] | None = None, *, allow_nan: bool = False) -> np.ndarray:
    """Finite float64.

    Args:
        name: of the argument, for messages.
        values: numbers, not empty.
        shape: wanted; None = any.
        allow_nan: NaN means "not measured".

    Raises:
        InputError: empty, not numbers, another shape, NaN or infinite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, got dtype {array.dtype}; convert the column to numbers")
    if array.size == 0:
        raise InputError(f"{name}: is empty; a measure needs at least one case")
    if shape is not None and array.shape != shape:
        raise InputError(f"{name}: expected shape {shape}, got {array.shape}; give one value for each case")
    array = array.astype(np.float64, copy=False)
    bad = np.isinf(array) if allow_nan else ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"{name}: value {array[first]} at {first}; expected finite numbers: drop or mend such cases")
    return array


def as_flags(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Bool; 0 and 1 are taken as such.

    Raises:
        InputError: anything else, or another shape.
    """
    array = np.asarray(values)
    if array.dtype != bool:
        if array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all():
            raise InputError(
                f"{name}: expected bool or 0 and 1, got dtype {array.dtype}; mask uncertain labels out first"
            )
        array = array.astype(bool)
    if array.size == 0:
        raise InputError(f"{name}: is empty; a measure needs at least one case")
    if shape is not None and array.shape != shape:
        raise InputError(f"{name}: expected shape {shape}, got {array.shape}; give one value for each case")
    return array


def as_weights(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """How much each case counts: float64, not negative, not all 0; None = 1 each.

    Raises:
        InputError: a negative weight, or none above 0.
    """
    if weights is None:
        return np.ones(shape)
    array = as_numbers("weights", weights, shape)
    if (array < 0).any() or not array.any():
        raise InputError("weights: expected none below 0 and one above 0; a case that must not count gets 0")
    return array


def as_probabilities(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Float64 in [0, 1].

    Raises:
        InputError: out of range; a score is not a probability.
    """
    array = as_numbers(name, values, shape)
    if array.min() < 0 or array.max() > 1:
        raise InputError(f"{name}: expected [0, 1], got {array.min():g} to {array.max():g}; calibrate scores first")
    return array


def ratio(numerator: Any, denominator: Any, otherwise: float = np.nan) -> Any:
    """Quotient, and `otherwise` where the denominator is 0; broadcasts."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, otherwise, numerator / denominator)[()]
