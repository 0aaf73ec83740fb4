"""The generated tasks: what is drawn, where it is kept, and as TaskData."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmix.errors import RequestError, RunError
from diffmix.tasks.examples import TaskData
from diffmix.tasks.long_range_arena.cache import GeneratedSet, cached_set, open_ids, read_set, save_array, write_set
from diffmix.tasks.long_range_arena.chunks import in_order
from diffmix.tasks.long_range_arena.expressions import VOCAB_SIZE
from diffmix.tasks.long_range_arena.listops import Expressions, Grammar, check_labels, generate, select
from diffmix.tasks.long_range_arena.paddles import PathfinderParameters
from diffmix.tasks.long_range_arena.pathfinder import PATHFINDER, PATHFINDER_X, draw
from diffmix.tasks.long_range_arena.yardsticks import yardsticks
from diffmix.tasks.splits import Cut, Facts, describe_limit, limited
from diffmix.tasks.token_rows import TokenRows

SEED = 0  # of the sets, which runs with any seed share
DIGITS = tuple(str(digit) for digit in range(10))
CONNECTED = ("not connected", "connected")
_IMAGES_AT_ONCE = 256
_CHECKED_ROWS = 4096  # of a split: what is wrong throughout is wrong there
_VERSION = 1  # raise it when the same parameters give other data


@dataclass(frozen=True)
class GeneratedTask:
    """How many rows train, validation and test have, and of what."""

    rows: tuple[int, int, int]
    content: Grammar | PathfinderParameters

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names."""
        return DIGITS if isinstance(self.content, Grammar) else CONNECTED

    @property
    def shift(self) -> int:
        """What is added to stored values: grey value g is the id g + 1."""
        return 0 if isinstance(self.content, Grammar) else 1

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return VOCAB_SIZE if isinstance(self.content, Grammar) else 257

    def parameters(self) -> dict[str, Any]:
        """What the data follow from."""
        return {"seed": SEED, "version": _VERSION, "rows": list(self.rows), **asdict(self.content)}


GENERATED = {
    "listops": GeneratedTask((96_000, 2_000, 2_000), Grammar(501, 1999)),
    "listops_short": GeneratedTask((96_000, 2_000, 2_000), Grammar(32, 128)),
    "pathfinder": GeneratedTask((160_000, 20_000, 20_000), PATHFINDER),
    "pathfinder_x": GeneratedTask((160_000, 20_000, 20_000), PATHFINDER_X),
}


def given_set(name: str, data: Path) -> GeneratedSet | None:
    """The generated set of a task in `data` or `data`/NAME; None: there is none. Raises RequestError where it is damaged."""
    found = read_set(data / name, name) or read_set(data, name)
    if found is not None:
        task = GENERATED[name]
        found.check_ids(max(0, 1 - task.shift), min(255, task.vocab_size - task.shift - 1))
        if isinstance(task.content, Grammar):
            _check_values(found)
        else:
            _check_sizes(found, task.content.side)
    return found


def _check_sizes(found: GeneratedSet, side: int) -> None:
    """Of a Pathfinder set from elsewhere, whether every row is an image of side x side pixels. Raises RequestError."""
    for split in ("train", "validation", "test"):
        rows = found.split(split, len(CONNECTED)).input_ids
        assert isinstance(rows, TokenRows)
        wrong = np.flatnonzero(rows.lengths != side**2)
        if len(wrong):
            raise RequestError(
                f"{found.folder}: {split} row {wrong[0] + 1} has {rows.lengths[wrong[0]]} ids, not the {side**2} of "
                f"{side} x {side} pixels; generate the set again"
            )


def _check_values(found: GeneratedSet) -> None:
    """Of a ListOps set from elsewhere, whether labels are the values of their rows. Raises RequestError."""
    for split in ("train", "validation", "test"):
        rows = found.split(split, len(DIGITS))
        rows = rows.take(np.arange(min(_CHECKED_ROWS, len(rows))))
        assert isinstance(rows.input_ids, TokenRows)
        ids, lengths = np.concatenate([rows.input_ids[row] for row in range(len(rows))]), rows.input_ids.lengths
        try:
            wrong = check_labels(Expressions(ids, np.concatenate([[0], np.cumsum(lengths)]), rows.labels))
        except (ValueError, IndexError) as error:
            raise RequestError(
                f"{found.folder}: {split} holds what is no expression: {error}; generate the set again"
            ) from None
        if len(wrong):
            raise RequestError(
                f"{found.folder}: {split}.labels.npy says {rows.labels[wrong[0]]} of row {wrong[0] + 1}, which has another "
                "value; generate the set again"
            )


def own_set(name: str, on_notice: Callable[[str], None]) -> GeneratedSet:
    """The set of a task from the cache, generated first where it is not there yet."""
    parameters = GENERATED[name].parameters()
    return cached_set(name_in_cache(name, parameters), name, parameters, lambda folder: _make(name, folder), on_notice)


def name_in_cache(name: str, parameters: Mapping[str, Any]) -> str:
    """The name of a set's folder, another one for other parameters."""
    digest = hashlib.blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"{name}-{digest}"


def write_generated(name: str, folder: Path) -> GeneratedSet:
    """Generate the set of a task into `folder`, which is new or empty. Raises RunError where there is too little room."""
    try:
        return write_set(folder, name, GENERATED[name].parameters(), lambda temporary: _make(name, temporary))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RequestError(
            f"{error.filename or folder}: {error.strerror}; give a new or empty folder that may be written"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(f"{folder}: {error.strerror}; free some room or give another folder") from None


def to_task(name: str, found: GeneratedSet, how: Cut) -> TaskData:
    """A generated set as TaskData. Raises RequestError where its files are damaged."""
    task = GENERATED[name]
    classes = len(task.labels)
    train, validation = (found.split(split, classes, task.shift) for split in ("train", "validation"))
    test = found.split("test", classes, task.shift)  # opened, not read
    facts: Facts = {
        "source": f"generated, seed {found.header.get('parameters', {}).get('seed', SEED)}",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "validation": "the source's own",
        "test": f"{len(test)} rows",
        **found.header.get("statistics", {}),
    }
    describe_limit(facts, how)
    return TaskData(
        name=name,
        label_names=task.labels,
        train=limited(train, how),
        validation=limited(validation, how),
        load_test=lambda: limited(test, how),
        facts=facts,
        vocab_size=task.vocab_size,
        pixels=not isinstance(task.content, Grammar),
    )


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make(name: str, folder: Path) -> dict[str, Any]:
    from tqdm import tqdm

    task = GENERATED[name]
    workers = processors()
    with tqdm(total=sum(task.rows), desc=name, unit=" rows", disable=None) as bar:
        if isinstance(task.content, Grammar):
            return _make_listops(task.content, task.rows, folder, workers, bar.update)
        return _make_pathfinder(task.content, task.rows, folder, workers, bar.update)


def _make_listops(
    grammar: Grammar, rows: tuple[int, int, int], folder: Path, workers: int, progress: Callable[[int], object]
) -> dict[str, Any]:
    """Draw, check and write; the median length, the share of the most frequent value, and yardsticks on test."""
    drawn = generate(sum(rows), SEED, **asdict(grammar), workers=workers, progress=progress)
    wrong = check_labels(drawn)
    if len(wrong):
        raise RunError(f"listops: {len(wrong)} labels are not the values of their expressions; report this as a bug")
    bounds = np.cumsum([0, *rows])
    parts = {}
    for split, first, last in zip(("train", "validation", "test"), bounds[:-1], bounds[1:], strict=True):
        parts[split] = select(drawn, slice(first, last))
        for kind in ("ids", "offsets", "labels"):
            save_array(folder, split, kind, getattr(parts[split], kind))
    return {**listops_statistics(drawn), **rounded_yardsticks(parts["train"], parts["test"])}


def listops_statistics(expressions: Expressions) -> dict[str, Any]:
    """Of all rows: the median length and the share of the most frequent value."""
    counts = np.bincount(expressions.labels)
    return {
        "length_median": float(np.median(np.diff(expressions.offsets))),
        "majority_share": round(float(counts.max() / counts.sum()), 4),
    }


def rounded_yardsticks(train: Expressions, test: Expressions) -> dict[str, float]:
    """Accuracies on test of knowing only a part, as facts."""
    return {f"yardstick_{name}": round(value, 4) for name, value in yardsticks(train, test).items()}


def _make_pathfinder(
    parameters: PathfinderParameters,
    rows: tuple[int, int, int],
    folder: Path,
    workers: int,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    """Draw and write split by split; every split has half of each label where its rows are even."""
    total = 0
    for number, (split, count) in enumerate(zip(("train", "validation", "test"), rows, strict=True)):
        total += write_images(parameters, count, (SEED, number), folder, split, workers, progress)
    return {"connected_share": round(total / sum(rows), 4)}


def write_images(
    parameters: PathfinderParameters,
    count: int,
    seed: Sequence[int],
    folder: Path,
    split: str,
    workers: int,
    progress: Callable[[int], object],
) -> int:
    """Draw `count` images of `seed` and write them as a split; how many have label 1."""
    pixels, margins = parameters.side**2, len(parameters.paddle_margins)
    chunk = -(-_IMAGES_AT_ONCE // (2 * margins)) * 2 * margins
    ids, labels = open_ids(folder, split, count * pixels), np.empty(count, dtype=np.uint8)
    pieces = in_order(
        lambda piece: draw(parameters, chunk, np.random.default_rng([*seed, piece])), workers, -(-count // chunk)
    )
    for first in range(0, count, chunk):
        images, drawn = next(pieces)
        here = slice(first, min(first + chunk, count))
        kept = _balanced(drawn, here.stop - here.start)
        ids[here.start * pixels : here.stop * pixels] = images[kept].reshape(-1)
        labels[here] = drawn[kept]
        progress(here.stop - here.start)
    pieces.close()
    del ids  # flushes it
    save_array(folder, split, "offsets", np.arange(count + 1) * pixels)
    save_array(folder, split, "labels", labels)
    return int(labels.sum())


def _balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows that hold each label equally often, in their order."""
    if count == len(labels):
        return np.arange(count)
    ones, zeros = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    return np.sort(np.concatenate([ones[: count // 2], zeros[: count - count // 2]]))
