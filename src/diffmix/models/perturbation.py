"""Dropout and noise that do not dominate a training step on a CPU.

torch draws random numbers one by one on one thread, and turns comparisons into slow passes over booleans: of a small model's
step that was a third. Here a block generator fills whole buffers and arithmetic replaces comparisons. Elsewhere than on a CPU,
and in compiled graphs, torch's own are used. All draws follow torch's global seed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, with one random byte for each value on CPUs.

    There p is rounded to a multiple of 1/256 (0.1 becomes 26/256) and the scale is that of the rounded p: the expectation is
    exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the dtype of `input`."""
        dropped = round(self.p * 256)
        if not self.training or not _on_cpu(input) or not 0 < dropped < 256:
            return super().forward(input)
        # A byte b is an integer that every floating dtype holds: clamp(b - dropped + 1, 0, 1) is 1 where b ≥ dropped.
        keep = _random_bytes(input.numel()).view(input.shape).to(input.dtype).sub_(dropped - 1).clamp_(0, 1)
        return input * keep * (256 / (256 - dropped))


def add_noise(hidden: Tensor, std: float) -> Tensor:
    """hidden + N(0, std²), drawn by the Box-Muller transform from 16-bit numbers on CPUs (no value beyond 4.9 std)."""
    if not _on_cpu(hidden):
        return hidden + std * torch.randn_like(hidden)
    half = -(-hidden.numel() // 2)
    uniform = _random_bytes(4 * half).view(torch.uint16).view(2, half)
    radius = uniform[0].float().add_(0.5).mul_(2**-16).log_().mul_(-2 * std**2).sqrt_()
    angle = uniform[1].float().mul_(2 * math.pi * 2**-16)
    noise = torch.empty(2, half, dtype=hidden.dtype, device="cpu")
    noise[0], noise[1] = angle.cos().mul_(radius), angle.sin_().mul_(radius)
    return hidden + noise.view(-1)[: hidden.numel()].view(hidden.shape)


def _on_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _random_bytes(count: int) -> Tensor:
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    words = np.random.SFC64(seed).random_raw(-(-count // 8))
    return torch.from_numpy(words.view(np.uint8))[:count]
