"""Rows of texts and labels: which columns hold them, and Arrow batches checked and joined into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute

from diffmix.errors import RequestError

pc: Any = pyarrow.compute  # its functions are made on import, where no type checker sees them
_LARGEST_INDEX = 2.0**53  # up to which every whole number is a float
TEXT_COLUMNS = ("text", "sentence", "review", "content", "document", "message", "comment", "body", "tweet", "title")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "language", "intent")


class Rows(NamedTuple):
    """Some rows of a file. Labels are strings here, whole numbers in decimal: tasks map them to class indices."""

    texts: pa.LargeStringArray
    pairs: pa.LargeStringArray | None
    labels: pa.LargeStringArray | None
    first: int  # the number of the first row, counted from 1 without the header


@dataclass(frozen=True)
class Columns:
    """Column names to read; None finds the column among the usual names (`pair`: reads none)."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None
    labelled: bool = True  # False: no label column is needed or read
    usual_text: str | None = None  # a name of the text column to look for before the usual ones
    option: str | None = (
        "train's --set {kind}_column=NAME"  # that names another column, for messages; None: there is none
    )

    def resolve(self, names: Sequence[str], path: Path) -> dict[str, str]:
        """Which of the file's `names` is the text, the label and the pair column."""
        likely = TEXT_COLUMNS if self.usual_text is None else (self.usual_text, *TEXT_COLUMNS)
        wanted = {"text": self.text or self._find("text", likely, names, path)}
        if self.labelled:
            wanted["label"] = self.label or self._find("label", LABEL_COLUMNS, names, path)
        if self.pair is not None:
            wanted["pair"] = self.pair
        for kind, name in wanted.items():
            if names.count(name) != 1:
                problem = "has no column" if name not in names else "has more than one column"
                raise RequestError(
                    f"{path}: {problem} {name!r}; its columns are {_listed(names)}; {self._mend(kind, name)}"
                )
        return wanted

    def _mend(self, kind: str, name: str) -> str:
        rename = f"give the {kind} column the name {name!r}"
        return rename if self.option is None else f"name it with {self.option.format(kind=kind)}, or {rename}"

    def _find(self, kind: str, usual: Sequence[str], names: Sequence[str], path: Path) -> str:
        lowered = {name.strip().lower(): name for name in reversed(names)}
        for name in usual:
            if name in names or name.strip().lower() in lowered:
                return name if name in names else lowered[name.strip().lower()]
        raise RequestError(
            f"{path}: no {kind} column among {_listed(names)}; {self._mend(kind, usual[0])} "
            f"(found by itself: {', '.join(usual)})"
        )


def concatenate(batches: Iterable[Rows], path: Path, columns: Columns) -> Rows:
    """All rows of some batches read with `columns`, in memory; `path` is what to name in messages about them."""
    parts = list(batches)
    if not any(len(part.texts) for part in parts):
        raise RequestError(f"{path}: has no rows; it needs at least a few under its header")

    def joined(arrays: list[Any]) -> Any:
        return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)

    return Rows(
        texts=joined([part.texts for part in parts]),
        pairs=None if columns.pair is None else joined([part.pairs for part in parts]),
        labels=joined([part.labels for part in parts]) if columns.labelled else None,
        first=1,
    )


def arrow_rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, columns: Columns) -> Iterator[Rows]:
    """The rows of Arrow batches, checked: a text or label that is null or of another type raises RequestError with its row."""
    wanted = columns.resolve(schema.names, path)
    first = 1
    for batch in batches:
        if not batch.num_rows:
            continue
        found = {
            kind: (_arrow_labels if kind == "label" else _arrow_texts)(batch.column(name), name, path, first)
            for kind, name in wanted.items()
        }
        yield Rows(found["text"], found.get("pair"), found.get("label"), first)
        first += batch.num_rows


def _arrow_texts(column: pa.Array, name: str, path: Path, first: int) -> pa.LargeStringArray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_string(column.type) and not pa.types.is_null(column.type):
        raise RequestError(f"{path}: column {name!r} holds {column.type}; a text column holds strings")
    _refuse(column.is_null(), name, "is null", path, first)
    column.validate(full=True)  # UTF-8 of damaged files
    return column.cast(pa.large_string())


def _arrow_labels(column: pa.Array, name: str, path: Path, first: int) -> pa.LargeStringArray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    _refuse(column.is_null(), name, "is null", path, first)
    column.validate(full=True)
    if pa.types.is_floating(column.type):
        _refuse(pc.invert(pc.equal(column, pc.floor(column))), name, "is not a whole number", path, first)
        _refuse(pc.invert(pc.less(pc.abs(column), _LARGEST_INDEX)), name, "is too large for a class index", path, first)
        column = column.cast(pa.int64())
    if not (_is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise RequestError(
            f"{path}: column {name!r} holds {column.type}; a label column holds strings or whole numbers"
        )
    labels = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    _refuse(pc.equal(labels, ""), name, "is empty", path, first)
    return labels


def _refuse(bad: pa.BooleanArray, name: str, problem: str, path: Path, first: int) -> None:
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise RequestError(f"{path}, row {first + row}: column {name!r} {problem}; give every row a text and a label")


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:12])
    return (shown + ", …" if len(names) > 12 else shown) or "none"


def one_line(error: BaseException) -> str:
    """The message of an error of another library, short enough to stand in one of ours."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
