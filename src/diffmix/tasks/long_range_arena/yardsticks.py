"""How far one gets in ListOps with a part of an expression: accuracies to hold a model's against.

A reader who knows the expression down to some depth, and of the operators below it at most their kind, gives each of those
the values that such operators have in train, independent of one another, and answers with the most probable value of the root.

n: expressions.  m: nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffmix.tasks.long_range_arena.expressions import MAX, MED, MIN, SM, VOCAB_SIZE, Level, apply, level_values, levels
from diffmix.tasks.long_range_arena.listops import Expressions

YARDSTICKS = (
    "majority", "root_operator", "root_digits", "child_operators", "one_level", "two_levels", "three_levels"
)  # fmt: skip
_TABLE_ROWS = 20_000  # of train, for the tables
_AT_ONCE = 2000  # rows
_DEPTHS = 3
_THRESHOLDS = [(u, w) for u in range(10) for w in range(u, 10)]


def yardsticks(train: Expressions, test: Expressions) -> dict[str, float]:
    """Accuracies on `test` of answers that know only so much of an expression; tables come from the first 20,000 rows of `train`.

    - `majority`: nothing; train's most frequent value.
    - `root_operator`: the root's operator; the most frequent value of roots with it.
    - `root_digits`: the operator applied to the digits among its arguments, as if there were no others; the most frequent value
      of roots with that operator and that result (or without digits).
    - `child_operators`: the operator applied to its digits and, in the place of each operator among its arguments, the most
      frequent value of operators of that kind at depth 2.
    - `one_level`: from the same, the most probable value: the operators among the arguments take each value as often as
      operators of that kind do at that depth, independent of one another. Everything at depth 1 is exact.
    - `two_levels`, `three_levels`: the same where all nodes at depths up to 2, or 3, are exact.

    A root that is a digit is known from `root_operator` on.
    """
    tables = _Tables(train)
    right: dict[str, int] = dict.fromkeys(YARDSTICKS, 0)
    for expressions, labels in _parts(test, len(test.labels)):
        answers = {
            "majority": np.full(len(labels), tables.roots.sum(axis=0).argmax()),
            "root_operator": tables.root(expressions[0].symbols).argmax(axis=1),
            "root_digits": tables.digits(expressions),
            "child_operators": tables.guessed(expressions),
            "one_level": distributions(expressions, 1, tables).argmax(axis=1),
            "two_levels": distributions(expressions, 2, tables).argmax(axis=1),
            "three_levels": distributions(expressions, 3, tables).argmax(axis=1),
        }
        for name, answer in answers.items():
            right[name] += int((answer == labels).sum())
    return {name: count / max(1, len(test.labels)) for name, count in right.items()}


class _Tables:
    """Counts of the values of train's operators by depth and kind: `roots` float64 [4, 10], and [depth, 4, 10] below."""

    def __init__(self, train: Expressions):
        counts = np.zeros((_DEPTHS + 1, 4, 10))
        seen = np.zeros((VOCAB_SIZE, 11, 10))  # root's symbol, result of its digits (10: it has none), value
        for expressions, labels in _parts(train, _TABLE_ROWS):
            values = level_values(expressions)
            for depth, level in enumerate(expressions[: _DEPTHS + 1]):
                operator = level.symbols >= MIN
                np.add.at(counts[depth], (level.symbols[operator] - MIN, values[depth][operator]), 1)
            np.add.at(seen, (expressions[0].symbols, _of_digits(expressions), labels), 1)
        self.roots = counts[0]
        self._counts = counts + 1e-9  # a kind that train lacks may take any value
        self._by_digits = seen.argmax(axis=2)

    def digits(self, expressions: list[Level]) -> np.ndarray:
        """The answers of `root_digits`, [n]."""
        return self._by_digits[expressions[0].symbols, _of_digits(expressions)]

    def guessed(self, expressions: list[Level]) -> np.ndarray:
        """The answers of `child_operators`, [n]."""
        guesses = [self.known(level.symbols, depth) for depth, level in enumerate(expressions[:2])]
        answer = guesses[0].argmax(axis=1)
        operators = np.flatnonzero(expressions[0].symbols >= MIN)
        if len(operators):
            arguments = guesses[1].argmax(axis=1).astype(np.uint8)
            answer[operators] = apply(expressions[0].symbols[operators], expressions[0].arities, arguments)
        return answer

    def root(self, symbols: np.ndarray) -> np.ndarray:
        """float64 [m, 10] for roots known by their symbol alone."""
        return self.known(symbols, 0)

    def known(self, symbols: np.ndarray, depth: int) -> np.ndarray:
        """The distribution of each node's value, float64 [m, 10]: digits are certain, operators known by their kind."""
        operator = symbols >= MIN
        found = np.zeros((len(symbols), 10))
        found[np.flatnonzero(~operator), symbols[~operator] - 1] = 1.0
        table = self._counts[depth] / self._counts[depth].sum(axis=1, keepdims=True)
        found[operator] = table[symbols[operator] - MIN]
        return found


def distributions(expressions: list[Level], depth: int, tables: _Tables) -> np.ndarray:
    """The distribution of each root's value, float64 [n, 10], from `depth` exact levels and the kinds of the operators below."""
    depth = min(depth, len(expressions) - 1)
    below = tables.known(expressions[depth].symbols, depth)
    for level in expressions[:depth][::-1]:
        here = tables.known(level.symbols, 0)  # for its digits; the rest is computed
        operators = np.flatnonzero(level.symbols >= MIN)
        if len(operators):
            here[operators] = _results(level.symbols[operators], level.arities, below)
        below = here
    return below


def _of_digits(expressions: list[Level]) -> np.ndarray:
    """The root's operator applied to the digits among its arguments, [n]; 10 where it has none, and a digit's own value."""
    root = expressions[0]
    found = np.where(root.symbols >= MIN, 10, root.symbols.astype(np.int64) - 1)
    if len(expressions) > 1:
        digit = expressions[1].symbols < MIN
        owner = np.repeat(np.flatnonzero(root.symbols >= MIN), root.arities)[digit]
        count = np.bincount(owner, minlength=len(found))
        some = np.flatnonzero(count)
        if len(some):
            found[some] = apply(root.symbols[some], count[some], expressions[1].symbols[digit] - np.uint8(1))
    return found


def _results(operators: np.ndarray, arities: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The distributions of operators' values from those of their arguments, float64 [all arguments, 10], independent."""
    starts = np.cumsum(arities) - arities
    results = np.empty((len(operators), 10))
    up_to = arguments.cumsum(axis=1)
    for kind in (MIN, MAX, MED, SM):
        chosen = np.flatnonzero(operators == kind)
        if not len(chosen):
            continue
        if kind == MAX:
            results[chosen] = np.diff(np.multiply.reduceat(up_to, starts, axis=0)[chosen], axis=1, prepend=0.0)
        elif kind == MIN:  # P(min > v) = Π P(x > v)
            above = np.multiply.reduceat(np.maximum(1.0 - up_to, 0.0), starts, axis=0)[chosen]
            results[chosen] = -np.diff(above, axis=1, prepend=1.0)
        else:
            combine = _sums if kind == SM else _medians
            results[chosen] = combine(starts[chosen], arities[chosen], arguments)
    return results


def _sums(starts: np.ndarray, arities: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The distribution of Σ x mod 10: circular convolution, one argument after another."""
    shifted = (np.arange(10)[:, None] - np.arange(10)) % 10  # [result, argument] → what the sum was before
    found = np.zeros((len(starts), 10))
    found[:, 0] = 1.0
    for index in range(int(arities.max())):
        more = np.flatnonzero(arities > index)
        found[more] = np.einsum("mra,ma->mr", found[more][:, shifted], arguments[starts[more] + index])
    return found


def _medians(starts: np.ndarray, arities: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The distribution of the median cut to a whole number.

    With a the lower and b the upper of the middle two (a = b where their number is odd), P(a ≤ u, b ≤ w) for u ≤ w is the
    probability that at least ⌈k/2⌉ of k arguments are ≤ u and at least ⌊k/2⌋ + 1 are ≤ w.
    """
    most = int(arities.max())
    lower, upper = (arities + 1) // 2, arities // 2 + 1
    joint = np.zeros((len(starts), 11, 11))  # P(a < u, b < w)
    few = np.arange(most + 1)
    for u, w in _THRESHOLDS:
        # states[m, i, j]: i arguments so far were ≤ u, and j in u + 1 … w.
        states = np.zeros((len(starts), most + 1, most + 1))
        states[:, 0, 0] = 1.0
        for index in range(most):
            more = np.flatnonzero(arities > index)
            argument = arguments[starts[more] + index]
            low, middle = argument[:, : u + 1].sum(axis=1), argument[:, u + 1 : w + 1].sum(axis=1)
            before = states[more]
            after = before * np.maximum(1.0 - low - middle, 0.0)[:, None, None]
            after[:, 1:] += before[:, :-1] * low[:, None, None]
            after[:, :, 1:] += before[:, :, :-1] * middle[:, None, None]
            states[more] = after
        enough = (few[:, None] >= lower[:, None, None]) & (few[:, None] + few >= upper[:, None, None])
        joint[:, u + 1, w + 1] = (states * enough).sum(axis=(1, 2))
    below, under = np.tril_indices(11, -1)  # a ≤ b: beyond the diagonal nothing is added
    joint[:, below, under] = joint[:, under, under]
    both = np.diff(np.diff(joint, axis=1), axis=2)  # P(a = u, b = w)
    middle = (np.arange(10)[:, None] + np.arange(10)) // 2
    return np.stack([both[:, middle == value].sum(axis=1) for value in range(10)], axis=1)


def _parts(expressions: Expressions, rows: int) -> Iterator[tuple[list[Level], np.ndarray]]:
    """(the nodes by depth, labels) of the first `rows` expressions, some thousand at a time."""
    for first in range(0, min(rows, len(expressions.labels)), _AT_ONCE):
        last = min(first + _AT_ONCE, rows)
        bounds = expressions.offsets[first : last + 1]
        yield levels(expressions.ids[bounds[0] : bounds[-1]]), expressions.labels[first:last]
