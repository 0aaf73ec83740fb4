"""Heat-kernel attention for models that are already there: `attn_implementation="heat_kernel"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from diffmix.ops.heat_kernel_attention import heat_kernel_attention

# Arguments by which a model asks for more than scores, a mask and a softmax, and what each does.
_FOREIGN = {"softcap": "caps its scores", "s_aux": "has attention sinks", "position_bias": "adds a bias by position"}


def register_attention() -> None:
    """Make `attn_implementation="heat_kernel"` known to Hugging Face models.

    The time t of `diffmix.ops.heat_kernel_attention`, `dot` form, is the call's `heat_time`, else `config.heat_time` (a number,
    or one for each layer), else 1 / (2·scaling), which is the model's own attention: the swap alone changes nothing.

        register_attention()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="heat_kernel")
        model.config.heat_time = 5.0
    """
    AttentionInterface.register("heat_kernel", _heat_kernel)
    AttentionMaskInterface.register("heat_kernel", sdpa_mask)


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
    for name, does in _FOREIGN.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} {does} ({name}), which attn_implementation='heat_kernel' does not do; "
                "leave this model its own attention"
            )
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    time = heat_time if heat_time is not None else _configured_time(module)
    if time is None:
        time = 0.5 / (query.shape[-1] ** -0.5 if scaling is None else scaling)
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


def _configured_time(module: nn.Module) -> float | None:
    time = getattr(getattr(module, "config", None), "heat_time", None)
    if not isinstance(time, Sequence):
        return time
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(
            f"config.heat_time has one time for each layer, but {type(module).__name__} does not know which layer it is; "
            "give one number"
        )
    if layer >= len(time):
        raise ValueError(
            f"config.heat_time has {len(time)} times and layer {layer} asks for one; give one for each layer"
        )
    return time[layer]
