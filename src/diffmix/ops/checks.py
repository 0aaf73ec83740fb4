"""Argument checks shared by the definitions and the fast paths, so that both refuse the same things in the same words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BOUNDARIES = ("zero", "wrap")


def check_neighbor_diffusion(
    hidden: Tensor, weight: Tensor, offsets: Sequence[int], padding_mask: Tensor | None, boundary: str
) -> None:
    """Raise a ValueError that names the argument, its value and the mend."""
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; give [batch, tokens, channels]")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden has dtype {hidden.dtype}; give a floating dtype, such as hidden.float()")
    if weight.ndim not in (3, 4):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; give [offsets, out, in], or [offsets, heads, out, in] for heads"
        )
    if not offsets or any(isinstance(offset, bool) or int(offset) != offset for offset in offsets):
        raise ValueError(f"offsets is {offsets!r}; give one integer or more, such as (-1, 0, 1)")
    if len(set(offsets)) != len(offsets):
        raise ValueError(f"offsets is {offsets!r}; name each neighbour once")
    if weight.shape[0] != len(offsets):
        raise ValueError(f"weight has {weight.shape[0]} matrices for {len(offsets)} offsets; give one matrix an offset")
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


def check_padding_mask(padding_mask: Tensor, batch: int, tokens: int) -> None:
    """`padding_mask` is bool [batch, tokens], True at real tokens."""
    if padding_mask.shape != (batch, tokens):
        raise ValueError(f"padding_mask has shape {tuple(padding_mask.shape)}; give [{batch}, {tokens}]")
    if padding_mask.dtype is not torch.bool:
        raise ValueError(f"padding_mask has dtype {padding_mask.dtype}; give bool, True at real tokens: mask.bool()")
