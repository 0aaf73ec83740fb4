"""Attention whose weights are a heat kernel: w_ij ∝ exp(-‖q_i - k_j‖² / 4t), through torch's fused attention.

B batch, H heads, N_q queries, N_k keys, D channels. Position of query i among the keys: p_i = N_k - N_q + i.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffmix.ops.checks import check_heat_kernel_attention

_SHORT = 384 * 64  # tokens times channels
_BLOCK = 256  # queries that share a slice of the keys where a mask must be made for them


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
    """Mix values by weights that fall with distance: softmax over j of score_ij, with the diffusion time t.

    - `form="dot"`: score = q·k / 2t. At t = √D / 2 this is scaled dot-product attention.
    - `form="squared"`: score = -‖q - k‖² / 4t, the heat kernel itself: q·k / 2t - ‖k‖² / 4t but for a constant of the row.
    - `form="normalized"`: the same of q / ‖q‖ and k / ‖k‖, which is softmax(cos(q, k) / 2t); of vectors that are 0, cos is 0.

    Nothing of size N_q × N_k is made: t is folded into the queries and -‖k‖²/2 is one more channel of the keys (in bf16 and fp16
    two, its leading and its trailing bits). Masks that have to be made are made for 256 queries at a time.

    Args:
        query: [B, H, N_q, D], any floating dtype.
        key, value: [B, H, N_k, D]; with `enable_gqa` their number of heads divides H.
        time: t, finite and > 0: a float, or a tensor broadcastable to [B, H, N_q, 1] (per head [H, 1, 1]).
        attn_mask: broadcastable to [B, H, N_q, N_k]; bool, True where i hears j, or floating, added to the score.
        is_causal: i hears j ≤ p_i only. May be combined with `attn_mask`.
        dropout_p: of the weights.
        form: see above.
        locality: α ≥ 0 adds -α (p_i - j)² / 4t. With `form="normalized"` and no `attn_mask`, keys beyond `locality_radius` are
            skipped.
        enable_gqa: each key head serves H / H_k query heads.

    Returns:
        [B, H, N_q, D], the dtype of `query` (that of autocast, inside autocast). A row that hears nothing is 0.

    Raises:
        ValueError: an argument that does not fit.

    Source: Curry (2025).
    """
    check_heat_kernel_attention(query, key, value, time, attn_mask, dropout_p, form, locality, enable_gqa)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # before channels are added: their bits must not be rounded away later
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(device, enabled=False):
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
        channels = value.shape[-1]
        query, key, value, scale = _prepared(query, key, value, time, form)
        if locality == 0 and not (is_causal and (attn_mask is not None or query.shape[-2] != key.shape[-2])):
            if attn_mask is None:
                mixed = _fused(query, key, value, None, is_causal=is_causal, dropout_p=dropout_p, scale=scale)
            else:
                mixed = _masked(query, key, value, attn_mask, dropout_p, scale)
        else:
            radius = math.inf
            # The radius counts on every query hearing the key at its own place, and on a length and a time that are known.
            known = attn_mask is None and not torch.compiler.is_compiling()
            if locality > 0 and form == "normalized" and known and query.shape[-2] <= key.shape[-2]:
                longest = float(time.detach().max()) if isinstance(time, Tensor) else time
                radius = locality_radius(longest, locality, key.shape[-2], query.dtype)
            mixed = _in_blocks(
                query, key, value, time, attn_mask, is_causal, dropout_p, scale, locality=locality, radius=radius
            )
    return mixed[..., :channels]


def locality_radius(time: float, locality: float, keys: int, dtype: torch.dtype, bound: float = 1.0) -> float:
    """The distance r beyond which the keys of a row weigh less than ε together, where |q·k| ≤ bound.

    r = √((4t ln(N/ε) + 4·bound) / α): the score of a key at distance d is at most bound/2t - α d²/4t and that of the key at
    the query's own place at least -bound/2t, so N keys beyond r weigh at most N exp(bound/t - α r²/4t) = ε against it. The
    published √(4t ln(1/ε) / α) leaves the bound out, and a key that it skips can carry most of a row.
    """
    epsilon = torch.finfo(dtype).eps
    return math.sqrt((4 * time * math.log(max(keys, 1) / epsilon) + 4 * bound) / locality)


class _Normalized(torch.autograd.Function):
    """x / ‖x‖ over the channels, with half of the passes over x that `F.normalize` makes. See `_norm`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _normalized(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        norm = _norm(x)  # again, and by differentiable steps: a second derivative is right, too
        unit = x / norm
        along = (grads[0] * unit).sum(dim=-1, keepdim=True)
        return torch.addcmul(grads[0], unit, along, value=-1) / norm

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _Normalized.backward(ctx, *tangents)  # the Jacobian is symmetric


def _normalized(x: Tensor) -> Tensor:
    return x / _norm(x)


def _norm(x: Tensor) -> Tensor:
    """‖x‖ over the channels; ∞ where it is all but 0, whose direction is none: the quotient and its gradient are 0 there."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.masked_fill(norm < max(1e-12, torch.finfo(x.dtype).tiny), math.inf)


class _WithHalfNorm(torch.autograd.Function):
    """[k, -‖k‖²/2, 0 …]: one more channel, in two parts where one would round it, filled up to a multiple of 8.

    The channel is in units of `unit`, which queries carry: in fp16 the square of a norm soon overflows.

    In one copy forward and one pass backward, since on short rows copies are what the form costs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(key: Tensor, unit: float) -> Tensor:
        return _with_half_norm(key, unit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        key, ctx.unit = inputs
        ctx.save_for_backward(key)
        ctx.save_for_forward(key)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (key,) = ctx.saved_tensors
        spare = _with_half_norm(key, ctx.unit).shape[-1] - key.shape[-1] - 1
        along = (key * tangents[0]).sum(dim=-1, keepdim=True) * (-1 / ctx.unit)
        return F.pad(torch.cat([tangents[0], along], dim=-1), (0, spare))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (key,) = ctx.saved_tensors
        channels = key.shape[-1]
        # Queries carry the same in every further channel, so the first of them has the gradient of the norm.
        first = grads[0][..., channels : channels + 1]
        return torch.addcmul(grads[0][..., :channels], key, first, value=-1 / ctx.unit), None


def _with_half_norm(key: Tensor, unit: float) -> Tensor:
    exact = torch.promote_types(key.dtype, torch.float32)
    half_norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True, dtype=exact).square() * (-0.5 / unit)
    parts = [half_norm.to(key.dtype)]
    if key.dtype in (torch.bfloat16, torch.float16):
        parts.append((half_norm - parts[0].to(exact)).to(key.dtype))
    spare = -(key.shape[-1] + len(parts)) % 8  # what the kernels' products are made for
    return torch.cat([key, *parts, key.new_zeros(*key.shape[:-1], spare)], dim=-1)


def _prepared(
    query: Tensor, key: Tensor, value: Tensor, time: float | Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor, float]:
    """q, k, v and a scale such that softmax(scale · q·k) is the kernel; k may carry further channels, and then v zeros."""
    if torch.compiler.is_compiling():  # which joins passes itself, and warns of functions with a gradient of their own
        normalized, with_half_norm = _normalized, _with_half_norm
    else:
        normalized, with_half_norm = _Normalized.apply, _WithHalfNorm.apply
    if form == "normalized":
        query, key = normalized(query), normalized(key)
    elif form == "squared":
        channels = query.shape[-1]
        # A time that is a tensor is folded into queries, where a small one would make a unit overflow in turn.
        unit = 16.0 if key.dtype is torch.float16 and not isinstance(time, Tensor) else 1.0
        key = with_half_norm(key, unit)
        # The parts of the norm count once each; what only fills up meets zeros.
        further = query.new_full((*query.shape[:-1], key.shape[-1] - channels), unit)
        query = torch.cat([query, further], dim=-1)
        value = F.pad(value, (0, key.shape[-1] - channels))  # the fused kernels want one head size
    if isinstance(time, Tensor):
        return query * (0.5 / time).to(query.dtype), key, value, 1.0
    return query, key, value, 0.5 / time


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, dropout_p: float, scale: float
) -> Tensor:
    """torch's fused attention, in fp32 where that trains faster.

    On CPUs torch 2.13 in bf16 takes 7 times as long as in fp32 at 20 tokens; at _SHORT they are even.
    """
    dtype = query.dtype
    slow = query.device.type == "cpu" and dtype is torch.bfloat16 and query.requires_grad
    if slow and not torch.compiler.is_compiling() and query.shape[-2] * query.shape[-1] <= _SHORT:
        query, key, value = query.float(), key.float(), value.float()
        mask = mask if mask is None or mask.dtype is torch.bool else mask.float()
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, dropout_p=dropout_p, scale=scale
    ).to(dtype)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float, scale: float) -> Tensor:
    """Attention under a mask; rows that hear nothing are 0, and so are their gradients."""
    allowed = mask if mask.dtype is torch.bool else mask > -math.inf
    hears = allowed.any(dim=-1, keepdim=True)
    if mask.dtype is torch.bool:
        mask = mask | ~hears
    else:
        if mask.dtype is not query.dtype and mask.numel():
            # Softmax is blind to a constant of a row. Without it, what counts is near 0 and keeps its bits in a narrow dtype.
            mask = mask - mask.detach().amax(dim=-1, keepdim=True).masked_fill(~hears, 0.0)
        mask = mask.to(query.dtype).masked_fill(~hears, 0.0)
    while mask.ndim < 4:
        mask, hears = mask.unsqueeze(0), hears.unsqueeze(0)
    mixed = _fused(query, key, value, mask, is_causal=False, dropout_p=dropout_p, scale=scale)
    return mixed.masked_fill(~hears, 0.0)


def _in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    time: float | Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    scale: float,
    *,
    locality: float,
    radius: float,
) -> Tensor:
    """Attention under a mask that is made block by block of the queries, over the keys that a block can hear."""
    queries, keys = query.shape[-2], key.shape[-2]
    place = torch.arange(keys, device=key.device)
    shift = keys - queries
    # A graph has one block: how many there are would fix its length.
    starts, block = ([0], queries) if torch.compiler.is_compiling() else (range(0, queries, _BLOCK), _BLOCK)
    mixed = []
    for first in starts:
        last = min(first + block, queries)
        lowest, highest = 0, keys
        if is_causal:
            highest = max(0, min(keys, last + shift))
        if math.isfinite(radius):
            reach = math.ceil(radius)
            lowest = min(max(0, first + shift - reach), keys)
            highest = max(lowest, min(highest, last + shift + reach))
        if highest == lowest:  # nobody here hears anything
            mixed.append(query[..., first:last, : value.shape[-1]] * 0.0)
            continue
        distance = torch.arange(first, last, device=key.device)[:, None] + shift - place[lowest:highest]
        mask: Tensor | None = None if attn_mask is None else _slice(attn_mask, first, last, lowest, highest)
        if is_causal:
            mask = _both(mask, distance >= 0)
        here, there = query[..., first:last, :], (key[..., lowest:highest, :], value[..., lowest:highest, :])
        if locality == 0:
            assert mask is not None
            mixed.append(_masked(here, *there, mask, dropout_p, scale))
            continue
        exact = torch.promote_types(query.dtype, torch.float32)
        square = distance.to(exact).square() * (-locality / 4)
        some: Tensor | float = time
        if isinstance(time, Tensor):
            some = time.to(exact)
            some = some[..., first:last, :] if time.ndim >= 2 and time.shape[-2] > 1 else some

        def attend(
            here: Tensor, key: Tensor, value: Tensor, some: Tensor | float, square: Tensor, mask: Tensor | None
        ) -> Tensor:
            return _masked(here, key, value, _both(mask, square / some), dropout_p, scale)

        if isinstance(some, Tensor) and some.requires_grad:
            # Where the mask has a gradient, torch makes the weights: of one block at a time, and again in the backward pass.
            mixed.append(checkpoint(attend, here, *there, some, square, mask, use_reentrant=False))
        else:
            mixed.append(attend(here, *there, some, square, mask))
    return torch.cat(mixed, dim=-2) if mixed else query[..., : value.shape[-1]]


def _slice(mask: Tensor, first: int, last: int, lowest: int, highest: int) -> Tensor:
    """The part of a mask, broadcastable to [B, H, N_q, N_k], for some queries and keys."""
    if mask.ndim >= 2 and mask.shape[-2] > 1:
        mask = mask[..., first:last, :]
    return mask[..., lowest:highest] if mask.ndim and mask.shape[-1] > 1 else mask


def _both(mask: Tensor | None, other: Tensor) -> Tensor:
    """Two masks as one: bool and bool stay bool, else what is added to the score."""
    if mask is None:
        return other
    if mask.dtype is torch.bool and other.dtype is torch.bool:
        return mask & other
    if mask.dtype is torch.bool:
        return torch.where(mask, other, -math.inf)
    if other.dtype is torch.bool:
        return torch.where(other, mask, -math.inf)
    return mask + other
