"""Reading files: every format gives the same rows, and bad input gives one line that names the place and the mend."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmix.errors import RequestError
from diffmix.tasks.rows import Columns
from diffmix.tasks.table_files import BATCH_ROWS, iter_rows, read_file, read_texts

TEXTS = ["a, b", 'say "hi"', "two\nlines", "", "naïve ☃", "tab\there"]
LABELS = ["x", "y", "x", "y", "x", "y"]


def write(path, texts, labels, text="text", label="label"):
    """A file in the format of the path's extension."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({text: texts, label: labels}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({text: t, label: y}) + "\n" for t, y in zip(texts, labels, strict=True)))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([[text, label], *zip(texts, labels, strict=True)])
    return path


def message(path, columns=None):
    """The RequestError of reading a file, which must be one line naming the file."""
    with pytest.raises(RequestError) as caught:
        read_file(path, columns or Columns())
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_formats_agree(tmp_path, extension):
    rows = read_file(write(tmp_path / f"data.{extension}", TEXTS, LABELS), Columns())
    assert rows.texts.to_pylist() == TEXTS
    assert rows.labels is not None
    assert rows.labels.to_pylist() == LABELS


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_integer_labels_and_named_columns(tmp_path, extension):
    path = write(tmp_path / f"data.{extension}", ["a", "b"], [3, 12], text="words", label="kind")
    rows = read_file(path, Columns(text="words", label="kind"))
    assert rows.labels is not None
    assert rows.labels.to_pylist() == ["3", "12"]
    assert list(read_texts(path, "words")) == ["a", "b"]


def test_usual_names_are_found_whatever_their_case(tmp_path):
    rows = read_file(write(tmp_path / "data.csv", ["a", "b"], [0, 1], text="Review", label="Sentiment"), Columns())
    assert rows.texts.to_pylist() == ["a", "b"]


@pytest.mark.parametrize("label", [float("inf"), -float("inf"), 1e30, 0.5, float("nan")])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_fractions_that_are_no_class_index_are_named_with_their_row(tmp_path, label, kind):
    labels = pa.array([1.0, label], type=kind)
    problem = "is not a whole number" if label == 0.5 or label != label else "is too large for a class index"
    found = message(write(tmp_path / "data.parquet", ["a", "b"], labels))
    assert f"row 2: column 'label' {problem}" in found


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named_where_its_mark_is_there(tmp_path, encoding):
    path = tmp_path / "data.csv"
    path.write_bytes("\ufefftext,label\nä,1\n".encode(encoding))
    assert "iconv -f utf-16 -t utf-8" in message(path)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("\ufefftext,label\r\nä,1\r\n\r\nb,0\r\n".encode())
    rows = read_file(path, Columns())
    assert rows.texts.to_pylist() == ["ä", "b"]


def test_batches_are_bounded_and_numbered(tmp_path):
    n = 2 * BATCH_ROWS + 5
    path = write(tmp_path / "data.csv", [f"text {i}" for i in range(n)], ["x", "y"] * (n // 2) + ["x"])
    batches = list(iter_rows(path, Columns()))
    assert [len(batch.texts) for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 5]
    assert [batch.first for batch in batches] == [1, BATCH_ROWS + 1, 2 * BATCH_ROWS + 1]


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_ten_megabyte_line(tmp_path, extension):
    long = "word " * 2_000_000
    rows = read_file(write(tmp_path / f"data.{extension}", [long, "b"], ["x", "y"]), Columns())
    assert rows.texts[0].as_py() == long


def test_missing_columns(tmp_path):
    path = write(tmp_path / "data.csv", ["a"], ["x"], text="words")
    assert "no text column among 'words', 'label'" in message(path)
    assert "--set text_column=NAME" in message(path)
    assert "has no column 'wrds'" in message(path, Columns(text="wrds"))
    assert "no label column" in message(write(tmp_path / "l.jsonl", ["a"], ["x"], label="z"))
    (tmp_path / "twice.csv").write_text("text,label,text\na,b,c\n")
    assert "more than one column 'text'" in message(tmp_path / "twice.csv")


def test_other_separators(tmp_path):
    for name, separator in [("data.csv", ";"), ("data.csv", "\t"), ("data.tsv", ",")]:
        (tmp_path / name).write_text(f"text{separator}label\na{separator}x\n")
        assert f"seem to be separated by {separator!r}" in message(tmp_path / name)


def test_files_that_are_none(tmp_path):
    assert "no such file" in message(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is not a file" in message(tmp_path / "folder.csv")
    (tmp_path / "data.xlsx").write_bytes(b"x")
    assert "unsupported file type '.xlsx'; give one of .parquet, .csv" in message(tmp_path / "data.xlsx")
    (tmp_path / "empty.csv").touch()
    assert "the file is empty" in message(tmp_path / "empty.csv")


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_no_rows(tmp_path, extension):
    assert "has no rows" in message(
        write(tmp_path / f"data.{extension}", pa.array([], pa.string()), pa.array([], pa.string()))
    )


def test_blank_lines_only(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n\n")
    assert "has no rows" in message(tmp_path / "data.jsonl")


@pytest.mark.parametrize("extension", ["csv", "jsonl"])
def test_bytes_that_are_not_utf8(tmp_path, extension):
    path = write(tmp_path / f"data.{extension}", ["fine", "caf@ au lait"], ["x", "y"])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"@", b"\xe9"))
    found = message(path)
    assert f"byte 0xe9 at offset {content.index(b'@')} is not UTF-8" in found
    assert f"line {3 if extension == 'csv' else 2}" in found
    assert "iconv" in found


def test_ragged_csv_names_the_line_of_the_record(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"two\nlines",x\nno, quotes,y\n')
    assert "line 4: 3 fields where the header has 2; put quotes" in message(path)


def test_unclosed_quote(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"never closed,x\nb,y\n')
    assert "line 3: unexpected end of data" in message(path)


def test_rows_without_text_or_label(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x\nb, \n")
    assert "line 3: column 'label' is empty" in message(path)
    path = write(tmp_path / "data.parquet", ["a", None], ["x", "y"])
    assert "row 2: column 'text' is null" in message(path)
    path = write(tmp_path / "data.parquet", ["a", "b"], [None, 1])
    assert "row 1: column 'label' is null" in message(path)
    path = write(tmp_path / "data.jsonl", ["a", None], ["x", "y"])
    assert "line 2: 'text' is null" in message(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", "not a JSON object"),
        ("[1, 2]", "holds a list instead of a JSON object"),
        ("null", "holds null instead of a JSON object"),
        ('{"text": "a"}', "'label' is missing"),
        ('{"text": 5, "label": "x"}', "'text' holds a number"),
        ('{"text": "a", "label": 0.5}', "'label' holds a fraction"),
        ('{"text": "a", "label": " "}', "'label' is empty"),
        ('{"text": "\\ud800", "label": 1}', "half of a surrogate pair"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_malformed_json_lines(tmp_path, line, problem):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n' + line + "\n")
    found = message(path)
    assert "line 2: " in found
    assert problem in found


def test_json_labels_of_every_kind(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "t", "label": {y}}}\n' for y in ("1", "1.0", '"1"', "true", '" a "')))
    labels = read_file(path, Columns()).labels
    assert labels is not None
    assert labels.to_pylist() == ["1", "1", "1", "true", "a"]


def test_parquet_column_types(tmp_path):
    path = tmp_path / "data.parquet"
    dictionary = pa.array(["x", "y"]).dictionary_encode()
    for labels, expected in [
        (dictionary, ["x", "y"]),
        (pa.array([1.0, 2.0]), ["1", "2"]),
        (pa.array([True, False]), ["true", "false"]),
    ]:
        pq.write_table(pa.table({"text": dictionary, "label": labels}), path)
        found = read_file(path, Columns()).labels
        assert found is not None
        assert found.to_pylist() == expected
    pq.write_table(pa.table({"text": [1, 2], "label": ["x", "y"]}), path)
    assert "column 'text' holds int64; a text column holds strings" in message(path)
    pq.write_table(pa.table({"text": ["a", "b"], "label": [[1], [2]]}), path)
    assert "column 'label' holds list" in message(path)
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, 2.5]}), path)
    assert "row 2: column 'label' is not a whole number" in message(path)


def test_not_parquet(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"text,label\n")
    assert "not a readable Parquet file" in message(tmp_path / "data.parquet")


# Fuzzing: whatever the bytes, reading works or raises RequestError.

FUZZ = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.sampled_from(
    [piece.encode() for piece in ("text", "label", ",", "\t", "\n", "\r", "\r\n", '"', '""', "{", "}", "[", ":", "\\")]
    + [piece.encode() for piece in ("\\ud800", "1", "1e999", "NaN", "-0", "null", "true", "\x00", "\ufeff", "ä☃", " ")]
    + [b"\xff", b'{"text": "a", "label": ', b"text,label\n"]
)
BYTES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join))


def reads_or_refuses(path, columns=None):
    try:
        rows = read_file(path, columns or Columns())
    except RequestError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert rows.labels is not None
        assert len(rows.texts) == len(rows.labels) > 0
        assert all(rows.labels.to_pylist())
        rows.texts.validate(full=True)


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl"])
@FUZZ
@given(content=BYTES, header=st.booleans())
def test_any_bytes(tmp_path, extension, content, header):
    path = tmp_path / f"data.{extension}"
    path.write_bytes((b"text\tlabel\n" if extension == "tsv" else b"text,label\n") * header + content)
    reads_or_refuses(path)


@FUZZ
@given(
    content=st.binary(max_size=100),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 3000),
)
def test_any_parquet_bytes(tmp_path, content, edits, end):
    path = write(tmp_path / "data.parquet", ["a", "b", "ä"], [1, 2, 1])
    damaged = bytearray(path.read_bytes())
    for place, byte in edits:
        damaged[place % len(damaged)] = byte
    if end < len(damaged) and end % 3 == 0:
        damaged = damaged[:end] + content
    path.write_bytes(damaged)
    reads_or_refuses(path)


@FUZZ
@given(
    rows=st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["x", "y", "10"])), min_size=1
    )
)
@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_any_text_survives(tmp_path, extension, rows):
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    found = read_file(write(tmp_path / f"data.{extension}", texts, labels), Columns())
    assert found.texts.to_pylist() == texts
    assert found.labels is not None
    assert found.labels.to_pylist() == labels
