"""ListOps expressions: symbols and their ids, parsing, and evaluation of many at once.

An expression is a digit, or an operator followed by its arguments and `]`. Ids are in prefix order, as written.

n: expressions.  L: ids of all expressions.  d: depth of a node; roots stand at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from diffmix.errors import RequestError

OPERATORS = ("MIN", "MAX", "MED", "SM")
SYMBOLS = (*"0123456789", *(f"[{name}" for name in OPERATORS), "]")  # symbol k is the id k + 1; 0 is padding
MIN, MAX, MED, SM, CLOSE = range(11, 16)
VOCAB_SIZE = len(SYMBOLS) + 1
_LONGEST_QUOTE = 20
# One byte for each symbol, and the table from these bytes to ids. Parentheses only repeat what `]` says.
_CODES = {b"[MIN": b"i", b"[MAX": b"a", b"[MED": b"e", b"[SM": b"s"}
_IDS = np.zeros(256, dtype=np.uint8)
for _code, _id in zip(b"0123456789iaes]", range(1, VOCAB_SIZE), strict=True):
    _IDS[_code] = _id


@dataclass(frozen=True)
class Level:
    """The nodes of all expressions at one depth, in the order of the expressions and from left to right."""

    symbols: np.ndarray  # uint8 [nodes]: ids of digits and operators
    arities: (
        np.ndarray
    )  # int64 [operators]: how many arguments each operator of this level has; they are the next level


def parse(expression: str, place: str = "expression") -> np.ndarray:
    """The ids of an expression such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, with or without parentheses: uint8 [length].

    Raises RequestError, with `place` in front, where it is no expression.
    """
    tokens = expression.translate({40: " ", 41: " "}).split()  # the parentheses
    known = {symbol: index + 1 for index, symbol in enumerate(SYMBOLS)}
    ids = np.empty(len(tokens), dtype=np.uint8)
    for index, token in enumerate(tokens):
        if token not in known:
            raise RequestError(
                f"{place}: {_quoted(token)} is no symbol; give digits, [MIN, [MAX, [MED, [SM and ] with blanks between"
            )
        ids[index] = known[token]
    _check(ids, np.array([0, len(ids)]), lambda _: place)
    return ids


def to_text(ids: np.ndarray) -> str:
    """The expression of some ids, without parentheses."""
    return " ".join(SYMBOLS[index - 1] for index in ids)


def parse_bytes(sources: list[bytes], place: str, first_line: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The ids of many expressions, one a line of a file: (uint8 [L], offsets int64 [n + 1]).

    The fast form of `parse`. Raises RequestError, with `place` and the line, where one of them is no expression.
    """
    text = b"\n".join(sources)
    if any(code in text for code in _CODES.values()):  # they stand for operators from here on
        _refuse_line(sources, place, first_line)
    for token, code in _CODES.items():
        text = text.replace(token, code)
    # A symbol that touches the one before it, as in "12" or "]]", is a mistake too.
    codes = np.frombuffer(text, dtype=np.uint8)
    ids = _IDS[codes]
    symbol = ids > 0
    blank = (codes == 32) | (codes == 40) | (codes == 41)
    line_end = codes == 10
    if (symbol[1:] & symbol[:-1]).any() or not (symbol | blank | line_end).all():
        _refuse_line(sources, place, first_line)
    ends = np.concatenate([np.flatnonzero(line_end), [len(codes)]])
    count = np.concatenate([[0], np.cumsum(symbol)])
    offsets = np.concatenate([[0], count[ends]]).astype(np.int64)
    flat = ids[symbol]
    _check(flat, offsets, lambda row: f"{place}, line {first_line + row}")
    return flat, offsets


def _refuse_line(sources: list[bytes], place: str, first_line: int) -> None:
    for index, source in enumerate(sources):
        parse(source.decode("utf-8", "replace"), f"{place}, line {first_line + index}")
    raise RequestError(f"{place}: holds symbols without blanks between them; write one blank after each")


def _quoted(token: str) -> str:
    return repr(token if len(token) <= _LONGEST_QUOTE else token[:_LONGEST_QUOTE] + "…")


def _check(ids: np.ndarray, offsets: np.ndarray, place: Callable[[int], str]) -> None:
    """Refuse rows that are not one expression each. `place(row)` names one."""
    lengths = np.diff(offsets)
    depth, operator = _depths(ids)
    first = np.zeros(len(ids), dtype=bool)
    first[offsets[:-1][lengths > 0]] = True
    wrong = (depth == 0) != first  # a second root, or a `]` too many
    wrong |= (depth < 0) | (first & (ids == CLOSE))  # which an operator behind it does not make good
    wrong[1:] |= operator[:-1] & (ids[1:] == CLOSE)
    # Rows are judged one after another, so a row that ends open spoils only those behind it.
    rows = np.searchsorted(offsets, np.flatnonzero(wrong), side="right")[:1] - 1
    opened = np.concatenate([[0], np.cumsum(operator.astype(np.int64) - (ids == CLOSE))])[offsets[1:]]
    candidates = [*rows, *np.flatnonzero(lengths == 0)[:1], *np.flatnonzero(opened != 0)[:1]]
    if candidates:
        row = int(min(candidates))
        found = ids[offsets[row] : offsets[row + 1]]
        raise RequestError(f"{place(row)}: {_problem(found)}")


def _problem(ids: np.ndarray) -> str:
    """What is wrong with the ids of one row."""
    if not len(ids):
        return "is empty; give an expression such as [MAX 2 9 ]"
    depth, operator = _depths(ids)
    beyond = np.flatnonzero(depth[1:] <= 0)
    if ids[0] == CLOSE or (len(beyond) and ids[beyond[0] + 1] == CLOSE):
        return "closes more operators than it opens; remove the ] too many"
    if len(beyond):
        return f"goes on behind its end with {SYMBOLS[ids[beyond[0] + 1] - 1]!r}; give one expression a line"
    if (operator[:-1] & (ids[1:] == CLOSE)).any():
        return "holds an operator without arguments; give it one or more"
    missing = int(operator.sum() - (ids == CLOSE).sum())
    return f"leaves {missing} operators open; close each with ]"


def _depths(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(depth int64 [L] of each symbol, a `]` that of its arguments; whether it is an operator, bool [L])."""
    operator = (ids >= MIN) & (ids <= SM)
    close = ids == CLOSE
    after = np.cumsum(operator.astype(np.int64) - close)
    return after - operator + close, operator


def levels(ids: np.ndarray) -> list[Level]:
    """The nodes of whole, well-formed expressions by depth: uint8 [L] → one `Level` a depth."""
    depth, _ = _depths(ids)
    nodes = np.flatnonzero(ids != CLOSE)
    depth = depth[nodes]
    deepest = int(depth.max(initial=-1))
    # A stable sort by depth keeps the arguments of an operator together; on small types it takes linear time.
    order = np.argsort(depth.astype(np.int16) if deepest < 2**15 else depth, kind="stable")
    bounds = np.searchsorted(depth[order], np.arange(deepest + 2))
    places = [nodes[order[first:last]] for first, last in pairwise(bounds)]
    found = []
    for level, here in enumerate(places):
        symbols = ids[here]
        operators = here[symbols >= MIN]
        below = places[level + 1] if level < deepest else np.empty(0, dtype=np.int64)
        # The arguments of an operator are the nodes of the next depth between it and the next operator of its own.
        starts = np.append(np.searchsorted(below, operators), len(below))
        found.append(Level(symbols, np.diff(starts)))
    return found


def level_values(expressions: list[Level]) -> list[np.ndarray]:
    """The value of each node, uint8 [nodes] a level."""
    values: list[np.ndarray] = []
    for level in reversed(expressions):
        here = level.symbols - np.uint8(1)  # right for digits
        if len(level.arities):
            operators = np.flatnonzero(level.symbols >= MIN)
            here[operators] = apply(level.symbols[operators], level.arities, values[-1])
        values.append(here)
    return values[::-1]


def apply(operators: np.ndarray, arities: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """The values of operators whose arguments follow one another: uint8 [operators].

    operators: ids [operators]. arities: [operators], 1 or more. arguments: uint8 [all arguments], digits.
    MED of an even number of arguments is the mean of the middle two, cut to a whole number.
    """
    starts = np.concatenate([[0], np.cumsum(arities)[:-1]])
    values = np.minimum.reduceat(arguments, starts)
    values = np.where(operators == MAX, np.maximum.reduceat(arguments, starts), values)
    sums = np.add.reduceat(arguments, starts, dtype=np.int64) % 10
    values = np.where(operators == SM, sums, values).astype(np.uint8)
    median = np.flatnonzero(operators == MED)
    if len(median):
        sizes = arities[median]
        mine = np.repeat(operators == MED, arities)
        owner = np.repeat(np.arange(len(median)), sizes)
        counts = np.bincount(owner * 10 + arguments[mine], minlength=10 * len(median)).reshape(-1, 10)
        up_to = counts.cumsum(axis=1)  # arguments of at most v
        lower = (up_to < ((sizes + 1) // 2)[:, None]).sum(axis=1)  # the middle argument, or the lower of the middle two
        upper = (up_to < (sizes // 2 + 1)[:, None]).sum(axis=1)
        values[median] = (lower + upper) // 2
    return values


def evaluate(ids: np.ndarray) -> np.ndarray:
    """The values of whole, well-formed expressions, one after another: uint8 [L] → uint8 [n]."""
    return level_values(levels(ids))[0] if len(ids) else np.empty(0, dtype=np.uint8)


def evaluate_expression(expression: str) -> int:
    """The value of one expression, 0 … 9. Raises RequestError where it is none."""
    return int(evaluate(parse(expression))[0])
