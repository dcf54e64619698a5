"""The ledger of `radglint watch`: states, growth, failures, and what survives."""

from __future__ import annotations

import sqlite3
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from radglint.errors import InputError, OutputError
from radglint.pacs.ledger import NAME, Ledger, Result, Sighting, State

ONE = Sighting("1.2.3", "1.2.3.1", "CT", 10)
TWO = Sighting("1.2.3", "1.2.3.2", "DX", 1)


def result(folder: Path) -> Result:
    return Result("1.2.3", "1.2.9", "1.2.9.1", folder / "001_seg.dcm")


def state_of(ledger: Ledger, sighting: Sighting = ONE) -> State:
    entry = ledger.entry(sighting.series_uid)
    assert entry is not None
    return entry.state


def test_a_series_goes_from_seen_to_stored_and_is_there_after_reopening(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE, TWO])
        (entry, _) = ledger.due()
        entry = ledger.move(entry, "fetched", rule="chest")
        entry = ledger.move(entry, "answered", objects=[result(tmp_path)], reason="one image left out")
    with Ledger(tmp_path) as ledger:
        assert ledger.entry(entry.series_uid) == entry
        assert (entry.rule, entry.reason, entry.objects) == ("chest", "one image left out", (result(tmp_path),))
        assert [e.state for e in ledger.due()] == ["answered", "seen"]  # nearest to its end first
        ledger.move(entry, "stored")
        assert ledger.counts() == {"seen": 1, "stored": 1}
        assert ledger.entry("1.2.99") is None


def test_the_same_sighting_changes_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE])
        before = ledger.entry(ONE.series_uid)
        ledger.note([ONE])
        assert ledger.entry(ONE.series_uid) == before


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("seen", "seen"), ("fetched", "seen"), ("answered", "answered"), ("stored", "stored"), ("passed", "seen"),
        ("left", "seen"), ("parked", "seen"),
    ],
)  # fmt: skip
def test_more_instances_start_again_only_what_is_not_answered(state: State, after: State, tmp_path: Path) -> None:
    objects = [result(tmp_path)] if state in ("answered", "stored") else []
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE])
        ledger.move(ledger.due()[0], state, objects=objects)
        ledger.note([replace(ONE, instances=12)])
        entry = ledger.entry(ONE.series_uid)
        assert entry is not None
        assert (entry.state, entry.instances, entry.attempts) == (after, 12, 0)
        assert entry.reason == (f"12 instances since it was {state}" if objects else "")


def test_a_stored_series_that_grows_is_told_and_seen_again_only_on_wish(tmp_path: Path) -> None:
    more, most = replace(ONE, instances=12), replace(ONE, instances=15)
    with Ledger(tmp_path) as ledger:
        assert ledger.note([ONE]) == []
        entry = ledger.move(ledger.due()[0], "answered", objects=[result(tmp_path)])
        assert ledger.note([more], ask_again=True) == []  # not before it is stored
        assert state_of(ledger) == "answered"
        ledger.move(entry, "stored")
        ((grown, before),) = ledger.note([more])
        assert (grown.state, grown.instances, before) == ("stored", 12, 10)
        assert ledger.note([more]) == []
        assert ledger.note([replace(ONE, instances=11)], ask_again=True) == []  # fewer are no news
        ((grown, before),) = ledger.note([most], ask_again=True)
        assert (grown.state, grown.instances, before, grown.objects) == ("seen", 15, 11, ())
        assert [e.series_uid for e in ledger.due()] == [ONE.series_uid]


def test_of_a_received_series_only_the_rest_is_there(tmp_path: Path) -> None:
    """What was stored is gone from the inbox, so that every instance in it came later."""
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE], is_rest=True)
        assert ledger.note([replace(ONE, instances=11)], is_rest=True) == []  # still coming in
        ledger.move(ledger.due()[0], "stored", objects=[result(tmp_path)])
        for late, total in ((1, 12), (1, 13), (20, 33)):
            ((entry, before),) = ledger.note([replace(ONE, instances=late)], is_rest=True)
            assert (entry.state, entry.instances, before) == ("stored", total, total - late)
            assert entry.reason == f"{total} instances since it was stored"


def test_a_parked_series_with_results_is_not_asked_again(tmp_path: Path) -> None:
    """It would get the same UIDs with other content."""
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE])
        ledger.move(ledger.due()[0], "parked", objects=[result(tmp_path)])
        ledger.note([replace(ONE, instances=12)])
        assert state_of(ledger) == "parked"
        assert ledger.retry_parked() == 1
        assert state_of(ledger) == "answered"


def test_what_the_first_look_finds_can_be_left(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE], first_look="left")
        ledger.note([ONE, TWO], first_look="left")
        assert (state_of(ledger, ONE), state_of(ledger, TWO)) == ("left", "seen")


def test_an_empty_first_look_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([], first_look="left")
        ledger.note([ONE], first_look="left")
        assert state_of(ledger) == "seen"


def test_failures_count_across_states_and_silence_does_not(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE])
        entry = ledger.move(ledger.due()[0], "fetched")
        entry = ledger.put_off(entry, "seen", 0.0, "damaged", counts=True)
        entry = ledger.move(entry, "fetched")
        entry = ledger.put_off(entry, "seen", 0.0, "no answer", counts=False)
        assert (entry.attempts, entry.waits, entry.reason) == (1, 1, "no answer")
        assert ledger.move(ledger.move(entry, "fetched"), "answered").attempts == 0


def test_what_is_put_off_is_not_due(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE, TWO])
        one, two = ledger.due()
        ledger.put_off(one, "seen", 60.0, "no answer", counts=False)
        ledger.wait(two, 60.0)
        assert ledger.due() == []
        assert [entry.due_s > time.time() + 50 for entry in ledger.entries("seen")] == [True, True]


def test_a_failed_change_leaves_what_was(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.note([ONE])

        def broken():
            yield TWO
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ledger.note(broken())
        assert ledger.entry(TWO.series_uid) is None
        ledger.note([TWO])
        assert state_of(ledger, TWO) == "seen"


def test_the_file_is_for_its_owner_only_and_written_through(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
        assert ledger._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert ledger._db.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_what_is_no_ledger_or_a_later_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match="no usable ledger"):
        Ledger(tmp_path)
    (tmp_path / NAME).unlink()
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(InputError, match="version 9"):
        Ledger(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        Ledger(tmp_path / "nowhere")
