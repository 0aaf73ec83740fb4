"""How the report's figures look and are written: colours, axes, SVG inside a page, PNG and SVG files.

Every colour is one of `COLOURS`. `to_svg` writes it as `var(--name, #hex)`, so that a page which defines the variables
restyles the figure (light and dark) and a file opened alone keeps its own colours.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
INK, MUTED, LINE, PAPER = (COLOURS[name] for name in ("ink", "muted", "line", "paper"))
SMALL = 8.5  # points
_MARKERS = "osD^vPX*"


def series_colour(index: int) -> str:
    """The name in `COLOURS` of the index-th run (from 0); after eight they begin again."""
    return f"series-{index % 8 + 1}"


def series_marker(index: int) -> str:
    """The marker that goes with the index-th colour, so that no series is told by its colour alone."""
    return _MARKERS[index % len(_MARKERS)]


def style_axes(axes: Axes, *, grid: bool = True) -> None:
    """The look that all figures share."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, which="both", length=3, pad=4)
    axes.title.set(color=INK, fontsize=10)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    if grid:
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)


def number_axis(axes: Axes, side: Literal["x", "y"], values: Sequence[float], form: Callable[[float], str]) -> None:
    """An axis for positive `values`, logarithmic where they span more than a factor of three."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    if values and max(values) > 3 * min(values):
        axes.set(**{f"{side}scale": "log"})
        digits = (2, 5) if max(values) > 10 * min(values) else (2, 3, 5, 7)
        axis.set_minor_formatter(FuncFormatter(lambda x, _: form(x) if _leading_digit(x) in digits else ""))
    elif values:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: form(x)))


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: text stays text, colours are CSS variables, no network.

    Args:
        figure: one whose colours are all of `COLOURS`.
        label: what the figure shows, for readers who cannot see it (aria-label); it also keeps the ids of a page's
            figures apart.
    """
    buffer = io.StringIO()
    with _text_as_text(label):
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


def to_files(figure: Figure, name: str) -> dict[str, bytes]:
    """The figure as files: `name.png` (200 dots an inch) and `name.svg`, both on the light page's ground."""
    files = {}
    nameless: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
    }  # the same bytes each time
    for ending, metadata in nameless.items():
        buffer = io.BytesIO()
        with _text_as_text(name):
            figure.savefig(buffer, format=ending, facecolor=PAPER, dpi=200, metadata=metadata)
        files[f"{name}.{ending}"] = buffer.getvalue()
    return files


@contextlib.contextmanager
def _text_as_text(salt: str) -> Iterator[None]:
    """Save with text that stays text, and ids made from `salt`: both are rcParams, which the context puts back."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        # matplotlib measures with its own font; the browser draws with one that has the character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _leading_digit(value: float) -> int:
    return round(value / 10 ** np.floor(np.log10(value) + 1e-9))
