"""The operators, as fast as we know to make them; each is defined in `diffmix.ops.reference`."""

from diffmix.ops.attention_diffusion import attention_diffusion
from diffmix.ops.coefficients import heat, personalized_pagerank, truncation_error
from diffmix.ops.heat_kernel_attention import heat_kernel_attention, locality_radius
from diffmix.ops.neighbor_diffusion import neighbor_diffusion

__all__ = [
    "attention_diffusion",
    "heat",
    "heat_kernel_attention",
    "locality_radius",
    "neighbor_diffusion",
    "personalized_pagerank",
    "truncation_error",
]
