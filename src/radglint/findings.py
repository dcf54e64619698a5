"""Findings: the answers to all queries on one image, and every way to get them out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from radglint import writing
from radglint.finding import Finding, number_or_none
from radglint.image import MedicalImage

if TYPE_CHECKING:
    import os
    from datetime import datetime

    from radglint.dicom_seg import Kind

    StrPath = str | os.PathLike[str]

DICOM_NAMES = ("findings_seg.dcm", "findings_sr.dcm")
UNCALIBRATED = (
    "uncalibrated model: scores rank images, but probabilities and decisions were fitted to no labelled case; "
    "run `radglint calibrate` on your own"
)
STALE_NAMES = re.compile(r"\d{2,}_[a-z0-9_]+_(?:mask\.nii\.gz|mask\.png|overlay\.png)|findings_(?:seg|sr)\.dcm")


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
        unfitted = (UNCALIBRATED,) if any(f.in_scope and f.is_uncalibrated for f in self._findings) else ()
        self.warnings = tuple(dict.fromkeys((*image.warnings, *unfitted, *warnings)))
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
                "spacing_mm": None if image.spacing_mm is None else [number_or_none(s) for s in image.spacing_mm],
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
