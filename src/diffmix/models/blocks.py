"""The two blocks that carry the mixers: the diffusion step (attention-free) and the attention block.

B batch, N tokens, D channels. Rows hold their real tokens first; `padding_mask` [B, N] bool or None.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from diffmix.models.configuration import DiffmixConfig
from diffmix.models.mixers import MIXERS, NeighborMixer
from diffmix.models.perturbation import Dropout


class MLP(nn.Module):
    """D → intermediate → D: with GELU, or GELU(W h) ⊙ V h where the configuration says `gated_mlp`."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.gated = config.gated_mlp
        self.expand = nn.Linear(config.hidden_size, (1 + self.gated) * config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, D] → […, D]."""
        return self.contract(self._activate(self.expand(hidden)))

    def after(self, mixer: NeighborMixer, hidden: Tensor, padding_mask: Tensor | None, **context: Any) -> Tensor:
        """MLP(mixer(h)), where the mixer takes the first layer in."""
        return self.contract(self._activate(mixer(hidden, padding_mask, then=self.expand, **context)))

    def _activate(self, hidden: Tensor) -> Tensor:
        if not self.gated:
            return F.gelu(hidden)
        gate, value = hidden.chunk(2, dim=-1)
        return F.gelu(gate) * value


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the channels of [B, N, D] whose statistics are those of real tokens only."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, N, D] → [B, N, D]; normalises by the batch in training, by the running statistics otherwise."""
        if not self.training:
            return F.batch_norm(
                hidden.flatten(0, 1), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            ).unflatten(0, hidden.shape[:2])
        if padding_mask is None and hidden.shape[0] * hidden.shape[1] > 1:
            # Copies: the backward pass keeps what it was given, and the other text of a pair changes the module's own.
            means, variances = self.running_mean.clone(), self.running_var.clone()
            normal = F.batch_norm(
                hidden.flatten(0, 1),
                means,
                variances,
                self.weight,
                self.bias,
                training=True,
                momentum=self.momentum,
                eps=self.eps,
            )
            self._keep(means, variances)
            return normal.unflatten(0, hidden.shape[:2])
        tokens = hidden.float() if hidden.dtype in (torch.bfloat16, torch.float16) else hidden
        mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if padding_mask is None else padding_mask
        real = mask.unsqueeze(-1).to(tokens.dtype)
        count = real.sum().clamp(min=1)
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        mean = tokens.sum((0, 1)) / count
        variance = (((tokens - mean) * real) ** 2).sum((0, 1)) / count
        unbiased = variance * count / (count - 1).clamp(min=1)
        self._keep(
            self.running_mean.lerp(mean.detach().to(self.running_mean.dtype), self.momentum),
            self.running_var.lerp(unbiased.detach().to(self.running_var.dtype), self.momentum),
        )
        normal = (tokens - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normal.to(hidden.dtype)

    def _keep(self, means: Tensor, variances: Tensor) -> None:
        """Make these the running statistics, once a step."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return  # within the backward pass: gradient checkpointing computes a block a second time
        self.running_mean.copy_(means)
        self.running_var.copy_(variances)
        self.num_batches_tracked.add_(1)


class MaskedLayerNorm(nn.LayerNorm):
    """Layer norm with the signature of `MaskedBatchNorm`; a token's norm depends on nothing but the token."""

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, N, D] → [B, N, D]."""
        return super().forward(hidden).to(hidden.dtype)  # CUDA's autocast computes it in fp32


def make_norm(config: DiffmixConfig) -> MaskedLayerNorm | MaskedBatchNorm:
    """The norm that the configuration asks for."""
    kind = {"layer": MaskedLayerNorm, "batch": MaskedBatchNorm}[config.norm]
    return kind(config.hidden_size, eps=config.norm_eps)


class DiffusionStep(GradientCheckpointingLayer):
    """One step of attention-free diffusion: h ← Norm(α h + (1-α) MLP(Σ_o W_o h_{i+o})).

    With `norm_placement="pre"`: h ← α h + (1-α) MLP(Σ_o W_o Norm(h)_{i+o}), or the same without both weights where
    `neighbor_alpha_mode` is "residual". With `neighbor_update="mlp_then_mix"` the mixture is Σ_o W_o MLP(h_{i+o}), equation 3
    of Banavara (2025).
    """

    def __init__(self, config: DiffmixConfig, step: int = 0):
        super().__init__()
        self.mixer = NeighborMixer(config, step)
        self.mlp = MLP(config)
        self.norm = make_norm(config)
        self.dropout = Dropout(config.hidden_dropout)
        self.pre_norm = config.norm_placement == "pre"
        self.mix_first = config.neighbor_update == "mix_then_mlp"
        self.residual = config.neighbor_alpha_mode == "residual"
        self.alpha = config.neighbor_alpha
        self.alpha_logit: nn.Parameter | None = None
        if config.neighbor_alpha_mode in ("channel", "learned"):
            logit = math.log(config.neighbor_alpha / (1 - config.neighbor_alpha))
            channels = config.hidden_size if config.neighbor_alpha_mode == "channel" else 1
            self.alpha_logit = nn.Parameter(torch.full((channels,), logit))

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None, **context: Any) -> Tensor:
        """[B, N, D] → [B, N, D]. `padding_mask` [B, N_k] and `context`: see the mixer."""
        asking = None if padding_mask is None else padding_mask[:, -hidden.shape[1] :]
        source = self.norm(hidden, asking) if self.pre_norm else hidden
        if self.mix_first:
            update = self.mlp.after(self.mixer, source, padding_mask, **context)
        else:
            update = self.mixer(self.mlp(source), padding_mask, **context)
        update = self.dropout(update).to(hidden.dtype)
        if self.residual:
            return hidden + update
        alpha = self.alpha if self.alpha_logit is None else self.alpha_logit.sigmoid().to(hidden.dtype)
        blended = torch.lerp(update, hidden, alpha)
        return blended if self.pre_norm else self.norm(blended, asking)


class AttentionBlock(GradientCheckpointingLayer):
    """The pre-norm transformer block: h ← h + Attention(Norm(h)), h ← h + MLP(Norm(h))."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.mixer_norm = make_norm(config)
        self.mixer = MIXERS[config.mixer](config)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None, **context: Any) -> Tensor:
        """[B, N, D] → [B, N, D]. `padding_mask` [B, N_k] and `context`: see the mixer."""
        asking = None if padding_mask is None else padding_mask[:, -hidden.shape[1] :]
        mixed = self.mixer(self.mixer_norm(hidden, asking), padding_mask, **context)
        hidden = hidden + self.dropout(mixed).to(hidden.dtype)
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden, asking))).to(hidden.dtype)
