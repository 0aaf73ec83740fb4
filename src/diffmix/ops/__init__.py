"""The operators, as fast as we know to make them; each is defined in `diffmix.ops.reference`."""

from diffmix.ops.neighbor_diffusion import neighbor_diffusion

__all__ = ["neighbor_diffusion"]
