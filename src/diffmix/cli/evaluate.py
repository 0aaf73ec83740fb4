"""`diffmix evaluate`: a trained folder measured on a split."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.cli.train import summary_lines
from diffmix.errors import RequestError


class Split(enum.StrEnum):
    """Splits of a task."""

    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="A task; by default the one trained on.", show_default=False)] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of data sets, or a file; by default as in training.", show_default=False),
    ] = None,
    split: Annotated[Split, typer.Option(help="The split to measure.")] = Split.test,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained model: accuracy, macro-F1, NLL, Brier score and calibration, with intervals."""
    from diffmix.evaluation import classification_metrics
    from diffmix.training.prediction import labels_for, load_classifier

    classifier = load_classifier(model)
    task_data = _task_data(model, task, data)
    examples: Any = {
        "train": lambda: task_data.train,
        "validation": lambda: task_data.validation,
        "test": task_data.load_test,
    }[split.value]()
    if examples is None:
        raise RequestError(f"task {task_data.name} has no labelled test rows: give --split validation")
    if not hasattr(examples, "take"):
        raise RequestError("the train split is streamed from disk and not measured: give --split validation or test")
    labels = labels_for(examples, task_data.label_names, classifier.label_names)
    metrics = classification_metrics(classifier.probabilities(examples), labels)
    metrics = {f"{split.value}/{key}": value for key, value in metrics.items()}
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    for line in summary_lines({key.replace("train/", "test/"): value for key, value in metrics.items()}):
        typer.echo(line.replace("test/", f"{split.value}/", 1))


def _task_data(model: Path, task: str | None, data: Path | None) -> Any:
    """The data that the run was trained on, or another task's."""
    from diffmix.tasks import load_task
    from diffmix.training.recipe import load_recipe
    from diffmix.training.run_folder import recorded_data

    notices: dict[str, Any] = {"on_notice": lambda line: typer.echo(line, err=True)}
    file = model / "recipe.yaml"
    if not file.is_file():
        if task is None:
            raise RequestError(f"{model} has no recipe.yaml that names its task: give --task")
        return load_task(task, data=data, **notices)
    recipe = load_recipe(file)
    if task is not None and task != recipe.task:
        return load_task(task, data=data, **notices)
    return load_task(
        recipe.task,
        data=data if data is not None else recorded_data(model),
        validation_fraction=recipe.validation_fraction,
        text_column=recipe.text_column,
        pair_column=recipe.pair_column,
        label_column=recipe.label_column,
        extra_train=recipe.extra_train,
        limit=recipe.limit,
        stream=recipe.stream,
        **notices,
    )
