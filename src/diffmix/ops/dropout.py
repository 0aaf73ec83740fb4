"""Masks of dropout from a seed, so that a backward pass can draw them again instead of keeping them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS = 2**16  # probabilities are rounded to multiples of 1/65,536


def make_generator(seed: int, *numbers: int, device: torch.device) -> torch.Generator:
    """A generator for the given seed and numbers, each below 2^20; different ones are independent."""
    for number in numbers:
        seed = (seed * 0x5851F42D4C957F2D + number + 1) % 2**63
    return torch.Generator(device).manual_seed(seed)


def scaled_mask(shape: Sequence[int], p: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """0 with probability p, else 1 / (1-p). 16 bits a value, four values a draw: torch's own takes several times as long."""
    dropped = min(max(round(p * _STEPS), 1), _STEPS - 1)
    values = 1
    for size in shape:
        values *= size
    words = torch.empty(-(-values // 4), dtype=torch.int64, device=generator.device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    lowest = dropped + torch.iinfo(torch.int16).min  # of the draws that are kept
    kept = words.view(torch.int16)[:values].view(*shape).clamp_(lowest - 1, lowest).sub_(lowest - 1)
    return kept.to(dtype).mul_(_STEPS / (_STEPS - dropped))
