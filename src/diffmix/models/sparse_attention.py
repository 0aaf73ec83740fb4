"""Attention diffusion for models that are already there: `attn_implementation="attention_diffusion"`.

B batch, H heads, H_k heads of keys, N tokens, D channels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from diffmix.errors import RequestError
from diffmix.models.configuration import DiffmixConfig
from diffmix.models.foreign_attention import refuse_foreign
from diffmix.ops.attention_diffusion import attention_diffusion
from diffmix.patterns import SparsePattern

# What a configuration may say about attention diffusion, with the values of one that says nothing.
DIFFUSION_SETTINGS = {name: value for name, value in DiffmixConfig().to_dict().items() if name.startswith("diffusion_")}

_NAME = "attn_implementation='attention_diffusion'"


@functools.lru_cache(maxsize=64)
def _settings(spec: str, is_causal: bool) -> DiffmixConfig:
    return DiffmixConfig(
        mixer="attention_diffusion", hidden_size=2, num_attention_heads=1, is_causal=is_causal, **json.loads(spec)
    )


def diffusion_settings(config: Any, is_causal: bool = False) -> DiffmixConfig:
    """The keys `diffusion_…` of a configuration, of which any may be left out, as those of a diffmix configuration.

    Raises:
        ValueError: a value that does not fit, or a key that is none.
    """
    return _checked_settings(
        {name: value for name, value in vars(config).items() if name.startswith("diffusion_")}, is_causal
    )


def _checked_settings(given: dict[str, Any], is_causal: bool) -> DiffmixConfig:
    unknown = sorted(set(given) - set(DIFFUSION_SETTINGS))
    if unknown:
        raise RequestError(f"config.{unknown[0]} is no setting; give some of {', '.join(DIFFUSION_SETTINGS)}")
    try:
        return _settings(json.dumps(given), is_causal)
    except TypeError:
        raise RequestError(f"the diffusion settings are {given}; give numbers, lists and names") from None


def diffused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, H, N, D], [B, H_k, N, D] twice → [B, N, H, D], and no weights. `attention_mask` [B, N], as `padding_mask` gives it."""
    name, config = type(module).__name__, getattr(module, "config", None)
    refuse_foreign(module, kwargs, "attention_diffusion")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", None)
    if config is None or is_causal is None:
        raise RequestError(
            f"{name} does not say {'its configuration' if config is None else 'whether it is causal'}, which {_NAME} needs; "
            "leave this model its own attention"
        )
    if getattr(module, "is_decoder", False) and not is_causal:
        raise RequestError(
            f"{name} is a decoder's attention that is not causal, over another text or by a mask of its own, which {_NAME} "
            "does not do; leave this model its own attention"
        )
    if key.shape[2] != query.shape[2]:
        raise RequestError(
            f"{name} has {query.shape[2]} queries and {key.shape[2]} keys, but {_NAME} takes whole sequences: set "
            "use_cache=False (and leave models with cross-attention their own)"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise RequestError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; with {_NAME} give [batch, tokens], 1 at real tokens"
        )
    if sliding_window is None:
        sliding_window = _unsaid_window(module, config)
    causal = bool(is_causal) and getattr(config, "is_causal", True) is not False
    pattern, coefficients, hop_dropout = _plan(
        causal,
        None if sliding_window is None else _reach(config, sliding_window, causal),
        tuple(sorted((name, _fixed(value)) for name, value in vars(config).items() if name.startswith("diffusion_"))),
    )
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    mixed = attention_diffusion(
        query,
        key,
        value,
        pattern,
        coefficients=coefficients,
        padding_mask=None if attention_mask is None else attention_mask.bool(),
        dropout_p=dropout,
        hop_dropout_p=hop_dropout if module.training else 0.0,
        scale=scaling,
    )
    return mixed.transpose(1, 2).contiguous(), None


@torch.compiler.assume_constant_result  # a compiled graph holds its result, and is made anew for other arguments
def _plan(
    is_causal: bool, reach: int | None, given: tuple[tuple[str, Any], ...]
) -> tuple[SparsePattern, tuple[float, ...], float]:
    """The pattern of a layer, its coefficients and its dropout of hops, from what a configuration says of diffusion."""
    settings = _checked_settings(dict(given), is_causal)
    pattern = settings.diffusion_pattern()
    if reach is not None:  # a layer of local attention: its own window, without far links
        pattern = dataclasses.replace(pattern, window=min(pattern.window, reach), global_tokens=0, random_links=0)
    return pattern, settings.diffusion_weights(), settings.diffusion_hop_dropout


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _unsaid_window(module: nn.Module, config: Any) -> int | None:
    """The window of a layer that leaves it out of the call, as PhiMoE does, whose mask alone has it; None: it has none."""
    everywhere = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
    return getattr(module, "sliding_window", everywhere)


def _reach(config: Any, sliding_window: int, is_causal: bool) -> int:
    """How far a token of a layer of local attention hears, as the mask of transformers has it: |i - j| < `sliding_window` to the
    past, but |i - j| ≤ `config.sliding_window` both ways. (Calls of some layers that hear both ways, as of ModernBERT, give
    one more than the configuration; of others, as of T5Gemma, not.)"""
    both_ways = None if is_causal else getattr(config, "sliding_window", None)
    return sliding_window - 1 if both_ways is None else both_ways


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """The padding mask [B, N] itself: who hears whom is for the pattern to say.

    Raises RequestError where the model wants anything but causal, bidirectional or local attention within whole sequences.
    """
    if q_length != kv_length or not isinstance(q_offset, int) or q_offset:
        raise RequestError(
            f"the model has {q_length} new tokens and {kv_length} in all, but {_NAME} takes whole sequences: set "
            "use_cache=False (and leave models with cross-attention their own)"
        )
    plain = mask_function is causal_mask_function or mask_function is bidirectional_mask_function
    if not plain and (use_vmap or _kind(mask_function) not in _LOCAL):
        raise RequestError(
            f"the model has a mask of its own (packed sequences, chunks, or blocks), which {_NAME} does not do; give one text "
            "a row, with its attention_mask, or leave this model its own attention"
        )
    return attention_mask


def _kind(mask_function: Any) -> tuple[Any, ...]:
    """What a mask function of Hugging Face does, apart from its numbers: its code and that of the functions it combines."""
    held = [cell.cell_contents for cell in getattr(mask_function, "__closure__", None) or ()]
    parts = [part for value in held for part in (value if isinstance(value, tuple) else (value,)) if callable(part)]
    return getattr(mask_function, "__code__", None), *map(_kind, parts)


# A layer of local attention says its window in the call of `diffused_attention`, too.
_LOCAL = (_kind(sliding_window_causal_mask_function(1)), _kind(sliding_window_bidirectional_mask_function(1)))
