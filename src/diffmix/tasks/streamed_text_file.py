"""`text_file` larger than memory: train stays on disk, and which split a row is in follows from its text."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, StreamedExamples, TaskData
from diffmix.tasks.labels import check_labels, label_indices, label_names, to_examples, value_counts
from diffmix.tasks.rows import Columns, Rows, concatenate
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited
from diffmix.tasks.table_files import BATCH_ROWS, iter_files, read_files

HELD_OUT_ROWS = 20_000  # the most rows of a streamed file that are held in memory for validation, and for test
TOKENIZER_ROWS, TOKENIZER_CHARS = 100_000, 200_000_000  # the most that a streamed file gives to its tokenizer


def stream_text_file(
    files: dict[str, list[Path]],
    columns: Columns,
    how: Cut,
    facts: Facts,
    on_notice: Callable[[str], None],
) -> TaskData:
    """Reads train once for its labels and once for validation and the tokenizer's sample, holding only the latter two."""
    path = files["train"][0]
    counts: dict[str, int] = {}
    first_labels = 0
    for rows in iter_files(files["train"], columns):
        for label, count in value_counts(rows).items():
            counts[label] = counts.get(label, 0) + count
        if first_labels == 0:
            first_labels = len(counts)
        if len(counts) > 100_000:
            raise RequestError(
                f"{path}: over 100,000 different labels; is the label column right? train takes --set label_column=NAME"
            )
    total = sum(counts.values())
    if not total:
        raise RequestError(f"{path}: has no rows; it needs at least a few under its header")
    names = label_names(counts, path)
    check_labels(files["test"], columns, names)
    if first_labels < len(names) and total > BATCH_ROWS:
        on_notice(
            f"{path}: its first rows hold {first_labels} of {len(names)} labels; shuffle the file if it is sorted by label"
        )
    fraction = min(how.fraction, HELD_OUT_ROWS / total)
    test_fraction = 0.0 if files["test"] else fraction
    validation_fraction = 0.0 if files["validation"] else fraction

    def split_rows(split: str, limit: int | None) -> Iterator[tuple[Rows, np.ndarray]]:
        """(batch, the rows of it that belong to `split`); a row's split follows from its text and the seed alone, so
        that equal texts are in one split."""
        left = limit if limit is not None else total
        for rows in iter_files(files["train"], columns):
            checksums = [zlib.crc32(text.encode()) for text in rows.texts.to_pylist()]
            draw = _uniform(np.array(checksums, dtype=np.uint64), how.seed)
            held = test_fraction + validation_fraction
            mask = {
                "test": draw < test_fraction,
                "validation": (draw >= test_fraction) & (draw < held),
                "train": draw >= held,
            }[split]
            chosen = np.flatnonzero(mask)[:left]
            left -= len(chosen)
            yield rows, chosen
            if left <= 0:
                return

    def read_train() -> Iterator[tuple[list[str], list[str] | None, np.ndarray]]:
        for rows, chosen in split_rows("train", how.limit):
            part = _taken(rows, chosen)
            pairs = None if part.pairs is None else part.pairs.to_pylist()
            yield part.texts.to_pylist(), pairs, label_indices(part, path, names)

    def held_out(split: str) -> Examples:
        parts = [_taken(rows, chosen) for rows, chosen in split_rows(split, how.limit)]
        if not any(len(part.texts) for part in parts):
            raise RequestError(f"{path}: too few rows ({total}) to cut a {split} split; add rows or a {split} file")
        return to_examples(concatenate(parts, path, columns), path, names)

    def own(split: str) -> Examples:
        return limited(to_examples(read_files(files[split], columns), files[split][0], names), how)

    sample: list[str] = []
    train_counts = np.zeros(len(names), dtype=np.int64)
    wanted = min(1.0, TOKENIZER_ROWS / total)
    chars = start = 0
    for rows, chosen in split_rows("train", how.limit):
        part = _taken(rows, chosen)
        train_counts += np.bincount(label_indices(part, path, names), minlength=len(names))
        drawn = np.flatnonzero(_uniform(np.arange(start, start + len(chosen)), how.seed + 1) < wanted)
        start += len(chosen)
        for text in part.texts.take(pa.array(drawn)).to_pylist() if chars < TOKENIZER_CHARS else ():
            sample.append(text[: TOKENIZER_CHARS // 100])
            chars += len(sample[-1])
    train = StreamedExamples(int(train_counts.sum()), train_counts, read_train, sample)
    validation = own("validation") if files["validation"] else held_out("validation")
    facts["train_rows"] = len(train) + (0 if files["validation"] else len(validation))
    facts["streamed"] = "train is read from disk in every epoch"
    if not files["test"]:
        facts["test"] = f"rows cut from train (seed {how.seed})"
    facts["validation_rows"] = len(validation)
    facts["validation"] = "the source's own" if files["validation"] else f"cut from train (seed {how.seed})"
    describe_limit(facts, how)
    load_test = partial(own, "test") if files["test"] else partial(held_out, "test")
    return TaskData("text_file", names, train, validation, load_test, facts)


def _taken(rows: Rows, chosen: np.ndarray) -> Rows:
    index = pa.array(chosen)
    pairs = None if rows.pairs is None else rows.pairs.take(index)
    return Rows(rows.texts.take(index), pairs, None if rows.labels is None else rows.labels.take(index), rows.first)


def _uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each whole number: the splitmix64 hash of (seed, key)."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1B54A32D192ED03) + np.uint64(1)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
