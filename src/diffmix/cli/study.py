"""`diffmix study`: a grid of recipes, trained resumably, and its summary over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RequestError, RunError


def study(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A shipped study's name or a YAML file.", show_default=False)
    ],
    data: Annotated[
        Path | None, typer.Option(help="A folder of data sets, or a data file, as for train.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the result, study-NAME.json, or a .json file.")] = Path(
        "results"
    ),
    runs: Annotated[Path, typer.Option(help="Where the trained folders are kept.")] = Path("runs/study"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every cell; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=VALUE", help="Train these cells only; repeatable.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; 1, or what the Ray cluster holds.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and their state; train nothing.")] = False,
) -> None:
    """Train the cells of a grid that are not finished, each in its own process, and summarise them over seeds."""
    from tqdm import tqdm

    from diffmix.experiments.study import (
        claim_study_result,
        collect,
        list_cells,
        recorded_cells,
        run_study,
        unknown_metrics,
    )
    from diffmix.experiments.study_engines import find_engine
    from diffmix.experiments.study_file import load_study

    loaded = load_study(source, set_ or [])
    if dry_run:
        find_engine(engine)
        recorded = recorded_cells(loaded, claim_study_result(loaded, output, data), data)
        cells = list_cells(loaded, data=data, runs=runs, only=only or [], recorded=recorded)
        for state, label, folder in cells:
            typer.echo(f"{state:<10}  {label}  {folder}")
        counts = [
            (state, sum(row[0] == state for row in cells))
            for state in ("finished", "recorded", "running", "unfinished", "new")
        ]
        typer.echo(f"{len(cells)} cells: {', '.join(f'{count} {state}' for state, count in counts if count)}")
        result = collect(loaded, runs, data, recorded)
        if any(cell["state"] == "finished" for cell in result["cells"]):
            typer.echo(f"\n{_tables(result)}")
        return
    finished = run_study(
        loaded,
        data=data,
        output=output,
        runs=runs,
        only=only or [],
        engine=engine,
        jobs=jobs,
        notice=lambda line: tqdm.write(line, file=typer.get_text_stream("stderr")),
    )
    if finished.path is not None:
        typer.echo(f"{_tables(finished.result)}\n\nWrote {finished.path}")
    if finished.failed:
        told = "; ".join(f"{label}: {reason}" for label, reason in finished.failed)
        raise RunError(
            f"{len(finished.failed)} cells failed ({told}): mend that and start again; finished cells are not repeated"
        )
    wrong = unknown_metrics(loaded, finished.result)
    if wrong:
        raise RequestError(wrong)


def _tables(result: dict[str, Any]) -> str:
    """The tables of a study; those of the Long Range Arena stand beside what is published."""
    from diffmix.experiments.long_range_tables import is_long_range_arena, long_range_arena_table
    from diffmix.experiments.study_summary import study_table

    arena = [long_range_arena_table(result)] if is_long_range_arena(result) else []
    return "\n\n".join([*arena, study_table(result)])
