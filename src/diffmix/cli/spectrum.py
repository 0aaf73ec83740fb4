"""`diffmix spectrum`: how well sparse patterns connect their tokens, and how far a model's attention is from full attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from diffmix.errors import RequestError

N = TypeVar("N", int, float)
_MANY = "comma-separated for several"


def spectrum(
    window: Annotated[
        str | None, typer.Option(help=f"w of a pattern, {_MANY}; 64, or the model's own.", show_default=False)
    ] = None,
    global_tokens: Annotated[
        str | None,
        typer.Option(
            "--global_tokens",
            "--global-tokens",
            help=f"The first g tokens, {_MANY}; 16, or the model's own.",
            show_default=False,
        ),
    ] = None,
    random_links: Annotated[
        str | None,
        typer.Option(
            "--random_links",
            "--random-links",
            help=f"r of a token, {_MANY}; 8, or the model's own.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(help=f"Tokens, {_MANY}; 256,1024,4096, or where a model's rows are cut.", show_default=False),
    ] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Tokens hear their past only.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of links and random graphs; 0.", show_default=False)] = None,
    alpha: Annotated[
        str | None, typer.Option(help=f"α of personalised PageRank, {_MANY}; 0.1.", show_default=False)
    ] = None,
    hops: Annotated[
        str | None, typer.Option(help=f"K, {_MANY}; 1,2,5,10,20,50,200, of a model 1,2,5,10.", show_default=False)
    ] = None,
    time: Annotated[
        str | None, typer.Option(help=f"t of the heat kernel, {_MANY}; 1,3, of a model none.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run with mixer attention_diffusion or softmax: distances to its full attention instead.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Of the model's rows; by default the one trained on.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of data sets, or a file; by default as in training.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Validation rows of the model's task; 16.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the result.", show_default=False)] = None,
    figures: Annotated[
        Path | None, typer.Option(help="A folder for figures as PNG and SVG.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Measure spectral gap and reach of sparse patterns, or a model's distance to full attention."""
    lists: dict[str, Any] = {
        "window": _numbers("window", window, int),
        "global_tokens": _numbers("global_tokens", global_tokens, int),
        "random_links": _numbers("random_links", random_links, int),
        "length": _numbers("length", length, int),
        "alpha": _numbers("alpha", alpha, float),
        "hops": _numbers("hops", hops, int),
        "time": _numbers("time", time, float),
    }
    given = {name: values for name, values in lists.items() if values is not None}
    written: dict[str, Any] = {"output": output, "figures": figures, "force": force, "notice": typer.echo}
    asked: dict[str, Any] = {name: ",".join(f"{value:g}" for value in values) for name, values in given.items()}
    if model is None:
        for name, value in (("task", task), ("data", data), ("limit", limit)):
            if value is not None:
                raise RequestError(f"--{name} is for the rows of a model: give --model RUN, or leave it out")
        _of_patterns({**given, "causal": causal, "seed": seed or 0}, {**asked, "causal": causal, "seed": seed}, written)
        return
    if causal or seed is not None:
        raise RequestError("--causal and --seed are a model's own: leave them out with --model")
    for name in ("window", "global_tokens", "random_links", "length"):
        if name in given:
            if len(given[name]) > 1:
                raise RequestError(f"--{name} is {asked[name]}: give one number with --model")
            given[name] = given[name][0]
    if limit is not None:
        given["limit"] = asked["limit"] = limit
    _of_model(model, task, data, given, {"task": task, **asked}, written)


def _of_patterns(given: dict[str, Any], asked: dict[str, Any], written: dict[str, Any]) -> None:
    from diffmix.experiments.results import command_line
    from diffmix.experiments.spectrum import Grid, measure_spectrum

    command = command_line("spectrum", options=asked, defaults={})
    result = measure_spectrum(Grid(**given), command=command, **written)
    from diffmix.experiments.spectrum_tables import PATTERN_TABLES

    for make in PATTERN_TABLES.values():
        typer.echo(f"\n{make(result)}")


def _of_model(
    model: Path,
    task: str | None,
    data: Path | None,
    given: dict[str, Any],
    asked: dict[str, Any],
    written: dict[str, Any],
) -> None:
    from diffmix.cli.evaluate import task_data
    from diffmix.experiments.attention_distance import DistanceChoices, measure_attention_distance
    from diffmix.experiments.results import command_line, portable_path

    command = command_line("spectrum", options={"model": portable_path(model), **asked}, defaults={})
    choices = DistanceChoices(**given)
    result = measure_attention_distance(model, task_data(model, task, data), choices, command=command, **written)
    from diffmix.experiments.spectrum_tables import distance_table

    typer.echo(f"\n{distance_table(result)}")


def _numbers(name: str, given: str | None, kind: Callable[[str], N]) -> tuple[N, ...] | None:
    if given is None:
        return None
    try:
        return tuple(dict.fromkeys(kind(part) for part in given.split(",")))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise RequestError(
            f"--{name} is {given!r}: give {what}, such as {'16,64' if kind is int else '0.1,0.5'}"
        ) from None
