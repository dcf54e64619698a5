"""Results of an answer as files, made when they are asked for; runs in the model process."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radglint.errors import ConfigError
from radglint.server.volumes import FAST, around_marks, label_map, on_grid
from radglint.writing import png_bytes, whole_file, write_bytes, write_nifti, write_text

if TYPE_CHECKING:
    from radglint.finding import Finding
    from radglint.findings import Findings


def make(findings: Findings, kind: str, index: int, folder: Path) -> Path:
    """Make one result, if it is not there already.

    Args:
        findings: the answer.
        kind: a name in `OF_FINDING` or `OF_JOB`.
        index: which finding, for the kinds of one.
        folder: of the answer.

    Raises:
        InputError: the image does not allow it, such as DICOM of a picture.
        OutputError: no space, for example.
    """
    path = place_of(kind, index, folder)
    if path.is_file():
        return path
    if kind in OF_FINDING:
        OF_FINDING[kind](findings[index], path)
    else:
        OF_JOB[kind](findings, path)
    return path


def place_of(kind: str, index: int, folder: Path) -> Path:
    """Where a result lies once it is made; arguments as for `make`."""
    return folder / (f"{index}_{kind}" if kind in OF_FINDING else kind)


def write_volume(path: Path, nifti: Any) -> Path:
    """Write a nibabel image as .nii, or quickly as .nii.gz."""
    content = nifti.to_bytes()
    return write_bytes(path, gzip.compress(content, FAST, mtime=0) if path.suffix == ".gz" else content)


def _probability(finding: Finding, path: Path) -> None:
    write_volume(path, on_grid(finding.probability_bytes(), finding.image))


def _probability_box(finding: Finding, path: Path) -> None:
    write_volume(path, around_marks(on_grid(finding.probability_bytes(), finding.image)))


def _mask_nifti(finding: Finding, path: Path) -> None:
    write_volume(path, on_grid(finding.mask().view("uint8"), finding.image))


def _mask_png(finding: Finding, path: Path) -> None:
    finding.to_png(path)


def _overlay(finding: Finding, path: Path) -> None:
    from radglint.render import render_overlay

    write_bytes(path, png_bytes(render_overlay(finding)))


def _labels(findings: Findings, path: Path) -> None:
    write_nifti(path, on_grid(label_map(findings), findings.image))


def _labels_nrrd(findings: Findings, path: Path) -> None:
    from radglint.server.nrrd import nrrd_bytes

    labels = on_grid(label_map(findings), findings.image)
    write_bytes(path, nrrd_bytes(np.asanyarray(labels.dataobj), labels.header.get_best_affine()))


def _page(findings: Findings, path: Path) -> None:
    from radglint.page import render_page

    write_text(path, render_page(findings))


def _seg(findings: Findings, path: Path) -> None:
    findings.to_dicom_seg(path)


def _sr(findings: Findings, path: Path) -> None:
    findings.to_dicom_sr(path, seg=make(findings, "seg.dcm", 0, path.parent))


def _everything(findings: Findings, path: Path) -> None:
    """What `ask --out` writes, as a zip; the DICOM objects are those that were handed out before."""
    with tempfile.TemporaryDirectory(prefix="zip-") as staging:
        files = findings.save(staging)
        if findings.image.source_frames:
            from radglint.findings import DICOM_NAMES

            for name, kind in zip(DICOM_NAMES, ("seg.dcm", "sr.dcm"), strict=True):
                files.append(Path(shutil.copy(make(findings, kind, 0, path.parent), Path(staging, name))))
        with whole_file(path) as sink, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=FAST) as archive:
            for file in files:
                archive.write(file, file.name)


OF_FINDING: dict[str, Callable[[Finding, Path], None]] = {
    "probability.nii.gz": _probability,
    "probability_box.nii.gz": _probability_box,
    "mask.nii.gz": _mask_nifti,
    "mask.png": _mask_png,
    "overlay.png": _overlay,
}
OF_JOB: dict[str, Callable[[Findings, Path], None]] = {
    "report.html": _page,
    "seg.dcm": _seg,
    "sr.dcm": _sr,
    "all.zip": _everything,
    "labels.nii.gz": _labels,
    "labels.nrrd": _labels_nrrd,
}


def require_kind(kind: str) -> None:
    """Refuse a kind that nobody makes.

    Raises:
        ConfigError: unknown.
    """
    if kind not in OF_FINDING and kind not in OF_JOB:
        raise ConfigError(f"{kind}: not a result that is made; expected one of {', '.join((*OF_FINDING, *OF_JOB))}")
