"""Made-up results of an evaluation, of a realistic form. No number here was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from radglint.evaluation.results import (
    CaseResult,
    ClassResult,
    Curves,
    Estimate,
    LeftOut,
    ManifestFacts,
    ModelFacts,
    ProtocolResult,
    ReliabilityBin,
    Results,
    StyleResult,
    SweepPoint,
    thin,
)

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
STYLES = ("plain", "there is", "chexzero pair", "report sentence", "synonyms", "attributes")
HOW = {
    "published": "pair \"{}\" and \"no {}\", softmax without temperature; threshold by MCC on the validation split",
    "honest": "own ensemble of prompts, calibrated on other patients; nothing was chosen on the test images",
}  # fmt: skip


def estimate(value: float, half: float = 0.03, n: int = 500) -> Estimate:
    return Estimate(value=value, low=round(value - half, 6), high=round(value + 0.8 * half, 6), n=n)


def curves(strength: float, share: float) -> Curves:
    x = np.linspace(0, 1, 400)
    y = x ** (1 / strength)
    recall, precision = y[1:], share * y[1:] / (share * y[1:] + (1 - share) * x[1:])
    bins = [
        ReliabilityBin(probability=p, frequency=min(1.0, p**1.3), count=int(900 * (1 - p) ** 3) + 6)
        for p in np.linspace(0.03, 0.97, 15).round(4).tolist()
    ]
    t = np.linspace(0, 1, 101).round(2)
    sweep = [
        SweepPoint(
            threshold=a, dice=float(0.46 * np.exp(-((a - 0.4) ** 2) / 0.08)), sensitivity=1 - a**2, specificity=a**0.5
        )
        for a in t.tolist()
    ]
    return Curves(
        roc=tuple(thin(list(zip(x.tolist(), y.tolist(), strict=True)))),  # type: ignore[arg-type]
        pr=tuple(thin(list(zip(recall.tolist(), precision.tolist(), strict=True)))),  # type: ignore[arg-type]
        reliability=tuple(bins), sweep=tuple(sweep), thresholds={"validation": 0.44, "fixed": 0.5, "oracle": 0.39},
    )  # fmt: skip


def one_class(name: str, number: int) -> ClassResult:
    value = 0.71 + 0.045 * number
    measures = {
        column: {
            "auroc": estimate(value - less, 0.02 + 0.006 * number),
            "average_precision": estimate(value - 0.25 - less, 0.04),
            "f1": estimate(value - 0.3 - less, 0.05),
            "mcc": estimate(value - 0.4 - less, 0.05),
            "brier": estimate(0.19 - 0.02 * number, 0.01),
        }
        for column, less in (("published", 0.0), ("honest", 0.013))
    }
    if number == 2:
        measures["published"]["mcc"] = Estimate(value=None, n=500)
    return ClassResult(
        name=name, label=name.lower(), n=500, positives=40 + 25 * number, measures=measures,
        curves=curves(4 + 2 * number, 0.1 + 0.06 * number),
    )  # fmt: skip


def case(rank: Any, number: int, overlay: str) -> CaseResult:
    return CaseResult(
        rank=rank, id=f"patient{64000 + number}/study1/view1_frontal", class_name=FINDINGS[number % 5],
        query=f"there is {FINDINGS[number % 5].lower()}", score=0.41 - 0.09 * number, probability=0.93 - 0.16 * number,
        truth="present" if rank == "best" else "absent",
        measures={"dice": 0.81 - 0.2 * number if rank == "best" else None},
        overlay=overlay,
    )  # fmt: skip


def classification(names: tuple[str, ...] = FINDINGS) -> ProtocolResult:
    classes = tuple(one_class(name, number % 5) for number, name in enumerate(names))
    means = {
        column: {
            key: estimate(
                round(float(np.mean([c.measures[column][key].value or 0 for c in classes])), 6), 0.012, len(classes)
            )
            for key in ("auroc", "average_precision", "f1", "mcc", "brier")
        }
        for column in ("published", "honest")
    }
    return ProtocolResult(
        name="chexzero", title="CheXzero pairs", citation="Tiu et al. 2022, doi 10.1038/s41551-022-00936-9",
        label_set="CheXpert 5", num_classes=len(names), how=HOW, lead="auroc", classes=classes, means=means,
        styles=tuple(
            StyleResult(name=name, example=f"{name}: pleural effusion", measures={"auroc": estimate(0.74 + 0.02 * n)})
            for n, name in enumerate(STYLES)
        ),
        cases=tuple(case("best", n, f"overlays/best_{n}.png") for n in range(4))
        + tuple(case("worst", n, f"overlays/worst_{n}.png") for n in range(4)),
        notes=("The published form has no temperature, so its probabilities stay near 0.5.",),
        left_out=(LeftOut(what="images with an uncertain label", count=37, why="the published test set has none"),),
    )  # fmt: skip


def grounding() -> ProtocolResult:
    columns = ("published", "oracle", "validation", "fixed")
    values = {"published": 0.212, "oracle": 0.243, "validation": 0.198, "fixed": 0.187}
    return ProtocolResult(
        name="sweep", title="Dice and mIoU sweep", citation="see docs/protocols", label_set="ChestX-Det10",
        num_classes=10, columns=columns, how={
            "published": "map rescaled per image to [-1, 1]; mean over the thresholds 0.1 to 0.5",
            "oracle": "the threshold that is best on the test positives",
            "validation": "the threshold that was best on the validation split",
            "fixed": "gate above 0.5, no rescaling",
        },
        means={
            c: {"dice": estimate(v), "iou": estimate(v - 0.07), "pointing": estimate(0.41)} for c, v in values.items()
        },
        left_out=(LeftOut(what="Calcification", why="no positive image in this manifest"),),
    )  # fmt: skip


def results(protocols: tuple[ProtocolResult, ...] | None = None, **changes: Any) -> Results:
    facts: dict[str, Any] = {
        "created": "2026-11-24T19:00:00+00:00", "radglint_version": "0.1.0", "seed": 20,
        "versions": {"python": "3.13.5", "numpy": "2.4.0", "torch": "2.12.1"}, "suite": "cxr-zero-shot (made up)",
        "command": "radglint evaluate --suite cxr-zero-shot --manifest chexpert.jsonl --out results",
        "model": ModelFacts(name="nano", fingerprint="0123456789ab", weights_sha256="ab" * 32),
        "manifest": ManifestFacts(path="chexpert.jsonl", sha256="cd" * 32, rows=668, patients=500, images=500,
                                  dataset="CheXpert", licence="Stanford research use agreement"),
        "unit_of_analysis": "study", "resampled": "95 %, 1000 bootstrap samples of patients, percentile method",
        "protocols": protocols if protocols is not None else (classification(), grounding()),
        "notes": ("All numbers are made up to show the form of the page.",),
        "left_out": (LeftOut(what="lateral views", count=168, why="the model knows frontal views only"),),
    }  # fmt: skip
    return Results(**{**facts, **changes})
