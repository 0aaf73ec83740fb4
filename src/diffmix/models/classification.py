"""Classifiers of texts and of pairs of texts.

B batch, N tokens, D channels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from diffmix.models.configuration import DiffmixConfig
from diffmix.models.modeling import DiffmixModel, DiffmixPreTrainedModel
from diffmix.models.perturbation import Dropout
from diffmix.models.pooling import Pooling
from diffmix.ops.alignment import unalign


@dataclass
class DiffmixClassifierOutput(SequenceClassifierOutput):
    """`logits` [B, C] and, in convergence mode, `diffusion_steps` [B]."""

    diffusion_steps: Tensor | None = None


class ClassificationHead(nn.Module):
    """A small MLP: dropout, Linear, GELU, dropout, Linear. `hidden_size=0` leaves the last two."""

    def __init__(self, inputs: int, hidden_size: int, classes: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.hidden = nn.Linear(inputs, hidden_size) if hidden_size else None
        self.output = nn.Linear(hidden_size or inputs, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, inputs] → [B, C]."""
        if self.hidden is not None:
            pooled = F.gelu(self.hidden(self.dropout(pooled)))
        return self.output(self.dropout(pooled))


class DiffmixForSequenceClassification(DiffmixPreTrainedModel):
    """The backbone, pooled, with a classification head."""

    features_per_channel = 1  # what the head sees of each pooled channel

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"
        self.model = DiffmixModel(config)
        self.pooling = Pooling(config)
        self.classifier = ClassificationHead(
            self.features_per_channel * self.pooling.size,
            config.classifier_hidden_size,
            config.num_labels or len(config.id2label or {}),
            config.classifier_dropout,
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DiffmixClassifierOutput | tuple:
        """`input_ids` [B, N], `attention_mask` [B, N], `labels` [B] → logits [B, C] and the loss.

        `output_hidden_states`: see `DiffmixModel.forward`.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] | None = [] if wanted else None
        pooled, steps = self._pool(input_ids, attention_mask, inputs_embeds, states)
        return self._classify(pooled, steps, labels, return_dict, states)

    def _pool(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if not torch.compiler.is_compiling() and input_ids is not None and input_ids.shape[1] == 0:  # an empty text
            input_ids = torch.full((len(input_ids), 1), self.config.pad_token_id or 0, device=input_ids.device)
            attention_mask = torch.zeros_like(input_ids)
        values, mask, positions = self.model._align(input_ids, attention_mask, inputs_embeds)
        hidden, steps = self.model.encode(values, mask, states)
        if states and positions is not None:
            states[:] = [unalign(state, positions) for state in states]
        return self.pooling(hidden, mask), steps

    def _classify(
        self,
        features: Tensor,
        steps: Tensor | None,
        labels: Tensor | None,
        return_dict: bool | None,
        states: list[Tensor] | None = None,
    ) -> DiffmixClassifierOutput | tuple:
        logits = self.classifier(features)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = DiffmixClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=None if states is None else tuple(states),  # pyright: ignore[reportArgumentType]
            diffusion_steps=steps,
        )
        return self._returned(output, return_dict)


class DiffmixForSequencePairClassification(DiffmixForSequenceClassification):
    """Two texts through one backbone (shared weights); the head sees [u, v, u·v, |u−v|] of the pooled pair."""

    features_per_channel = 4

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_ids_pair: Tensor | None = None,
        attention_mask_pair: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> DiffmixClassifierOutput | tuple:
        """`input_ids` [B, N], `input_ids_pair` [B, M], their masks, `labels` [B] → logits [B, C] and the loss."""
        if input_ids_pair is None:
            raise ValueError("input_ids_pair is missing; a pair model takes input_ids and input_ids_pair")
        first, steps = self._pool(input_ids, attention_mask, None)
        second, steps_pair = self._pool(input_ids_pair, attention_mask_pair, None)
        if steps is not None and steps_pair is not None:
            steps = torch.maximum(steps, steps_pair)
        features = torch.cat([first, second, first * second, (first - second).abs()], dim=-1)
        return self._classify(features, steps, labels, return_dict)
