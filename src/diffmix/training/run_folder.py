"""A run's folder: whether a run may use it, what it records about itself, and its model card."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from diffmix.errors import RequestError, RunError
from diffmix.evaluation import classification_metrics, confusion_matrix, reliability
from diffmix.tasks import TaskData
from diffmix.tasks.language import LanguageData, plain_text_files
from diffmix.tasks.pixels import PixelImages
from diffmix.tasks.sources import SPLIT_NAMES, split_files
from diffmix.training.checkpoints import write_atomically
from diffmix.training.recipe import Recipe, recipe_from_mapping

try:
    import fcntl
except ImportError:  # not on Windows: nobody guards against two processes in one folder there
    fcntl = None

CONFUSION_CLASSES = 200  # of a confusion matrix at most: it grows with their square, and beyond that nobody reads it
State = Literal["new", "unfinished", "finished"]


def claim_folder(
    folder: Path, recipe: Recipe, data: Path | str | None, *, resume: bool, seeds: int | None = None
) -> State:
    """Take a folder for a run: the run's state there, with `recipe.yaml` and `data.json` written for a new one, and what
    is left of a finished one's checkpoints removed.

    Raises RequestError, and changes nothing, where the folder holds anything else, or another run, or a run of another
    recipe, other `seeds` (None: a run of one) or other data, or of data that have changed since, or a run while `resume` is
    not given.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"output {folder} is a file: give a folder with --output")
    occupied, started_with = _occupied(folder), {}
    if not occupied and not resume:
        started_with = {"data": _path(data), "seeds": seeds, "files": _fingerprints(_path(data), recipe.task)}
        occupied = _occupied(folder)  # another process may have taken it while large data were read
    ours = (folder / "recipe.yaml").is_file()
    finished = ours and (folder / "metrics.json").is_file()
    if not occupied:
        if resume:
            raise RequestError(f"nothing to resume in {folder}: drop --resume, or give the run's folder with --output")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "data.json", json.dumps(started_with))
        write_atomically(folder / "recipe.yaml", recipe.to_yaml())
        return "new"
    if not ours:
        raise RequestError(f"output {folder} is in use (it is not empty): give another folder with --output")
    if not resume:
        holds, mend = ("a finished run", "") if finished else ("an unfinished run", "add --resume to continue it, or ")
        raise RequestError(f"output {folder} holds {holds}: {mend}give another folder with --output")
    _check_same(folder, recipe, data, seeds)
    if finished:  # it may have been killed before it had removed them
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return "finished" if finished else "unfinished"


def _occupied(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training a claimed run meanwhile. Raises RequestError where one does."""
    with contextlib.ExitStack() as held:
        if fcntl is not None:
            try:
                # Its recipe is locked, which is never replaced; the system releases it however the process ends.
                fcntl.flock(held.enter_context((folder / "recipe.yaml").open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RequestError(
                    f"{folder} is being trained by another process: wait for it to end, or give another folder with --output"
                ) from None
            except OSError:
                pass  # a file system without locks
        yield


def release_folder(folder: Path) -> None:
    """Take back what a new run wrote into its folder, which was empty or absent when the run claimed it."""
    shutil.rmtree(folder, ignore_errors=True)


def recorded_data(folder: Path) -> str | None:
    """The `--data` that a run was started with. Raises RunError where data.json is damaged."""
    return _started_with(folder).get("data")


def _started_with(folder: Path) -> dict[str, Any]:
    """What data.json keeps of the request that started a run; empty for a model from elsewhere."""
    file = folder / "data.json"
    kept = read_json(file) if file.is_file() else {}
    if not isinstance(kept.get("data"), str | None):
        raise damaged(file, "its data is no path")
    return kept


def was_trained_on(folder: Path, data: Path, task: str) -> bool:
    """Whether a run was started with `data`, also where that lies elsewhere now, or with a folder that holds it."""
    kept, path = _started_with(folder), _path(data)
    if kept.get("data") == path or "files" not in kept:  # earlier versions did not keep what tells
        return True
    return not set(kept["files"].values()).isdisjoint(_fingerprints(path, task).values())


def changed_data(folder: Path, task: str) -> Path | None:
    """A file of a run's `--data` that is no longer what it was when the run was started; None: all are, or were not recorded."""
    kept = _started_with(folder)
    before, data = kept.get("files"), kept.get("data")
    if not isinstance(before, dict) or data is None or not Path(data).exists():
        return None
    now = _fingerprints(data, task)
    return next((Path(data) / name for name in {**before, **now} if before.get(name) != now.get(name)), None)


def _fingerprints(data: str | None, task: str) -> dict[str, str]:
    """Size and checksum of the files of `task` that `data` is, or that lie in it: of tables and of plain text."""
    if data is None:
        return {}
    root = Path(data)
    files = [root]
    if root.is_dir():
        files = plain_text_files(root) if task == "plain_text" else _tables(root / task) or _tables(root)
    found = {}
    for file in files:
        with contextlib.suppress(OSError):  # what cannot be read is refused, with its reason, where it is read
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            found[str(file.relative_to(root))] = f"{file.stat().st_size} {digest}"
    return found


def _tables(folder: Path) -> list[Path]:
    with contextlib.suppress(RequestError):  # what is wrong with them is said where they are read
        return [file for split in SPLIT_NAMES for file in split_files(folder, split)]
    return []


def _path(data: Path | str | None) -> str | None:
    return None if data is None else str(Path(data).resolve())


def _check_same(folder: Path, recipe: Recipe, data: Path | str | None, seeds: int | None) -> None:
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
    kept = _started_with(folder).get("seeds", seeds)  # earlier versions did not keep it
    if kept != seeds:
        had, has = ("without --seeds" if number is None else f"with --seeds {number}" for number in (kept, seeds))
        raise RequestError(
            f"--resume: {folder} holds a run {had}, the request is one {has}: repeat it {had}, or give another folder with "
            "--output"
        )
    if data is not None and _path(data) != recorded_data(folder):
        raise RequestError(
            f"--resume: {folder} holds a run on {recorded_data(folder)}, the request has {_path(data)}: "
            "give the data it was started with, or another folder with --output"
        )
    changed = changed_data(folder, recipe.task)
    if changed is not None:
        raise RequestError(
            f"--resume: {changed} has changed since the run in {folder} was started: put it back as it was, or give another "
            "folder with --output"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises RunError where it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise damaged(path, "it holds no JSON object")
    return content


def damaged(path: Path, what: str) -> RunError:
    """The error of a file, or a folder, of a run that is not as it was written."""
    return RunError(f"{path} is damaged ({what}): put the run's own back, or train the model again")


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
