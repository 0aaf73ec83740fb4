"""Language models: masked, and causal with a cache.

B batch, N tokens, D channels, V token ids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput

from diffmix.models.configuration import DiffmixConfig
from diffmix.models.modeling import DiffmixModel, DiffmixPreTrainedModel
from diffmix.models.pooling import in_full_precision, masked_mean
from diffmix.models.token_loss import IGNORED, token_loss

SHAPE_MULTIPLE = (
    256  # of counts that vary from batch to batch: oneDNN prepares each product anew for a shape it has not seen
)


class _WithTokenHead(DiffmixPreTrainedModel):
    """A model whose logits `decoder` makes, with the weights of the token embedding."""

    _tied_weights_keys = {"decoder.weight": "model.embedding.weight"}  # noqa: RUF012 (transformers reads it from the class)

    decoder: nn.Linear

    def get_output_embeddings(self) -> nn.Module:
        """The tied token head."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the token head."""
        self.decoder = new_embeddings


class DiffmixForMaskedLM(_WithTokenHead):
    """The backbone with a token head: logits = E·Norm(GELU(W h))/√D + b, with E the token embedding.

    With `config.document_context`, W h + C h̄, where h̄ is the mean state of the row's real tokens.
    """

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"
        self.model = DiffmixModel(config)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.context = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) if config.document_context else None
        )
        self.transform_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple:
        """`labels` [B, N], -100 where nothing is asked → logits [B, N, V].

        In training, with labels, only the asked positions are scored, since a vocabulary is wide, and no logits are returned.
        With `config.sampled_softmax` = s > 0 they are scored against the batch's own targets and s random tokens only: a
        cheaper loss with another scale. Evaluation, and a compiled graph, score every position over the whole vocabulary.
        """
        outputs = self.model(input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict=True)
        hidden = outputs.last_hidden_state
        context = None if self.context is None else self.context(masked_mean(hidden, attention_mask)).unsqueeze(1)
        training = False
        if labels is not None and self.training and not torch.compiler.is_compiling():  # a graph has no varying counts
            asked, targets = self._asked(labels)
            if context is not None:
                context = context.squeeze(1).index_select(0, asked // labels.shape[1])
            hidden, labels = hidden.flatten(0, 1).index_select(0, asked), targets
            training = True
        features = self.transform(hidden)
        if context is not None:
            features = features + context
        features = self.transform_norm(F.gelu(features)) * self.config.hidden_size**-0.5
        if training and self.config.sampled_softmax > 0:
            assert labels is not None
            candidates, labels = self._candidates(labels)
            weight = F.embedding(candidates, self.decoder.weight)
            logits = F.linear(features, weight, self.decoder.bias.index_select(0, candidates))
        else:
            logits = self.decoder(features)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        output = MaskedLMOutput(
            loss=loss,
            logits=None if training else logits,  # pyright: ignore[reportArgumentType]
            hidden_states=outputs.hidden_states,
        )
        return self._returned(output, return_dict)

    def _asked(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The asked positions among the flattened [k] and their labels, k a multiple of SHAPE_MULTIPLE: -100 fills it up.

        By number, because a mask as index is slow in the backward pass on CPUs.
        """
        asked = (labels.flatten() != IGNORED).nonzero().squeeze(1)
        spare = -len(asked) % SHAPE_MULTIPLE
        return F.pad(asked, (0, spare)), F.pad(labels.flatten().index_select(0, asked), (0, spare), value=IGNORED)

    def _candidates(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens to choose among, and where the labels stand among them; their number varies in coarse steps."""
        vocab_size, asked = self.config.vocab_size, labels != IGNORED
        chosen = torch.zeros(vocab_size, dtype=torch.bool, device=labels.device)
        chosen[labels[asked]] = True
        targets = chosen.nonzero().squeeze(1)
        others = (~chosen).nonzero().squeeze(1)
        wanted = self.config.sampled_softmax + -(self.config.sampled_softmax + len(targets)) % SHAPE_MULTIPLE
        others = others[torch.randperm(len(others), device=labels.device)[:wanted]]
        place = torch.zeros(vocab_size, dtype=labels.dtype, device=labels.device)
        place[targets] = torch.arange(len(targets), dtype=labels.dtype, device=labels.device)
        return torch.cat([targets, others]), torch.where(asked, place[labels.clamp(min=0)], labels)


class DiffmixForCausalLM(_WithTokenHead, GenerationMixin):
    """The backbone, hearing the past only, with a token head: logits = E·Norm(h)/√D, with E the token embedding.

    Neighbour offsets into the future are dropped. `generate()` keeps keys and values of attention, the states of every hop of
    attention diffusion, or the states between diffusion steps, in a cache.
    """

    def __init__(self, config: DiffmixConfig):
        if not config.is_causal:
            config = DiffmixConfig(**{**config.to_dict(), "is_causal": True})
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.model = DiffmixModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """`input_ids` [B, N], `attention_mask` [B, N] (with a cache: of the cached tokens too) → logits [B, N, V].

        `labels` [B, N] are the ids themselves, -100 where nothing is asked; each is scored by the state before it. In
        training no logits are returned with the loss (`diffmix.models.token_loss`).
        `logits_to_keep` > 0 makes those of the last tokens only.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            output_hidden_states,
            return_dict=True,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = outputs.last_hidden_state * self.config.hidden_size**-0.5
        logits = loss = total = None
        if labels is not None and self.training and not torch.compiler.is_compiling():
            total = token_loss(hidden[:, :-1].flatten(0, 1), self.decoder.weight, labels[:, 1:].flatten())
        else:
            logits = self.decoder(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
            if labels is not None:
                scores = in_full_precision(logits[:, :-1].flatten(0, 1))
                total = F.cross_entropy(scores, labels[:, 1:].flatten(), reduction="sum")
        if labels is not None and total is not None:
            loss = total / (labels[:, 1:] != IGNORED).sum().clamp(min=1)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,  # pyright: ignore[reportArgumentType]
            hidden_states=outputs.hidden_states,
        )
        return self._returned(output, return_dict)
