"""Plots of an evaluation as inline SVG: ROC, precision-recall, reliability, threshold sweep, prompt styles, forest.

The same results give the same bytes (of one matplotlib version): no date, no random ids, text stays text. Colours are
variables of the page's style (`data/evaluation.css`), so that a plot is legible in dark, in light and in print; lines
differ in their dashes as well as in colour (Okabe and Ito's palette).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from radglint.evaluation.figure_svg import GRID, QUIET, SERIES, TEXT, figure_to_svg
from radglint.evaluation.measure_names import measure
from radglint.evaluation.results import ClassResult, Estimate, ProtocolResult, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SQUARE_IN = (3.5, 3.5)
WIDTH_IN = 5.0
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = ("o", "D", "s", "^")
_SETTINGS = {
    "svg.hashsalt": "radglint", "svg.fonttype": "none", "svg.image_inline": True, "path.simplify": False,
    "font.family": "DejaVu Sans", "font.size": 9, "text.parse_math": False, "text.usetex": False,
    "axes.unicode_minus": False, "axes.edgecolor": QUIET, "axes.labelcolor": QUIET, "axes.linewidth": 0.8,
    "text.color": TEXT, "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET, "grid.color": GRID, "grid.linewidth": 0.7, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "axes.axisbelow": True,
    "xtick.major.size": 0, "ytick.major.size": 0, "figure.dpi": 72, "savefig.dpi": 72, "legend.labelcolor": TEXT,
}  # fmt: skip


def _drawn(
    size_in: tuple[float, float], title: str, draw: Callable[[Figure], None], bottom_in: float | None = None
) -> str:
    """A figure with the fixed settings, whatever the user's own matplotlib settings are.

    Args:
        size_in: width and height in inches.
        title: for readers that cannot see it.
        draw: draws into the figure.
        bottom_in: margin below the axes in inches, the others being known; None measures all labels, at twice the time.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)  # pyright: ignore
        figure = Figure(figsize=size_in, layout="constrained" if bottom_in is None else None)
        if bottom_in is not None:
            wide, high = size_in
            figure.subplots_adjust(0.56 / wide, bottom_in / high, 1 - 0.08 / wide, 1 - 0.08 / high)
        draw(figure)
        return figure_to_svg(figure, title)


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid(True)


def roc_figure(one: ClassResult) -> str:
    """ROC of a class with the line of chance. Both axes are rates in [0, 1]; empty string without points."""
    if not one.curves.roc:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _unit_square(axes, "1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color=QUIET, linestyle=_DASHES[2], linewidth=1.2, label="chance")
        x, y = zip(*one.curves.roc, strict=True)
        axes.plot(x, y, color=SERIES[0], label=f"{one.positives} of {one.n} positive")
        axes.legend(loc="lower right")

    return _drawn(SQUARE_IN, f"ROC curve of {one.name}", draw, 0.45)


def pr_figure(one: ClassResult) -> str:
    """Precision over recall with the share of positives, which guessing reaches; empty string without points."""
    if not one.curves.pr or not one.n:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _unit_square(axes, "recall (sensitivity)", "precision")
        share = one.positives / one.n
        axes.axhline(share, color=QUIET, linestyle=_DASHES[2], linewidth=1.2, label=f"share of positives {share:.2g}")
        x, y = zip(*one.curves.pr, strict=True)
        axes.plot(x, y, color=SERIES[0], label="precision")
        axes.legend(loc="upper right" if share < 0.5 else "lower left")

    return _drawn(SQUARE_IN, f"Precision and recall of {one.name}", draw, 0.45)


def reliability_figure(one: ClassResult) -> str:
    """Observed frequency over predicted probability, and below it how many answers lie in each bin."""
    bins = [each for each in one.curves.reliability if each.count]
    if not bins:
        return ""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1], gridspec_kw={"hspace": 0.1})
        _unit_square(top, "", "observed frequency")
        top.plot([0, 1], [0, 1], color=QUIET, linestyle=_DASHES[2], linewidth=1.2, label="perfectly calibrated")
        points = [(each.probability, each.frequency) for each in bins]
        top.plot(*zip(*points, strict=True), color=SERIES[0], marker="o", markersize=4, label="measured")
        top.legend(loc="upper left")
        _count_bars(bottom, bins)

    return _drawn((SQUARE_IN[0], SQUARE_IN[1] + 0.5), f"Reliability of {one.name}", draw, 0.45)


def _count_bars(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    counts = [each.count for each in bins]
    axes.bar([each.probability for each in bins], counts, width=0.035, color=SERIES[0], linewidth=0)
    axes.set(ylim=(0, max(counts) * 1.25), xlabel="predicted probability", ylabel="answers")
    axes.set_yticks([0, max(counts)], ["0", f"{max(counts)}"])
    axes.grid(True, axis="x")


def sweep_figure(one: ClassResult) -> str:
    """Dice, sensitivity and specificity over the threshold; thresholds that were chosen or fixed are marked."""
    points = one.curves.sweep
    if not points:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, name in enumerate(("dice", "sensitivity", "specificity")):
            xy = [(each.threshold, getattr(each, name)) for each in points if getattr(each, name) is not None]
            if xy:
                label = "Dice" if name == "dice" else name
                axes.plot(*zip(*xy, strict=True), color=SERIES[number], linestyle=_DASHES[number], label=label)
        _mark_thresholds(axes, one.curves.thresholds)
        axes.set(ylim=(-0.02, 1.02), xlabel="threshold", ylabel="Dice or rate")
        axes.grid(True)
        figure.legend(loc="lower center", ncols=2, handlelength=2.2)

    return _drawn((SQUARE_IN[0], SQUARE_IN[1] + 0.5), f"Threshold sweep of {one.name}", draw, 1.05)


def _mark_thresholds(axes: Axes, thresholds: dict[str, float]) -> None:
    """A vertical line per threshold, from low to high."""
    for number, (name, value) in enumerate(sorted(thresholds.items(), key=lambda item: (item[1], item[0]))):
        dashes = _DASHES[number % len(_DASHES)]
        axes.axvline(value, color=TEXT, linewidth=1.0, linestyle=dashes, label=f"{name} {value:.3g}")


def styles_figure(protocol: ProtocolResult, name: str) -> str:
    """One dot per prompt style with its interval, best at the top, for the measure `name`."""
    rows = [(style.name, style.measures.get(name)) for style in protocol.styles]
    shown = [(label, (one,)) for label, one in rows if one is not None and one.value is not None]
    if not shown:
        return ""
    ranked = sorted(shown, key=lambda row: (-(row[1][0].value or 0.0), row[0]))
    return _forest(ranked, (), name, f"{measure(name).title} by prompt style, {protocol.title}")


def forest_figure(protocol: ProtocolResult, name: str) -> str:
    """Each class as a dot with its interval, a row per class and a mark per column of the protocol; the mean last."""
    rows = [
        (one.name, tuple(one.measures.get(column, {}).get(name) for column in protocol.columns))
        for one in protocol.classes
    ]
    rows = [row for row in rows if any(each is not None and each.value is not None for each in row[1])]
    if not rows:
        return ""
    means = tuple(protocol.means[column].get(name) for column in protocol.columns)
    if any(each is not None and each.value is not None for each in means):
        rows.append(("mean", means))
    return _forest(rows, protocol.columns, name, f"{measure(name).title} by class, {protocol.title}")


_Row = tuple[str, Sequence[Estimate | None]]


def _forest(rows: Sequence[_Row], columns: Sequence[str], name: str, title: str) -> str:
    known = measure(name)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lanes = max(1, len(rows[0][1]))
        for lane in range(lanes):
            _lane(axes, rows, lane, lanes, columns[lane] if columns else None)
        if known.chance is not None:
            axes.axvline(known.chance, color=QUIET, linestyle=_DASHES[2], linewidth=1.2, label="chance")
        axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows])
        axes.tick_params(axis="y", labelcolor=TEXT)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{known.title} with interval")
        axes.grid(True, axis="x")
        if columns or known.chance is not None:
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=lanes + 1, borderaxespad=0.2)

    lanes = max(1, len(rows[0][1]))
    return _drawn((WIDTH_IN, 0.85 + len(rows) * (0.2 + 0.09 * lanes)), title, draw)


def _lane(axes: Axes, rows: Sequence[_Row], lane: int, lanes: int, label: str | None) -> None:
    """One column of the protocol: dots and intervals, a little below the lane before."""
    offset = (lane - (lanes - 1) / 2) * 0.62 / lanes
    colour, dot = SERIES[lane % len(SERIES)], _MARKERS[lane % len(_MARKERS)]
    found = [(each[lane], row + offset) for row, (_, each) in enumerate(rows)]
    for one, y in found:
        if one is not None and one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
    values = [(one.value, y) for one, y in found if one is not None and one.value is not None]
    if values:
        axes.plot(*zip(*values, strict=True), color=colour, marker=dot, markersize=5, linestyle="none", label=label)


def _short(label: str, length: int = 30) -> str:
    return label if len(label) <= length else label[: length - 1] + "\u2026"
