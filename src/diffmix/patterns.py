"""Who hears whom: a sparse graph of a local window, global tokens and random links, defined for every length at once.

n tokens, w the window on one side, g global tokens, r random links of a token. Row i of a pattern is the set that token i hears.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class SparsePattern:
    """A sparse attention pattern. A longer sequence only adds to it: dense(m) = dense(n)[:m, :m] for every m ≤ n.

    Args:
        window: w ≥ 0. Token i hears j with |i - j| ≤ w; causal: 0 ≤ i - j ≤ w. It always hears itself.
        global_tokens: the first g tokens, or a list of positions: tokens that hear all and are heard by all. In a causal
            pattern they hear their past, and are heard by what comes after them. Positions beyond a sequence are left out.
        random_links: r ≥ 0. Each token draws r different tokens, equally likely, among the earlier ones that stand outside
            of its window and are not global; all of them where there are fewer. In a bidirectional pattern a link is heard
            both ways, so that a row has 2r on average, at every length; in a causal one r. A global token draws none.
        causal: tokens hear only themselves and what stands before them.
        seed: of the random links. The links of token i depend on the pattern and on i, not on the length.

    Raises:
        ValueError: a negative or fractional number, a position named twice.

    Source: Feng et al. (2023), after Zaheer et al. (2020); there the links are drawn for one length and cut.
    """

    window: int
    global_tokens: int | Sequence[int] = 0
    random_links: int = 0
    causal: bool = False
    seed: int = 0
    spec: str = dataclasses.field(init=False, repr=False, compare=False)  # the pattern as JSON

    def __post_init__(self) -> None:
        for name in ("window", "random_links"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        object.__setattr__(self, "seed", _whole("seed", self.seed))
        if not isinstance(self.causal, bool):
            raise ValueError(f"causal is {self.causal!r}; give True or False")
        chosen = self.global_tokens
        if isinstance(chosen, Sequence | np.ndarray | Tensor) and not isinstance(chosen, str):
            positions = [_whole("global_tokens", position, "give positions from 0 on") for position in chosen]
            if len(set(positions)) != len(positions):
                raise ValueError(f"global_tokens is {list(chosen)!r}; name each position once")
            object.__setattr__(self, "global_tokens", tuple(sorted(positions)))
        else:
            object.__setattr__(self, "global_tokens", _whole("global_tokens", chosen))
        object.__setattr__(self, "spec", json.dumps(self.to_dict()))

    def global_positions(self, n: int) -> Tensor:
        """The positions of the global tokens among n, in rising order: int64 [≤ n]."""
        n = _length(n)
        return torch.from_numpy(_globals(self.global_tokens, n))

    def links(self, n: int) -> tuple[Tensor, Tensor]:
        """The random links among n tokens, both ways where the pattern is bidirectional: (hears, heard), each int64 [E].

        Sorted by the first, then by the second. None of them is within the window, or of a global token.
        """
        hears, heard = _links(self, _length(n))
        return torch.from_numpy(hears.copy()), torch.from_numpy(heard.copy())

    def drawn_links(self, n: int) -> Tensor:
        """The earlier tokens that each of n draws: int64 [n, r], -1 where there are fewer. A longer row only adds."""
        return torch.from_numpy(_drawn(self, _length(n)))

    def dense(self, n: int) -> Tensor:
        """bool [n, n]: row i hears column j."""
        position = np.arange(_length(n))
        distance = position[:, None] - position
        heard = np.abs(distance) <= min(self.window, n)
        chosen = _globals(self.global_tokens, n)
        heard[:, chosen] = True
        heard[chosen] = True
        if self.causal:
            heard &= distance >= 0
        heard[_links(self, n)] = True
        return torch.from_numpy(heard)

    def edges(self, n: int) -> Tensor:
        """int64 [2, E]: (i, j) for each j that i hears, sorted by i, then j. Takes O(E) memory."""
        position = np.arange(_length(n))
        after = 0 if self.causal else self.window
        near = position[:, None] + np.arange(-min(self.window, n), min(after, n) + 1)
        inside = (near >= 0) & (near < n)
        codes = [(position[:, None] * n + near)[inside]]
        chosen = _globals(self.global_tokens, n)
        hears, heard = (grid.ravel() for grid in np.meshgrid(chosen, position, indexing="ij"))
        for i, j in ((hears, heard), (heard, hears)):
            past = j <= i if self.causal else slice(None)
            codes.append((i * n + j)[past])
        hears, heard = _links(self, n)
        codes.append(hears * n + heard)
        return torch.from_numpy(np.stack(np.divmod(np.unique(np.concatenate(codes)), n)))

    def past_of(self, positions: Sequence[int] | Tensor) -> Tensor:
        """What tokens at some positions of a causal pattern hear: int64 [M, d], each in rising order, filled up with -1.

        d is the highest degree among them. What else stands in the sequence changes nothing, so it takes O(M·d) time and memory.

        Raises:
            ValueError: a bidirectional pattern, where later tokens link to earlier ones; a negative position.
        """
        if not self.causal:
            raise ValueError("causal is False; give a causal pattern, whose tokens hear nothing of what follows them")
        position = np.asarray(positions, dtype=np.int64).reshape(-1, 1)
        if len(position) == 0:
            return torch.zeros(0, 0, dtype=torch.int64)
        if position.min() < 0:
            raise ValueError(f"positions holds {position.min()}; give positions from 0 on")
        end = int(position.max()) + 1  # stands for nothing until the rows are sorted
        chosen = _globals(self.global_tokens, end)
        is_global = np.isin(position, chosen)
        rank = _drawn_ranks(self, chosen, position[:, 0]).T
        linked = rank + np.searchsorted(chosen - np.arange(len(chosen)), rank, side="right")
        parts = [
            position - np.arange(min(self.window, end) + 1),
            np.where(chosen <= position, chosen, end),
            np.where((rank >= 0) & ~is_global, linked, end),
        ]
        if is_global.any():
            every = np.arange(int(position[is_global].max()) + 1)
            parts.append(np.where(is_global & (every <= position), every, end))
        heard = np.concatenate(parts, axis=1)
        heard = np.sort(np.where(heard < 0, end, heard), axis=1)
        heard[:, 1:][heard[:, 1:] == heard[:, :-1]] = end  # within the window and global
        heard = np.sort(heard, axis=1)[:, : int((heard < end).sum(axis=1).max())]
        return torch.from_numpy(np.where(heard < end, heard, -1))

    def degree(self, n: int) -> Tensor:
        """How many tokens each of n hears, itself included: int64 [n]. Takes O(n) memory."""
        position = np.arange(_length(n))
        window = min(self.window, n)
        lowest = np.maximum(position - window, 0)
        highest = position if self.causal else np.minimum(position + window, n - 1)
        is_global = np.zeros(n, dtype=np.int64)
        is_global[_globals(self.global_tokens, n)] = 1
        before = np.concatenate([[0], np.cumsum(is_global)])  # global tokens before a position
        heard = before[position + 1] if self.causal else np.full(n, before[n])
        degree = highest - lowest + 1 + heard - (before[highest + 1] - before[lowest])
        degree += np.bincount(_links(self, n)[0], minlength=n)
        everything = position + 1 if self.causal else np.full(n, n)
        return torch.from_numpy(np.where(is_global == 1, everything, degree))

    def statistics(self, n: int) -> dict[str, float]:
        """Of n tokens: `edges`; `mean_degree`, `lowest_degree`, `highest_degree`; `random_degree`, the mean number of random
        links of a token; `density`, the share of the n² pairs (causal: n(n+1)/2) that are edges."""
        degree = self.degree(n)
        edges = int(degree.sum())
        return {
            "edges": edges,
            "mean_degree": edges / n,
            "lowest_degree": int(degree.min()),
            "highest_degree": int(degree.max()),
            "random_degree": len(_links(self, n)[0]) / n,
            "density": edges / (n * (n + 1) / 2 if self.causal else n * n),
        }

    def blocks(self, n: int, block_size: int = 64) -> Tensor:
        """bool [⌈n/b⌉, ⌈n/b⌉]: whether some token of a block of queries hears some token of a block of keys.

        Random links reach nearly every block of a long row; with random_links=0 few blocks are needed. Takes no n × n memory.
        """
        size = _whole("block_size", block_size, lowest=1)
        start = np.arange(0, _length(n), size)
        last = np.minimum(start + size, n) - 1
        block = np.arange(len(start))
        window = min(self.window, n)
        lowest = np.maximum(start - window, 0) // size
        highest = (last if self.causal else np.minimum(last + window, n - 1)) // size
        needed = (block >= lowest[:, None]) & (block <= highest[:, None])
        for at in np.unique(_globals(self.global_tokens, n) // size):
            needed[at, : at + 1 if self.causal else None] = True
            needed[at if self.causal else 0 :, at] = True
        hears, heard = _links(self, n)
        needed[hears // size, heard // size] = True
        return torch.from_numpy(needed)

    def draw(self, n: int, axes: Axes | None = None) -> Axes:
        """A picture of the pattern on n tokens: row i dark where it hears column j."""
        from matplotlib.figure import Figure

        if axes is None:
            axes = Figure(figsize=(4, 4)).subplots()
        axes.imshow(self.dense(n).numpy(), cmap="Greys", interpolation="nearest", vmin=0, vmax=1)
        facts = self.statistics(n)
        axes.set_title(
            f"{n} tokens, {facts['mean_degree']:.1f} heard by each, density {facts['density']:.1%}", fontsize=8
        )
        axes.set_xlabel("heard")
        axes.set_ylabel("hears")
        return axes

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same pattern of, for JSON."""
        chosen = self.global_tokens
        return {
            "window": self.window,
            "global_tokens": chosen if isinstance(chosen, int) else list(chosen),
            "random_links": self.random_links,
            "causal": self.causal,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsePattern:
        """The pattern that `to_dict` described. Raises ValueError."""
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"a pattern has no {unknown[0]!r}; give some of {', '.join(known)}")
        if "window" not in values:
            raise ValueError(f"a pattern is given as {json.dumps(dict(values))}, without its window; add window")
        return cls(**values)


def _whole(name: str, value: Any, mend: str | None = None, lowest: int = 0) -> int:
    try:
        number = -1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = -1
    if number < lowest:
        raise ValueError(f"{name} is {value!r}; {mend or f'give a whole number, {lowest} or more'}")
    return number


def _length(n: int) -> int:
    return _whole("n", n, "give the number of tokens, 1 or more", lowest=1)


def _globals(chosen: int | Sequence[int], n: int) -> np.ndarray:
    if isinstance(chosen, int):
        return np.arange(min(chosen, n))
    return np.array([position for position in chosen if position < n], dtype=np.int64)


@functools.lru_cache(maxsize=16)
def _links(pattern: SparsePattern, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(hears, heard) of the random links, sorted. The arrays are shared: do not write to them."""
    drawn = _drawn(pattern, n)
    hears, draw = np.nonzero(drawn >= 0)
    heard = drawn[hears, draw]
    if not pattern.causal:
        hears, heard = np.concatenate([hears, heard]), np.concatenate([heard, hears])
    order = np.lexsort((heard, hears))
    return hears[order], heard[order]


def _drawn(pattern: SparsePattern, n: int) -> np.ndarray:
    """int64 [n, r]: what each token draws among the earlier ones, -1 where there are too few."""
    candidates = np.ones(n, dtype=bool)
    chosen = _globals(pattern.global_tokens, n)
    candidates[chosen] = False
    token = np.flatnonzero(candidates)  # those that draw, and those that are drawn
    rank = _drawn_ranks(pattern, chosen, token).T
    drawn = np.full((n, pattern.random_links), -1, dtype=np.int64)
    drawn[token] = np.where(rank >= 0, token[rank], -1)
    return drawn


def _drawn_ranks(pattern: SparsePattern, chosen: np.ndarray, token: np.ndarray) -> np.ndarray:
    """int64 [r, M]: what M tokens draw, as ranks among all that are not global, -1 where there are too few.

    A draw without replacement from the m earlier tokens that a token may draw, by Floyd's method: for s = m - r … m - 1, take
    one of 0 … s, or s itself where that one is taken already. `chosen` are the global tokens, at least those before the last of
    `token`.
    """
    first = np.maximum(token - min(pattern.window, _FAR), 0)
    reach = first - np.searchsorted(chosen, first)  # m: those that stand before the window are the first ones
    stream = _mix(_mix(np.full(len(token), pattern.seed & (2**64 - 1), dtype=np.uint64)) ^ token.astype(np.uint64))
    taken = np.full((pattern.random_links, len(token)), -1, dtype=np.int64)
    for draw in range(pattern.random_links):
        last = reach - pattern.random_links + draw
        random = _mix(stream + np.array(draw + 1, dtype=np.uint64) * _GOLDEN)
        rank = (random % np.maximum(last + 1, 1).astype(np.uint64)).astype(np.int64)
        rank = np.where((taken[:draw] == rank).any(axis=0), last, rank)
        taken[draw] = np.where(last >= 0, rank, -1)
    return taken


_FAR = 2**62  # beyond every sequence, and still a number of numpy's
_GOLDEN = np.array(0x9E3779B97F4A7C15, dtype=np.uint64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele et al., 2014): a random number for each number."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.array(0xBF58476D1CE4E5B9, dtype=np.uint64)
    value = (value ^ (value >> np.uint64(27))) * np.array(0x94D049BB133111EB, dtype=np.uint64)
    return value ^ (value >> np.uint64(31))
