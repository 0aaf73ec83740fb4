"""Attention diffusion by the kernels of `sparse_attention`, forward and backward, without dropout.

R = B·H sequences of N tokens, D channels of queries and keys, C channels of values, K hops, G global tokens, E random links.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffmix.ops.kernels import sparse_attention
from diffmix.patterns import SparsePattern

# Rows of a program and columns of a block, by the size of a value in bytes. With heads of up to 128 channels the compiler then
# takes less than the 99 kB of shared memory that small GPUs have for a program. Chosen by that count, not by measurement.
BLOCK = {2: 64, 4: 32}
STRETCH = 1024  # columns that a program goes through for the rows of global tokens; a multiple of the blocks


@dataclasses.dataclass(frozen=True)
class Side:
    """The edges as rows of A, or as rows of Aᵀ, meet them."""

    before: int  # how far the window reaches to earlier columns
    after: int
    offsets: Tensor  # int32 [N + 1]: where the links of a row begin
    linked: Tensor  # int32 [E]: the columns they lead to
    direction: int  # 1 where a row meets no later column, -1 where no earlier one, 0 where both


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is the same for all hops: the edges, and what gives them their weights."""

    sides: tuple[Side, Side]  # of A and of Aᵀ
    chosen: Tensor  # int32 [G]
    limits: Tensor  # int32 [R]
    query: Tensor  # [R, N, D], contiguous, like all states here
    key: Tensor
    scale: float


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    pattern: SparsePattern,
    theta: Sequence[float],
    scale: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Y_0 [B, H, N, C], 0 at padding, and with `keep` what `backward` may be given: ln Σ exp of each row, and Y_0 … Y_K.

    Y_K = θ_K V and Y_k = θ_k V + A Y_{k+1}; A is made anew from queries and keys in every hop, and never stored.
    """
    with _on(query):
        problem = _problem(query, key, lengths, pattern, scale)
        total = _log_sum_exp(problem)
        states = _hops(problem, total, _flat(value), theta, keep)
    mixed = states[0].unflatten(0, query.shape[:2])
    if lengths is not None:
        mixed = mixed.masked_fill(_beyond(lengths, query), 0.0)
    return mixed, [total, states] if keep else []


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Sequence[Tensor],
    lengths: Tensor | None,
    pattern: SparsePattern,
    theta: Sequence[float],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; what `forward` kept is computed again where `kept` is empty.

    With P_0 the gradient of Y_0 and P_{k+1} = Aᵀ P_k, that of V is Σ_k θ_k P_k and that of A is dA = Σ_k P_k Y_{k+1}ᵀ. Through
    the softmax a row of it loses c_i = Σ_j A_ij dA_ij = Σ_k P_k,i · (Y_k - θ_k V)_i, a sum over channels and not over edges.
    """
    shape, hops = query.shape[:2], len(theta) - 1
    if lengths is not None:
        grad = grad.masked_fill(_beyond(lengths, query), 0.0)
    with _on(query):
        problem = _problem(query, key, lengths, pattern, scale)
        flat = _flat(value)
        if kept:
            total, states = kept
        else:
            total = _log_sum_exp(problem)
            states = _hops(problem, total, flat, theta, keep=True)
        flows = torch.empty_like(states)
        flows[0] = _flat(grad)
        found = torch.zeros(flat.shape, dtype=torch.float32, device=flat.device)
        carried = torch.zeros_like(total)
        for hop in range(hops + 1):
            if hop:
                _multiply(problem, total, flows[hop - 1], flows[hop], None, 0.0, transposed=True)
            found.add_(flows[hop], alpha=theta[hop])
            if hop < hops:
                heard = torch.sub(states[hop].float(), flat, alpha=theta[hop])
                carried += heard.mul_(flows[hop]).sum(-1)
        grads = [
            _differentiate(problem, total, carried, flows[:-1], states[1:], transposed=transposed)
            for transposed in (False, True)
        ]
    return tuple(states.unflatten(0, shape) for states in (*grads, found.to(value.dtype)))  # pyright: ignore[reportReturnType]


def _problem(query: Tensor, key: Tensor, lengths: Tensor | None, pattern: SparsePattern, scale: float) -> Problem:
    batch, heads, tokens = query.shape[:3]
    sides, chosen = _edges(pattern, tokens, str(query.device))
    if lengths is None:
        limits = torch.full((batch * heads,), tokens, dtype=torch.int32, device=query.device)
    else:
        limits = lengths.to(torch.int32).repeat_interleave(heads)
    return Problem(sides, chosen, limits, _flat(query), _flat(key), scale)


@functools.lru_cache(maxsize=8)
def _edges(pattern: SparsePattern, tokens: int, device: str) -> tuple[tuple[Side, Side], Tensor]:
    """The edges of A, those of Aᵀ, and the global tokens; those used last are remembered."""
    hears, heard = pattern.links(tokens)
    window = min(pattern.window, tokens)
    later = 0 if pattern.causal else window
    order = torch.argsort(heard, stable=True)

    def arrays(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), rows.bincount(minlength=tokens).cumsum(0)])
        return offsets.to(device, torch.int32), columns.to(device, torch.int32)

    plain = Side(window, later, *arrays(hears, heard), int(pattern.causal))
    transposed = Side(later, window, *arrays(heard[order], hears[order]), -int(pattern.causal))
    return (plain, transposed), pattern.global_positions(tokens).to(device, torch.int32)


def _hops(problem: Problem, total: Tensor, value: Tensor, theta: Sequence[float], keep: bool) -> Tensor:
    """Y_0 … Y_K, [K + 1, R, N, C]; without `keep` only the first of them is what stands at its place."""
    hops = len(theta) - 1
    room = hops + 1 if keep else 2
    states = value.new_empty(room, *value.shape)
    torch.mul(value, theta[-1], out=states[hops % room])
    for hop in reversed(range(hops)):
        _multiply(problem, total, states[(hop + 1) % room], states[hop % room], value, theta[hop])
    return states


def _log_sum_exp(problem: Problem) -> Tensor:
    """ln Σ_j exp(scale·q_i·k_j) over the edges of each row: fp32 [R, N]."""
    total = torch.empty(problem.query.shape[:2], dtype=torch.float32, device=problem.query.device)
    _launch(sparse_attention.log_sum_exp, problem, (total, problem.query, problem.key), every=False)
    if len(problem.chosen):
        partial = _partial(problem)
        _launch(sparse_attention.log_sum_exp, problem, (partial, problem.query, problem.key), every=True)
        total.index_copy_(1, problem.chosen.long(), partial.logsumexp(1))
    return total


def _multiply(
    problem: Problem,
    total: Tensor,
    states: Tensor,
    result: Tensor,
    value: Tensor | None,
    theta: float,
    *,
    transposed: bool = False,
) -> None:
    """result = A Z + θ V, or Aᵀ Z + θ V. No value: without that."""
    channels = states.shape[-1]
    of = (problem.key, problem.query) if transposed else (problem.query, problem.key)
    # Without a value θ is 0, and something finite stands for it.
    rest = (*of, total, states, states if value is None else value, theta)
    options = {"C": channels, "WIDTH_C": _width(channels), "TRANSPOSED": transposed}
    _launch(sparse_attention.multiply, problem, (result, *rest), every=False, **options)
    if len(problem.chosen):
        partial = _partial(problem, channels)
        _launch(sparse_attention.multiply, problem, (partial, *rest), every=True, **options)
        chosen = problem.chosen.long()
        rows = partial.sum(1)
        if value is not None:
            rows.add_(value[:, chosen], alpha=theta)
        result.index_copy_(1, chosen, rows.to(result.dtype))


def _differentiate(
    problem: Problem, total: Tensor, carried: Tensor, flows: Tensor, states: Tensor, *, transposed: bool
) -> Tensor:
    """The gradient of queries, or that of keys, from P_0 … P_{K-1} and Y_1 … Y_K."""
    channels = states.shape[-1]
    result = torch.empty_like(problem.query)
    of = (problem.key, problem.query, total, carried, states, flows)
    if not transposed:
        of = (problem.query, problem.key, total, carried, flows, states)
    rest = (*of, len(states), states[0].numel())
    options = {"C": channels, "WIDTH_C": _width(channels), "TRANSPOSED": transposed}
    _launch(sparse_attention.differentiate_scores, problem, (result, *rest), every=False, **options)
    if len(problem.chosen):
        partial = _partial(problem, result.shape[-1])
        _launch(sparse_attention.differentiate_scores, problem, (partial, *rest), every=True, **options)
        result.index_copy_(1, problem.chosen.long(), partial.sum(1).to(result.dtype))
    return result


def _launch(kernel: Any, problem: Problem, arguments: tuple[Any, ...], *, every: bool, **options: Any) -> None:
    """Run a kernel for all rows, or with `every` for those of global tokens, which meet all columns."""
    sequences, tokens, channels = problem.query.shape
    side = problem.sides[int(options.get("TRANSPOSED", False))]
    count, block = len(problem.chosen), BLOCK[problem.query.element_size()]
    before, after, others = side.before, side.after, count
    rows, splits = block, 1
    if every:
        before, after = (tokens if side.direction >= 0 else 0), (tokens if side.direction <= 0 else 0)
        others, splits = 0, _splits(tokens)
        rows = min(block, _width(count))
    blocks = -(-(count if every else tokens) // rows)
    kernel[(sequences * blocks * splits,)](
        *arguments,
        *(problem.limits, problem.chosen, side.offsets, side.linked, problem.scale),
        *(tokens, count, others, before, after, splits, blocks),
        D=channels,
        WIDTH=_width(channels),
        CAUSAL=side.direction,
        LINKS=len(side.linked) > 0 and not every,
        EVERY=every,
        ROWS=rows,
        COLUMNS=block,
        STRETCH=STRETCH,
        **options,
        num_warps=4 if channels <= 64 and options.get("C", 0) <= 64 else 8,
        num_stages=2,
    )


def _partial(problem: Problem, *channels: int) -> Tensor:
    """Room for the rows of global tokens, a sum for each stretch of columns: fp32 [R, splits, G, …]."""
    sequences, tokens = problem.query.shape[:2]
    shape = (sequences, _splits(tokens), len(problem.chosen), *channels)
    return torch.empty(shape, dtype=torch.float32, device=problem.query.device)


def _splits(tokens: int) -> int:
    return -(-tokens // STRETCH)


def _width(size: int) -> int:
    """The next power of two, at least the 16 that products of blocks need."""
    return max(16, 1 << (size - 1).bit_length())


def _flat(states: Tensor) -> Tensor:
    """[B, H, N, D] → [R, N, D], contiguous."""
    return states.flatten(0, 1).contiguous()


def _beyond(lengths: Tensor, states: Tensor) -> Tensor:
    """[B, 1, N, 1]: where padding stands."""
    return (torch.arange(states.shape[2], device=states.device) >= lengths[:, None])[:, None, :, None]


def _on(states: Tensor) -> Any:
    """The device that kernels run on."""
    return torch.cuda.device(states.device if states.is_cuda else -1)
