"""Any model on a built SimFind folder, by the public pipeline only: presence, place, wrong findings and wrong sides.

Command: radglint simulate --benchmark simfind-cxr ../shared/data/nih_cxr --out runs/simfind_cxr
         python recipes/simfind_evaluate.py nano runs/simfind_cxr --out runs/nano_simfind_cxr.json
Time:    3 s a radiograph, 20 s a CT on one core. Answers are kept beside --out (.jsonl): a stopped run goes on.
Prints:  one table a split and wording, and the means with their 95 % intervals; --out holds the same as JSON.

A case counts for a concept where its facts decide it (`holds_for`); what is undecided is left out. Each concept is
asked by its name ("plain") and, on the test split, also by one of its `HELD_OUT` names, in turns ("unseen"). Measures:

    auroc        score of the cases that have it against those that do not
    found        share of the cases that have it with a mask that is not empty
    false_mask   the same of the cases that do not have it
    pointing     highest voxel of the probability map inside the true mask; `chance`: mean share of the image in it
    dice         where it is there: the map at the threshold that is best on the validation split (0.5 without one)
    dice_half    the map at 0.5, whatever is said of presence
    dice_answer  the mask as answered, empty where the finding is said to be absent
    own_side     pointing of "left X" where X is on the left only (and so for the right)
    wrong_side   share of a mask that is not empty for "right X" there
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import radglint
from radglint.simulation.ct import CT_CONCEPTS
from radglint.simulation.entailment import holds_for
from radglint.simulation.facts import HELD_OUT, Fact
from radglint.simulation.radiograph import CONCEPTS
from radglint.writing import write_text

Row = dict[str, Any]  # a line of the answers: one case
Answer = dict[str, Any]  # what is kept of one query

LEVELS = np.array([0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99], np.float32)
HALF = int(np.flatnonzero(np.isclose(LEVELS, 0.5))[0])
LEAST_CASES = 3  # with and without a concept, or it is not measured
LEAST_GROUPS = 8  # fewer patients (then: fewer bases) say nothing of the spread
DRAWS = 500
OTHER = {"left": "right", "right": "left"}
MEASURES = ("auroc", "found", "false_mask", "pointing", "chance", "dice", "dice_half", "dice_answer",
            "own_side", "wrong_side")  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One query and what it means.

    Attributes:
        phrase: the query.
        statement: its meaning.
        wording: "plain", "unseen", "own side" or "other side".
    """

    phrase: str
    statement: Fact
    wording: str


def facts_of(line: Row) -> list[Fact]:
    """Facts of a line of the manifest."""
    return [Fact(f["concept"], f["side"], f["zone"], f["size"]) for f in line["facts"]]


def one_side(concept: str, facts: Sequence[Fact]) -> str | None:
    """The side that a concept has in every one of its facts, if that is left or right."""
    sides = {fact.side for fact in facts if fact.concept == concept}
    return next(iter(sides)) if sides in ({"left"}, {"right"}) else None


def questions(line: Row) -> list[Question]:
    """Everything that one case is asked."""
    facts = facts_of(line)
    asked: list[Question] = []
    for concept in CT_CONCEPTS if line["modality"] == "CT" else CONCEPTS:
        asked.append(Question(concept, Fact(concept), "plain"))
        if line["split"] != "val":
            names = HELD_OUT[concept]
            asked.append(Question(names[line["index"] % len(names)].removeprefix("~"), Fact(concept), "unseen"))
        if (side := one_side(concept, facts)) is not None:
            pairs = (("own side", side), ("other side", OTHER[side]))
            asked += [Question(f"{at} {concept}", Fact(concept, at), name) for name, at in pairs]  # type: ignore[arg-type]
    return asked


def true_mask(line: Row, masks: np.ndarray, concept: str) -> np.ndarray | None:
    """All of a concept in one case, or None where a fact of it has no mask."""
    numbers = [fact["mask"] for fact in line["facts"] if fact["concept"] == concept]
    return None if not numbers or None in numbers else masks[numbers].any(axis=0)


def dice(marked: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (marked & truth).sum() / max(int(marked.sum() + truth.sum()), 1))


def dice_curve(values: np.ndarray, truth: np.ndarray, levels: np.ndarray = LEVELS) -> np.ndarray:
    """Dice of `values >= level` for each level, in one pass over the voxels.

    Args:
        values: probability map; NaN is never marked.
        truth: bool of the same shape.
        levels: ascending.
    """
    reached = np.searchsorted(levels, np.nan_to_num(values, nan=-1.0), side="right")
    marked, hit = (
        np.bincount(part.ravel(), minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
        for part in (reached, reached[truth])
    )
    return 2 * hit / np.maximum(marked + truth.sum(), 1)


def points_inside(values: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the highest voxel of a map lies in a mask."""
    return bool(truth.flat[int(np.nanargmax(values))])


def judge(finding: radglint.Finding, question: Question, line: Row, masks: np.ndarray) -> Answer:
    """What is kept of one answer."""
    concept, verdict = question.statement.concept, holds_for(question.statement, facts_of(line))
    answer: Answer = {
        "concept": concept, "wording": question.wording, "phrase": question.phrase, "verdict": verdict,
        "score": round(finding.score, 6), "probability": round(finding.probability, 6), "in_scope": finding.in_scope,
    }  # fmt: skip
    if verdict == "unknown":
        return answer
    marked = finding.mask()
    answer["marked"] = bool(marked.any())
    truth = true_mask(line, masks, concept) if verdict == "holds" else None
    return answer if truth is None else answer | place(finding.probability_map(), marked, truth)


def place(values: np.ndarray, marked: np.ndarray, truth: np.ndarray) -> Answer:
    """How well a map and a mask lie on the truth."""
    curve = dice_curve(values, truth)
    return {"pointing": points_inside(values, truth), "chance": round(float(truth.mean()), 6),
            "curve": [round(float(v), 4) for v in curve], "dice_answer": round(dice(marked, truth), 4)}  # fmt: skip


def answer_case(pipe: radglint.Pipeline, folder: Path, line: Row) -> Row:
    """Encode one image, ask everything at once, judge the answers one at a time."""
    asked = questions(line)
    findings = pipe.ask(pipe.encode_image(folder / line["image"]), [question.phrase for question in asked])
    with np.load(folder / line["masks"], allow_pickle=False) as arrays:
        masks = arrays["masks"].astype(bool)
    answers = [judge(finding, q, line, masks) for finding, q in zip(findings, asked, strict=True)]
    keep = {key: line[key] for key in ("id", "split", "patient", "base")}
    return keep | {"model": findings.model_fingerprint, "answers": answers}


def kept_rows(path: Path, fingerprint: str) -> list[Row]:
    """Rows of a stopped run; a line that was cut off is dropped.

    Args:
        path: the answers.
        fingerprint: of the model that is asked now.
    """
    rows = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(text))
        except ValueError:
            continue
    if any(row["model"] != fingerprint for row in rows):
        raise SystemExit(f"{path}: holds answers of another model; delete it or choose another --out")
    return rows


def answer_all(pipe: radglint.Pipeline, folder: Path, lines: Sequence[Row], path: Path) -> list[Row]:
    """All rows, in the order of the manifest; those on disk are not made again."""
    rows = {row["id"]: row for row in kept_rows(path, pipe.model.fingerprint)}
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows.values()))
    with path.open("a") as file:
        for line in tqdm([line for line in lines if line["id"] not in rows], "asking", unit="case"):
            rows[line["id"]] = answer_case(pipe, folder, line)
            file.write(json.dumps(rows[line["id"]]) + "\n")
            file.flush()
    return [rows[line["id"]] for line in lines]


def column(
    rows: Sequence[Row], concept: str, wording: str, value: Callable[[Answer], float | bool | None]
) -> np.ndarray:
    """One number of each case, NaN where the case has none: `cases`."""
    found = np.full(len(rows), np.nan)
    for k, row in enumerate(rows):
        for answer in row["answers"]:
            if (answer["concept"], answer["wording"]) == (concept, wording):
                number = value(answer)
                found[k] = np.nan if number is None else number
    return found


def where(verdict: str, key: str) -> Callable[[Answer], float | bool | None]:
    """A number of an answer that counts under one verdict only."""
    return lambda answer: answer.get(key) if answer["verdict"] == verdict else None


def at_level(number: int) -> Callable[[Answer], float | None]:
    """Dice at one of `LEVELS`."""
    return lambda answer: answer["curve"][number] if "curve" in answer else None


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the values that are there, for each draw.

    Args:
        values: `cases`, NaN where there is none.
        weights: `draws cases`, how often each case was drawn.

    Returns:
        `draws`, NaN without any value.
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return weights[:, known] @ values[known] / weights[:, known].sum(axis=1)


def weighted_auroc(positive: np.ndarray, negative: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of pairs in which the positive scores higher, for each draw; ties count half.

    Args:
        positive: `cases`, scores of those that have it, else NaN.
        negative: the same of those that do not.
        weights: `draws cases`.
    """
    there, gone = ~np.isnan(positive), ~np.isnan(negative)
    above = np.sign(positive[there][:, None] - negative[gone][None]) / 2 + 0.5
    one, two = weights[:, there], weights[:, gone]
    with np.errstate(invalid="ignore"):
        return ((one @ above) * two).sum(axis=1) / (one.sum(axis=1) * two.sum(axis=1))


def groups_of(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """What is drawn together: patients, or bases or cases where there are too few; its name, and one per case."""
    for key in ("patient", "base"):
        names = [row[key] for row in rows]
        if len(set(names)) >= LEAST_GROUPS:
            return key, names
    return "case", [row["id"] for row in rows]


def draw_weights(groups: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each case counts: row 0 once each, then groups drawn with replacement, `1 + draws cases`."""
    names, number = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    return np.concatenate([np.ones((1, len(number))), counts[:, number]]).astype(float)


def best_level(rows: Sequence[Row], concept: str) -> int:
    """Which of `LEVELS` has the best mean Dice on these cases; 0.5 where none has the concept."""
    curves = [a["curve"] for row in rows for a in row["answers"]
              if a["concept"] == concept and a["wording"] == "plain" and "curve" in a]  # fmt: skip
    return int(np.mean(curves, axis=0).argmax()) if curves else HALF


def measure(
    rows: Sequence[Row], concept: str, wording: str, level: int, weights: np.ndarray
) -> dict[str, np.ndarray] | None:
    """Each of `MEASURES` for each draw; None if too few cases have the concept or lack it."""
    positive, negative = (column(rows, concept, wording, where(v, "score")) for v in ("holds", "fails"))
    if min((~np.isnan(positive)).sum(), (~np.isnan(negative)).sum()) < LEAST_CASES:
        return None
    values = {
        "found": column(rows, concept, wording, where("holds", "marked")),
        "false_mask": column(rows, concept, wording, where("fails", "marked")),
        "dice": column(rows, concept, wording, at_level(level)),
        "dice_half": column(rows, concept, wording, at_level(HALF)),
        **{key: column(rows, concept, wording, where("holds", key)) for key in ("pointing", "chance", "dice_answer")},
    }
    if wording == "plain":
        values["own_side"] = column(rows, concept, "own side", where("holds", "pointing"))
        values["wrong_side"] = column(rows, concept, "other side", where("fails", "marked"))
    means = {key: weighted_mean(v, weights) for key, v in values.items() if not np.isnan(v).all()}
    return {"auroc": weighted_auroc(positive, negative, weights), **means}


def is_offered(rows: Sequence[Row], concept: str) -> bool:
    """Whether the model takes the concept by its name."""
    asked = [a["in_scope"] for row in rows for a in row["answers"]
             if a["concept"] == concept and a["wording"] == "plain"]  # fmt: skip
    return all(asked)


def summary(rows: Sequence[Row], wording: str, levels: dict[str, int]) -> dict[str, Any]:
    """Numbers of each concept, and the means over those that the model offers with 95 % intervals."""
    unit, groups = groups_of(rows)
    weights = draw_weights(groups)
    concepts, offered = {}, []
    for concept, level in levels.items():
        found = measure(rows, concept, wording, level, weights)
        if found is None:
            continue
        positives = int((~np.isnan(column(rows, concept, wording, where("holds", "score")))).sum())
        scope = float(np.nanmean(column(rows, concept, wording, lambda a: a["in_scope"])))
        concepts[concept] = {
            "n": positives, "offered": is_offered(rows, concept), "in_scope": round(scope, 3),
            "threshold": round(float(LEVELS[level]), 3), **{k: rounded(v[0]) for k, v in found.items()},
        }  # fmt: skip
        if concepts[concept]["offered"]:
            offered.append(found)
    return {"cases": len(rows), "intervals_over": unit, "groups": len(set(groups)), "concepts": concepts,
            "offered": len(offered), "mean": means(offered)}  # fmt: skip


def means(offered: Sequence[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """Mean over concepts of each measure, with the ends of its interval."""
    result = {}
    for key in MEASURES:
        draws = [found[key] for found in offered if key in found]
        if draws:
            known = np.ma.masked_invalid(draws).mean(axis=0).filled(np.nan)
            result[key] = [rounded(known[0]), *(rounded(v) for v in np.nanquantile(known[1:], (0.025, 0.975)))]
    return result


def rounded(value: float) -> float:
    """Three digits."""
    return round(float(value), 3)


def table(title: str, result: dict[str, Any]) -> str:
    """Lines to print; concepts that the model does not offer carry a minus."""
    head = f"{title}: {result['cases']} cases, intervals over {result['groups']} {result['intervals_over']}s"
    lines = [head, f"  {'concept':24s}{'n':>4s} {'thr.':>5s} " + " ".join(f"{key:>11s}" for key in MEASURES)]
    for name, row in result["concepts"].items():
        shown = name if row["offered"] else f"- {name}"
        lines.append(f"  {shown:24s}{row['n']:4d} {row['threshold']:5.2f} " + cells(row.get(k) for k in MEASURES))
    mean = result["mean"]
    for k, label in enumerate((f"mean of {result['offered']}", "95 % from", "to")):
        lines.append(f"  {label:24s}{'':10s} " + cells(mean[key][k] if key in mean else None for key in MEASURES))
    return "\n".join(lines)


def cells(values: Iterable[float | None]) -> str:
    """Numbers in columns."""
    return " ".join(f"{'':11s}" if value is None else f"{value:11.3f}" for value in values)


def summaries(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A summary per split and wording; thresholds come from the validation split."""
    validation = [row for row in rows if row["split"] == "val"]
    concepts = dict.fromkeys(answer["concept"] for row in rows for answer in row["answers"])
    levels = {concept: best_level(validation, concept) for concept in concepts}
    result = {}
    for split in sorted({row["split"] for row in rows}):
        part = [row for row in rows if row["split"] == split]
        for wording in ("plain", "unseen") if split != "val" else ("plain",):
            result[f"{split}, {wording}"] = summary(part, wording, levels)
    return result


def main() -> None:
    """Ask, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's name or folder")
    parser.add_argument("folder", type=Path, help="of `radglint simulate --benchmark`")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the answers go beside it as .jsonl")
    parser.add_argument("--limit", type=int, help="only so many cases of each split")
    args = parser.parse_args()
    lines = [json.loads(text) for text in (args.folder / "manifest.jsonl").read_text().splitlines()]
    lines = [line for line in lines if args.limit is None or int(line["id"].rsplit("_", 1)[1]) < args.limit]
    pipe = radglint.load(args.model)
    result = summaries(answer_all(pipe, args.folder, lines, args.out.with_suffix(".jsonl")))
    for title, part in result.items():
        print(table(title, part), flush=True)
    about = {"folder": args.folder.name, "model": pipe.model.name, "fingerprint": pipe.model.fingerprint}
    args.out.write_text(json.dumps(about | {"results": result}, indent=1))


if __name__ == "__main__":
    main()
