"""Attentions of other models: which models take another, and what they ask for that ours do not do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from diffmix.errors import RequestError

OURS = ("heat_kernel", "attention_diffusion")

# Arguments by which a model asks for more than scores, a mask and a softmax, and what each does.
_FOREIGN = {"softcap": "caps its scores", "s_aux": "has attention sinks", "position_bias": "adds a bias by position"}


def refuse_foreign(module: nn.Module, arguments: Mapping[str, Any], implementation: str) -> None:
    """Raise RequestError where the arguments of a call of Hugging Face's attention interface ask for more than attention."""
    for name, does in _FOREIGN.items():
        if arguments.get(name) is not None:
            raise RequestError(
                f"{type(module).__name__} {does} ({name}), which attn_implementation={implementation!r} does not do; "
                "leave this model its own attention"
            )
    if arguments.get("output_attentions"):
        raise RequestError(
            f"output_attentions=True, but attn_implementation={implementation!r} returns no weights; leave it out, or give the "
            "model attn_implementation='eager'"
        )


def leaves_causality_to_masks(module: nn.Module) -> bool:
    """Whether a module is a decoder's that does not say that it is causal, in a family that always expects a mask.

    Families that support `sdpa` set `is_causal`; in others (BigBirdPegasus, NLLB-MoE, Pegasus-X) it is False in decoders, too.
    """
    if not getattr(module, "is_decoder", False) or getattr(module, "is_causal", False):
        return False
    family = type(module).__module__
    return any(
        isinstance(kind, type)
        and issubclass(kind, PreTrainedModel)
        and kind.__module__ == family
        and not kind._supports_sdpa
        for kind in vars(sys.modules[family]).values()
    )


def with_attention(make: Callable[[], Any], attention: str | None) -> Any:
    """The Hugging Face model that `make` builds with `attention` (None: its own).

    Raises RequestError where its family does not take that attention, or would leave ours unused without a word.
    """
    try:
        model = make()
    except RequestError:
        raise
    except (ImportError, ValueError) as error:
        if attention is None or not (isinstance(error, ImportError) or "attention" in str(error)):
            raise
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        raise RequestError(f"attn_implementation={attention}: {reason}; give another, such as eager") from None
    if attention in OURS and not any(_asks_the_registry(part) for part in model.modules()):
        raise RequestError(
            f"attn_implementation={attention}: models of type {model.config.model_type} only have their own attention; leave it "
            "out, or give another model"
        )
    return model


def _asks_the_registry(part: nn.Module) -> bool:
    """Whether a module's code takes its attention from Hugging Face's registry."""
    return hasattr(sys.modules.get(type(part).__module__), "ALL_ATTENTION_FUNCTIONS")
