"""ListOps: nested lists of operators and digits, drawn from the grammar of the Long Range Arena.

A node at depth 1 … max_depth − 1 (the root stands at 1) is an operator with probability ¼, else a digit; at max_depth it is a
digit. An operator is one of MIN, MAX, MED, SM and has 2 … max_arguments arguments, all with equal probability. The length counts
operators, digits and `]`. Whole expressions are drawn until their length fits: rejection sampling, made fast by drawing the
shapes of thousands of trees at once, level by level, and symbols only for those that fit.
Source: Tay et al. 2021, after Nangia and Bowman 2018.

n: expressions.  L: ids of all expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffmix.tasks.long_range_arena.chunks import in_order
from diffmix.tasks.long_range_arena.expressions import CLOSE, MIN, SM, apply, evaluate

_TREES = 4096  # drawn at a time; another number gives other expressions for the same seed
_BARREN = 2000  # so many draws in a row without one that fits: there is none


@dataclass(frozen=True)
class Grammar:
    """Which expressions are drawn: min_length ≤ length ≤ max_length, and the shape of the trees."""

    min_length: int = 501
    max_length: int = 1999
    max_depth: int = 10
    max_arguments: int = 10

    def __post_init__(self) -> None:
        for name, least in (("min_length", 1), ("max_length", self.min_length), ("max_depth", 1), ("max_arguments", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; give {least} or more")
        if self.max_depth == 1 and self.min_length > 1:
            raise ValueError("max_depth: got 1, which leaves single digits only; give 2 or more, or min_length=1")


class Expressions(NamedTuple):
    """Some expressions: row i is ids[offsets[i] : offsets[i + 1]] and its value labels[i]."""

    ids: np.ndarray  # uint8 [L], as in `diffmix.tasks.long_range_arena.expressions`
    offsets: np.ndarray  # int64 [n + 1]
    labels: np.ndarray  # uint8 [n], 0 … 9


def generate(
    count: int,
    seed: int,
    min_length: int = 501,
    max_length: int = 1999,
    *,
    max_depth: int = 10,
    max_arguments: int = 10,
    workers: int = 1,
    progress: Callable[[int], object] | None = None,
) -> Expressions:
    """`count` different expressions, drawn as the Long Range Arena draws its own, with their values.

    The same arguments give the same expressions whatever `workers`, and a smaller count the first of them. Shorter lengths or
    a smaller max_depth make easier sets, as for a curriculum.

    Args:
        count: n, 0 or more.
        seed: of the stream of expressions; 0 or more.
        min_length, max_length: both included.
        max_depth: the depth at which only digits stand, the root's being 1.
        max_arguments: of an operator, which has 2 at least.
        workers: processes.
        progress: called with how many more expressions are there.

    Raises:
        ValueError: an argument out of range, or fewer different expressions than `count`.
    """
    if count < 0:
        raise ValueError(f"count: got {count}; give 0 or more")
    grammar = Grammar(min_length, max_length, max_depth, max_arguments)
    seen: set[bytes] = set()
    parts: list[Expressions] = []
    barren = 0
    chunks = in_order(lambda chunk: draw(grammar, np.random.default_rng([seed, chunk])), workers)
    while len(seen) < count:
        drawn = next(chunks)
        before = len(seen)
        fresh = np.array(list(_fresh(drawn, seen, count)), dtype=np.int64)
        barren = 0 if len(fresh) else barren + 1
        if barren == _BARREN:
            raise ValueError(
                f"count: got {count}, but only {before} different expressions of {min_length} … {max_length} symbols were found; "
                "give a smaller count or other lengths"
            )
        parts.append(_rows(drawn, fresh))
        if progress is not None:
            progress(len(fresh))
    chunks.close()
    return _joined(parts)


def draw(grammar: Grammar, rng: np.random.Generator, trees: int = _TREES) -> Expressions:
    """The expressions that fit among `trees` drawn ones, in the order of drawing; repetitions remain.

    Where a single digit is too short, only trees whose root is an operator are drawn, which changes nothing but the time.
    """
    shape = _shapes(grammar, rng, trees)
    return _written(shape, rng)


class _Shape(NamedTuple):
    """Trees without their symbols, level by level, as far as they fit."""

    roots: np.ndarray  # bool [n]: whether each root is an operator
    arities: list[np.ndarray]  # uint8 [operators] of a level
    operators: list[np.ndarray]  # bool [their arguments]: which of these are operators


def _shapes(grammar: Grammar, rng: np.random.Generator, trees: int) -> _Shape:
    roots = np.ones(trees, dtype=bool)
    if grammar.max_depth == 1:
        roots[:] = False
    elif grammar.min_length == 1:
        roots = _quarter(rng, trees)
    length = np.where(roots, 2, 1)  # of what is known so far
    alive = np.flatnonzero(roots)  # the tree of each operator of this level
    owners, arities, kinds = [], [], []
    for depth in range(2, grammar.max_depth + 1):  # of the arguments
        if not len(alive):
            break
        arity = rng.integers(2, grammar.max_arguments + 1, len(alive), dtype=np.uint8)
        owner = np.repeat(alive, arity)
        kind = _quarter(rng, len(owner)) if depth < grammar.max_depth else np.zeros(len(owner), dtype=bool)
        length += np.bincount(owner, weights=np.where(kind, 2, 1), minlength=trees).astype(np.int64)
        owners.append(alive)
        arities.append(arity)
        kinds.append(kind)
        alive = owner[kind]
        alive = alive[length[alive] <= grammar.max_length]  # the others are too long already
    fits = (length >= grammar.min_length) & (length <= grammar.max_length)
    keep = [fits[owner] for owner in owners]
    return _Shape(
        roots[fits],
        [arity[kept] for arity, kept in zip(arities, keep, strict=True)],
        [kind[np.repeat(kept, arity)] for kind, arity, kept in zip(kinds, arities, keep, strict=True)],
    )


def _quarter(rng: np.random.Generator, size: int) -> np.ndarray:
    """bool [size], each True with probability ¼."""
    return rng.integers(0, 4, size, dtype=np.uint8) == 0


def _written(shape: _Shape, rng: np.random.Generator) -> Expressions:
    """Draw the symbols of `shape`, write each tree in prefix order, and compute its value."""
    kinds = [shape.roots, *shape.operators]
    symbols = []
    for kind in kinds:
        level = rng.integers(1, 11, len(kind), dtype=np.uint8)
        level[kind] = rng.integers(MIN, SM + 1, int(kind.sum()), dtype=np.uint8)
        symbols.append(level)
    arities = [arity.astype(np.int64) for arity in shape.arities]
    sizes, values = [np.ones(len(kinds[-1]), dtype=np.int64)], symbols[-1] - np.uint8(1)  # of the deepest level: digits
    for level in range(len(arities) - 1, -1, -1):
        size, value = np.ones(len(kinds[level]), dtype=np.int64), symbols[level] - np.uint8(1)
        if len(arities[level]):
            starts = np.cumsum(arities[level]) - arities[level]
            size[kinds[level]] = 2 + np.add.reduceat(sizes[0], starts)
            value[kinds[level]] = apply(symbols[level][kinds[level]], arities[level], values)
        sizes.insert(0, size)
        values = value

    offsets = np.concatenate([[0], np.cumsum(sizes[0])])
    ids = np.full(offsets[-1], CLOSE, dtype=np.uint8)
    places = offsets[:-1]
    for level, kind in enumerate(kinds):
        ids[places] = symbols[level]
        if level < len(arities) and len(arities[level]):
            # An argument stands behind its operator and behind the arguments before it.
            before = np.cumsum(sizes[level + 1]) - sizes[level + 1]
            starts = np.cumsum(arities[level]) - arities[level]
            places = np.repeat(places[kind] + 1 - before[starts], arities[level]) + before
        else:
            break
    return Expressions(ids, offsets, values)


def check_labels(expressions: Expressions, rows: int = 4096) -> np.ndarray:
    """The rows, int64, whose label is not the value of what is written in them; empty where all are right."""
    wrong = []
    for first in range(0, len(expressions.labels), rows):
        bounds = expressions.offsets[first : first + rows + 1]
        values = evaluate(expressions.ids[bounds[0] : bounds[-1]])
        wrong.append(first + np.flatnonzero(values != expressions.labels[first : first + rows]))
    return np.concatenate(wrong) if wrong else np.empty(0, dtype=np.int64)


def select(expressions: Expressions, rows: slice) -> Expressions:
    """The expressions of a slice of rows without a step."""
    first, last, _ = rows.indices(len(expressions.labels))
    offsets = expressions.offsets[first : last + 1]
    return Expressions(expressions.ids[offsets[0] : offsets[-1]], offsets - offsets[0], expressions.labels[first:last])


def _fresh(drawn: Expressions, seen: set[bytes], count: int) -> Iterator[int]:
    """The rows that were not seen before, up to `count` seen in all."""
    from hashlib import blake2b

    content = drawn.ids.tobytes()
    for row, (first, last) in enumerate(zip(drawn.offsets[:-1], drawn.offsets[1:], strict=True)):
        if len(seen) == count:
            return
        digest = blake2b(content[first:last], digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield row


def _rows(expressions: Expressions, rows: np.ndarray) -> Expressions:
    if len(rows) == len(expressions.labels):
        return expressions
    lengths = np.diff(expressions.offsets)
    keep = np.zeros(len(lengths), dtype=bool)
    keep[rows] = True
    offsets = np.concatenate([[0], np.cumsum(lengths[rows])])
    return Expressions(expressions.ids[np.repeat(keep, lengths)], offsets, expressions.labels[rows])


def _joined(parts: list[Expressions]) -> Expressions:
    none = np.empty(0, dtype=np.uint8)
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *(np.diff(part.offsets) for part in parts)])
    return Expressions(
        np.concatenate([none, *(part.ids for part in parts)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([none, *(part.labels for part in parts)]),
    )
