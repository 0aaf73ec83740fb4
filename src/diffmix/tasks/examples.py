"""What a task hands to training and evaluation: splits of examples, and what is known about them.

n: rows of a split.  C: classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import overload

import numpy as np
import pyarrow as pa

from diffmix.tasks.token_rows import TokenRows


class TextColumn(Sequence[str]):
    """A sequence of strings that stays in Arrow memory: `take` and concatenation copy indices, never text.

    An index gives a string, a slice a list of strings.
    """

    def __init__(self, values: pa.LargeStringArray, indices: np.ndarray | None = None):
        self._values = values
        self._indices = indices  # None: all rows in order

    @classmethod
    def concatenate(cls, columns: Sequence[TextColumn]) -> TextColumn:
        """The rows of several columns, one after another (this copies the text once)."""
        return cls(pa.concat_arrays([column.to_arrow() for column in columns]))

    def __len__(self) -> int:
        return len(self._values) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            if self._indices is None and index.step in (None, 1):
                start, stop, _ = index.indices(len(self))
                return self._values.slice(start, max(0, stop - start)).to_pylist()
            rows = np.arange(len(self))[index] if self._indices is None else self._indices[index]
            return self._values.take(pa.array(rows)).to_pylist()
        row = range(len(self))[index]  # negative indices, and IndexError
        return self._values[row if self._indices is None else int(self._indices[row])].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def take(self, indices: np.ndarray) -> TextColumn:
        """The rows at `indices`, in that order, sharing this column's memory."""
        rows = np.asarray(indices, dtype=np.int64)
        return TextColumn(self._values, rows if self._indices is None else self._indices[rows])

    def to_arrow(self) -> pa.LargeStringArray:
        """The rows as one Arrow array."""
        return self._values if self._indices is None else self._values.take(pa.array(self._indices))

    def codes(self) -> np.ndarray:
        """An int64 [n] that is equal for two rows exactly where their texts are equal."""
        return self.to_arrow().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def joined_texts(columns: Sequence[Sequence[str] | None]) -> TextColumn:
    """The rows of those columns that are text columns, one after another."""
    return TextColumn.concatenate([column for column in columns if isinstance(column, TextColumn)])


@dataclass(frozen=True)
class Examples:
    """One split in memory. Exactly one of `texts` and `input_ids` is given."""

    labels: np.ndarray  # int64 [n]
    texts: Sequence[str] | None = None
    pairs: Sequence[str] | None = None  # the second text of pair tasks
    # Tasks without a tokenizer, such as pixels: int [n, length], or rows of different lengths; 0 is padding and never an id.
    input_ids: np.ndarray | TokenRows | None = None
    growth: np.ndarray | None = None  # float [n]: what grows in the length warm-up, where it is not the number of ids

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.input_ids is None):
            raise ValueError("Examples: give exactly one of texts and input_ids")
        for name in ("texts", "pairs", "input_ids", "growth"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.labels):
                raise ValueError(
                    f"Examples: {name} has {len(column)} rows but labels has {len(self.labels)}; give one each"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Examples:
        """The rows at `indices`, in that order. Text is shared, not copied."""
        rows = np.asarray(indices, dtype=np.int64)
        return Examples(
            labels=self.labels[rows],
            texts=None if self.texts is None else _take(self.texts, rows),
            pairs=None if self.pairs is None else _take(self.pairs, rows),
            input_ids=self._ids_at(rows),
            growth=None if self.growth is None else self.growth[rows],
        )

    def _ids_at(self, rows: np.ndarray) -> np.ndarray | TokenRows | None:
        if isinstance(self.input_ids, TokenRows):
            return self.input_ids.take(rows)
        return None if self.input_ids is None else self.input_ids[rows]

    def label_counts(self, num_labels: int) -> np.ndarray:
        """Rows of each class, int64 [C]."""
        return np.bincount(self.labels, minlength=num_labels)

    def tokenizer_texts(self) -> Sequence[str]:
        """The texts to train a tokenizer on: all of this split's."""
        columns: list[Sequence[str]] = [column for column in (self.texts, self.pairs) if column is not None]
        return columns[0] if len(columns) == 1 else list(chain.from_iterable(columns))


@dataclass(frozen=True)
class StreamedExamples:
    """A train split too large for memory: it stays on disk and is read anew in every epoch.

    `read()` yields (texts, pairs or None, labels int64) in batches of some thousand rows, in file order.
    """

    rows: int
    counts: np.ndarray  # int64 [C]
    read: Callable[[], Iterator[tuple[list[str], list[str] | None, np.ndarray]]]
    sample: Sequence[str] = field(default=(), repr=False)  # texts drawn evenly from the train rows

    def __len__(self) -> int:
        return self.rows

    def label_counts(self, num_labels: int) -> np.ndarray:
        """Rows of each class, int64 [C]."""
        return np.pad(self.counts, (0, num_labels - len(self.counts)))

    def tokenizer_texts(self) -> Sequence[str]:
        """The texts to train a tokenizer on: a sample of bounded size, drawn evenly from the train rows."""
        return self.sample


@dataclass(frozen=True)
class TaskData:
    """A task's data. Test is not read until `load_test` is called, once, at the end."""

    name: str
    label_names: tuple[str, ...]
    train: Examples | StreamedExamples
    validation: Examples  # the source's own, or cut from train; never from test
    load_test: Callable[[], Examples | None]  # None: the source has no labelled test rows
    facts: dict[str, str | int | float]  # for metrics.json and the model card: source, train_rows, note, …
    load_unlabelled: Callable[[], Sequence[str]] | None = None  # texts without labels, never test's; may be none
    vocab_size: int | None = None  # tasks without a tokenizer only: input ids are below this
    pixels: bool = True  # whether the ids of a task without a tokenizer are pixels of images

    def all_texts(self) -> TextColumn | None:
        """The different texts of train, of pairs both, and of those without labels, in this order, to learn from without labels;
        None where train holds none in memory."""
        if not isinstance(self.train, Examples) or self.train.texts is None:
            return None
        unlabelled = self.load_unlabelled() if self.load_unlabelled is not None else None
        texts = joined_texts([self.train.texts, self.train.pairs, unlabelled])
        _, first = np.unique(texts.codes(), return_index=True)
        return texts if len(first) == len(texts) else texts.take(np.sort(first))


def cut(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a split into (kept, held out) row indices, both sorted: stratified by label, drawn with a fixed seed.

    labels: int64 [n]. groups: int64 [n]; rows of one group (equal texts) stay on one side, so that nothing leaks.
    Every class keeps at least one group; at least one row is held out.
    Raises ValueError where no class has two groups, so that nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: got {fraction}; give a number between 0 and 1, for example 0.1")
    groups = np.arange(len(labels)) if groups is None else groups
    _, first, group_of_row = np.unique(groups, return_index=True, return_inverse=True)
    group_labels = labels[first]  # a group is counted with the class of its first row
    rng = np.random.default_rng(seed)
    held = np.zeros(len(first), dtype=bool)
    largest: np.ndarray = np.empty(0, dtype=np.int64)
    for label in np.unique(group_labels):
        members = rng.permutation(np.flatnonzero(group_labels == label))
        held[members[: min(len(members) - 1, round(len(members) * fraction))]] = True
        largest = members if len(members) > len(largest) else largest
    if not held.any():
        if len(largest) < 2:
            raise ValueError("labels: every class has one row only, so no row can be held out; add rows to each class")
        held[largest[0]] = True
    row_held = held[group_of_row]
    return np.flatnonzero(~row_held), np.flatnonzero(row_held)


def _take(column: Sequence[str], rows: np.ndarray) -> Sequence[str]:
    if isinstance(column, TextColumn):
        return column.take(rows)
    return [column[int(row)] for row in rows]
