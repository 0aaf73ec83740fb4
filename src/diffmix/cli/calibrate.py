"""`diffmix calibrate`: how far a model's probabilities can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffmix.cli.evaluate import Split, task_data


def calibrate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run's folder, a Hugging Face folder of a classifier or a causal language model, or a GGUF file.",
            show_default=False,
        ),
    ],
    task: Annotated[str | None, typer.Option(help="A task; by default the one trained on.", show_default=False)] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of data sets, or a file; by default as in training. Of a table of other texts, all rows are test.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="The split to measure: test or validation.")] = Split.test,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Fit a temperature on validation and measure after it, too.")
    ] = False,
    bins: Annotated[int, typer.Option(min=1, help="Of the expected calibration error.")] = 15,
    smece: Annotated[bool, typer.Option("--smece", help="Measure smECE, too (pip install 'diffmix[smece]').")] = False,
    attention: Annotated[
        str | None,
        typer.Option(help="Of a Hugging Face language model: heat_kernel, sdpa, eager.", show_default=False),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max_length",
            "--max-length",
            min=1,
            help="Tokens of a window; the model's own by default.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max_tokens",
            "--max-tokens",
            min=1,
            help="Of a text, its first lines; all by default.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="A folder; calibration in MODEL's by default.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the result if it exists.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure calibration before and after temperature scaling: ECE, Brier, NLL, entropy, and a reliability diagram."""
    from diffmix.experiments.calibrate import Choices, as_json, summary
    from diffmix.experiments.calibrate import calibrate as measure
    from diffmix.experiments.results import command_line, portable_path

    folder = output if output is not None else (model.parent if model.suffix == ".gguf" else model) / "calibration"
    choices = Choices(
        split=split.value,
        temperature=temperature,
        bins=bins,
        smece=smece,
        attention=attention,
        max_length=max_length,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    options = {"task": task, **{field: getattr(choices, field) for field in choices.__dataclass_fields__}}
    defaults = {field: getattr(Choices(), field) for field in choices.__dataclass_fields__}
    result = measure(
        model,
        task_data(model, task, data, whole_files=split is Split.test and not temperature),
        folder,
        choices,
        command=command_line("calibrate", portable_path(model), options=options, defaults=defaults),
        force=force,
        notice=lambda line: typer.echo(line, err=True),
    )
    typer.echo(as_json(result) if json_ else f"{summary(result)}\nWrote {folder}")
