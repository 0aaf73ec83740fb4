"""Dropout that does not dominate a training step on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with cheaper random numbers on CPUs.

    torch draws one 64-bit number, on one thread, for each value that may be dropped: up to a third of the training step of a
    small model. Here each byte of those numbers decides on one value, so p is rounded to a multiple of 1/256 (0.1 becomes
    26/256) and the scale is that of the rounded p: the expectation is exact. Elsewhere than on a CPU, and in compiled
    graphs, this is torch's own dropout.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the dtype of `input`."""
        dropped = round(self.p * 256)
        if not self.training or input.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < 256:
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        drop = words.view(torch.uint8)[: input.numel()].view(input.shape) < dropped
        return input.masked_fill(drop, 0.0) * (256 / (256 - dropped))
