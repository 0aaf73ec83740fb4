"""From tokens to one vector a sequence.

B batch, N tokens, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmix.models.configuration import DiffmixConfig


def in_full_precision(values: Tensor) -> Tensor:
    """In fp32, or fp64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class AttentionPooling(nn.Module):
    """Weighted mean of the tokens: weights softmax(h_i·u/√D) with a learned u."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, D] → [B, D]."""
        score = in_full_precision(hidden @ self.query.to(hidden.dtype)) * hidden.shape[-1] ** -0.5
        if mask is not None:
            score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
        return torch.einsum("bn,bnd->bd", score.softmax(dim=1).to(hidden.dtype), hidden)


class Pooling(nn.Module):
    """Real tokens [B, N, D] → one vector a sequence; a sequence without tokens gives 0 (of `first`, a finite vector)."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.kind = config.pooling
        channels = config.pooling_features or config.hidden_size
        self.features = nn.Linear(config.hidden_size, channels) if config.pooling_features else None
        self.size = channels * (2 if config.pooling == "mean_max" else 1)
        self.attention = AttentionPooling(channels) if config.pooling == "attention" else None

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """`hidden` with real tokens first → [B, D], or [B, 2D] for mean_max; sums run in fp32."""
        if self.features is not None:
            hidden = F.gelu(self.features(hidden))
        if self.kind == "first":
            return hidden[:, 0]
        real = None if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
        if real is not None:
            hidden = hidden * real
        if self.attention is not None:
            return self.attention(hidden, mask)
        pooled = []
        if self.kind in ("mean", "mean_max"):
            precision = torch.promote_types(hidden.dtype, torch.float32)
            length = hidden.shape[1] if mask is None else mask.sum(dim=1, keepdim=True).clamp(min=1)
            pooled.append((hidden.sum(dim=1, dtype=precision) / length).to(hidden.dtype))
        if self.kind in ("max", "mean_max"):
            if real is not None:
                hidden = hidden + (real - 1) * torch.finfo(hidden.dtype).max
            highest = hidden.max(dim=1).values  # backward, `amax` takes twice the time on CPUs
            pooled.append(highest if mask is None else highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0))
        return torch.cat(pooled, dim=-1)


def masked_mean(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean state of each row's real tokens, wherever they stand: [B, N, D] → [B, D]."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    real = attention_mask.to(hidden.dtype)
    return (real.unsqueeze(1) @ hidden).squeeze(1) / real.sum(dim=1, keepdim=True).clamp(min=1)
