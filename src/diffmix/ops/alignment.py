"""Moving real tokens to the front of their row, so that position in memory is position in the sequence.

B batch, N tokens, D channels, H heads. A row with real tokens r and padding p, such as p r r p r, becomes r r r p p. Padding then
cannot stand between a token and its neighbour, and left padding, right padding and none are the same computation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def aligned_positions(padding_mask: Tensor) -> Tensor:
    """Where each token goes: real tokens to 0 … L-1 in their order, padding behind them. [B, N] bool → [B, N] int64.

    Written with sums and not with a sort, which not every ONNX runtime has in a stable form.
    """
    real = padding_mask.long()
    length = real.sum(dim=1, keepdim=True)
    return torch.where(padding_mask, real.cumsum(dim=1) - 1, length + (1 - real).cumsum(dim=1) - 1)


def align(values: Tensor, positions: Tensor) -> Tensor:
    """Move `values` [B, N], [B, N, D] or [B, H, N, D] to `positions` [B, N]."""
    source = torch.zeros_like(positions).scatter(
        1, positions, torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    )
    return unalign(values, source)


def unalign(values: Tensor, positions: Tensor) -> Tensor:
    """Take `values` back from `positions`: the inverse of `align`."""
    if values.ndim == 4:
        return values.gather(2, positions[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1]))
    if values.ndim == 3:
        return values.gather(1, positions.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return values.gather(1, positions)
