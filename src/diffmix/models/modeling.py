"""The backbone, as a Hugging Face model; its heads are in `classification` and `language`.

B batch, N tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from diffmix.models.blocks import AttentionBlock, DiffusionStep, make_norm
from diffmix.models.configuration import DiffmixConfig
from diffmix.models.diffusion_time import AdaptiveTime, LearnedTime
from diffmix.models.mixers import NeighborMixer, QueryKeyValue
from diffmix.models.ngrams import NgramEmbedding
from diffmix.models.perturbation import Dropout, add_noise
from diffmix.models.pooling import AttentionPooling, in_full_precision
from diffmix.ops.alignment import align, aligned_positions, unalign
from diffmix.ops.diffusion_decoding import NewTokens

OutputT = TypeVar("OutputT", bound=ModelOutput)


@dataclass
class DiffmixModelOutput(BaseModelOutputWithPast):
    """`last_hidden_state` [B, N, D] and, in convergence mode, `diffusion_steps` [B]: the steps each sequence took."""

    diffusion_steps: Tensor | None = None


class DiffmixPreTrainedModel(PreTrainedModel):
    """Weights' initialisation, saving and loading."""

    config_class = DiffmixConfig
    config: DiffmixConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DiffusionStep", "AttentionBlock"]  # noqa: RUF012 (transformers reads it from the class)

    def __init__(self, config: DiffmixConfig):
        config.check()  # again: `from_pretrained(folder, key=value)` sets values after the configuration was made
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices keep the scale of what they map, at every width: standard deviation 1/√fan_in."""
        init = nn.init
        if isinstance(module, NeighborMixer):
            if module.weight is None:
                return
            init.normal_(module.weight, std=(module.weight.shape[-1] * len(module.offsets)) ** -0.5)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, QueryKeyValue):
                queries, others = module.weight.split([module.queries, len(module.weight) - module.queries])
                initialization.copy_(module.weight, torch.cat([queries * module.query_scale, others]))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, NgramEmbedding):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, AttentionPooling):
            init.zeros_(module.query)
        elif isinstance(module, LearnedTime | AdaptiveTime):
            module.reset_parameters()
        elif isinstance(module, DiffusionStep) and module.alpha_logit is not None:
            init.constant_(module.alpha_logit, torch.logit(torch.tensor(module.alpha)).item())
        else:
            super()._init_weights(module)

    def _returned(self, output: OutputT, return_dict: bool | None) -> OutputT | tuple[Any, ...]:
        """`output`, or its tuple where the call, or else the configuration, says so.

        This is `transformers.utils.can_return_tuple` without its wrapper: a wrapper is one code object for all classes, so
        that they would share torch.compile's limit of recompilations.
        """
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class DiffmixModel(DiffmixPreTrainedModel):
    """The backbone: embedding, noise in training, then diffusion steps or attention blocks.

    Padding may stand anywhere: tokens are moved to the front of their row before the first block and back after the last.
    """

    def __init__(self, config: DiffmixConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.ngrams = (
            NgramEmbedding(config.embedding_ngrams, config.embedding_buckets, config.hidden_size)
            if config.embedding_ngrams
            else None
        )
        self.positions = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.position_embedding == "learned"
            else None
        )
        self.embedding_dropout = Dropout(config.embedding_dropout)
        if config.mixer == "neighbor":
            distinct = 1 if config.neighbor_shared_steps else config.num_hidden_layers
            self.layers = nn.ModuleList(DiffusionStep(config, step) for step in range(distinct))
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
        *,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> DiffmixModelOutput | tuple:
        """`input_ids` [B, N] (or `inputs_embeds` [B, N, D]), `attention_mask` [B, N], 1 at real tokens → [B, N, D].

        `output_hidden_states` (or `config.output_hidden_states`) returns the states before the first block and after each,
        without the final norm of pre-norm models.

        A causal model with `use_cache` (or `past_key_values`) takes the tokens that follow those in the cache; `attention_mask`
        then covers both, with padding on the left.
        """
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        positions, steps = None, None
        states: list[Tensor] = [] if output_hidden_states else _Forgetful()
        if self.config.is_causal and (use_cache or past_key_values is not None):
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
            hidden = self._continue(input_ids, attention_mask, inputs_embeds, past_key_values, states)
        else:
            aligned, mask, positions = self._align(input_ids, attention_mask, inputs_embeds)
            if self.config.is_causal and self.config.mixer != "neighbor":
                mask = None  # aligned, padding stands behind every token that could hear it
            hidden, steps = self.encode(aligned, mask, states)
        if positions is not None:
            hidden = unalign(hidden, positions)
            states = [unalign(state, positions) for state in states]
        output = DiffmixModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if output_hidden_states else None,
            diffusion_steps=steps,
            past_key_values=past_key_values,
        )
        return self._returned(output, return_dict)

    def _continue(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        cache: Cache,
        states: list[Tensor],
    ) -> Tensor:
        """Blocks over the tokens that follow those in `cache`, which is extended. `states` gets every state."""
        values = input_ids if inputs_embeds is None else inputs_embeds
        if values is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give either input_ids or inputs_embeds, not both and not neither")
        if self.config.neighbor_tolerance is not None and self.config.mixer == "neighbor":
            raise ValueError(
                "a cache needs the same steps for every token: set neighbor_tolerance=None, or use_cache=False"
            )
        past = cache.get_seq_length()
        whole = (values.shape[0], past + values.shape[1])
        mask = None if attention_mask is None else attention_mask.bool()
        if isinstance(cache, StaticCache):  # it holds places for tokens to come, which would be heard
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}, whose size is fixed; give a DynamicCache: leave out "
                "cache_implementation, or set use_cache=False"
            )
        if mask is not None and mask.shape != whole:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; give {list(whole)}, with the cached tokens"
            )
        if mask is not None and _looks(values) and bool(mask.all()):
            mask = None
        if mask is not None and self._counts_places() and _looks(values) and bool((mask[:, 1:] < mask[:, :-1]).any()):
            raise ValueError(
                "attention_mask has padding behind real tokens; with a cache this model takes padding on the left only: set "
                "padding_side='left', or use_cache=False"
            )
        if mask is None:
            positions = torch.arange(past, whole[1], device=values.device).expand(values.shape[:2])
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]
            if inputs_embeds is not None:
                values = values.masked_fill(~mask[:, past:, None], 0.0)  # not a number, perhaps
        if self.positions is not None and _looks(values):
            self._check_positions(int(positions.max()) + 1)
        hidden = self._embed(values, positions)
        states.append(hidden)
        context: dict[str, Any] = {"positions": positions, "past_key_values": cache}
        if self.config.mixer == "attention_diffusion":
            context["new"] = NewTokens(self.config.diffusion_pattern(), positions, past, mask)
        for step in range(self.config.num_hidden_layers):
            layer = self.layers[step % len(self.layers)]
            hidden = layer(hidden, mask, **context, step=step)
            states.append(hidden)
        return hidden if self.final_norm is None else self.final_norm(hidden)

    def _counts_places(self) -> bool:
        """Whether distances are counted over the places of a cache, padding among them."""
        return self.config.mixer == "neighbor" or (self.config.mixer == "heat_kernel" and self.config.heat_locality > 0)

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
        self, values: Tensor, mask: Tensor | None, states: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Blocks over aligned ids [B, N] or embeddings [B, N, D]: final states, steps taken. `states` gets every state."""
        states = _Forgetful() if states is None else states
        hidden = self._embed(values)
        states.append(hidden)
        steps = None
        if self.config.neighbor_tolerance is not None and self.config.mixer == "neighbor" and not self.training:
            hidden, steps = self._converge(hidden, mask, states)
        else:
            for index in range(self.config.num_hidden_layers):
                hidden = self.layers[index % len(self.layers)](hidden, mask)
                states.append(hidden)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden, mask)
        return hidden, steps

    def _check_positions(self, tokens: int) -> None:
        if self.positions is not None and tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids has {tokens} tokens but the model has {self.config.max_position_embeddings} positions; cut the text "
                "(truncation=True), generate fewer tokens, or raise max_position_embeddings before training"
            )

    def _embed(self, values: Tensor, positions: Tensor | None = None) -> Tensor:
        config = self.config
        self._check_positions(values.shape[1])
        hidden = self.embedding(values) if values.ndim == 2 else values
        if self.ngrams is not None and values.ndim == 2:
            hidden = hidden + self.ngrams(values)
        if self.positions is not None:
            own = self.positions.weight[: hidden.shape[1]] if positions is None else self.positions(positions)
            hidden = hidden + own
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

    def _converge(self, hidden: Tensor, mask: Tensor | None, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Iterate the shared step; a sequence whose relative change falls under the tolerance is frozen.

        Each sequence is judged by its own real tokens, so neither the batch nor padding changes a result.
        """
        config = self.config
        assert config.neighbor_tolerance is not None
        if len(self.layers) > 1:
            raise ValueError(
                f"neighbor_tolerance is {config.neighbor_tolerance}, but each of the {len(self.layers)} steps has weights of its "
                "own; train with neighbor_shared_steps=True, or set neighbor_tolerance=None"
            )
        limit = config.neighbor_max_steps or 8 * config.num_hidden_layers
        active = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        steps = torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device)
        for _ in range(limit):
            proposal = self.layers[0](hidden, mask)
            change = relative_change(proposal, hidden, mask)
            hidden = torch.where(active[:, None, None], proposal, hidden)
            steps = steps + active
            active = active & (change >= config.neighbor_tolerance)
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
    new, old = in_full_precision(new), in_full_precision(old)
    return (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


class _Forgetful(list[Tensor]):
    """A list that keeps nothing: for states that nobody asked for."""

    def append(self, object: Tensor, /) -> None:
        """Forget it."""
