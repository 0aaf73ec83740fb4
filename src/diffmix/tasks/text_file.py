"""`text_file`: any table of texts and labels, in memory or, where that would not hold it, streamed from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData, TextColumn
from diffmix.tasks.labels import check_labels, in_order, label_names, to_examples, value_counts
from diffmix.tasks.rows import Columns, Rows, pc
from diffmix.tasks.sources import split_files
from diffmix.tasks.splits import Cut, Facts, cut_off, describe_limit, describe_validation, limited
from diffmix.tasks.streamed_text_file import stream_text_file
from diffmix.tasks.table_files import read_files

_HELD_AT_MOST = (
    4_200_000_000  # bytes; no matter what is free, so that every machine, and every resumption, cuts the same rows
)


def load_text_file(
    *,
    data: str | Path | None,
    columns: Columns,
    how: Cut,
    stream: bool | None,
    on_notice: Callable[[str], None],
) -> TaskData:
    """Any CSV, TSV, JSONL or Parquet file, or a folder with a train and perhaps a validation and a test file.

    Missing splits are cut from train. Label names are those of train, in numeric order if all are whole numbers, else
    in alphabetical order. `stream`: None streams files of more than 700 MB (Parquet: half), whatever memory is free, since
    streamed files are cut in another way; True and False decide.
    """
    if data is None:
        raise RequestError("text_file: no data given; name a CSV, TSV, JSONL or Parquet file, or a folder, with --data")
    path = Path(data)
    files = {"train": [path], "validation": [], "test": [], "unsupervised": []}
    if path.is_dir():
        files = {split: split_files(path, split) for split in files}
        if not files["train"]:
            raise RequestError(
                f"--data {path}: the folder holds no train file; name it train.csv (or .tsv, .jsonl, .parquet), or give a file"
            )
    if stream is None:
        stream = _memory_needed(files["train"]) > _HELD_AT_MOST
    facts: Facts = {"source": f"file {path.name}" if path.is_file() else f"folder {path.name}"}
    load = stream_text_file if stream else _hold_text_file
    return load(files, columns, how, facts, on_notice)


def whole_file(path: Path, columns: Columns, on_notice: Callable[[str], None]) -> TaskData | None:
    """A file with all of its rows as test, for a model that was trained on others; None: it is too large for memory."""
    if _memory_needed([path]) > _HELD_AT_MOST:
        on_notice(f"{path}: too large to be held: those rows are measured that would be cut from it for test")
        return None
    rows = read_files([path], columns)
    names = in_order(value_counts(rows))
    test = to_examples(rows, path, names)
    _notice_empty(rows, path, on_notice)
    none = test.take(np.empty(0))
    facts: Facts = {"source": f"file {path.name}", "test": "all rows of the file"}
    return TaskData("text_file", names, none, none, lambda: test, facts)


def _hold_text_file(
    files: dict[str, list[Path]],
    columns: Columns,
    how: Cut,
    facts: Facts,
    on_notice: Callable[[str], None],
) -> TaskData:
    path = files["train"][0]
    rows = read_files(files["train"], columns)
    names = label_names(value_counts(rows), path)
    check_labels(files["test"], columns, names)
    train = to_examples(rows, path, names)
    _notice_empty(rows, path, on_notice)
    facts["train_rows"] = len(train)

    test: Examples | None = None
    if not files["test"]:
        train, test = cut_off(train, how, str(path))
        facts["test"] = f"{len(test)} rows cut from train (stratified, seed {how.seed})"
        facts["train_rows"] = len(train)
    if files["validation"]:
        validation = to_examples(read_files(files["validation"], columns), files["validation"][0], names)
    else:
        train, validation = cut_off(train, how, str(path))
    describe_validation(facts, validation, how, bool(files["validation"]))
    train, validation = limited(train, how), limited(validation, how)
    describe_limit(facts, how)

    def load_test() -> Examples:
        found = test or to_examples(read_files(files["test"], columns), files["test"][0], names)
        return limited(found, how)

    def load_unlabelled() -> Sequence[str]:
        if not files["unsupervised"]:
            return []
        return TextColumn(read_files(files["unsupervised"], Columns(columns.text, labelled=False)).texts)

    return TaskData("text_file", names, train, validation, load_test, facts, load_unlabelled=load_unlabelled)


def _notice_empty(rows: Rows, path: Path, on_notice: Callable[[str], None]) -> None:
    empty = pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows.texts)), 0)).as_py()
    if empty:
        on_notice(f"{path}: {empty} of {len(rows.texts)} rows have an empty text")


def _memory_needed(paths: Sequence[Path]) -> int:
    """A guess of the bytes that texts, their cuts and their tokens take at most: 1 GB of CSV measured 5."""
    return sum(path.stat().st_size * (12 if path.suffix == ".parquet" else 6) for path in paths if path.is_file())
