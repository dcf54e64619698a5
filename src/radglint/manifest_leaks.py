"""Patients that two manifests share, or two data sets within one.

Ids are compared within one data set and between sets that are known to hold the same patients; a 7 of one hospital is
not the 7 of another. Where one side names no data set, equal ids are a hint only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from radglint.manifest import ManifestRow
from radglint.manifest_problems import Problem

Severity = Literal["error", "warning", "note"]
Families = Mapping[str, Sequence[str]]
"""Data set to the data sets that hold the same patients."""
NumberedRows = Sequence[tuple[int, ManifestRow]]

_PREFIXED_NUMBER = re.compile(r"(?:(?:patient|subject|sub|pat|p)[-_ ]?)?0*(\d+)")


@dataclass(frozen=True)
class Issue:
    """What a check found.

    Attributes:
        severity: an error makes the manifest unfit, a warning is to be looked at, a note is for information.
        problem: where and what.
    """

    severity: Severity
    problem: Problem


def plain_patient(patient: str) -> str:
    """An id without what sets decorate it with: p0010, patient10 and 00010 are one patient, valid_10 is not."""
    name = patient.strip().lower()
    number = _PREFIXED_NUMBER.fullmatch(name)
    return number.group(1) if number else name


def relation(first: str, second: str, families: Families) -> Literal["same", "related", "unknown", "other"]:
    """How the patients of two data sets relate.

    Args:
        first: its name, empty if unknown.
        second: as well.
        families: see there.
    """
    if first == second:
        return "same"
    if not first or not second:
        return "unknown"
    return "related" if second in families.get(first, ()) or first in families.get(second, ()) else "other"


def within_issues(rows: NumberedRows, families: Families) -> list[Issue]:
    """Patients of one manifest that two of its data sets share, in different splits.

    Within one data set `whole_problems` says it.
    """
    names = sorted({row.dataset for _, row in rows if row.dataset})
    issues = []
    for k, name in enumerate(names):
        mine = [(number, row) for number, row in rows if row.dataset == name]
        for other in names[k + 1 :]:
            if relation(name, other, families) == "related":
                theirs = [(number, row) for number, row in rows if row.dataset == other]
                issues += [i for i in between_issues(mine, theirs, other, families) if i.severity != "note"]
    return issues


def between_issues(mine: NumberedRows, theirs: NumberedRows, name: str, families: Families) -> list[Issue]:
    """Patients that a manifest shares with another one.

    Args:
        mine: rows of the checked manifest.
        theirs: rows of the other.
        name: how messages call the other.
        families: which data sets hold the same patients.

    Returns:
        An error for each patient that is in train of one and in val or test of the other, a warning where a split is
        unknown or the data sets are; notes on what is shared without harm, or cannot be compared.
    """
    here, there = _by_patient(mine), _by_patient(theirs)
    issues: list[Issue] = []
    harmless, related = 0, set()
    for dataset, patients in here.items():
        for other, others in there.items():
            how = relation(dataset, other, families)
            if how == "other":
                continue
            common = [patient for patient in patients if patient in others]
            if how == "related" and not common and patients and others:
                related.add((dataset, other, len(patients), len(others)))
            for patient in common:
                issue = _issue(patients[patient], others[patient], name, how == "unknown")
                harmless += issue is None
                issues += [issue] if issue else []
    issues += [_incomparable(name, *names) for names in sorted(related)]
    if harmless:
        text = f"{harmless} patients are in {name} too, in splits that do no harm"
        issues.append(Issue("note", Problem(0, "patient", "patients shared without harm", text)))
    return issues


def family_notes(rows: NumberedRows, families: Families, compared: Iterable[str]) -> list[Issue]:
    """Which data sets share patients with those of a manifest and were not compared."""
    issues = []
    compared = set(compared)
    for dataset in sorted({row.dataset for _, row in rows}):
        missing = [name for name in families.get(dataset, ()) if name not in compared]
        if missing:
            text = f"{dataset} shares patients with {', '.join(missing)}; compare them with --against before you train"
            issues.append(Issue("note", Problem(0, "dataset", "related data sets", text)))
    return issues


@dataclass
class _Patient:
    row: int
    row_id: str
    name: str
    splits: dict[str, int]


def _by_patient(rows: NumberedRows) -> dict[str, dict[str, _Patient]]:
    """Data set to patient to the splits that it is in."""
    found: dict[str, dict[str, _Patient]] = {}
    for number, row in rows:
        if row.patient:
            patients = found.setdefault(row.dataset, {})
            patient = patients.setdefault(plain_patient(row.patient), _Patient(number, row.id, row.patient, {}))
            patient.splits.setdefault(row.split, number)
    return found


def _issue(mine: _Patient, other: _Patient, name: str, is_hint: bool) -> Issue | None:
    splits, others = set(mine.splits), set(other.splits)
    if splits == others and len(splits) == 1 and splits != {""}:
        return None
    is_leak = ("train" in splits and others - {"train", ""}) or ("train" in others and splits - {"train", ""})
    here, there = ("/".join(sorted(split or "no split" for split in found)) for found in (splits, others))
    text = f"patient {mine.name!r} is in {here} here and in {there} of {name} (row {other.row})"
    if is_leak and not is_hint:
        kind, advice = "patient leak", "take it out of one of both"
    else:
        kind, advice = "patient shared", "if it is the same person, keep it in one split"
    severity: Severity = "error" if kind == "patient leak" else "warning"
    return Issue(severity, Problem(mine.row, "patient", kind, f"{text}; {advice}", mine.row_id))


def _incomparable(name: str, dataset: str, other: str, num_here: int, num_there: int) -> Issue:
    text = (
        f"none of {num_here} patients of {dataset} is among {num_there} of {other} in {name} by its id, but both sets "
        "hold the same patients: if they name them differently, a leak cannot be ruled out"
    )
    return Issue("note", Problem(0, "patient", "related, but ids differ", text))
