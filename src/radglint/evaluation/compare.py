"""`radglint compare A.json B.json`: two evaluations of the same images, and whether they differ by more than chance.

Differences of the protocols' means come from the two results. Intervals and p values need the answers of each image:
the same patients are drawn for both models, so that what is hard for both cancels out. Differences are B - A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from radglint.errors import InputError
from radglint.evaluation.measure_names import measure
from radglint.evaluation.paired_cases import Line, PairedCases, pair_cases
from radglint.evaluation.results import Estimate, Results

if TYPE_CHECKING:
    from radglint.evaluation.bootstrap import Statistic

DRAWS = 2000
LEVEL = 0.95
ALPHA = 0.05
MEAN = "mean over classes"


@dataclass(frozen=True)
class MeanDifference:
    """A mean of a protocol in A and in B.

    Attributes:
        protocol: its title.
        column: of the protocol, such as "honest".
        measure: its name.
        a: with its own interval; None if A has none.
        b: the same of B.
    """

    protocol: str
    column: str
    measure: str
    a: Estimate | None
    b: Estimate | None

    @property
    def difference(self) -> float | None:
        """B - A, None if either is not defined."""
        if self.a is None or self.b is None or self.a.value is None or self.b.value is None:
            return None
        return self.b.value - self.a.value


@dataclass(frozen=True)
class PairedDifference:
    """One paired test.

    Attributes:
        question: class, or `MEAN`.
        measure: its name; "dice, negatives" where positives are measured too.
        n: images that count.
        positives: those with the finding.
        a: measure of A on these images, NaN if not defined.
        b: the same of B.
        difference: B - A.
        low: lower end of its interval.
        high: upper end.
        p: two-sided, of the paired bootstrap by patient; None if not defined.
        p_holm: p after Holm's correction over all tests of the comparison; None without p.
        p_delong: of an AUROC where every patient has one image; None elsewhere. It is not part of the verdict.
    """

    question: str
    measure: str
    n: int
    positives: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float | None
    p_holm: float | None = None
    p_delong: float | None = None

    @property
    def verdict(self) -> str:
        """Which is better after the correction, in words."""
        better = measure(self.measure.split(", ")[0]).better
        if self.p_holm is None:
            return "not defined"
        if self.p_holm >= ALPHA:
            return "no difference shown"
        if better == "neither":
            return "B higher" if self.difference > 0 else "A higher"
        return "B better" if (self.difference > 0) == (better == "higher") else "A better"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    Attributes:
        a: results of A.
        b: results of B.
        means: of every protocol that both ran.
        paired: empty without answers.
        patients: that were drawn; 0 without answers.
        draws: of the bootstrap.
        seed: of the draws.
        notes: what to keep in mind.
    """

    a: Results
    b: Results
    means: tuple[MeanDifference, ...]
    paired: tuple[PairedDifference, ...]
    patients: int
    draws: int
    seed: int
    notes: tuple[str, ...]


def compare(
    a: Results, b: Results, answers_a: Sequence[Line] | None = None, answers_b: Sequence[Line] | None = None, *,
    across: bool = False, draws: int = DRAWS, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compare two evaluations.

    Args:
        a: of `read_results`.
        b: the other.
        answers_a: of `paired_cases.read_answers`; both or neither. Without them there are no p values.
        answers_b: the same of B.
        across: allow different manifests; then nothing is paired and nothing is tested.
        draws: bootstrap samples of patients.
        seed: of the draws.

    Raises:
        InputError: the manifests differ and `across` is not given, or with answers; answers of one only; answers that
            do not belong together; or the two ran no protocol in common.
    """
    same = a.manifest.sha256 == b.manifest.sha256
    if not same and not across:
        raise InputError(
            f"A was measured on {a.manifest.path} ({a.manifest.sha256[:12]}), B on {b.manifest.path} "
            f"({b.manifest.sha256[:12]}): different manifests; evaluate both on one, or add --across to see them "
            "unpaired"
        )
    if (answers_a is None) != (answers_b is None):
        raise InputError("answers: expected those of A and of B, or none; give both files")
    if not same and answers_a is not None:
        raise InputError("answers: images of different manifests cannot be paired; leave the answers out with --across")
    means = tuple(_means(a, b))
    if not means:
        raise InputError(f"A ran {_ran(a)}, B ran {_ran(b)}: no protocol in common; evaluate both with one suite")
    notes = list(_notes(a, b, same))
    if answers_a is None or answers_b is None:
        notes.append("Without the answers of each image there are no paired intervals and no p values.")
        return Comparison(a, b, means, (), 0, draws, seed, tuple(notes))
    cases = pair_cases(answers_a, answers_b)
    paired = _corrected(list(_paired(cases, draws, seed)))
    notes += [f"Not compared: {text}." for text in cases.left_out] + _undefined(paired) + _too_few_draws(paired, draws)
    return Comparison(a, b, means, paired, len(np.unique(cases.patients)), draws, seed, tuple(notes))


def _ran(results: Results) -> str:
    return ", ".join(protocol.name for protocol in results.protocols) or "nothing"


def _means(a: Results, b: Results) -> Iterator[MeanDifference]:
    for one in a.protocols:
        other = b.protocol(one.name)
        if other is None or other.label_set != one.label_set:
            continue
        for column in (column for column in one.columns if column in other.columns):
            names = dict.fromkeys([*one.measure_names(), *other.measure_names()])
            for name in names:
                pair = one.means[column].get(name), other.means[column].get(name)
                if pair != (None, None):
                    yield MeanDifference(one.title, column, name, *pair)


def _notes(a: Results, b: Results, same: bool) -> Iterator[str]:
    if not same:
        yield "The two manifests differ: a difference may come from the images, not from the models. Nothing is tested."
    if a.model.weights_sha256 == b.model.weights_sha256:
        yield "Both runs have the same weights."
    for what, x, y in (
        ("unit of analysis", a.unit_of_analysis, b.unit_of_analysis),
        ("radglint version", a.radglint_version, b.radglint_version),
    ):
        if x != y:
            yield f"A and B differ in the {what}: {x} and {y}."
    for one, other, name in ((a, b, "A"), (b, a, "B")):
        for protocol in one.protocols:
            twin = other.protocol(protocol.name)
            if twin is None:
                yield f"{protocol.title} was run by {name} only."
            elif twin.label_set != protocol.label_set and name == "A":
                yield f"{protocol.title}: A has the classes {protocol.label_set}, B {twin.label_set}; not compared."


def _paired(cases: PairedCases, draws: int, seed: int) -> Iterator[PairedDifference]:
    """Every test before the correction: AUROC, Brier, then what was measured of maps."""
    from radglint.evaluation.bootstrap import auroc_statistic, mean_statistic

    scores = np.where(cases.known, cases.values["score"], 0.0)
    truth = (cases.positive, cases.known)
    rows = _tests(cases, "auroc", cases.known, lambda side: auroc_statistic(scores[side], *truth), draws, seed)
    yield from (replace(row, p_delong=_delong(cases, row.question)) for row in rows)
    for name, values, counted in _per_case(cases):
        table = np.where(counted, values, np.nan)
        yield from _tests(cases, name, counted, lambda side, t=table: mean_statistic(t[side]), draws, seed)


def _per_case(cases: PairedCases) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Measures that are means over images: name, `2 cases questions`, and which count, `cases questions`."""
    if "probability" in cases.values:
        probability = cases.values["probability"]
        error = (probability - cases.positive) ** 2
        yield "brier", error, cases.known & ~np.isnan(probability).any(axis=0)
    for name in sorted(set(cases.values) - {"score", "probability"}):
        counted = ~np.isnan(cases.values[name]).any(axis=0)
        sides = [("positives", counted & cases.positive), ("negatives", counted & ~cases.positive)]
        sides = [(side, where) for side, where in sides if where.any()]
        for side, where in sides:
            yield f"{name}, {side}" if len(sides) > 1 else name, cases.values[name], where


def _delong(cases: PairedCases, question: str) -> float | None:
    """DeLong's p, which takes images as independent: only where every patient has one."""
    from radglint.evaluation.significance import delong

    if question == MEAN or len(np.unique(cases.patients)) < len(cases.patients):
        return None
    k = cases.questions.index(question)
    known = cases.known[:, k]
    a, b = cases.values["score"][:, known, k]
    p = delong(a, b, cases.positive[known, k]).p
    return None if np.isnan(p) else p


def _tests(
    cases: PairedCases, name: str, counted: np.ndarray, statistic: Callable[[int], Statistic], draws: int, seed: int
) -> Iterator[PairedDifference]:  # fmt: skip
    """One test per question that has any case, and one of the mean where there are several questions."""
    from radglint.evaluation.significance import paired_difference

    asked = np.flatnonzero(counted.any(axis=0))
    one, other = (_with_mean(statistic(side)) for side in (0, 1))
    found = paired_difference(other, one, cases.patients, draws, seed, LEVEL)  # B first: differences are B - A
    columns = [(cases.questions[k], counted[:, k], cases.positive[:, k], found[k]) for k in asked]
    if len(asked) > 1:
        either, positive = (np.asarray(flags.any(axis=1)) for flags in (counted, counted & cases.positive))
        columns.append((MEAN, either, positive, found[-1]))
    for question, rows, positive, each in columns:
        yield PairedDifference(
            question, name, int(rows.sum()), int((rows & positive).sum()), each.b, each.a, each.difference, each.low,
            each.high, None if np.isnan(each.p) else each.p,
        )  # fmt: skip


def _with_mean(statistic: Statistic) -> Statistic:
    """A statistic with the mean over its measures behind them; measures that a draw does not define are left out."""
    from radglint.evaluation.bootstrap import macro_statistic

    def measured(weights: np.ndarray) -> np.ndarray:
        values = statistic(weights)
        return np.column_stack([values, macro_statistic(lambda _: values)(weights)])

    return measured


def _corrected(rows: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """Holm's correction over all rows that have a p value."""
    from radglint.evaluation.significance import holm

    corrected = holm({str(number): row.p for number, row in enumerate(rows) if row.p is not None})
    return tuple(replace(row, p_holm=corrected.get(str(number))) for number, row in enumerate(rows))


def _undefined(rows: Sequence[PairedDifference]) -> list[str]:
    bare = [f"{measure(row.measure).title} of {row.question}" for row in rows if row.p is None]
    return [f"Not defined on these images, so not tested: {', '.join(bare)}."] if bare else []


def _too_few_draws(rows: Sequence[PairedDifference], draws: int) -> list[str]:
    """The smallest p of a bootstrap is 2 / (draws + 1): times many tests, no verdict could be reached."""
    tests = sum(row.p is not None for row in rows)
    if 2 * tests / (draws + 1) < ALPHA:
        return []
    needed = int(2 * tests / ALPHA) + 1
    return [f"{draws} draws are too few to show a difference among {tests} tests; draw {needed} or more."]
