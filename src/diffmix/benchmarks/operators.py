"""Ways to compute out_i = Σ_o W_o h_{i+o} with zeros beyond the ends: the candidates that the fast path was chosen from.

B batch, N tokens, D channels, O offsets. Each takes hidden [B, N, D], weight [O, D, D] and offsets, and returns [B, N, D].
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmix.benchmarks.turns import wait_for_turn
from diffmix.ops import neighbor_diffusion
from diffmix.training.hardware import peak_memory

Candidate = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
OFFSETS = (-1, 0, 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def library(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """`diffmix.ops.neighbor_diffusion`."""
    return neighbor_diffusion(hidden, weight, offsets)


def rolled_linears(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """One product an offset, on a rolled copy whose wrapped end is blanked."""
    position = torch.arange(hidden.shape[1], device=hidden.device)
    mixed = torch.zeros_like(hidden)
    for matrix, offset in zip(weight, offsets, strict=True):
        inside = ((position + offset >= 0) & (position + offset < hidden.shape[1])).to(hidden.dtype)
        mixed = mixed + F.linear(torch.roll(hidden, -offset, dims=1) * inside[:, None], matrix)
    return mixed


def shifted_products(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """One product an offset, on a shifted view of the padded states."""
    extended, starts = _extended(hidden, offsets)
    parts = [
        extended.narrow(1, start, hidden.shape[1]) @ matrix.T for matrix, start in zip(weight, starts, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 3 else sum(parts[1:], parts[0])


def concatenation(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """One product over the neighbours side by side."""
    extended, starts = _extended(hidden, offsets)
    neighbours = torch.cat([extended.narrow(1, start, hidden.shape[1]) for start in starts], dim=-1)
    return neighbours @ torch.cat(list(weight), dim=1).T


def one_product(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """All offsets' products of every token in one, then shifted and added."""
    products = (hidden @ weight.flatten(0, 1).T).unflatten(-1, (len(offsets), -1))  # [B, N, O, D]
    before, after = max(0, -min(offsets)), max(0, max(offsets))
    extended = F.pad(products, (0, 0, 0, 0, before, after))
    parts = [extended[:, before + offset :, index][:, : hidden.shape[1]] for index, offset in enumerate(offsets)]
    return sum(parts[1:], parts[0])


def gather(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """Neighbours picked by index, then one product."""
    extended, starts = _extended(hidden, offsets)
    index = torch.arange(hidden.shape[1], device=hidden.device)[:, None] + torch.tensor(starts, device=hidden.device)
    return extended[:, index].flatten(2) @ torch.cat(list(weight), dim=1).T


def convolution_1d(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """`conv1d` over the transposed states; adjacent offsets only."""
    return F.conv1d(hidden.transpose(1, 2), weight.permute(1, 2, 0), padding=max(offsets)).transpose(1, 2)


def convolution_2d(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """`conv2d` of height 1, which reads the transposed view as channels-last; adjacent offsets only."""
    kernel = weight.permute(1, 2, 0).unsqueeze(2)
    return F.conv2d(hidden.transpose(1, 2).unsqueeze(2), kernel, padding=(0, max(offsets))).squeeze(2).transpose(1, 2)


def compiled(hidden: Tensor, weight: Tensor, offsets: Sequence[int]) -> Tensor:
    """`shifted_products` through torch.compile."""
    return _compiled()(hidden, weight, tuple(offsets))


CANDIDATES: dict[str, Candidate] = {
    function.__name__: function
    for function in (
        library,
        rolled_linears,
        shifted_products,
        concatenation,
        one_product,
        gather,
        convolution_1d,
        convolution_2d,
        compiled,
    )
}

_compiled_function: list[Candidate] = []


def _compiled() -> Candidate:
    if not _compiled_function:
        _compiled_function.append(torch.compile(shifted_products))
    return _compiled_function[0]


def _extended(hidden: Tensor, offsets: Sequence[int]) -> tuple[Tensor, list[int]]:
    before, after = max(0, -min(offsets)), max(0, max(offsets))
    return F.pad(hidden, (0, 0, before, after)), [before + offset for offset in offsets]


def measure_operators(
    *,
    candidate: str,
    widths: Sequence[int],
    dtypes: Sequence[str],
    batch: int,
    tokens: int,
    device: str,
    steps: int,
    baseline: int,
) -> dict[str, float]:
    """Seconds of a candidate, forward and forward with backward, for each width and dtype (medians over `steps`).

    Returns:
        `forward/DTYPE/WIDTH` and `both/DTYPE/WIDTH` in seconds, and peak_memory_bytes over all of them.
    """
    function = CANDIDATES[candidate]
    measured: dict[str, float] = {}
    for dtype in dtypes:
        for width in widths:
            torch.manual_seed(0)
            hidden = torch.randn(batch, tokens, width, device=device, dtype=DTYPES[dtype], requires_grad=True)
            weight = (
                (torch.randn(3, width, width, device=device) * (3 * width) ** -0.5).to(DTYPES[dtype]).requires_grad_()
            )
            upstream = torch.randn_like(hidden)

            def forward(hidden: Tensor = hidden, weight: Tensor = weight) -> None:
                with torch.no_grad():
                    function(hidden, weight, OFFSETS)

            def both(hidden: Tensor = hidden, weight: Tensor = weight, upstream: Tensor = upstream) -> None:
                hidden.grad = weight.grad = None
                function(hidden, weight, OFFSETS).backward(upstream)

            for name, work in (("forward", forward), ("both", both)):
                measured[f"{name}/{dtype}/{width}"] = median_seconds(work, steps, device)
    return {**measured, "peak_memory_bytes": peak_memory(device, baseline)}


def median_seconds(work: Callable[[], None], steps: int, device: str, warmup: int = 3) -> float:
    """The median time of `work` over `steps` calls, after `warmup` more."""
    return statistics.median(seconds_of(work, steps, device, warmup))


def seconds_of(work: Callable[[], None], steps: int, device: str, warmup: int = 3) -> list[float]:
    """The time of each of `steps` calls of `work`, after `warmup` more."""
    seconds = []
    for _ in range(warmup + steps):
        wait_for_turn()
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[warmup:]
