"""How tokens exchange information: one module per mixer, each around an operator of `diffmix.ops`.

B batch, N tokens, D channels, H heads. Every mixer maps [B, N, D] to [B, N, D]; rows hold their real tokens first (the
backbone sees to that), and `padding_mask` [B, N] bool marks them, or is None where every token is real.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmix.models.configuration import DiffmixConfig
from diffmix.ops.neighbor_diffusion import diffuse_aligned


class NeighborMixer(nn.Module):
    """Σ_o W_o h_{i+o} over a fixed neighbourhood: `diffmix.ops.neighbor_diffusion`."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.offsets = tuple(config.neighbor_offsets)
        self.boundary = config.neighbor_boundary
        channels = config.hidden_size // config.neighbor_heads
        heads = (config.neighbor_heads,) if config.neighbor_heads > 1 else ()
        self.weight = nn.Parameter(torch.empty(len(self.offsets), *heads, channels, channels))

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None, then: nn.Linear | None = None) -> Tensor:
        """[B, N, D] → [B, N, D], or → [B, N, M] with a layer `then` applied: then(Σ_o W_o h_{i+o}).

        In training nothing stands between the two, so a narrow layer is multiplied into the weights, V Σ_o W_o h =
        Σ_o (V W_o) h: O·M·D products a token where one after the other takes O·D² + M·D. That costs O·M·D² once, which a
        batch of training pays back and a short text would not.
        """
        weight, bias = self.weight, None
        if then is not None and self.training and self._narrow(then):
            with torch.autocast(hidden.device.type, enabled=False):  # a product of weights, not of states
                weight, bias, then = then.weight @ weight, then.bias, None
        mixed = diffuse_aligned(
            hidden, weight, self.offsets, bias=bias, padding_mask=padding_mask, boundary=self.boundary
        )
        return mixed if then is None else then(mixed)

    def _narrow(self, then: nn.Linear) -> bool:
        """Whether it saves products to multiply `then` in; only a plain layer, not one that something was wrapped around."""
        offsets, channels = len(self.offsets), self.weight.shape[-1]
        plain = type(then) is nn.Linear and not hasattr(then, "_hf_hook")
        return plain and self.weight.ndim == 3 and offsets * then.out_features <= offsets * channels + then.out_features


class SoftmaxMixer(nn.Module):
    """Multi-head softmax(q·k/√d) attention through torch's fused scaled dot product."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.rotary = config.position_embedding == "rotary"
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[B, N, D] → [B, N, D]."""
        query, key, value = (
            self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )  # each [B, H, N, D/H]
        if self.rotary:
            query, key = rotate(query), rotate(key)
        mask = None
        if padding_mask is not None:  # a row without tokens hears its padding, and stays finite on every device
            mask = (padding_mask | ~padding_mask.any(dim=1, keepdim=True))[:, None, None, :]
        mixed = _attend(query, key, value, mask, self.dropout if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).flatten(2))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """torch's fused attention of [B, H, N, d], in fp32 where that trains faster.

    On CPUs the backward pass of torch 2.13 in bf16 takes 7 times that of fp32 at 20 tokens, and still 1.3 times at 512.
    """
    slow = query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.requires_grad
    if slow and not torch.compiler.is_compiling() and query.shape[-2] <= 512:
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask, dropout_p=dropout
            )
        return mixed.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def rotate(states: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of [B, H, N, d]; angles in fp32 or better, position 0 is the first token."""
    half = states.shape[-1] // 2
    precision = torch.promote_types(states.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=states.device, dtype=precision) / half)
    angle = torch.arange(states.shape[-2], device=states.device, dtype=precision)[:, None] * frequency
    cos, sin = angle.cos().to(states.dtype), angle.sin().to(states.dtype)
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


MIXERS = {"neighbor": NeighborMixer, "softmax": SoftmaxMixer}
