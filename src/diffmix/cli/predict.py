"""`diffmix predict`: labels for texts given as arguments, piped in, or in a file."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RequestError

CHUNK = 4096  # texts at a time, so that a file of any size passes through bounded memory


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder.", show_default=False)],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT ...]", help="Texts to classify.", show_default=False)
    ] = None,
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="A CSV, TSV, JSONL or Parquet file with a text column, or a .txt file of lines."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write JSON lines to this file.", show_default=False)] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            "--text_column",
            "--text-column",
            help="The text column of --input; by default as in training.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with all probabilities.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --output if it exists.")] = False,
) -> None:
    """Classify texts: the arguments, the lines of standard input, or the rows of a file."""
    if texts and input_ is not None:
        raise RequestError("both TEXT and --input are given: give one of them")
    check_utf8("TEXT", *(texts or ()))
    if output is not None and output.is_dir():
        raise RequestError(f"output {output} is a folder: give a file")
    if output is not None and output.exists() and not force:
        raise RequestError(f"output {output} exists: add --force to replace it, or give another file")
    if output is not None and not output.parent.is_dir():
        raise RequestError(f"output {output}: there is no folder {output.parent}: make it, or give another file")
    if not texts and input_ is None and sys.stdin.isatty():
        raise RequestError("no text: give TEXT, --input FILE, or pipe lines in")
    from diffmix.training.prediction import load_classifier, trained_column

    classifier = load_classifier(model)
    source: Iterable[str] = texts or (
        _file_texts(input_, text_column, trained_column(model)) if input_ is not None else _lines(sys.stdin.buffer)
    )
    rows = _predicted(classifier, source)
    if output is None:
        for row in rows:
            line = (
                json.dumps(row, ensure_ascii=False)
                if as_json
                else f"{row['label']}\t{row['score']:.4f}\t{_short(row['text'])}"
            )
            typer.echo(line)
        return
    # A pipe or a device is written to; only a file is replaced, and in one piece.
    special = output.exists() and not output.is_file()
    part = output if special else output.with_name(output.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if not special:
            part.replace(output)
    finally:
        if not special:
            part.unlink(missing_ok=True)
    typer.echo(f"Wrote {count:,} predictions to {output}")


def check_utf8(name: str, *texts: str) -> None:
    """Refuse arguments of the command line that are not UTF-8: Python has put surrogates in the place of their bytes."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} is not UTF-8 (character {error.start + 1}): convert it first") from None


def _predicted(classifier: Any, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    import numpy as np

    from diffmix.tasks.examples import Examples

    iterator = iter(texts)
    first_row = 1
    while chunk := list(itertools.islice(iterator, CHUNK)):
        examples = Examples(labels=np.zeros(len(chunk), dtype=np.int64), texts=chunk)
        probabilities = classifier.probabilities(examples, first_row)
        first_row += len(chunk)
        for text, row in zip(chunk, probabilities, strict=True):
            best = int(row.argmax())
            yield {
                "text": text,
                "label": classifier.label_names[best],
                "score": float(row[best]),
                "probabilities": {name: float(value) for name, value in zip(classifier.label_names, row, strict=True)},
            }


def _lines(file: Iterable[bytes], name: str = "standard input") -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} line {number} is not UTF-8 (byte {error.start}): convert it first") from None


def _file_texts(path: Path, text_column: str | None, trained_column: str | None) -> Iterator[str]:
    from diffmix.tasks.rows import Columns
    from diffmix.tasks.table_files import iter_rows

    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise RequestError(f"{path}: no such file; check the path")
        with path.open("rb") as file:
            yield from _lines(file, str(path))
        return
    columns = Columns(text=text_column, labelled=False, usual_text=trained_column, option="--text_column NAME")
    for rows in iter_rows(path, columns):
        yield from rows.texts.to_pylist()


def _short(text: str, width: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
