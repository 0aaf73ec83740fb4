"""The tables of README and docs, generated from `results/`: `python -m diffmix.experiments.tables [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is one of `TABLES`, the stem of a comparison's or a
study's file (`compare-NAME`, `study-NAME`), or `recipe_keys`, which is made of the source instead. Nothing between the marks is
written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.experiments import claims_diffuser, claims_heat_kernel, claims_neighbor
from diffmix.experiments.benchmark_tables import BENCHMARK_TABLES
from diffmix.experiments.claims import claims_table
from diffmix.experiments.long_range_tables import long_range_arena_table
from diffmix.experiments.markdown import caption, differing, markdown, shown, with_interval
from diffmix.experiments.recipe_keys import recipe_keys_table
from diffmix.experiments.results import read_result
from diffmix.experiments.spectrum_tables import PATTERN_TABLES, distance_table
from diffmix.experiments.study_summary import study_table
from diffmix.experiments.swap import swap_table
from diffmix.report.text import short_count, short_size

_CLAIMS = {
    "claims-neighbor": claims_neighbor.CLAIMS,
    "claims-heat_kernel": claims_heat_kernel.CLAIMS,
    "claims-diffuser": claims_diffuser.CLAIMS,
}
_RECIPE_KEYS = "recipe_keys"  # of the source, not of results
_BLOCK = re.compile(r"<!-- table: (?P<name>[^>]*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


def regenerate(root: Path, *, check: bool = False) -> list[Path]:
    """Rewrite the tables in README.md and docs/*.md under `root`: the files whose text changed, or would with `check`.

    Raises RequestError, with every file left as it was, for an unknown table, a missing result, or an unclosed block.
    """
    texts = {}
    for path in [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if text.count("<!-- table:") != len(_BLOCK.findall(text)):
            raise RequestError(f"{path} has a table without an end: write <!-- end --> on a line after it")
        texts[path] = (text, _BLOCK.sub(lambda block, place=path: _filled(block, root, place), text))
    changed = [path for path, (before, after) in texts.items() if before != after]
    if not check:
        for path in changed:
            path.write_text(texts[path][1], encoding="utf-8")
    return changed


def _filled(block: re.Match[str], root: Path, place: Path) -> str:
    name = block["name"].strip()
    try:
        table = make_table(name, root / "results")
    except RequestError as error:
        raise RequestError(f"{place.name}, table {name}: {error}") from None
    return f"<!-- table: {name} -->\n{table.strip()}\n<!-- end -->"


def make_table(name: str, results: Path) -> str:
    """The Markdown of the table `name`. Raises RequestError where it is unknown or its result is missing."""
    if name in _CLAIMS:
        return claims_table(_CLAIMS[name], results)
    if name == _RECIPE_KEYS:
        return recipe_keys_table()
    files, make = TABLES.get(name, ((), None))
    if make is None:
        files, make = (name,), next((of for prefix, of in _OF_A_FILE.items() if name.startswith(f"{prefix}-")), None)
    if make is None:
        known = ", ".join([*TABLES, *_CLAIMS, _RECIPE_KEYS])
        raise RequestError(
            f"there is no such table: give one of {known}, or compare-NAME or study-NAME for that file of results/"
        )
    return make(*(read_result(results / f"{file}.json") for file in files))


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Accuracy, calibration and cost of each recipe of a comparison."""
    body, examples = [], set()
    for row in comparison["rows"]:
        metrics = row["metrics"]
        split = "test" if "test/accuracy" in metrics else "validation"
        examples.add(f"{metrics.get(f'{split}/n', 0):,.0f} {split} rows")
        epoch = metrics.get("train/seconds_per_epoch")
        body.append(
            [
                f"`{row['recipe']}`",
                with_interval(metrics, f"{split}/accuracy", lambda x: f"{100 * x:.2f}"),
                with_interval(metrics, f"{split}/nll", lambda x: f"{x:.4f}"),
                with_interval(metrics, f"{split}/ece", lambda x: f"{x:.4f}"),
                shown(row.get("resolved", {}).get("max_length"), lambda x: f"{x:,}"),
                shown(metrics.get("train/peak_memory_bytes"), short_size),
                shown(epoch, lambda x: f"{x:.3g}"),
                shown(metrics.get("train/seconds"), lambda x: f"{x:.0f}"),
                shown(metrics.get("train/tokens_per_second"), short_count),
                shown(metrics.get("parameters"), short_count),
                shown(metrics.get("train/examples"), lambda x: f"{x:,.0f}"),
            ]
        )
    headings = [
        "recipe",
        "accuracy, %",
        "NLL",
        "ECE",
        "tokens at most",
        "peak memory",
        "s/epoch",
        "training, s",
        "tokens/s",
        "parameters",
        "train rows",
    ]
    seeds = comparison["seeds"]
    interval = (
        f"mean of {seeds} seeds with its 95 % t-interval"
        if seeds > 1
        else "one seed, 95 % bootstrap interval over the rows"
    )
    environments = [row.get("environment", {}) for row in comparison["rows"]]
    about = f"{', '.join(sorted(examples))}; {interval}. {caption(comparison)}{differing('Rows', environments)}"
    return f"{markdown(headings, body)}\n\n{about}"


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {  # name → files of results/, and what is made of them
    "lra": (("study-lra", "study-listops"), long_range_arena_table),
    "lra_brief": (("study-lra_brief",), long_range_arena_table),
    **{name: ((f"bench-{name}",), table) for name, table in BENCHMARK_TABLES.items()},
    **{name: (("spectrum",), table) for name, table in PATTERN_TABLES.items()},
}
_OF_A_FILE: dict[str, Callable[..., str]] = {  # first word of a file of results/ → what is made of it
    "compare": comparison_table,
    "study": study_table,
    "swap": swap_table,
    "spectrum": distance_table,
    "bench-distilbert": BENCHMARK_TABLES["distilbert"],
    "bench-obvious": BENCHMARK_TABLES["obvious"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables under the current folder; with --check only say which files would change (exit code 1)."""
    parser = argparse.ArgumentParser(description="Rewrite the tables of README.md and docs/*.md from results/*.json.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a table is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's folder")
    asked = parser.parse_args(arguments)
    try:
        changed = regenerate(asked.root, check=asked.check)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"{path} {'is out of date: run make results' if asked.check else 'rewritten'}")
    return int(asked.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
