"""The definitions: plain, slow, exact in fp64. Every fast path in `diffmix.ops` is tested against these.

B batch, N tokens (N_q queries, N_k keys), D channels, O offsets, H heads, K hops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.ops.checks import (
    check_attention_diffusion,
    check_finite_scores,
    check_heat_kernel_attention,
    check_neighbor_diffusion,
)
from diffmix.ops.coefficients import personalized_pagerank
from diffmix.patterns import SparsePattern


def neighbor_diffusion(
    hidden: Tensor,
    weight: Tensor | None,
    offsets: Sequence[int],
    *,
    padding_mask: Tensor | None = None,
    boundary: str = "zero",
) -> Tensor:
    """out_i = Σ_o W_o h_{i+o}, position by position. See `diffmix.ops.neighbor_diffusion` for the arguments."""
    check_neighbor_diffusion(hidden, weight, offsets, padding_mask, boundary)
    if weight is None:  # W_o lets the channels of track o through
        channels = torch.arange(hidden.shape[-1], device=hidden.device)
        tracks = torch.tensor_split(channels, len(offsets))
        weight = torch.stack([torch.isin(channels, track).to(hidden.dtype).diag() for track in tracks])
    heads = weight.unsqueeze(1) if weight.ndim == 3 else weight  # [O, H, out, in]
    rows = []
    for row in range(hidden.shape[0]):
        real = slice(None) if padding_mask is None else padding_mask[row].nonzero().squeeze(1)
        tokens = hidden[row, real].unflatten(-1, (heads.shape[1], -1))  # [L, H, in]
        length = tokens.shape[0]
        total = tokens.new_zeros(length, heads.shape[1], heads.shape[2])
        for matrix, offset in zip(heads, offsets, strict=True):
            source = torch.arange(length, device=hidden.device) + offset
            if boundary == "wrap":
                source, inside = source % max(length, 1), torch.ones_like(source, dtype=torch.bool)
            else:
                inside = (source >= 0) & (source < length)
            neighbour = tokens.new_zeros(tokens.shape).index_put((inside,), tokens[source[inside]])
            total = total + torch.einsum("nhi,hoi->nho", neighbour, matrix)
        out = hidden.new_zeros(hidden.shape[1], heads.shape[1] * heads.shape[2])
        index = torch.arange(hidden.shape[1], device=hidden.device)[real]
        rows.append(out.index_put((index,), total.flatten(1)))
    return torch.stack(rows) if rows else hidden.new_zeros(0, hidden.shape[1], heads.shape[1] * heads.shape[2])


def heat_kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    time: float | Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    form: str = "dot",
    locality: float = 0.0,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(score) V with all N_q × N_k scores. See `diffmix.ops.heat_kernel_attention` for the arguments."""
    check_heat_kernel_attention(query, key, value, time, attn_mask, dropout_p, form, locality, enable_gqa)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if form == "normalized":
        query, key = _direction(query), _direction(key)
    if form != "squared":  # of unit vectors, -‖q - k‖² / 4t is q·k / 2t but for a constant
        score = query @ key.transpose(-1, -2) / (2 * time)
    else:
        score = -(query.unsqueeze(-2) - key.unsqueeze(-3)).square().sum(-1) / (4 * time)
    queries, keys = score.shape[-2:]
    position = torch.arange(queries, device=query.device) + keys - queries
    distance = position[:, None] - torch.arange(keys, device=query.device)
    score = score - locality * distance.to(score.dtype) ** 2 / (4 * time)
    heard = torch.ones_like(score, dtype=torch.bool)
    if is_causal:
        heard = heard & (distance >= 0)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            heard = heard & attn_mask
        else:
            heard = heard & (attn_mask > -math.inf)
            score = score + attn_mask.masked_fill(attn_mask == -math.inf, 0.0)
    score = score.masked_fill(~heard, torch.finfo(score.dtype).min)
    weights = score.softmax(dim=-1).masked_fill(~heard, 0.0)
    return F.dropout(weights, dropout_p) @ value


def _direction(x: Tensor) -> Tensor:
    """x / ‖x‖, and 0 with a gradient of 0 where x is all but 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm < max(1e-12, torch.finfo(x.dtype).tiny), math.inf)


def attention_diffusion(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    *,
    coefficients: Sequence[float] = personalized_pagerank(0.1, hops=5),
    padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    hop_dropout_p: float = 0.0,
    scale: float | None = None,
    recompute: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Σ_k θ_k A^k V with a dense A, by Horner's rule. See `diffmix.ops.attention_diffusion` for the arguments.

    `recompute` and `backend` change nothing here. Any derivative can be taken.
    """
    check_attention_diffusion(query, key, value, pattern, coefficients, padding_mask, dropout_p, hop_dropout_p, scale)
    batch, tokens = query.shape[0], query.shape[2]
    heard = torch.zeros(batch, tokens, tokens, dtype=torch.bool, device=query.device)
    for row in range(batch):
        real = torch.arange(tokens, device=query.device)
        if padding_mask is not None:
            real = real[padding_mask[row]]
        if len(real):
            heard[row, real[:, None], real] = pattern.dense(len(real)).to(query.device)
    if padding_mask is not None:
        query, key, value = (states.masked_fill(~padding_mask[:, None, :, None], 0.0) for states in (query, key, value))
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    check_finite_scores(query, key, factor)
    heard = heard[:, None]
    score = query @ key.transpose(-1, -2) * factor
    score = score.masked_fill(~heard, torch.finfo(score.dtype).min)
    weights = F.dropout(score.softmax(dim=-1).masked_fill(~heard, 0.0), dropout_p)
    mixed = coefficients[-1] * value
    for coefficient in reversed(coefficients[:-1]):
        mixed = coefficient * value + weights @ F.dropout(mixed, hop_dropout_p)
    return mixed
