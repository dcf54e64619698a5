"""Simulated cases on disk: images, masks, one line of facts each, and a manifest of all.

    DIR/simulation.json       what decides every case: kind, seed, version, and the bases with their digests
    DIR/images/NAME.png       radiograph, 16 bit grey; or NAME.nii.gz, CT in HU (int16) with its affine
    DIR/masks/NAME.npz        `masks`, uint8 `findings height width` or `findings slices height width`, in the order of
                              the facts that have a mask; CT axes are slices feet to head, rows front to back, columns
                              patient right to left (the NIfTI file is its transpose). No pickles.
    DIR/cases/NAME.json       the case's line; written last, so a case that has one is complete
    DIR/manifest.jsonl        all lines in order, written at the end

With `simulate drr --views` a case is a study: NAME_PA, NAME_AP and NAME_LL have an image, masks and a line each, with
`study` NAME and `view` PA, AP or LATERAL, in the one file cases/NAME.json. The report is the study's, `facts` are those
that the view shows, and `hidden` are the others, without mask and subtlety: for them the image decides nothing.

Where real lesions are given, each fact has `lesion`: name, patient and diameter of the real one that was blended in, or
null for a made one; `simulation.json` names all of them. A split by patient has to look at both `patient` and these.

A run that was stopped goes on where it stopped and ends with the same files as one that was not.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

import radglint
from radglint.errors import OutputError
from radglint.simulation.case import Plan, SimulatedCase, Source
from radglint.simulation.drr_study import StudySource
from radglint.writing import output_errors, png_bytes, write_bytes, write_json, write_nifti, write_text

FORMAT = 1
FOLDERS = ("images", "masks", "cases")
_MANIFEST_VIEW = {"PA": "PA", "AP": "AP", "LL": "LATERAL"}

AnySource = Source | StudySource

_worker: list[tuple[AnySource, Path]] = []  # what a worker process keeps from its start


def write_dataset(
    source: AnySource, out: Path, plans: Sequence[Plan], seed: int, *, workers: int = 1, show_progress: bool = False
) -> Path:
    """Make every planned case that is not on disk yet, then the manifest.

    Args:
        source: the bases.
        out: the folder; made if missing. An earlier run of the same bases and seed is continued.
        plans: the cases, in the order of the manifest.
        seed: of the run, kept in `simulation.json`.
        workers: processes; the result does not depend on it.
        show_progress: draw a bar on stderr.

    Returns:
        Path of the manifest.

    Raises:
        OutputError: the folder cannot be written, or holds a run of another seed, version or other bases.
        InputError: a base has no room for a case.
    """
    settings = {
        "format": FORMAT, "radglint": radglint.__version__, "kind": source.kind, "seed": seed,
        "bases": source.describe(), **source.options(),
    }  # fmt: skip
    _open(out, settings)
    todo = [plan for plan in plans if not (out / "cases" / f"{plan.name}.json").is_file()]
    for _ in _progress(_run(source, out, todo, workers), len(plans), len(plans) - len(todo), show_progress):
        pass
    lines = [_lines(out / "cases" / f"{plan.name}.json") for plan in plans]
    return write_text(out / "manifest.jsonl", "".join(f"{line}\n" for line in lines))


def _open(out: Path, settings: dict[str, Any]) -> None:
    """Make the folders, or check that what is there is of the same run."""
    with output_errors(out):
        for name in FOLDERS:
            (out / name).mkdir(parents=True, exist_ok=True)
    path = out / "simulation.json"
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{path}: is damaged ({error}); choose another folder") from error
    differs = [key for key in {**settings, **there} if there.get(key) != settings.get(key)]
    if differs:
        key = min(differs, key="bases".__eq__)  # other views or lesions say more
        lists = {
            "bases": "other bases or label maps",
            "views": "other --views, or none",
            "lesions": "other real lesions (--lesions), or none",
        }
        what = lists.get(key, f"{key} {there.get(key)!r}, now it is {settings.get(key)!r}")
        raise OutputError(f"{out}: holds a simulation with {what}; choose another folder, or empty this one")


def _run(source: AnySource, out: Path, todo: Sequence[Plan], workers: int) -> Iterator[None]:
    """Make the cases here, or in processes that are started afresh (a forked torch may hang)."""
    if workers <= 1 or len(todo) < 2:
        for plan in todo:
            write_case(source, out, plan)
            yield
        return
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, start, _start, (source, out)) as pool:
        try:
            yield from pool.map(_work, todo)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(source: AnySource, out: Path) -> None:
    torch.set_num_threads(1)
    _worker[:] = [(source, out)]


def _work(plan: Plan) -> None:
    source, out = _worker[0]
    write_case(source, out, plan)


def _progress(done: Iterator[None], total: int, initial: int, show: bool) -> Iterator[None]:
    from tqdm import tqdm

    return iter(tqdm(done, "simulating", total, initial=initial, unit="case", disable=not show))


def write_case(source: AnySource, out: Path, plan: Plan) -> None:
    """Make one case, or one study, and write its files; the line last.

    Args:
        source: the bases.
        out: the folder, with its subfolders.
        plan: which case.

    Raises:
        OutputError: a file cannot be written.
    """
    cases = source.make_study(plan) if isinstance(source, StudySource) else [source.make(plan)]
    lines = [json.dumps(_written(source, out, plan, case)) for case in cases]
    write_text(out / "cases" / f"{plan.name}.json", "\n".join(lines))


def _written(source: AnySource, out: Path, plan: Plan, case: SimulatedCase) -> dict[str, Any]:
    """Write image and masks of a case; its line."""
    name = f"{plan.name}_{case.view}" if case.view else plan.name
    image, masks = _write_image(out, name, case), f"masks/{name}.npz"
    buffer = io.BytesIO()
    stack = np.stack(case.masks).astype(np.uint8) if case.masks else np.zeros((0, *case.pixels.shape), np.uint8)
    np.savez_compressed(buffer, masks=stack)
    write_bytes(out / masks, buffer.getvalue())
    record = _record(source, plan, case, image, masks)
    if case.view is None:
        return record
    facts, shown = record["facts"], case.shown or ()
    parts = {
        "facts": list(compress(facts, shown)),
        "hidden": list(compress(facts, (not is_shown for is_shown in shown))),
    }
    return {**record, **parts, "id": name, "study": plan.name, "view": _MANIFEST_VIEW[case.view]}


def _write_image(out: Path, name: str, case: SimulatedCase) -> str:
    """A 16-bit PNG, or a NIfTI in HU whose affine puts the middle of the lowest slice at the origin."""
    if case.spacing_mm is None:
        path = f"images/{name}.png"
        write_bytes(out / path, png_bytes(Image.fromarray(case.pixels)))
        return path
    path = f"images/{name}.nii.gz"
    step, row, column = case.spacing_mm
    affine = np.diag([-column, -row, step, 1.0])
    affine[:2, 3] = (case.pixels.shape[2] - 1) / 2 * column, (case.pixels.shape[1] - 1) / 2 * row
    nifti = nib.Nifti1Image(case.pixels.transpose(2, 1, 0), affine)  # pyright: ignore[reportPrivateImportUsage]
    nifti.header.set_xyzt_units("mm")
    write_nifti(out / path, nifti)
    return path


def _record(source: AnySource, plan: Plan, case: SimulatedCase, image: str, masks: str) -> dict[str, Any]:
    """The line of a case."""
    numbers = _mask_numbers(case)
    facts = [
        {
            "concept": fact.concept, "side": fact.side, "zone": fact.zone, "size": fact.size,
            "subtlety": None if n is None else case.subtlety[n], "mask": n, **_lesion(case, k),
        }
        for k, (fact, n) in enumerate(zip(case.facts, numbers, strict=True))
    ]  # fmt: skip
    report = {"findings": case.report.findings, "impression": case.report.impression}
    return {
        "id": plan.name, "image": image, "modality": "CT" if source.kind == "ct" else "CXR", "base": case.base,
        "mirrored": case.is_mirrored, "patient": case.patient, "group": case.patient, "split": plan.split or None,
        "report": report, "facts": facts, "doubted": list(case.report.doubted),
        "distractors": list(case.distractors), "masks": masks, "seed": plan.seed, "index": plan.index,
        "version": f"{radglint.__version__}/{FORMAT}",
    }  # fmt: skip


def _mask_numbers(case: SimulatedCase) -> list[int | None]:
    """Which mask each fact has."""
    shown = case.shown or tuple(k < len(case.masks) for k in range(len(case.facts)))
    return [sum(shown[:k]) if is_shown else None for k, is_shown in enumerate(shown)]


def _lesion(case: SimulatedCase, number: int) -> dict[str, Any]:
    """The real lesion behind a fact (null for a made one), where there were real ones to take."""
    if case.lesions is None:
        return {}
    lesion = case.lesions[number]
    named = {"name": lesion.name, "patient": lesion.patient, "diameter_mm": lesion.diameter_mm} if lesion else None
    return {"lesion": named}


def _lines(path: os.PathLike[str]) -> str:
    """The stored line of a case, or those of a study."""
    with output_errors(path), open(path, encoding="utf-8") as file:
        return file.read()
