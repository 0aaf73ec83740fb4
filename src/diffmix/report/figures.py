"""The report's figures: matplotlib figures made without pyplot, in the colours of `diffmix.report.drawing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from diffmix.evaluation.intervals import proportion_interval
from diffmix.report.drawing import (
    COLOURS,
    INK,
    LINE,
    MUTED,
    PAPER,
    SMALL,
    number_axis,
    series_colour,
    style_axes,
)
from diffmix.report.text import columns, short_count, short_size, shown

_FIRST, _SECOND, _WRONG = COLOURS["series-1"], COLOURS["series-2"], COLOURS["series-7"]


class TradeOffPoint(NamedTuple):
    """One run in the trade-off figure. Missing costs leave it out of that panel."""

    score: float
    low: float | None  # of the score's interval
    high: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None


def training_curves(
    histories: Sequence[Sequence[Mapping[str, Any]]], score: Literal["accuracy", "perplexity"] = "accuracy"
) -> Figure:
    """Loss (train and validation) and a validation score by optimiser step; several seeds are overlaid.

    Args:
        histories: one list a seed of the records in metrics.jsonl: step, train/loss, validation/loss and
            validation/accuracy or validation/perplexity, each of which may be missing in a record.
        score: what the second panel shows. Perplexities that span more than a factor of three get a logarithmic axis.
    """
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    loss, second = figure.subplots(1, 2)
    panels = (
        (loss, "train/loss", _SECOND, "train"),
        (loss, "validation/loss", _FIRST, "validation"),
        (second, f"validation/{score}", _FIRST, None),
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
    second.set_title(f"Validation {score}")
    if score == "accuracy":
        second.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        shown_values = [y for line in second.lines for y in np.asarray(line.get_ydata()).tolist() if y > 0]
        number_axis(second, "y", shown_values, lambda y: f"{y:,.4g}" if y < 10_000 else short_count(y))
    if loss.get_legend_handles_labels()[0]:
        loss.legend(frameon=False, fontsize=SMALL, labelcolor=INK)
    for axes in (loss, second):
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        style_axes(axes)
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
    side = min(max(side, 2.8), 30.0)  # few classes get larger cells, hundreds smaller ones
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
            axes.text(j, i, text, ha="center", va="center", fontsize=SMALL, color=PAPER if shade > 0.6 else INK)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    style_axes(axes, grid=False)
    if named:
        size = SMALL if classes <= 12 else 7.5
        upright = 0.09 * max(map(columns, names)) > side / classes  # names wider than their cell stand on end
        axes.set_xticks(range(classes), names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    # Hairlines between the cells lead the eye from a cell to its names.
    for position in np.arange(0.5, classes - 1) if named else ():
        axes.axhline(position, color=LINE, linewidth=0.5, zorder=0.5)
        axes.axvline(position, color=LINE, linewidth=0.5, zorder=0.5)
    return figure


def reliability_diagram(
    reliability: Sequence[Mapping[str, Any]],
    *,
    repeats: int = 1,
    of: Literal["examples", "tokens"] = "examples",
) -> Figure:
    """Accuracy against confidence with Wilson 95 % intervals, over a histogram of the confidences.

    Args:
        reliability: one mapping a bin: low, high, confidence, accuracy, count, as `evaluation.reliability` gives them;
            at least one bin holds an example.
        repeats: how many models' predictions of the same examples the counts add up. The same examples seen again are
            no new evidence, so the intervals stand on count / repeats of them.
        of: what was predicted: the classes of examples, or the next tokens of a text.
    """
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
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
    histogram.bar(low, count, width, align="edge", color=MUTED, alpha=0.6, linewidth=0)
    histogram.set_ylabel(of)
    histogram.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    histogram.yaxis.set_major_formatter(FuncFormatter(lambda x, _: short_count(x) if x >= 10_000 else f"{x:,.0f}"))
    histogram.set_xlabel(f"confidence of the predicted {'class' if of == 'examples' else 'token'}")
    histogram.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    histogram.xaxis.set_major_formatter(PercentFormatter(1.0))
    for each in (axes, histogram):
        style_axes(each)
    return figure


def trade_off(
    points: Sequence[TradeOffPoint],
    score: Literal["accuracy", "bits per byte", "bits per dimension"] = "accuracy",
    *,
    numbers: Sequence[int] | None = None,
) -> Figure:
    """A score against training speed and against peak memory; run i is marked with numbers[i], by default i + 1.

    To the right is better for speed, to the left for memory; up for accuracy, down for bits. An axis whose costs
    span more than a factor of three is logarithmic.
    """
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    marked = list(zip(numbers or range(1, len(points) + 1), points, strict=True))
    speeds, sizes = [point.tokens_per_second for point in points], [point.peak_memory_bytes for point in points]
    _scatter(speed, marked, speeds, "training speed, tokens a second →", short_count)
    _scatter(memory, marked, sizes, "← peak memory", short_size)
    if score == "accuracy":
        speed.set_ylim(top=min(speed.get_ylim()[1], 1.02))
        speed.yaxis.set_major_formatter(PercentFormatter(1.0))
    speed.set_ylabel(score if score == "accuracy" else f"← {score}")
    return figure


def _scatter(
    axes: Axes,
    points: Sequence[tuple[int, TradeOffPoint]],
    costs: Sequence[float | None],
    label: str,
    form: Callable[[float], str],
) -> None:
    known = [cost for cost in costs if cost and cost > 0]
    for (number, point), cost in zip(points, costs, strict=True):
        if not cost or cost <= 0:
            continue
        colour = COLOURS[series_colour(number - 1)]
        if point.low is not None and point.high is not None:
            axes.plot([cost, cost], [point.low, point.high], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(cost, point.score, "o", color=colour, markersize=12, markeredgecolor=PAPER)
        axes.annotate(
            str(number),
            (cost, point.score),
            ha="center",
            va="center_baseline",
            color=PAPER,
            fontsize=SMALL,
            fontweight="bold",
        )
    if not known:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=MUTED)
    number_axis(axes, "x", known, form)
    axes.set_xlabel(label)
    axes.margins(x=0.15, y=0.2)
    style_axes(axes)


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [
        (record["step"], record[key])
        for record in history
        if isinstance(record.get(key), int | float) and np.isfinite(record[key])
    ]
    return [x for x, _ in points], [y for _, y in points]
