"""How long attention diffuses: the time t of a heat kernel, fixed, by the depth law, learned, or read from the similarities.

B batch, H heads, N_q queries, N_k keys, D channels of a head.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 64  # keys whose scores are made at once


def depth_scaled_time(layers: int, base: float = 0.28, reference_layers: int = 4) -> float:
    """t(L) = base · √(reference_layers / L), the depth law of Curry (2025): 0.28 at 4 layers, 0.20 at 8, 0.16 at 12."""
    if layers < 1 or reference_layers < 1:
        raise ValueError(f"layers is {layers} and reference_layers {reference_layers}; give 1 or more")
    return base * math.sqrt(reference_layers / layers)


def similarity_statistics(
    query: Tensor, key: Tensor, *, padding_mask: Tensor | None = None, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q_i·k_j over the real keys that i hears, without N_q × N_k scores.

    Sums over keys suffice: Σ_j q·k_j = q·Σ k_j and Σ_j (q·k_j)² = qᵀ (Σ k_j k_jᵀ) q. Causally they are cumulative, over chunks of
    64 keys, with scores inside a query's own chunk only: memory O(N).

    Args:
        query: [B, H, N_q, D].
        key: [B, H, N_k, D]; causally N_k ≥ N_q, and query i stands at N_k - N_q + i.
        padding_mask: [B, N_k] bool, True at real keys.
        is_causal: i hears itself and what stands before it.

    Returns:
        mean and variance, each [B, H, N_q, 1], in fp32 or better; 0 for a query that hears no real key.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(exact), key.to(exact)
        real = key.new_ones(key.shape[0], 1, key.shape[2], 1)
        if padding_mask is not None:
            real = padding_mask[:, None, :, None].to(exact)
            key = key * real
        recent = query.shape[2] if is_causal else 0
        past = key.shape[2] - recent
        if past < 0:
            raise ValueError(
                f"query has {query.shape[2]} tokens but key {key.shape[2]}; causally give as many keys or more"
            )
        old = key[:, :, :past]
        first, second = old.sum(2), old.transpose(-1, -2) @ old  # [B, H, D], [B, H, D, D]
        count = real[:, :, :past].sum(2)  # [B, 1, 1]
        if not is_causal:
            total = query @ first.unsqueeze(-1)
            squares = ((query @ second) * query).sum(-1, keepdim=True)
            count = count.unsqueeze(-1)
        else:
            spare = -recent % _CHUNK
            chunks, queries, reals = (
                F.pad(states, (0, 0, 0, spare)).unflatten(2, (-1, _CHUNK))
                for states in (key[:, :, past:], query, real[:, :, past:])
            )  # [B, H, c, 64, D], the same, [B, 1, c, 64, 1]
            first = _before(chunks.sum(3), first)
            second = _before(chunks.transpose(-1, -2) @ chunks, second)
            count = _before(reals.sum(3), count).unsqueeze(3) + reals.cumsum(3)
            scores = (queries @ chunks.transpose(-1, -2)).tril()
            total = queries @ first.unsqueeze(-1) + scores.sum(-1, keepdim=True)
            squares = ((queries @ second) * queries).sum(-1, keepdim=True) + scores.square().sum(-1, keepdim=True)
            total, squares, count = (sums.flatten(2, 3)[:, :, :recent] for sums in (total, squares, count))
        count = count.clamp(min=1)
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=0)


def _before(sums: Tensor, start: Tensor) -> Tensor:
    """What stands before each chunk: `start` and the sums of the chunks ahead of it. [B, H, c, …], [B, H, …] → [B, H, c, …]."""
    return torch.cat([start.unsqueeze(2), sums[:, :, :-1]], dim=2).cumsum(2)


class LearnedTime(nn.Module):
    """One t a head, between `lowest` and `highest`: log t = a sigmoid's way between their logs, at first `start`."""

    def __init__(self, heads: int, start: float, lowest: float, highest: float):
        super().__init__()
        self.bounds = math.log(lowest), math.log(highest)
        self.start = start
        self.logit = nn.Parameter(torch.empty(heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The time it starts from."""
        nn.init.constant_(self.logit, _logit(self.start, self.bounds))

    def forward(self, query: Tensor, key: Tensor, padding_mask: Tensor | None, is_causal: bool) -> Tensor:
        """[H, 1, 1]."""
        return _between(self.logit, self.bounds)


class AdaptiveTime(nn.Module):
    """A t for each query, from the mean and deviation of its similarities: a small network a head, at first `start`.

    The statistics run over what the query may hear, so that no time depends on the future.
    """

    def __init__(self, heads: int, start: float, lowest: float, highest: float, width: int = 16):
        super().__init__()
        self.bounds = math.log(lowest), math.log(highest)
        self.start = start
        self.hidden_weight = nn.Parameter(torch.empty(heads, 2, width))
        self.hidden_bias = nn.Parameter(torch.empty(heads, 1, width))
        self.output_weight = nn.Parameter(torch.empty(heads, width, 1))
        self.output_bias = nn.Parameter(torch.empty(heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The time it starts from, for every query."""
        nn.init.normal_(self.hidden_weight, std=0.5**0.5)
        nn.init.zeros_(self.hidden_bias)
        nn.init.zeros_(self.output_weight)
        nn.init.constant_(self.output_bias, _logit(self.start, self.bounds))

    def forward(self, query: Tensor, key: Tensor, padding_mask: Tensor | None, is_causal: bool) -> Tensor:
        """[B, H, N_q, 1]."""
        mean, variance = similarity_statistics(query, key, padding_mask=padding_mask, is_causal=is_causal)
        scale = query.shape[-1] ** -0.5
        features = torch.cat([mean, (variance + 1e-6).sqrt()], dim=-1) * scale
        with torch.autocast(query.device.type, enabled=False):
            hidden = F.gelu(features @ self.hidden_weight.to(features.dtype) + self.hidden_bias.to(features.dtype))
            logit = hidden @ self.output_weight.to(features.dtype) + self.output_bias.to(features.dtype)
            return _between(logit, self.bounds)


def _hand_over(record: Callable[[Tensor], None], module: nn.Module, inputs: Any, time: Tensor) -> None:
    record(time)


@contextlib.contextmanager
def recorded_times(model: nn.Module) -> Iterator[dict[str, list[dict[str, float]]]]:
    """The times that the blocks of `model` use while it runs inside: module name → for each head mean, std, min, max.

    Filled at the end; empty where every time is fixed.
    """
    seen: dict[str, list[Tensor]] = {}

    def record(name: str, time: Tensor) -> None:
        flat = time.detach().double().transpose(0, -3).flatten(1)  # [H, B·N_q]
        count = flat.new_full(flat.shape[:1], flat.shape[1])
        parts = [count, flat.sum(1), flat.square().sum(1), flat.amin(1), flat.amax(1)]
        before = seen.get(name)
        if before is not None:
            parts = [*(a + b for a, b in zip(before[:3], parts[:3], strict=True)),
                     torch.minimum(before[3], parts[3]), torch.maximum(before[4], parts[4])]  # fmt: skip
        seen[name] = parts

    handles = [
        module.register_forward_hook(functools.partial(_hand_over, functools.partial(record, name)))
        for name, module in model.named_modules()
        if isinstance(module, LearnedTime | AdaptiveTime)
    ]
    times: dict[str, list[dict[str, float]]] = {}
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()
    for name, (count, total, square, lowest, highest) in seen.items():
        mean = total / count
        deviation = (square / count - mean.square()).clamp(min=0).sqrt()
        columns = {"mean": mean, "std": deviation, "min": lowest, "max": highest}
        times[name] = [{key: float(column[head]) for key, column in columns.items()} for head in range(len(mean))]


def _logit(start: float, bounds: tuple[float, float]) -> float:
    share = (math.log(start) - bounds[0]) / (bounds[1] - bounds[0])
    return math.log(share / (1 - share))


def _between(logit: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[0] + (bounds[1] - bounds[0]) * logit.sigmoid()).exp()
