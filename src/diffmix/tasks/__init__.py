"""Tasks: from files, the hub or embedded data to splits of examples, tokenizers and encoded data sets."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from diffmix.errors import RequestError
from diffmix.tasks.data_sets import DATA_SETS, load_data_set
from diffmix.tasks.distant_symbol import is_distant_symbol, load_distant_symbol
from diffmix.tasks.examples import Examples, StreamedExamples, TaskData
from diffmix.tasks.images import IMAGE_SETS, IMAGE_TASKS, load_images
from diffmix.tasks.long_range_arena import GENERATED_TASKS, LRA_TASKS, load_long_range_arena
from diffmix.tasks.rows import Columns
from diffmix.tasks.splits import Cut
from diffmix.tasks.text_file import load_text_file

TASKS = (*DATA_SETS, "text_file", *IMAGE_TASKS, "language_id", *LRA_TASKS)

__all__ = ["TASKS", "Examples", "StreamedExamples", "TaskData", "load_task", "reads_ids"]


def reads_ids(name: str) -> bool:
    """Whether the rows of a task are pixels or symbols, which no tokenizer reads."""
    return name in (*IMAGE_TASKS, *GENERATED_TASKS, "lra_image") or is_distant_symbol(name)


def load_task(
    name: str,
    *,
    data: Path | str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    extra_train: Sequence[str] = (),
    limit: int | None = None,
    stream: bool | None = None,
    on_notice: Callable[[str], None] = print,
) -> TaskData:
    """The data of a task: train, validation, and test on demand.

    name: one of TASKS, or `distant_symbol-N`. data: a folder of data-set folders, the data set's own folder, or (text_file) a
    file; None takes $DIFFMIX_DATA, then the hub. validation_fraction: of train, where the source has no validation split
    (text_file: for a missing test split too). seed: of these cuts, fixed so that runs with different training seeds share
    them. *_column: column names of text_file; None finds usual ones. extra_train: names of further files in the data set's
    folder whose rows join train; for generated tasks, of easier sets (one_operator, contours_6, …). limit: at most this many rows
    of each split. stream: text_file only; None reads train from disk in every epoch where memory would not hold it.

    Raises RequestError, one line with the place and the mend.
    """
    generated = is_distant_symbol(name)
    if name not in TASKS and not generated:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RequestError(f"task: unknown task {name!r}{hint}; known: {', '.join(TASKS)}, distant_symbol-N")
    if not 0 < validation_fraction <= 0.5:
        raise RequestError(f"validation_fraction: got {validation_fraction}; give a number over 0 and up to 0.5")
    if limit is not None and limit < 1:
        raise RequestError(f"limit: got {limit}; give a number of rows of 1 or more, or leave it out")
    how = Cut(validation_fraction, seed, limit)
    if name == "text_file":
        _refuse_given(name, extra_train=extra_train)
        columns = Columns(text_column, label_column, pair_column)
        return load_text_file(data=data, columns=columns, how=how, stream=stream, on_notice=on_notice)
    _refuse_given(name, text_column=text_column, pair_column=pair_column, label_column=label_column, stream=stream)
    if name in DATA_SETS:
        return load_data_set(name, data=data, how=how, extra_train=extra_train, on_notice=on_notice)
    if name in LRA_TASKS:
        return load_long_range_arena(name, data=data, how=how, extra_train=extra_train, on_notice=on_notice)
    _refuse_given(name, extra_train=extra_train)
    if name in IMAGE_SETS:
        return load_images(name, data=data, how=how, on_notice=on_notice)
    _refuse_given(name, data=data)
    if generated:
        return load_distant_symbol(name, how)
    if name in IMAGE_TASKS:
        return load_images(name, data=data, how=how)
    from diffmix.tasks.language_id import load_language_id

    return load_language_id(how)


def _refuse_given(task: str, **arguments: object) -> None:
    for argument, value in arguments.items():
        if value:
            raise RequestError(f"{argument}: task {task!r} takes none, got {value!r}; leave it out")
