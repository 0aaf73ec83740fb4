"""Our attentions for models that are already there: the registration, and `attn_implementation="heat_kernel"`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from diffmix.errors import RequestError
from diffmix.models.foreign_attention import OURS, leaves_causality_to_masks, refuse_foreign
from diffmix.models.sparse_attention import diffused_attention, padding_mask
from diffmix.ops.heat_kernel_attention import heat_kernel_attention

HeatTime = float | Sequence[float | Tensor]  # of a whole model, or of each of its layers


def register_attention() -> None:
    """Make `attn_implementation="heat_kernel"` and `"attention_diffusion"` known to Hugging Face models.

    `heat_kernel`: the time t of `diffmix.ops.heat_kernel_attention`, `dot` form, is the call's `heat_time`, else
    `config.heat_time` (a number, or one for each layer), else 1 / (2·scaling), which is the model's own attention: the swap alone
    changes nothing. Families whose decoders leave it to their mask whether they are causal (BigBirdPegasus, NLLB-MoE, Pegasus-X)
    are refused where there is no mask.

        register_attention()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="heat_kernel")
        model.config.heat_time = 5.0

    `attention_diffusion`: for encoders, and for decoders without a cache. `diffmix.ops.attention_diffusion` over the pattern and
    with the coefficients that the model's configuration names (of a model of several parts: that of the part), with the keys and
    defaults of `DiffmixConfig`; positions are counted among real tokens. Layers of local attention (ModernBERT's, or sliding
    windows) keep their own window where it is narrower than diffusion_window, and no global tokens or random links: these belong
    to the layers that heard everything. With a window over the whole text, diffusion_hops=1 and diffusion_alpha=0 it is the
    model's own attention.

        model = AutoModel.from_pretrained(name, attn_implementation="attention_diffusion")
        model.config.diffusion_window = 128
    """
    AttentionInterface.register("heat_kernel", _heat_kernel)
    AttentionMaskInterface.register("heat_kernel", sdpa_mask)
    AttentionInterface.register("attention_diffusion", diffused_attention)
    AttentionMaskInterface.register("attention_diffusion", padding_mask)


def _heat_kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    heat_time: float | Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, H, N_q, D], [B, H_k, N_k, D] twice → [B, N_q, H, D], and no weights."""
    refuse_foreign(module, kwargs, "heat_kernel")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    whole = query.shape[2] == key.shape[2] > 1
    if attention_mask is None and not is_causal and whole and leaves_causality_to_masks(module):
        raise RequestError(
            f"{type(module).__name__} does not say whether it is causal and would hear the future; leave this model its own "
            "attention"
        )
    time = heat_time if isinstance(heat_time, Tensor | None) else _checked(heat_time, "heat_time")
    if time is None:
        time = _configured_time(module)
    if time is None:
        time = _exact_time(query, scaling)
    mixed = heat_kernel_attention(
        query,
        key,
        value,
        time,
        attn_mask=attention_mask,
        is_causal=is_causal
        and attention_mask is None
        and query.shape[2] > 1,  # a mask of Hugging Face is causal itself
        dropout_p=dropout,
        enable_gqa=True,
    )
    return mixed.transpose(1, 2).contiguous(), None


def attention_option(name: str | None, key: str = "attn_implementation") -> dict[str, str]:
    """The option of `from_pretrained` that chooses an attention; none for None.

    Raises RequestError, with the `key` by which it was given, for an unknown one.
    """
    if name is None:
        return {}
    register_attention()
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name not in known:
        plain = [one for one in ("eager", "sdpa", *OURS, "flex_attention") if one in known]
        raise RequestError(f"{key}: unknown attention {name!r}; give one of {', '.join(plain)}")
    return {"attn_implementation": name}


def exact_heat_times(model: Any) -> list[float]:
    """t = 1 / (2·scaling) of each layer of a causal language model: the times at which the swap changes nothing.

    Found by one step of the model on one token with `heat_kernel` in the place of its own attention, which comes back.

    Raises:
        RequestError: a model that does not take its attention from Hugging Face's registry, or asks more of it.
    """
    exact: dict[int, float] = {}

    def note(module: nn.Module, query: Tensor, *states: Any, scaling: float | None = None, **options: Any) -> Any:
        exact[_layer_of(module)] = _exact_time(query, scaling)
        return _heat_kernel(module, query, *states, scaling=scaling, **options)

    with swapped_attention(model, None), torch.inference_mode():
        ALL_ATTENTION_FUNCTIONS["heat_kernel"] = note  # this process's entry, over the registered one
        try:
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
        finally:
            del ALL_ATTENTION_FUNCTIONS["heat_kernel"]
    if not exact:
        raise RequestError(
            f"{type(model).__name__} does not take its attention from Hugging Face's registry, so it cannot be swapped; give "
            "a model of transformers that does, such as GPT-2, Llama or Qwen"
        )
    if sorted(exact) != list(range(len(exact))):
        raise RequestError(
            f"{type(model).__name__} has attention in layers {', '.join(map(str, sorted(exact)))} only, so it cannot be swapped; "
            "give a model with attention in every layer"
        )
    return [exact[layer] for layer in sorted(exact)]


@contextlib.contextmanager
def swapped_attention(model: Any, time: HeatTime | None) -> Iterator[None]:
    """`model` with `heat_kernel` attention at `time` (None: the exact one); afterwards its own attention is back."""
    register_attention()
    config = model.config.get_text_config()
    own = model.config._attn_implementation  # transformers has no public name to read it by
    kept = getattr(config, "heat_time", None)
    try:
        model.set_attn_implementation("heat_kernel")
        config.heat_time = time
        yield
    finally:
        model.set_attn_implementation(own)
        if kept is None:
            del config.heat_time
        else:
            config.heat_time = kept


def _exact_time(query: Tensor, scaling: float | None) -> float:
    return 0.5 / (query.shape[-1] ** -0.5 if scaling is None else scaling)


def _configured_time(module: nn.Module) -> float | Tensor | None:
    time: Any = getattr(getattr(module, "config", None), "heat_time", None)
    if isinstance(time, Sequence) and not isinstance(time, str):
        layer, layers = _layer_of(module), getattr(module.config, "num_hidden_layers", len(time))
        if len(time) != layers or layer >= layers:
            raise RequestError(
                f"config.heat_time has {len(time)} times and the model {layers} layers; give one for each layer, or one number"
            )
        time = time[layer]
    if time is None or isinstance(time, Tensor):
        return time
    return _checked(time, "config.heat_time")


def _checked(time: Any, name: str) -> float:
    number = isinstance(time, int | float) and not isinstance(time, bool)
    if not (number and math.isfinite(time) and time > 0):
        raise RequestError(
            f"{name} is {time!r}; give a finite number above 0, or leave it out for the model's own attention"
        )
    return float(time)


def _layer_of(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise RequestError(
            f"config.heat_time has one time for each layer, but {type(module).__name__} does not know which layer it is; "
            "give one number"
        )
    return layer
