"""`diffmix bench`: time, memory and scaling against named peers; what a trained model does with more steps or other attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RequestError

# `diffmix.benchmarks.suites.BENCHMARKS`, which imports too much to be asked for help.
TIMED = (
    "distilbert",
    "obvious",
    "scaling",
    "operators",
    "parts",
    "heat_kernel",
    "diffusion",
    "kernels",
    "long_range",
    "generation",
    "paper_memory",
)
TIMED_OPTIONS = ("recipe", "dtype", "device", "batch", "tokens", "steps", "repetitions", "limit", "data")
OTHERS = {  # what times nothing → the options that it takes, beside --output and --force
    "convergence": ("run", "steps", "data"),
    "equilibrium": (),
    "swap": ("run", "task", "data", "tokens", "batch", "limit", "dtype", "device"),
}
NAMES = (*TIMED, *OTHERS)


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.", show_default=False)],
    recipe: Annotated[
        str | None, typer.Option(help="Whose model is measured: RECIPE[:key=value,...].", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp32 or auto, on both sides; auto, of swap fp32.", show_default=False),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto; auto.", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step.", show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a row.", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps measured in a process (5), or followed (convergence, 64).")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Processes of each side, which take turns; 3.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Train rows of an epoch (swap: tokens of test); all by default.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="convergence, swap: the trained model to look at (swap: a causal one, also a GGUF file).",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="swap: the text; wikitext2_raw by default.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of data sets, where data are read.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The result; by default results/bench-NAME.json, results/convergence.json, results/equilibrium.json or "
            "results/swap-MODEL.json.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the result if it exists.")] = False,
) -> None:
    """Measure operators and training steps, each side in its own process, or a trained model, and write one JSON."""
    options: dict[str, Any] = {
        "recipe": recipe,
        "dtype": dtype,
        "device": device,
        "batch": batch,
        "tokens": tokens,
        "steps": steps,
        "repetitions": repetitions,
        "limit": limit,
        "run": run,
        "task": task,
        "data": data,
    }
    given = {option: value for option, value in options.items() if value is not None}
    _check(name, given)
    written: dict[str, Any] = {"output": output, "force": force, "notice": typer.echo}
    if name == "convergence":
        _convergence(given, written)
    elif name == "equilibrium":
        from diffmix.experiments.equilibrium import measure_equilibrium

        measure_equilibrium(**written)
    elif name == "swap":
        from diffmix.experiments.swap import bench_swap, swap_table

        path, result = bench_swap(given.pop("run"), **given, **written)
        typer.echo(f"\n{swap_table(result)}\n\nWrote {path}")
    else:
        from diffmix.benchmarks.specs import Options
        from diffmix.benchmarks.suites import run_benchmark
        from diffmix.experiments.benchmark_tables import BENCHMARK_TABLES

        if "data" in given:
            given["data"] = str(given["data"])
        path, result = run_benchmark(name, Options(**given), **written)
        typer.echo(f"\n{BENCHMARK_TABLES[name](result)}\n\nWrote {path}")


def _check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse a name that there is not, and options that would go unused. Raises RequestError."""
    if name not in NAMES:
        raise RequestError(f"benchmark {name!r} is unknown: give one of {', '.join(NAMES)}")
    taken = OTHERS.get(name, TIMED_OPTIONS)
    unused = [f"--{option}" for option in given if option not in taken]
    if unused:
        takes = ", ".join(f"--{option}" for option in (*taken, "output", "force"))
        raise RequestError(f"bench {name} takes no {', no '.join(unused)}: leave it out; it takes {takes}")
    if "run" in taken and "run" not in given:
        raise RequestError(f"bench {name} looks at a trained model: give its folder with --run")


def _convergence(given: dict[str, Any], written: Mapping[str, Any]) -> None:
    from diffmix.experiments.benchmark_tables import convergence_table
    from diffmix.experiments.convergence import measure_convergence

    typer.echo(f"\n{convergence_table(measure_convergence(given.pop('run'), **given, **written))}")
