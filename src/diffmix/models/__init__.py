"""Models. Importing this module registers them with the Hugging Face Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from diffmix.models.attention import register_attention
from diffmix.models.classification import DiffmixForSequenceClassification, DiffmixForSequencePairClassification
from diffmix.models.configuration import DiffmixConfig
from diffmix.models.diffusion_time import depth_scaled_time
from diffmix.models.language import DiffmixForCausalLM, DiffmixForMaskedLM
from diffmix.models.modeling import DiffmixModel

AutoConfig.register("diffmix", DiffmixConfig, exist_ok=True)
AutoModel.register(DiffmixConfig, DiffmixModel, exist_ok=True)
AutoModelForCausalLM.register(DiffmixConfig, DiffmixForCausalLM, exist_ok=True)
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["diffmix"] = DiffmixForCausalLM.__name__  # by it Trainer knows whose labels to shift
AutoModelForMaskedLM.register(DiffmixConfig, DiffmixForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(DiffmixConfig, DiffmixForSequenceClassification, exist_ok=True)

__all__ = [
    "DiffmixConfig",
    "DiffmixForCausalLM",
    "DiffmixForMaskedLM",
    "DiffmixForSequenceClassification",
    "DiffmixForSequencePairClassification",
    "DiffmixModel",
    "depth_scaled_time",
    "register_attention",
]
