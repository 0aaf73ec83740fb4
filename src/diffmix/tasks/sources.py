"""Where data come from: `--data`, $DIFFMIX_DATA, the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.tasks.rows import Columns, Rows, arrow_rows, concatenate, one_line
from diffmix.tasks.table_files import EXTENSIONS, read_files

SPLIT_NAMES = {  # the file names under which a split may lie
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "unsupervised": ("unsupervised", "unlabelled", "unlabeled"),
}


class FolderSource:
    """A data set's files in a folder."""

    def __init__(self, task: str, folder: Path):
        self.name = f"files {task}"
        self._folder = folder

    def has(self, split: str) -> bool:
        """Whether there is a file for `split` (any name beside the usual ones is the file's own)."""
        return bool(split_files(self._folder, split))

    def read(self, split: str, columns: Columns) -> tuple[Rows, Path]:
        """The rows of a split that it has, and the file to name in messages about them."""
        paths = split_files(self._folder, split)
        return read_files(paths, columns), paths[0]


class HubSource:
    """A data set of the Hugging Face hub, read through `datasets` (the extra `hub`)."""

    def __init__(self, dataset: str, splits: dict[str, str], configuration: str | None = None):
        self.name = f"hub {dataset}"
        self._dataset = dataset
        self._splits = splits  # our name → the hub's
        self._dataset_and_configuration = (dataset,) if configuration is None else (dataset, configuration)

    def has(self, split: str) -> bool:
        """Whether the hub has labelled rows for `split` (unlabelled ones for "unsupervised")."""
        return split in self._splits

    def read(self, split: str, columns: Columns) -> tuple[Rows, Path]:
        """The rows of a split that it has, and the place to name in messages about them."""
        place = Path(self._dataset)
        table = self.table(split)
        return concatenate(arrow_rows(table.to_batches(), table.schema, place, columns), place, columns), place

    def table(self, split: str) -> Any:
        """The Arrow table of a split that it has."""
        place = Path(self._dataset)
        try:
            from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RequestError(
                f"{place}: no local copy was found and the hub needs the package datasets; set $DIFFMIX_DATA or --data to a "
                "folder of data sets, or run: pip install 'diffmix[hub]'"
            ) from None
        try:
            return load_dataset(*self._dataset_and_configuration, split=self._splits[split]).with_format("arrow")[:]
        except Exception as error:  # datasets raises many types: no network, no such repository, no such split
            raise RequestError(
                f"{place} ({split}) could not be had from the Hugging Face hub: {type(error).__name__}: {one_line(error)}; "
                "set $DIFFMIX_DATA or --data to a folder that holds it"
            ) from error


def find_source(
    task: str, data: str | Path | None, hub: HubSource | str, on_notice: Callable[[str], None]
) -> FolderSource | HubSource:
    """Where to read `task` from: `data` if given, else $DIFFMIX_DATA, else the hub.

    `data` may be the folder of data-set folders or the data set's own. `hub` is the text to refuse with where the hub has
    no usable copy. A task missing under `data` is a RequestError, one missing under $DIFFMIX_DATA a notice.
    """
    folder = find_folder(
        (task,),
        data,
        lambda folder: bool(split_files(folder, "train")),
        f"{task}/train.parquet nor train.parquet (or .csv, .tsv, .jsonl)",
        on_notice if isinstance(hub, HubSource) else lambda _: None,
    )
    if folder is not None:
        return FolderSource(task, folder)
    if isinstance(hub, str):
        raise RequestError(f"{task}: no local copy was found and {hub}")
    return hub


def find_folder(
    names: Sequence[str],
    data: str | Path | None,
    holds: Callable[[Path], bool],
    files: str,
    on_notice: Callable[[str], None],
) -> Path | None:
    """The first folder that `holds` the files of a task: `data`/NAME or `data` itself, or $DIFFMIX_DATA/NAME; None: no such.

    names: of the task first, then of its other copies. files: what would be there, for messages. Raises RequestError where
    `data` is given and holds none.
    """
    task = names[0]
    if data is not None:
        root = Path(data)
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise RequestError(
                f"--data {root}: {what}; task {task!r} takes a folder with train and test files (or a folder that holds "
                f"{task}/); for a file of your own use the recipe text_file"
            )
        for folder in (*(root / name for name in names), root):
            if holds(folder):
                return folder
        raise RequestError(
            f"--data {root}: holds no {files}; put the files of {task} there, or leave --data out to take $DIFFMIX_DATA or "
            "the hub"
        )
    root_name = os.environ.get("DIFFMIX_DATA")
    if root_name:
        for name in names:
            if holds(Path(root_name) / name):
                return Path(root_name) / name
        on_notice(f"{task} is not in $DIFFMIX_DATA ({root_name}); trying the Hugging Face hub")
    return None


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in `folder`: `train.csv`, or shards `train-00000-of-00002.parquet`; empty if there are none.

    Raises RequestError where shards are missing, or stand beside a whole file.
    """
    if not folder.is_dir():
        return []
    for name in SPLIT_NAMES.get(split, (split,)):
        for extension in EXTENSIONS:
            pattern = re.compile(rf"{re.escape(name)}(?:-(\d+)-of-(\d+))?{re.escape(extension)}", re.IGNORECASE)
            found = {path: (match[1], match[2]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
            if found:
                _check_shards(found)
                return sorted(found)
    return []


def _check_shards(found: Mapping[Path, tuple[str | None, str | None]]) -> None:
    """Refuse files of a split (path → number and count of a shard, or twice None) that are not the whole of it."""
    names = sorted(path.name for path in found)
    folder = next(iter(found)).parent
    if len(found) > 1 and (None, None) in found.values():
        raise RequestError(f"{folder}: {names[0]} and {names[1]} are both there: keep one of them, or the shards alone")
    shards = sorted((int(number), int(count)) for number, count in found.values() if number and count)
    first = shards[0][0] if shards else 0  # shards are counted from 0, or from 1
    if first > 1 or any(shard != (place, len(shards)) for place, shard in enumerate(shards, start=first)):
        raise RequestError(
            f"{folder}: of the shards beside {names[0]} some are missing, or too many: put all of one set there"
        )
