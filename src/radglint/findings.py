"""Findings: what one image was asked, what was answered, and every way to get the answer out.

A `Finding` keeps the token logits and the preprocessing record, not a volume: probability maps and masks are made when
they are asked for and thrown away again, so that a hundred queries on a large CT fit in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from radglint import localize, render, writing
from radglint.decisions import Abstention, Decision, decide
from radglint.density import DensityRange
from radglint.errors import InputError, OutputError
from radglint.image import MedicalImage
from radglint.mask_nifti import mask_to_nifti
from radglint.preprocess import PreprocessRecord
from radglint.query import Assertion

if TYPE_CHECKING:
    import os
    from datetime import datetime

    from radglint.dicom_seg import Kind

    StrPath = str | os.PathLike[str]

DICOM_NAMES = ("findings_seg.dcm", "findings_sr.dcm")
STALE_NAMES = re.compile(r"\d{2,}_[a-z0-9_]+_(?:mask\.nii\.gz|mask\.png|overlay\.png)|findings_(?:seg|sr)\.dcm")


@dataclass(frozen=True, eq=False)
class Finding:
    """The answer to one query on one image.

    Attributes:
        query: the user's words.
        phrase: the finding in positive words, what the model was asked.
        assertion: "present", "absent" or "uncertain", as the query states it.
        score: raw cosine similarity, in [-1, 1].
        probability: calibrated probability that the phrase is present, in [0, 1].
        threshold: present from this probability on; serves decision and mask alike unless `mask_threshold` is given.
        in_scope: whether the model can be asked this; if not, nothing is marked.
        note: a remark of the model, for example why it is out of scope.
        token_logits: calibrated logit per token, float32 of shape `record.grid_shape`.
        image: the native image.
        record: brings token maps to the native grid.
        density: on a CT, the HU that the finding can have; voxels outside are marked down.
        threshold_source: where the threshold comes from, if the model was calibrated for this finding; else empty.
        mask_threshold: voxels are marked from this probability on; None = `threshold`.
        abstention: where the model does not decide, if it was calibrated to abstain.
    """

    query: str
    phrase: str
    assertion: Assertion
    score: float
    probability: float
    threshold: float
    token_logits: np.ndarray = field(repr=False)
    image: MedicalImage = field(repr=False)
    record: PreprocessRecord = field(repr=False)
    in_scope: bool = True
    note: str = ""
    density: DensityRange | None = None
    threshold_source: str = ""
    mask_threshold: float | None = None
    abstention: Abstention | None = None

    def __post_init__(self) -> None:
        """Refuse a finding whose parts do not belong together."""
        if tuple(self.record.native_shape) != self.image.shape:
            raise InputError(
                f"{self.image.path}: the preprocessing record is of an image of shape {self.record.native_shape}, "
                f"this one has {self.image.shape}; preprocess this image"
            )
        for level in (self.threshold, self.mask_level):
            if not 0.0 <= level <= 1.0:
                raise InputError(f"threshold must be a probability from 0 to 1, got {level}")

    @property
    def mask_level(self) -> float:
        """The probability from which a voxel is marked."""
        return self.threshold if self.mask_threshold is None else self.mask_threshold

    @property
    def decision(self) -> Decision:
        """What the model says of the phrase, whatever the query asserts: see `decisions.decide`."""
        if not self.in_scope:
            return "out of scope"
        return decide(self.probability, self.threshold, self.abstention)

    @property
    def present(self) -> bool:
        """Whether the phrase is found: in scope, at or above the threshold and not abstained from."""
        return self.decision == "present"

    @property
    def is_marked(self) -> bool:
        """Whether the mask may hold anything: in scope, at or above the threshold, and not asked as absent.

        Also where the model abstains: the place is then as uncertain as the finding, and every output says so.
        """
        return self.in_scope and self.probability >= self.threshold and self.assertion != "absent"

    @property
    def is_calibrated(self) -> bool:
        """Whether a local calibration has a say in the decision; only then is its part in the outputs."""
        return bool(self.threshold_source) or self.abstention is not None

    @cached_property
    def peak(self) -> localize.Peak | None:
        """The native voxel with the highest probability, or None where nothing is marked."""
        return localize.peak(self.token_logits, self.record, self.image, self._lowering) if self.is_marked else None

    @property
    def boxes(self) -> list[tuple[int, ...]]:
        """Half-open native boxes of the mask's pieces, largest first: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1)."""
        return self._measured.boxes

    @property
    def area_px(self) -> int | None:
        """Pixels in the mask of a radiograph; None for CT."""
        return self._measured.count if self.image.affine is None else None

    @property
    def volume_ml(self) -> float | None:
        """Millilitres in the mask of a CT; None for a radiograph."""
        return self._measured.volume_ml

    @property
    def remark(self) -> str:
        """The note, why the model abstains, or why the mask is empty; empty text where there is nothing to say."""
        if not self.in_scope:
            return self.note or "outside what this model can be asked, so nothing is marked"
        return "; ".join(part for part in (self._doubt, self.note or self._empty_mask) if part)

    @property
    def _doubt(self) -> str:
        """Why the model abstains, if it does."""
        if self.decision != "uncertain" or self.abstention is None:
            return ""
        low, high = self.abstention.undecided
        marked = ", and so is what is marked" if self.is_marked else ""
        inside = f"lies between {low:.3g} and {high:.3g}, where labelled cases were not told apart"
        against = f"is judged otherwise by the threshold {self.threshold:.3g} than by the range {low:.3g} to {high:.3g}"
        reason = inside if low <= self.probability <= high else against
        return f"uncertain{marked}: probability {self.probability:.3f} {reason}"

    @property
    def _empty_mask(self) -> str:
        """Why nothing is marked, if so."""
        if self.is_marked:
            what = "present, but no place" if self.present else "no place"
            return "" if self._measured.count else f"{what} on its own reaches the threshold: empty mask"
        if self.assertion == "absent":
            return "asked as absent: the probability is that of the finding, and no mask is drawn"
        return f"probability {self.probability:.3f} is below the threshold {self.threshold:g}, so the mask is empty"

    @property
    def verdict(self) -> str:
        """The decision in words; for a negated query also whether it agrees with what was asked."""
        if not self.in_scope:
            return "not asked"
        if self.decision == "uncertain":
            return "uncertain"
        if self.assertion == "absent":
            return "present, against the query" if self.present else "not found, as the query says"
        return "present" if self.present else "not found"

    @property
    def threshold_words(self) -> str:
        """The threshold, and where it comes from if a local calibration has a say: "0.31 (calibrated for ...)"."""
        source = f" ({self.threshold_source})" if self.threshold_source else ""
        return f"{self.threshold:.2f}{source}"

    @property
    def where(self) -> str:
        """Peak and size in words: "peak (-56, -86, -116) mm, 7.6 ml"; empty text where nothing is marked."""
        if self.peak is None:
            return ""
        if self.peak.world_mm is not None:
            return f"peak ({', '.join(f'{v:.0f}' for v in self.peak.world_mm)}) mm RAS+, {self.volume_ml:.1f} ml"
        row, column = self.peak.index
        return f"peak at row {row}, column {column}, {self.area_px} px"

    @property
    def _lowering(self) -> localize.Lowering | None:
        """What a voxel's own HU takes from its logit."""
        density = self.density
        if density is None:
            return None
        return lambda box: density.log_share(self.image.array[tuple(slice(*ends) for ends in box)])

    @cached_property
    def _measured(self) -> localize.Measured:
        return localize.measure(self.mask(), self.image.affine)

    def probability_map(self) -> np.ndarray:
        """Probability on the native grid, float32 in [0, 1], NaN where the model saw nothing; made anew each time."""
        return localize.probability_map(self.token_logits, self.record, self._lowering)

    def probability_plane(self, axis: int, index: int) -> np.ndarray:
        """One plane of `probability_map`, without the rest.

        Args:
            axis: native array axis across the plane (3D only).
            index: position on that axis.

        Returns:
            float32, the two other axes in their order.
        """
        shape = self.image.shape
        box = tuple((index, index + 1) if a == axis else (0, size) for a, size in enumerate(shape))
        return localize.probability_box(self.token_logits, self.record, box, self._lowering).squeeze(axis)

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """Where the finding is.

        Args:
            threshold: probability that decides on presence and on every voxel; by default the finding's own ones.

        Returns:
            bool on the native grid; empty if the query is negated or out of scope, or the probability is below the
            threshold. Unseen voxels are False.

        Raises:
            InputError: the threshold is not in [0, 1].
        """
        least, level = (self.threshold, self.mask_level) if threshold is None else (threshold, threshold)
        if not 0.0 <= level <= 1.0:
            raise InputError(f"threshold must be a probability from 0 to 1, got {level}")
        if not self.in_scope or self.assertion == "absent" or not self.probability >= least:
            return np.zeros(self.image.shape, dtype=bool)
        return localize.threshold_mask(self.token_logits, self.record, level, self._lowering)

    def to_nifti(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask of a CT as NIfTI (uint8, 0 and 1) in the geometry of the input.

        Args:
            path: a name that ends in .nii or .nii.gz.

        Returns:
            The path. For a NIfTI input the file has its exact shape, affine, qform and sform with their codes.

        Raises:
            OutputError: the image is 2D, or the file cannot be written.
        """
        if self.image.affine is None:
            raise OutputError(f"{path}: the mask of a radiograph is a picture; write it with to_png")
        return writing.write_nifti(path, mask_to_nifti(self.mask(), self.image))

    def to_png(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask of a radiograph as a PNG of the original size, 0 and 255.

        Raises:
            OutputError: the image is 3D, or the file cannot be written.
        """
        from PIL import Image

        if self.image.affine is not None:
            raise OutputError(f"{path}: the mask of a CT is a volume; write it with to_nifti")
        return writing.write_png(path, Image.fromarray(self.mask().astype(np.uint8) * 255))

    def save_overlay(self, path: str | os.PathLike[str]) -> Path:
        """Write a PNG picture to look at: the image with the mask, the peak, the boxes and a caption.

        Raises:
            OutputError: the name does not end in .png, or the file cannot be written.
        """
        return writing.write_png(path, render.render_overlay(self))

    def to_dict(self, mask: str | None = None) -> dict[str, Any]:
        """JSON-ready form.

        Args:
            mask: path of the written mask, if there is one.
        """
        size = ("area_px", self.area_px) if self.image.affine is None else ("volume_ml", _number(self.volume_ml))
        document = {
            "query": self.query,
            "assertion": self.assertion,
            "score": _number(self.score),
            "probability": _number(self.probability),
            "present": self.present,
            "peak": None if self.peak is None else self.peak.to_dict(),
            "boxes": [list(box) for box in self.boxes],
            "mask": mask,
            size[0]: size[1],
            "threshold": _number(self.threshold),
            "note": self.remark,
        }
        return document | (self._local_part() if self.is_calibrated else {})

    def _local_part(self) -> dict[str, Any]:
        """What a local calibration adds to `to_dict`."""
        undecided = None if self.abstention is None else [_number(end) for end in self.abstention.undecided]
        return {
            "decision": self.decision,
            "threshold_source": self.threshold_source,
            "mask_threshold": _number(self.mask_level),
            "undecided": undecided,
        }


class Findings(Sequence[Finding]):
    """The answers to all queries on one image, in the order they were asked.

    Attributes:
        image: the image that was asked.
        model_name: which model answered.
        model_fingerprint: tells one set of weights from another.
        warnings: what the reader should know, of the image and of the answer.
    """

    def __init__(
        self,
        findings: Sequence[Finding],
        image: MedicalImage,
        *,
        model_name: str,
        model_fingerprint: str,
        warnings: Sequence[str] = (),
    ) -> None:
        """Collect the findings; the image's own warnings come first."""
        self._findings = tuple(findings)
        self.image = image
        self.model_name = model_name
        self.model_fingerprint = model_fingerprint
        self.warnings = tuple(dict.fromkeys((*image.warnings, *warnings)))
        self._mask_paths: tuple[str | None, ...] = (None,) * len(self._findings)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | Sequence[Finding]:
        """One finding, or a tuple of them."""
        return self._findings[index]

    def __len__(self) -> int:
        """Number of queries."""
        return len(self._findings)

    def __iter__(self) -> Iterator[Finding]:
        """The findings in the order they were asked."""
        return iter(self._findings)

    def __repr__(self) -> str:
        """The table, for fast looking."""
        return f"Findings of {self.image!r} by {self.model_name}\n{self.to_table()}"

    @property
    def mask_names(self) -> list[str]:
        """The file name of each mask in a folder of results."""
        suffix = "mask.png" if self.image.affine is None else "mask.nii.gz"
        return [f"{stem}_{suffix}" for stem in self._stems()]

    def _stems(self) -> list[str]:
        width = max(2, len(str(len(self))))
        return [f"{n:0{width}d}_{writing.slug(finding.query)}" for n, finding in enumerate(self, start=1)]

    def to_dict(self, masks: Sequence[str | None] | None = None) -> dict[str, Any]:
        """The document of `to_json` as a dictionary.

        Args:
            masks: path of each written mask; by default those of the last `save`.
        """
        paths = self._mask_paths if masks is None else masks
        image = self.image
        return {
            "image": {
                "path": str(image.path),
                "modality": image.modality,
                "shape": list(image.shape),
                "spacing_mm": None if image.spacing_mm is None else [_number(s) for s in image.spacing_mm],
                "orientation": image.orientation,
                "value_unit": image.value_unit,
                "steps": self.to_steps(),
            },
            "model": {"name": self.model_name, "fingerprint": self.model_fingerprint},
            "findings": [f.to_dict(path) for f, path in zip(self, paths, strict=True)],
            "warnings": list(self.warnings),
        }

    def to_steps(self) -> list[str]:
        """Every step from the file to the model's pixels, in plain words."""
        return [*self.image.steps, *(self[0].record.steps if len(self) else ())]

    def to_json(self) -> str:
        """One strict JSON document (no NaN); masks are named once `save` has written them."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_table(self) -> str:
        """A readable table: query, assertion, probability, threshold if calibrated, decision, where, note."""
        local = any(f.is_calibrated for f in self)
        rows = [("query", "asked as", "probability", *(("threshold",) if local else ()), "decision", "where", "note")]
        for f in self:
            query, chance = writing.cut(f.query, 48), f"{f.probability:.2f}"
            level = (f.threshold_words,) if local else ()
            rows.append((query, f.assertion, chance, *level, f.verdict, f.where or "-", f.remark))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def to_dicom_seg(self, path: StrPath, kind: Kind = "BINARY", *, created: datetime | None = None) -> Path:
        """Write a DICOM Segmentation with one segment per query, also for what was not found.

        Args:
            path: a name that ends in .dcm.
            kind: BINARY, FRACTIONAL or LABELMAP; see `dicom_seg.segmentation`, also for what it raises.
            created: date and time to write; now if None.
        """
        from radglint import dicom_result, dicom_seg

        return dicom_result.write(path, lambda: dicom_seg.segmentation(self, kind, created=created))

    def to_dicom_sr(self, path: StrPath, *, seg: StrPath | None = None, created: datetime | None = None) -> Path:
        """Write a DICOM structured report (TID 1500) with one measurement group per query.

        Args:
            path: a name that ends in .dcm.
            seg: what `to_dicom_seg` of these findings wrote, to refer to its segments.
            created: date and time to write; now if None. For errors see `dicom_sr.structured_report`.
        """
        from radglint import dicom_file, dicom_result, dicom_sr

        segments = None if seg is None else dicom_file.open_dicom(Path(seg))
        return dicom_result.write(path, lambda: dicom_sr.structured_report(self, segments, created=created))

    def save(self, out_dir: str | os.PathLike[str], *, dicom: bool = False) -> list[Path]:
        """Write masks, overlays, findings.json and index.html into a folder, all or nothing.

        Args:
            out_dir: the folder; made if missing. Results of an earlier run in it are replaced, other files stay.
            dicom: also write `DICOM_NAMES`, a segmentation and a report; the image must be from DICOM.

        Returns:
            The paths written, in the order of the queries, then DICOM, findings.json and index.html.

        Raises:
            InputError: DICOM is wanted of an image that is not from DICOM, or whose files have changed.
            OutputError: the folder cannot be written; then nothing new is left in it.
        """
        from radglint.page import render_page

        folder = Path(out_dir)
        names: list[str] = []
        stale = STALE_NAMES if (folder / "findings.json").is_file() and (folder / "index.html").is_file() else None
        with writing.folder_transaction(folder, stale=stale) as staging:
            for finding, mask_name, stem in zip(self, self.mask_names, self._stems(), strict=True):
                write_mask = finding.to_png if self.image.affine is None else finding.to_nifti
                written = (write_mask(staging / mask_name), finding.save_overlay(staging / f"{stem}_overlay.png"))
                names += [path.name for path in written]
            if dicom:
                seg, report = (staging / name for name in DICOM_NAMES)
                names += [self.to_dicom_seg(seg).name, self.to_dicom_sr(report, seg=seg).name]
            names.append(writing.write_json(staging / "findings.json", self.to_dict(self.mask_names)).name)
            names.append(writing.write_text(staging / "index.html", render_page(self)).name)
        self._mask_paths = tuple(str(folder / name) for name in self.mask_names)
        return [folder / name for name in names]


def _number(value: float | None) -> float | None:
    """A float for JSON; None if it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
