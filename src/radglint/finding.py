"""One finding: what was asked, what was answered, and where it is.

A `Finding` keeps the token logits and the preprocessing record, not a volume: probability maps and masks are made when
they are asked for and thrown away again, so that a hundred queries on a large CT fit in memory.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from radglint import localize, render, writing
from radglint.decisions import Abstention, Decision, decide
from radglint.density import DensityRange
from radglint.errors import InputError, OutputError
from radglint.image import MedicalImage
from radglint.mask_nifti import mask_to_nifti
from radglint.preprocess import PreprocessRecord
from radglint.query import Assertion


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
        is_uncalibrated: whether the probability was never fitted to labelled cases.
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
    is_uncalibrated: bool = False

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
        unfitted = "uncalibrated, see `radglint calibrate`" if self.is_uncalibrated else ""
        return "; ".join(part for part in (unfitted, self._doubt, self.note or self._empty_mask) if part)

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

    def probability_bytes(self) -> np.ndarray:
        """`probability_map` as uint8, 255 = 1.0, and 0 where the model saw nothing; fast where little is marked."""
        return localize.probability_bytes(self.token_logits, self.record, self._lowering)

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
        size = ("area_px", self.area_px) if self.image.affine is None else ("volume_ml", number_or_none(self.volume_ml))
        document = {
            "query": self.query,
            "assertion": self.assertion,
            "score": number_or_none(self.score),
            "probability": number_or_none(self.probability),
            "present": self.present,
            "peak": None if self.peak is None else self.peak.to_dict(),
            "boxes": [list(box) for box in self.boxes],
            "mask": mask,
            size[0]: size[1],
            "threshold": number_or_none(self.threshold),
            "note": self.remark,
        }
        return document | (self._local_part() if self.is_calibrated else {})

    def _local_part(self) -> dict[str, Any]:
        """What a local calibration adds to `to_dict`."""
        undecided = None if self.abstention is None else [number_or_none(end) for end in self.abstention.undecided]
        return {
            "decision": self.decision,
            "threshold_source": self.threshold_source,
            "mask_threshold": number_or_none(self.mask_level),
            "undecided": undecided,
        }


def number_or_none(value: float | None) -> float | None:
    """A float for JSON; None if it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
