"""The loss of a language model's training, without the scores of all tokens over the whole vocabulary in memory.

M tokens, D channels, V token ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a label that no loss counts
SCORED_AT_ONCE = 2**25  # scores of tokens over the vocabulary that are held at a time


def token_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The sum over asked tokens of −log softmax(W h)_label, where a label is not -100.

    Scores are made for a block of tokens at a time, and their gradients with them, in buffers that all blocks share: three
    matrix products, and no M × V scores in memory, of which new pages cost more than the products. The backward pass only
    scales. It cannot be differentiated twice.

    Args:
        hidden: [M, D], any floating dtype (that of autocast, inside autocast).
        weight: [V, D]; its gradient is summed in fp32 (fp64 for fp64).
        labels: [M], token ids or -100.

    Returns:
        A scalar in fp32 (fp64 for fp64).
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return _TokenLoss.apply(hidden, weight, labels)  # pyright: ignore[reportReturnType]


class _TokenLoss(torch.autograd.Function):
    """`token_loss`, whose forward pass makes the gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, weight, labels)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight = ctx.saved_tensors
        return hidden * upstream.to(hidden.dtype), weight * upstream.to(weight.dtype), None


def _loss_and_gradients(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and its gradients to `hidden`, in its dtype, and to `weight`, in that of `weight`."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    projection = weight.to(hidden.dtype)
    rows = max(1, min(len(hidden), SCORED_AT_ONCE // len(weight)))
    scores = hidden.new_empty(rows, len(weight))
    chances = scores if hidden.dtype == exact else scores.new_empty(scores.shape, dtype=exact)
    to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=exact)
    loss = hidden.new_zeros((), dtype=exact)
    for start in range(0, len(hidden), rows):
        block, targets = hidden[start : start + rows], labels[start : start + rows, None]
        asked = targets != IGNORED
        targets = targets.where(asked, 0)
        score, chance = scores[: len(block)], chances[: len(block)]
        torch.mm(block, projection.T, out=score)
        if chance is not score:
            chance.copy_(score)
        highest = chance.amax(dim=1, keepdim=True)
        target = chance.gather(1, targets)
        total = chance.sub_(highest).exp_().sum(dim=1, keepdim=True)
        loss += (total.log() + highest - target).masked_fill(~asked, 0.0).sum()
        # What the scores' gradient is: the chances, less 1 at the label.
        chance.mul_(asked / total).scatter_add_(1, targets, -asked.to(exact))
        if chance is not score:
            score.copy_(chance)
        torch.mm(score, projection, out=to_hidden[start : start + rows])
        to_weight += torch.mm(score.T, block)
    return loss, to_hidden, to_weight.to(weight.dtype)
