"""Argument checks shared by the definitions and the fast paths, so that both refuse the same things in the same words."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from diffmix.ops.coefficients import check_coefficients, is_number
from diffmix.patterns import SparsePattern

BOUNDARIES = ("zero", "wrap")
HEAT_FORMS = ("dot", "squared", "normalized")


def check_neighbor_diffusion(
    hidden: Tensor, weight: Tensor | None, offsets: Sequence[int], padding_mask: Tensor | None, boundary: str
) -> None:
    """Raise a ValueError that names the argument, its value and the mend."""
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; give [batch, tokens, channels]")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden has dtype {hidden.dtype}; give a floating dtype, such as hidden.float()")
    if weight is not None and weight.ndim not in (3, 4):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; give [offsets, out, in], or [offsets, heads, out, in] for heads"
        )
    if not offsets or not all(map(_is_integer, offsets)):
        raise ValueError(f"offsets is {offsets!r}; give one integer or more, such as (-1, 0, 1)")
    if len(set(offsets)) != len(offsets):
        raise ValueError(f"offsets is {offsets!r}; name each neighbour once")
    if weight is None:
        if len(offsets) > hidden.shape[-1]:
            raise ValueError(
                f"weight is None, which gives each offset a track of channels, and there are {len(offsets)} offsets for "
                f"{hidden.shape[-1]} channels; give weights, or fewer offsets"
            )
    else:
        if weight.shape[0] != len(offsets):
            raise ValueError(
                f"weight has {weight.shape[0]} matrices for {len(offsets)} offsets; give one matrix an offset"
            )
        heads = weight.shape[1] if weight.ndim == 4 else 1
        if weight.shape[-1] * heads != hidden.shape[-1]:
            raise ValueError(
                f"weight takes {weight.shape[-1]} channels in each of {heads} heads but hidden has {hidden.shape[-1]}; "
                f"give weight[..., {hidden.shape[-1] // heads}]"
            )
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary is {boundary!r}; give one of {', '.join(map(repr, BOUNDARIES))}")
    if padding_mask is not None:
        check_padding_mask(padding_mask, hidden.shape[0], hidden.shape[1])


def _is_integer(offset: object) -> bool:
    try:
        operator.index(offset)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return not isinstance(offset, bool)


def check_padding_mask(padding_mask: Tensor, batch: int, tokens: int) -> None:
    """`padding_mask` is bool [batch, tokens], True at real tokens."""
    if padding_mask.shape != (batch, tokens):
        raise ValueError(f"padding_mask has shape {tuple(padding_mask.shape)}; give [{batch}, {tokens}]")
    if padding_mask.dtype is not torch.bool:
        raise ValueError(f"padding_mask has dtype {padding_mask.dtype}; give bool, True at real tokens: mask.bool()")


def check_heat_kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    time: float | Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    form: str,
    locality: float,
    enable_gqa: bool,
) -> None:
    """Raise a ValueError that names the argument, its value and the mend."""
    for name, states in (("query", query), ("key", key), ("value", value)):
        if states.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(states.shape)}; give [batch, heads, tokens, channels]")
        if not states.is_floating_point():
            raise ValueError(f"{name} has dtype {states.dtype}; give a floating dtype, such as {name}.float()")
        if states.dtype is not query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise ValueError(f"{name} has dtype {states.dtype} but query {query.dtype}; give the same dtype")
        if states.shape[0] != query.shape[0] or states.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"{name} has shape {tuple(states.shape)} but query {tuple(query.shape)}; give the same batch and channels"
            )
    if key.shape != value.shape:
        raise ValueError(
            f"key has shape {tuple(key.shape)} but value {tuple(value.shape)}; give one value for each key"
        )
    heads, key_heads = query.shape[1], key.shape[1]
    if key_heads != heads and not (enable_gqa and key_heads and heads % key_heads == 0):
        mend = "give as many, or a divisor of them with enable_gqa=True"
        raise ValueError(f"key has {key_heads} heads for {heads} of query; {mend}")
    if form not in HEAT_FORMS:
        raise ValueError(f"form is {form!r}; give one of {', '.join(map(repr, HEAT_FORMS))}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p}; give a probability from 0 to below 1")
    if not 0 <= locality < math.inf:
        raise ValueError(f"locality is {locality}; give a finite number, 0 or more")
    check_time(time, (*query.shape[:3], 1))
    if attn_mask is not None:
        if attn_mask.dtype is not torch.bool and not attn_mask.is_floating_point():
            raise ValueError(
                f"attn_mask has dtype {attn_mask.dtype}; give bool, True where a query hears, or a floating one"
            )
        _check_broadcast("attn_mask", attn_mask, (*query.shape[:3], key.shape[2]))


def check_attention_diffusion(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: SparsePattern,
    coefficients: Sequence[float],
    padding_mask: Tensor | None,
    dropout_p: float,
    hop_dropout_p: float,
    scale: float | None,
) -> None:
    """Raise a ValueError that names the argument, its value and the mend."""
    for name, states in (("query", query), ("key", key), ("value", value)):
        if states.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(states.shape)}; give [batch, heads, tokens, channels]")
        if not states.is_floating_point():
            raise ValueError(f"{name} has dtype {states.dtype}; give a floating dtype, such as {name}.float()")
        if states.dtype is not query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise ValueError(f"{name} has dtype {states.dtype} but query {query.dtype}; give the same dtype")
        if states.shape[:3] != query.shape[:3]:
            raise ValueError(
                f"{name} has shape {tuple(states.shape)} but query {tuple(query.shape)}; "
                "give the same batch, heads and tokens"
            )
    if key.shape != query.shape:
        raise ValueError(f"key has {key.shape[-1]} channels but query {query.shape[-1]}; give as many")
    if query.shape[2] < 1:
        raise ValueError(f"query has shape {tuple(query.shape)}; give 1 token or more")
    if not isinstance(pattern, SparsePattern):
        raise ValueError(f"pattern is {pattern!r}; give a diffmix.patterns.SparsePattern")
    if not torch.compiler.is_compiling():
        check_coefficients(coefficients)
        if scale is not None and not (is_number(scale) and math.isfinite(scale)):
            raise ValueError(f"scale is {scale!r}; give a finite number, or None for 1/√D")
    for name, probability in (("dropout_p", dropout_p), ("hop_dropout_p", hop_dropout_p)):
        if not 0 <= probability < 1:
            raise ValueError(f"{name} is {probability}; give a probability from 0 to below 1")
    if padding_mask is not None:
        check_padding_mask(padding_mask, query.shape[0], query.shape[2])


def check_finite_scores(query: Tensor, key: Tensor, scale: float) -> None:
    """No score scale·q·k overflows or is not a number: by |q·k| ≤ ‖q‖‖k‖. Looked at on CPUs outside of compiled graphs only."""
    if query.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or not query.numel():
        return
    precision = torch.promote_types(query.dtype, torch.float32)
    highest = []
    for name, states in (("query", query), ("key", key)):
        norm = torch.linalg.vector_norm(states.detach(), dim=-1, dtype=precision).amax().item()
        if not math.isfinite(norm):
            raise ValueError(f"{name} holds values that are not finite, or too large to square; scale them down")
        highest.append(norm)
    bound = abs(scale) * highest[0] * highest[1]
    if bound > torch.finfo(query.dtype).max:
        raise ValueError(f"scale is {scale:.3g}, with which scores may reach {bound:.3g}; give a smaller one")


def check_time(time: float | Tensor, shape: tuple[int, ...]) -> None:
    """`time` is finite and > 0, a number or a tensor broadcastable to `shape`."""
    if not isinstance(time, Tensor):
        if not 0 < time < math.inf:
            raise ValueError(f"time is {time}; give a finite number above 0")
        return
    if not time.is_floating_point():
        raise ValueError(f"time has dtype {time.dtype}; give a floating dtype")
    _check_broadcast("time", time, shape)
    if time.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere the look would wait for all work
        wrong = time.detach()[~(time.detach().isfinite() & (time.detach() > 0))]
        if wrong.numel():
            raise ValueError(f"time holds {wrong.flatten()[0].item()}; give finite values above 0")


def _check_broadcast(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    fits = values.ndim <= len(shape) and all(
        size in (1, wanted) for size, wanted in zip(values.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; give one that broadcasts to {list(shape)}")
