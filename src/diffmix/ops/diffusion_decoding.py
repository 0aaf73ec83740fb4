"""Causal attention diffusion of the tokens that follow others: the states of the past in every hop are kept, not computed again.

In a causal pattern no token changes what an earlier one hears. So Y_1 … Y_K of `diffmix.ops.attention_diffusion` stay as they
are when a sequence grows, and new tokens need their own rows of A only: Y_k[new] = θ_k V[new] + A[new, :] Y_{k+1}.

B batch, H heads, H_k heads of keys, N tokens in memory, of which P are past and M new, D channels, K hops; R rows of A, d the
most that one of them hears.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.ops.alignment import align, aligned_positions, unalign
from diffmix.ops.attention_diffusion import diffused_states
from diffmix.patterns import SparsePattern

_PAIRS = 2**13  # of a row and a token that it hears, whose states are gathered at a time


class Rows(NamedTuple):
    """Some rows of A. Tokens are named by their place in memory."""

    batch: Tensor  # int64 [R]
    token: Tensor  # int64 [R], among the new ones
    heard: Tensor  # int64 [R, d], among all; the token itself where there is no edge
    edge: Tensor  # bool [R, d]


@dataclasses.dataclass(frozen=True)
class NewTokens:
    """Which tokens are new, and what they hear: the same for all layers of a model.

    Args:
        pattern: a causal one.
        positions: int64 [B, M] of the new tokens, counting real tokens.
        past: P.
        padding_mask: bool [B, P + M], or None where all tokens are real.
    """

    pattern: SparsePattern
    positions: Tensor
    past: int
    padding_mask: Tensor | None = None

    @functools.cached_property
    def rows(self) -> list[Rows]:
        """All rows of A for the new tokens, those of global tokens, which are long, apart from the others.

        Takes O(M·d) memory, and with a mask, which is looked at, O(B·N).
        """
        batch, tokens = self.positions.shape
        device = self.positions.device
        row = torch.arange(batch, device="cpu").repeat_interleave(tokens)  # whatever the default device is
        token = torch.arange(tokens, device="cpu").repeat(batch)
        if self.padding_mask is None:  # what is known anyway need not be waited for
            position, place = token + self.past, None
        else:
            position = self.positions.flatten().cpu()
            order = aligned_positions(self.padding_mask)
            place = torch.arange(order.shape[1], device=device).expand_as(order)
            place = align(place, order)  # of the real token at a position
        is_global = torch.isin(position, self.pattern.global_positions(int(position.max()) + 1))
        found: list[Rows] = []
        for chosen in ((~is_global).nonzero().squeeze(1), is_global.nonzero().squeeze(1)):
            if not len(chosen):
                continue
            which, where = row[chosen].to(device), token[chosen].to(device)
            heard = self.pattern.past_of(position[chosen]).to(device)
            edge = heard >= 0
            if place is not None:
                heard = place[which[:, None], heard.clamp(min=0)]
            heard = torch.where(edge, heard, where[:, None] + self.past)
            count = max(1, _PAIRS // heard.shape[1])
            parts = (part.split(count) for part in (which, where, heard, edge))
            found += [Rows(*some) for some in zip(*parts, strict=True)]
        return found

    @functools.cached_property
    def order(self) -> Tensor:
        """Where the new tokens, row of the batch by row, stand among `rows`: int64 [B·M]."""
        return torch.cat([some.batch * self.positions.shape[1] + some.token for some in self.rows]).argsort()


def diffuse_new_tokens(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    new: NewTokens,
    past: tuple[Tensor, Tensor] | None,
    *,
    coefficients: Sequence[float],
    scale: float,
    dropout_p: float = 0.0,
    hop_dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Σ_k θ_k A^k V of new tokens, and what those after them need to know.

    Args:
        query: [B, H, M, D].
        key, value: [B, H_k, M, D], H_k a divisor of H.
        new: which tokens these are.
        past: keys [B, H_k, P, D] and states [B, H, P, K·D] of the tokens before; None where there are none.
        coefficients: θ_0 … θ_K.
        scale: of the scores.
        dropout_p, hop_dropout_p: as in `attention_diffusion`; the states of the past are those that were heard.

    Returns:
        [B, H, M, D], finite at padding, and the states Y_1 … Y_K side by side, [B, H, M, K·D].
    """
    heads = query.shape[1]
    value = value.repeat_interleave(heads // value.shape[1], dim=1)
    hops = len(coefficients) - 1
    if not hops:
        return value * coefficients[0], value[..., :0]
    differentiable = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    if past is None and not (differentiable or dropout_p or hop_dropout_p):
        return _first(query, key.repeat_interleave(heads // key.shape[1], dim=1), value, new, coefficients, scale)
    weights = [F.dropout(_weights(query, key, some, new.past, past, scale), dropout_p) for some in new.rows]
    carried = None if past is None else _mixed(weights, new, past[1], 0)  # of all hops at once
    state = F.dropout(value * coefficients[-1], hop_dropout_p)
    states = [state]
    for hop in reversed(range(hops)):
        state = coefficients[hop] * value + _mixed(weights, new, state, new.past)
        if carried is not None:
            state = state + carried.unflatten(-1, (hops, -1))[..., hop, :]
        if hop:
            state = F.dropout(state, hop_dropout_p)
            states.insert(0, state)
    return state, torch.cat(states, dim=-1)


def _first(
    query: Tensor, key: Tensor, value: Tensor, new: NewTokens, coefficients: Sequence[float], scale: float
) -> tuple[Tensor, Tensor]:
    """The new tokens are all that there are: the operator for whole sequences, which keeps the states on its way."""
    mask = new.padding_mask
    if mask is None:
        return diffused_states(query, key, value, new.pattern, coefficients=coefficients, scale=scale)
    positions = aligned_positions(mask)
    query, key, value = (align(states, positions) for states in (query, key, value))
    found = diffused_states(
        query, key, value, new.pattern, coefficients=coefficients, scale=scale, lengths=mask.sum(dim=1)
    )
    mixed, states = (unalign(one, positions) for one in found)
    return mixed, states


def _weights(
    query: Tensor, key: Tensor, rows: Rows, past: int, before: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """Rows of A: [R, H, d]."""
    keys = _gather(key, rows, past)  # [R, d, H_k, D]
    if before is not None:
        keys = torch.where((rows.heard < past)[..., None, None], _gather(before[0], rows, 0), keys)
    asking = query[rows.batch, :, rows.token].unflatten(1, (keys.shape[2], -1))
    scores = torch.einsum("rgjc,rdgc->rgjd", asking * scale, keys).flatten(1, 2)
    scores = scores.masked_fill(~rows.edge[:, None], -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _mixed(weights: Sequence[Tensor], new: NewTokens, states: Tensor, first: int) -> Tensor:
    """What all rows hear of `states` [B, H, n, C], whose tokens lie at `first` and after: [B, H, M, C]."""
    found: list[Tensor] = []
    for some, rows in zip(weights, new.rows, strict=True):
        present = (rows.heard >= first) & (rows.heard < first + states.shape[2])
        found.append(torch.einsum("rhd,rdhc->rhc", some * present[:, None], _gather(states, rows, first)))
    joined = torch.cat(found).index_select(0, new.order)
    return joined.unflatten(0, new.positions.shape).transpose(1, 2)


def _gather(states: Tensor, rows: Rows, first: int) -> Tensor:
    """[B, H, n, C], tokens that lie at `first` and after → those that rows hear, any one for others: [R, d, H, C]."""
    return states[rows.batch[:, None], :, (rows.heard - first).clamp(0, states.shape[2] - 1)]
