"""What the widget asks, off the user interface's thread: a loaded model and the last encoded image. Knows no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from radglint import writing
from radglint.errors import QueryError
from radglint.image import MedicalImage
from radglint.mask_nifti import mask_to_nifti
from radglint.napari_widget.reader import image_of
from radglint.query import parse_query

if TYPE_CHECKING:
    from radglint.findings import Findings
    from radglint.pipeline import EncodedImage, Pipeline


class Desk:
    """A model that is loaded once and an image that is encoded once.

    Safe to call from several threads; one of them works, the others wait.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._model = ""
        self._pipeline: Pipeline | None = None
        self._image: MedicalImage | None = None
        self._encoded: EncodedImage | None = None

    def ask(self, image: MedicalImage, queries: Sequence[str], model: str) -> Findings:
        """Ask an image; model and image features are kept for the next question.

        Args:
            image: what was read.
            queries: plain English.
            model: a name, or a checkpoint folder.

        Raises:
            InputError: the model cannot be loaded, does not answer this modality, or a query cannot be read.
        """
        with self._lock:
            pipeline = self._load(model)
            if self._encoded is None or self._image is not image:
                self._encoded = self._image = None  # the old features make room first
                self._encoded, self._image = pipeline.encode_image(image), image
            return pipeline.ask(self._encoded, queries)

    def ask_layer(self, layer: Any, queries: Sequence[str], model: str) -> tuple[Findings, list[np.ndarray]]:
        """Ask a napari image layer, and do all that takes time for what is shown of the answers.

        Returns:
            The findings, with remarks and peaks computed (they keep them), and the mask of each.

        Raises:
            InputError: see `ask`, or the layer is not one that can be asked, see `reader.image_of`.
        """
        findings = self.ask(image_of(layer), queries, model)
        shown = [(finding.mask(), finding.remark, finding.peak) for finding in findings]
        return findings, [mask for mask, _, _ in shown]

    def _load(self, model: str) -> Pipeline:
        if self._pipeline is None or self._model != model:
            import radglint

            self._pipeline = self._encoded = self._image = None
            self._pipeline, self._model = radglint.load(model), model
        return self._pipeline


def split_queries(text: str) -> list[str]:
    """The queries of a text box, one a line; empty lines and lines that begin with # are left out.

    Raises:
        QueryError: there is none, or one cannot be read; it says which line.
    """
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), start=1)]
    queries = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if not queries:
        raise QueryError('no query given; write one a line, for example "pleural effusion"')
    for n, query in queries:
        try:
            parse_query(query)
        except QueryError as error:
            raise QueryError(f"line {n}: {error}") from error
    return [query for _, query in queries]


def save_masks(folder: str | Path, masks: Sequence[tuple[str, np.ndarray]], image: MedicalImage) -> list[Path]:
    """Write masks as `radglint ask --out` does: NIfTI in the geometry of a CT, PNG of the size of a radiograph.

    Args:
        folder: made if missing. Files of the same name are replaced, others stay.
        masks: (file name, see `Findings.mask_names`; bool on the native grid, as found or edited by hand).
        image: what they lie on.

    Returns:
        The paths written, in order.

    Raises:
        OutputError: nothing is written then.
    """
    with writing.folder_transaction(folder) as staging:
        names = [_write(staging, name, mask, image).name for name, mask in masks]
    return [Path(folder) / name for name in names]


def _write(folder: Path, name: str, mask: np.ndarray, image: MedicalImage) -> Path:
    if image.affine is not None:
        return writing.write_nifti(folder / name, mask_to_nifti(np.ascontiguousarray(mask), image))
    from PIL import Image

    return writing.write_png(folder / name, Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255))
