"""What a configured precision means on a device."""

from __future__ import annotations

import pytest
import torch

from radglint import precision
from radglint.precision import autocast, product_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [torch.bfloat16, torch.float32])
def test_auto_is_what_the_device_multiplies_natively(monkeypatch: pytest.MonkeyPatch, native: torch.dtype) -> None:
    monkeypatch.setattr(precision, "trunk_dtype", lambda device: native)
    assert product_dtype("auto", CPU) == native
    left = torch.ones(4, 4)
    with autocast("auto", CPU):
        assert (left @ left).dtype == native


def test_what_is_asked_for_is_done() -> None:
    left = torch.ones(4, 4)
    for wanted in ("float32", "bfloat16"):
        with autocast(wanted, CPU):  # pyright: ignore[reportArgumentType]
            assert (left @ left).dtype == getattr(torch, wanted)
