"""Text for readers: numbers in three digits, foreign text on one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def shown(text: object, longest: int) -> str:
    """Foreign text on one line: white space collapsed, unprintable characters replaced, cut to `longest` characters."""
    words = " ".join(str(text).split())
    clean = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs") else c for c in words)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def columns(text: str) -> int:
    """The width of `text` in narrow characters: East Asian ones take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def short_count(value: float) -> str:
    """A large number in at most three digits: 523, 1.25 k, 66.4 M."""
    return _scaled(value, ((1e9, " G"), (1e6, " M"), (1e3, " k")), "")


def short_size(value: float) -> str:
    """A number of bytes in at most three digits: 673 MB, 1.25 GB (1 MB is 10^6 bytes)."""
    return _scaled(value, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")), " B")


def _scaled(value: float, units: Sequence[tuple[float, str]], plain: str) -> str:
    for unit, name in units:
        # From 999.5 up three digits would need a fourth.
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}" + name
    return f"{value:.4g}" + plain
