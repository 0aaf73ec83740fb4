"""Easier rows beside a task's own: short expressions and short contours teach in minutes what long ones hide for hours.

A model that sees only long expressions hears the root's operator and little else for thousands of steps: the gradient of the
rest is lost among hundreds of symbols. In an expression of one operator nothing hides it. SM, the sum modulo 10, needs more: two
or three digits show it, longer sums beside them hide it again, and a model that learned it on digits alone fails where arguments
are operators. So the easier sets join train as `extra_train`, and the recipe key `length_warmup` lets longer ones join the short
ones little by little; validation and test stay what they are.

In Pathfinder no part of the way between two dots tells anything, and contours of 14 strokes are long ways: a model guesses for
thousands of steps. Contours of 3 strokes are learned in hundreds, at first by the distance between the dots, which tells less and
less of longer ones; with `length_warmup` those join little by little. 6 and 9 strokes are the original generator's easier levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffmix.errors import RequestError
from diffmix.tasks.examples import Examples, TaskData
from diffmix.tasks.long_range_arena.cache import GeneratedSet, cached_set, save_array
from diffmix.tasks.long_range_arena.generated import GENERATED, name_in_cache, processors, write_images
from diffmix.tasks.long_range_arena.listops import Grammar, generate
from diffmix.tasks.long_range_arena.paddles import PathfinderParameters
from diffmix.tasks.token_rows import TokenRows

EASIER = {
    "few_arguments": Grammar(4, 5, max_depth=2),
    "one_operator": Grammar(4, 12, max_depth=2),
    "nested": Grammar(7, 31, max_depth=4, max_arguments=3),
    "two_levels": Grammar(8, 31, max_depth=3),
    "short": Grammar(32, 128),
    "middle": Grammar(129, 500),
}
EASIER_IMAGES = {"contours_3": 3, "contours_4": 4, "contours_6": 6, "contours_9": 9}  # strokes of a contour
_DISTINCT = {"few_arguments": 4 * (10**2 + 10**3)}  # expressions that there are; their rows are repeated
IMAGES_SHARE = 4  # so many times fewer images than train has are in each easier set
SEED = 1  # the task's own sets are drawn with 0
_VERSION = 1  # raise it when the same parameters give other data


@dataclasses.dataclass(frozen=True)
class _Family:
    """The easier sets of a task."""

    what: str  # is shorter in them
    names: list[str]  # those that fit the task
    rows: int  # that each of them adds
    draw: Callable[[str, int], GeneratedSet]  # the first rows of a set
    growth: Callable[[Sequence[str]], np.ndarray | None]  # `Examples.growth` of train and the sets that join it


def with_easier(task: TaskData, names: Sequence[str], on_notice: Callable[[str], None]) -> TaskData:
    """The task with as many rows of each easier set in train as train has of its own, or a quarter of images; drawn once, cached.

    Of the shortest expressions there are not so many: each comes several times.

    Of ListOps only sets whose expressions are all shorter than the task's are taken, so that none stands in validation or test;
    images of shorter contours cannot. Raises RequestError.
    """
    own = task.train
    assert isinstance(own, Examples)
    assert isinstance(own.input_ids, TokenRows)
    family = _family(task.name, len(own), on_notice)
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"extra_train: {name!r} is given twice; give it once")
        if name not in family.names:
            raise RequestError(
                f"extra_train: {task.name} takes {', '.join(family.names) or 'none'}, whose {family.what} are shorter than its "
                f"own, got {name!r}"
            )
    _check_shorter(names, task.validation, "validation")
    ids, labels = [own.input_ids], [own.labels]
    for name in names:
        distinct = min(family.rows, _DISTINCT.get(name, family.rows))
        found = family.draw(name, distinct).split("train", len(task.label_names), GENERATED[task.name].shift)
        easier = found.take(np.resize(np.arange(distinct), family.rows))
        assert isinstance(easier.input_ids, TokenRows)
        ids.append(easier.input_ids)
        labels.append(easier.labels)
    train = Examples(np.concatenate(labels), input_ids=TokenRows.concatenate(ids), growth=family.growth(names))
    told = f"{', '.join(names)}: {family.rows:,} rows of shorter {family.what} each"
    added = {"train_rows": len(train), "extra_train": told}
    facts = task.facts | added

    def load_test() -> Examples | None:
        test = task.load_test()
        if test is not None:
            _check_shorter(names, test, "test")
        facts.update(task.facts | added)  # which may tell more now
        return test

    return dataclasses.replace(task, train=train, load_test=load_test, facts=facts)


def _family(task: str, own_rows: int, on_notice: Callable[[str], None]) -> _Family:
    content = GENERATED[task].content
    if isinstance(content, Grammar):
        shorter = [name for name, easier in EASIER.items() if easier.max_length < content.min_length]
        return _Family(
            what="expressions",
            names=shorter,
            rows=own_rows,
            draw=lambda name, rows: _easier_expressions(name, rows, on_notice),
            growth=lambda names: None,  # that is, their lengths
        )
    share = -(-own_rows // IMAGES_SHARE)
    return _Family(
        what="contours",
        names=list(EASIER_IMAGES),
        rows=share,
        draw=lambda name, rows: _easier_images(task, content, name, rows, on_notice),
        growth=lambda names: _growth(content.contour_length, own_rows, names, share),
    )


def _growth(own: int, own_rows: int, names: Sequence[str], rows: int) -> np.ndarray:
    """What grows in the length warm-up: strokes, those of a set spread from the next shorter set's up to its own.

    So a set joins when the one before it is done, row by row.
    """
    strokes = [own, *(EASIER_IMAGES[name] for name in names)]
    spread = []
    for number, longest in enumerate(strokes):
        shorter = max((other for other in strokes if other < longest), default=longest)
        count = own_rows if number == 0 else rows
        spread.append(longest - (longest - shorter) * np.arange(count) / count)
    return np.concatenate(spread)


def _check_shorter(names: Sequence[str], held: Examples, split: str) -> None:
    """Of data that were given: nothing that joins train may stand in what is held out."""
    assert isinstance(held.input_ids, TokenRows)
    shortest = int(held.input_ids.lengths.min(initial=10**9))
    for name in set(names) & set(EASIER):
        if EASIER[name].max_length >= shortest:
            raise RequestError(
                f"extra_train: {name} has expressions of up to {EASIER[name].max_length} symbols, and {split} one of {shortest}, "
                f"which could be the same: leave {name} out"
            )


def _easier_expressions(name: str, rows: int, on_notice: Callable[[str], None]) -> GeneratedSet:
    """The first rows of one of EASIER's sets, from the cache, drawn first where they are not there yet."""
    parameters = {"seed": SEED, "version": _VERSION, "rows": rows, **dataclasses.asdict(EASIER[name])}

    def make(folder: Path) -> dict[str, Any]:
        drawn = generate(rows, SEED, **dataclasses.asdict(EASIER[name]), workers=processors())
        for kind in ("ids", "offsets", "labels"):
            save_array(folder, "train", kind, getattr(drawn, kind))
        return {}

    task = f"listops {name}"
    return cached_set(name_in_cache(f"listops-{name}", parameters), task, parameters, make, on_notice)


def shorter_contours(content: PathfinderParameters, strokes: int) -> PathfinderParameters:
    """Contours of fewer strokes, and shorter distractors, of which there are more."""
    length = max(2, strokes // 3)
    drawn = content.num_distractors * content.distractor_length  # strokes of all of them
    return dataclasses.replace(
        content,
        contour_length=strokes,
        distractor_length=length,
        num_distractors=drawn // length,
        block=min(content.block, strokes),
    )


def _easier_images(
    task: str, content: PathfinderParameters, name: str, rows: int, on_notice: Callable[[str], None]
) -> GeneratedSet:
    """The first rows of one of EASIER_IMAGES' sets."""
    easier = shorter_contours(content, EASIER_IMAGES[name])
    parameters = {"seed": SEED, "version": _VERSION, "rows": rows, **dataclasses.asdict(easier)}

    def make(folder: Path) -> dict[str, Any]:
        with tqdm(total=rows, desc=f"{task} {name}", unit=" rows", disable=None) as bar:
            write_images(easier, rows, (SEED, 0), folder, "train", processors(), bar.update)
        return {}

    return cached_set(name_in_cache(f"{task}-{name}", parameters), f"{task} {name}", parameters, make, on_notice)
