"""The figures of a page: each stands in the page as SVG, and can be had as files."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from diffmix.report.drawing import to_files, to_svg
from diffmix.report.text import shown


class Album:
    """Collects a page's figures, in order."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def place(self, name: str, figure: Figure, described: str, caption: str) -> str:
        """The figure as HTML.

        Args:
            name: of its files, without an ending; unique in the album.
            figure: drawn in the colours of `diffmix.report.drawing`.
            described: what it shows, for readers who cannot see it.
            caption: HTML.
        """
        self._figures[file_name(name)] = figure
        return f"<figure>{to_svg(figure, shown(described, 400))}<figcaption>{caption}</figcaption></figure>"

    def files(self) -> dict[str, bytes]:
        """Every figure as PNG and SVG: file name → content."""
        return {
            file: content for name, figure in self._figures.items() for file, content in to_files(figure, name).items()
        }


def file_name(words: str) -> str:
    """`words` with what file systems and shells dislike replaced."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", words).strip("-.") or "figure"
