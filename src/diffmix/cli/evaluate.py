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
        typer.Option(
            help="A folder of data sets, or a file; by default as in training. Of a table of other texts, all rows are test.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="The split to measure.")] = Split.test,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a trained model: accuracy, macro-F1, NLL, Brier score and calibration, with intervals.

    Of a language model: perplexity a token and a word, bits a byte (of images bits a dimension), NLL, Brier score and
    calibration.
    """
    from diffmix.tasks.language import LanguageData

    loaded = task_data(model, task, data, whole_files=split is Split.test)
    of = _language_metrics if isinstance(loaded, LanguageData) else _classification_metrics
    metrics = {f"{split.value}/{key}": value for key, value in of(model, loaded, split).items()}
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    for line in summary_lines({key.replace("train/", "test/"): value for key, value in metrics.items()}):
        typer.echo(line.replace("test/", f"{split.value}/", 1))


def _language_metrics(model: Path, task: Any, split: Split) -> dict[str, float]:
    from diffmix.evaluation.language import language_metrics
    from diffmix.training.language import load_language_model

    loaded = load_language_model(model)
    documents = _split(task, split)
    if documents is None:
        raise RequestError(f"task {task.name} has no test split: give --split validation")
    return language_metrics(loaded.score(documents), documents)


def _classification_metrics(model: Path, task: Any, split: Split) -> dict[str, float]:
    from diffmix.evaluation import classification_metrics
    from diffmix.training.prediction import labels_for, load_classifier

    classifier = load_classifier(model)
    examples = _split(task, split)
    if examples is None:
        raise RequestError(f"task {task.name} has no labelled test rows: give --split validation")
    if not hasattr(examples, "take"):
        raise RequestError("the train split is streamed from disk and not measured: give --split validation or test")
    labels = labels_for(examples, task.label_names, classifier.label_names)
    return classification_metrics(classifier.probabilities(examples), labels)


def _split(task: Any, split: Split) -> Any:
    return task.load_test() if split is Split.test else getattr(task, split.value)


def task_data(model: Path, task: str | None, data: Path | None, *, whole_files: bool = False) -> Any:
    """The data that the run was trained on, or another task's.

    whole_files: of a file of texts that the run was not trained on, all rows are test, and there is no other split.
    """
    from diffmix.tasks import load_task
    from diffmix.tasks.language import LANGUAGE_TASKS, load_language
    from diffmix.tasks.rows import Columns
    from diffmix.tasks.text_file import whole_file
    from diffmix.training.building import recipe_data
    from diffmix.training.recipe import load_recipe
    from diffmix.training.run_folder import changed_data, recorded_data, was_trained_on

    notices: dict[str, Any] = {"on_notice": lambda line: typer.echo(line, err=True)}
    recipe = load_recipe(model / "recipe.yaml") if (model / "recipe.yaml").is_file() else None
    if not model.exists():
        raise RequestError(f"{model} holds no trained model (no config.json): give the folder of a finished run")
    if recipe is None and task is None:
        raise RequestError(f"{model} has no recipe.yaml that names its task: give --task")
    own = recipe if recipe is not None and task in (None, recipe.task) else None
    name = task if own is None else own.task
    assert name is not None
    recorded = None if own is None else recorded_data(model)
    if data is None and recorded is not None:
        data = Path(recorded)
    elsewhere = data is not None and (own is None or not was_trained_on(model, data, name))
    changed = None if own is None or elsewhere else changed_data(model, name)
    if changed is not None:
        typer.echo(
            f"{changed} has changed since this model was trained on it: rows that are cut from it are others now, and "
            "some that are measured may have been trained on",
            err=True,
        )
    if whole_files and name == "text_file" and data is not None and elsewhere and data.is_file():
        columns = Columns() if own is None else Columns(own.text_column, own.label_column, own.pair_column)
        whole = whole_file(data, columns, **notices)
        if whole is not None:
            return whole
    if name in LANGUAGE_TASKS:
        as_trained = {}
        if own is not None:
            as_trained = {"validation_fraction": own.validation_fraction, "limit": own.limit}
        return load_language(name, data=data, **as_trained, **notices)
    if own is None:
        return load_task(name, data=data, **notices)
    return recipe_data(own, data, **notices)
