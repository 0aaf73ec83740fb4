"""Attention diffusion beside its peers: torch's fused attention, the definition, an edge list, Longformer's layer.

B = 1 row, H heads, N tokens, C channels of a head, D = H·C, E edges, K hops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmix.benchmarks.operators import DTYPES, seconds_of
from diffmix.ops import attention_diffusion, personalized_pagerank
from diffmix.ops.reference import attention_diffusion as materialised
from diffmix.patterns import SparsePattern
from diffmix.training.hardware import peak_memory, reset_peak_memory, resident_memory

OPERATORS = ("ours", "recompute", "sdpa", "materialised", "edge_list")
CUDA_OPERATORS = ("blocked", "triton", "flex")  # the candidates for `diffmix.ops.kernels.CUDA_BACKEND`, and torch's own
LAYERS = ("layer", "longformer")


def edge_list(
    query: Tensor, key: Tensor, value: Tensor, pattern: SparsePattern, *, coefficients: Sequence[float]
) -> Tensor:
    """Attention diffusion as graph libraries do it: states gathered for each edge, and scattered to the tokens that hear."""
    hears, heard = pattern.edges(query.shape[2]).to(query.device)
    scores = (query[:, :, hears] * key[:, :, heard]).sum(-1) * query.shape[-1] ** -0.5  # [1, H, E]
    rows = hears.expand_as(scores)
    shape = query.shape[:3]
    highest = scores.new_full(shape, -torch.inf).scatter_reduce(2, rows, scores.detach(), "amax")
    weights = (scores - highest[:, :, hears]).exp()
    weights = weights / weights.new_zeros(shape).scatter_add(2, rows, weights)[:, :, hears]
    mixed = coefficients[-1] * value
    for coefficient in reversed(coefficients[:-1]):
        messages = weights.unsqueeze(-1) * mixed[:, :, heard]  # [1, H, E, C]
        mixed = torch.zeros_like(value).index_add(2, hears, messages) + coefficient * value
    return mixed


def flex(query: Tensor, key: Tensor, value: Tensor, pattern: SparsePattern, *, coefficients: Sequence[float]) -> Tensor:
    """Attention diffusion as torch's `flex_attention`, hop by hop: compiled on CUDA; elsewhere it has no backward pass.

    It skips blocks of 128 x 128 that hold no edge. Random links reach nearly every block of a long row, and who is linked is
    looked up in a table of N x N booleans.
    """
    attend = _flex_attention(pattern, query.shape[2], query.device)
    mixed = coefficients[-1] * value
    for coefficient in reversed(coefficients[:-1]):
        mixed = coefficient * value + attend(query, key, mixed)
    return mixed


@functools.lru_cache(maxsize=1)
def _flex_attention(pattern: SparsePattern, tokens: int, device: torch.device) -> Callable[..., Any]:
    """`flex_attention` over the edges of a pattern."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    needed = pattern.blocks(tokens, 128)
    count = needed.sum(-1, dtype=torch.int32)
    order = needed.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    edges = pattern.dense(tokens).to(device)

    def heard(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return edges[query, key]

    blocks = BlockMask.from_kv_blocks(
        count[None, None].to(device),
        order[None, None].to(device),
        BLOCK_SIZE=128,
        mask_mod=heard,
        seq_lengths=(tokens, tokens),
    )
    attend = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    return functools.partial(attend, block_mask=blocks)


class DiffusionLayer(nn.Module):
    """The projections of queries, keys and values, and attention diffusion: what `LongformerSelfAttention` is to Longformer."""

    def __init__(self, heads: int, channels: int, pattern: SparsePattern, coefficients: Sequence[float]):
        super().__init__()
        self.heads, self.pattern, self.coefficients = heads, pattern, coefficients
        self.query_key_value = nn.Linear(heads * channels, 3 * heads * channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, N, D] → [1, N, D]."""
        states = self.query_key_value(hidden).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        query, key, value = states.chunk(3, dim=1)
        mixed = attention_diffusion(query, key, value, self.pattern, coefficients=self.coefficients)
        return mixed.transpose(1, 2).flatten(2)


class LongformerLayer(nn.Module):
    """Hugging Face's `LongformerSelfAttention` with the pattern's window and its first global tokens, without dropout."""

    def __init__(self, heads: int, channels: int, window: int, global_tokens: int):
        super().__init__()
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

        config = LongformerConfig(
            hidden_size=heads * channels,
            num_attention_heads=heads,
            attention_window=[2 * window],
            attention_probs_dropout_prob=0.0,
        )
        self.attention = LongformerSelfAttention(config, layer_id=0)
        self.global_tokens = global_tokens

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, N, D] → [1, N, D]; N is a multiple of twice the window."""
        mask = hidden.new_zeros(hidden.shape[:2])
        mask[:, : self.global_tokens] = 10_000  # how this layer is told of global tokens
        return self.attention(
            hidden,
            attention_mask=mask,
            is_index_masked=mask < 0,
            is_index_global_attn=mask > 0,
            is_global_attn=self.global_tokens > 0,
        )[0]


def build_side(
    side: str, *, heads: int, channels: int, pattern: Mapping[str, Any], hops: int, alpha: float
) -> Callable[..., Tensor]:
    """The function of queries, keys and values, or the layer on hidden states, that is measured."""
    graph = SparsePattern.from_dict(pattern)
    theta = personalized_pagerank(alpha, hops)
    if side == "layer":
        return DiffusionLayer(heads, channels, graph, theta)
    if side == "longformer":
        return LongformerLayer(heads, channels, graph.window, len(graph.global_positions(2**20)))
    return {
        "ours": functools.partial(attention_diffusion, pattern=graph, coefficients=theta),
        "recompute": functools.partial(attention_diffusion, pattern=graph, coefficients=theta, recompute=True),
        "blocked": functools.partial(attention_diffusion, pattern=graph, coefficients=theta, backend="blocked"),
        "triton": functools.partial(attention_diffusion, pattern=graph, coefficients=theta, backend="triton"),
        "flex": functools.partial(flex, pattern=graph, coefficients=theta),
        "sdpa": F.scaled_dot_product_attention,
        "materialised": functools.partial(materialised, pattern=graph, coefficients=theta),
        "edge_list": functools.partial(edge_list, pattern=graph, coefficients=theta),
    }[side]


def measure_sparse_attention(
    *,
    side: str,
    tokens: int,
    heads: int,
    channels: int,
    pattern: Mapping[str, Any],
    hops: int,
    alpha: float,
    dtype: str,
    device: str,
    steps: int,
    baseline: int,
) -> dict[str, Any]:
    """A side, one of OPERATORS, CUDA_OPERATORS or LAYERS, forward with backward on one row.

    Returns:
        `seconds` of each of `steps`, and `peak_memory_bytes`, inputs included, above what the process held after a step on
        a short row: code, weights and what libraries set up once are loaded by then (`baseline`, taken before, is not used).
    """
    del baseline
    function = build_side(side, heads=heads, channels=channels, pattern=pattern, hops=hops, alpha=alpha)
    if isinstance(function, nn.Module):
        function.to(device, DTYPES[dtype])

    def step_on(length: int) -> Callable[[], None]:
        shape = (1, length, heads * channels) if side in LAYERS else (1, heads, length, channels)
        inputs = [
            torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True)
            for _ in range(1 if side in LAYERS else 3)
        ]
        upstream = torch.randn_like(inputs[0])

        def step() -> None:
            for states in inputs:
                states.grad = None
            function(*inputs).backward(upstream)

        return step

    torch.manual_seed(0)
    step_on(8 * int(pattern["window"]))()
    reset_peak_memory()
    before = resident_memory()
    seconds = [round(each, 9) for each in seconds_of(step_on(tokens), steps, device, warmup=1)]
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(device, before)}
