"""`diffmix bench`: time, memory and scaling against named peers; what a trained model does with more steps or other attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffmix.errors import RequestError

NAMES = (
    "distilbert, obvious, scaling, operators, parts, heat_kernel, diffusion, kernels, long_range, generation, "
    "paper_memory, convergence, equilibrium, swap"
)


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {NAMES}.", show_default=False)],
    recipe: Annotated[
        str | None, typer.Option(help="Whose model is measured: RECIPE[:key=value,...].", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32, on both sides.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step.", show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a row.", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps measured in a process (5), or followed (convergence, 64).")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Processes of each side, which take turns.")] = 3,
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
        Path | None, typer.Option(help="The result; results/bench-NAME.json by default.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the result if it exists.")] = False,
) -> None:
    """Measure operators and training steps, each side in its own process, and write one JSON."""
    if name == "convergence":
        from diffmix.experiments.convergence import measure_convergence

        if run is None:
            raise RequestError("convergence looks at a trained model: give its folder with --run")
        measured = measure_convergence(
            run,
            steps=steps or 64,
            data=data,
            output=output or Path("results/convergence.json"),
            force=force,
            notice=typer.echo,
        )
        from diffmix.experiments.benchmark_tables import convergence_table

        typer.echo(f"\n{convergence_table(measured)}")
        return
    if name == "equilibrium":
        from diffmix.experiments.equilibrium import measure_equilibrium

        measure_equilibrium(output=output or Path("results/equilibrium.json"), force=force, notice=typer.echo)
        return
    if name == "swap":
        from diffmix.experiments.swap import BATCH, TASK, WINDOW, bench_swap, swap_table

        if run is None:
            raise RequestError("swap looks at a trained model: give its folder, or a GGUF file, with --run")
        path, result = bench_swap(
            run,
            task=task or TASK,
            data=data,
            tokens=tokens or WINDOW,
            batch=batch or BATCH,
            limit=limit,
            dtype="fp32" if dtype == "auto" else dtype,
            device=device,
            output=output,
            force=force,
            notice=typer.echo,
        )
        typer.echo(f"\n{swap_table(result)}\n\nWrote {path}")
        return
    if run is not None or task is not None:
        raise RequestError(f"--run and --task are for convergence and swap, not for {name}: give --recipe")

    from diffmix.benchmarks.specs import Options
    from diffmix.benchmarks.suites import run_benchmark
    from diffmix.experiments.benchmark_tables import BENCHMARK_TABLES

    options = Options(
        recipe=recipe,
        dtype=dtype,
        device=device,
        batch=batch,
        tokens=tokens,
        steps=steps or Options.steps,
        repetitions=repetitions,
        limit=limit,
        data=None if data is None else str(data),
    )
    path, result = run_benchmark(name, options, output, force=force, notice=typer.echo)
    typer.echo(f"\n{BENCHMARK_TABLES[name](result)}\n\nWrote {path}")
