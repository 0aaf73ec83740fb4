"""The report's figures: matplotlib figures made without pyplot, and their SVG with colours that follow the page.

Every colour is one of `COLOURS`. `to_svg` writes it as `var(--name, #hex)`, so that a page which defines the variables
restyles the figure (light and dark) and a file opened alone keeps its own colours.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from diffmix.evaluation.intervals import proportion_interval
from diffmix.report.text import columns, short_count, short_size, shown

# The eight series are Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = {
    "ink": "#1f2328",
    "muted": "#59636f",
    "line": "#d5dbe1",
    "paper": "#fefefe",
    "series-1": "#0b6bcb",
    "series-2": "#c2570c",
    "series-3": "#0f8a5f",
    "series-4": "#a3478f",
    "series-5": "#8a6d00",
    "series-6": "#3f4fb5",
    "series-7": "#b3261e",
    "series-8": "#4d7c0f",
}
_INK, _MUTED, _LINE, _PAPER = (COLOURS[name] for name in ("ink", "muted", "line", "paper"))
_FIRST, _SECOND, _WRONG = COLOURS["series-1"], COLOURS["series-2"], COLOURS["series-7"]
_SMALL = 8.5  # points


class TradeOffPoint(NamedTuple):
    """One run in the trade-off figure. Missing costs leave it out of that panel."""

    accuracy: float  # in [0, 1]
    low: float | None  # of accuracy's interval
    high: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None


def series_colour(index: int) -> str:
    """The name in `COLOURS` of the index-th run (from 0); after eight they begin again."""
    return f"series-{index % 8 + 1}"


def training_curves(histories: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss (train and validation) and validation accuracy by optimiser step; several seeds are overlaid.

    Args:
        histories: one list a seed of the records in metrics.jsonl: step, train/loss, validation/loss,
            validation/accuracy, each of which may be missing in a record.
    """
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    panels = (
        (loss, "train/loss", _SECOND, "train"),
        (loss, "validation/loss", _FIRST, "validation"),
        (accuracy, "validation/accuracy", _FIRST, None),
    )
    for axes, key, colour, label in panels:
        for number, history in enumerate(histories):
            x, y = _series(history, key)
            if x:
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linewidth=1.6,
                    alpha=0.85,
                    marker="o" if len(x) <= 40 else None,
                    markersize=3.2,
                    label=label if number == 0 else None,
                )
    loss.set_title("Loss, nats")
    accuracy.set_title("Validation accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    if loss.get_legend_handles_labels()[0]:
        loss.legend(frameon=False, fontsize=_SMALL, labelcolor=_INK)
    for axes in (loss, accuracy):
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _style(axes)
    return figure


def confusion_figure(confusion: ArrayLike, labels: Sequence[str]) -> Figure:
    """The confusion matrix, each row divided by its sum: what became of the examples of that label.

    The diagonal is blue, mistakes are red. Shade grows with the square root of the share, so that rare mistakes show.
    Up to 12 classes each cell says its share in per cent; above 60 classes the names are left out.

    Args:
        confusion: [C, C] counts, row = the label, column = the prediction.
        labels: [C] names.
    """
    counts = np.asarray(confusion)
    classes = len(labels)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = classes <= 60
    names = [shown(label, 22) for label in labels]
    # A cell of half an inch while it holds a number, of a fifth once it need only show its shade.
    side = classes * (0.52 if classes <= 12 else max(0.2, 0.34 - 0.004 * classes))
    margin = 0.5 + (0.075 * max(map(columns, names)) if named else 0)
    side = max(side, 2.8)  # few classes get larger cells
    figure = Figure(figsize=(side + margin, side + margin), layout="constrained")
    axes = figure.subplots()
    for i, j in np.argwhere(counts > 0):
        value = float(share[i, j])
        shade = value**0.5
        colour = _FIRST if i == j else _WRONG
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, alpha=max(shade, 0.06), linewidth=0))
        if classes <= 12:
            text = f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"
            # Above 60 % opacity the cell is dark on a light page and light on a dark one: the paper's colour reads.
            axes.text(j, i, text, ha="center", va="center", fontsize=_SMALL, color=_PAPER if shade > 0.6 else _INK)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    _style(axes, grid=False)
    if named:
        size = _SMALL if classes <= 12 else 7.5
        upright = 0.09 * max(map(columns, names)) > side / classes  # names wider than their cell stand on end
        axes.set_xticks(range(classes), names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    # Hairlines between the cells lead the eye from a cell to its names.
    for position in np.arange(0.5, classes - 1):
        axes.axhline(position, color=_LINE, linewidth=0.5, zorder=0.5)
        axes.axvline(position, color=_LINE, linewidth=0.5, zorder=0.5)
    return figure


def reliability_diagram(reliability: Sequence[Mapping[str, Any]], *, repeats: int = 1) -> Figure:
    """Accuracy against confidence with Wilson 95 % intervals, over a histogram of the confidences.

    Args:
        reliability: one mapping a bin: low, high, confidence, accuracy, count, as `evaluation.reliability` gives them;
            at least one bin holds an example.
        repeats: how many models' predictions of the same examples the counts add up. The same examples seen again are
            no new evidence, so the intervals stand on count / repeats of them.
    """
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    filled = [row for row in reliability if row["count"]]
    low, width, count, confidence, accuracy = (
        np.array(column, np.float64)
        for column in zip(
            *((b["low"], b["high"] - b["low"], b["count"], b["confidence"], b["accuracy"]) for b in filled), strict=True
        )
    )
    axes.bar(low, accuracy, width, align="edge", color=_FIRST, alpha=0.25, linewidth=0)
    trials = np.maximum(count / repeats, 1)
    bottom, top = proportion_interval(np.clip(accuracy * trials, 0, trials), trials)
    errors = np.maximum([accuracy - bottom, top - accuracy], 0)
    axes.errorbar(confidence, accuracy, errors, fmt="o", color=_FIRST, markersize=4, linewidth=1.3, capsize=2)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy")
    histogram.bar(low, count, width, align="edge", color=_MUTED, alpha=0.6, linewidth=0)
    histogram.set_ylabel("examples")
    histogram.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    histogram.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    histogram.set_xlabel("confidence of the predicted class")
    histogram.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    histogram.xaxis.set_major_formatter(PercentFormatter(1.0))
    for each in (axes, histogram):
        _style(each)
    return figure


def trade_off(points: Sequence[TradeOffPoint]) -> Figure:
    """Accuracy against training speed and against peak memory; run i is marked with the number i + 1.

    Up and to the right is better for speed, up and to the left for memory. An axis whose costs span more than a factor
    of three is logarithmic.
    """
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    _scatter(
        speed, points, [point.tokens_per_second for point in points], "training speed, tokens a second →", short_count
    )
    _scatter(memory, points, [point.peak_memory_bytes for point in points], "← peak memory", short_size)
    speed.set_ylabel("accuracy")
    return figure


def _scatter(
    axes: Axes, points: Sequence[TradeOffPoint], costs: Sequence[float | None], label: str, form: Callable[[float], str]
) -> None:
    known = [cost for cost in costs if cost and cost > 0]
    for index, (point, cost) in enumerate(zip(points, costs, strict=True)):
        if not cost or cost <= 0:
            continue
        colour = COLOURS[series_colour(index)]
        if point.low is not None and point.high is not None:
            axes.plot([cost, cost], [point.low, point.high], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(cost, point.accuracy, "o", color=colour, markersize=12, markeredgecolor=_PAPER)
        axes.annotate(
            str(index + 1),
            (cost, point.accuracy),
            ha="center",
            va="center_baseline",
            color=_PAPER,
            fontsize=_SMALL,
            fontweight="bold",
        )
    if not known:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=_MUTED)
    elif max(known) > 3 * min(known):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: form(x) if _leading_digit(x) in (2, 5) else ""))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: form(x)))
    axes.set_xlabel(label)
    axes.margins(x=0.15, y=0.2)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _style(axes)


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: text stays text, colours are CSS variables, no network.

    Args:
        figure: one of this module's.
        label: what the figure shows, for readers who cannot see it (aria-label); it also keeps the ids of a page's
            figures apart.
    """
    buffer = io.StringIO()
    # Both settings exist as rcParams only; the context puts them back.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), warnings.catch_warnings():
        # matplotlib measures with its own font; the browser draws with one that has the character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    width = 96 * figure.get_figwidth()  # CSS pixels; below 70 % of it the page scrolls the figure instead
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # one rule on *, which would reach the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1, ... in every figure; nothing refers to them
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        lambda match: (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{match[1]}" style="max-width:{width:.0f}px;min-width:{0.7 * width:.0f}px" role="img" '
            f'aria-label="{html.escape(label)}">'
        ),
        svg,
        count=1,
    )
    for name, colour in COLOURS.items():
        svg = re.sub(rf"(?<=[:\s]){colour}\b", f"var(--{name}, {colour})", svg)
    return svg.strip()


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [
        (record["step"], record[key])
        for record in history
        if isinstance(record.get(key), int | float) and np.isfinite(record[key])
    ]
    return [x for x, _ in points], [y for _, y in points]


def _style(axes: Axes, *, grid: bool = True) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=_SMALL, which="both", length=3, pad=4)
    axes.title.set(color=_INK, fontsize=10)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
    if grid:
        axes.grid(color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)


def _leading_digit(value: float) -> int:
    return round(value / 10 ** np.floor(np.log10(value) + 1e-9))
