"""What attentions of other models ask for that the ones we put in their place do not do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffmix.errors import RequestError

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
