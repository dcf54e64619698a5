"""How much the frozen features hold: linear probe and k-NN on the mean patch, 1, 10 and 100 % of the patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from radglint.evaluation.probe import FRACTIONS, Kind, ProbeResult, Split, make_split, probe
from radglint.evaluation.results import Estimate, LeftOut, Measures, ProtocolResult
from radglint.evaluation.tables import class_table
from radglint.prompt_banks import PromptBank

Line = dict[str, Any]
TITLE = "Linear probe and k-NN on frozen features"
HELD_BACK = 4  # of the patients of a split that trains and validates, every fourth validates


def probes(bank: PromptBank, train: Sequence[Line], validation: Sequence[Line], test: Sequence[Line]) -> ProtocolResult:
    """Macro AUROC of both probes for each share of the training patients, mean and spread over three draws.

    Args:
        bank: the classes.
        train: lines to fit on; empty = three quarters of the patients of `validation`.
        validation: lines that choose the strength of the regularisation.
        test: lines that are judged.
    """
    train, validation = (list(train), list(validation)) if train else halves(validation)
    names = [entry.own_name for entry in bank.classes]
    if not train or not validation:
        why = LeftOut(what="linear probe and k-NN", why="no training or validation patients; set probe_split")
        return _result(bank, {}, (why,))
    splits = [_split(lines, names) for lines in (train, validation, test)]
    means: Measures = {}
    for kind in get_args(Kind):
        runs = probe(kind, names, *splits)
        for fraction in FRACTIONS:
            means |= _means(kind, fraction, [run for run in runs if run.fraction == fraction])
    return _result(bank, means, ())


def halves(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Three quarters of the patients to fit on, a quarter to choose with; the same every time."""
    patients = {name: k for k, name in enumerate(sorted({line["patient"] for line in lines}))}
    held = [patients[line["patient"]] % HELD_BACK == 0 for line in lines]
    return ([line for line, back in zip(lines, held, strict=True) if not back],
            [line for line, back in zip(lines, held, strict=True) if back])  # fmt: skip


def _split(lines: Sequence[Line], names: Sequence[str]) -> Split:
    table = class_table(lines, names, lambda *_: 0.0, "patient")
    return make_split([line["feature"] for line in lines], table.positive, list(table.groups), table.known)


def _means(kind: str, fraction: float, runs: Sequence[ProbeResult]) -> Measures:
    areas = np.array([run.test.macro for run in runs if run.test.values])
    if not len(areas):
        return {}
    name = f"{kind}_auroc_{fraction:.0%}".replace("%", "_percent")
    spread = float(areas.std(ddof=1)) if len(areas) > 1 else None
    return {name: Estimate(value=float(areas.mean()), n=runs[0].patients),
            f"{name}_spread": Estimate(value=spread, n=len(areas))}  # fmt: skip


def _result(bank: PromptBank, means: Measures, left_out: tuple[LeftOut, ...]) -> ProtocolResult:
    return ProtocolResult(
        name="probe", title=TITLE, citation="after BenchX (Zhou et al. 2024)", label_set=bank.title,
        num_classes=len(bank.classes), columns=("honest",), average="macro AUROC on the judged split, mean over draws",
        how={"honest": "mean patch of the frozen encoder; whole patients are drawn, n is how many; C from validation"},
        means={"honest": means}, left_out=left_out,
    )  # fmt: skip
