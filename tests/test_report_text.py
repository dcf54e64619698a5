"""Whole reports: what they state, read back by the reader of real reports, is what the image shows."""

from __future__ import annotations

import numpy as np
import pytest

from radglint.reports import read_report
from radglint.simulation.ct import CT_CONCEPTS, draw_volume_facts
from radglint.simulation.entailment import holds_for
from radglint.simulation.facts import HELD_OUT, NAMES, Fact
from radglint.simulation.radiograph import CONCEPTS, FULL_WEIGHTS, sample_facts
from radglint.simulation.report_text import Report, write_full_report


def _case(seed: int, kind: str) -> tuple[list[Fact], tuple[str, ...], np.random.Generator]:
    rng = np.random.default_rng([17, seed])
    is_ct = kind == "ct"
    return (
        (draw_volume_facts(rng) if is_ct else sample_facts(rng, FULL_WEIGHTS)),
        (CT_CONCEPTS if is_ct else CONCEPTS),
        rng,
    )


def _written(seed: int, kind: str, held_out: bool) -> tuple[list[Fact], Report]:
    facts, concepts, rng = _case(seed, kind)
    hard = rng.uniform(0, 1, len(facts)).tolist()
    return facts, write_full_report(facts, rng, subtlety=hard, concepts=concepts, held_out=held_out)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", ["cxr", "ct"])
def test_a_report_reads_back_as_the_facts(kind: str, held_out: bool) -> None:
    """No wrong finding, side or denial in 250 reports, and at least 99 % of the facts are found again."""
    found = total = 0
    for seed in range(250):
        facts, report = _written(seed, kind, held_out)
        said = set()
        for statement in read_report(report.text).statements:
            for fact, assertion in statement.readings:
                verdict = holds_for(Fact(fact.concept, fact.side), facts)
                where = f"{statement.text!r} of {facts}"
                if assertion == "absent":
                    assert verdict != "holds", where
                elif assertion == "present" or fact.concept not in report.doubted:
                    assert verdict == "holds", where
                    said.add(fact.concept)
        total += len(facts)
        found += len(said & {fact.concept for fact in facts})
    assert found >= 0.99 * total > 0


def test_reports_hold_every_kind_of_sentence() -> None:
    """Present, absent, doubtful, normal and beside the point, in findings and impression."""
    texts = [_written(seed, "cxr", False)[1] for seed in range(200)]
    findings = " ".join(report.findings for report in texts)
    for part in (
        "There is a",
        "No evidence of",
        "Possible ",
        "cannot be excluded",
        "The lungs are clear",
        "cholecystectomy",
    ):
        assert part in findings, part
    assert any(report.impression.startswith("No acute") for report in texts)
    assert all(report.findings and report.impression for report in texts)
    assert len({report.text for report in texts}) > 190


def test_only_a_subtle_finding_is_put_in_doubt() -> None:
    fact = Fact("nodule", "left", "upper", "small")
    for subtlety, expected in ((0.1, {"present"}), (0.95, {"present", "uncertain"})):
        seen = set()
        for seed in range(40):
            report = write_full_report([fact], np.random.default_rng(seed), subtlety=[subtlety])
            readings = [r for s in read_report(report.impression).statements for r in s.readings]
            seen |= {assertion for read, assertion in readings if read.concept == "nodule"}
        assert seen == expected


def test_unseen_words_are_unseen() -> None:
    """Test reports name findings by held-out names only, training reports never do."""
    held = [name.removeprefix("~").lower() for names in HELD_OUT.values() for name in names]
    for seed in range(60):
        facts, plain = _written(seed, "cxr", False)
        assert not [name for name in held if name in plain.text.lower()]
        _, unseen = _written(seed, "cxr", True)
        for fact in facts:
            assert any(name.removeprefix("~").lower() in unseen.impression.lower() for name in HELD_OUT[fact.concept])


def test_a_large_rounded_opacity_stays_a_nodule() -> None:
    """Size and name together must not be the name of something else."""
    names = {name.removeprefix("~"): concept for concept, group in NAMES.items() for name in group}
    for seed in range(150):
        text = write_full_report([Fact("nodule", "right", "upper", "large")], np.random.default_rng(seed)).impression
        assert not [n for n, c in names.items() if c == "mass" and f" {n} " in f" {text.lower()} "], text
