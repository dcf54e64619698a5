"""Reports to statements on real reports: accuracy against sentences that a person read, and speed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from iu_reports import READINGS, digest, outcome, report_texts
from radglint.report_reading import read_sentence
from radglint.reports import read_report

MEASURED = {
    ("development", "any"): 99 / 100,
    ("development", "long"): 60 / 60,
    ("held-out", "any"): 99 / 100,
    ("held-out", "long"): 60 / 60,
    ("second held-out", "any"): 49 / 50,
    ("second held-out", "long"): 42 / 50,
}
"""Share of sentences read exactly as the person did; "long" ones have twelve words or more.

What a new report may expect are the first runs, before an error was seen: held-out 96 of 100 and 56 of 60, second
held-out 49 of 50 and 41 of 50. Seven of the eight errors of the former were mended afterwards, and general faults that
the latter showed; since then both guard against change and measure no more."""


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> dict[str, str]:
    return report_texts(shared_data)


def test_the_annotated_sample_is_large_enough() -> None:
    sets = [row["set"] for row in READINGS]
    assert [sets.count(name) for name in ("development", "held-out", "second held-out")] == [160, 160, 100]
    assert len({(row["report"], row["sentence"]) for row in READINGS}) == 420


def test_accuracy_on_sentences_read_by_a_person(texts: dict[str, str]) -> None:
    right: dict[tuple[str, str], list[bool]] = {key: [] for key in MEASURED}
    for row in READINGS:
        statement = read_report(texts[row["report"]]).statements[row["sentence"]]
        assert digest(statement.text) == row["sha256"], f"{row['report']}: the sentences are cut in another way"
        expected = {tuple(reading) for reading in row["readings"]}
        right[row["set"], row["stratum"]].append(outcome(statement) == expected)
    shares = {key: np.mean(values) for key, values in right.items()}
    print(*(f"{'/'.join(key)}: {share:.3f} of {len(right[key])}" for key, share in shares.items()), sep="\n")
    assert all(shares[key] >= MEASURED[key] - 1e-9 for key in MEASURED), shares


def test_no_statement_comes_from_an_indication(texts: dict[str, str]) -> None:
    for text in list(texts.values())[::10]:
        report = read_report(text)
        closed = [s for s in report.sections if s.name in ("indication", "comparison")]
        assert not any(s.start <= t.start < s.end for s in closed for t in report.statements)


def test_speed(texts: dict[str, str]) -> None:
    """At least 2,000 reports a minute on one core, each read as if it were the first."""
    sample = list(texts.values())[:300]
    start = time.process_time()
    for text in sample:
        read_sentence.cache_clear()
        read_report(text)
    per_minute = 60 * len(sample) / (time.process_time() - start)
    print(f"{per_minute:.0f} reports a minute")
    assert per_minute >= 2000
