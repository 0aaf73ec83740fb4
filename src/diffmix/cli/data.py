"""`diffmix data`: what a task's data are, and a copy of its splits as Parquet files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RequestError


def data(
    task: Annotated[
        str, typer.Argument(help="A task, such as ag_news, language_id or python_docs.", show_default=False)
    ],
    data: Annotated[Path | None, typer.Option(help="A folder of data sets, or a file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Write the splits into this folder.", show_default=False)] = None,
) -> None:
    """Show a task's splits, labels and sources; --output writes Parquet files (of generated tasks, a set for --data)."""
    from diffmix.tasks import TASKS, load_task
    from diffmix.tasks.distant_symbol import is_distant_symbol
    from diffmix.tasks.language import LANGUAGE_TASKS
    from diffmix.tasks.long_range_arena import GENERATED_TASKS

    known = (*TASKS, *LANGUAGE_TASKS)
    if task not in known and not is_distant_symbol(task):
        near = difflib.get_close_matches(task, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RequestError(f"task: unknown task {task!r}{hint}; known: {', '.join(known)}, distant_symbol-N")
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RequestError(f"output {output} is in use: give a new or empty folder")
    if task in LANGUAGE_TASKS:
        _language(task, data, output)
        return
    as_set = output is not None and data is None and task in GENERATED_TASKS
    if output is not None and as_set:
        from diffmix.tasks.long_range_arena.generated import write_generated

        data = write_generated(task, output).folder
    loaded = load_task(task, data=data, on_notice=_notice)
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.load_test()}
    for name, examples in splits.items():
        if examples is None:
            typer.echo(f"{name:<10} none")
            continue
        counts = examples.label_counts(len(loaded.label_names))
        shown = ", ".join(f"{label} {count:,}" for label, count in zip(loaded.label_names[:20], counts, strict=False))
        more = f", and {len(counts) - 20} more labels" if len(counts) > 20 else ""
        typer.echo(f"{name:<10} {len(examples):>9,} rows: {shown}{more}")
    _show_facts(loaded.facts)
    if as_set:
        typer.echo(f"Wrote {output}")
    elif output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, examples in splits.items():
            if examples is not None and hasattr(examples, "take"):
                _write(output / f"{name}.parquet", _columns(examples, loaded.label_names))
        typer.echo(f"Wrote {output}")


def _language(task: str, data: Path | None, output: Path | None) -> None:
    """The same for a task of language models: documents, or images without labels."""
    import pyarrow as pa

    from diffmix.tasks.language import Documents, load_language

    loaded = load_language(task, data=data, on_notice=_notice)
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.load_test()}
    columns: dict[str, dict[str, Any]] = {}
    for name, split in splits.items():
        if split is None:
            typer.echo(f"{name:<10} none")
        elif isinstance(split, Documents):
            count = len(split.texts)
            typer.echo(f"{name:<10} {count:>9,} documents: {split.words:,} words, {split.bytes:,} bytes")
            columns[name] = {"text": pa.array(split.texts, type=pa.large_string())}
        else:
            count, pixels = split.pixels.shape
            typer.echo(f"{name:<10} {count:>9,} images: {pixels:,} pixels each, {split.levels} grey values")
            columns[name] = {"input_ids": _rows(split.pixels)}
    _show_facts(loaded.facts)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, of_split in columns.items():
            _write(output / f"{name}.parquet", of_split)
        typer.echo(f"Wrote {output}")


def _notice(line: str) -> None:
    typer.echo(line, err=True)


def _show_facts(facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        typer.echo(f"{key}: {value}")


def _columns(examples: Any, label_names: tuple[str, ...]) -> dict[str, Any]:
    import pyarrow as pa

    from diffmix.tasks.token_rows import TokenRows

    columns: dict[str, Any] = {}
    if examples.texts is not None:
        columns["text"] = pa.array(examples.texts, type=pa.large_string())
    if examples.pairs is not None:
        columns["text_pair"] = pa.array(examples.pairs, type=pa.large_string())
    if examples.input_ids is not None:
        ids = examples.input_ids
        if isinstance(ids, TokenRows):
            columns["input_ids"] = pa.array(list(ids), type=pa.list_(pa.int16()))
        else:
            columns["input_ids"] = _rows(ids)
    columns["label"] = pa.array([label_names[label] for label in examples.labels])
    return columns


def _rows(ids: Any) -> Any:
    """Rows of ids that are all of the same length."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1])


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, compression="zstd")
