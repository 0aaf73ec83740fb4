"""Where data come from: `--data`, $DIFFMIX_DATA, the Hugging Face hub; and reading CSV, TSV, JSONL and Parquet files.

Every file is read in Arrow batches of bounded size, so that one larger than memory can be streamed.
Whatever the bytes, reading either works or raises RequestError with one line that names the file, the place and the mend.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from diffmix.errors import RequestError
from diffmix.tasks.examples import TextColumn

pc: Any = pyarrow.compute  # its functions are made on import, where no type checker sees them
EXTENSIONS = (".parquet", ".csv", ".tsv", ".jsonl")
TEXT_COLUMNS = ("text", "sentence", "review", "content", "document", "message", "comment", "body", "tweet", "title")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "language", "intent")
SPLIT_NAMES = {  # the file names under which a split may lie
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "unsupervised": ("unsupervised", "unlabelled", "unlabeled"),
}
BATCH_ROWS = 4096
_BATCH_CHARS = 1 << 24  # a batch ends earlier when its text is as long as this
_LONGEST_FIELD = 1 << 30  # characters; only an unclosed quote makes a longer one


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

    def resolve(self, names: Sequence[str], path: Path) -> dict[str, str]:
        """Which of the file's `names` is the text, the label and the pair column."""
        wanted = {"text": self.text or self._find("text", TEXT_COLUMNS, names, path)}
        if self.labelled:
            wanted["label"] = self.label or self._find("label", LABEL_COLUMNS, names, path)
        if self.pair is not None:
            wanted["pair"] = self.pair
        for kind, name in wanted.items():
            if names.count(name) != 1:
                problem = "has no column" if name not in names else "has more than one column"
                raise RequestError(
                    f"{path}: {problem} {name!r}; its columns are {_listed(names)}; name the {kind} column with "
                    f"--set {kind}_column=NAME"
                )
        return wanted

    @staticmethod
    def _find(kind: str, usual: Sequence[str], names: Sequence[str], path: Path) -> str:
        lowered = {name.strip().lower(): name for name in reversed(names)}
        for name in usual:
            if name in lowered:
                return lowered[name]
        raise RequestError(
            f"{path}: no {kind} column among {_listed(names)}; name it with --set {kind}_column=NAME "
            f"(found by itself: {', '.join(usual)})"
        )


# Finding files


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
                f"{place} ({split}) could not be had from the Hugging Face hub: {type(error).__name__}: {_one_line(error)}; "
                "set $DIFFMIX_DATA or --data to a folder that holds it"
            ) from error
        return _concatenate(_arrow_rows(table.to_batches(), table.schema, place, columns), place, columns), place


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


# Reading files


def read_file(path: str | Path, columns: Columns) -> Rows:
    """All rows of a file, in memory."""
    return _concatenate(iter_rows(path, columns), Path(path), columns)


def read_files(paths: Sequence[Path], columns: Columns) -> Rows:
    """All rows of several files (shards), in memory."""
    return _concatenate((rows for path in paths for rows in iter_rows(path, columns)), paths[0], columns)


def read_texts(path: str | Path, text_column: str | None = None) -> TextColumn:
    """The text column of a file; labels are neither needed nor read."""
    return TextColumn(read_file(path, Columns(text=text_column, labelled=False)).texts)


def iter_rows(path: str | Path, columns: Columns) -> Iterator[Rows]:
    """The rows of a file in batches of bounded size (BATCH_ROWS), whatever the size of the file."""
    path = Path(path)
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise RequestError(f"{path}: unsupported file type {path.suffix!r}; give one of {', '.join(EXTENSIONS)}")
    try:
        if not path.is_file():
            raise RequestError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; check the path")
        if path.stat().st_size == 0:
            raise RequestError(f"{path}: the file is empty; it needs a text and a label column, and rows")
        if extension == ".parquet":
            yield from _read_parquet(path, columns)
        elif extension == ".jsonl":
            yield from _read_jsonl(path, columns)
        else:
            yield from _read_csv(path, columns, "\t" if extension == ".tsv" else ",")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {_one_line(error)}; check the file and its permissions") from error


def _concatenate(batches: Iterable[Rows], path: Path, columns: Columns) -> Rows:
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


class _Collector:
    """Gathers checked rows of a text file into Arrow batches."""

    def __init__(self, kinds: Iterable[str]):
        self.kinds = tuple(kinds)
        self.first = 1
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list[str]] = {kind: [] for kind in self.kinds}
        self.chars = 0

    def add(self, row: dict[str, str]) -> None:
        for kind, value in row.items():
            self.columns[kind].append(value)
        self.chars += len(row["text"])

    def full(self) -> bool:
        return len(self.columns["text"]) >= BATCH_ROWS or self.chars >= _BATCH_CHARS

    def flush(self) -> Iterator[Rows]:
        n = len(self.columns["text"])
        if n:
            arrays = {kind: pa.array(values, type=pa.large_string()) for kind, values in self.columns.items()}
            yield Rows(arrays["text"], arrays.get("pair"), arrays.get("label"), self.first)
            self.first += n
            self._clear()


def _decoded_lines(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    """Lines as text; a byte that is not UTF-8 raises RequestError with its line and offset."""
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} is not UTF-8; "
                "save the file as UTF-8 (for example: iconv -f latin1 -t utf-8)"
            ) from None
        offset += len(line)


def _read_csv(path: Path, columns: Columns, delimiter: str) -> Iterator[Rows]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))  # a text of many megabytes is fine
    with path.open("rb") as file:
        reader = csv.reader(_decoded_lines(path, file), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
            if other is not None:
                raise RequestError(
                    f"{path}: its columns seem to be separated by {other!r}, not {delimiter!r}; save it with commas as .csv or "
                    "with tabs as .tsv"
                )
            wanted = columns.resolve(header, path)
            places = [(kind, header.index(name)) for kind, name in wanted.items()]
            collector = _Collector(wanted)
            last_line = reader.line_num
            for fields in reader:
                line, last_line = last_line + 1, reader.line_num  # a record's first line: its texts may hold more
                if not fields:
                    continue  # a blank line
                if len(fields) != len(header):
                    raise RequestError(
                        f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}; put quotes around texts "
                        f"that hold {'tabs' if delimiter == chr(9) else 'commas'} or line ends"
                    )
                row = {kind: fields[place] for kind, place in places}
                if "label" in row:
                    row["label"] = row["label"].strip()
                    if not row["label"]:
                        raise RequestError(
                            f"{path}, line {line}: column {wanted['label']!r} is empty; give the row a label"
                        )
                collector.add(row)
                if collector.full():
                    yield from collector.flush()
        except csv.Error as error:
            raise RequestError(
                f"{path}, line {reader.line_num}: {_one_line(error)}; put quotes around the text and double those inside it "
                "(and close each), or use JSONL"
            ) from None
        yield from collector.flush()


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Rows]:
    wanted: dict[str, str] = {}
    collector = None
    with path.open("rb") as file:
        for number, line in enumerate(_decoded_lines(path, file), start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RequestError(
                    f"{place}: not a JSON object: {error.msg} at column {error.colno}; write one object a line"
                ) from None
            except (ValueError, RecursionError) as error:  # too many digits, too many brackets
                raise RequestError(f"{place}: not a JSON object: {_one_line(error)}; write one object a line") from None
            if not isinstance(record, dict):
                raise RequestError(
                    f"{place}: holds {_json_kind(record)} instead of a JSON object; write one object a line"
                )
            if collector is None:
                wanted = columns.resolve(list(record), path)
                collector = _Collector(wanted)
            row = {}
            for kind, name in wanted.items():
                if record.get(name) is None:
                    problem = "is null" if name in record else "is missing"
                    raise RequestError(f"{place}: {name!r} {problem}; give every row a text and a label")
                row[kind] = (_json_label if kind == "label" else _json_text)(record[name], name, place)
            collector.add(row)
            if collector.full():
                yield from collector.flush()
    if collector is not None:
        yield from collector.flush()


def _json_text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{place}: {name!r} holds {_json_kind(value)}; a text is a string in quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            f"{place}: {name!r} holds half of a surrogate pair (\\ud800 to \\udfff); write the character itself in UTF-8"
        ) from None
    return value


def _json_label(value: Any, name: str, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError:  # thousands of digits
            raise RequestError(
                f"{place}: {name!r} holds a number of too many digits; give a class index or a name"
            ) from None
    if not isinstance(value, str):
        raise RequestError(f"{place}: {name!r} holds {_json_kind(value)}; a label is a string or a whole number")
    label = _json_text(value, name, place).strip()
    if not label:
        raise RequestError(f"{place}: {name!r} is empty; give the row a label")
    return label


def _json_kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a truth value",
        int: "a number",
        float: "a fraction",
    }
    return "null" if value is None else kinds[type(value)]


def _read_parquet(path: Path, columns: Columns) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            wanted = columns.resolve(schema.names, path)
            batches = file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(wanted.values())))
            yield from _arrow_rows(batches, schema, path, columns)
    except RequestError:
        raise
    # Arrow turns damage of many kinds into these; UnicodeDecodeError (a ValueError) comes from column names.
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as error:
        raise RequestError(f"{path}: not a readable Parquet file: {_one_line(error)}; write the file again") from error


def _arrow_rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, columns: Columns) -> Iterator[Rows]:
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


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
