"""The Indiana University reports as texts with headings, and the readings that a person wrote for some sentences.

`report_readings.json` holds no text: a report's id, the index of the statement in it, the first eight digits of the
statement's SHA-256, and the readings as (concept, assertion, side). Conventions that the annotation follows are those
of `radglint.report_normal` and `radglint.report_reading.read_sentence`; words that the publisher replaced by XXXX are
read as if they were not there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from radglint.reports import Statement

READINGS = json.loads((Path(__file__).parent / "report_readings.json").read_text(encoding="utf-8"))
_SECTIONS = ("comparison", "indication", "findings", "impression")


def report_texts(data: Path) -> dict[str, str]:
    """Every report by its id, with its sections under headings."""
    lines = (data / "iu_reports" / "reports.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r["uid"]: "".join(f"{name.upper()}: {r[name]}\n" for name in _SECTIONS) for r in records}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def outcome(statement: Statement) -> set[tuple[str, str, str | None]]:
    """What the accuracy is counted on."""
    return {(fact.concept, assertion, fact.side) for fact, assertion in statement.readings}
