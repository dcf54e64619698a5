"""`radglint data check`: what is wrong with a manifest once its files are opened, all of it in one report."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radglint.errors import OutputError
from radglint.manifest import ManifestRow, parse_manifest
from radglint.manifest_boxes import box_problem
from radglint.manifest_leaks import Families, Issue, Severity, between_issues, family_notes, within_issues
from radglint.manifest_problems import Problem
from radglint.mask_files import split_reference
from radglint.seen_files import SIDE_SUFFIX, Kind, Record, SeenFiles, look_at_all
from radglint.writing import write_json, write_text

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
NORMAL_LABELS = ("no finding", "normal")
BESIDE_NORMAL = frozenset(
    {"no finding", "normal", "support devices", "medical material", "medical device", "pacemaker", "chest tube",
     "endotracheal tube", "tracheal tube", "feeding tube", "nasogastric tube", "tracheostomy tube", "central line",
     "central venous catheter", "wire", "sternotomy", "prosthesis"}
)  # fmt: skip
"""Labels that may be present together with "no finding": devices are no findings (CheXpert's rule)."""
EXAMPLES = 5
"""Problems of one kind that the text shows; the JSON report has all."""

_NO_REPORT = re.compile(r"[\W_]*(?:none|nan|null|n/?a|not available|no report)?[\W_]*", re.IGNORECASE)
_AFFINE_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        manifest: its path.
        num_rows: well formed rows.
        num_files: image and mask files that were read, now or before.
        issues: errors first, then by row.
    """

    manifest: str
    num_rows: int
    num_files: int
    issues: tuple[Issue, ...]

    def count(self, severity: Severity) -> int:
        """How many issues are of a severity."""
        return sum(issue.severity == severity for issue in self.issues)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "manifest": self.manifest, "rows": self.num_rows, "files": self.num_files,
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "kinds": [{"severity": s, "kind": k, "count": len(issues)} for (s, k), issues in self._kinds()],
            "issues": [
                {"severity": i.severity, "kind": i.problem.kind, "row": i.problem.row, "id": i.problem.id,
                 "column": i.problem.column, "text": i.problem.text}
                for i in self.issues
            ],
        }  # fmt: skip

    def to_text(self) -> str:
        """A table of the kinds with their rows, then the first of each kind in words."""
        counts = ", ".join(f"{self.count(severity)} {severity}s" for severity in SEVERITIES)
        lines = [f"{self.manifest}: {self.num_rows} rows, {self.num_files} files read; {counts}"]
        kinds = list(self._kinds())
        if kinds:
            table = [("severity", "kind", "count", "rows")]
            table += [(s, k, str(len(issues)), _row_list(issues)) for (s, k), issues in kinds]
            widths = [max(len(cells[column]) for cells in table) for column in range(4)]
            lines += ["", *("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)]
        for (severity, kind), issues in kinds:
            lines += ["", f"{severity}: {kind}", *(f"  {issue.problem}" for issue in issues[:EXAMPLES])]
            if len(issues) > EXAMPLES:
                lines.append(f"  and {len(issues) - EXAMPLES} more")
        return "\n".join(lines)

    def _kinds(self) -> Iterator[tuple[tuple[Severity, str], list[Issue]]]:
        kinds: dict[tuple[Severity, str], list[Issue]] = {}
        for issue in self.issues:
            kinds.setdefault((issue.severity, issue.problem.kind), []).append(issue)
        return iter(sorted(kinds.items(), key=lambda item: (SEVERITIES.index(item[0][0]), -len(item[1]), item[0][1])))


def _row_list(issues: Sequence[Issue]) -> str:
    rows = sorted({issue.problem.row for issue in issues if issue.problem.row})
    return ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")


def check_manifest(
    path: str | os.PathLike[str],
    *,
    against: Sequence[str | os.PathLike[str]] = (),
    report: str | os.PathLike[str] | None = None,
    workers: int = 1,
    show_progress: bool = False,
    families: Families | None = None,
) -> CheckReport:
    """Open every file of a manifest and look for what would spoil training or evaluation.

    A stopped check goes on where it stopped: what was decoded is kept in `MANIFEST.checked` beside it.

    Args:
        path: the manifest.
        against: other manifests that must not share patients across train and test with it.
        report: a JSON file to write; the text goes beside it, with .txt.
        workers: processes that decode.
        show_progress: draw a bar on stderr.
        families: which data sets share patients; by default those of the registry.

    Raises:
        ConfigError: a manifest is missing, empty or not in its format at all.
        OutputError: the report cannot be written.
    """
    path = Path(path)
    if report is not None and Path(report).suffix.lower() != ".json":
        raise OutputError(f"{os.fspath(report)}: expected a report that ends in .json; the text goes beside it")
    rows, problems = parse_manifest(path)
    issues = [Issue("error", problem) for problem in problems]
    issues += _leak_issues(rows, against, _registry_families() if families is None else families)
    masks_of = {number: _references(row) for number, row in rows}
    wanted = _wanted(path.parent, rows, masks_of)
    seen = SeenFiles(path.with_name(path.name + SIDE_SUFFIX))
    records = look_at_all(wanted, seen, workers=workers, show_progress=show_progress)
    for number, row in rows:
        issues += _image_issues(path.parent, number, row, masks_of[number], records)
    issues += _duplicate_issues(path.parent, rows, records)
    issues += [*_report_issues(rows), *_label_issues(path.parent, rows, records)]
    order = sorted(issues, key=lambda issue: (SEVERITIES.index(issue.severity), issue.problem))
    result = CheckReport(str(path), len(rows), len(records), tuple(order))
    if report is not None:
        write_json(report, result.to_dict())
        write_text(Path(report).with_suffix(".txt"), result.to_text() + "\n")
    return result


def _registry_families() -> Families:
    datasets = importlib.import_module("radglint.datasets.registry").DATASETS
    return {name: info.shares_patients_with for name, info in datasets.items()}


def _leak_issues(
    rows: list[tuple[int, ManifestRow]], against: Sequence[str | os.PathLike[str]], families: Families
) -> list[Issue]:
    issues = within_issues(rows, families)
    compared = {row.dataset for _, row in rows}
    for other in against:
        theirs, problems = parse_manifest(other)
        name = os.fspath(other)
        if problems:
            text = f"{name} has {len(problems)} problems of its own; check it too"
            issues.append(Issue("warning", Problem(0, "", "other manifest has problems", text)))
        compared |= {row.dataset for _, row in theirs}
        issues += between_issues(rows, theirs, name, families)
    return issues + family_notes(rows, families, compared)


def _references(row: ManifestRow) -> list[tuple[str, str]]:
    """Column and reference of every mask of a row; those of a simulated case are in `facts` and `masks`."""
    found = [
        (f"phrases[{k}].masks[{n}]", reference)
        for k, phrase in enumerate(row.phrases)
        for n, reference in enumerate(phrase.masks)
    ]
    file, facts = row.extra.get("masks"), row.extra.get("facts")
    if isinstance(file, str) and isinstance(facts, list):
        numbers = [fact.get("mask") for fact in facts if isinstance(fact, dict)]
        found += [("masks", f"{file}#{number}") for number in numbers if type(number) is int]
    return found


def _wanted(
    folder: Path, rows: Iterable[tuple[int, ManifestRow]], masks_of: Mapping[int, list[tuple[str, str]]]
) -> list[tuple[Kind, Path]]:
    """Every file once, in the order of the manifest."""
    wanted: dict[tuple[Kind, Path], None] = {}
    for number, row in rows:
        wanted["image", _absolute(folder, row.image)] = None
        for _, reference in masks_of[number]:
            wanted["mask", _absolute(folder, split_reference(reference)[0])] = None
    return list(wanted)


def _absolute(folder: Path, path: str) -> Path:
    return Path(os.path.abspath(folder / path))


def _image_issues(
    folder: Path, number: int, row: ManifestRow, masks: Sequence[tuple[str, str]], records: Mapping[Any, Record]
) -> Iterator[Issue]:
    """Of one row: its image, its boxes on it, and its masks."""

    def issue(severity: Severity, column: str, kind: str, text: str) -> Issue:
        return Issue(severity, Problem(number, column, kind, text, row.id))

    record = records.get(("image", _absolute(folder, row.image)))
    if record is None:
        advice = "the absolute path is gone, was the disk moved?" if Path(row.image).is_absolute() else "restore it"
        yield issue("error", "image", "missing image", f"{row.image}: no such file or folder; {advice}")
    elif "error" in record:
        yield issue("error", "image", record["kind"], record["error"])
    elif record["modality"] != row.modality:
        text = f"the manifest says {row.modality}, but {row.image} is a {record['modality']}; correct one of both"
        yield issue("error", "modality", "modality is not that of the pixels", text)
    else:
        for reason in record["reasons"]:
            severity: Severity = "error" if record["verdict"] == "not usable" else "warning"
            yield issue(severity, "image", f"image {record['verdict'].replace('ok', 'usable with care')}", reason)
        yield from _size_issues(row, record, issue)
    shape = record.get("shape") if record else None
    for column, reference in masks:
        yield from _mask_issues(folder, column, reference, shape, record, records, issue)


def _size_issues(row: ManifestRow, record: Record, issue: Any) -> Iterator[Issue]:
    shape = tuple(record["shape"])
    if row.size_px is not None and row.size_px != shape:
        text = f"expected the decoded shape {list(shape)}, got {list(row.size_px)}; correct it, and the boxes with it"
        yield issue("error", "size_px", "size is not that of the pixels", text)
    for k, phrase in enumerate(row.phrases):
        for n, box in enumerate(phrase.boxes):
            found = box_problem(box, len(shape), shape)
            if found:
                yield issue("error", f"phrases[{k}].boxes[{n}]", *found)


def _mask_issues(
    folder: Path, column: str, reference: str, shape: Sequence[int] | None, image: Record | None,
    records: Mapping[Any, Record], issue: Any,
) -> Iterator[Issue]:  # fmt: skip
    path, k = split_reference(reference)
    record = records.get(("mask", _absolute(folder, path)))
    if record is None:
        yield issue("error", column, "missing mask", f"{path}: no such mask file; restore it, or correct the manifest")
    elif "error" in record:
        yield issue("error", column, record["kind"], record["error"])
    elif k >= len(record["sizes_px"]):
        text = f"{reference}: expected a row below {len(record['sizes_px'])}, as many masks {path} holds"
        yield issue("error", column, "no such row of masks", text)
    elif shape is not None and list(shape) != record["shape"]:
        text = f"{reference}: has shape {record['shape']}, the image {list(shape)}; it must lie on the image's grid"
        yield issue("error", column, "mask of another shape", text)
    elif not record["sizes_px"][k]:
        yield issue("warning", column, "empty mask", f"{reference}: marks nothing; leave it out")
    elif _is_elsewhere(record.get("affine"), (image or {}).get("affine")):
        text = f"{reference}: its affine is not that of the image, it lies elsewhere in the patient; resample it"
        yield issue("error", column, "mask in another geometry", text)


def _is_elsewhere(mask: Any, image: Any) -> bool:
    """Whether two affines put voxels more than a hundredth of a millimetre apart (per axis entry)."""
    return mask is not None and image is not None and not np.allclose(mask, image, rtol=0, atol=_AFFINE_TOLERANCE_MM)


def _duplicate_issues(
    folder: Path, rows: Iterable[tuple[int, ManifestRow]], records: Mapping[Any, Record]
) -> Iterator[Issue]:
    """Rows whose decoded pixels are those of an earlier row."""
    for same in _same_pixels(folder, rows, records).values():
        first, row = same[0]
        for number, other in same[1:]:
            text = f"has the same pixels as row {first} (id {row.id!r}, {row.image})"
            if row.patient != other.patient:
                text += f", but patient {other.patient or 'unknown'} instead of {row.patient or 'unknown'}"
            splits = {r.split for _, r in same} - {""}
            if len(splits) > 1:
                text = f"{text}; it is in {other.split or 'no split'} and {row.split or 'no split'}: keep one"
                yield Issue("error", Problem(number, "image", "same image in two splits", text, other.id))
            else:
                text = f"{text}; keep one of both"
                yield Issue("warning", Problem(number, "image", "same image under two ids", text, other.id))


def _same_pixels(
    folder: Path, rows: Iterable[tuple[int, ManifestRow]], records: Mapping[Any, Record]
) -> dict[str, list[tuple[int, ManifestRow]]]:
    """Digest to its rows, where there are several."""
    found: dict[str, list[tuple[int, ManifestRow]]] = {}
    for number, row in rows:
        digest = records.get(("image", _absolute(folder, row.image)), {}).get("digest")
        if digest:
            found.setdefault(digest, []).append((number, row))
    return {digest: same for digest, same in found.items() if len(same) > 1}


def _report_issues(rows: Sequence[tuple[int, ManifestRow]]) -> Iterator[Issue]:
    """Rows without a report where others have one."""
    empty = [(n, r) for n, r in rows if all(_NO_REPORT.fullmatch(t) for t in (r.findings, r.impression, r.report))]
    if len(empty) == len(rows):
        if rows:
            text = "no row has a report; enough for labels and boxes, not to train on sentences"
            yield Issue("note", Problem(0, "report", "no reports", text))
        return
    for number, row in empty:
        text = f"got {(row.findings or row.impression or row.report)!r}, other rows have a report; drop the row"
        yield Issue("warning", Problem(number, "report", "empty report", text, row.id))


def _label_issues(
    folder: Path, rows: Sequence[tuple[int, ManifestRow]], records: Mapping[Any, Record]
) -> Iterator[Issue]:
    """Labels that cannot all be true."""
    for number, row in rows:
        normal = [name for name in NORMAL_LABELS if row.labels.get(name) == "present"]
        others = [name for name, state in row.labels.items() if state == "present" and name not in BESIDE_NORMAL]
        if normal and others:
            text = f"{normal[0]!r} and {', '.join(map(repr, others[:3]))} are both present; correct one of them"
            yield Issue("error", Problem(number, "labels", "finding beside no finding", text, row.id))
    for same in _same_pixels(folder, rows, records).values():
        yield from _contradictions(same, "error", "same image, other label", "the same image")
    studies: dict[tuple[str, str, str], list[tuple[int, ManifestRow]]] = {}
    for number, row in rows:
        if row.study:
            studies.setdefault((row.dataset, row.patient, row.study), []).append((number, row))
    for same in studies.values():
        yield from _contradictions(same, "warning", "same study, other label", "the same study")


def _contradictions(
    same: Sequence[tuple[int, ManifestRow]], severity: Severity, kind: str, what: str
) -> Iterator[Issue]:
    stated: dict[str, tuple[str, int]] = {}
    for number, row in same:
        for name, state in row.labels.items():
            if state == "uncertain":
                continue
            before, first = stated.setdefault(name, (state, number))
            if before != state:
                text = f"{name!r} is {state} here and {before} in row {first}, {what}; correct one of both"
                yield Issue(severity, Problem(number, f"labels[{name!r}]", kind, text, row.id))
