"""The dock widget: choose an image, type queries, look at masks, move a threshold, jump to a peak, save.

Whatever takes time (reading, loading, encoding, asking, making a mask) runs in napari's worker threads; layers and
controls are touched from the thread of the user interface only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.qt.threading import create_worker
from qtpy.QtCore import QTimer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QFileDialog

from radglint.errors import RadglintError
from radglint.finding import Finding
from radglint.findings import Findings
from radglint.napari_widget.desk import Desk, save_masks, split_queries
from radglint.napari_widget.form import STEPS, AskForm
from radglint.napari_widget.jump import jump_to, upright
from radglint.napari_widget.layers import (
    IMAGE_KEY,
    affine_of,
    axis_order,
    mask_layer,
    same_place,
    tilt_note,
    to_layer,
    to_native,
)
from radglint.napari_widget.reader import read_layers
from radglint.registry import list_models

if TYPE_CHECKING:
    import napari.viewer

COLOURS = ("#ff9f1c", "#2ec4b6", "#e71d6f", "#9b5de5", "#8ac926", "#4cc9f0", "#f15bb5", "#fee440")
SETTLE_MS = 150
"""A slider that has stood still for so long gets its mask."""


@dataclass(frozen=True)
class _Refusal:
    """What the user is told; an exception as a result would be raised again by the worker."""

    text: str


class AskWidget(AskForm):
    """Asks the chosen image layer.

    Args:
        napari_viewer: the viewer that the widget is docked to; napari passes it by this name.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.desk = Desk()
        self.findings: Findings | None = None
        self.masks: list[Labels] = []
        self.running: set[Any] = set()
        self._closed = False
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self.model_box.addItems([model.name for model in list_models()])
        self._connect()
        self._list_layers()
        self._show_chosen()

    def _connect(self) -> None:
        for event in self._layer_events():
            event.connect(self._list_layers)
        for event in self._view_events():
            event.connect(self._turn_upright)
        self.open_file.triggered.connect(self._choose_file)
        self.open_folder.triggered.connect(self._choose_folder)
        self.ask_button.clicked.connect(self.ask)
        self.table.itemSelectionChanged.connect(self._row_chosen)
        self.slider.valueChanged.connect(self._slider_moved)
        self._settle.timeout.connect(self._mark_again)
        self.reset_button.clicked.connect(self._reset)
        self.jump_button.clicked.connect(self.jump)
        self.save_button.clicked.connect(self._choose_target)

    def _layer_events(self) -> tuple[Any, ...]:
        events = self.viewer.layers.events
        return events.inserted, events.removed, events.renamed

    def _view_events(self) -> tuple[Any, ...]:
        events = self.viewer.dims.events
        return events.order, events.ndisplay, events.ndim

    def _turn_upright(self, _event: object = None) -> None:
        """Only where there is a CT that was read by radglint: other layers are shown as their owners like."""
        if any(IMAGE_KEY in layer.metadata and layer.ndim == 3 for layer in self.viewer.layers):
            upright(self.viewer)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Let go of the viewer; what still runs ends unheard."""
        self._closed = True
        self._settle.stop()
        for event_of_layers in self._layer_events():
            event_of_layers.disconnect(self._list_layers)
        for event_of_view in self._view_events():
            event_of_view.disconnect(self._turn_upright)
        super().closeEvent(event)

    # Work in threads

    def _start(self, done: Callable[[Any], None], work: Callable[..., Any], *args: Any) -> None:
        """Run `work(*args)` in a thread, then `done(result)` here; a refusal goes to the status line.

        A defect is not caught: napari shows it with its traceback.
        """

        def guarded() -> Any:
            try:
                return work(*args)
            except RadglintError as error:
                return _Refusal(str(error))

        worker = create_worker(guarded, _start_thread=False)
        self.running.add(worker)
        worker.errored.connect(lambda error: self._failed(error))
        worker.returned.connect(lambda result: self._returned(done, result))
        worker.finished.connect(lambda *_: self._finished(worker))
        self.busy_bar.setVisible(True)
        worker.start()

    def _returned(self, done: Callable[[Any], None], result: Any) -> None:
        if self._closed:
            return
        if isinstance(result, _Refusal):
            self._say(result.text)
        else:
            done(result)

    def _failed(self, error: Exception) -> None:
        if not self._closed:
            self._say(f"internal error: {type(error).__name__}: {error}; please report it")

    def _finished(self, worker: Any) -> None:
        self.running.discard(worker)
        if not self._closed and not self.running:
            self.busy_bar.setVisible(False)
            self.ask_button.setEnabled(True)

    def _say(self, text: str) -> None:
        self.status.setText(text)

    # Images

    def _list_layers(self, _event: object = None) -> None:
        """The image layers of the viewer, the newest chosen; layers of masks that are gone are forgotten."""
        chosen = self.layer_box.currentData()
        known = [self.layer_box.itemData(k) for k in range(self.layer_box.count())]
        images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        added = [layer for layer in images if layer not in known]
        self.layer_box.clear()
        for layer in images:
            self.layer_box.addItem(layer.name, layer)
        wanted = added[-1] if added else chosen
        self.layer_box.setCurrentIndex(images.index(wanted) if wanted in images else len(images) - 1)
        self._turn_upright()
        self._show_chosen()

    def open(self, path: str | Path) -> None:
        """Read a file or a DICOM folder with radglint's reader into a new image layer, in a thread."""
        self._say(f"reading {path}")
        self._start(self._add_image, read_layers, str(path))

    def _add_image(self, layers: list[Any]) -> None:
        for data, settings, _ in layers:
            self.viewer.add_image(data, **settings)
        self._say("")

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open an image")
        if path:
            self.open(path)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open a DICOM folder")
        if path:
            self.open(path)

    # Questions

    def ask(self) -> None:
        """Ask the chosen layer what stands in the text box, in a thread."""
        layer, text, model = self.layer_box.currentData(), self.query_box.toPlainText(), self.model_box.currentText()
        try:
            queries = split_queries(text)
        except RadglintError as error:
            self._say(str(error))
            return
        if layer is None:
            self._say("no image: open one first")
            return
        self.ask_button.setEnabled(False)
        self._say(f"asking {layer.name}")
        self._start(lambda answer: self._show_answer(layer, *answer), self.desk.ask_layer, layer, queries, model)

    def _show_answer(self, layer: Image, findings: Findings, masks: list[np.ndarray]) -> None:
        """The answers of one image take the place of the last ones."""
        for old in [old for old in self.masks if old in self.viewer.layers]:
            self.viewer.layers.remove(old)
        self.findings, self.masks = findings, []
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(findings))]
        for finding, mask, colour in zip(findings, masks, colours, strict=True):
            data, settings, _ = mask_layer(finding, mask, colour)
            self.masks.append(Labels(data, **settings, **same_place(layer)))
            self.viewer.add_layer(self.masks[-1])
        self.table.show_findings(findings, colours)
        notes = [*findings.warnings, tilt_note(findings.image)]
        self._say("; ".join(note for note in notes if note))
        self.table.selectRow(0)
        self._row_chosen()

    # The chosen answer

    def _chosen(self) -> tuple[Finding, Labels] | None:
        """The chosen finding with its layer, or None if there is none or its layer was removed."""
        row = self.table.chosen()
        if row is None or self.findings is None or row >= len(self.masks):
            return None
        layer = self.masks[row]
        return (self.findings[row], layer) if layer in self.viewer.layers else None

    def _show_chosen(self) -> None:
        """Make slider and buttons those of the chosen row."""
        chosen = self._chosen()
        can_mark = chosen is not None and chosen[0].in_scope and chosen[0].assertion != "absent"
        for control in (self.slider, self.reset_button):
            control.setEnabled(can_mark)
        self.jump_button.setEnabled(chosen is not None and chosen[0].peak is not None)
        self.remark.setText("" if chosen is None else _remark_words(chosen[0]))
        self.save_button.setEnabled(any(mask in self.viewer.layers for mask in self.masks))

    def _row_chosen(self) -> None:
        """Another row: its layer becomes the active one, its threshold that of the slider."""
        self._settle.stop()
        self._show_chosen()
        chosen = self._chosen()
        if chosen is not None:
            finding, layer = chosen
            self.viewer.layers.selection.active = layer
            self._set_slider(layer.metadata.get("threshold", finding.mask_level))

    def _set_slider(self, probability: float) -> None:
        """Move the slider without marking anew."""
        blocked = self.slider.blockSignals(True)
        self.slider.setValue(round(probability * STEPS))
        self.slider.blockSignals(blocked)
        self.slider_label.setText(f"{probability:.3f}")

    def _slider_moved(self, position: int) -> None:
        self.slider_label.setText(f"{position / STEPS:.3f}")
        self._settle.start()

    def _mark_again(self) -> None:
        """The mask of the chosen finding at the slider's threshold, in a thread."""
        self._mark(self.slider.value() / STEPS)

    def _reset(self) -> None:
        self._settle.stop()
        chosen = self._chosen()
        if chosen is not None:
            self._set_slider(chosen[0].mask_level)
            self._mark(None)

    def _mark(self, threshold: float | None) -> None:
        chosen = self._chosen()
        if chosen is None:
            return
        finding, layer = chosen
        layer.metadata.pop("threshold", None)
        if threshold is not None:
            layer.metadata["threshold"] = threshold
        self._start(lambda mask: self._put(layer, finding, mask, threshold), finding.mask, threshold)

    def _put(self, layer: Labels, finding: Finding, mask: np.ndarray, threshold: float | None) -> None:
        """Show a mask, unless the slider has moved on since."""
        if layer in self.viewer.layers and layer.metadata.get("threshold") == threshold:
            layer.data = to_layer(mask.astype(np.uint8), finding.image)  # type: ignore[assignment]

    def jump(self) -> None:
        """Show the peak of the chosen finding."""
        chosen = self._chosen()
        peak = None if chosen is None else chosen[0].peak
        if chosen is None or peak is None:
            return
        finding, layer = chosen
        index = [peak.index[axis] for axis in axis_order(finding.image)]
        jump_to(self.viewer, affine_of(layer), index)

    def _choose_target(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Save masks into")
        if folder:
            self.save(folder)

    def save(self, folder: str | Path) -> None:
        """Write the masks as their layers show them, edits included, in a thread; see `desk.save_masks`."""
        if self.findings is None:
            return
        findings, image = self.findings, self.findings.image
        shown = [(n, m) for n, m in zip(findings.mask_names, self.masks, strict=True) if m in self.viewer.layers]
        masks = [(name, to_native(np.asarray(layer.data) > 0, image)) for name, layer in shown]
        self._start(lambda paths: self._say(_saved_words(paths, folder)), save_masks, folder, masks, image)


def _remark_words(finding: Finding) -> str:
    return f"{finding.query}: " + "; ".join(w for w in (finding.verdict, finding.where, finding.remark) if w)


def _saved_words(paths: list[Path], folder: str | Path) -> str:
    return f"{len(paths)} {'mask' if len(paths) == 1 else 'masks'} in {folder}"
