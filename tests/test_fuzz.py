"""A short campaign of the fuzz harness on every reader, and that the harness sees what it is there for."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness counts on Linux's process limits")
sys.path.insert(0, str(ROOT / "fuzz"))

fuzz_readers = pytest.importorskip("fuzz_readers")
INPUTS = 2_000


@pytest.fixture(scope="module")
def loaded():
    """Every valid file of every target is read once."""
    fuzz_readers.check_seeds(tuple(fuzz_readers.TARGETS))


def test_two_thousand_inputs_find_nothing(tmp_path, loaded):
    names = tuple(fuzz_readers.TARGETS)
    fuzz_readers.Campaign(tmp_path, 20, names, fuzz_readers.Limits()).run(0, INPUTS)
    words, kinds = fuzz_readers.report(tmp_path, 20)
    assert kinds == 0, words
    assert words.startswith(f"{INPUTS} inputs")


def test_a_campaign_goes_on_where_it_stopped_and_makes_the_same_inputs(tmp_path):
    names = ("query", "queries")
    campaign = fuzz_readers.Campaign(tmp_path, 3, names, fuzz_readers.Limits())
    campaign.run(0, 40)
    campaign.run(0, 60)
    assert sorted((line["first"], line["inputs"]) for line in campaign.lines()) == [(0, 40), (40, 20)]
    assert fuzz_readers.input_of(3, 17, names) == fuzz_readers.input_of(3, 17, names)
    assert fuzz_readers.input_of(3, 17, names) != fuzz_readers.input_of(4, 17, names)


def misbehave(number: int, folder: Path) -> None:
    """Input 1 raises, 3 aborts, 5 never ends, 7 takes too much memory; the others are fine."""
    if number == 1:
        raise KeyError("not ours")
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    while number == 5:
        pass
    if number == 7:
        bytearray(2**31)


def test_each_kind_of_crash_is_seen_and_the_rest_goes_on():
    limits = fuzz_readers.Limits(cpu_s=0.3, memory_bytes=2**30)
    found, counts = fuzz_readers.run_inputs(misbehave, range(9), limits)
    assert {one.number: one.kind for one in found} == {1: "exception", 3: "signal", 5: "slow", 7: "memory"}
    assert "KeyError" in found[0].where
    assert counts["refused"] == 0
