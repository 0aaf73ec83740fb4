"""Where data come from: `--data`, $DIFFMIX_DATA, the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

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
        try:
            from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RequestError(
                f"{place}: no local copy was found and the hub needs the package datasets; set $DIFFMIX_DATA or --data to a "
                "folder of data sets, or run: pip install 'diffmix[hub]'"
            ) from None
        try:
            table = load_dataset(*self._dataset_and_configuration, split=self._splits[split]).with_format("arrow")[:]
        except Exception as error:  # datasets raises many types: no network, no such repository, no such split
            raise RequestError(
                f"{place} ({split}) could not be had from the Hugging Face hub: {type(error).__name__}: {one_line(error)}; "
                "set $DIFFMIX_DATA or --data to a folder that holds it"
            ) from error
        return concatenate(arrow_rows(table.to_batches(), table.schema, place, columns), place, columns), place


def find_source(
    task: str, data: str | Path | None, hub: HubSource, on_notice: Callable[[str], None]
) -> FolderSource | HubSource:
    """Where to read `task` from: `data` if given, else $DIFFMIX_DATA, else the hub.

    `data` may be the folder of data-set folders or the data set's own. A task missing under `data` is a RequestError,
    one missing under $DIFFMIX_DATA a notice.
    """
    if data is not None:
        root = Path(data)
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise RequestError(
                f"--data {root}: {what}; task {task!r} takes a folder with train and test files (or a folder that holds "
                f"{task}/); for a file of your own use the recipe text_file"
            )
        for folder in (root / task, root):
            if split_files(folder, "train"):
                return FolderSource(task, folder)
        raise RequestError(
            f"--data {root}: holds no {task}/train.parquet nor train.parquet (or .csv, .tsv, .jsonl); put the files of "
            f"{task} there, or leave --data out to take $DIFFMIX_DATA or the hub"
        )
    root_name = os.environ.get("DIFFMIX_DATA")
    if root_name:
        folder = Path(root_name) / task
        if split_files(folder, "train"):
            return FolderSource(task, folder)
        on_notice(f"{task} is not in $DIFFMIX_DATA ({root_name}); trying the Hugging Face hub")
    return hub


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in `folder`: `train.csv`, or shards `train-00000-of-00002.parquet`; empty if there are none."""
    if not folder.is_dir():
        return []
    for name in SPLIT_NAMES.get(split, (split,)):
        for extension in EXTENSIONS:
            pattern = re.compile(rf"{re.escape(name)}(-\d+-of-\d+)?{re.escape(extension)}", re.IGNORECASE)
            found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
            if found:
                return found
    return []
