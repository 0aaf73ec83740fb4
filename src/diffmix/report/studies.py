"""A study's result on the page: metrics by depth, means over seeds, paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.report import markup
from diffmix.report.album import Album
from diffmix.report.language_figures import DepthPanel, DepthRow, by_depth
from diffmix.report.text import short_count, short_size

DEPTH = "num_hidden_layers"
_BY_DEPTH = (("test/nll", "NLL, nats", None), ("test/ece", "ECE", "test/ece_noise_floor"))


def load_study_result(path: Path) -> dict[str, Any]:
    """The result that `diffmix study` wrote. Raises RequestError where the file holds anything else."""
    mend = "give the study-NAME.json that `diffmix study` wrote"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path}: cannot be read ({' '.join(str(error).split())[:100]}); {mend}") from None
    try:
        rows = [*result["means"], *result["differences"]]
        ok = isinstance(result["study"], str) and all(
            isinstance(row["axes"][axis], str) and {"mean", "low", "high"} <= set(row["metrics"][metric])
            for row in rows
            for axis in result["axes"]
            if axis != "seed"
            for metric in result["metrics"]
        )
    except (KeyError, TypeError):
        ok = False
    if not ok:
        raise RequestError(f"{path} is no result of a study; {mend}")
    return result


def depth_rows(result: Mapping[str, Any], metric: str) -> list[DepthRow]:
    """The means of a metric by number of layers; a variant is the choice on the remaining axes.

    Empty where the study has no axis num_hidden_layers or does not summarise the metric.
    """
    rows = []
    for row in result["means"]:
        value = row["metrics"].get(metric)
        depth = str(row["axes"].get(DEPTH, ""))
        if value is None or value["mean"] is None or not depth.isdigit():
            continue
        variant = ", ".join(choice for axis, choice in row["axes"].items() if axis != DEPTH) or result["study"]
        rows.append(DepthRow(variant, int(depth), value["mean"], value["low"], value["high"]))
    return rows


def study_section(result: Mapping[str, Any], album: Album) -> str:
    """The study as a section of the page."""
    panels = [
        DepthPanel(title, rows, depth_rows(result, floor) if floor else ())
        for metric, title, floor in _BY_DEPTH
        if (rows := depth_rows(result, metric))
    ]
    parts = [f'<p class="note"><code>{markup.safe(result["command"])}</code></p>'] if result.get("command") else []
    if panels:
        titles = " and ".join(panel.title for panel in panels)
        parts.append(
            album.place(
                f"study-{result['study']}-by-depth",
                by_depth(panels),
                f"{titles} of the study {result['study']} by number of layers; the numbers stand in the table below",
                f"{markup.safe(titles)}, by depth: mean over seeds with its 95 % t-interval. The noise floor is the ECE of a "
                "perfectly calibrated model with the same confidences.",
            )
        )
    parts.append(_table(result, result["means"], "Means over seeds"))
    missing = len(result.get("missing", ()))
    absent = f" {missing} of {len(result['cells'])} cells are missing." if missing else ""
    parts.append(f'<p class="note">Small numbers: 95 % t-intervals over seeds.{absent}</p>')
    if result["differences"]:
        baseline = "{axis}={baseline}".format(**result["compare"])
        parts.append(f"<h3>Differences to {markup.safe(baseline)}</h3>")
        parts.append(_table(result, result["differences"], "Differences"))
        parts.append(
            '<p class="note">Paired over seeds, with 95 % t-intervals; undecided where that holds 0 or there are fewer than '
            "two pairs.</p>"
        )
    return markup.section(f"Study <bdi>{markup.safe(result['study'])}</bdi>", "".join(parts))


def _table(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], label: str) -> str:
    axes = [axis for axis in result["axes"] if axis != "seed"]
    seeds = any("seeds" in row for row in rows)
    signed = not seeds
    headings = "".join(f'<th scope="col">{markup.safe(axis)}</th>' for axis in axes)
    headings += '<th scope="col" class="number">seeds</th>' * seeds
    headings += "".join(f'<th scope="col" class="number">{markup.safe(metric)}</th>' for metric in result["metrics"])
    body = []
    for row in rows:
        cells = "".join(f'<td dir="auto">{markup.safe(row["axes"][axis])}</td>' for axis in axes)
        cells += f'<td class="number">{len(row["seeds"])}</td>' if seeds else ""
        cells += "".join(_cell(metric, row["metrics"][metric], signed=signed) for metric in result["metrics"])
        body.append(f"<tr>{cells}</tr>")
    return markup.scroll(
        f"{label} of the study {result['study']}",
        f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(body)}</tbody></table>",
    )


def _cell(metric: str, value: Mapping[str, Any], *, signed: bool) -> str:
    if value["mean"] is None:
        return f'<td class="number">{markup.MISSING}</td>'
    mean, *bounds = (
        _number(metric, value[key], signed=signed) for key in ("mean", "low", "high") if value[key] is not None
    )
    below = [(" to " if signed else " – ").join(bounds)] if len(bounds) == 2 else []
    below += [str(value["verdict"])] if value.get("verdict") else []
    return f'<td class="number">{mean}{"".join(f"<small>{markup.safe(line)}</small>" for line in below)}</td>'


def _number(metric: str, value: float, *, signed: bool) -> str:
    size = abs(value)
    if metric.endswith("bytes"):
        text = short_size(size)
    elif size >= 10_000:
        text = short_count(size)
    else:
        text = f"{size:.4f}" if size < 10 else f"{size:.2f}"
    return ("−" if value < 0 else "+" if signed else "") + text
