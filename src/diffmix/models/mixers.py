"""How tokens exchange information: one module per mixer, each around an operator of `diffmix.ops`.

B batch, N tokens, D channels, H heads. Every mixer maps [B, N, D] to [B, N, D]; rows hold their real tokens first (the
backbone sees to that), and `padding_mask` [B, N] bool marks them, or is None where every token is real.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from diffmix.models.configuration import DiffmixConfig
from diffmix.models.diffusion_time import AdaptiveTime, LearnedTime, depth_scaled_time
from diffmix.ops.attention_diffusion import diffuse_attention_aligned
from diffmix.ops.diffusion_decoding import NewTokens, diffuse_new_tokens
from diffmix.ops.heat_kernel_attention import heat_kernel_attention
from diffmix.ops.neighbor_diffusion import diffuse_aligned


class NeighborMixer(nn.Module):
    """Σ_o W_o h_{i+o} over a fixed neighbourhood, or tracks of channels that move: `diffmix.ops.neighbor_diffusion`."""

    def __init__(self, config: DiffmixConfig, step: int = 0):
        super().__init__()
        self.offsets = config.step_offsets(step)
        self.boundary = config.neighbor_boundary
        channels = config.hidden_size // config.neighbor_heads
        heads = (config.neighbor_heads,) if config.neighbor_heads > 1 else ()
        self.weight: nn.Parameter | None = None
        if not config.neighbor_tracks:
            self.weight = nn.Parameter(torch.empty(len(self.offsets), *heads, channels, channels))

    def forward(
        self,
        hidden: Tensor,
        padding_mask: Tensor | None = None,
        then: nn.Linear | None = None,
        *,
        positions: Tensor | None = None,
        past_key_values: Any = None,
        step: int = 0,
    ) -> Tensor:
        """[B, N, D] → [B, N, D], or → [B, N, M] with a layer `then` applied: then(Σ_o W_o h_{i+o}).

        With `past_key_values`, a cache of Hugging Face, the states of earlier tokens are kept there under the number `step`,
        and padding stands on the left, as in generation. `positions` change nothing.

        In training nothing stands between the two, so a narrow layer is multiplied into the weights, V Σ_o W_o h =
        Σ_o (V W_o) h: O·M·D products a token where one after the other takes O·D² + M·D. That costs O·M·D² once, which a
        batch of training pays back and a short text would not.
        """
        weight: Tensor | None = self.weight
        bias = None
        if then is not None and self.training and self._narrow(then):
            with torch.autocast(hidden.device.type, enabled=False):  # a product of weights, not of states
                assert weight is not None
                weight, bias, then = then.weight @ weight, then.bias, None
        tokens = hidden.shape[1]
        if past_key_values is not None:
            if padding_mask is not None:
                hidden = hidden * padding_mask[:, -tokens:, None].to(hidden.dtype)
                padding_mask = None
            states = hidden.unsqueeze(1)  # [B, 1, N, D]; the cache wants keys and values, and here is one of them
            hidden = past_key_values.update(states, states[..., :0], step)[0].squeeze(1)
            hidden = hidden[:, -(tokens - min(self.offsets)) :]
        mixed = diffuse_aligned(
            hidden, weight, self.offsets, bias=bias, padding_mask=padding_mask, boundary=self.boundary
        )
        mixed = mixed[:, -tokens:]
        return mixed if then is None else then(mixed)

    def _narrow(self, then: nn.Linear) -> bool:
        """Whether it saves products to multiply `then` in; only a plain layer, not one that something was wrapped around."""
        if self.weight is None:
            return False
        offsets, channels = len(self.offsets), self.weight.shape[-1]
        plain = type(then) is nn.Linear and not hasattr(then, "_hf_hook")
        return plain and self.weight.ndim == 3 and offsets * then.out_features <= offsets * channels + then.out_features


class QueryKeyValue(nn.Linear):
    """Projections to queries, keys and values in one product. Weights of queries start `query_scale` times as large."""

    def __init__(self, config: DiffmixConfig):
        channels = config.hidden_size // config.num_attention_heads
        super().__init__(config.hidden_size, config.hidden_size + 2 * config.num_key_value_heads * channels)
        temperature = config.attention_init_temperature
        self.queries = config.hidden_size
        self.query_scale = 1.0 if temperature is None else channels**0.5 / temperature


class AttentionMixer(nn.Module):
    """What the attention mixers share: projections to queries, keys and values, and back."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        heads, channels = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.sizes = [heads, config.num_key_value_heads, config.num_key_value_heads]
        self.query_key_value = QueryKeyValue(config)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_dropout
        self.rotary = config.position_embedding == "rotary"
        self.query_norm = nn.RMSNorm(channels, eps=config.norm_eps) if config.attention_qk_norm else None
        self.key_norm = nn.RMSNorm(channels, eps=config.norm_eps) if config.attention_qk_norm else None
        self.is_causal = config.is_causal

    def project(self, hidden: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, D] → query [B, H, N, d], key and value [B, H_k, N, d]."""
        query, key, value = (
            self.query_key_value(hidden).unflatten(-1, (sum(self.sizes), -1)).transpose(1, 2).split(self.sizes, dim=1)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        if self.rotary:
            query, key = rotate(query, positions), rotate(key, positions)
        return query, key, value

    def join(self, mixed: Tensor) -> Tensor:
        """[B, H, N, d] → [B, N, D]."""
        return self.output(mixed.transpose(1, 2).flatten(2))


class HeatKernelMixer(AttentionMixer):
    """Multi-head attention whose weights are a heat kernel: `diffmix.ops.heat_kernel_attention`.

    With `mixer="softmax"` the time is √d / 2 of the `dot` form, which is softmax(q·k/√d).
    """

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.form, self.locality = ("dot", 0.0)
        self.time: float | nn.Module = (config.hidden_size // config.num_attention_heads) ** 0.5 / 2
        if config.mixer == "heat_kernel":
            self.form, self.locality = config.heat_form, config.heat_locality
            self.time = make_time(config)

    def forward(
        self,
        hidden: Tensor,
        padding_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        past_key_values: Any = None,
        step: int = 0,
    ) -> Tensor:
        """[B, N, D] → [B, N, D].

        Args:
            hidden: of the tokens that ask.
            padding_mask: [B, N_k] of the tokens that are heard: the cached ones and these.
            positions: [B, N] of these; None: 0 … N-1.
            past_key_values: a cache of Hugging Face, asked and extended under the number `step`.
            step: of this block.
        """
        query, key, value = self.project(hidden, positions)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, step)
        time = self.time
        if isinstance(time, nn.Module):
            repeats = query.shape[1] // key.shape[1]
            heard = key.repeat_interleave(repeats, dim=1) if repeats > 1 else key
            time = time(query, heard, padding_mask, self.is_causal)
        mask = None
        if padding_mask is not None:  # a row without tokens hears its padding, and stays finite on every device
            mask = (padding_mask | ~padding_mask.any(dim=1, keepdim=True))[:, None, None, :]
        mixed = heat_kernel_attention(
            query,
            key,
            value,
            time,
            attn_mask=mask,
            is_causal=self.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            form=self.form,
            locality=self.locality,
            enable_gqa=True,
        )
        return self.join(mixed)


class AttentionDiffusionMixer(AttentionMixer):
    """Sparse multi-head attention, diffused over several hops: `diffmix.ops.attention_diffusion`."""

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.pattern, self.coefficients = config.diffusion_pattern(), config.diffusion_weights()
        self.hop_dropout = config.diffusion_hop_dropout
        self.longest = config.max_position_embeddings

    def forward(
        self,
        hidden: Tensor,
        padding_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        past_key_values: Any = None,
        step: int = 0,
        new: NewTokens | None = None,
    ) -> Tensor:
        """[B, N, D] → [B, N, D].

        With `past_key_values`, a dynamic cache of Hugging Face, `new` says which tokens these are. Under the number `step` the
        cache keeps keys, and as its values Y_1 … Y_K of every token side by side, [B, H, N, K·d].
        """
        query, key, value = self.project(hidden, positions)
        if new is not None:
            mixed, states = diffuse_new_tokens(
                query,
                key,
                value,
                new,
                None if past_key_values is None else cached_tensors(past_key_values, step),
                coefficients=self.coefficients,
                scale=query.shape[-1] ** -0.5,
                dropout_p=self.dropout if self.training else 0.0,
                hop_dropout_p=self.hop_dropout if self.training else 0.0,
            )
            if past_key_values is not None:  # gradient checkpointing takes it away
                past_key_values.update(key, states, step)
            return self.join(mixed)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
        mixed = diffuse_attention_aligned(
            query,
            key,
            value,
            self.pattern,
            coefficients=self.coefficients,
            scale=query.shape[-1] ** -0.5,
            lengths=None if padding_mask is None else padding_mask.sum(dim=1),
            dropout_p=self.dropout if self.training else 0.0,
            hop_dropout_p=self.hop_dropout if self.training else 0.0,
            longest=self.longest,
        )
        return self.join(mixed)


def cached_tensors(cache: Any, step: int) -> tuple[Tensor, Tensor] | None:
    """Keys and values that a cache of Hugging Face holds under a number; None where it holds nothing.

    Raises:
        ValueError: a cache that does not hold them as they were given.
    """
    if step >= len(cache.layers):
        return None
    layer = cache.layers[step]
    if type(layer) is not DynamicLayer or getattr(cache, "offloading", False):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__} of {type(layer).__name__}, which does not hold the states of hops as "
            "they are; give a DynamicCache without offloading, or use_cache=False"
        )
    if layer.keys is None or layer.values is None or not layer.get_seq_length():
        return None
    return layer.keys, layer.values


def make_time(config: DiffmixConfig) -> float | nn.Module:
    """The diffusion time of each block of a heat-kernel model: a float, or a module that finds it."""
    start = depth_scaled_time(config.num_hidden_layers) if config.heat_time is None else config.heat_time
    if config.heat_time_mode == "fixed":
        return start
    lowest, highest = config.heat_time_bounds
    start = min(max(start, 1.01 * lowest), highest / 1.01)  # the depth law leaves the bounds in very deep models
    kind = {"learned": LearnedTime, "adaptive": AdaptiveTime}[config.heat_time_mode]
    return kind(config.num_attention_heads, start, lowest, highest)


def rotate(states: Tensor, positions: Tensor | None = None, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of [B, H, N, d]; angles in fp32 or better.

    `positions` [B, N]; None: the first token stands at 0.
    """
    half = states.shape[-1] // 2
    precision = torch.promote_types(states.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=states.device, dtype=precision) / half)
    if positions is None:
        positions = torch.arange(states.shape[-2], device=states.device).unsqueeze(0)
    angle = positions[:, None, :, None].to(precision) * frequency
    cos, sin = angle.cos().to(states.dtype), angle.sin().to(states.dtype)
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


MIXERS = {
    "neighbor": NeighborMixer,
    "softmax": HeatKernelMixer,
    "heat_kernel": HeatKernelMixer,
    "attention_diffusion": AttentionDiffusionMixer,
}
