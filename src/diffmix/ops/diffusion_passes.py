"""The hops of attention diffusion over some sequences at a time, forward and backward: Y_K = θ_K V, Y_k = θ_k V + A Y_{k+1}.

B batch, H heads, N tokens, D channels, K hops; buffers, R and E as in `sparse_layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffmix.ops.dropout import make_generator, scaled_mask
from diffmix.ops.sparse_hops import Weights, attend, matrix, multiply, outer, transpose
from diffmix.ops.sparse_layout import Layout

_ROWS = 2048  # of the matrix that are in fp32 at a time


class HopOptions(NamedTuple):
    """What is the same for all sequences; `theta` are at least two."""

    theta: Sequence[float]
    dropout_p: float
    hop_dropout_p: float
    scale: float
    seed: int


class Kept(NamedTuple):
    """What a backward pass needs of the forward one."""

    weights: Weights
    hops: list[Tensor]  # buffers of Y_1 … Y_{K-1}, as they were heard


def diffuse(
    layout: Layout,
    states: tuple[Tensor, Tensor, Tensor],
    lengths: Tensor | None,
    options: HopOptions,
    number: int,
) -> tuple[Tensor, Kept]:
    """Y_0 of some sequences as a buffer, and what its backward pass needs.

    Args:
        layout: of B·H sequences.
        states: query, key and value of these, [B, H, N, D].
        lengths: int64 [R], at least 1, or None where all tokens are real.
        options: what is the same for all sequences.
        number: of this group of sequences, for random numbers of its own.
    """
    query, key, value = states
    limit = torch.tensor([layout.tokens], device=query.device) if lengths is None else lengths
    weights = attend(layout, layout.place(query), layout.place(key), limit, options.scale)
    used = weights if options.dropout_p == 0 else _times(weights, _edge_mask(weights, options, number))
    attention = matrix(layout, used)
    if len(options.theta) > 2:  # each product would copy what is not contiguous
        attention = attention._replace(band=attention.band.contiguous())
    hops: list[Tensor] = []
    state = _last_state(layout, value, options, number)
    for hop in reversed(range(len(options.theta) - 1)):
        state = multiply(layout, attention, state)
        layout.heads(state)[:, : layout.tokens].unflatten(0, value.shape[:2]).add_(value, alpha=options.theta[hop])
        if hop:
            _drop(state, options, number, hop)
            hops.append(state)
    return state, Kept(weights, hops[::-1])


def diffuse_backward(
    layout: Layout,
    grad: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    kept: Kept,
    lengths: Tensor | None,
    options: HopOptions,
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of some sequences' query, key and value, as buffers.

    With P_0 the gradient of the result and P_{k+1} = Aᵀ P_k, the gradient of V is Σ_k θ_k P_k and that of A is
    Σ_k P_k Y_{k+1}ᵀ on the edges.
    """
    query, key, value = states
    theta, hops = options.theta, len(options.theta) - 1
    weights, mask = kept.weights, None
    if options.dropout_p > 0:
        mask = _edge_mask(weights, options, number)
    backwards = transpose(layout, matrix(layout, weights if mask is None else _times(weights, mask)))
    flow = layout.place(grad, lengths)
    found = flow * theta[0]
    flows = []
    for hop in range(hops):
        flows.append(flow)
        flow = multiply(layout, backwards, flow)
        _drop(flow, options, number, hop + 1)
        found.add_(flow, alpha=theta[hop + 1])
    del backwards, flow
    total = outer(layout, flows, [*kept.hops, _last_state(layout, value, options, number)])
    del flows
    plain = matrix(layout, _softmax_backward(layout, weights, mask, total))
    query_grad = multiply(layout, plain, layout.place(key)).mul_(options.scale)
    key_grad = multiply(layout, transpose(layout, plain), layout.place(query)).mul_(options.scale)
    return query_grad, key_grad, found


def _softmax_backward(layout: Layout, weights: Weights, mask: Weights | None, total: Weights) -> Weights:
    """Gradients of the scores from those of A, in the memory of the latter: dS_ij = A_ij (dA_ij - Σ_j A_ij dA_ij)."""
    if mask is not None:
        total = _times(total, mask, in_place=True)
    total.table[:, -1] = 0  # of no edge
    total.table.view(layout.sequences, layout.stride, -1)[:, layout.tokens :] = 0  # gaps, which meet the next sequence
    parts = list(zip(total.table.split(_ROWS), weights.table.split(_ROWS), strict=True))
    carried = torch.cat([_carried(grads, by) for grads, by in parts])
    links = total.links
    if links is not None:
        assert layout.links is not None
        assert weights.links is not None
        row = layout.links.hears - layout.pad
        carried.index_add_(0, row, links * weights.links)
        links = links.sub_(carried.index_select(0, row)).mul_(weights.links).to(weights.links.dtype)
    for (grads, by), sums in zip(parts, carried.split(_ROWS), strict=True):
        grads.sub_(sums[:, None]).mul_(by)
    carried = _carried(total.rows, weights.rows)
    total.rows.sub_(carried[..., None]).mul_(weights.rows)
    return Weights(total.table, total.rows, links)


def _carried(grads: Tensor, weights: Tensor) -> Tensor:
    """Σ_j A_ij dA_ij, summed in fp32, or fp64 for fp64."""
    return (grads * weights).sum(-1, dtype=torch.promote_types(grads.dtype, torch.float32))


def _last_state(layout: Layout, value: Tensor, options: HopOptions, number: int) -> Tensor:
    """Y_K = θ_K V as it is heard."""
    state = layout.place(value).mul_(options.theta[-1])
    _drop(state, options, number, len(options.theta) - 1)
    return state


def _drop(buffer: Tensor, options: HopOptions, number: int, hop: int) -> None:
    if options.hop_dropout_p > 0:
        generator = make_generator(options.seed, number, hop, device=buffer.device)
        buffer.mul_(scaled_mask(buffer.shape, options.hop_dropout_p, buffer.dtype, generator))


def _edge_mask(weights: Weights, options: HopOptions, number: int) -> Weights:
    generator = make_generator(options.seed, number, 0, device=weights.table.device)
    masks = [
        None if part is None else scaled_mask(part.shape, options.dropout_p, part.dtype, generator) for part in weights
    ]
    return Weights(*masks)  # pyright: ignore[reportArgumentType]


def _times(weights: Weights, mask: Weights, in_place: bool = False) -> Weights:
    parts = [
        part if part is None or by is None else part.mul_(by) if in_place else part * by
        for part, by in zip(weights, mask, strict=True)
    ]
    return Weights(*parts)  # pyright: ignore[reportArgumentType]
