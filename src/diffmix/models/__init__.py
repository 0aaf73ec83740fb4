"""Models. Importing this module registers them with the Hugging Face Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from diffmix.models.configuration import DiffmixConfig
from diffmix.models.modeling import (
    DiffmixForMaskedLM,
    DiffmixForSequenceClassification,
    DiffmixForSequencePairClassification,
    DiffmixModel,
)

AutoConfig.register("diffmix", DiffmixConfig, exist_ok=True)
AutoModel.register(DiffmixConfig, DiffmixModel, exist_ok=True)
AutoModelForMaskedLM.register(DiffmixConfig, DiffmixForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(DiffmixConfig, DiffmixForSequenceClassification, exist_ok=True)

__all__ = [
    "DiffmixConfig",
    "DiffmixForMaskedLM",
    "DiffmixForSequenceClassification",
    "DiffmixForSequencePairClassification",
    "DiffmixModel",
]
