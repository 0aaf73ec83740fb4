"""A run's folder: whether a run may use it, what it records about itself, and its model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from diffmix.errors import RequestError
from diffmix.evaluation import classification_metrics, confusion_matrix, reliability
from diffmix.tasks import TaskData
from diffmix.tasks.language import LanguageData
from diffmix.tasks.pixels import PixelImages
from diffmix.training.checkpoints import write_atomically
from diffmix.training.recipe import Recipe, recipe_from_mapping

CONFUSION_CLASSES = 200  # of a confusion matrix at most: it grows with their square, and beyond that nobody reads it
State = Literal["new", "unfinished", "finished"]


def claim_folder(folder: Path, recipe: Recipe, data: Path | str | None, *, resume: bool) -> State:
    """Take a folder for a run: the run's state there, with `recipe.yaml` and `data.json` written for a new one.

    Raises RequestError, and changes nothing, where the folder holds anything else, or another run, or a run of another
    recipe or other data, or a run while `resume` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output {folder} is a file: give a folder with --output")
    occupied = folder.is_dir() and any(folder.iterdir())
    ours = (folder / "recipe.yaml").is_file()
    finished = ours and (folder / "metrics.json").is_file()
    if not occupied:
        if resume:
            raise RequestError(f"nothing to resume in {folder}: drop --resume, or give the run's folder with --output")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "data.json", json.dumps({"data": _path(data)}))
        write_atomically(folder / "recipe.yaml", recipe.to_yaml())
        return "new"
    if not ours:
        raise RequestError(f"output {folder} is in use (it is not empty): give another folder with --output")
    if not resume:
        holds, mend = ("a finished run", "") if finished else ("an unfinished run", "add --resume to continue it, or ")
        raise RequestError(f"output {folder} holds {holds}: {mend}give another folder with --output")
    _check_same(folder, recipe, data)
    return "finished" if finished else "unfinished"


def release_folder(folder: Path) -> None:
    """Take back what a new run wrote into its folder, which was empty or absent when the run claimed it."""
    shutil.rmtree(folder, ignore_errors=True)


def recorded_data(folder: Path) -> str | None:
    """The `--data` that a run was started with."""
    try:
        return json.loads((folder / "data.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        return None


def _path(data: Path | str | None) -> str | None:
    return None if data is None else str(Path(data).resolve())


def _check_same(folder: Path, recipe: Recipe, data: Path | str | None) -> None:
    file = folder / "recipe.yaml"
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
        before = recipe_from_mapping(recorded, name=str(recorded.get("name"))).to_dict()
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        raise RequestError(f"{file} is damaged: give another folder with --output") from None
    now = recipe.to_dict()
    for key in {**before, **now}:
        if key != "name" and before.get(key) != now.get(key):
            raise RequestError(
                f"--resume: {folder} holds a run with {key}={before.get(key)!r}, the request has {key}={now.get(key)!r}: "
                "give the recipe it was started with, or another folder with --output"
            )
    if data is not None and _path(data) != recorded_data(folder):
        raise RequestError(
            f"--resume: {folder} holds a run on {recorded_data(folder)}, the request has {_path(data)}: "
            "give the data it was started with, or another folder with --output"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def finish_metrics(folder: Path, probabilities: np.ndarray, labels: np.ndarray, task: TaskData) -> dict[str, float]:
    """A classifier's test metrics, flat; writes evaluation.json with the confusion matrix and the reliability diagram."""
    write_evaluation(
        folder,
        len(labels),
        reliability(probabilities, labels),
        task.label_names,
        confusion_matrix(probabilities, labels),
    )
    return {f"test/{key}": value for key, value in classification_metrics(probabilities, labels).items()}


def write_evaluation(
    folder: Path,
    n: int,
    reliability: Sequence[Mapping[str, Any]],
    labels: Sequence[str] = (),
    confusion: np.ndarray | None = None,
) -> None:
    """evaluation.json: the reliability diagram of n test predictions, and a classifier's confusion matrix, of few classes."""
    record = {"split": "test", "n": n, "labels": list(labels), "reliability": list(reliability)}
    record["confusion"] = [] if confusion is None or len(confusion) > CONFUSION_CLASSES else confusion.tolist()
    write_json(folder / "evaluation.json", record)


def write_run_files(
    folder: Path,
    recipe: Recipe,
    task: TaskData | LanguageData,
    metrics: dict[str, Any],
) -> None:
    """README.md and, last of all files, metrics.json: it says that the run is finished."""
    write_atomically(folder / "README.md", model_card(recipe, task, metrics))
    facts = {f"data/{key}": value for key, value in task.facts.items()}
    write_json(folder / "metrics.json", {"task": task.name, "recipe": recipe.name, **metrics, **facts})


def model_card(recipe: Recipe, task: TaskData | LanguageData, metrics: Mapping[str, Any]) -> str:
    """The README.md of a run's folder, with the front matter that the Hugging Face hub reads."""
    generates = isinstance(task, LanguageData)
    images = isinstance(task, LanguageData) and isinstance(task.validation, PixelImages)
    tags = [
        "diffmix",
        recipe.model,
        *([str(recipe.config.get("mixer", "neighbor"))] if recipe.model == "diffmix" else []),
    ]
    head = {
        "library_name": "transformers" if recipe.model != "tfidf" else "diffmix",
        "pipeline_tag": _pipeline_tag(task),
        "tags": list(dict.fromkeys(tags)),
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {recipe.name}", ""]
    kind = f"`{recipe.model}`" + (
        f", mixer `{recipe.config.get('mixer', 'neighbor')}`" if recipe.model == "diffmix" else ""
    )
    what = "A causal model of images, pixel by pixel" if images else "A causal language model"
    if isinstance(task, TaskData):
        what = f"A classifier of {len(task.label_names)} classes"
    lines += [f"{what} ({kind}), {metrics.get('parameters', 0):,} parameters.", ""]
    if isinstance(task, TaskData):
        lines += ["Labels: " + ", ".join(f"`{name}`" for name in task.label_names) + ".", ""]
    lines += ["## Data", "", *(f"- {key.replace('_', ' ')}: {value}" for key, value in task.facts.items())]
    lines += [
        f"- trained on {metrics['train/examples']:,} {'images' if images else 'windows of the text' if generates else 'rows'}",
        "",
        "## Results",
        "",
        "| | value | 95 % interval |",
        "|---|---|---|",
    ]
    for key, value in metrics.items():
        if not key.startswith(("test/", "validation/")) or key.endswith(("_low", "_high")):
            continue
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        lines.append(
            f"| {key} | {value:,} | {interval} |"
            if value == int(value) and value > 1
            else f"| {key} | {value:.4f} | {interval} |"
        )
    for key, unit in (
        ("train/seconds", "s"),
        ("train/tokens_per_second", "tokens/s"),
        ("train/peak_memory_bytes", "bytes"),
    ):
        if key in metrics:
            lines.append(f"| {key} | {metrics[key]:,.0f} {unit} | |")
    over = "images" if images else "documents" if generates else "rows"
    lines += ["", f"The intervals are bootstrap intervals over the test {over}.", "", "## Use", ""]
    lines += _usage(recipe, task)
    lines += ["", "## Recipe", "", "```yaml", recipe.to_yaml().strip(), "```", ""]
    return "\n".join(lines)


def _pipeline_tag(task: TaskData | LanguageData) -> str:
    """The hub's name of what the model does; pixels as tokens have none of their own."""
    if isinstance(task, LanguageData):
        return "unconditional-image-generation" if isinstance(task.validation, PixelImages) else "text-generation"
    return "image-classification" if task.vocab_size is not None and task.pixels else "text-classification"


def _usage(recipe: Recipe, task: TaskData | LanguageData) -> list[str]:
    if isinstance(task, LanguageData) and not isinstance(task.validation, PixelImages):
        return ["```console", '$ diffmix generate FOLDER --prompt "Once"', "```"]
    if isinstance(task, LanguageData) or task.vocab_size is not None:
        return ["```console", "$ diffmix evaluate FOLDER", "```"]
    if recipe.model == "tfidf" or task.validation.pairs is not None:
        return (
            ["```console", "$ diffmix evaluate FOLDER", "```"]
            if recipe.model != "tfidf"
            else ["```console", '$ diffmix predict FOLDER "some text"', "```"]
        )
    return [
        "```python",
        *(["import diffmix.models  # registers the model type"] if recipe.model == "diffmix" else []),
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", model="FOLDER")',
        'classify("some text", truncation=True)',
        "```",
    ]
