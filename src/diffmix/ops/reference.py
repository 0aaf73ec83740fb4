"""The definitions: plain, slow, exact in fp64. Every fast path in `diffmix.ops` is tested against these.

B batch, N tokens, D channels, O offsets, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmix.ops.checks import check_neighbor_diffusion


def neighbor_diffusion(
    hidden: Tensor,
    weight: Tensor,
    offsets: Sequence[int],
    *,
    padding_mask: Tensor | None = None,
    boundary: str = "zero",
) -> Tensor:
    """out_i = Σ_o W_o h_{i+o}, position by position. See `diffmix.ops.neighbor_diffusion` for the arguments."""
    check_neighbor_diffusion(hidden, weight, offsets, padding_mask, boundary)
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
