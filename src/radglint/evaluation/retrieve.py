"""Retrieval: which report belongs to which image, both ways.

A report is scored on an image as the mean cosine of its sentences: the gate pools the patches of each sentence anew, so
there is no single image vector to rank by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from radglint.errors import QueryError
from radglint.evaluation.results import Estimate, Measures, ProtocolResult
from radglint.evaluation.retrieval import recall_at
from radglint.manifest import ManifestRow
from radglint.prompt_banks import PromptBank
from radglint.query import parse_query
from radglint.report_sentences import split_sentences

DEPTHS = (1, 5, 10, 50, 100)
Line = dict[str, Any]


def report_of(row: ManifestRow) -> str:
    """Findings and impression, or the whole report."""
    return "\n".join(text for text in (row.findings, row.impression) if text) or row.report


def sentences_in(report: str) -> list[str]:
    """Distinct sentences that name something, in order; those that a model cannot be asked are left out."""
    return list(dict.fromkeys(report[a:b] for a, b in split_sentences(report) if _asks(report[a:b])))


def _asks(text: str) -> bool:
    try:
        parse_query(text)
    except QueryError:
        return False
    return True


def _searched(rows: Sequence[ManifestRow], limit: int) -> list[ManifestRow]:
    return [row for row in rows if sentences_in(report_of(row))][:limit]


def sentences_of(rows: Sequence[ManifestRow], limit: int) -> list[str]:
    """All sentences of the reports that are searched for, each once."""
    return list(dict.fromkeys(text for row in _searched(rows, limit) for text in sentences_in(report_of(row))))


def retrieval(bank: PromptBank, lines: Sequence[Line], rows: Sequence[ManifestRow], limit: int) -> ProtocolResult:
    """Recall at some depths, report to image and image to report.

    Reports with the same sentences are the same report: any of their images is right.

    Args:
        bank: names the label set of the run.
        lines: of the split that is judged.
        rows: of the manifest.
        limit: images and reports.
    """
    by_id = {line["id"]: line for line in lines}
    kept = _searched([row for row in rows if row.id in by_id], limit)
    texts = {text: k for k, text in enumerate(sentences_of([row for row in rows if row.id in by_id], limit))}
    sets = [tuple(texts[text] for text in sentences_in(report_of(row))) for row in kept]
    means: Measures = {}
    if kept:
        scores = np.array([by_id[row.id]["retrieval"] for row in kept])  # images by sentences
        matrix = np.array([scores[:, list(chosen)].mean(axis=1) for chosen in sets])  # reports by images
        same = np.array([[set(a) == set(b) for b in sets] for a in sets])
        for word, table in (("report_to_image", matrix), ("image_to_report", matrix.T)):
            for depth in (depth for depth in DEPTHS if depth < len(kept)):
                means[f"{word}_at_{depth}"] = Estimate(value=recall_at(table, same, depth), n=len(kept))
                means[f"{word}_chance_at_{depth}"] = Estimate(value=depth / len(kept), n=len(kept))
    return ProtocolResult(
        name="retrieval", title="Retrieval of reports and images", citation="CT-CLIP, report_to_volume_new.py",
        label_set="reports", num_classes=0, columns=("honest",), average=f"mean over {len(kept)} reports or images",
        how={"honest": "mean cosine of a report's sentences; reports of the same sentences count as one"},
        means={"honest": means}, notes=(f"label set of the run: {bank.title}",),
    )  # fmt: skip
