"""What a study found: means over seeds with intervals, paired differences to the baseline, and their tables."""

from __future__ import annotations

import difflib
import functools
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffmix.evaluation.intervals import mean_interval
from diffmix.experiments.markdown import differing, markdown, place
from diffmix.experiments.results import describe_environment, portable_spec
from diffmix.experiments.study_file import SEED, Study
from diffmix.report.text import short_count, short_size

_HIGHER_IS_BETTER = ("accuracy", "f1", "per_second")
_LOWER_IS_BETTER = (
    "nll",
    "loss",
    "brier",
    "ece",
    "calibration_error",
    "perplexity",
    "bits_per",
    "seconds",
    "memory",
)
_COSTS = ("per_second", "seconds", "memory")


def study_result(study: Study, finished: Mapping[str, Mapping[str, Any]], *, own_data: bool = False) -> dict[str, Any]:
    """The content of `results/study-NAME.json`.

    Args:
        study: the study.
        finished: cell label → what `read_run` gives of it.
        own_data: whether the cells were trained on `--data`.

    Returns:
        `study`, `command`, the file's `recipe`, `set` and `grid`, `overrides`, `own_data`, `resolved` (the keys that all cells
        share), `environment` (of the first finished cell), `cells` (each with its `axes`, `state`, the `resolved` keys of its
        own, and where it is finished its metrics and evaluations, and what differs in its environment), `missing` (labels),
        `means` and `differences`. Numbers that cannot be given (an interval of one seed) are null.
    """
    recipes = {cell.label: cell.recipe.to_dict() for cell in study.cells}
    first = next(iter(recipes.values()))
    shared = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in recipes.values())
    }
    environment = next((finished[cell.label]["environment"] for cell in study.cells if cell.label in finished), {})
    cells = []
    for cell in study.cells:
        entry: dict[str, Any] = {
            "axes": cell.values,
            "state": "missing",
            "resolved": _beyond(recipes[cell.label], shared),
        }
        if cell.label in finished:
            run = finished[cell.label]
            entry |= {"state": "finished", "metrics": run["metrics"], "history": run["history"]}
            entry["environment"] = _beyond(run["environment"], environment)
        cells.append(entry)
    sets = [part for override in study.overrides for part in ("--set", override)]
    result = {
        "study": study.name,
        "command": shlex.join(["diffmix", "study", portable_spec(study.source), *sets]),
        **study.content,
        "overrides": list(study.overrides),
        "own_data": own_data,
        "axes": {axis: list(values) for axis, values in study.axes.items()},
        "compare": None if study.compared is None else dict(zip(("axis", "baseline"), study.compared, strict=True)),
        "metrics": list(study.metrics),
        "environment": environment,
        "resolved": shared,
        "cells": cells,
        "missing": [cell.label for cell in study.cells if cell.label not in finished],
    }
    return {**result, "means": _means(study, result), "differences": _differences(study, result)}


def study_table(result: Mapping[str, Any]) -> str:
    """Markdown: the means of every combination that has run, then the paired differences; where none has, all of them."""
    axes = [axis for axis in result["axes"] if axis != SEED]
    total = len(result["axes"].get(SEED, [""]))
    metrics = result["metrics"]
    rows = [
        [
            *([row["axes"][axis] for axis in axes] or [result["study"]]),
            f"{len(row['seeds'])} of {total}",
            *(_mean_shown(metric, row["metrics"][metric], len(row["seeds"])) for metric in metrics),
        ]
        for row in _begun(result["means"], lambda row: bool(row["seeds"]))
    ]
    finished = [cell for cell in result["cells"] if cell["state"] == "finished"]
    told = f"Mean ± 95 % t-interval over seeds. `{result['command']}`"
    if result["environment"]:
        told += f" on {describe_environment(result['environment'])}"
    parts = [
        markdown([*(axes or ["study"]), "seeds", *metrics], rows),
        f"{told}.{differing('Cells', [environment_of(result, cell) for cell in finished])}",
    ]
    if result["missing"]:
        parts.append(f"Missing: {len(result['missing'])} of {len(result['cells'])} cells.")
    if result["compare"] is not None:
        parts += _difference_table(result, axes)
    return "\n\n".join(parts)


def near_metric(metric: str, known: Iterable[str]) -> str:
    """A hint, in brackets, at the metric that was meant."""
    near = difflib.get_close_matches(metric, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def verdict(metric: str, low: float, high: float) -> str:
    """What an interval of a difference says: better, worse or undecided; of a metric without a good side higher, lower."""
    if not (low > 0 or high < 0):  # it holds 0, or is NaN
        return "undecided"
    side = good_side(metric)
    if side == 0:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (side > 0) else "worse"


def good_side(metric: str) -> int:
    """1: higher is better; -1: lower is better; 0: neither."""
    name = metric.rpartition("/")[2]
    if "noise_floor" in name:
        return 0
    if any(word in name for word in _HIGHER_IS_BETTER):
        return 1
    return -1 if any(word in name for word in _LOWER_IS_BETTER) else 0


def _beyond(own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key not in shared or shared[key] != value}


def _combinations(study: Study, result: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Mapping[str, float]]]:
    """Choices on all axes but seed → seed → metrics, of the finished cells."""
    return {
        choices: {seed: cell["metrics"] for seed, cell in seeds.items()}
        for choices, seeds in _finished_cells(study, result).items()
    }


def _finished_cells(study: Study, result: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Mapping[str, Any]]]:
    """Choices on all axes but seed → seed → cell, of the finished ones."""
    found: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for cell in result["cells"]:
        seeds = found.setdefault(tuple(value for axis, value in cell["axes"].items() if axis != SEED), {})
        if cell["state"] == "finished":
            seeds[cell["axes"].get(SEED, "")] = cell
    return found


def _means(study: Study, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = [axis for axis in study.axes if axis != SEED]
    return [
        {
            "axes": dict(zip(axes, choices, strict=True)),
            "seeds": list(seeds),
            "metrics": {
                metric: _interval(_finite(metrics.get(metric) for metrics in seeds.values()))
                for metric in study.metrics
            },
        }
        for choices, seeds in _combinations(study, result).items()
    ]


def _differences(study: Study, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each variant less the baseline, seed by seed, within each combination of the other axes.

    Costs are compared where both were trained on the same device with as many threads.
    """
    if study.compared is None:
        return []
    axes = [axis for axis in study.axes if axis != SEED]
    axis, baseline = study.compared
    found, compared_axis = _finished_cells(study, result), axes.index(axis)
    rows = []
    for choices, seeds in found.items():
        if choices[compared_axis] == baseline:
            continue
        base = found[(*choices[:compared_axis], baseline, *choices[compared_axis + 1 :])]
        compared = {}
        for metric in study.metrics:
            cells = [(seeds[seed], base[seed]) for seed in seeds if seed in base]
            if any(word in metric for word in _COSTS):
                cells = [
                    (a, b) for a, b in cells if place(environment_of(result, a)) == place(environment_of(result, b))
                ]
            pairs = [(a["metrics"].get(metric), b["metrics"].get(metric)) for a, b in cells]
            values = _finite(None if a is None or b is None else a - b for a, b in pairs)
            interval = _interval(values)
            bounds = (math.nan if interval[end] is None else interval[end] for end in ("low", "high"))
            compared[metric] = {**interval, "verdict": verdict(metric, *bounds)}
        rows.append({"axes": dict(zip(axes, choices, strict=True)), "baseline": baseline, "metrics": compared})
    return rows


def _finite(values: Iterable[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its 95 % t-interval and the number of values; null where there are too few."""
    mean, low, high = mean_interval(values) if values else (math.nan,) * 3
    numbers = {"mean": mean, "low": low, "high": high}
    return {**{key: None if math.isnan(number) else number for key, number in numbers.items()}, "n": len(values)}


def _begun(rows: Sequence[dict[str, Any]], has_run: Callable[[dict[str, Any]], bool]) -> Sequence[dict[str, Any]]:
    return [row for row in rows if has_run(row)] or rows


def _difference_table(result: Mapping[str, Any], axes: Sequence[str]) -> list[str]:
    axis, baseline = result["compare"]["axis"], result["compare"]["baseline"]
    # Facts of the data are the same on both sides.
    metrics = [metric for metric in result["metrics"] if not metric.startswith("data/")]
    rows = [
        [
            *(row["axes"][name] for name in axes),
            *(_difference_shown(metric, row["metrics"][metric]) for metric in metrics),
        ]
        for row in _begun(result["differences"], lambda row: any(each["n"] for each in row["metrics"].values()))
    ]
    about = (
        f"Difference to {axis}={baseline}, paired over seeds, with its 95 % t-interval; undecided where that holds 0 or there "
        "are fewer than two pairs. Each interval stands for itself: of twenty that compare equals, one is expected to miss 0."
    )
    return [markdown([*axes, *metrics], rows), about]


def _mean_shown(metric: str, value: Mapping[str, Any], seeds: int) -> str:
    if value["mean"] is None:
        return "–"
    # A run that diverged, or has no such metric, is not part of the mean.
    return _with_half(metric, value) + (f" (n = {value['n']})" if value["n"] < seeds else "")


def _difference_shown(metric: str, value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    plus = "+" if value["mean"] >= 0 else ""
    return f"{plus}{_with_half(metric, value)} {value['verdict']}"


def _with_half(metric: str, value: Mapping[str, Any]) -> str:
    """The mean's size ± half the interval, which has two digits."""
    mean = abs(value["mean"])
    half = None if value["low"] is None else (value["high"] - value["low"]) / 2
    if metric.endswith("bytes"):
        form = short_size
    elif mean >= 10_000:
        form = short_count
    else:
        smallest = half or mean / 100
        decimals = min(6, max(0, 1 - math.floor(math.log10(smallest)))) if smallest else 0
        form = functools.partial(_fixed, decimals=decimals)
    minus = "−" if value["mean"] < 0 else ""
    return minus + form(mean) + ("" if half is None else f" ± {form(half)}")


def _fixed(number: float, *, decimals: int) -> str:
    return f"{number:.{decimals}f}"


def environment_of(result: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """That of a finished cell, which holds only what differs from the result's."""
    return {**result["environment"], **cell["environment"]}
