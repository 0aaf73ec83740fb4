"""`diffmix train`: a recipe becomes a run's folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RunError


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of data sets, or a CSV, TSV, JSONL or Parquet file.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Train with seeds 0 … N-1 and report the mean.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in --output.")] = False,
) -> None:
    """Train a recipe and write a folder with the model, its metrics and its model card."""
    from diffmix.training.recipe import load_recipe

    resolved = load_recipe(recipe, set_ or [])
    folder = output if output is not None else Path("runs") / resolved.name

    from diffmix.training.hardware import tune_cpu
    from diffmix.training.trainer import train, train_seeds

    tune_cpu()
    first = os.environ.get("RANK", "0") == "0"
    notice = typer.echo if first else (lambda _: None)
    try:
        if seeds is None:
            metrics = train(resolved, data=data, output=folder, resume=resume, notice=notice)
        else:
            metrics = train_seeds(resolved, seeds, data=data, output=folder, resume=resume, notice=notice)
    except KeyboardInterrupt:
        again = ["diffmix", "train", recipe, "--output", str(folder)]
        again += [] if data is None else ["--data", str(data)]
        again += [part for change in set_ or [] for part in ("--set", change)]
        again += [] if seeds is None else ["--seeds", str(seeds)]
        raise RunError(f"interrupted; continue with: {shlex.join([*again, '--resume'])}") from None
    if first:
        for line in summary_lines(metrics):
            typer.echo(line)
        typer.echo(f"Wrote {folder}")


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The metrics worth a line on the screen, with their intervals."""
    costs = ("train/examples", "train/seconds", "train/tokens_per_second", "train/peak_memory_bytes", "parameters")
    shown = [*(key for key in metrics if key.startswith(("test/", "validation/", "data/yardstick_"))), *costs]
    lines = []
    for key in shown:
        value = metrics.get(key)
        if key.endswith(("_low", "_high")) or not isinstance(value, int | float):
            continue
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        text = f"{value:,.4f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"
        interval = f"   ({low:,.4f} to {high:,.4f})" if isinstance(low, float) and isinstance(high, float) else ""
        lines.append(f"{key:<31} {text}{interval}")
    return lines
