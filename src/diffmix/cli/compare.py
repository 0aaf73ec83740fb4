"""`diffmix compare`: the trade-off table of several recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE[:key=value,...] ...", help="Recipes, with overrides after a colon.", show_default=False
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="A folder of data sets, or a data file, as for train.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The result; results/compare-TASK.json by default.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where the trained folders are kept.")] = Path("runs/compare"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each recipe.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the result if it exists.")] = False,
) -> None:
    """Train recipes in one harness, each in its own process, and compare accuracy, calibration and cost."""
    from diffmix.experiments.compare import compare
    from diffmix.experiments.tables import comparison_table

    path, result = compare(recipes, data=data, output=output, runs=runs, seeds=seeds, force=force, notice=typer.echo)
    typer.echo(f"\n{comparison_table(result)}\n\nWrote {path}")
