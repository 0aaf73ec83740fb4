"""Self-training: a teacher labels the unlabelled texts, and those it is sure of join train (Scudder, 1965).

n texts, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from diffmix.errors import RequestError
from diffmix.evaluation import classification_metrics
from diffmix.tasks import Examples, TaskData
from diffmix.tasks.examples import TextColumn, joined_texts
from diffmix.training.baselines import train_tfidf
from diffmix.training.prediction import load_classifier
from diffmix.training.recipe import Recipe
from diffmix.training.run_folder import write_json

TAUGHT = "taught.safetensors"  # rows of the unlabelled texts, and the labels that the teacher gave them


def label_texts(recipe: Recipe, task: TaskData, folder: Path, baseline: int, notice: Callable[[str], None]) -> None:
    """Write the labels of the task's unlabelled texts that the teacher in `folder` is sure of, and what it is worth.

    With `recipe.tfidf_teacher` its probabilities are averaged with those of TF-IDF, trained on the same rows: the two err on
    different texts. Raises RequestError where the task has no unlabelled texts.
    """
    texts = unlabelled_texts(task)
    rows = Examples(np.zeros(len(texts), dtype=np.int64), texts=texts)
    folders = [folder]
    if recipe.tfidf_teacher:
        folders.append(folder / "tfidf")
        folders[1].mkdir(exist_ok=True)
        train_tfidf(dataclasses.replace(recipe, model="tfidf", config={}), task, folders[1], baseline, notice)
    parts = [
        (model.probabilities(rows), model.probabilities(task.validation)) for model in map(load_classifier, folders)
    ]
    probabilities, validation = (np.mean(part, axis=0) for part in zip(*parts, strict=True))
    sure = np.flatnonzero(probabilities.max(axis=1) >= recipe.label_confidence)
    found = classification_metrics(validation, task.validation.labels, bootstrap=0)
    write_json(
        folder / "teacher.json",
        {
            "texts": len(texts),
            "labelled": len(sure),
            **{f"validation/{key}": found[key] for key in ("accuracy", "nll")},
        },
    )
    notice(f"teacher: labels {len(sure):,} of {len(texts):,} texts, validation accuracy {found['accuracy']:.4f}")
    begun = folder / f"{TAUGHT}.partial"  # TAUGHT says that the teacher is done
    save_file({"rows": sure.astype(np.int64), "labels": probabilities[sure].argmax(axis=1)}, begun)
    begun.replace(folder / TAUGHT)


def with_taught_labels(task: TaskData, folder: Path) -> TaskData:
    """The task with the texts that the teacher in `folder` labelled behind its train rows."""
    taught = load_file(folder / TAUGHT)
    texts = unlabelled_texts(task).take(taught["rows"])
    train: Any = task.train
    joined = Examples(np.concatenate([train.labels, taught["labels"]]), texts=joined_texts([train.texts, texts]))
    facts = {**task.facts, "self_training": f"{len(texts):,} unlabelled texts with a teacher's labels join train"}
    return dataclasses.replace(task, train=joined, facts=facts)


def unlabelled_texts(task: TaskData) -> TextColumn:
    """The texts to label. Raises RequestError where the task has none, or does not read single texts."""
    texts = task.load_unlabelled() if task.load_unlabelled is not None else []
    if not isinstance(texts, TextColumn) or not isinstance(task.train, Examples) or task.train.pairs is not None:
        raise RequestError(
            f"self_training needs single texts without labels beside train, and task {task.name} has none: set self_training=null"
        )
    return texts
