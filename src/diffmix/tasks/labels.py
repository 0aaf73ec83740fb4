"""Labels of rows: their names, in order, and the class indices that follow from them.

n: rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TextColumn
from diffmix.tasks.rows import Columns, Rows, pc
from diffmix.tasks.table_files import iter_rows


def value_counts(rows: Rows) -> dict[str, int]:
    """How often each label occurs."""
    assert rows.labels is not None
    return {item["values"].as_py(): item["counts"].as_py() for item in rows.labels.value_counts()}


def label_names(counts: dict[str, int], path: Path) -> tuple[str, ...]:
    """The label names of train, in their order. Refuses what cannot be a classification task."""
    if len(counts) < 2:
        raise RequestError(
            f"{path}: every row has the label {next(iter(counts))!r}; a classifier needs two classes or more "
            "(another column? train takes --set label_column=NAME)"
        )
    if max(counts.values()) < 2:
        raise RequestError(
            f"{path}: no label occurs twice ({len(counts)} labels in as many rows); is the label column right? "
            "train takes --set label_column=NAME"
        )
    return in_order(counts)


def in_order(labels: Collection[str]) -> tuple[str, ...]:
    """In numeric order if all are whole numbers, else in alphabetical order."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def label_indices(rows: Rows, path: Path, names: Sequence[str]) -> np.ndarray:
    """Class indices, int64 [n]. A label that is not among `names` raises RequestError with its row."""
    indices = pc.index_in(rows.labels, value_set=pa.array(names, type=pa.large_string()))
    unknown = pc.index(indices.is_null(), True).as_py()
    if unknown >= 0:
        label = rows.labels[unknown].as_py() if rows.labels is not None else None
        shown = ", ".join(repr(name) for name in names[:10]) + (", …" if len(names) > 10 else "")
        raise RequestError(
            f"{path}, row {rows.first + unknown}: unknown label {label!r}; the labels of train are {shown}; "
            "mend or remove the row"
        )
    return indices.to_numpy(zero_copy_only=False).astype(np.int64)


def check_labels(paths: Sequence[Path], columns: Columns, names: Sequence[str]) -> None:
    """Refuse a test file with labels that train lacks before hours of training; nothing else is taken from it."""
    for path in paths:
        for rows in iter_rows(path, columns):
            label_indices(rows, path, names)


def to_examples(rows: Rows, path: Path, names: Sequence[str]) -> Examples:
    """The rows with class indices for labels. A label that is not among `names` raises RequestError with its row."""
    return Examples(
        labels=label_indices(rows, path, names),
        texts=TextColumn(rows.texts),
        pairs=None if rows.pairs is None else TextColumn(rows.pairs),
    )
