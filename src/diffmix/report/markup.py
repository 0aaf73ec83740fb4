"""Pieces of HTML that every part of the page is made of. Text goes in as it is and comes out safe."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from diffmix.report.drawing import series_colour

MISSING = '<span class="note">–</span>'


def key_table(values: Mapping[str, Any]) -> str:
    """Keys with their values, a row each."""
    rows = "".join(
        f'<tr><th scope="row">{safe(key)}</th><td>{safe(_plain(value))}</td></tr>' for key, value in values.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def details(summary: str, content: str, of: str) -> str:
    """A box that opens; `of` is what it belongs to."""
    return f"<details><summary>{summary}</summary>{scroll(f'{summary} of {of}', content)}</details>"


def section(heading: str, content: str, *, id: str | None = None) -> str:
    """A part of the page; heading and content are HTML."""
    anchor = f' id="{id}"' if id else ""
    return f"<section{anchor}><h2>{heading}</h2>{content}</section>"


def scroll(label: str, content: str) -> str:
    """A box that scrolls sideways on narrow screens and can be reached by the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{safe(label)}">{content}</div>'


def badge(number: int) -> str:
    """The number of a run, in its colour."""
    return f'<span class="badge" style="background:var(--{series_colour(number - 1)})">{number}</span>'


def plural(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" + "s" * (number != 1)


def safe(value: object) -> str:
    """Foreign text made safe for HTML: markup escaped, lone surrogates replaced so that UTF-8 can hold it."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
