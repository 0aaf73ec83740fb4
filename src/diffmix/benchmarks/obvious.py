"""Neighbour diffusion as one writes it at first: one `nn.Linear` an offset, each on a `torch.roll`-ed copy of the states.

The same mathematics as `DiffmixForSequenceClassification` with the wrapped boundary, with as many weights, without anything
done for speed: what our own step is measured against, and tested to agree with.

B batch, N tokens, D channels, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from diffmix.errors import RequestError
from diffmix.models import DiffmixConfig, DiffmixForSequenceClassification
from diffmix.models.classification import ClassificationHead
from diffmix.models.pooling import Pooling


class ObviousStep(nn.Module):
    """h ← Norm(α h + (1-α) MLP(Σ_o W_o roll(h, -o))), states kept as the layers happen to return them."""

    def __init__(self, config: DiffmixConfig, step: int):
        super().__init__()
        channels = config.hidden_size
        self.offsets = config.step_offsets(step)
        self.projections = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in self.offsets)
        self.mlp = nn.Sequential(
            nn.Linear(channels, config.intermediate_size), nn.GELU(), nn.Linear(config.intermediate_size, channels)
        )
        self.norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.pre_norm = config.norm_placement == "pre"
        self.mix_first = config.neighbor_update == "mix_then_mlp"
        self.alpha = config.neighbor_alpha
        self.alpha_logit: nn.Parameter | None = None
        self.residual = config.neighbor_alpha_mode == "residual"
        if config.neighbor_alpha_mode in ("channel", "learned"):
            logit = math.log(config.neighbor_alpha / (1 - config.neighbor_alpha))
            self.alpha_logit = nn.Parameter(
                torch.full((channels if config.neighbor_alpha_mode == "channel" else 1,), logit)
            )

    def mix(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, N, D], [B, N, 1] → [B, N, D]."""
        hidden = hidden * mask
        mixed = torch.zeros_like(hidden)
        for offset, projection in zip(self.offsets, self.projections, strict=True):
            mixed = mixed + projection(torch.roll(hidden, -offset, dims=1))
        return mixed

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, N, D], [B, N, 1] → [B, N, D]."""
        source = self.norm(hidden) if self.pre_norm else hidden
        update = self.mlp(self.mix(source, mask)) if self.mix_first else self.mix(self.mlp(source), mask)
        if self.residual:
            return hidden + self.dropout(update)
        alpha = self.alpha if self.alpha_logit is None else self.alpha_logit.sigmoid()
        blended = alpha * hidden + (1 - alpha) * self.dropout(update)
        return blended if self.pre_norm else self.norm(blended)


class ObviousClassifier(nn.Module):
    """The classifier of a neighbour `DiffmixConfig` around `ObviousStep`; pooling and head are the library's.

    Raises RequestError for configurations that have no obvious counterpart here.
    """

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        for key, plain in (
            ("mixer", "neighbor"),
            ("neighbor_heads", 1),
            ("neighbor_tracks", False),
            ("norm", "layer"),
            ("position_embedding", "none"),
            ("gated_mlp", False),
        ):
            if getattr(config, key) != plain:
                raise RequestError(
                    f"the obvious implementation has no {key}={getattr(config, key)!r}: give a recipe with {key}={plain}"
                )
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        distinct = 1 if config.neighbor_shared_steps else config.num_hidden_layers
        self.steps = nn.ModuleList(ObviousStep(config, step) for step in range(distinct))
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.norm_eps) if config.norm_placement == "pre" else None
        )
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.pooling = Pooling(config)
        self.classifier = ClassificationHead(
            self.pooling.size, config.classifier_hidden_size, config.num_labels or 2, config.classifier_dropout
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """`input_ids` [B, N], `attention_mask` [B, N], `labels` [B] → logits [B, C] and the loss."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.embedding(input_ids)
        if self.training and self.config.token_dropout:
            keep = torch.rand(hidden.shape[:2], device=hidden.device) >= self.config.token_dropout
            hidden = hidden * keep.unsqueeze(-1)
        if self.training and self.config.noise_std:
            hidden = hidden + self.config.noise_std * torch.randn_like(hidden)
        hidden = self.embedding_dropout(hidden)
        heard = mask.unsqueeze(-1).to(hidden.dtype)
        for index in range(self.config.num_hidden_layers):
            hidden = self.steps[index % len(self.steps)](hidden, heard)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        logits = self.classifier(self.pooling(hidden, mask.bool()))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def copy_weights(source: DiffmixForSequenceClassification, target: ObviousClassifier) -> None:
    """Give `target` the weights of `source`; both have the same configuration."""
    target.embedding.load_state_dict(source.model.embedding.state_dict())
    for ours, obvious in zip(source.model.layers, target.steps, strict=True):
        for weight, projection in zip(ours.mixer.weight, obvious.projections, strict=True):  # pyright: ignore
            projection.weight.copy_(weight)
        obvious.mlp[0].load_state_dict(ours.mlp.expand.state_dict())  # pyright: ignore
        obvious.mlp[2].load_state_dict(ours.mlp.contract.state_dict())  # pyright: ignore
        obvious.norm.load_state_dict(ours.norm.state_dict())  # pyright: ignore
        if ours.alpha_logit is not None:
            obvious.alpha_logit.copy_(ours.alpha_logit)  # pyright: ignore
    if target.final_norm is not None and source.model.final_norm is not None:
        target.final_norm.load_state_dict(source.model.final_norm.state_dict())
    target.pooling.load_state_dict(source.pooling.state_dict())
    target.classifier.load_state_dict(source.classifier.state_dict())


def largest_difference(config: DiffmixConfig, *, batch: int = 2, tokens: int = 37) -> float:
    """max |logits - logits| of both implementations in fp32: same weights, wrapped boundary, rows without padding."""
    plain = DiffmixConfig(
        **{**config.to_dict(), "neighbor_boundary": "wrap", "vocab_size": 200, "neighbor_tolerance": None}
    )
    ours = DiffmixForSequenceClassification(plain).eval()
    obvious = ObviousClassifier(plain).eval()
    copy_weights(ours, obvious)
    ids = torch.randint(1, plain.vocab_size, (batch, tokens))
    with torch.inference_mode():
        return float((ours(ids).logits - obvious(ids).logits).abs().max())
