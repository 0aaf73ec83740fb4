"""The table of the Long Range Arena: what `diffmix study lra` reached beside what is published."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from diffmix.experiments.markdown import caption, markdown
from diffmix.report.text import short_count

COLUMNS = {  # our task → the published column that it is, or None
    "listops": "ListOps",
    "lra_text": "Text",
    "lra_retrieval": "Retrieval",
    "newsgroups_retrieval": None,
    "lra_image": "Image",
    "pathfinder": "Pathfinder",
    "pathfinder_x": "Path-X",
}
_PUBLISHED_COLUMNS = ("ListOps", "Text", "Retrieval", "Image", "Pathfinder", "Path-X")
# Test accuracy in percent, not measured by us. Sources: Tay et al. (2021) for the first three, the models' own papers.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "Transformer": ("36.37", "64.27", "57.46", "42.44", "71.40", "–"),
    "Longformer": ("35.63", "62.85", "56.89", "42.22", "69.71", "–"),
    "BigBird": ("36.05", "64.02", "59.29", "40.83", "74.87", "–"),
    "CDIL-CNN": ("44 to 60.6", "87.61", "84.27", "64.49", "91.00", "–"),
    "S4": ("59.60", "86.82", "90.90", "88.65", "94.20", "96.35"),
    "ChordMixer": ("59.89", "88.87", "90.38", "89.95", "96.67", "98.63"),
    "S5": ("62.15", "89.31", "91.40", "88.00", "95.33", "98.58"),
    "Mega": ("63.14", "90.43", "91.25", "90.44", "96.01", "97.98"),
}


def long_range_arena_table(result: Mapping[str, Any]) -> str:
    """Test accuracy of every mixer on every task, with the optimiser steps that it had, below the published rows."""
    cells: dict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
    for cell in result["cells"]:
        if cell["state"] == "finished":
            cells[cell["axes"]["attention"], cell["axes"]["recipe"]].append(cell["metrics"])
    tasks = [task for task in COLUMNS if any(recipe == task for _, recipe in cells)]
    body = [
        [f"{model}, published", *(_published(numbers, task) for task in tasks)] for model, numbers in PUBLISHED.items()
    ]
    for attention in result["axes"]["attention"]:
        body.append([f"`{attention}`", *(_reached(cells.get((attention, task), [])) for task in tasks)])
    about = "Test accuracy, %; in brackets the optimiser steps, and seeds where there are several."
    return f"{markdown(['', *tasks], body)}\n\n{about} {caption(result)}"


def _published(numbers: tuple[str, ...], task: str) -> str:
    column = COLUMNS[task]
    return "" if column is None else numbers[_PUBLISHED_COLUMNS.index(column)]


def _reached(runs: list[Mapping[str, float]]) -> str:
    if not runs:
        return "not run"
    accuracy = 100 * statistics.fmean(run["test/accuracy"] for run in runs)
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    return f"{accuracy:.2f} ({short_count(max(run['train/steps'] for run in runs))}{seeds})"
