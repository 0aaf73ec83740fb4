"""Embeddings of the n ids that end at each token, for models of bytes and other small vocabularies.

B batch, N tokens, D channels, S sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PRIME, _FACTOR = 2**31 - 1, 1_000_003  # their product stays within int64


class NgramEmbedding(nn.Embedding):
    """Σ_n E[row(x_{i-n+1} … x_i)]: what a token and those before it spell, for each size n.

    The grams are hashed into `buckets` rows, which unlike ones share where there are more of them (Bojanowski et al. 2017, for
    words; Clark et al. 2022, for characters): with p = 2³¹ - 1, a = 1,000,003, key_0 = 0 and
    key_j = (a·key_{j-1} + x_{i-j+1} + 1) mod p, where x + 1 is 0 before the first token, the row is
    ((a·key_n + n - 1) mod p) mod buckets. Saved weights rest on this formula. Rows start at 0: a model begins as it would
    without them.

    Args:
        sizes: n of each kind of gram, 2 or more.
        buckets: rows of the table.
        channels: D.
    """

    def __init__(self, sizes: Sequence[int], buckets: int, channels: int):
        self.sizes = tuple(sizes)
        super().__init__(buckets, channels)

    def reset_parameters(self) -> None:
        """All rows 0."""
        nn.init.zeros_(self.weight)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, sizes={self.sizes}"

    def forward(self, input: Tensor) -> Tensor:
        """Ids [B, N], real tokens first → [B, N, D]."""
        return super().forward(self.rows(input)).sum(dim=0)

    def rows(self, ids: Tensor) -> Tensor:
        """The table's row for the grams that end at each token: ids [B, N] → [S, B, N]. Before the first token stands nothing."""
        ids = ids.long()
        key, found = torch.zeros_like(ids), []
        for back in range(max(self.sizes)):
            earlier = F.pad(ids + 1, (back, 0))[:, : ids.shape[1]]
            key = (key * _FACTOR + earlier) % _PRIME
            if back + 1 in self.sizes:
                found.append((key * _FACTOR + back) % _PRIME % self.num_embeddings)
        return torch.stack(found)
