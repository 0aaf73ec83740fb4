"""How tables of results are laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffmix.experiments.results import describe_environment

_PLACE = ("device", "device_type", "threads")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; the first is text, the others are numbers."""
    table = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [headings, *rows]]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(headings))]
    rule = [f"{'-' * (width - 1)}:" if column else "-" * width for column, width in enumerate(widths)]
    lines = []
    for row in [table[0], rule, *table[1:]]:
        cells = [
            cell.rjust(w) if column else cell.ljust(w) for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(result: Mapping[str, Any]) -> str:
    """The command that wrote a result, and on what."""
    return f"`{result['command']}` on {describe_environment(result['environment'])}."


def differing(what: str, environments: Sequence[Mapping[str, Any]]) -> str:
    """Sentences that name the revisions, devices and numbers of threads of `what`, where there are several."""
    revisions = sorted({str(made["revision"])[:8] for made in environments if made.get("revision")})
    places = sorted({place(made) for made in environments})
    told = f" {what} were trained at revisions {', '.join(revisions)}." if len(revisions) > 1 else ""
    if len(places) > 1:
        told += f" Devices differ ({'; '.join(places)}): compare no times and no memory across them."
    return told


def place(environment: Mapping[str, Any]) -> str:
    """What costs depend on: the device and its threads."""
    return describe_environment({key: environment[key] for key in _PLACE if key in environment})


def with_interval(metrics: Mapping[str, Any], key: str, form: Callable[[float], str]) -> str:
    """A metric with its interval where it has one."""
    value, low, high = metrics.get(key), metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if value is None:
        return "–"
    return form(value) if low is None or high is None else f"{form(value)} ({form(low)} to {form(high)})"


def shown(value: float | None, form: Callable[[float], str]) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else form(value)


def times(ratio: Mapping[str, Any]) -> str:
    """A ratio with the lowest and the highest of its pairs."""
    return f"{ratio['median']:.3g}x ({ratio['low']:.3g} to {ratio['high']:.3g})"
