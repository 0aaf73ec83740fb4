"""Reading CSV, TSV, JSONL and Parquet files.

Every file is read in Arrow batches of bounded size, so that one larger than memory can be streamed.
Whatever the bytes, reading either works or raises RequestError with one line that names the file, the place and the mend.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmix.errors import RequestError
from diffmix.tasks.examples import TextColumn
from diffmix.tasks.rows import Columns, Rows, arrow_rows, concatenate, one_line

EXTENSIONS = (".parquet", ".csv", ".tsv", ".jsonl")
BATCH_ROWS = 4096
_BATCH_CHARS = 1 << 24  # a batch ends earlier when its text is as long as this
_LONGEST_FIELD = 1 << 30  # characters; only an unclosed quote makes a longer one


def read_file(path: str | Path, columns: Columns) -> Rows:
    """All rows of a file, in memory."""
    return concatenate(iter_rows(path, columns), Path(path), columns)


def read_files(paths: Sequence[Path], columns: Columns) -> Rows:
    """All rows of several files (shards), in memory."""
    return concatenate(iter_files(paths, columns), paths[0], columns)


def read_texts(path: str | Path, text_column: str | None = None) -> TextColumn:
    """The text column of a file; labels are neither needed nor read."""
    return TextColumn(read_file(path, Columns(text=text_column, labelled=False)).texts)


def iter_files(paths: Iterable[Path], columns: Columns) -> Iterator[Rows]:
    """The rows of several files (shards), as `iter_rows` gives them: each file counts its own."""
    for path in paths:
        yield from iter_rows(path, columns)


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
        raise RequestError(f"{path}: cannot be read: {one_line(error)}; check the file and its permissions") from error


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
            marked = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            raise RequestError(
                f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} is not UTF-8; "
                f"save the file as UTF-8 (for example: iconv -f {'utf-16' if marked else 'latin1'} -t utf-8)"
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
                f"{path}, line {reader.line_num}: {one_line(error)}; put quotes around the text and double those inside it "
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
                raise RequestError(f"{place}: not a JSON object: {one_line(error)}; write one object a line") from None
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
            yield from arrow_rows(batches, schema, path, columns)
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
        raise RequestError(f"{path}: not a readable Parquet file: {one_line(error)}; write the file again") from error
