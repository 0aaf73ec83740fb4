"""Measured patterns as tables and figures show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pattern_name(pattern: Mapping[str, Any]) -> str:
    """`window 64, 16 global, 8 links`, without what is 0."""
    chosen = pattern["global_tokens"]
    number = chosen if isinstance(chosen, int) else len(chosen)
    parts = [f"window {pattern['window']}"]
    parts += [f"{number} global"] * bool(number) + [f"{pattern['random_links']} links"] * bool(pattern["random_links"])
    return ", ".join(parts)


def by_pattern(graphs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Name of the pattern → length, the shortest first → what was measured."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for measured in sorted(graphs, key=lambda measured: measured["n"]):
        found.setdefault(pattern_name(measured), {})[measured["n"]] = measured
    return found
