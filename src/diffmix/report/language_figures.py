"""Figures of language models: diffusion times by layer and head, metrics by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffmix.report.drawing import (
    COLOURS,
    INK,
    LINE,
    MUTED,
    SMALL,
    number_axis,
    series_colour,
    series_marker,
    style_axes,
)
from diffmix.report.text import shown


class DepthRow(NamedTuple):
    """A mean over seeds in the figure by depth, for one variant at one depth."""

    variant: str
    depth: int  # layers
    mean: float
    low: float | None  # of the mean's interval; None: too few seeds for one
    high: float | None


class DepthPanel(NamedTuple):
    """One metric by depth."""

    title: str
    rows: Sequence[DepthRow]
    noise_floor: Sequence[DepthRow] = ()  # what each mean would be for a perfectly calibrated model


def learned_times(times: Sequence[Sequence[Sequence[Mapping[str, float]]]], *, start: float | None = None) -> Figure:
    """Diffusion times by layer and head: dots are means over the test tokens, bars reach from the least to the greatest.

    In each layer the heads stand from left to right, those of the first seed first; seeds differ in colour and marker.

    Args:
        times: seed → layer → head → mean, min and max of t, all above 0.
        start: the time that training began with, dashed.
    """
    layers = max(map(len, times))
    heads = [max(len(seed[layer]) if layer < len(seed) else 0 for seed in times) for layer in range(layers)]
    slots = len(times) * max(heads)
    width = min(16.0, max(5.2, 1.2 + 0.085 * (slots + 2) * layers))
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    axes = figure.subplots()
    size = max(2.6, min(5.0, 36 * (width - 1.2) / (layers * (slots + 2))))
    everything = [] if start is None else [start]
    for number, seed in enumerate(times):
        rows = [
            (layer + (number * max(heads) + head + 0.5) / slots * 0.84 - 0.42, time)
            for layer, row in enumerate(seed)
            for head, time in enumerate(row)
        ]
        x, (mean, low, high) = (
            [place for place, _ in rows],
            ([time[key] for _, time in rows] for key in ("mean", "min", "max")),
        )
        everything += low + high
        colour = COLOURS[series_colour(number)]
        axes.vlines(x, low, high, color=colour, alpha=0.45, linewidth=max(0.8, 0.4 * size))
        axes.plot(
            x, mean, series_marker(number), color=colour, markersize=size, markeredgewidth=0, label=f"seed {number}"
        )
    if start is not None:
        axes.axhline(start, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"start {start:.3g}",
            (1, start),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=SMALL,
        )
    number_axis(axes, "y", everything, lambda y: f"{y:.3g}")
    for edge in range(1, layers):
        axes.axvline(edge - 0.5, color=LINE, linewidth=0.8)
    axes.set_xlim(-0.5, layers - 0.5)
    axes.set_xticks(range(layers), [str(layer + 1) for layer in range(layers)])
    axes.set_xlabel(f"layer, in each its {_counted(heads)} from left to right")
    axes.set_ylabel("diffusion time t")
    style_axes(axes)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    if len(times) > 1:
        _legend_below(figure, axes)
    return figure


def by_depth(panels: Sequence[DepthPanel]) -> Figure:
    """Metrics by number of layers, a line for each variant, with the means' intervals.

    A short grey bar under a point is its noise floor; a panel that has them begins at 0. Variants stand side by side at
    each depth, so that intervals do not hide one another.

    Args:
        panels: one metric each; every variant has one colour and marker in all of them, in order of appearance.
    """
    variants = list(dict.fromkeys(row.variant for panel in panels for row in panel.rows))
    depths = sorted({row.depth for panel in panels for row in panel.rows})
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    # Depths are places of equal width: 4, 8 and 12 are steps of a design, not of a scale.
    spread = min(0.6, 0.11 * len(variants))

    def place(row: DepthRow) -> float:
        aside = (variants.index(row.variant) + 0.5) / len(variants) - 0.5
        return depths.index(row.depth) + spread * aside

    for axes, panel in zip(all_axes, panels, strict=True):
        for number, variant in enumerate(variants):
            rows = sorted((row for row in panel.rows if row.variant == variant), key=lambda row: row.depth)
            if not rows:
                continue
            colour = COLOURS[series_colour(number)]
            x = [place(row) for row in rows]
            axes.plot(x, [row.mean for row in rows], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(x, [row.mean for row in rows], series_marker(number), color=colour, markersize=5.5, label=variant)
            for where, row in zip(x, rows, strict=True):
                if row.low is not None and row.high is not None:
                    axes.plot([where, where], [row.low, row.high], color=colour, linewidth=1.6)
        floors = [row for row in panel.noise_floor if row.variant in variants and row.depth in depths]
        if floors:
            half = 0.4 * spread / len(variants)
            axes.hlines(
                [row.mean for row in floors],
                [place(row) - half for row in floors],
                [place(row) + half for row in floors],
                color=MUTED,
                linewidth=1.8,
                label="noise floor",
            )
            axes.set_ylim(bottom=min(0.0, *(row.low for row in panel.rows if row.low is not None), 0.0))
        axes.set_xlim(-0.5, len(depths) - 0.5)
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.set_xlabel("layers")
        axes.set_title(panel.title)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        style_axes(axes)
        axes.grid(visible=False, axis="x")
    _legend_below(figure, *all_axes)
    return figure


def _legend_below(figure: Figure, *all_axes: Axes) -> None:
    """One legend for all axes, below them, in at most four columns."""
    entries = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()),
        [shown(label, 30) for label in entries],
        loc="outside lower center",
        ncols=min(4, len(entries)),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
    )


def _counted(heads: Sequence[int]) -> str:
    if len(set(heads)) == 1:
        return f"{heads[0]} heads" if heads[0] > 1 else "head"
    return "heads"
