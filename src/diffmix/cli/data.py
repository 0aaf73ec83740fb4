"""`diffmix data`: what a task's data are, and a copy of its splits as Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffmix.errors import RequestError


def data(
    task: Annotated[str, typer.Argument(help="A task, such as ag_news or language_id.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="A folder of data sets, or a file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Write the splits into this folder.", show_default=False)] = None,
) -> None:
    """Show a task's splits and labels; with --output, write them as Parquet files (generated tasks: as a set for --data)."""
    from diffmix.tasks import load_task
    from diffmix.tasks.long_range_arena import GENERATED_TASKS

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RequestError(f"output {output} is in use: give a new or empty folder")
    as_set = output is not None and data is None and task in GENERATED_TASKS
    if output is not None and as_set:
        from diffmix.tasks.long_range_arena.generated import write_generated

        data = write_generated(task, output).folder
    loaded = load_task(task, data=data, on_notice=lambda line: typer.echo(line, err=True))
    splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.load_test()}
    for name, examples in splits.items():
        if examples is None:
            typer.echo(f"{name:<10} none")
            continue
        counts = examples.label_counts(len(loaded.label_names))
        shown = ", ".join(f"{label} {count:,}" for label, count in zip(loaded.label_names[:20], counts, strict=False))
        more = f", and {len(counts) - 20} more labels" if len(counts) > 20 else ""
        typer.echo(f"{name:<10} {len(examples):>9,} rows: {shown}{more}")
    for key, value in loaded.facts.items():
        typer.echo(f"{key}: {value}")
    if as_set:
        typer.echo(f"Wrote {output}")
    elif output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, examples in splits.items():
            if examples is not None and hasattr(examples, "take"):
                _write(output / f"{name}.parquet", examples, loaded.label_names)
        typer.echo(f"Wrote {output}")


def _write(path: Path, examples: Any, label_names: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
            columns["input_ids"] = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1])
    columns["label"] = pa.array([label_names[label] for label in examples.labels])
    pq.write_table(pa.table(columns), path, compression="zstd")
