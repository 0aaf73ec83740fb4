"""Training a recipe, from its data to the run's folder.

Everything that decides the result follows from the recipe: the same seed gives the same rows in the same order, whatever
the number of processes, and a run that was killed and resumed ends as the uninterrupted one. (The mean train loss that is shown
at the next evaluation begins at the checkpoint.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError, RunError
from diffmix.evaluation import mean_interval
from diffmix.models.attention import attention_option
from diffmix.tasks.language import LANGUAGE_TASKS, load_language
from diffmix.training.building import VALIDATION_SEED, check_pretraining, check_rows, recipe_data
from diffmix.training.distributed import is_first_process, join_processes, on_first_process, process_count
from diffmix.training.fitting import Notice
from diffmix.training.hardware import resident_memory, resolve_device, resolve_dtype
from diffmix.training.language import check_classifier_recipe, check_language_recipe, train_language_model
from diffmix.training.phases import Run
from diffmix.training.prediction import trained_attention
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import claim_folder, hold_folder, read_json, recorded_data, release_folder, write_json
from diffmix.training.self_training import TAUGHT, label_texts, unlabelled_texts, with_taught_labels

# What safetensors and torch.save say where nothing more can be written.
_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed", "] . unexpected pos", "iostream error")


def train(
    recipe: Recipe,
    *,
    data: Path | str | None = None,
    output: Path | str,
    resume: bool = False,
    notice: Notice = print,
) -> dict[str, Any]:
    """Train `recipe` and fill the run's folder `output`; the metrics of its metrics.json.

    Started by torchrun, the processes share every global batch. Test data are read once, at the end.

    Raises:
        RequestError: the folder is in use, the data or a value is wrong. Nothing was changed.
        RunError: the loss is not finite, no space is left, no whole checkpoint is left. What was trained can be resumed; of a run
            without a checkpoint nothing is left.
    """
    return _train_one(recipe, data, Path(output), resume, notice, resident_memory())


def train_seeds(
    recipe: Recipe,
    seeds: int,
    *,
    data: Path | str | None = None,
    output: Path | str,
    resume: bool = False,
    notice: Notice = print,
) -> dict[str, Any]:
    """Train `recipe` with seeds 0 … seeds-1 into seed-0 …; each metric's mean with its 95 % t-interval.

    Pre-training is done once, in `output`/pretraining, and shared. Raises like `train`.
    """
    if seeds < 1:
        raise RequestError(f"seeds is {seeds}; give 1 or more")
    recipe = _with_attention_of_start(recipe)
    output, baseline = Path(output), resident_memory()
    if recipe.model != "tfidf":
        join_processes(resolve_device(recipe.device))
    state = on_first_process(lambda: claim_folder(output, recipe, data, resume=resume, seeds=seeds))
    if state == "finished":
        return _finished(output, notice)
    data = recorded_data(output)
    with _held(output), _explained(output), _undone(output, state):
        if _is_finished(output):
            return _finished(output, notice)
        pretrained = taught = None
        if recipe.pretraining is not None:
            pretrained = _pretrain(recipe, data, output / "pretraining", notice, baseline)
        if recipe.self_training is not None:
            taught = _teach(recipe, data, output / "teacher", notice, baseline, pretrained)
        runs = []
        for seed in range(seeds):
            folder = output / f"seed-{seed}"
            notice(f"seed {seed} of {seeds}: {folder}")
            started = (folder / "recipe.yaml").is_file()
            one = recipe.replace(seed=seed)
            runs.append(_train_one(one, data, folder, started, notice, baseline, pretrained=pretrained, taught=taught))
        summary = summarise(runs)
        on_first_process(lambda: write_json(output / "metrics.json", summary))
    return summary


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every number that all `runs` have; with several runs `KEY_low` and `KEY_high`, its 95 % t-interval.

    The intervals of the single runs, which are over test rows and not over seeds, are left out.
    """
    summary: dict[str, Any] = {"seeds": len(runs)}
    for key, first in runs[0].items():
        values = [run.get(key) for run in runs]
        if key.endswith(("_low", "_high")):
            continue
        if isinstance(first, int | float) and not isinstance(first, bool) and all(v is not None for v in values):
            numbers = [float(value) for value in values if value is not None]
            summary[key] = statistics.fmean(numbers)
            if len(runs) > 1:
                _, summary[f"{key}_low"], summary[f"{key}_high"] = mean_interval(numbers)
        elif all(value == first for value in values):
            summary[key] = first
    return summary


def _train_one(
    recipe: Recipe,
    data: Path | str | None,
    folder: Path,
    resume: bool,
    notice: Notice,
    baseline: int,
    *,
    pretrained: Path | None = None,
    taught: Path | None = None,
) -> dict[str, Any]:
    recipe = _with_attention_of_start(recipe)
    (check_language_recipe if recipe.task in LANGUAGE_TASKS else check_classifier_recipe)(recipe)
    if recipe.model == "tfidf":
        if process_count() > 1:
            raise RequestError("model=tfidf trains in one process: start it without torchrun")
        state = claim_folder(folder, recipe, data, resume=resume)
        if state == "finished":
            return _finished(folder, notice)
        from diffmix.training.baselines import train_tfidf

        with _held(folder), _explained(folder), _undone(folder, state):
            if _is_finished(folder):
                return _finished(folder, notice)
            task = recipe_data(recipe, recorded_data(folder), notice)
            return train_tfidf(recipe, task, folder, baseline, notice)
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.dtype, device)
    join_processes(device)
    state = on_first_process(lambda: claim_folder(folder, recipe, data, resume=resume))
    if state == "finished":
        return _finished(folder, notice)
    with _held(folder), _explained(folder), _undone(folder, state):
        if _is_finished(folder):
            return _finished(folder, notice)
        data = recorded_data(folder)
        if recipe.pretraining is not None and pretrained is None:
            pretrained = _pretrain(recipe, data, folder / "pretraining", notice, baseline)
        if recipe.self_training is not None and taught is None:
            taught = _teach(recipe, data, folder / "teacher", notice, baseline, pretrained)
        start = Path(recipe.init_from) if recipe.init_from is not None else pretrained
        run = Run(recipe, folder, device, dtype, baseline, notice)
        if recipe.task in LANGUAGE_TASKS:
            task = load_language(
                recipe.task,
                data=data,
                seed=VALIDATION_SEED,
                validation_fraction=recipe.validation_fraction,
                limit=recipe.limit,
                on_notice=run.notice,
            )
            return train_language_model(run, task)
        task = recipe_data(recipe, data, notice)
        if taught is not None:
            task = with_taught_labels(task, taught)
        return run.classification(task, start)


def _with_attention_of_start(recipe: Recipe) -> Recipe:
    """The recipe; where it names no attention but starts from a run that was trained with one, with that.

    Its weights belong to it. Raises RequestError for an attention that is unknown.
    """
    attention_option(recipe.attn_implementation)
    if recipe.init_from is None or recipe.attn_implementation is not None or recipe.model in ("diffmix", "tfidf"):
        return recipe
    return recipe.replace(**trained_attention(Path(recipe.init_from)))


def _is_finished(folder: Path) -> bool:
    """Asked again once the folder is held: another process may have finished it meanwhile."""
    return (folder / "metrics.json").is_file()


def _finished(folder: Path, notice: Notice) -> dict[str, Any]:
    notice(f"{folder} is finished: nothing to do")
    return read_json(folder / "metrics.json")


def _pretrain(recipe: Recipe, data: Path | str | None, folder: Path, notice: Notice, baseline: int) -> Path:
    """The folder of the denoising phase of `recipe`, trained or continued as needed."""
    phase = recipe.pretraining_recipe()
    assert phase is not None
    device = resolve_device(phase.device)
    exists = (folder / "recipe.yaml").is_file()
    state = on_first_process(lambda: claim_folder(folder, phase, data, resume=exists))
    if state != "finished":
        notice(f"pre-training: {folder}")
        with _explained(folder), _undone(folder, state):
            read = recipe_data(phase, data, notice)
            task = read if phase.task == recipe.task else recipe_data(recipe, data, notice)
            check_pretraining(recipe, phase, task, read)
            check_rows(recipe, task)
            if recipe.self_training is not None:
                unlabelled_texts(task)
            run = Run(phase, folder, device, resolve_dtype(phase.dtype, device), baseline, notice)
            run.pretraining(read)
    return folder


def _teach(
    recipe: Recipe, data: Path | str | None, folder: Path, notice: Notice, baseline: int, pretrained: Path | None
) -> Path:
    """The folder of the teacher of `recipe`, trained or continued as needed, with its labels of the unlabelled texts."""
    teacher = recipe.teacher_recipe()
    assert teacher is not None
    teacher = _with_attention_of_start(teacher)
    if (folder / TAUGHT).is_file():
        return folder
    notice(f"teacher: {folder}")
    device = resolve_device(teacher.device)
    exists = (folder / "recipe.yaml").is_file()
    state = on_first_process(lambda: claim_folder(folder, teacher, data, resume=exists))
    with _explained(folder), _undone(folder, state):
        # The teacher never sees test: what it would score there decides nothing.
        task = dataclasses.replace(recipe_data(teacher, data, notice), load_test=lambda: None)
        unlabelled_texts(task)  # that there are some is known before anything is trained
        if state != "finished":
            start = Path(teacher.init_from) if teacher.init_from is not None else pretrained
            run = Run(teacher, folder, device, resolve_dtype(teacher.dtype, device), baseline, notice)
            run.classification(task, start)
        on_first_process(lambda: label_texts(teacher, task, folder, baseline, notice))
    return folder


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, for all processes that train it together."""
    with contextlib.ExitStack() as held:
        on_first_process(lambda: held.enter_context(hold_folder(folder)))
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the ways in which writing can fail into one line."""
    try:
        yield
    except (RequestError, RunError):
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(_no_space(folder)) from error
    except Exception as error:  # safetensors and torch.save raise types of their own
        if any(words in str(error) for words in _FULL):
            raise RunError(_no_space(folder)) from error
        raise


@contextlib.contextmanager
def _undone(folder: Path, state: str) -> Iterator[None]:
    """Leave an empty folder empty where the run fails; what was trained by then stays."""
    try:
        yield
    except Exception:
        if state == "new" and is_first_process() and not any(folder.rglob("model.safetensors")):
            release_folder(folder)
        raise


def _no_space(folder: Path) -> str:
    return f"no space left while writing {folder}: free some, then run the command again (with --resume where the folder is left)"
