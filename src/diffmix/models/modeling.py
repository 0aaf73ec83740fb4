"""The backbone and its heads, as Hugging Face models.

B batch, N tokens, D channels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from diffmix.models.blocks import AttentionBlock, DiffusionStep, make_norm
from diffmix.models.configuration import DiffmixConfig
from diffmix.models.mixers import NeighborMixer
from diffmix.models.perturbation import Dropout, add_noise
from diffmix.ops.alignment import align, aligned_positions, unalign

SHAPE_MULTIPLE = (
    256  # of counts that vary from batch to batch: oneDNN prepares each product anew for a shape it has not seen
)


@dataclass
class DiffmixModelOutput(BaseModelOutput):
    """`last_hidden_state` [B, N, D] and, in convergence mode, `diffusion_steps` [B]: the steps each sequence took."""

    diffusion_steps: Tensor | None = None


@dataclass
class DiffmixClassifierOutput(SequenceClassifierOutput):
    """`logits` [B, C] and, in convergence mode, `diffusion_steps` [B]."""

    diffusion_steps: Tensor | None = None


class DiffmixPreTrainedModel(PreTrainedModel):
    """Weights' initialisation, saving and loading."""

    config_class = DiffmixConfig
    config: DiffmixConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DiffusionStep", "AttentionBlock"]  # noqa: RUF012 (transformers reads it from the class)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices keep the scale of what they map, at every width: standard deviation 1/√fan_in."""
        init = nn.init
        if isinstance(module, NeighborMixer):
            init.normal_(module.weight, std=(module.weight.shape[-1] * len(module.offsets)) ** -0.5)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, AttentionPooling):
            init.zeros_(module.query)
        elif isinstance(module, DiffusionStep) and module.alpha_logit is not None:
            init.constant_(module.alpha_logit, torch.logit(torch.tensor(module.alpha)).item())
        else:
            super()._init_weights(module)


class DiffmixModel(DiffmixPreTrainedModel):
    """The backbone: embedding, noise in training, then diffusion steps or attention blocks.

    Padding may stand anywhere: tokens are moved to the front of their row before the first block and back after the last.
    """

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.positions = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.position_embedding == "learned"
            else None
        )
        self.embedding_dropout = Dropout(config.embedding_dropout)
        if config.mixer == "neighbor":
            distinct = 1 if config.neighbor_shared_steps else config.num_hidden_layers
            self.layers = nn.ModuleList(DiffusionStep(config) for _ in range(distinct))
        else:
            self.layers = nn.ModuleList(AttentionBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DiffmixModelOutput | tuple:
        """`input_ids` [B, N] (or `inputs_embeds` [B, N, D]), `attention_mask` [B, N], 1 at real tokens → [B, N, D]."""
        aligned, mask, positions = self._align(input_ids, attention_mask, inputs_embeds)
        hidden, states, steps = self.encode(aligned, mask, output_hidden_states=bool(output_hidden_states))
        if positions is not None:
            hidden = unalign(hidden, positions)
            states = [unalign(state, positions) for state in states]
        output = DiffmixModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if output_hidden_states else None,
            diffusion_steps=steps,
        )
        return output if return_dict is not False else output.to_tuple()

    def _align(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Ids or embeddings with real tokens first, their mask, and the way back."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both and not neither")
        values = inputs_embeds if input_ids is None else input_ids
        assert values is not None
        if attention_mask is None:
            return values, None, None
        if attention_mask.shape != values.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; give [{values.shape[0]}, {values.shape[1]}], "
                "1 at real tokens and 0 at padding"
            )
        mask = attention_mask.bool()
        if _looks(values) and bool(mask.all()):
            return values, None, None
        if inputs_embeds is not None:
            values = values.masked_fill(~mask.unsqueeze(-1), 0.0)  # not a number, perhaps; blocks multiply by the mask
        positions = aligned_positions(mask)
        return align(values, positions), align(mask, positions), positions

    def encode(
        self, values: Tensor, mask: Tensor | None, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Blocks over aligned ids [B, N] or embeddings [B, N, D]: final states, all states if asked, steps taken."""
        hidden = self._embed(values)
        states = [hidden] if output_hidden_states else []
        steps = None
        if self.config.neighbor_tolerance is not None and self.config.mixer == "neighbor" and not self.training:
            hidden, steps = self._converge(hidden, mask, states if output_hidden_states else None)
        else:
            for index in range(self.config.num_hidden_layers):
                hidden = self.layers[index % len(self.layers)](hidden, mask)
                if output_hidden_states:
                    states.append(hidden)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden, mask)
        return hidden, states, steps

    def _embed(self, values: Tensor) -> Tensor:
        config = self.config
        if values.ndim == 2 and self.positions is not None and values.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"input_ids has {values.shape[1]} tokens but the model has {config.max_position_embeddings} positions; "
                "cut the text (truncation=True) or raise max_position_embeddings before training"
            )
        hidden = self.embedding(values) if values.ndim == 2 else values
        if self.positions is not None:
            hidden = hidden + self.positions.weight[: hidden.shape[1]]
        if torch.is_autocast_enabled(hidden.device.type):
            # The states of all blocks in the dtype of autocast: half the memory traffic, which is what limits speed.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        if self.training:
            if config.token_dropout:
                keep = torch.rand(hidden.shape[:2], device=hidden.device) >= config.token_dropout
                hidden = hidden * keep.unsqueeze(-1).to(hidden.dtype)
            if config.noise_std:
                hidden = add_noise(hidden, config.noise_std)
        return self.embedding_dropout(hidden)

    def _converge(self, hidden: Tensor, mask: Tensor | None, states: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Iterate the shared step; a sequence whose relative change falls under the tolerance is frozen.

        Each sequence is judged by its own real tokens, so neither the batch nor padding changes a result.
        """
        config = self.config
        assert config.neighbor_tolerance is not None
        limit = config.neighbor_max_steps or 8 * config.num_hidden_layers
        active = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        steps = torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device)
        for _ in range(limit):
            proposal = self.layers[0](hidden, mask)
            change = relative_change(proposal, hidden, mask)
            hidden = torch.where(active[:, None, None], proposal, hidden)
            steps = steps + active
            active = active & (change >= config.neighbor_tolerance)
            if states is not None:
                states.append(hidden)
            if not torch.compiler.is_compiling() and not active.any():
                break
        return hidden, steps


def _looks(values: Tensor) -> bool:
    """Whether a decision may rest on values: not in a graph, and not where the look would wait for all work under way."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def relative_change(new: Tensor, old: Tensor, mask: Tensor | None) -> Tensor:
    """‖new − old‖ / ‖old‖ over the real tokens of each sequence: [B, N, D] twice → [B]."""
    if mask is not None:
        new, old = (state.masked_fill(~mask.unsqueeze(-1), 0.0) for state in (new, old))
    new, old = _exact(new), _exact(old)
    return (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


def _exact(values: Tensor) -> Tensor:
    """In fp32, or fp64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class AttentionPooling(nn.Module):
    """Weighted mean of the tokens: weights softmax(h_i·u/√D) with a learned u."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, D] → [B, D]."""
        score = _exact(hidden @ self.query.to(hidden.dtype)) * hidden.shape[-1] ** -0.5
        if mask is not None:
            score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
        return torch.einsum("bn,bnd->bd", score.softmax(dim=1).to(hidden.dtype), hidden)


class Pooling(nn.Module):
    """Real tokens [B, N, D] → one vector a sequence; a sequence without tokens gives 0 (of `first`, a finite vector)."""

    def __init__(self, config: DiffmixConfig):
        super().__init__()
        self.kind = config.pooling
        channels = config.pooling_features or config.hidden_size
        self.features = nn.Linear(config.hidden_size, channels) if config.pooling_features else None
        self.size = channels * (2 if config.pooling == "mean_max" else 1)
        self.attention = AttentionPooling(channels) if config.pooling == "attention" else None

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """`hidden` with real tokens first → [B, D], or [B, 2D] for mean_max; sums run in fp32."""
        if self.features is not None:
            hidden = F.gelu(self.features(hidden))
        if self.kind == "first":
            return hidden[:, 0]
        real = None if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
        if real is not None:
            hidden = hidden * real
        if self.attention is not None:
            return self.attention(hidden, mask)
        pooled = []
        if self.kind in ("mean", "mean_max"):
            precision = torch.promote_types(hidden.dtype, torch.float32)
            length = hidden.shape[1] if mask is None else mask.sum(dim=1, keepdim=True).clamp(min=1)
            pooled.append((hidden.sum(dim=1, dtype=precision) / length).to(hidden.dtype))
        if self.kind in ("max", "mean_max"):
            if real is not None:
                hidden = hidden + (real - 1) * torch.finfo(hidden.dtype).max
            highest = hidden.max(dim=1).values  # backward, `amax` takes twice the time on CPUs
            pooled.append(highest if mask is None else highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0))
        return torch.cat(pooled, dim=-1)


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
        return_dict: bool | None = None,
    ) -> DiffmixClassifierOutput | tuple:
        """`input_ids` [B, N], `attention_mask` [B, N], `labels` [B] → logits [B, C] and the loss."""
        pooled, steps = self._pool(input_ids, attention_mask, inputs_embeds)
        return self._classify(pooled, steps, labels, return_dict)

    def _pool(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        values, mask, _ = self.model._align(input_ids, attention_mask, inputs_embeds)
        hidden, _, steps = self.model.encode(values, mask)
        return self.pooling(hidden, mask), steps

    def _classify(
        self, features: Tensor, steps: Tensor | None, labels: Tensor | None, return_dict: bool | None
    ) -> DiffmixClassifierOutput | tuple:
        logits = self.classifier(features)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = DiffmixClassifierOutput(loss=loss, logits=logits, diffusion_steps=steps)
        return output if return_dict is not False else output.to_tuple()


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


def _mean(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean state of each row's real tokens, wherever they stand: [B, N, D] → [B, D]."""
    if attention_mask is None:
        return hidden.mean(dim=1)
    real = attention_mask.to(hidden.dtype)
    return (real.unsqueeze(1) @ hidden).squeeze(1) / real.sum(dim=1, keepdim=True).clamp(min=1)


class DiffmixForMaskedLM(DiffmixPreTrainedModel):
    """The backbone with a token head: logits = E·Norm(GELU(W h))/√D + b, with E the token embedding.

    With `config.document_context`, W h + C h̄, where h̄ is the mean state of the row's real tokens.
    """

    _tied_weights_keys = {"decoder.weight": "model.embedding.weight"}  # noqa: RUF012 (transformers reads it from the class)

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

    def get_output_embeddings(self) -> nn.Module:
        """The tied token head."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the token head."""
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple:
        """`labels` [B, N], -100 where nothing is asked → logits [B, N, V].

        In training, with labels, only the asked positions are scored, since a vocabulary is wide, and no logits are returned.
        With `config.sampled_softmax` = s > 0 they are scored against the batch's own targets and s random tokens only: a
        cheaper loss with another scale. Evaluation, and a compiled graph, score every position over the whole vocabulary.
        """
        hidden = self.model(input_ids, attention_mask, inputs_embeds).last_hidden_state
        context = None if self.context is None else self.context(_mean(hidden, attention_mask)).unsqueeze(1)
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
        output = MaskedLMOutput(loss=loss, logits=None if training else logits)  # pyright: ignore[reportArgumentType]
        return output if return_dict is not False else output.to_tuple()

    def _asked(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The asked positions among the flattened [k] and their labels, k a multiple of SHAPE_MULTIPLE: -100 fills it up.

        By number, because a mask as index is slow in the backward pass on CPUs.
        """
        asked = (labels.flatten() != -100).nonzero().squeeze(1)
        spare = -len(asked) % SHAPE_MULTIPLE
        return F.pad(asked, (0, spare)), F.pad(labels.flatten().index_select(0, asked), (0, spare), value=-100)

    def _candidates(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens to choose among, and where the labels stand among them; their number varies in coarse steps."""
        vocab_size, asked = self.config.vocab_size, labels != -100
        chosen = torch.zeros(vocab_size, dtype=torch.bool, device=labels.device)
        chosen[labels[asked]] = True
        targets = chosen.nonzero().squeeze(1)
        others = (~chosen).nonzero().squeeze(1)
        wanted = self.config.sampled_softmax + -(self.config.sampled_softmax + len(targets)) % SHAPE_MULTIPLE
        others = others[torch.randperm(len(others), device=labels.device)[:wanted]]
        place = torch.zeros(vocab_size, dtype=labels.dtype, device=labels.device)
        place[targets] = torch.arange(len(targets), dtype=labels.dtype, device=labels.device)
        return torch.cat([targets, others]), torch.where(asked, place[labels.clamp(min=0)], labels)
