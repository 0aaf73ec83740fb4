"""Attention diffusion from ordinary operators of torch, for a number of tokens that a graph leaves open.

B batch, H heads, N tokens, D channels. The parts of a pattern are those of `sparse_layout`: a band, T blocks of b queries that
meet S keys each; G global tokens, as heard and as hearing; E random links.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmix.ops.sparse_layout import band_blocks
from diffmix.patterns import SparsePattern


def plain_diffusion(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    *,
    coefficients: Sequence[float],
    scale: float,
    lengths: Tensor | None = None,
    longest: int | None = None,
) -> Tensor:
    """`diffuse_attention_aligned` without an operator of our own, which ONNX would not know: Σ_k θ_k A^k V, [B, H, N, D].

    Time and memory grow with the number of edges here, too, and N may be symbolic: no step depends on it or on values. The
    random links of a token are the same at every length, and a graph holds those of the first `longest` tokens as a constant;
    with more tokens, whatever runs it finds an index out of bounds.

    Raises:
        ValueError: random links without `longest`.
    """
    dtype, tokens = value.dtype, query.shape[2]
    exact = torch.promote_types(dtype, torch.float32)
    lowest = torch.finfo(exact).min
    query, key, value = query.to(exact) * scale, key.to(exact), value.to(exact)
    place = torch.arange(tokens, device=query.device)
    real = torch.ones_like(place, dtype=torch.bool).unsqueeze(0)  # [1, N]
    if lengths is not None:
        real = place < lengths.clamp(min=1).unsqueeze(1)  # [B, N]
    positions = _global_positions(pattern).to(query.device)
    chosen = place.unsqueeze(1) == positions  # [N, G]; nowhere for a position beyond the end
    is_global = chosen.any(dim=1, keepdim=True)

    # Whom each block of queries meets, [T, S + G]: its span and the global tokens. Places beyond the ends are masked.
    block, before, after = band_blocks(pattern)
    blocks = (tokens + block - 1) // block
    asks = torch.arange(blocks * block, device=query.device).unflatten(0, (blocks, block))
    span = torch.arange(-before * block, (1 + after) * block, device=query.device)
    meets = torch.cat([asks[:, :1] + span, positions.expand(blocks, -1)], dim=1)
    index = meets.clamp(0, tokens - 1).flatten()

    def met(states: Tensor) -> Tensor:
        """[…, N, D] → […, T, S + G, D]."""
        return states.index_select(-2, index).unflatten(-2, (blocks, -1))

    distance = asks.unsqueeze(2) - meets.unsqueeze(1)  # [T, b, S + G]
    in_span = torch.arange(len(span) + len(positions), device=query.device) < len(span)
    near = (distance.abs() <= pattern.window) & ~met(is_global).transpose(1, 2)
    heard = (near | ~in_span) & ((meets >= 0) & (meets < tokens)).unsqueeze(1)
    if pattern.causal:
        heard = heard & (distance >= 0)
    heard = heard & met(real.unsqueeze(2)).transpose(2, 3)  # [B, T, b, S + G]
    queries = query.index_select(2, asks.clamp(max=tokens - 1).flatten()).unflatten(2, (blocks, block))
    scores = (queries @ met(key).transpose(-1, -2)).masked_fill(~heard.unsqueeze(1), lowest)

    # The softmax of a row runs over its scores in the block and those of its links.
    highest = scores.amax(dim=-1).flatten(2)  # [B, H, T·b]
    linked, hears, sends = None, place, place
    if pattern.random_links:
        hears, sends, exists = _linked(pattern, longest, place, real)
        linked = (query.index_select(2, hears) * key.index_select(2, sends)).sum(dim=-1)  # [B, H, E]
        linked = linked.masked_fill(~exists.unsqueeze(1), lowest)
        highest = highest.scatter_reduce(2, hears.expand_as(linked), linked, "amax")
        linked = (linked - highest.index_select(2, hears)).exp()
    weights = (scores - highest.unflatten(2, (blocks, block)).unsqueeze(-1)).exp()
    total = weights.sum(dim=-1).flatten(2)
    if linked is not None:
        total = total.scatter_add(2, hears.expand_as(linked), linked)
        linked = linked / total.index_select(2, hears)
    weights = weights / total.unflatten(2, (blocks, block)).unsqueeze(-1)

    hearing = real[:, None, None]  # of global tokens: [B, 1, G, N]
    if pattern.causal:
        hearing = hearing & (place <= positions.unsqueeze(1))
    rows = query.index_select(2, positions.clamp(0, tokens - 1)) @ key.transpose(-1, -2)
    rows = rows.masked_fill(~hearing, lowest).softmax(dim=-1)

    mixed = value * coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        state = (weights @ met(mixed)).flatten(2, 3)[:, :, :tokens]
        if linked is not None:
            sent = linked.unsqueeze(-1) * mixed.index_select(2, sends)
            state = state.scatter_add(2, hears.unsqueeze(1).expand_as(sent), sent)
        of_globals = chosen.to(exact) @ (rows @ mixed)
        mixed = value * coefficient + torch.where(is_global, of_globals, state)
    return mixed.masked_fill(~real[:, None, :, None], 0.0).to(dtype)


def _global_positions(pattern: SparsePattern) -> Tensor:
    """int64 [G], at every length. Where there are none, one that no token has: runtimes differ on tensors without elements."""
    named = pattern.global_tokens
    return torch.tensor(list(range(named) if isinstance(named, int) else named) or [-1])


def _linked(pattern: SparsePattern, longest: int | None, place: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The links of all tokens: who hears [E], who is heard [E], and whether there is such a link [B, E]."""
    if longest is None:
        raise ValueError(
            f"random_links is {pattern.random_links}, but an ONNX graph has to hold the links of a known number of tokens; give "
            "random_links=0, or export a diffmix model, which knows its max_position_embeddings"
        )
    drawn = pattern.drawn_links(longest).to(place.device).index_select(0, place)  # [N, r]
    token = place.unsqueeze(1).expand_as(drawn).flatten()
    exists = (drawn >= 0).flatten() & real.index_select(1, token)
    drawn = drawn.clamp(min=0).flatten()
    if pattern.causal:
        return token, drawn, exists
    return torch.cat([token, drawn]), torch.cat([drawn, token]), torch.cat([exists, exists], dim=1)
