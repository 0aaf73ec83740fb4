"""Attention operators side by side: torch's fused attention, ours, and ours as one writes it at first.

B rows, H heads, N tokens, D channels of a head. Each takes query, key, value [B, H, N, D] and returns [B, H, N, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.benchmarks.operators import DTYPES, seconds_of
from diffmix.models import depth_scaled_time
from diffmix.ops import heat_kernel_attention
from diffmix.ops.reference import heat_kernel_attention as materialised
from diffmix.training.hardware import peak_memory, reset_peak_memory

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMS = ("dot", "normalized", "squared")


def sides() -> dict[str, Attention]:
    """Plain fused attention, each form of the heat kernel at the depth law's time, and the materialised `dot` form."""
    time = depth_scaled_time(4)
    ours = {form: functools.partial(heat_kernel_attention, time=time, form=form) for form in FORMS}
    return {
        "sdpa": F.scaled_dot_product_attention,
        **ours,
        "materialised": functools.partial(materialised, time=time),
    }


def measure_attention(
    *, side: str, tokens: Sequence[int], heads: int, channels: int, dtype: str, device: str, steps: int, baseline: int
) -> dict[str, Any]:
    """Seconds of each step of a side, forward with backward, at each length.

    Every length has as many rows as make the longest's tokens, and shorter ones, which are quicker, take more than `steps`.

    Returns:
        `both/N`, the seconds of each step, and `memory/N`, the bytes that a step adds at its peak to what lay there before.
    """
    function = sides()[side]
    measured: dict[str, Any] = {}
    for length in tokens:
        torch.manual_seed(0)
        query, key, value = (
            torch.randn(
                max(tokens) // length, heads, length, channels, device=device, dtype=DTYPES[dtype], requires_grad=True
            )
            for _ in range(3)
        )
        upstream = torch.randn_like(query)
        reset_peak_memory()
        before = peak_memory(device, baseline)

        def step(query: Tensor = query, key: Tensor = key, value: Tensor = value, upstream: Tensor = upstream) -> None:
            query.grad = key.grad = value.grad = None
            function(query, key, value).backward(upstream)

        seconds = seconds_of(step, steps * max(tokens) // length, device)
        measured[f"both/{length}"] = [round(each, 9) for each in seconds]
        measured[f"memory/{length}"] = max(0, peak_memory(device, baseline) - before)
    return measured
