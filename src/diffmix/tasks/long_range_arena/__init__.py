"""The Long Range Arena (Tay et al. 2021): six tasks of long sequences, generated or read from files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from diffmix.errors import RequestError
from diffmix.tasks.data_sets import load_data_set
from diffmix.tasks.examples import TaskData
from diffmix.tasks.images import load_images
from diffmix.tasks.splits import Cut

LISTOPS_TASKS = ("listops", "listops_short")
GENERATED_TASKS = (*LISTOPS_TASKS, "pathfinder", "pathfinder_x")
LRA_TASKS = (*GENERATED_TASKS, "lra_text", "lra_image", "lra_retrieval", "newsgroups_retrieval")

__all__ = ["GENERATED_TASKS", "LISTOPS_TASKS", "LRA_TASKS", "load_long_range_arena"]


def load_long_range_arena(
    name: str,
    *,
    data: str | Path | None,
    how: Cut,
    extra_train: Sequence[str] = (),
    on_notice: Callable[[str], None] = print,
) -> TaskData:
    """One of LRA_TASKS.

    Generated tasks take the set or the official files that `data` holds, else the official files under $DIFFMIX_DATA, else the
    set of the cache, which is generated where it is not there yet. `lra_text` is IMDB (give its recipe the tokenizer `bytes`) and
    `lra_image` CIFAR-10 made grey. `extra_train`: easier sets that join the train rows of generated tasks, see `curriculum`.
    Raises RequestError.
    """
    if extra_train and name not in GENERATED_TASKS:
        raise RequestError(f"extra_train: task {name!r} takes none, got {extra_train!r}; leave it out")
    root = None if data is None else Path(data)
    if root is not None and not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise RequestError(f"--data {root}: {what}; task {name!r} takes a folder")
    if name == "newsgroups_retrieval":
        from diffmix.tasks.long_range_arena.retrieval import load_newsgroups

        return load_newsgroups(data, how, on_notice)
    if name == "lra_text":
        task = load_data_set("imdb", data=data, how=how, extra_train=(), on_notice=on_notice)
        return dataclasses.replace(task, name=name)
    if name == "lra_image":
        return dataclasses.replace(load_images("cifar10", data=data, how=how, on_notice=on_notice), name=name)
    if name == "lra_retrieval":
        return _retrieval(root, how)
    task = _generated(name, root, how, on_notice)
    if extra_train:
        from diffmix.tasks.long_range_arena.curriculum import with_easier

        return with_easier(task, extra_train, on_notice)
    return task


def _generated(name: str, data: Path | None, how: Cut, on_notice: Callable[[str], None]) -> TaskData:
    from diffmix.tasks.long_range_arena import listops_files, pathfinder_files
    from diffmix.tasks.long_range_arena.generated import CONNECTED, GENERATED, given_set, own_set, to_task
    from diffmix.tasks.long_range_arena.paddles import PathfinderParameters

    if data is not None:
        found = given_set(name, data)
        if found is not None:
            return to_task(name, found, how)
    content = GENERATED[name].content
    if name == "listops":
        folder = _folder(listops_files.FOLDERS, data, listops_files.has_files)
        if folder is not None:
            return listops_files.load_files(name, folder, how)
    if isinstance(content, PathfinderParameters):
        folder = _folder(pathfinder_files.FOLDERS[name], data, pathfinder_files.has_files)
        if folder is not None:
            return pathfinder_files.load_files(name, folder, content.side, CONNECTED, how)
    if data is not None:
        official = {"listops": " nor basic_train.tsv", "listops_short": ""}.get(
            name, f" nor {pathfinder_files.LEVEL}/metadata"
        )
        raise RequestError(
            f"--data {data}: holds no set.json of a generated set{official} for task {name!r}; leave --data out to generate the "
            f"set, or write one there with diffmix data {name} --output {data}"
        )
    return to_task(name, own_set(name, on_notice), how)


def _retrieval(data: Path | None, how: Cut) -> TaskData:
    from diffmix.tasks.long_range_arena import retrieval

    folder = _folder(retrieval.FOLDERS, data, retrieval.has_files)
    if folder is None:
        raise retrieval.missing_files(data)
    return retrieval.load_files(folder, how)


def _folder(names: Sequence[str], data: Path | None, holds: Callable[[Path], bool]) -> Path | None:
    """The first of `data`/NAME, `data` itself, or (None) $DIFFMIX_DATA/NAME that holds a task's official files."""
    roots = [data / name for name in names] + [data] if data is not None else []
    if data is None and os.environ.get("DIFFMIX_DATA"):
        roots = [Path(os.environ["DIFFMIX_DATA"]) / name for name in names]
    return next((root for root in roots if holds(root)), None)
