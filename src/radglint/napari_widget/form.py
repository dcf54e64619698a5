"""The controls of the dock widget, without what they do."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtGui import QAction, QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QMenu,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSlider,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from radglint.finding import Finding
from radglint.page_shell import DISCLAIMER

COLUMNS = ("query", "prob.", "decision", "note")
WIDTHS_PX = (100, 45, 80)  # of the first three; a dock is narrow
STEPS = 1000
"""Positions of the threshold slider: 0 is probability 0, `STEPS` is 1."""
EXAMPLE = "one query a line, for example\npleural effusion\nno pneumothorax"


class AskForm(QWidget):
    """Image, queries, model, answers, threshold: every control is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_box = QComboBox()
        self.open_button, self.open_file, self.open_folder = self._open_button()
        self.query_box = QPlainTextEdit()
        self.query_box.setPlaceholderText(EXAMPLE)
        self.query_box.setTabChangesFocus(True)
        self.query_box.setMinimumHeight(60)
        self.query_box.setMaximumHeight(120)
        self.model_box = QComboBox()
        self.model_box.setEditable(True)  # a folder can be typed
        self.ask_button = QPushButton("Ask")
        self.busy_bar = QProgressBar()
        self.busy_bar.setRange(0, 0)  # no end is known
        self.busy_bar.setTextVisible(False)
        self.busy_bar.setVisible(False)
        self.table = AnswerTable()
        self.remark = QLabel()
        self.remark.setWordWrap(True)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(1, STEPS - 1)
        self.slider.setToolTip("Marks what is at or above this probability; replaces strokes of the brush.")
        self.slider_label = QLabel("-")
        self.reset_button = QPushButton("Reset")
        self.reset_button.setToolTip("Back to the threshold of the model.")
        self.jump_button = QPushButton("Jump to peak")
        self.save_button = QPushButton("Save masks...")
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._lay_out()

    def _open_button(self) -> tuple[QToolButton, QAction, QAction]:
        button, menu = QToolButton(), QMenu(self)
        actions = menu.addAction("File..."), menu.addAction("DICOM folder...")
        button.setText("Open  ")  # room for the arrow
        button.setMenu(menu)
        button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        return button, *actions

    def _lay_out(self) -> None:
        top = QGridLayout()
        top.addWidget(QLabel("Image"), 0, 0)
        top.addWidget(self.layer_box, 0, 1)
        top.addWidget(self.open_button, 0, 2)
        top.addWidget(QLabel("Model"), 1, 0)
        top.addWidget(self.model_box, 1, 1, 1, 2)
        top.setColumnStretch(1, 1)
        notice = QLabel(DISCLAIMER)
        notice.setWordWrap(True)
        column = QVBoxLayout(self)
        column.addLayout(top)
        column.addWidget(self.query_box)
        column.addWidget(self.ask_button)
        column.addWidget(self.busy_bar)
        column.addWidget(self.table, 1)
        column.addWidget(self.remark)
        column.addLayout(_row(QLabel("Threshold"), self.slider, self.slider_label, self.reset_button))
        column.addLayout(_row(self.jump_button, self.save_button))
        column.addWidget(self.status)
        column.addWidget(notice)


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row


class AnswerTable(QTableWidget):
    """One row per query; one row is chosen at a time, and nothing can be typed into it."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(list(COLUMNS))
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setWordWrap(False)  # what does not fit is in the tool tip, and of the chosen row below the table
        self.setMinimumHeight(120)
        header, side = self.horizontalHeader(), self.verticalHeader()
        assert header is not None
        assert side is not None
        side.setVisible(False)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setStretchLastSection(True)
        for column, width in enumerate(WIDTHS_PX):
            self.setColumnWidth(column, width)

    def show_findings(self, findings: Sequence[Finding], colours: Sequence[str]) -> None:
        """Fill the table anew; the query is written in the colour of its mask."""
        self.setRowCount(len(findings))
        for row, (finding, colour) in enumerate(zip(findings, colours, strict=True)):
            texts = (finding.query, f"{finding.probability:.2f}", finding.verdict, finding.remark)
            items = [QTableWidgetItem(text) for text in texts]
            items[0].setForeground(QColor(colour))
            for column, item in enumerate(items):
                item.setToolTip(item.text())
                self.setItem(row, column, item)

    def chosen(self) -> int | None:
        """The chosen row."""
        items = self.selectedItems()
        return items[0].row() if items else None
