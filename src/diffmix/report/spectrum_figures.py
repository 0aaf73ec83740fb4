"""Figures of `diffmix spectrum`: gaps by length, spectra, the map of the spectrum by diffusion, reach by hops, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from diffmix.errors import RequestError, RunError
from diffmix.report.drawing import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    SMALL,
    number_axis,
    series_colour,
    series_marker,
    style_axes,
    to_files,
)
from diffmix.report.patterns import by_pattern, pattern_name
from diffmix.report.text import short_count

_PANELS = 12  # spectra in a figure


def spectrum_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """The four figures of a result of `measure_spectrum`: gap, density, map and reach."""
    return {
        "gap": gap_figure(result["graphs"]),
        "density": density_figure(result["spectra"]),
        "map": map_figure(result["maps"][0]),
        "reach": reach_figure(result["graphs"]),
    }


def gap_figure(graphs: Sequence[Mapping[str, Any]]) -> Figure:
    """λ_2 by length, a line for each pattern; dashed, the random regular graphs of the same degrees."""
    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    axes = figure.subplots()
    dashed: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3))}
    seen = []
    for number, (name, lengths) in enumerate(by_pattern(graphs).items()):
        rows = lengths.values()
        x, y = [row["n"] for row in rows], [row["gap"] for row in rows]
        axes.plot(x, y, **_line(number), label=name)
        seen += [value for value in y if value > 0]
        regular = [row["regular"]["gap"] for row in rows if "regular" in row]
        if len(regular) == len(x):
            axes.plot(x, regular, **dashed)
            seen += regular
    if any("regular" in row for row in graphs):
        axes.plot([], [], **dashed, label="random regular graphs of these degrees")
    lengths = sorted({row["n"] for row in graphs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short_count(n) if n >= 10_000 else f"{n:,}" for n in lengths])
    number_axis(axes, "y", seen, lambda y: f"{y:.3g}")
    axes.set_xlabel("tokens n")
    axes.set_ylabel("spectral gap λ₂")
    _finish(axes)
    return figure


def density_figure(spectra: Sequence[Mapping[str, Any]]) -> Figure:
    """All Laplacian eigenvalues of each pattern (filled) and of the random regular graph of its degree (line)."""
    spectra = spectra[:_PANELS]
    across = min(3, len(spectra))
    down = -(-len(spectra) // across)
    figure = Figure(figsize=(3.2 * across, 0.5 + 1.9 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    # The bins of `diffmix.experiments.spectrum`: equal ones from 0 to 2.
    edges = np.linspace(0.0, 2.0, len(spectra[0]["counts"]) + 1)
    for axes, row in zip(grid, spectra, strict=False):
        for key, colour, fill, label in (
            ("counts", COLOURS["series-1"], True, "pattern"),
            ("regular_counts", COLOURS["series-2"], False, "random regular"),
        ):
            if key in row:
                share = np.asarray(row[key]) / row["n"] / (edges[1] - edges[0])
                alpha = 0.45 if fill else 1.0
                axes.stairs(share, edges, fill=fill, color=colour, alpha=alpha, linewidth=1.2, label=label)
        axes.set_title(pattern_name(row))
        axes.set_xlim(0.0, 1.5)
        style_axes(axes)
        axes.title.set_fontsize(SMALL)
    for axes in grid[len(spectra) :]:
        axes.set_visible(False)
    grid[0].legend(frameon=False, fontsize=SMALL, labelcolor=INK)
    figure.supxlabel(f"eigenvalue λ of the Laplacian, {spectra[0]['n']:,} tokens", color=INK, fontsize=9)
    figure.supylabel("density", color=INK, fontsize=9)
    return figure


def map_figure(mapped: Mapping[str, Any]) -> Figure:
    """μ → μ̃: the formula of each choice of coefficients as a line, what the operator does as points; the limit dashed."""
    from diffmix.ops.coefficients import heat, personalized_pagerank
    from diffmix.spectrum import diffused_eigenvalue, pagerank_limit

    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    axes = figure.subplots()
    mu = np.linspace(min([*mapped["mu"], 0.0]), 1.0, 200)
    for number, row in enumerate(mapped["rows"]):
        if row["coefficients"] == "ppr":
            theta, label = personalized_pagerank(row["alpha"], row["hops"]), f"α = {row['alpha']:g}, K = {row['hops']}"
        else:
            theta, label = heat(row["time"], row["hops"]), f"heat, t = {row['time']:g}"
        style = _line(number)
        axes.plot(mu, diffused_eigenvalue(mu, theta), color=style["color"], linewidth=1.2)
        axes.plot(mapped["mu"], row["points"], **{**style, "linestyle": ""}, label=label)
    for alpha in sorted({row["alpha"] for row in mapped["rows"] if row["coefficients"] == "ppr" and row["alpha"] > 0}):
        limit = 1.0 - pagerank_limit(1.0 - mu, alpha)
        axes.plot(mu, limit, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"α = {alpha:g}, K → ∞")
    axes.set_xlabel("eigenvalue μ of one hop")
    axes.set_ylabel("eigenvalue μ̃ after diffusion")
    _finish(axes)
    return figure


def reach_figure(graphs: Sequence[Mapping[str, Any]]) -> Figure:
    """The share of pairs joined by at most k hops at the greatest length."""
    longest = max(row["n"] for row in graphs)
    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    axes = figure.subplots()
    most = 1
    for number, row in enumerate(row for row in graphs if row["n"] == longest):
        if row["reached"]:
            hops = np.arange(1, len(row["reached"]) + 1)
            style: dict[str, Any] = _line(number) | ({} if len(hops) <= 40 else {"marker": None})
            axes.plot(hops, row["reached"], **style, label=pattern_name(row))
            most = max(most, len(hops))
    if most > 20:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True) if most <= 20 else axes.xaxis.get_major_locator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(f"hops, {longest:,} tokens")
    axes.set_ylabel("pairs of tokens joined")
    _finish(axes)
    return figure


def distance_figure(result: Mapping[str, Any]) -> Figure:
    """Total variation to full attention by K, a line for each α or t, a panel for each layer; dashed, what it is measured by."""
    layers = result["model"]["layers"]
    figure = Figure(figsize=(0.8 + 2.9 * layers, 3.4), layout="constrained")
    panels = figure.subplots(1, layers, squeeze=False, sharey=True)[0]
    lines: dict[str, list[tuple[int, str]]] = {}
    for name, facts in result["facts"].items():
        if name != "sparse":
            label = f"α = {facts['alpha']:g}" if facts["coefficients"] == "ppr" else f"heat, t = {facts['time']:g}"
            lines.setdefault(label, []).append((facts["hops"], name))
    variation = {name: np.mean(each["total_variation"], axis=1) for name, each in result["variants"].items()}
    for layer, axes in enumerate(panels):
        for number, (label, points) in enumerate(lines.items()):
            x, names = zip(*sorted(points), strict=True)
            axes.plot(x, [variation[name][layer] for name in names], **_line(number), label=label)
        for number, (name, label) in enumerate((("sparse", "sparse, K = 1, α = 0"), ("uniform", "uniform over all"))):
            style = ((0, (4, 3)), (0, (1, 2)))[number]
            axes.axhline(variation[name][layer], color=INK, linewidth=1.1, linestyle=style, label=label)
        axes.set_title(f"layer {layer + 1}")
        axes.set_xlabel("hops K")
        axes.set_ylim(bottom=0)
        style_axes(axes)
    panels[0].set_ylabel("total variation to full attention")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def claim_figures(folder: Path, names: Sequence[str], *, force: bool = False) -> None:
    """Refuse, before anything is measured, a folder that is a file or holds the figures `names`. Raises RequestError."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"figures {folder} is a file: give a folder with --figures")
    for name in names:
        file = folder / f"spectrum-{name}.png"
        if file.exists() and not force:
            raise RequestError(f"figure {file} exists: give --force to replace it, or another folder with --figures")


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write each figure as `spectrum-NAME.png` and `.svg`. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for file, content in to_files(figure, f"spectrum-{name}").items():
                (folder / file).write_bytes(content)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}): give another folder with --figures") from None


def _line(number: int) -> dict[str, Any]:
    # After eight the colours begin again: dashes and hollow markers tell those apart.
    again = number >= 8
    return {
        "color": COLOURS[series_colour(number)],
        "marker": series_marker(number),
        "linestyle": (0, (2, 1)) if again else "-",
        "markersize": 4.5,
        "markerfacecolor": PAPER if again else COLOURS[series_colour(number)],
        "markeredgewidth": 1.0 if again else 0.0,
        "linewidth": 1.4,
    }


def _finish(axes: Axes) -> None:
    style_axes(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=SMALL, labelcolor=INK)
