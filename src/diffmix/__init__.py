"""diffmix: sequence models whose tokens exchange information by diffusion.

Names load when first taken, so `import diffmix` needs neither torch nor transformers. The models register with the Hugging
Face Auto classes at that moment, with `import diffmix.models`, or right here if transformers is already imported.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmix.experiments.run import run_experiment
    from diffmix.models import (
        DiffmixConfig,
        DiffmixForCausalLM,
        DiffmixForMaskedLM,
        DiffmixForSequenceClassification,
        DiffmixForSequencePairClassification,
        DiffmixModel,
        depth_scaled_time,
        register_attention,
    )

__version__ = "0.1.0"

_HOME = {
    "DiffmixConfig": "diffmix.models",
    "DiffmixForCausalLM": "diffmix.models",
    "DiffmixForMaskedLM": "diffmix.models",
    "DiffmixForSequenceClassification": "diffmix.models",
    "DiffmixForSequencePairClassification": "diffmix.models",
    "DiffmixModel": "diffmix.models",
    "depth_scaled_time": "diffmix.models",
    "register_attention": "diffmix.models",
    "run_experiment": "diffmix.experiments.run",
}

__all__ = [
    "DiffmixConfig",
    "DiffmixForCausalLM",
    "DiffmixForMaskedLM",
    "DiffmixForSequenceClassification",
    "DiffmixForSequencePairClassification",
    "DiffmixModel",
    "depth_scaled_time",
    "register_attention",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'diffmix' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if "transformers" in sys.modules:
    importlib.import_module("diffmix.models")
